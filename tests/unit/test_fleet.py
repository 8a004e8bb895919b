"""The fleet with processes and connections that are only played; time is moved by hand."""

from __future__ import annotations

import asyncio
import itertools
import signal

import msgspec
import pytest

from octoserve.lifecycle.states import State, VersionReport
from octoserve.patterns.online.link.messages import (
    Applied,
    Collect,
    Collected,
    Desired,
    Drain,
    Hello,
    Operation,
    Report,
    ToWorker,
)
from octoserve.patterns.online.settings import WorkerConfig
from octoserve.patterns.online.supervisor.fleet import Fleet, FleetTimes
from octoserve.patterns.online.supervisor.service_files import WorkerRecord
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.prometheus import render

EMPTY_PAGE = Registry().snapshot()
EMPTY = Desired(1, (), (), {}, ())
_decode = msgspec.msgpack.Decoder(ToWorker).decode


class Pipe:
    closed = False
    written = b""

    def write(self, data):
        self.written += data

    def close(self):
        self.closed = True


class Child:
    """What `subprocess.Popen` shows of a worker."""

    pids = itertools.count(10_000_000)

    def __init__(self):
        self.pid, self.stdin, self.code, self.signals = next(self.pids), Pipe(), None, []

    def poll(self):
        return self.code

    def send_signal(self, number):
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.code = -9

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def wait(self):
        return self.code


class Wire:
    """The supervisor's end of a connection."""

    def __init__(self):
        self.closed, self.sent = False, []

    def write(self, data):
        self.sent.append(_decode(data[4:]))

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed


class Yard:
    """A fleet and everything around it."""

    def __init__(self, size=2, records=()):
        self.now, self.children, self.changes, self.operations = 0.0, [], 0, []
        self.fleet = Fleet(
            size,
            lambda index: WorkerConfig(index=index, host="h", http_port=1, grpc_port=2, control_path="/s"),
            "settings-1",
            on_change=self.changed,
            on_record=lambda: None,
            on_operation=lambda member, operation: self.operations.append(operation),
            spawn=self.spawn,
            times=FleetTimes(),
            clock=lambda: self.now,
        )
        self.fleet.adopt(records)
        self.fleet.start()
        self.wires = {}

    def changed(self):
        self.changes += 1

    def spawn(self):
        self.children.append(Child())
        return self.children[-1]

    def pass_time(self, seconds):
        for _ in range(round(seconds / 0.25)):
            self.now += 0.25
            self.fleet.tick()

    def hello(self, pid, index=0, generation=0):
        wire = self.wires[pid] = Wire()
        member = self.fleet.connect(Hello(pid, index, 1, 2, generation), wire)
        if member is not None:
            self.fleet.hear(member, Report(()))
        return member

    def join(self):
        """Every child that is told nothing yet says Hello and applies."""
        self.fleet.push(EMPTY)
        for index, child in enumerate(self.children[-len(self.fleet.slots) :]):
            self.fleet.hear(self.hello(child.pid, index), Applied(1))
        return self


def record(pid=1, index=0, config="settings-1"):
    return WorkerRecord(pid, "never", index, config)


@pytest.fixture
def alive(monkeypatch):
    """Adopted processes that live, by pid."""
    living = {1, 2, 3}
    monkeypatch.setattr("octoserve.patterns.online.supervisor.worker_process.is_alive", lambda pid, _: pid in living)

    def kill(pid, number):
        if number == signal.SIGKILL:
            living.discard(pid)

    monkeypatch.setattr("octoserve.patterns.online.supervisor.worker_process.os.kill", kill)
    return living


def test_each_worker_is_told_its_place():
    yard = Yard()
    configs = [msgspec.json.decode(child.stdin.written, type=WorkerConfig) for child in yard.children]
    assert [config.index for config in configs] == [0, 1]
    assert all(child.stdin.closed for child in yard.children)


def test_newcomer_gets_the_desired_state_after_its_report():
    yard = Yard().join()
    assert all(EMPTY in wire.sent for wire in yard.wires.values())
    assert [m.generation for m in yard.fleet.serving()] == [1, 1]


def test_stranger_is_not_a_member():
    assert Yard().hello(4242) is None


def test_dead_worker_is_replaced_with_back_off():
    yard = Yard(1).join()
    gaps = []
    for _ in range(5):
        yard.children[-1].code = 1
        died, count = yard.now, len(yard.children)
        while len(yard.children) == count:
            yard.pass_time(0.25)
        gaps.append(yard.now - died)
    assert gaps == sorted(gaps)
    assert gaps[0] <= 0.5
    assert gaps[-1] >= 5
    assert yard.fleet.restarts == 5


def test_long_life_ends_the_back_off():
    yard = Yard(1)
    for _ in range(4):
        yard.children[-1].code = 1
        yard.pass_time(10)
    yard.join()
    for _ in range(70):
        yard.pass_time(1)
        _answer(yard)
    count = len(yard.children)
    yard.children[-1].code = 1
    yard.pass_time(0.5)
    assert len(yard.children) == count + 1


def _answer(yard):
    for member in yard.fleet.members():
        wire = yard.wires.get(member.process.pid)
        for message in wire.sent if wire else ():
            if isinstance(message, Collect):
                yard.fleet.hear(member, Collected(message.id, b""))
        if wire:
            wire.sent.clear()


