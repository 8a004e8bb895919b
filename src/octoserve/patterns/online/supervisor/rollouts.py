"""Drives rollouts: gathers facts, asks the machine, commits, and lets the plans follow from the record.

`step` is one iteration. The record is committed before anything is done about it; `room.rollouts`, from which reconcile
makes the plans, is always derived from committed records, so a crash between the two is repaired by the next start.

| part | module |
|---|---|
| the store, in a thread of its own | `rollout_ledger` |
| what is in force, and its way out to the plans | `rollout_state` |
| how rollouts begin | `rollout_starts` |
| what a look sees | `rollout_facts` |
| looking, answering, deciding, committing | `rollout_walk` |
| forgetting | `rollout_retention` |
| what the replicas say, and what this one says to them | `replicas`, `replica_word` |
| who follows from outside | `followers` |

Where the store is shared, one replica leads and decides; the others take up what it committed, and tell what came of
it: docs/decisions/0009-several-replicas.md has the order of a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping

from octoserve.control.rollout.audit import AuditEntry
from octoserve.control.rollout.following import PREFIX
from octoserve.control.rollout.machine import refusal
from octoserve.control.rollout.replica_tables import Said, Survey
from octoserve.control.rollout.store import Fenced, Ledger
from octoserve.control.rollout.values import Command, Endpoint, Rollout
from octoserve.core.errors import OctoserveError, Unavailable, Unsupported
from octoserve.core.evidence import Seen
from octoserve.patterns.online.supervisor.control_room import ControlRoom
from octoserve.patterns.online.supervisor.fleet import Fleet
from octoserve.patterns.online.supervisor.followers import Followers
from octoserve.patterns.online.supervisor.replica_word import Word
from octoserve.patterns.online.supervisor.replicas import Replicas
from octoserve.patterns.online.supervisor.rollout_facts import Facts, Look, Previewer, Readings
from octoserve.patterns.online.supervisor.rollout_ledger import RolloutLedger
from octoserve.patterns.online.supervisor.rollout_retention import RolloutRetention
from octoserve.patterns.online.supervisor.rollout_starts import Sections, Starts, Strategy
from octoserve.patterns.online.supervisor.rollout_state import InForce
from octoserve.patterns.online.supervisor.rollout_walk import Walk

log = logging.getLogger(__name__)

TICK, LONGEST_TICK = 0.25, 1.0
"""Seconds between two looks."""
PART_OF_A_CORE = 0.02
"""Looks that take more than this part of a core's time are further apart: it is the workers' too."""
START_PATIENCE = 15.0
"""Seconds that a start waits for the rollout that it supersedes to end."""
LEAVE_PATIENCE = 2.0
"""Seconds that a replica that stops tries to say so."""


class Rollouts:
    """See the module. All on one event loop, but for the store.

    sections:   the rollout settings of an endpoint
    strategies: name -> what makes a section's course
    preview:    tries the candidate before a client does
    readings:   the newest ones of a rollout's metric checks
    keep:       seconds after its end that a rollout is kept; 0 for ever
    """

    def __init__(
        self,
        open_store: Callable[[], Ledger],
        room: ControlRoom,
        fleet: Fleet,
        *,
        sections: Sections,
        strategies: Mapping[str, Strategy],
        preview: Previewer,
        readings: Readings = lambda rollout: {},
        now: Callable[[], float] = time.time,
        keep: float = 0.0,
    ) -> None:
        self._room = room
        self._fleet = fleet
        self.section = sections
        self.now = now
        self.ledger = RolloutLedger(open_store)
        self.replicas = Replicas("")
        self._state = InForce(room, self._ended)
        self._facts = Facts(room, preview, readings, now, self.wake, self._joined, fleet.deaths_since)
        self._walk = Walk(self.ledger, self._state, self._facts, now)
        self._starts = Starts(self.ledger, self._state, room, sections, strategies, now)
        self.make, self.trusted, self.propose = self._starts.make, self._starts.trusted, self._starts.propose
        self._retention = RolloutRetention(keep, now)
        self.followers = Followers(self.ledger, self._state, room)
        self._word = Word(self.ledger, self._state, self._facts, self.replicas, self._serves)
        self._wake = asyncio.Event()
        self._turned = asyncio.Condition()
        self._turn = asyncio.Lock()
        self._left = False

    # What there is.

    @property
    def live(self) -> Mapping[str, Rollout]:
        """By endpoint: the rollout under way."""
        return self._state.live

    @property
    def last(self) -> Mapping[str, Rollout]:
        """By endpoint: the rollout that ended last."""
        return self._state.last

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """Endpoints' records, by name."""
        return self._state.endpoints

    @property
    def looks(self) -> Mapping[str, Look]:
        """By rollout id, of live ones."""
        return self._state.looks

    @property
    def leads(self) -> bool:
        """Whether this replica decides."""
        return self.ledger.token != 0

    async def history(self, endpoint: str, limit: int) -> list[Rollout]:
        """An endpoint's rollouts, newest first."""
        return await self.ledger.history(endpoint, limit)

    async def rollout(self, id: str) -> Rollout | None:
        """The one of this id, live or ended; None where there is none, or none any more."""
        return await self.ledger.do(lambda store: store.rollout(id))

    async def audit(self, rollout: Rollout, after: int = 0, limit: int = 1000) -> list[bytes]:
        """A rollout's entries after number `after`, in order, each as the line that was stored."""
        return await self.ledger.do(lambda store: store.lines(rollout.endpoint, after, limit, rollout.id))

    # Life.

    async def open(self, holder: str, past: str = "") -> None:
        """Take up what was stored; before the control room's first step. Where nobody shares the store, lead.

        past: the replica that this one was before; nobody waits for that one any more.
        A shared store that cannot be reached is waited for: without it, which version is trusted would be a guess.
        """
        ledger = self.ledger
        await ledger.open()
        self.replicas.me = holder
        if not ledger.shared:
            ledger.token = await ledger.do(lambda store: store.lead(holder))
        complaint = ""
        while True:
            try:
                if past:
                    await ledger.do(lambda store: store.leave(past))
                survey = await ledger.do(lambda store: store.survey())
                break
            except Unavailable as error:
                if not ledger.shared:
                    raise
                if str(error) != complaint:
                    complaint = str(error)
                    log.error("the start waits for the rollout store: %s", error)
                await asyncio.sleep(1.0)
        if not ledger.shared:
            for row in survey.replicas:
                if not row.id.startswith(PREFIX):  # this service's last supervisor
                    await ledger.do(lambda store, id=row.id: store.leave(id))  # type: ignore[misc]
            survey = await ledger.do(lambda store: store.survey())
        self.replicas.heard(survey)
        await self._state.open(survey, ledger.history)

    async def run(self) -> None:
        """Step on the beat, and when woken. Ends by cancellation, or when a store that is not shared is taken over."""
        complaint = ""
        while not self._left:
            self._wake.clear()
            began = time.thread_time()
            try:
                await self.step()
                complaint = ""
            except Fenced as error:
                self._follow()
                if not self.ledger.shared:
                    log.error("another controller leads now; this one only serves on: %s", error)
                    return
                log.warning("another replica leads now; this one follows: %s", error)
            except Unavailable as error:
                if str(error) != complaint:
                    complaint = str(error)
                    log.error("rollouts stand still: %s", error)
            except Exception:
                log.exception("a rollout's step failed; the next one starts anew")
            took = time.thread_time() - began
            try:
                async with asyncio.timeout(min(max(TICK, took / PART_OF_A_CORE), LONGEST_TICK)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def wake(self) -> None:
        """Something changed."""
        self._wake.set()

    async def leave(self) -> None:
        """This replica stops: no other one waits for it any more, and another one leads."""
        self._left = True
        self.wake()
        if self.ledger.is_open and self.ledger.shared:
            with contextlib.suppress(Fenced, Unavailable, TimeoutError):
                async with asyncio.timeout(LEAVE_PATIENCE), self._turn:
                    await self._word.tell(await self._fleet.observe())
                    await self.ledger.do(lambda store: store.leave(self.replicas.me))
            self._follow()

    async def close(self) -> None:
        """The last call."""
        self._facts.close()
        await self.ledger.close()

    # One step.

    async def step(self) -> None:
        """Take up what is stored; who leads starts what is due and lets every live rollout make the transitions that
        the facts call for; tell the other replicas."""
        async with self._turn:
            if self._left:
                return
            survey = await self._survey()
            seen = await self._fleet.observe() if self._state.exposed else []
            if self.leads and self._room.scan is not None:
                await self._lead(survey, seen)
            self._fleet.forget_seen({r.stratum for r in self.live.values()})
            await self._word.tell(seen)
        async with self._turned:
            self._turned.notify_all()

    async def _survey(self) -> Survey:
        """What is stored now, taken up. Where the leader is gone, this replica leads from here on. Raises Fenced."""
        ledger = self.ledger
        survey = await ledger.do(lambda store: store.survey())
        self.replicas.heard(survey)
        alone = not ledger.shared or self._room.scan is None
        if not alone and self.replicas.leader_is_gone(survey, ledger.token):
            await self._word.tell([], now=True)  # a leader without a row would be replaced at once
            me, after = self.replicas.me, survey.token
            ledger.token = await ledger.do(lambda store: store.take_over(after, me))
            if self.leads:
                log.info("this replica, %s, leads rollouts now", me)
                self.replicas.forget()
            survey = await ledger.do(lambda store: store.survey())  # the one before may have decided meanwhile
            self.replicas.heard(survey)
        await self._state.take_up(survey, ledger.history)
        if self.leads and survey.token != ledger.token:
            raise Fenced(f"token {ledger.token} is not the highest: {survey.leader} leads with {survey.token}")
        return survey

    async def _lead(self, survey: Survey, seen: list[Seen]) -> None:
        await self._starts.due()
        if self._state.exposed:  # followers may have told something where no other replica is
            told = await self.ledger.do(lambda store: store.evidence())
            seen = [*seen, *(what for replica, what in told if replica != self.replicas.me)]
        for rollout in list(self.live.values()):
            try:
                await self._walk.on(rollout, seen, [a for a in survey.asked if a.endpoint == rollout.endpoint])
            except (Fenced, Unavailable):
                raise
            except Exception:  # nothing that is wrong with one keeps the others from being aborted
                log.exception("a step of the rollout of %s failed; the next one starts anew", rollout.endpoint)
        await self._retention.step(list(self.endpoints), self.ledger.prune)

    def _follow(self) -> None:
        """Lead no more."""
        self.ledger.token = 0
        self._facts.close()
        self._walk.stop()
        self.replicas.forget()

    def _ended(self, rollout_id: str) -> None:
        self._facts.forget(rollout_id)
        self._walk.forget(rollout_id)

    def _joined(self, rollout: Rollout, mine: Said) -> Said:
        return self.replicas.joined(rollout, mine)

    def _serves(self) -> tuple[str, ...] | None:
        scan = self._room.scan
        return None if scan is None else tuple(sorted(scan.models))

    # What may be asked.

    async def begin(self, rollout: Rollout) -> Rollout:
        """Start it, after the one that it supersedes has ended; returns the record that was committed.

        Raises Unavailable if that takes too long, Unsupported if it has come to nothing.
        """
        await self.propose(rollout)
        self.wake()
        await self._until(lambda: self._is_answered(rollout), f"a rollout of {rollout.endpoint!r}")
        for known in (self.live.get(rollout.endpoint), self.last.get(rollout.endpoint)):
            if known is not None and known.id == rollout.id:
                return known
        started = await self.rollout(rollout.id)
        if started is None:
            raise Unsupported(
                f"the rollout of {rollout.endpoint!r} to version {rollout.candidate} was not started: another "
                "start has taken its place, or that version is the stable one meanwhile"
            )
        return started

    def _is_answered(self, rollout: Rollout) -> bool:
        waits = self._state.proposed.get(rollout.endpoint)
        return waits is None or waits.id != rollout.id

    async def ask(self, endpoint: str, command: Command, who: str, reason: str, fence: str) -> Rollout:
        """Leave a command; returns the record after it was answered. Raises Unsupported where it is not legal."""
        rollout = self.live.get(endpoint)
        if rollout is None:
            raise Unsupported(f"{command}: endpoint {endpoint!r} has no rollout under way")
        other = fence not in ("", rollout.id, rollout.stratum)
        why = f"it stands at {rollout.stratum or rollout.id}" if other else refusal(rollout, command)
        if why:
            raise Unsupported(f"{command}: {why}")
        # An approval is of the step that it was given at: two of one step must not open the next one too.
        meant = rollout.stratum if command is Command.APPROVE else fence or rollout.id
        number = await self.ledger.do(lambda store: store.ask(endpoint, command, who, reason, meant))
        self._state.waiting.add(number)
        self.wake()
        try:
            await self._until(lambda: number not in self._state.waiting, f"{command} of {endpoint!r}")
        finally:
            self._state.waiting.discard(number)
        return self.live.get(endpoint) or self.last.get(endpoint) or rollout

    async def noted(self, endpoint: str, who: str, event: str, reason: str = "") -> bool:
        """Write down that somebody changes what is served, before it is done: a load, an unload, a label.

        False: there is nothing of that name yet. A load that finds it all the same is to be written down after it.
        A store that is away does not keep a bad model loaded: then the log has it alone.
        """
        if self._room.scan is None or endpoint not in self._room.scan.models:
            return False
        log.info("%s: %s by %s%s", endpoint, event, who, f": {reason}" if reason else "")
        entry = AuditEntry(rollout="", endpoint=endpoint, time=self.now(), who=who, event=event, reason=reason)
        try:
            await self.ledger.do(lambda store: store.record(entry))
        except OctoserveError as error:
            log.error("%s: %s by %s is not in the audit log: %s", endpoint, event, who, error)
        return True

    async def _until(self, reached: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(START_PATIENCE), self._turned:
                while not reached():
                    await self._turned.wait()
        except TimeoutError:
            raise Unavailable(f"{what}: not done after {START_PATIENCE:.0f} s; it goes on") from None
