"""Dynamic batching without waiting: who shares a run, and that every call gets exactly its own rows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.admission import Admission
from octoserve.core.errors import DeadlineExceeded, Internal, InvalidInput, OctoserveError, Overloaded
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Tensor
from octoserve.dataplane import batcher as batcher_module
from octoserve.dataplane.call import NEVER
from octoserve.dataplane.endpoint import DataPlane
from octoserve.lifecycle.lease import Handle
from octoserve.telemetry.metrics import Registry
from support.loops import FakeClock, InlineExecutor, ManualExecutor, drive, loop, ticks
from support.models import Asked, FakeModel, answer, floats, handle_of, publish, refused
from support.scale import scale


class House:
    """A data plane with one model, whose runs happen when the test says so."""

    def __init__(self, model: FakeModel | None = None, executor: Any = None, **settings: Any) -> None:
        limits = {
            key: settings.pop(key)
            for key in ("max_queue", "max_batch_bytes", "max_pending_bytes", "default_deadline")
            if key in settings
        }
        self.clock = FakeClock()
        self.executor = ManualExecutor() if executor is None else executor
        self.model = model or FakeModel()
        self.registry = Registry()
        self.plane = DataPlane(self.registry, loop(), self.executor, Admission(**limits), clock=self.clock)
        self.handle: Handle = handle_of(self.model, **settings)
        publish(self.plane, self.handle)
        self.batcher = self.plane.bind("m")

    def ask(self, rows: Any, **more: Any) -> Asked:
        """Submit one call with these rows."""
        call = Asked([floats(rows)], **more)
        self.plane.submit(call)
        return call

    def tick(self, count: int = 4) -> None:
        """Let the loop do what is due."""
        drive(ticks(count))

    def run(self) -> None:
        """One run of the model, and what follows from it."""
        self.tick()
        self.executor.run_one()
        self.tick()

    def finish(self) -> None:
        """Runs until nothing waits."""
        self.tick()
        while self.executor.waiting:
            self.run()

    def check_empty(self) -> None:
        """Nothing waits, nothing is held."""
        assert self.batcher.pending == 0
        assert self.handle.leases == 0
        assert self.batcher._rows_ahead == 0
        assert self.batcher._timed == 0
        assert self.plane._ground.budget.held == 0


@pytest.fixture(autouse=True)
def _never_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake model is quick enough to run on the loop; here its runs are to be held up."""
    monkeypatch.setattr(batcher_module, "INLINE_SECONDS", -1.0)


def check(call: Asked, rows: Any) -> None:
    """The call has the answer for exactly these rows."""
    assert call.answers == 1
    given = np.asarray(rows, dtype=np.float32)
    for i, want in enumerate(answer(given)):
        got = call.rows_of(i)
        assert got.shape == want.shape
        assert got.tolist() == want.tolist()
    assert call.result is not None
    assert call.result.shape(0) == given.shape


# --- who shares a run ----------------------------------------------------------------------------------


def test_calls_of_one_tick_share_a_run() -> None:
    house = House()
    calls = [house.ask([[i, -i]]) for i in range(10)]
    assert house.batcher.pending == 10
    house.run()
    assert house.model.batches == [10]
    for i, call in enumerate(calls):
        check(call, [[i, -i]])
    house.check_empty()


def test_an_idle_model_runs_at_once() -> None:
    house = House()
    house.ask([[1]])
    house.tick(1)
    assert len(house.executor.waiting) == 1


def test_what_arrives_during_a_run_forms_the_next_batch() -> None:
    house = House()
    first = house.ask([[1]])
    house.tick()
    later = []
    for i in range(5):
        later.append(house.ask([[10 + i]]))
        house.tick()
    assert house.batcher.pending == 6
    assert len(house.executor.waiting) == 1  # one run of a version at a time
    house.finish()
    assert house.model.batches == [1, 5]
    check(first, [[1]])
    for i, call in enumerate(later):
        check(call, [[10 + i]])


