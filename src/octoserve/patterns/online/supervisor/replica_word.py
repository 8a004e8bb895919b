"""What this replica says to the others, once a beat and when it changes; the leader's looks, which are everybody's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from octoserve.control.rollout.audit import canonical
from octoserve.control.rollout.replica_tables import ReplicaReport, read_record
from octoserve.control.rollout.values import Rollout
from octoserve.core.evidence import Seen
from octoserve.patterns.online.supervisor.replicas import BEAT, BEAT_EXPOSED, Replicas, seen_here
from octoserve.patterns.online.supervisor.rollout_facts import Facts, Look
from octoserve.patterns.online.supervisor.rollout_ledger import RolloutLedger
from octoserve.patterns.online.supervisor.rollout_state import InForce


class Word:
    """serves: endpoints whose files lie in this replica's repository; None before it has looked."""

    def __init__(
        self,
        ledger: RolloutLedger,
        state: InForce,
        facts: Facts,
        replicas: Replicas,
        serves: Callable[[], tuple[str, ...] | None],
    ) -> None:
        self._ledger, self._state, self._facts, self._replicas = ledger, state, facts, replicas
        self._serves = serves
        self._said: tuple[ReplicaReport, dict[str, str]] | None = None
        self._said_at = 0.0
        self._kept: frozenset[str] | None = None

    async def tell(self, seen: Sequence[Seen], now: bool = False) -> None:
        """Say what holds here, evidence included; `now` although it is not time. Nothing where nobody else is."""
        live = list(self._state.live.values())
        shared = self._ledger.shared
        if not shared and not self._replicas.others:
            await self._forget(live)
            return
        report = ReplicaReport(
            rollouts={rollout.id: self._facts.say(rollout) for rollout in live}, serves=self._serves()
        )
        # Beside followers this one is shown too. What its workers have seen it asks of them, also after a new start.
        told = seen_here(live, seen) if shared else {}
        said = report, {id: one.cut for id, one in told.items()}
        at = time.monotonic()
        beat = BEAT_EXPOSED if told else BEAT
        if not now and said == self._said and at - self._said_at < beat:
            return
        await self._ledger.do(lambda store: store.tell(self._replicas.me, report, told))
        self._said, self._said_at = said, at
        await self._show(live)

    async def _show(self, live: list[Rollout]) -> None:
        ledger, token, looks = self._ledger, self._ledger.token, self._state.looks
        if not ledger.shared:
            await self._forget(live)
        elif token:
            mine = {r.id: canonical(looks[r.id]) for r in live if r.id in looks}
            if mine:
                await ledger.do(lambda store: store.show(token, mine))
            await self._forget(live)
        elif live:
            shown = await ledger.do(lambda store: store.looks())
            self._state.looks = {r.id: read_record(shown[r.id].decode(), Look) for r in live if r.id in shown}

    async def _forget(self, live: list[Rollout]) -> None:
        """Who leads drops what rollouts that are over, and replicas and followers long gone, have left."""
        ledger, token = self._ledger, self._ledger.token
        ids, silent = frozenset(r.id for r in live), self._replicas.silent()
        if token and (ids != self._kept or silent):
            await ledger.do(lambda store: store.forget(token, ids, silent))
            self._kept = ids
