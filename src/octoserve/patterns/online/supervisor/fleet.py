"""The workers of one service: spawned, heard, replaced, drained. What they should do is not decided here.

A slot is a worker's place. It has one member in force, and a successor beside it while a member that was
adopted with other settings is being replaced: the successor takes traffic before the old one drains, so
that no request is lost. `tick` is one observe-decide-act step over all slots.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

import msgspec

from octoserve.core.clock import Clock, monotonic
from octoserve.core.evidence import Seen
from octoserve.patterns.online.link.messages import (
    Applied,
    Collect,
    Collected,
    Desired,
    Drain,
    Hello,
    Observe,
    Observed,
    Operation,
    Report,
    ToSupervisor,
)
from octoserve.patterns.online.settings import WorkerConfig
from octoserve.patterns.online.supervisor.fleet_member import Member, Slot
from octoserve.patterns.online.supervisor.plan_times import PlanTimes
from octoserve.patterns.online.supervisor.service_files import WorkerRecord
from octoserve.patterns.online.supervisor.worker_process import WorkerProcess, spawn_blank

log = logging.getLogger(__name__)


MAX_GAP = 0.5
"""Seconds between two looks at the clock, at most, that count as attended."""


SPAWN_AGAIN = 1.0
"""Seconds after which a process is started again that the system would not let us start."""


class FleetTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds."""

    back_off: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
    """Before a worker is replaced that died soon after its start; a first death costs the first of them."""
    stable: float = 60.0
    """A worker that lived so long has not died soon."""
    hang: float = 15.0
    """Without an answer to Collect, a worker hangs and is replaced."""
    collect: float = 2.0
    connect: float = 30.0
    """A live worker without a connection is replaced."""
    adopt: float = 5.0
    """A worker of the last supervisor that has not said Hello by then is replaced."""
    retire: float = 30.0
    """Grace for a replaced worker to finish what it has."""


