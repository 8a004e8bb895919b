"""Those who follow this service's rollouts from outside: queues that score with the same models.

A follower's word is put down as a replica's (docs/decisions/0009-several-replicas.md), in whichever store there is, so
that whoever leads waits for it and judges what it has seen. See docs/decisions/0016-rollouts-in-queues.md.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from octoserve.control.reconcile import as_plan
from octoserve.control.rollout.following import MAX_ID, PREFIX, FollowerWord, Route
from octoserve.control.rollout.machine import wish_of
from octoserve.control.rollout.replica_tables import ReplicaReport
from octoserve.core.errors import InvalidInput
from octoserve.patterns.online.supervisor.control_room import ControlRoom
from octoserve.patterns.online.supervisor.rollout_ledger import RolloutLedger
from octoserve.patterns.online.supervisor.rollout_state import InForce

_WANTED = '{"id": "...", "rollout": "...", "said": {...}, "seen": {...}}'


class Followers:
    """spool: the folder where pairs of a shadow are left; None where nobody keeps them."""

    def __init__(self, ledger: RolloutLedger, state: InForce, room: ControlRoom) -> None:
        self._ledger = ledger
        self._state = state
        self._room = room
        self.spool: Path | None = None

    async def hear(self, endpoint: str, body: bytes) -> Route:
        """Put down what a follower says; what it is to do. Raises InvalidInput, Unavailable."""
        word = _decoded(body)
        name = PREFIX + word.id
        await self._tell(name, endpoint, word)  # of one that leaves too: its last evidence counts
        if word.leaves:
            await self._ledger.do(lambda store: store.leave(name))
        return self.route(endpoint)

    async def _tell(self, name: str, endpoint: str, word: FollowerWord) -> None:
        live = self._state.live.get(endpoint)
        mine = live is not None and word.rollout == live.id
        said = {word.rollout: word.said} if mine and word.said is not None else {}
        seen = {word.rollout: word.seen} if mine and word.seen is not None else {}
        if any(each.evidence.endpoint != endpoint or each.seed != word.rollout for each in seen.values()):
            raise InvalidInput("seen: evidence of the rollout that is named is wanted")
        report = ReplicaReport(rollouts=said, serves=(endpoint,))
        await self._ledger.do(lambda store: store.tell(name, report, seen))

    def route(self, endpoint: str) -> Route:
        """Who scores what now. The plan of a rollout follows from its record alone, here as in each replica."""
        current = next((plan for plan in self._room.current.plans if plan.endpoint == endpoint), None)
        told = Route(plan=current, host=os.uname().nodename, spool=str(self.spool or ""))
        rollout = self._state.live.get(endpoint)
        if rollout is None:
            return told
        wish = wish_of(rollout)
        plan = as_plan(wish, current.generation if current is not None else 0)
        return msgspec.structs.replace(
            told,
            plan=msgspec.structs.replace(plan, by_proxy=False),  # the shares of a proxy are this split's
            keep=tuple(sorted(wish.keep)),
            stable=rollout.stable,
            candidate=rollout.candidate,
            rollout=rollout.id,
            record=rollout.version,
        )


def _decoded(body: bytes) -> FollowerWord:
    try:
        word: FollowerWord = msgspec.json.decode(body, type=FollowerWord, strict=False)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidInput(f"{_WANTED} is wanted: {error}") from None
    if not word.id or len(word.id) > MAX_ID or not word.id.isprintable():
        raise InvalidInput(f"id: a name of at most {MAX_ID} printable characters is wanted")
    return word
