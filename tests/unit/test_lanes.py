"""Runs that wait: several of one version in flight, never on the loop, and none that holds up another model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from octoserve.core.errors import DeadlineExceeded, Internal, InvalidInput, Overloaded, Unavailable
from octoserve.core.tensors import Array
from octoserve.dataplane.endpoint import DataPlane
from octoserve.lifecycle.lease import Handle
from octoserve.telemetry.metrics import Registry
from support.loops import ManualExecutor
from support.models import Asked, FakeModel, answer, floats, handle_of, publish

LIMIT = 60


class Waiting(FakeModel):
    """A model with lanes, whose runs wait for `go`; `inside` is released by each that has begun."""

    def __init__(self, lanes: int, raises: Callable[[], Exception] | None = None) -> None:
        super().__init__()
        self.lanes = lanes
        self.go = threading.Event()
        self.inside = threading.Semaphore(0)
        self.threads: set[str] = set()
        self.raises = raises

    def run(self, inputs: Any) -> list[Array]:
        self.batches.append(len(inputs[0]))
        self.threads.add(threading.current_thread().name)
        self.inside.release()
        assert self.go.wait(LIMIT)
        if self.raises is not None:
            raise self.raises()
        return answer(inputs[0])


class House:
    """A data plane of these models, on a real loop. Of other models no run ever begins."""

    def __init__(self, *models: FakeModel) -> None:
        self.handles: list[Handle] = [handle_of(model, f"m{i}") for i, model in enumerate(models)]
        self.shared = ManualExecutor()
        self.plane = DataPlane(Registry(), asyncio.get_running_loop(), self.shared)
        publish(self.plane, *self.handles)

    def ask(self, number: float, model: str = "m0", **more: Any) -> Asked:
        call = Asked([floats([[number, number]])], model, **more)
        self.plane.submit(call)
        return call

    def check_empty(self) -> None:
        assert all(handle.leases == 0 for handle in self.handles)
        assert self.plane._ground.budget.held == 0
        assert self.plane.bind("m0").pending == 0
        assert self.plane.bind("m0")._rows_ahead == 0
        assert self.plane.bind("m0").run_age == 0


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not what():
            await asyncio.sleep(0.001)


async def entered(model: Waiting, count: int = 1) -> None:
    for _ in range(count):
        assert await asyncio.to_thread(model.inside.acquire, timeout=LIMIT)


def check(call: Asked, number: float) -> None:
    assert call.answers == 1
    assert call.rows_of(0).tolist() == [[2 * number + 1] * 2]


def test_as_many_runs_as_lanes_are_in_flight_and_the_rest_form_a_batch() -> None:
    async def story() -> None:
        model = Waiting(3)
        house = House(model)
        calls = []
        for number in range(3):
            calls.append(house.ask(number))
            await entered(model)  # it flies before the next one comes
        calls += [house.ask(number) for number in range(3, 8)]
        await asyncio.sleep(0)
        assert house.plane.bind("m0").pending == 8
        assert house.plane.bind("m0").run_age > 0
        assert model.batches == [1, 1, 1]
        model.go.set()
        await until(lambda: all(call.answers for call in calls))
        for number, call in enumerate(calls):
            check(call, number)
        assert sum(model.batches) == 8
        assert model.batches[3] == 5
        assert not house.shared.waiting
        assert all(name.startswith("run-m0") for name in model.threads)
        house.check_empty()

    asyncio.run(story())


def test_a_lane_that_hangs_holds_up_no_other_model() -> None:
    async def story() -> None:
        stuck, other = Waiting(2), Waiting(1)
        other.go.set()
        house = House(stuck, other)
        held = [house.ask(number) for number in range(4)]
        for number in range(5):
            call = house.ask(number, "m1")
            await until(lambda call=call: call.answers == 1)  # type: ignore[misc]
            check(call, number)
        assert not any(call.answers for call in held)
        stuck.go.set()
        await until(lambda: all(call.answers for call in held))
        house.check_empty()

    asyncio.run(story())


@pytest.mark.parametrize("raises", [lambda: Unavailable("the server is away"), lambda: Overloaded("no room", 7)])
def test_a_server_that_is_away_is_asked_once_for_a_batch(raises: Callable[[], Exception]) -> None:
    async def story() -> None:
        model = Waiting(1, raises)
        house = House(model)
        first = house.ask(0)
        await entered(model)
        others = [house.ask(number) for number in range(1, 6)]
        model.go.set()
        await until(lambda: all(call.answers for call in (first, *others)))
        assert model.batches == [1, 5]
        assert {type(call.error) for call in (first, *others)} == {type(raises())}
        house.check_empty()

    asyncio.run(story())


def test_a_bad_row_fails_alone() -> None:
    async def story() -> None:
        model = Waiting(1)
        model.go.set()

        def function(rows: Array) -> list[Array]:
            if (rows == 13).any():
                raise InvalidInput("not thirteen")
            return answer(rows)

        model.run = lambda inputs: function(inputs[0])  # type: ignore[method-assign]
        house = House(model)
        calls = [house.ask(number) for number in (1, 13, 3)]
        await until(lambda: all(call.answers for call in calls))
        check(calls[0], 1)
        check(calls[2], 3)
        assert isinstance(calls[1].error, InvalidInput)
        house.check_empty()

    asyncio.run(story())


def test_deadlines_pass_and_clients_leave_while_a_run_waits() -> None:
    async def story() -> None:
        model = Waiting(1)
        house = House(model)
        late = house.ask(0, deadline=house.plane.clock() + 0.05)
        await entered(model)
        gone, waits = house.ask(1), house.ask(2)
        gone.cancel()
        await until(lambda: late.answers == 1)
        assert isinstance(late.error, DeadlineExceeded)
        assert house.handles[0].leases == 2  # the run in flight still holds its version
        model.go.set()
        await until(lambda: waits.answers == 1)
        check(waits, 2)
        assert gone.answers == 0
        house.check_empty()

    asyncio.run(story())


def test_a_version_leaves_when_its_lanes_are_empty() -> None:
    async def story() -> None:
        model = Waiting(2)
        house = House(model)
        calls = [house.ask(0), house.ask(1)]
        await entered(model)
        idle = asyncio.Event()
        house.plane.retire(house.handles[0])
        house.handles[0].when_idle(idle.set)
        assert not idle.is_set()
        model.go.set()
        async with asyncio.timeout(LIMIT):
            await idle.wait()
        assert [call.answers for call in calls] == [1, 1]

    asyncio.run(story())


def test_without_lanes_nothing_changes() -> None:
    async def story() -> None:
        house = House(FakeModel())
        call = house.ask(1)
        await until(lambda: bool(house.shared.waiting))
        house.shared.run_one()
        await until(lambda: call.answers == 1)
        assert np.array_equal(call.rows_of(0), [[3, 3]])

    asyncio.run(story())


@pytest.mark.parametrize("ends", [SystemExit, GeneratorExit, asyncio.CancelledError])
def test_a_run_that_would_end_its_thread_is_answered_and_its_lane_is_free(ends: Any) -> None:
    async def story() -> None:
        model = Waiting(1, ends)
        house = House(model)
        model.go.set()
        calls = [house.ask(1), house.ask(2)]
        await until(lambda: all(call.error is not None for call in calls))
        assert {type(call.error) for call in calls} == {Internal}
        model.raises = None
        again = house.ask(3)
        await until(lambda: again.result is not None)
        house.check_empty()

    asyncio.run(story())
