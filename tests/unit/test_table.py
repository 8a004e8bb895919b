"""A table is split by row as single requests are, and comes back in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.errors import InvalidInput, OctoserveError
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Tensor
from octoserve.dataplane import table
from octoserve.dataplane.endpoint import DataPlane
from octoserve.routing.plan import BUCKETS, RoutePlan, split_arms
from octoserve.routing.split import pick
from octoserve.telemetry.metrics import Registry
from support.loops import FakeClock, InlineExecutor, drive, loop
from support.models import FakeModel, handle_of


def version(number: int, inputs: tuple[str, ...] = ("x", "id"), dtype: str = "<f4", name: str = "y") -> FakeModel:
    specs = {"x": TensorSpec("x", "FP32", (-1, 2)), "id": TensorSpec("id", "INT64", (-1, 1))}
    signature = Signature([specs[i] for i in inputs], [TensorSpec(name, "FP32", (-1, 2))], True)
    place = inputs.index("x")
    return FakeModel(signature, lambda *a: [(a[place] * number).astype(dtype)])


def plane_of(weight: int, *models: FakeModel, **more: object) -> tuple[DataPlane, RoutePlan]:
    plane = DataPlane(Registry(), loop(), InlineExecutor(), clock=FakeClock())
    for number, model in enumerate(models or (version(1), version(2)), 1):
        plane.publish(handle_of(model, version=number))
    plan = RoutePlan("m", 1, split_arms(1, 2, weight), seed="s", **{"key": "column:id", **more})  # type: ignore[arg-type]
    plane.route([plan], {}, [("m", 1), ("m", 2)])
    return plane, plan


def columns(rows: int, start: int = 0) -> list[Tensor]:
    x = np.arange(2 * rows, dtype="<f4").reshape(rows, 2)
    return [Tensor.of("x", x), Tensor.of("id", np.arange(start, start + rows).reshape(rows, 1))]


@given(st.integers(1, 200), st.integers(0, BUCKETS), st.integers(0, 1000))
def test_each_row_goes_where_a_request_of_its_key_goes(rows: int, weight: int, start: int) -> None:
    plane, plan = plane_of(weight)
    came = columns(rows, start)
    scored = drive(plane.infer_table("m", came))
    want = np.array([pick(plan, b"%d" % (start + i)) for i in range(rows)])
    assert scored.versions.tolist() == want.tolist()
    assert np.array_equal(scored.outputs["y"], came[0].array() * want[:, None])


def test_blocks_are_joined_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "BLOCK", 7)
    monkeypatch.setattr(table.score, "__defaults__", (7,))
    models = version(1), version(2)
    plane, _ = plane_of(5000, *models)
    came = columns(100)
    scored = drive(plane.infer_table("m", came))
    assert np.array_equal(scored.outputs["y"], came[0].array() * scored.versions[:, None])
    assert max(models[0].batches + models[1].batches) == 7


def test_inputs_in_another_order_are_no_matter() -> None:
    plane, _ = plane_of(5000, version(1), version(2, ("id", "x")))
    scored = drive(plane.infer_table("m", columns(50)))
    assert np.array_equal(scored.outputs["y"], columns(50)[0].array() * scored.versions[:, None])


def test_keys_that_no_column_holds_are_given_beside_it_and_overrides_hold() -> None:
    plane, plan = plane_of(5000, key="header:x-user", overrides={"tester": 2})
    keys = [b"tester" if i % 10 == 0 else b"u%d" % i for i in range(50)]
    scored = drive(plane.infer_table("m", columns(50), keys=keys))
    assert scored.versions.tolist() == [pick(plan, key) for key in keys]
    with pytest.raises(InvalidInput, match="3 keys came for 50 rows"):
        drive(plane.infer_table("m", columns(50), keys=keys[:3]))


def test_without_keys_shares_are_kept_by_chance() -> None:
    plane, _ = plane_of(3000, key="")
    scored = drive(plane.infer_table("m", columns(4000)))
    assert 0.26 < (scored.versions == 2).mean() < 0.34


def test_a_named_version_gets_every_row() -> None:
    plane, _ = plane_of(5000)
    assert set(drive(plane.infer_table("m", columns(20), "2")).versions.tolist()) == {2}


@pytest.mark.parametrize(
    ("second", "why"),
    [(version(2, dtype="<f8"), "differs between versions"), (version(2, name="z"), "no output 'y'")],
)
def test_versions_of_different_outputs_do_not_mix(second: FakeModel, why: str) -> None:
    plane, _ = plane_of(5000, version(1), second)
    with pytest.raises(OctoserveError, match=why):
        drive(plane.infer_table("m", columns(50)))


def test_a_failure_ends_the_table_and_the_leases() -> None:
    second = version(2)
    second.poison = {3.0}
    plane, _ = plane_of(BUCKETS, version(1), second)
    with pytest.raises(OctoserveError, match="failed on rows"):
        drive(plane.infer_table("m", columns(5)))
    assert plane.bind("m", "2").handle.leases == 0


def test_no_rows_and_no_room_for_rows() -> None:
    plane, _ = plane_of(5000)
    with pytest.raises(InvalidInput, match="without rows"):
        drive(plane.infer_table("m", [Tensor.of("x", np.zeros((0, 2), "<f4")), Tensor.of("id", np.zeros((0, 1), int))]))


def test_rows_of_a_candidate_that_is_cut_or_gone_are_stables() -> None:
    plane, _ = plane_of(5000)
    plane.splits.by_endpoint["m"].cut_candidate("it fails")
    assert set(drive(plane.infer_table("m", columns(50))).versions.tolist()) == {1}
    plane, _ = plane_of(5000)
    plane.retire(plane.bind("m", "2").handle)
    assert set(drive(plane.infer_table("m", columns(50))).versions.tolist()) == {1}