def test_a_blocked_run_in_a_real_thread_does_not_hold_the_loop() -> None:
    with ThreadPoolExecutor(1) as pool:
        house = House(executor=pool)
        house.model.gate = threading.Event()
        first = house.ask([[1]])
        house.tick()
        assert house.model.started.wait(10)
        later = [house.ask([[i]]) for i in range(3)]
        house.tick()
        assert house.batcher.pending == 4
        assert not first.answers
        everybody = asyncio.Event()
        later[-1].then = everybody.set
        house.model.gate.set()
        drive(asyncio.wait_for(everybody.wait(), 10))
    assert house.model.batches == [1, 3]
    check(first, [[1]])
    house.tick()
    house.check_empty()


def test_batches_are_bounded_by_rows() -> None:
    house = House(max_batch_rows=4)
    calls = [house.ask([[i], [i]]) for i in range(5)]
    house.finish()
    assert house.model.batches == [4, 4, 2]
    for i, call in enumerate(calls):
        check(call, [[i], [i]])


def test_a_request_with_more_rows_than_a_batch_runs_alone() -> None:
    house = House(max_batch_rows=4)
    small, big, last = house.ask([[1]]), house.ask([[i] for i in range(9)]), house.ask([[2]])
    house.finish()
    assert house.model.batches == [1, 9, 1]
    check(small, [[1]])
    check(big, [[i] for i in range(9)])
    check(last, [[2]])


def test_batches_are_bounded_by_bytes() -> None:
    house = House(max_batch_bytes=100)
    rows = [[float(i)] * 10 for i in range(5)]  # 40 bytes each
    calls = [house.ask([row]) for row in rows]
    big = house.ask([[0.5] * 10] * 4)
    house.finish()
    assert house.model.batches == [2, 2, 1, 4]
    for row, call in zip(rows, calls, strict=True):
        check(call, [row])
    check(big, [[0.5] * 10] * 4)


def test_different_shapes_are_grouped_not_mixed() -> None:
    house = House()
    widths = [1, 2, 1, 3, 2, 1]
    calls = [house.ask([[i] * width]) for i, width in enumerate(widths)]
    house.finish()
    assert house.model.shapes == [((3, 1),), ((2, 2),), ((1, 3),)]
    for i, (width, call) in enumerate(zip(widths, calls, strict=True)):
        check(call, [[i] * width])


def test_the_oldest_call_is_in_the_next_batch_whatever_its_shape() -> None:
    house = House(max_batch_rows=2)
    order: list[int] = []
    for i, width in enumerate([1, 2, 1, 1, 2, 1]):
        house.ask([[i] * width]).then = lambda i=i: order.append(i)  # type: ignore[misc]
    house.finish()
    assert order == [0, 2, 1, 4, 3, 5]


def test_inputs_in_another_order_share_a_batch() -> None:
    signature = Signature(
        [TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "FP32", (-1, 1))], [TensorSpec("y", "FP32", (-1, 1))], True
    )
    house = House(FakeModel(signature, lambda a, b: [a * 10 + b]))
    one = Asked([floats([[1]], "a"), floats([[2]], "b")])
    two = Asked([floats([[4]], "b"), floats([[3]], "a")])
    house.plane.submit(one)
    house.plane.submit(two)
    house.run()
    assert house.model.batches == [2]
    assert (one.rows_of().tolist(), two.rows_of().tolist()) == ([[12]], [[34]])


@pytest.mark.parametrize("datatype", ["BYTES", "BOOL", "FP16", "BF16", "INT64"])
def test_every_kind_of_tensor_is_joined_in_order(datatype: str) -> None:
    signature = Signature([TensorSpec("x", datatype, (-1, 2))], [TensorSpec("y", datatype, (-1, 2))], True)
    house = House(FakeModel(signature, lambda x: [x]))
    rows: list[Any] = (
        [[b"a", b"\0b"], [b"", b"\xff"], [b"c", b"d"]] if datatype == "BYTES" else [[0, 1], [1, 1], [1, 0]]
    )
    dtype = {"BYTES": object, "BOOL": bool, "FP16": "<f2", "BF16": "<u2", "INT64": "<i8"}[datatype]
    calls = []
    for i, row in enumerate(rows):
        array = np.array([row], dtype=dtype)
        whole = Tensor.of("x", array, datatype)
        raw = Tensor("x", datatype, array.shape, memoryview(whole.bytes()))
        calls.append(Asked([whole if i == 1 else raw]))  # as array and as bytes
        house.plane.submit(calls[-1])
    house.run()
    assert house.model.batches == [3]
    assert [call.rows_of().tolist() for call in calls] == [np.array([row], dtype=dtype).tolist() for row in rows]