class Fleet:
    """See the module. All on one event loop.

    config:       what the worker of a slot is told
    fingerprint:  of what all workers are told; a member with another one is replaced
    on_change:    something was heard, or a worker came or went
    on_record:    the set of processes changed; called before a new one can serve
    """

    def __init__(
        self,
        size: int,
        config: Callable[[int], WorkerConfig],
        fingerprint: str,
        *,
        on_change: Callable[[], None],
        on_record: Callable[[], None],
        on_operation: Callable[[Member, Operation], None],
        spawn: Callable[[], subprocess.Popen[bytes]] = spawn_blank,
        times: FleetTimes = FleetTimes(),
        clock: Clock = monotonic,
    ) -> None:
        self._config = config
        self.fingerprint = fingerprint
        self._on_change = on_change
        self._on_record = on_record
        self._on_operation = on_operation
        self._spawn = spawn
        self.times = times
        self._clock = clock
        self._attended = 0.0
        self._looked_at = clock()
        self.slots = [Slot(index) for index in range(size)]
        self.leaving: list[Member] = []
        """Draining, or adopted and no longer needed."""
        self.desired: Desired | None = None
        self.past_seen: list[Seen] = []
        """What workers that are gone had told of splits."""
        self.past_snapshots: list[bytes] = []
        """Last metrics of workers that are gone: counters must not go back."""
        self.plan_times = PlanTimes()
        self.restarts = 0
        self.deaths: deque[float] = deque(maxlen=100)
        """Wall clock seconds at which workers died."""
        self.ever_connected = False
        self.stopping = False
        self._collects = 0
        self._told: tuple[WorkerRecord, ...] = ()
        self._recorded: tuple[WorkerRecord, ...] | None = None

    def _now(self) -> float:
        """Seconds that this loop was awake to listen: time in which it was held up counts against nobody."""
        now = self._clock()
        self._attended += min(now - self._looked_at, MAX_GAP)
        self._looked_at = now
        return self._attended

    # Who is there.

    def members(self) -> list[Member]:
        """All processes."""
        placed = [m for slot in self.slots for m in (slot.member, slot.successor) if m is not None]
        return placed + self.leaving

    def serving(self) -> list[Member]:
        """Connected members that have told their state, those that leave left out."""
        return [m for m in self.members() if m.connected and m.reports is not None and not m.draining]

    def records(self) -> tuple[WorkerRecord, ...]:
        """For the service's record."""
        return tuple(WorkerRecord(m.process.pid, m.process.started, m.index, m.fingerprint) for m in self.members())

    def awaiting_adoption(self) -> bool:
        """Some adopted worker has not told its state yet, and may."""
        return any(m.adopted and m.reports is None and not m.draining for m in self.members())

    # Making and adopting.

    def start(self, spare: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        """Fill empty slots, with processes that were started ahead as far as they go."""
        blanks = list(spare)
        for slot in self.slots:
            if slot.member is None:
                self._place(slot, blanks.pop(0) if blanks else None)
        for blank in blanks:
            blank.kill()
            blank.wait()
        self._note_records()

    def adopt(self, records: Sequence[WorkerRecord]) -> None:
        """Take over living workers; those without a slot drain once they have said Hello."""
        for record in records:
            process = WorkerProcess(record.pid, record.started)
            member = Member(process, record.index, record.config, self._now(), adopted=True)
            slot = self.slots[record.index] if record.index < len(self.slots) else None
            if slot is not None and slot.member is None:
                slot.member = member
            else:
                self.leaving.append(member)

    def _place(self, slot: Slot, blank: subprocess.Popen[bytes] | None = None) -> Member:
        process = WorkerProcess.configured(blank or self._spawn(), self._config(slot.index))
        member = Member(process, slot.index, self.fingerprint, self._now())
        if slot.member is None:
            slot.member = member
        else:
            slot.successor = member
        return member

    # Hearing.

    def connect(self, hello: Hello, writer: asyncio.StreamWriter) -> Member | None:
        """The member that says Hello; None for a stranger."""
        member = next((m for m in self.members() if m.process.pid == hello.pid), None)
        if member is None:
            return None
        member.connect(hello, writer, self._now())
        self.ever_connected = True
        if member in self.leaving:
            self._dismiss(member)
        self._on_change()
        return member

    def hear(self, member: Member, message: ToSupervisor) -> None:
        """Take in one message."""
        member.heard_at = self._now()
        if isinstance(message, Report):
            first = member.reports is None
            member.reports = {(r.model, r.version): r for r in message.versions}
            if first and self.desired is not None and not member.draining:
                member.send(self.desired)
            self._on_change()
        elif isinstance(message, Applied):
            member.generation = max(member.generation, message.generation)
            serving = self.serving()
            if serving:
                self.plan_times.followed(min(m.generation for m in serving), self._clock())
            self._on_change()
        elif isinstance(message, Collected):
            member.snapshot = message.snapshot
            member.collected = max(member.collected, message.id)
            member.asked_at = None
        elif isinstance(message, Observed):
            member.seen = message.seen
            member.observed = max(member.observed, message.id)
            if message.id == 0:
                self._on_change()
        elif isinstance(message, Operation):
            self._on_operation(member, message)

    def disconnect(self, member: Member, writer: asyncio.StreamWriter) -> None:
        """Its connection is gone; mostly since the process is."""
        member.disconnect(writer, self._now())
        self._on_change()

    def push(self, desired: Desired) -> None:
        """Send to all, and to whoever comes later."""
        self.desired = desired
        self.plan_times.pushed(desired.generation, self._clock())
        for member in self.serving():
            member.send(desired)

    async def collect(self, timeout: float = 1.0) -> list[bytes]:
        """Fresh metrics of all workers; the last known ones of those that do not answer in time."""
        self._collects += 1
        number = self._collects
        asked = [m for m in self.members() if m.connected]
        for member in asked:
            self._ask(member, number)
        until = self._clock() + timeout
        while self._clock() < until and any(m.collected < number and m.connected for m in asked):
            await asyncio.sleep(0.005)
        return self.past_snapshots + [m.snapshot for m in self.members() if m.snapshot]

    async def observe(self, timeout: float = 0.5) -> list[Seen]:
        """What all workers have seen of splits, those that are gone included; the last word of who is silent."""
        self._collects += 1
        number = self._collects
        asked = [m for m in self.members() if m.connected]
        for member in asked:
            member.send(Observe(number))
        until = self._clock() + timeout
        while self._clock() < until and any(m.observed < number and m.connected for m in asked):
            await asyncio.sleep(0.002)
        return [*self.past_seen, *(seen for m in self.members() for seen in m.seen)]

    def deaths_since(self, at: float) -> int:
        """How many workers have died since then, in wall clock seconds."""
        return sum(1 for death in self.deaths if death >= at)

    def forget_seen(self, strata: Collection[str]) -> None:
        """Keep of workers that are gone only what they saw of these strata."""
        self.past_seen[:] = [seen for seen in self.past_seen if seen.evidence.name in strata]

    def _ask(self, member: Member, number: int) -> None:
        member.send(Collect(number))
        member.asked_at = member.asked_at or self._now()

    # One step.

    def tick(self) -> None:
        """Replace who died or hangs, move successors up, see off who leaves."""
        now = self._now()
        for slot in self.slots:
            self._tend(slot, now)
        for member in list(self.leaving):
            if member.process.exit_code() is not None:
                self.leaving.remove(member)
                self._bury(member)
            elif member.leave_by is not None and now > member.leave_by:
                member.process.kill()
            elif member.leave_by is None and now - member.born > self.times.adopt:
                self._dismiss(member)
        self._note_records()

    def _note_records(self) -> None:
        """Say that processes came or went. Raises what `on_record` raises; the next tick says it again."""
        records = self.records()
        if records != self._told:
            self._told = records
            self._on_change()
        if records != self._recorded:
            self._on_record()
            self._recorded = records

    def _tend(self, slot: Slot, now: float) -> None:
        for member in (slot.member, slot.successor):
            if member is not None:
                self._check(member, now)
        if slot.successor is not None and slot.successor.process.exit_code() is not None:
            self._lost(slot, slot.successor, now)
            slot.successor = None
        if slot.member is not None and slot.member.process.exit_code() is not None:
            lost, slot.member = slot.member, None
            self._lost(slot, lost, now)
        if slot.member is None and slot.successor is not None:
            slot.member, slot.successor = slot.successor, None
        if self.stopping:
            return
        if slot.successor is not None and slot.successor.generation and slot.member is not None:
            old, slot.member, slot.successor = slot.member, slot.successor, None
            self.leaving.append(old)
            self._dismiss(old)
        stale = slot.member is not None and slot.member.fingerprint != self.fingerprint
        if now >= slot.retry_at and (slot.member is None or (stale and slot.successor is None)):
            self._replace(slot, now)

    def _replace(self, slot: Slot, now: float) -> None:
        try:
            self._place(slot)
        except OSError as error:  # out of descriptors, processes or memory: others must still be tended
            slot.retry_at = now + SPAWN_AGAIN
            log.error("worker %d cannot be started: %s; tried again in %g s", slot.index, error, SPAWN_AGAIN)

    def _check(self, member: Member, now: float) -> None:
        """Kill a member that hangs; the next step finds it dead."""
        self._collect_if_due(member, now)
        times = self.times
        if member.connected:
            silent = member.asked_at is not None and now - member.asked_at > times.hang
            reason = f"it has not answered for {times.hang:g} s" if silent else ""
        else:
            patience = times.adopt if member.adopted and not member.pid_known else times.connect
            reason = "it is not connected" if now - member.lost_at > patience else ""
        if reason and member.process.exit_code() is None:
            log.warning("worker %d (pid %d) is replaced: %s", member.index, member.process.pid, reason)
            member.process.kill()

    def _collect_if_due(self, member: Member, now: float) -> None:
        if member.connected and member.asked_at is None and now - member.heard_at >= self.times.collect:
            self._collects += 1
            self._ask(member, self._collects)

    def _lost(self, slot: Slot, member: Member, now: float) -> None:
        code = member.process.exit_code()
        self._bury(member)
        slot.failures = 0 if now - member.born >= self.times.stable else slot.failures + 1
        wait = self.times.back_off[min(max(slot.failures - 1, 0), len(self.times.back_off) - 1)]
        slot.retry_at = now + wait
        if not self.stopping:
            self.restarts += 1
            self.deaths.append(time.time())
            slot.restarts += 1
            how = f"signal {signal.Signals(-code).name}" if code and -65 < code < 0 else f"exit code {code}"
            log.warning(
                "worker %d (pid %d) is gone (%s); the next one starts in %.1f s",
                member.index, member.process.pid, how, wait,
            )  # fmt: skip

    def _bury(self, member: Member) -> None:
        """Keep its counts, folded with those of all who went before."""
        self.past_seen += member.seen
        if not member.snapshot:
            return
        from octoserve.patterns.online.supervisor.admin_metrics import fold

        try:
            self.past_snapshots[:] = [fold([*self.past_snapshots, member.snapshot])]
        except (msgspec.MsgspecError, ValueError) as error:
            log.error("the last metrics of worker %d cannot be read: %s", member.index, error)

    # Leaving.

    def _dismiss(self, member: Member) -> None:
        """Let it finish and go."""
        self.drain(member, self.times.retire)

    def drain(self, member: Member, grace: float) -> None:
        """Ask it to finish within `grace` seconds; SIGTERM says the same to one that is not connected."""
        member.draining = True
        member.leave_by = self._now() + grace + 1.0
        if member.connected:
            member.send(Drain(grace))
        else:
            member.process.signal(signal.SIGTERM)

    def disown(self) -> int:
        """Leave adopted workers to a successor: they serve on, and come back to whoever listens. How many they are."""
        adopted = [member for member in self.members() if member.adopted]
        for slot in self.slots:
            slot.member = None if slot.member in adopted else slot.member
            slot.successor = None if slot.successor in adopted else slot.successor
        self.leaving = [member for member in self.leaving if member not in adopted]
        return len(adopted)

    async def stop(self, grace: float, cut_short: asyncio.Event) -> bool:
        """Drain everybody; SIGKILL to who is left shortly before `grace` ends, or when `cut_short` is set.

        True if nobody was left.
        """
        self.stopping = True
        members = self.members()
        kill_after = grace - min(1.0, grace * 0.2)
        for member in members:
            self.drain(member, kill_after - min(0.5, grace * 0.1))
        until = self._clock() + kill_after
        while any(m.process.exit_code() is None for m in members):
            if self._clock() > until or cut_short.is_set():
                break
            await asyncio.sleep(0.02)
        left = [m for m in members if m.process.exit_code() is None]
        for member in left:
            log.warning("worker %d (pid %d) did not finish in time: killed", member.index, member.process.pid)
            member.process.kill()
        return not left
