"""Route plans: ranges without gap or overlap, or no plan at all."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.errors import SettingsError
from octoserve.routing.plan import BUCKETS, Arm, RoutePlan


def test_everything_to_one_version() -> None:
    plan = RoutePlan.to("m", 3, 7)
    assert (plan.endpoint, plan.generation, plan.arms, plan.seed) == ("m", 7, (Arm(3, 0, BUCKETS),), "")


@pytest.mark.parametrize(
    "arms",
    [
        (),
        (Arm(1, 0, 9999),),
        (Arm(1, 0, 10001),),
        (Arm(1, 1, 10000),),
        (Arm(1, 0, 5000), Arm(2, 5001, 10000)),
        (Arm(1, 0, 5000), Arm(2, 4999, 10000)),
        (Arm(1, 5000, 10000), Arm(2, 0, 5000)),
        (Arm(1, 0, 10000), Arm(2, 10000, 9000)),
        (Arm(1, 0, -1), Arm(2, -1, 10000)),
    ],
)
def test_gaps_and_overlaps_are_refused(arms: tuple[Arm, ...]) -> None:
    with pytest.raises(SettingsError, match="'m'"):
        RoutePlan("m", 1, arms)


@given(st.lists(st.integers(0, BUCKETS), max_size=5).map(sorted))
def test_any_division_is_a_plan_and_survives_the_control_socket(cuts: list[int]) -> None:
    edges = [0, *cuts, BUCKETS]
    arms = tuple(Arm(i + 1, lo, hi) for i, (lo, hi) in enumerate(itertools.pairwise(edges)))
    plan = RoutePlan("m", 1, arms, "s")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=RoutePlan) == plan


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        RoutePlan.to("m", 1, 1).generation = 2  # type: ignore[misc]