def test_a_model_without_a_batch_dimension_runs_request_by_request() -> None:
    signature = Signature([TensorSpec("x", "FP32", (3,))], [TensorSpec("y", "FP32", (3,))])
    house = House(FakeModel(signature, lambda x: [x + 1]))
    calls = [house.ask([i, i, i]) for i in range(4)]
    house.finish()
    assert house.model.shapes == [((3,),)] * 4
    assert [call.rows_of().tolist() for call in calls] == [[i + 1] * 3 for i in range(4)]
    house.check_empty()


def test_requests_without_rows() -> None:
    house = House()
    calls = [house.ask(np.empty((0, 2))), house.ask([[1, 2]]), house.ask(np.empty((0, 2)))]
    house.finish()
    check(calls[1], [[1, 2]])
    check(calls[0], np.empty((0, 2)))
    house.finish()
    house.check_empty()


def test_a_short_run_happens_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "INLINE_SECONDS", 1.0)
    house = House()
    check_later = house.ask([[1]])
    house.run()  # the first is measured in a thread
    check(check_later, [[1]])
    second = house.ask([[2]])
    house.tick(1)
    check(second, [[2]])
    assert not house.executor.waiting
    house.check_empty()


# --- failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, 7, 31, 63])
def test_one_bad_request_among_many_fails_alone(bad: int) -> None:
    house = House()
    house.model.poison = {1000.0 + bad}
    calls = [house.ask([[1000.0 + i]]) for i in range(64)]
    house.finish()
    for i, call in enumerate(calls):
        assert call.answers == 1
        if i == bad:
            assert isinstance(call.error, Internal)
            assert "poisoned" not in str(call.error)  # details are for the log
        else:
            check(call, [[1000.0 + i]])
    assert house.batcher.statistics.row_count == 63
    house.check_empty()


def test_what_the_model_calls_the_callers_fault_is_told() -> None:
    house = House()
    house.model.poison = {5.0}
    house.model.error = lambda: refused("five is not taken")
    good, bad = house.ask([[1]]), house.ask([[5]])
    house.finish()
    check(good, [[1]])
    assert isinstance(bad.error, InvalidInput)
    assert "five" in str(bad.error)


def test_a_failing_run_does_not_stop_the_next() -> None:
    house = House()
    house.model.poison = {1.0}
    bad = house.ask([[1]])
    house.tick()
    good = house.ask([[2]])
    house.finish()
    assert isinstance(bad.error, Internal)
    check(good, [[2]])
    house.check_empty()


def test_a_model_that_does_not_keep_its_rows_apart_is_served_unbatched() -> None:
    signature = Signature([TensorSpec("x", "FP32", (-1, -1))], [TensorSpec("y", "FP32", (-1,))], True)
    house = House(FakeModel(signature, lambda x: [x.sum(axis=0)]))
    calls = [house.ask([[i, i + 1]]) for i in range(4)]
    house.finish()
    assert [call.rows_of().tolist() for call in calls] == [[i, i + 1] for i in range(4)]
    house.model.batches.clear()
    calls = [house.ask([[i, i]]) for i in range(3)]
    house.finish()
    assert house.model.batches == [1, 1, 1]
    assert [call.rows_of().tolist() for call in calls] == [[i, i] for i in range(3)]
    house.check_empty()


def test_a_version_that_turns_out_unbatched_says_so_and_keeps_no_layout_of_before() -> None:
    signature = Signature(
        [TensorSpec("x", "FP32", (-1, -1))], [TensorSpec("y", "FP32", (-1,))], True, {"x": ["", "width"]}
    )
    house = House(FakeModel(signature, lambda x: [x.sum(axis=0)]))
    calls = [house.ask([[i, 1], [i, 2]]) for i in range(3)]
    house.finish()
    after = house.handle.signature
    assert not after.batchable
    assert (after.inputs, after.outputs, after.dimensions) == (
        signature.inputs,
        signature.outputs,
        signature.dimensions,
    )
    calls.append(house.ask([[3, 1], [3, 2]]))
    assert calls[-1].rows == 1  # one thing, whatever its first dimension
    house.finish()
    assert [call.rows_of().tolist() for call in calls] == [[2 * i, 3] for i in range(4)]
    house.check_empty()


