"""What the leader does with one live rollout in a step: look, answer what people asked, decide, commit.

The record is committed before anything is done about it. Each transition is committed before the next is thought of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from octoserve.control.analysis.verdict import overall
from octoserve.control.rollout.machine import Event, Transition, decide, endpoint_after, refusal
from octoserve.control.rollout.replica_tables import Asked
from octoserve.control.rollout.values import Command, Endpoint, Phase, Rollout
from octoserve.core.evidence import Seen
from octoserve.patterns.online.supervisor.rollout_entries import entry_of
from octoserve.patterns.online.supervisor.rollout_facts import Facts, Look
from octoserve.patterns.online.supervisor.rollout_ledger import RolloutLedger
from octoserve.patterns.online.supervisor.rollout_state import InForce
from octoserve.security.caller import CONTROLLER

log = logging.getLogger(__name__)

NOTE_EVERY = 600.0
"""Seconds after which a look is in the audit log though nothing has changed."""
_ANSWERS = {
    Command.ABORT: (Event.ABORTING,),
    Command.ROLLBACK: (Event.ABORTING,),
    Command.APPROVE: (Event.APPROVED,),
    Command.PAUSE: (Event.PAUSED,),
    Command.RESUME: (Event.RESUMED,),
    Command.PROMOTE: (Event.PROMOTING, Event.ENDED),
}


class Walk:
    """ledger, state: what is stored, and what of it is in force; facts: what a look is made of; now: wall clock."""

    def __init__(self, ledger: RolloutLedger, state: InForce, facts: Facts, now: Callable[[], float]) -> None:
        self._ledger, self._state, self._facts, self._now = ledger, state, facts, now
        self._noted: dict[str, tuple[str, float]] = {}
        """By rollout id: the outcome that is in the log last, and since when."""

    async def on(self, rollout: Rollout, seen: Sequence[Seen], asked: list[Asked]) -> None:
        """As many transitions as the facts allow."""
        asked = await self._legal(rollout, asked)
        while True:
            superseded = rollout.endpoint in self._state.proposed
            look, command = self._facts.look(rollout, seen, asked, superseded=superseded)
            self._state.looks[rollout.id] = look
            transition = decide(rollout, look.view)
            if transition is None:
                await self._note(rollout, look)
                return
            done = command is not None and transition.event in _ANSWERS[command.command]
            await self._commit(rollout, transition, look, command if done else None)
            if done and command is not None:
                asked = [a for a in asked if a is not command]
                if command.command is Command.PAUSE:  # whoever stops it has changed what was to come
                    asked = await self._drop(rollout, asked, Command.PROMOTE, "it was paused since")
            rollout = transition.rollout
            asked = await self._legal(rollout, asked)  # what was meant for the step before is not for this one
            if rollout.phase is Phase.ENDED:
                return
            seen = [s for s in seen if s.evidence.name == rollout.stratum]

    def forget(self, rollout_id: str) -> None:
        """It has ended."""
        self._noted.pop(rollout_id, None)

    def stop(self) -> None:
        """Another one leads."""
        self._noted.clear()

    async def _legal(self, rollout: Rollout, asked: list[Asked]) -> list[Asked]:
        """Commands that may be followed; the others are answered by a note, and forgotten."""
        legal: list[Asked] = []
        for command in asked:
            stale = command.fence not in ("", rollout.id, rollout.stratum)
            why = "it was meant for another rollout or step" if stale else refusal(rollout, command.command)
            if not why and rollout.phase is Phase.ABORTING:
                why = "it is being aborted already"
            if why:
                await self._dropped(rollout, command, why)
            else:
                legal.append(command)
        return legal

    async def _drop(self, rollout: Rollout, asked: list[Asked], kind: Command, why: str) -> list[Asked]:
        """Answer commands of this kind by a note; the others are left."""
        for command in asked:
            if command.command is kind:
                await self._dropped(rollout, command, why)
        return [command for command in asked if command.command is not kind]

    async def _dropped(self, rollout: Rollout, command: Asked, why: str) -> None:
        reason = f"not followed: {why}"
        entry = entry_of(rollout, rollout, str(command.command), reason, self._now(), who=command.who)
        await self._ledger.note(entry, [command.seq])
        self._state.waiting.discard(command.seq)

    async def _commit(self, before: Rollout, transition: Transition, look: Look, command: Asked | None) -> None:
        rollout = transition.rollout
        who, done = (CONTROLLER, ()) if command is None else (command.who, (command.seq,))
        entry = entry_of(before, rollout, str(transition.event), transition.reason, self._now(), look, who)
        endpoint = self._endpoint_after(rollout)
        await self._ledger.commit(rollout, entry, endpoint, done)
        log.info("rollout of %s to version %d: %s: %s", rollout.endpoint, rollout.candidate, entry.event, entry.reason)
        self._state.waiting.difference_update(done)
        self._state.take(rollout, endpoint)

    def _endpoint_after(self, rollout: Rollout) -> Endpoint | None:
        """The endpoint's record, where the rollout's end changes it."""
        if rollout.phase is not Phase.ENDED:
            return None
        before = self._state.endpoints.get(rollout.endpoint)
        return endpoint_after(before or Endpoint(name=rollout.endpoint, stable=rollout.stable), rollout)

    async def _note(self, rollout: Rollout, look: Look) -> None:
        """Put a look into the log whose outcome is new, and one now and then."""
        if not look.verdicts:
            return
        outcome = f"{rollout.stratum} {overall(look.verdicts)}"
        before, at = self._noted.get(rollout.id, ("", 0.0))
        if outcome == before and look.view.now - at < NOTE_EVERY:
            return
        self._noted[rollout.id] = outcome, look.view.now
        await self._ledger.note(entry_of(rollout, rollout, "look", str(overall(look.verdicts)), self._now(), look))