def test_hung_worker_is_killed_and_one_that_answers_is_not():
    yard = Yard(2).join()
    hung, good = yard.children
    for _ in range(40):
        yard.pass_time(0.5)
        wire = yard.wires[good.pid]
        member = next(m for m in yard.fleet.members() if m.process.pid == good.pid)
        for message in wire.sent:
            if isinstance(message, Collect):
                yard.fleet.hear(member, Collected(message.id, b""))
        wire.sent.clear()
    assert hung.code == -9
    assert good.code is None


def test_time_in_which_the_supervisor_slept_blames_nobody():
    yard = Yard(2).join()
    yard.pass_time(3)
    yard.now += 3600
    yard.fleet.tick()
    assert [child.code for child in yard.children] == [None, None]


def test_worker_that_never_says_hello_is_replaced():
    yard = Yard(1)
    yard.pass_time(31)
    assert yard.children[0].code == -9
    assert len(yard.children) == 2


def test_adopted_worker_keeps_its_place(alive):
    yard = Yard(1, [record(1)])
    assert yard.children == []
    assert yard.fleet.awaiting_adoption()
    member = yard.hello(1, generation=7)
    assert not yard.fleet.awaiting_adoption()
    assert (member.adopted, member.generation) == (True, 7)
    yard.pass_time(1)
    assert yard.children == []


def test_adopted_worker_that_stays_silent_is_replaced(alive):
    yard = Yard(1, [record(1)])
    yard.pass_time(6)
    assert 1 not in alive
    assert len(yard.children) == 1


def test_adopted_worker_with_other_settings_drains_after_its_successor_serves(alive):
    yard = Yard(1, [record(1, config="settings-0")])
    yard.hello(1, generation=7)
    yard.pass_time(0.5)
    (child,) = yard.children
    old = yard.wires[1]
    assert not any(isinstance(m, Drain) for m in old.sent)
    member = yard.hello(child.pid)
    yard.pass_time(0.5)
    assert not any(isinstance(m, Drain) for m in old.sent), "it has applied nothing yet"
    yard.fleet.hear(member, Applied(8))
    yard.pass_time(0.5)
    assert any(isinstance(m, Drain) for m in old.sent)
    alive.discard(1)
    yard.pass_time(0.5)
    assert [m.process.pid for m in yard.fleet.members()] == [child.pid]


def test_adopted_worker_without_a_place_drains(alive):
    yard = Yard(1, [record(1, 0), record(2, 1)])
    yard.hello(1)
    yard.hello(2)
    assert any(isinstance(m, Drain) for m in yard.wires[2].sent)
    assert [m.process.pid for m in yard.fleet.serving()] == [1]


def test_reports_are_kept_by_version_and_forgotten_with_the_connection():
    yard = Yard(1).join()
    (member,) = yard.fleet.serving()
    report = VersionReport("m", 1, State.READY)
    yard.fleet.hear(member, Report((report,)))
    assert member.view().reports == {("m", 1): report}
    yard.fleet.disconnect(member, yard.wires[member.process.pid])
    assert yard.fleet.serving() == []


def test_operations_are_passed_on():
    yard = Yard(1).join()
    yard.fleet.hear(yard.fleet.serving()[0], Operation(3, "load", "m"))
    assert yard.operations == [Operation(3, "load", "m")]


def test_metrics_of_the_dead_are_kept():
    yard = Yard(1).join()
    (member,) = yard.fleet.serving()
    yard.fleet.hear(member, Collected(1, EMPTY_PAGE))
    yard.fleet.disconnect(member, yard.wires[member.process.pid])
    yard.children[0].code = -9
    yard.pass_time(0.25)
    assert asyncio.run(yard.fleet.collect(timeout=0)) == [EMPTY_PAGE]


def test_stop_drains_and_reports_who_was_killed():
    yard = Yard(2).join()
    yard.children[0].code = 0

    async def main():
        cut_short = asyncio.Event()
        cut_short.set()
        return await yard.fleet.stop(30.0, cut_short)

    assert asyncio.run(main()) is False
    assert yard.children[1].code == -9
    assert any(isinstance(m, Drain) for m in yard.wires[yard.children[1].pid].sent)
    assert len(yard.children) == 2, "nobody is replaced while stopping"


def test_a_worker_that_cannot_be_started_keeps_nobody_from_being_tended():
    yard = Yard(size=2)
    first, second = yard.children
    spawn, yard.fleet._spawn = yard.fleet._spawn, fail_to_spawn
    first.code = second.code = -9
    yard.pass_time(2)
    assert [slot.member for slot in yard.fleet.slots] == [None, None]
    yard.fleet._spawn = spawn
    yard.pass_time(2)
    assert all(slot.member is not None for slot in yard.fleet.slots)


def fail_to_spawn():
    raise OSError(24, "Too many open files")


def test_a_record_that_could_not_be_written_is_written_later():
    yard = Yard(size=1)
    told = []

    def record():
        told.append(len(yard.fleet.records()))
        if len(told) == 1:
            raise OSError("state directory is gone")

    yard.fleet._on_record = record
    yard.children[0].code = 1
    with pytest.raises(OSError, match="gone"):
        yard.fleet.tick()
    yard.fleet.tick()
    yard.fleet.tick()
    assert told == [0, 0]


def test_last_metrics_of_the_dead_are_folded_at_once():
    yard = Yard(size=1)
    for count in (1, 2, 4):
        registry = Registry()
        registry.counter("shed_total", "", ("reason",)).counter("queue").add(count)
        yard.fleet.slots[0].member.snapshot = registry.snapshot()
        yard.children[-1].code = 1
        yard.pass_time(40)
    (folded,) = yard.fleet.past_snapshots
    assert 'shed_total{reason="queue"} 7' in render([folded]).decode()
