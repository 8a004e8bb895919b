"""Needs and capabilities: what is refused, before anything changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from octoserve.control.rollout.values import Course, LatencyCheck, PredictionCheck, Step
from octoserve.core.errors import SettingsError
from octoserve.routing.backends.draining import wait_until_idle
from octoserve.routing.backends.generations import Generations
from octoserve.routing.backends.in_process import CAPABILITIES
from octoserve.routing.backends.protocol import Capabilities, needs_of_course, refuse_unless_able
from octoserve.routing.plan import RoutePlan, split_arms
from support.loops import FakeClock, drive

NOTHING = Capabilities(backend="nothing")
CANARY = Course(strategy="canary", steps=(Step(weight=100), Step(weight=1_000), Step(weight=10_000)))
SHADOW = Course(strategy="shadow", steps=(Step(mirror=1_000, noise=100),), checks=(PredictionCheck(),))


def test_octoserves_own_workers_can_do_it_all() -> None:
    for key in ("header:x-user", "input:customer", "column:customer", "parameter:customer", "message:key"):
        course = structs.replace(CANARY, key=key, segments=("header:x-country",), overrides={"tester": 2})
        refuse_unless_able(course, CAPABILITIES)
    refuse_unless_able(SHADOW, CAPABILITIES)
    refuse_unless_able(Course(strategy="canary", steps=(Step(weight=500, mirror=100),)), CAPABILITIES)


@pytest.mark.parametrize(
    ("course", "field"),
    [
        (structs.replace(CANARY, baseline=False, key="header:x-user"), "key 'header:x-user'"),
        (CANARY, "baseline"),
        (structs.replace(CANARY, baseline=False, overrides={"a": 2}), "overrides"),
        (structs.replace(CANARY, baseline=False, segments=("input:x",)), "segments"),
        (SHADOW, "mirrors"),
        (SHADOW, "predictions cannot be compared"),
        (Course(strategy="canary", steps=(Step(weight=6_000, mirror=1),)), "mirror beside weight"),
    ],
)
def test_a_refusal_names_field_and_backend(course: Course, field: str) -> None:
    with pytest.raises(SettingsError, match=field) as refused:
        refuse_unless_able(course, NOTHING)
    assert "nothing cannot carry this out" in str(refused.value)


def test_all_that_is_lacking_is_said_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        refuse_unless_able(structs.replace(CANARY, key="input:x", segments=("input:y",)), NOTHING)
    assert all(word in str(refused.value) for word in ("key", "baseline", "segments"))


def test_another_kind_of_key_is_refused_with_the_remedy() -> None:
    able = Capabilities(backend="proxy", keys=("header",), baseline=True)
    refuse_unless_able(structs.replace(CANARY, key="header:x-user"), able)
    with pytest.raises(SettingsError, match="sees header:NAME only; send the key that way, or route in-process"):
        refuse_unless_able(structs.replace(CANARY, key="message:key"), able)


def test_a_course_that_compares_nothing_needs_no_pairs() -> None:
    copies = Course(strategy="shadow", steps=(Step(mirror=100),), checks=(LatencyCheck(),))
    assert not needs_of_course(copies).pairs
    assert needs_of_course(structs.replace(copies, checks=(PredictionCheck(),))).pairs
    blue_green = Course(strategy="blue-green", steps=(Step(),), checks=(PredictionCheck(),))
    assert needs_of_course(blue_green) == needs_of_course(Course(strategy="blue-green", steps=(Step(),)))
    refuse_unless_able(blue_green, NOTHING)


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_shares_are_multiples_of_the_step(weight: int, step: int) -> None:
    able = Capabilities(backend="proxy", weight_step=step)
    plan = RoutePlan("m", 1, split_arms(1, 2, weight))
    if weight % step or (10_000 - weight) % step:
        with pytest.raises(SettingsError, match="weight"):
            refuse_unless_able(plan, able)
    else:
        refuse_unless_able(plan, able)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.integers(1, 3)), max_size=30))
def test_generations_only_grow(offers: list[tuple[str, int, int]]) -> None:
    plans = Generations()
    for endpoint, generation, version in offers:
        before = plans.newest.get(endpoint)
        plan = RoutePlan.to(endpoint, version, generation)
        try:
            plans.accept(plan)
        except SettingsError:
            assert before is not None
            assert before.generation >= generation
            assert plans.newest[endpoint] is before
        else:
            assert plans.newest[endpoint] == plan
            assert before is None or before == plan or before.generation < generation


def looks(*counts: int) -> Callable[[], int]:
    left = list(counts)
    return lambda: left.pop(0)


@pytest.mark.parametrize(("quiet", "counts", "left"), [(1, (2, 1, 0), 0), (2, (0, 1, 0, 0), 0), (1, (5,) * 11, 5)])
def test_waiting_until_idle(quiet: int, counts: tuple[int, ...], left: int) -> None:
    clock, look = FakeClock(0.0), looks(*counts)

    async def in_flight() -> int:
        return look()

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    assert drive(wait_until_idle(in_flight, 0.095, clock, sleep, quiet)) == left
    with pytest.raises(IndexError):
        look()  # it looked as often as it had to, and at the deadline once more
