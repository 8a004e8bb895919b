"""The data plane: which version answers, what is refused before one is bound, and what is counted under which name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octoserve.core.errors import InvalidInput, NotFound, OctoserveError, Unavailable
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Tensor
from octoserve.dataplane.endpoint import DataPlane
from octoserve.lifecycle.lease import Handle
from octoserve.routing.plan import RoutePlan, split_arms
from octoserve.telemetry.families import Family
from octoserve.telemetry.metrics import Registry
from support.loops import FakeClock, InlineExecutor, ManualExecutor, drive, loop, ticks
from support.models import Asked, FakeModel, floats, handle_of, publish


def plane_with(*handles: Handle, executor: Any = None, **more: Any) -> tuple[DataPlane, Registry]:
    registry = Registry()
    plane = DataPlane(registry, loop(), executor or InlineExecutor(), clock=FakeClock())
    publish(plane, *handles, **more)
    return plane, registry


def times(factor: float) -> FakeModel:
    """A version that can be told from others by its answer."""
    signature = Signature([TensorSpec("x", "FP32", (-1, -1))], [TensorSpec("y", "FP32", (-1, -1))], True)
    return FakeModel(signature, lambda x: [x * np.float32(factor)])


def submit(plane: DataPlane, call: Asked) -> Asked:
    plane.submit(call)
    drive(ticks(6))
    return call


def requests(registry: Registry) -> dict[tuple[str, ...], int]:
    """How many requests were counted under which labels."""
    [family] = [f for f in registry.families() if f.name == "octoserve_request_seconds"]
    return {sample.labels: sample.count for sample in family.samples if sample.count}


def family(registry: Registry, name: str) -> Family:
    [found] = [f for f in registry.families() if f.name == name]
    return found


# --- binding --------------------------------------------------------------------------------------------


def test_bind_by_plan_number_and_label() -> None:
    one, two = handle_of(times(1), version=1), handle_of(times(2), version=2)
    plane, _ = plane_with(one, two, labels={"m": {"stable": 1, "candidate": 2}})
    for version, want in {"": 2, "1": 1, "2": 2, "01": 1, "stable": 1, "candidate": 2}.items():
        assert plane.bind("m", version).handle.ref.version == want, version
        call = submit(plane, Asked([floats([[3]])], version=version))
        assert call.rows_of().tolist() == [[3 * want]]


@pytest.mark.parametrize(
    ("model", "version", "kind"),
    [
        ("nobody", "", NotFound),
        ("nobody", "1", NotFound),
        ("nobody", "stable", NotFound),
        ("m", "3", NotFound),
        ("m", "0", NotFound),
        ("m", "latest", NotFound),
        ("m", "-1", NotFound),
        ("m", "1.0", NotFound),
        ("m", " 1", NotFound),
        ("m", "\u0661", NotFound),  # a digit, and no ASCII one
        ("m", "9" * 40, NotFound),
        ("m", "2", Unavailable),
        ("m", "broken", Unavailable),
        ("loading", "", Unavailable),
        ("loading", "1", Unavailable),
    ],
)
def test_not_found_or_not_available(model: str, version: str, kind: type[OctoserveError]) -> None:
    plane, _ = plane_with(handle_of(times(1)))
    plane.route([RoutePlan.to("m", 1, 1)], {"m": {"broken": 2}}, [("m", 1), ("m", 2), ("loading", 1)])
    with pytest.raises(kind) as caught:
        plane.bind(model, version)
    assert type(caught.value) is kind
    assert repr(model) in str(caught.value)
    call = submit(plane, Asked([floats([[1]])], model=model, version=version))
    assert type(call.error) is kind
    assert call.answers == 1


def test_a_plan_whose_version_is_not_ready_here_is_unavailable() -> None:
    plane, _ = plane_with(handle_of(times(1)))
    plane.route([RoutePlan.to("m", 2, 2)], {}, [("m", 1), ("m", 2)])
    with pytest.raises(Unavailable):
        plane.bind("m")


def test_metadata_of_a_split_is_the_stable_version() -> None:
    plane, _ = plane_with(handle_of(times(1), version=1), handle_of(times(2), version=2))
    plane.route([RoutePlan("m", 3, split_arms(1, 2, 9_000), "seed")], {}, [("m", 1), ("m", 2)])
    assert {plane.bind("m").handle.ref.version for _ in range(50)} == {1}
    assert plane.bind("m", "2").handle.ref.version == 2


def test_a_swap_of_plans_is_seen_by_the_next_request_only() -> None:
    executor = ManualExecutor()
    one, two = handle_of(times(1), version=1), handle_of(times(2), version=2)
    plane, _ = plane_with(one, two, executor=executor)
    plane.route([RoutePlan.to("m", 1, 1)], {}, [("m", 1), ("m", 2)])
    before = Asked([floats([[1]])])
    plane.submit(before)
    plane.route([RoutePlan.to("m", 2, 2)], {}, [("m", 1), ("m", 2)])
    after = Asked([floats([[1]])])
    plane.submit(after)
    drive(ticks())
    while executor.waiting:
        executor.run_one()
        drive(ticks())
    assert (before.rows_of().tolist(), after.rows_of().tolist()) == ([[1]], [[2]])
    assert before.result is not None
    assert before.result.ran.version == 1


def test_retire_while_calls_wait() -> None:
    executor = ManualExecutor()
    handle = handle_of(times(3))
    plane, _ = plane_with(handle, executor=executor)
    running, waiting = Asked([floats([[1]])]), Asked([floats([[2]])])
    plane.submit(running)
    drive(ticks())
    plane.submit(waiting)
    plane.retire(handle)
    idle: list[bool] = []
    handle.when_idle(lambda: idle.append(True))
    late = Asked([floats([[3]])])
    plane.submit(late)
    assert isinstance(late.error, Unavailable)
    assert not idle
    while executor.waiting:
        executor.run_one()
        drive(ticks())
    assert (running.rows_of().tolist(), waiting.rows_of().tolist()) == ([[3]], [[6]])
    assert idle == [True]
    assert handle.leases == 0
    plane.retire(handle)  # again: nothing


def test_a_version_that_comes_back_answers_again() -> None:
    plane, registry = plane_with(handle_of(times(1)))
    submit(plane, Asked([floats([[1]])]))
    plane.retire(plane.bind("m").handle)
    plane.publish(handle_of(times(5)))
    assert submit(plane, Asked([floats([[1]])])).rows_of().tolist() == [[5]]
    assert requests(registry) == {("m", "1", "test", "ok"): 2}


def test_retiring_a_version_does_not_retire_its_successor_of_the_same_number() -> None:
    old = handle_of(times(1))
    plane, _ = plane_with(old)
    plane.publish(handle_of(times(5)))
    plane.retire(old)
    assert submit(plane, Asked([floats([[1]])])).rows_of().tolist() == [[5]]


def test_ready_versions_and_known_ones() -> None:
    plane, _ = plane_with(handle_of(times(1), version=10), handle_of(times(1), version=9))
    assert plane.ready_versions("m") == [9, 10]
    assert plane.ready_versions("x") == []
    assert plane.known == {("m", 9), ("m", 10)}
    plan = plane.plan("m")
    assert plan is not None
    assert plan.arms[0].version == 9
    assert plane.plan("x") is None


# --- requests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], ["'x'", "missing", "FP32"]),
        ([floats([[1]], "z")], ["'x'", "missing", "z"]),
        ([floats([[1]]), floats([[1]], "z")], ["unknown", "'z'"]),
        ([floats([[1]]), floats([[1]])], ["twice"]),
        ([floats([1])], ["'x'", "[-1, -1]", "[1]"]),
        ([Tensor("x", "FP64", (1, 1), bytes(8))], ["'x'", "FP32", "FP64"]),
        ([Tensor("x", "WHAT", (1, 1), bytes(8))], ["'x'", "WHAT"]),
        ([Tensor("x", "FP32", (1, 1), bytes(8))], ["'x'", "4 bytes", "8 came"]),
        ([Tensor("x", "FP32", (-1, 1), bytes(4))], ["'x'"]),
        ([Tensor("x", "FP32", (0, 2**62), b"")], ["'x'"]),
        ([Tensor("x", "FP32", (2**62, 0), b"")], ["'x'"]),
    ],
)
def test_inputs_that_are_not_the_signatures(inputs: list[Tensor], words: list[str]) -> None:
    plane, registry = plane_with(handle_of(times(1)))
    for _ in range(2):
        call = submit(plane, Asked(inputs))
        assert isinstance(call.error, InvalidInput)
        for word in words:
            assert word in str(call.error)
    assert requests(registry) == {("m", "1", "test", "invalid"): 2}
    assert plane.bind("m").handle.leases == 0


def test_wanted_outputs() -> None:
    plane, _ = plane_with(handle_of(FakeModel()))
    assert submit(plane, Asked([floats([[1]])], outputs=["row_sum"])).error is None
    for outputs, word in ((["z"], "'z'"), (["y", "y"], "twice"), (["y", "z"], "row_sum")):
        call = submit(plane, Asked([floats([[1]])], outputs=outputs))
        assert isinstance(call.error, InvalidInput)
        assert word in str(call.error)


def test_unknown_names_never_become_labels() -> None:
    plane, registry = plane_with(handle_of(times(1)))
    for i in range(50):
        submit(plane, Asked([floats([[1]])], model=f"guess{i}"))
        submit(plane, Asked([floats([[1]])], version=f"guess{i}"))
        submit(plane, Asked([floats([[1]])], version=str(100 + i)))
        plane.refused(f"guess{i}", "test", InvalidInput("x"))
    assert requests(registry) == {
        ("", "", "test", "not_found"): 50,
        ("m", "", "test", "not_found"): 100,
        ("", "", "test", "invalid"): 50,
    }
    for each in registry.families():
        for sample in each.samples:
            assert not any("guess" in label for label in sample.labels)


def test_what_is_counted() -> None:
    model = FakeModel()
    handle = handle_of(model)
    plane, registry = plane_with(handle, executor=ManualExecutor())
    executor: ManualExecutor = plane._ground.executor  # type: ignore[assignment]
    clock: FakeClock = plane.clock  # type: ignore[assignment]
    model.poison = {9.0}
    calls = [Asked([floats([[value], [0]])]) for value in (1, 2, 9)]
    for call in calls:
        plane.submit(call)
    assert [s.total for s in family(registry, "octoserve_pending_requests").samples] == [3.0]
    drive(ticks())
    clock.advance(0.5)
    executor.run_one()
    drive(ticks())
    [(name, version, done)] = plane.statistics("m")
    assert (name, version) == ("m", 1)
    assert (done.successes, done.failures, done.row_count, done.executions) == (2, 1, 4, 1)
    assert done.success_seconds == pytest.approx(1.0)
    assert done.failure_seconds == pytest.approx(0.5)
    assert done.queue_seconds == pytest.approx(1.0)
    assert done.last_inference == clock.now
    assert requests(registry) == {("m", "1", "test", "ok"): 2, ("m", "1", "test", "internal"): 1}
    [rows] = family(registry, "octoserve_batch_rows").samples
    assert (rows.labels, rows.count, rows.total) == (("m", "1"), 1, 6.0)
    [total] = family(registry, "octoserve_rows_total").samples
    assert total.total == 4
    [queue] = family(registry, "octoserve_queue_seconds").samples
    assert (queue.count, queue.total) == (2, pytest.approx(1.0))
    assert [s.total for s in family(registry, "octoserve_pending_requests").samples] == [0.0]


def test_cancelled_and_late_calls_are_counted() -> None:
    plane, registry = plane_with(handle_of(FakeModel()), executor=ManualExecutor())
    clock: FakeClock = plane.clock  # type: ignore[assignment]
    gone, late = Asked([floats([[1]])]), Asked([floats([[1]])], deadline=clock.now + 1)
    plane.submit(gone)
    plane.submit(late)
    gone.cancel()
    clock.advance(2)
    drive(ticks())
    assert requests(registry) == {("m", "1", "test", "cancelled"): 1, ("m", "1", "test", "deadline"): 1}


def test_statistics_by_model_and_version() -> None:
    plane, _ = plane_with(handle_of(times(1), "a"), handle_of(times(1), "b", 1), handle_of(times(1), "b", 2))
    plane.route([], {"b": {"stable": 2}}, [])
    names = lambda *which: [(name, version) for name, version, _ in plane.statistics(*which)]  # noqa: E731
    assert names() == [("a", 1), ("b", 1), ("b", 2)]
    assert names("b") == [("b", 1), ("b", 2)]
    assert names("b", "stable") == names("b", "2") == [("b", 2)]