def test_failures_of_a_run_are_logged_at_most_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    house.model.poison = {1.0}
    for wait in (0.0, 0.5, 0.4, 0.2):
        house.clock.advance(wait)
        bad = house.ask([[1]])
        house.finish()
        assert isinstance(bad.error, Internal)
    lines = [r for r in caplog.records if "failed to run" in r.message]
    assert len(lines) == 2
    assert all(r.exc_info for r in lines)
    assert "2 more since the last such line" in lines[1].message
    house.check_empty()


def test_an_output_without_dimensions_is_not_shared() -> None:
    signature = Signature([TensorSpec("x", "FP32", (-1, -1))], [TensorSpec("y", "FP32", ())], True)
    house = House(FakeModel(signature, lambda x: [np.array(x.sum())]))
    calls = [house.ask([[i]]) for i in range(3)]
    house.finish()
    assert [float(call.rows_of()) for call in calls] == [0, 1, 2]


def test_a_short_and_a_long_tensor_never_make_up_for_each_other() -> None:
    """Joined they have the bytes of two rows; every row between them would be shifted."""
    house = House()
    check_first = house.ask([[1, 2]])  # from here on the header is known
    house.run()
    check(check_first, [[1, 2]])
    short = Asked([Tensor("x", "FP32", (1, 2), bytes(4))])
    victim = Asked([floats([[7, 8]])])
    long = Asked([Tensor("x", "FP32", (1, 2), bytes(12))])
    for call in (short, victim, long):
        house.plane.submit(call)
    house.finish()
    assert isinstance(short.error, InvalidInput)
    assert isinstance(long.error, InvalidInput)
    check(victim, [[7, 8]])


@pytest.mark.parametrize(("datatype", "raw"), [("BYTES", b"\x05\0\0\0a"), ("BOOL", b"\x02")])
def test_malformed_elements_are_refused_before_they_share_a_batch(datatype: str, raw: bytes) -> None:
    signature = Signature([TensorSpec("x", datatype, (-1, 1))], [TensorSpec("y", datatype, (-1, 1))], True)
    house = House(FakeModel(signature, lambda x: [x]))
    bad = Asked([Tensor("x", datatype, (1, 1), raw)])
    house.plane.submit(bad)
    assert isinstance(bad.error, InvalidInput)
    assert house.batcher.pending == 0


def test_an_answer_that_cannot_be_written_harms_nobody_else() -> None:
    def explode() -> None:
        raise ZeroDivisionError

    house = House()
    calls = [house.ask([[i]]) for i in range(3)]
    calls[1].then = explode
    house.finish()
    check(calls[0], [[0]])
    check(calls[2], [[2]])
    house.check_empty()


# --- going away --------------------------------------------------------------------------------------------


def test_cancel_while_waiting_frees_the_place() -> None:
    house = House()
    running = house.ask([[1]])
    house.tick()
    waiting, other = house.ask([[2]]), house.ask([[3]])
    waiting.cancel()
    assert house.batcher.pending == 2
    assert house.handle.leases == 2
    house.finish()
    assert waiting.answers == 0
    assert house.model.batches == [1, 1]
    check(running, [[1]])
    check(other, [[3]])
    house.check_empty()


def test_cancel_while_running_drops_the_answer() -> None:
    house = House()
    gone, other = house.ask([[1]]), house.ask([[2]])
    house.tick()
    gone.cancel()
    house.finish()
    assert gone.answers == 0
    check(other, [[2]])
    gone.cancel()
    other.cancel()  # harmless after the answer
    house.check_empty()


