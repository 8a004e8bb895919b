"""The store of rollouts for an event loop: a thread of its own touches it, and the token by which this replica leads.

The token is read in that thread, when the write is made: who has begun to follow meanwhile is fenced like anybody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from octoserve.control.rollout.audit import AuditEntry
from octoserve.control.rollout.store import Ledger
from octoserve.control.rollout.values import Endpoint, Rollout

T = TypeVar("T")


class RolloutLedger:
    """`open` comes first. All of it raises what the store raises: Unavailable; who writes, Fenced and Conflict."""

    def __init__(self, open_store: Callable[[], Ledger]) -> None:
        self._open_store = open_store
        self._thread = ThreadPoolExecutor(1, "rollouts")
        self._store: Ledger | None = None
        self.token = 0
        """0 while another replica leads, or nobody."""

    async def open(self) -> None:
        """The store's own thread opens it."""
        self._store = await self._run(self._open_store)

    async def close(self) -> None:
        """The last call."""
        if self._store is not None:
            await self._run(self._store.close)
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def is_open(self) -> bool:
        """Whether there is a store yet."""
        return self._store is not None

    @property
    def shared(self) -> bool:
        """Whether replicas on other hosts may use it too."""
        return self._opened().shared

    async def do(self, work: Callable[[Ledger], T]) -> T:
        """Anything that a store can do."""
        store = self._opened()
        return await self._run(lambda: work(store))

    async def commit(
        self, rollout: Rollout, entry: AuditEntry, endpoint: Endpoint | None = None, done: Sequence[int] = ()
    ) -> None:
        """One decision, by who leads."""
        await self.do(lambda store: store.commit(self.token, rollout, [entry], endpoint, done))

    async def note(self, entry: AuditEntry, done: Sequence[int] = ()) -> None:
        """An entry that decides nothing, and the commands that it answers."""
        await self.do(lambda store: store.note(self.token, [entry], done))

    async def set_endpoint(self, endpoint: Endpoint) -> None:
        """An endpoint's record, without a rollout."""
        await self.do(lambda store: store.set_endpoint(self.token, endpoint))

    async def withdraw(self, rollout_id: str) -> None:
        """A proposal that needs no start any more."""
        await self.do(lambda store: store.withdraw(self.token, rollout_id))

    async def prune(self, endpoint: str, before: float) -> int:
        """Forget what ended before this moment; how many rollouts."""
        return await self.do(lambda store: store.prune(self.token, endpoint, before))

    async def history(self, endpoint: str, limit: int) -> list[Rollout]:
        """An endpoint's rollouts, newest first."""
        return await self.do(lambda store: store.history(endpoint, limit))

    def _opened(self) -> Ledger:
        assert self._store is not None, "open() comes first"
        return self._store

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
