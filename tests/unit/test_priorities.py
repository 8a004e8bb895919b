"""Levels of a queue: who goes first, who is shed first, and that nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octoserve.core.admission import HIGH, LEVELS, LOW, NORMAL, Admission, Priorities, TenantLimits, TenantRules
from octoserve.core.errors import DeadlineExceeded, InvalidInput, Overloaded
from octoserve.dataplane import batcher as batcher_module
from octoserve.dataplane.call import NEVER
from octoserve.dataplane.endpoint import DataPlane
from octoserve.dataplane.priorities import HEADER, Levels, level_of
from octoserve.telemetry.metrics import Registry
from support.loops import FakeClock, ManualExecutor, drive, loop, ticks
from support.models import Asked, FakeModel, floats, handle_of, publish
from support.scale import scale


class Ranked(Asked):
    """A call that says how urgent it is."""

    def __init__(self, level: int | None = None, header: str | None = None, parameter: object = None, **more: Any):
        super().__init__([floats([[1.0]])], **more)
        self.said = header if level is None else LEVELS[level]
        self.param = parameter
        self.headers: dict[str, str] = {}

    def header(self, name: str) -> str | None:
        return self.said if name == HEADER else self.headers.get(name)

    def parameter(self, name: str) -> object:
        return self.param if name == "priority" else None


class House:
    """A data plane with levels, one model that runs requests one by one, when the test says so."""

    def __init__(self, rules: Priorities = Priorities(), tenants: TenantRules | None = None, **limits: Any) -> None:
        self.clock = FakeClock()
        self.executor = ManualExecutor()
        self.model = FakeModel()
        self.registry = Registry()
        rows = limits.pop("max_batch_rows", 1)
        self.plane = DataPlane(
            self.registry,
            loop(),
            self.executor,
            Admission(priorities=rules, tenants=tenants, **limits),
            clock=self.clock,
        )
        self.handle = handle_of(self.model, max_batch_rows=rows)
        publish(self.plane, self.handle)
        self.batcher = self.plane.bind("m")
        self.batcher._sweeping = True  # by the loop's own clock it would come when it likes
        self.done: list[Ranked] = []

    def ask(self, level: int | None = None, **more: Any) -> Ranked:
        self.clock.advance(0.001)
        call = Ranked(level, **more)
        call.then = lambda: self.done.append(call)
        self.plane.submit(call)
        return call

    def run(self, runs: int = 1) -> None:
        for _ in range(runs):
            drive(ticks())
            if self.executor.waiting:
                self.executor.run_one()
            drive(ticks())

    def finish(self) -> None:
        while self.batcher.pending:
            self.run()

    def check_empty(self) -> None:
        assert self.batcher.pending == 0
        assert self.handle.leases == 0
        assert self.batcher._rows_ahead == 0
        assert self.batcher._timed == 0
        assert self.plane._ground.budget.held == 0
        assert self.batcher._levels is not None
        assert self.batcher._levels._rows == [0, 0, 0]

    def counted(self, level: int, outcome: str) -> float:
        [family] = [f for f in self.registry.families() if f.name == "octoserve_priority_requests_total"]
        return sum(s.total for s in family.samples if s.labels[2:] == (LEVELS[level], outcome))


@pytest.fixture(autouse=True)
def _never_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "INLINE_SECONDS", -1.0)


# --- what a request asks for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "parameter", "level"),
    [
        (None, None, NORMAL),
        ("high", None, HIGH),
        (" LOW ", None, LOW),
        ("1", None, HIGH),
        (None, 1, HIGH),
        (None, 3, LOW),
        (None, "2", NORMAL),
        (None, 0, NORMAL),
        ("0", 1, HIGH),
        ("low", 1, LOW),
        ("high", 3, LOW),
        ("default", 3, LOW),
    ],
)
def test_the_less_urgent_of_what_is_said_counts(header: str | None, parameter: object, level: int) -> None:
    assert level_of(Ranked(header=header, parameter=parameter), NORMAL) == level


@pytest.mark.parametrize("bad", ["urgent", "4", "", 4, -1, 10**4000, True, 1.0, [1]])
def test_a_level_that_does_not_exist_is_refused(bad: object) -> None:
    with pytest.raises(InvalidInput, match=r"parameter priority: 1 \(high\).* wanted"):
        level_of(Ranked(parameter=bad), NORMAL)
    house = House()
    call = house.ask(parameter=bad)
    assert isinstance(call.error, InvalidInput)
    house.check_empty()


def test_without_levels_nothing_is_read() -> None:
    plane = DataPlane(Registry(), loop(), ManualExecutor(), clock=FakeClock())
    publish(plane, handle_of(FakeModel()))
    call = Ranked(parameter="urgent")
    plane.submit(call)
    assert call.error is None
    call.cancel()


# --- who goes first -------------------------------------------------------------------------------------


def test_high_goes_first_and_low_last_in_the_order_of_arrival() -> None:
    house = House(Priorities(turn=1000))
    first = house.ask(LOW)
    drive(ticks())  # it runs already
    asked = [house.ask(level) for level in (LOW, NORMAL, HIGH, LOW, HIGH, NORMAL)]
    house.finish()
    low, normal, high, low2, high2, normal2 = asked
    assert house.done == [first, high, high2, normal, normal2, low, low2]
    house.check_empty()


def test_each_so_many_th_run_is_for_who_has_waited_longest() -> None:
    house = House(Priorities(turn=4))
    house.ask(HIGH)
    drive(ticks())
    low = [house.ask(LOW) for _ in range(2)]
    high = [house.ask(HIGH) for _ in range(9)]
    house.finish()
    assert house.done[1:] == [*high[:3], low[0], *high[3:6], low[1], *high[6:]]


def test_a_run_is_filled_up_in_the_same_order() -> None:
    house = House(Priorities(turn=2), max_batch_rows=3)
    house.ask(HIGH)
    drive(ticks())
    low, high = [house.ask(LOW) for _ in range(3)], [house.ask(HIGH) for _ in range(6)]
    house.finish()
    assert house.model.batches == [1, 3, 3, 3]
    assert house.done[1:] == [*high[:3], low[0], *high[3:5], high[5], *low[1:]]


def test_who_is_late_leaves_when_its_turn_comes() -> None:
    house = House(Priorities(turn=2))
    house.ask(HIGH)
    drive(ticks())
    late = house.ask(LOW, deadline=house.clock.now + 1)
    low, high = house.ask(LOW), [house.ask(HIGH) for _ in range(3)]
    house.clock.advance(2)
    house.finish()
    assert isinstance(late.error, DeadlineExceeded)
    assert house.done[1:] == [high[0], late, high[1], high[2], low]
    house.check_empty()


# --- who is let in --------------------------------------------------------------------------------------


def test_low_is_shed_first_whoever_fills_the_queue() -> None:
    house = House(Priorities(shares=(1.0, 0.9, 0.5)), max_queue=10)
    for _ in range(5):
        assert house.ask(LOW).error is None
    shed = house.ask(LOW)
    assert isinstance(shed.error, Overloaded)
    assert (shed.error.reason, str(shed.error)) == ("queue_full", "the queue is full for priority low (5 requests)")
    for _ in range(4):
        assert house.ask(NORMAL).error is None
    assert isinstance(house.ask(NORMAL).error, Overloaded)
    assert house.ask(HIGH).error is None
    assert isinstance(house.ask(HIGH).error, Overloaded)
    assert [house.counted(level, "in") for level in (HIGH, NORMAL, LOW)] == [1, 4, 5]
    assert [house.counted(level, "shed") for level in (HIGH, NORMAL, LOW)] == [1, 1, 1]
    house.finish()
    house.check_empty()


def test_bytes_have_the_same_shares() -> None:
    house = House(max_pending_bytes=40)  # a request has 4
    let_in = {level: [house.ask(level).error is None for _ in range(10)].count(True) for level in (LOW, NORMAL, HIGH)}
    assert let_in == {LOW: 5, NORMAL: 4, HIGH: 1}
    assert house.ask(LOW).error.reason == "queue_bytes"
    house.finish()
    house.check_empty()


def test_lows_backlog_sheds_nobody_who_goes_before_it() -> None:
    house = House()
    house.batcher._row_seconds = 1.0
    for _ in range(20):
        house.ask(LOW)
    soon = house.clock.now + 3
    assert house.ask(HIGH, deadline=soon).error is None
    shed = house.ask(LOW, deadline=soon).error
    assert isinstance(shed, Overloaded)
    assert shed.reason == "deadline_unmeetable"
    assert shed.retry_after == 21


def test_a_tenant_has_a_highest_level() -> None:
    tenants = TenantRules("header:x-tenant", per={"nightly": TenantLimits(priority=LOW)})
    house = House(tenants=tenants)
    calls = [Ranked(HIGH), Ranked(HIGH)]
    calls[0].headers["x-tenant"] = "nightly"
    for call in calls:
        house.plane.submit(call)
    assert [call.level for call in calls] == [LOW, HIGH]
    house.finish()


@given(st.sampled_from([(1.0, 0.9, 0.5), (1.0, 1.0, 1.0), (1.0, 0.2, 0.01)]), st.integers(1, 5000))
def test_who_is_let_in_at_a_level_would_be_at_every_higher_one(shares: Any, room: int) -> None:
    levels = Levels(Priorities(shares=shares))
    rooms = [levels.share(level, room) for level in range(len(LEVELS))]
    assert rooms == sorted(rooms, reverse=True)
    assert rooms[HIGH] == room
    assert rooms[LOW] >= 1


# --- the rules, over histories ---------------------------------------------------------------------------


class Queue(RuleBasedStateMachine):
    """Any history of arrivals, runs, departures and time, in the real batcher; runs are of one request each."""

    turn = 3

    def __init__(self) -> None:
        super().__init__()
        self.house = House(Priorities(turn=self.turn), max_queue=12)
        self.waiting: list[Ranked] = []
        self.bound: dict[Ranked, int] = {}
        """Of who waits: in so many runs it has had its turn, or has left."""
        self.running: Ranked | None = None
        self.runs = 0

    @rule(level=st.integers(0, 2), timed=st.booleans())
    def arrive(self, level: int, timed: bool) -> None:
        house = self.house
        pending = house.batcher.pending
        call = house.ask(level, deadline=house.clock.now + 5 if timed else NEVER)
        rooms = [house.batcher._levels.share(each, 12) for each in range(3)]
        if call.error is None:
            assert pending < rooms[level]
            self.bound[call] = self.turn * (len(self.waiting) + 1)
            self.waiting.append(call)
        elif call.error.reason == "queue_full":
            assert pending >= rooms[level]

    @precondition(lambda self: self.waiting)
    @rule()
    def run(self) -> None:
        """The run under way ends, and the next begins with somebody."""
        house = self.house
        house.run()
        begun = house.batcher._running
        self.running = begun[0] if begun else None
        gone = [call for call in self.waiting if call.answers or call is self.running]
        self.waiting = [call for call in self.waiting if call not in gone]
        self.runs += 1
        for call in list(self.bound):
            if call in self.waiting:
                self.bound[call] -= 1
                assert self.bound[call] > 0, "nobody waits for ever"
            else:
                del self.bound[call]
        if self.running in gone:
            mine = self.running
            assert all(other.level != mine.level or other.arrived >= mine.arrived for other in self.waiting)
            overtaken = [other for other in self.waiting if other.level < mine.level]
            assert not overtaken or all(other.arrived >= mine.arrived for other in self.waiting), "its turn"

    @precondition(lambda self: self.waiting)
    @rule(runs=st.integers(1, 8))
    def be_busy(self, runs: int) -> None:
        """High keeps coming, one a run."""
        for _ in range(runs):
            self.arrive(HIGH, False)
            self.run()

    @precondition(lambda self: self.waiting)
    @rule(place=st.integers(0, 50))
    def cancel(self, place: int) -> None:
        call = self.waiting.pop(place % len(self.waiting))
        self.bound.pop(call)
        call.cancel()

    @rule(seconds=st.floats(0.1, 4))
    def wait(self, seconds: float) -> None:
        self.house.clock.advance(seconds)

    @invariant()
    def counts_agree(self) -> None:
        levels = self.house.batcher._levels
        assert [len(queue) for queue in levels._queues] == levels._rows

    def teardown(self) -> None:
        self.house.finish()
        self.house.check_empty()


TestQueue = Queue.TestCase
TestQueue.settings = settings(stateful_step_count=scale(40, 80), max_examples=scale(20, 1000), deadline=None)