def test_an_answer_may_cancel_its_neighbours() -> None:
    house = House()
    calls = [house.ask([[i]]) for i in range(3)]
    calls[0].then = calls[1].cancel
    house.finish()
    assert [call.answers for call in calls] == [1, 0, 1]
    house.check_empty()


def test_cancelling_everything_leaves_an_idle_model() -> None:
    house = House()
    calls = [house.ask([[i]]) for i in range(3)]
    for call in calls:
        call.cancel()
    house.finish()
    assert house.model.batches == []
    house.check_empty()
    check_after = house.ask([[5]])
    house.finish()
    check(check_after, [[5]])


# --- deadlines -----------------------------------------------------------------------------------------------


def test_a_deadline_that_passed_on_the_way_here() -> None:
    house = House()
    call = house.ask([[1]], deadline=house.clock.now - 1)
    assert isinstance(call.error, DeadlineExceeded)
    assert call.answers == 1
    house.finish()
    assert house.model.batches == []


def test_a_deadline_that_passes_while_waiting() -> None:
    house = House()
    running = house.ask([[1]])
    house.tick()
    late, patient = house.ask([[2]], deadline=house.clock.now + 1), house.ask([[3]], deadline=house.clock.now + 9)
    house.clock.advance(2)
    house.batcher._sweep()
    assert isinstance(late.error, DeadlineExceeded)
    assert late.answers == 1
    house.finish()
    assert house.model.batches == [1, 1]
    check(running, [[1]])
    check(patient, [[3]])
    assert late.answers == 1
    house.check_empty()


def test_a_late_call_is_not_run_even_if_no_sweep_came() -> None:
    house = House()
    late, other = house.ask([[2]], deadline=house.clock.now + 1), house.ask([[3]])
    house.clock.advance(2)
    house.finish()
    assert isinstance(late.error, DeadlineExceeded)
    assert house.model.batches == [1]
    check(other, [[3]])
    house.check_empty()


def test_a_deadline_that_passes_while_running() -> None:
    house = House()
    late, other = house.ask([[1]], deadline=house.clock.now + 1), house.ask([[2]])
    house.tick()
    house.clock.advance(2)
    house.batcher._sweep()
    assert isinstance(late.error, DeadlineExceeded)
    house.finish()
    assert late.answers == 1
    check(other, [[2]])
    house.check_empty()


def test_the_sweep_runs_only_while_somebody_has_a_deadline() -> None:
    house = House()
    house.ask([[1]])
    assert not house.batcher._sweeping
    call = house.ask([[1]], deadline=house.clock.now + 1)
    assert house.batcher._sweeping
    house.finish()
    house.batcher._sweep()
    assert not house.batcher._sweeping
    check(call, [[1]])


def test_a_default_deadline_is_for_calls_that_bring_none() -> None:
    house = House(default_deadline=5.0)
    with_default, own = house.ask([[1]]), house.ask([[1]], deadline=house.clock.now + 50)
    assert with_default.deadline == house.clock.now + 5
    house.clock.advance(6)
    house.finish()
    assert isinstance(with_default.error, DeadlineExceeded)
    check(own, [[1]])


# --- admission -----------------------------------------------------------------------------------------------


def test_a_full_queue_sheds() -> None:
    house = House(max_queue=3)
    taken = [house.ask([[i]]) for i in range(3)]
    shed = house.ask([[9]])
    assert isinstance(shed.error, Overloaded)
    assert (shed.error.reason, shed.answers) == ("queue_full", 1)
    assert shed.error.retry_after >= 1
    taken[0].cancel()
    again = house.ask([[4]])
    house.finish()
    check(again, [[4]])
    house.check_empty()


def test_a_deadline_that_the_queue_cannot_meet_sheds_at_once() -> None:
    house = House()
    house.batcher._row_seconds = 2.0  # as measured on some slow model
    ahead = house.ask([[1]])
    hopeless, patient, whenever = (
        house.ask([[1]], deadline=house.clock.now + 1.9),
        house.ask([[1]], deadline=house.clock.now + 9),
        house.ask([[1]]),
    )
    assert isinstance(hopeless.error, Overloaded)
    assert hopeless.error.reason == "deadline_unmeetable"
    assert hopeless.error.retry_after == 2
    house.finish()
    for call in (ahead, patient, whenever):
        check(call, [[1]])


def test_the_first_in_an_empty_queue_is_always_tried() -> None:
    house = House()
    house.batcher._row_seconds = 100.0
    call = house.ask([[1]], deadline=house.clock.now + 0.1)
    house.finish()
    check(call, [[1]])


# --- never mixed ---------------------------------------------------------------------------------------------

_STEP = st.one_of(
    st.tuples(
        st.just("ask"), st.integers(1, 3), st.integers(1, 3), st.sampled_from(["good"] * 6 + ["bad", "late", "short"])
    ),
    st.tuples(st.just("tick")),
    st.tuples(st.just("run")),
    st.tuples(st.just("cancel"), st.integers(0, 500)),
    st.tuples(st.just("time"), st.floats(0.1, 3)),
    st.tuples(st.just("retire")),
)


@given(
    st.lists(_STEP, min_size=5, max_size=scale(120, 600)),
    st.integers(1, 16),
    st.sampled_from([40, 200, 10**6]),
    st.sampled_from([3, 1000]),
)
def test_every_call_is_answered_once_with_its_own_rows_or_its_own_error(
    steps: list[Any], max_rows: int, max_bytes: int, max_queue: int
) -> None:
    house = House(max_batch_rows=max_rows, max_batch_bytes=max_bytes, max_queue=max_queue)
    asked: list[tuple[Asked, str, Any]] = []
    batchers = [house.batcher]
    handles = [house.handle]
    number = 0.0

    def ask(rows: int, width: int, kind: str) -> None:
        nonlocal number
        values = []
        for _ in range(rows):
            values.append([number + 0.25 * column for column in range(width)])
            number += 1
        if kind == "bad":
            house.model.poison.add(values[0][0])
        tensor = floats(values)
        if kind == "short":
            tensor = Tensor("x", "FP32", tensor.shape, bytes(tensor.bytes())[:-4])
        call = Asked([tensor], deadline=house.clock.now + 1 if kind == "late" else NEVER)
        asked.append((call, kind, values))
        house.plane.submit(call)

    def step(name: str, *what: Any) -> None:
        if name == "ask":
            ask(*what)
        elif name == "tick":
            house.tick(1)
        elif name == "run" and house.executor.waiting:
            house.executor.run_one()
        elif name == "cancel" and asked:
            asked[what[0] % len(asked)][0].cancel()
        elif name == "time":
            house.clock.advance(what[0])
            for each in batchers:
                each._sweep()
        elif name == "retire":
            handles.append(handle_of(house.model, max_batch_rows=max_rows))
            house.plane.retire(handles[-2])
            house.plane.publish(handles[-1])
            batchers.append(house.plane.bind("m"))

    for name, *what in steps:
        step(name, *what)
    house.finish()
    for call, kind, values in asked:
        if call.error is None and call.answers:
            assert kind in ("good", "late")
            check(call, values)
        elif call.cancelled and not call.answers:
            continue
        else:
            assert call.answers == 1
            assert call.result is None
            allowed: dict[str, Any] = {"bad": Internal, "late": DeadlineExceeded, "short": InvalidInput}
            assert isinstance(call.error, (Overloaded, allowed.get(kind, Overloaded)))
    for each, handle in zip(batchers, handles, strict=True):
        assert each.pending == 0
        assert handle.leases == 0
        assert each._rows_ahead == 0
        assert each._timed == 0


def test_rows_of_500_interleaved_clients_never_mix() -> None:
    house = House(max_batch_rows=32)
    rng = np.random.default_rng(7)
    pending: dict[int, tuple[Asked, list[list[float]]]] = {}
    done = 0

    def check_now(client: int) -> Callable[[], None]:
        def answered() -> None:
            nonlocal done
            call, rows = pending.pop(client)
            check(call, rows)
            done += 1

        return answered

    for round_ in range(4):
        order = rng.permutation(500)
        for client in order.tolist():
            if client in pending:
                continue
            rows = [[client * 8 + round_ + 0.125 * k] * (1 + client % 3) for k in range(1 + client % 2)]
            call = Asked([floats(rows)])
            pending[client] = (call, rows)
            call.then = check_now(client)
            house.plane.submit(call)
            if rng.random() < 0.05:
                house.tick(1)
                if house.executor.waiting and rng.random() < 0.5:
                    house.executor.run_one()
    house.finish()
    assert not pending
    assert done >= 500
    assert max(house.model.batches) > 1
    assert max(house.model.batches) <= 32
    house.check_empty()


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(batcher_module, "INLINE_SECONDS", 1.0)
    return House(executor=InlineExecutor())


def test_awaited_predictions(inline: House) -> None:
    async def many() -> list[Any]:
        asked = [inline.plane.infer("m", [floats([[i]])]) for i in range(50)]
        return await asyncio.gather(*asked)

    results = drive(many())
    assert [r.array(0).tolist() for r in results] == [[[2 * i + 1]] for i in range(50)]
    inline.model.poison = {3.0}
    with pytest.raises(OctoserveError):
        drive(inline.plane.infer("m", [floats([[3]])]))
    inline.check_empty()


def test_an_awaited_prediction_that_is_cancelled_frees_its_place() -> None:
    house = House()

    async def work() -> None:
        task = asyncio.ensure_future(house.plane.infer("m", [floats([[1]])]))
        other = asyncio.ensure_future(house.plane.infer("m", [floats([[2]])], timeout=100))
        await ticks()
        task.cancel()
        await ticks()
        house.executor.run_one()
        assert (await other).array(0).tolist() == [[5]]
        assert task.cancelled()

    drive(work())
    house.check_empty()


# --- bytes in the queue ----------------------------------------------------------------------------------


def check_shed(call: Asked) -> None:
    assert call.answers == 1
    assert isinstance(call.error, Overloaded)
    assert call.error.reason == "queue_bytes"


def test_bytes_over_the_budget_are_shed_until_a_run_gives_them_back() -> None:
    house = House(max_pending_bytes=40)
    row = [[1.0, 2.0]]  # 8 bytes
    admitted = [house.ask(row) for _ in range(5)]
    shed = house.ask(row)
    check_shed(shed)
    house.run()
    for call in admitted:
        check(call, row)
    house.check_empty()
    again = house.ask(row)
    house.finish()
    check(again, row)


def test_a_call_alone_is_admitted_whatever_its_size() -> None:
    house = House(max_pending_bytes=4)
    large = house.ask([[float(i)] for i in range(50)])
    check_shed(house.ask([[1.0]]))
    house.finish()
    check(large, [[float(i)] for i in range(50)])
    house.check_empty()


def test_versions_share_the_byte_budget() -> None:
    house = House(max_pending_bytes=16)
    publish(house.plane, house.handle, handle_of(FakeModel(), "other"))
    house.ask([[1.0, 2.0, 3.0, 4.0]])
    check_shed(house.ask([[1.0]], model="other"))
    house.finish()
    assert not house.ask([[1.0]], model="other").answers
    house.finish()
    house.check_empty()


def test_bytes_of_calls_that_leave_early_are_given_back_when_nothing_holds_them() -> None:
    house = House(max_pending_bytes=1 << 20)
    running = house.ask([[1.0]])
    house.tick()
    waiting = house.ask([[1.0, 2.0]])
    late = house.ask([[1.0]], deadline=house.clock() + 1.0)
    assert house.plane._ground.budget.held == 16
    waiting.cancel()
    running.cancel()
    assert house.plane._ground.budget.held == 8  # the run still holds its inputs
    house.clock.advance(2.0)
    house.finish()
    assert late.answers
    house.check_empty()


def test_elements_of_a_text_are_counted() -> None:
    signature = Signature([TensorSpec("t", "BYTES", (-1, 1))], [TensorSpec("u", "BYTES", (-1, 1))], True)
    house = House(FakeModel(signature, lambda t: [t]), max_pending_bytes=4000)
    text = np.array([[b"x" * 3000]], dtype=object)
    calls = [Asked([Tensor.of("t", text)]) for _ in range(2)]
    for call in calls:
        house.plane.submit(call)
    check_shed(calls[1])
    house.finish()
    assert calls[0].answers == 1
    house.check_empty()
