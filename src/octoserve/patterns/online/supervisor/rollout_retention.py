"""When the past goes: the leader forgets rollouts that ended long ago, a few at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable

log = logging.getLogger(__name__)

EVERY = 3600.0
"""Seconds between two looks at what has grown old."""

Prune = Callable[[str, float], Awaitable[int]]
"""`RolloutStore.prune` of an endpoint and a moment, by who leads."""


class RolloutRetention:
    """Called once a step; does something once in EVERY.

    keep:  seconds after its end that a rollout is kept; 0 for ever
    now:   wall clock, which records have
    clock: that of the beat
    """

    def __init__(self, keep: float, now: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._keep = keep
        self._now = now
        self._clock = clock
        self._next = clock()

    async def step(self, endpoints: Iterable[str], prune: Prune) -> None:
        """A batch of each endpoint's. Where there was one, there may be more: the next step goes on."""
        if not self._keep or self._clock() < self._next:
            return
        forgotten = 0
        for endpoint in endpoints:
            gone = await prune(endpoint, self._now() - self._keep)
            if gone:
                log.info("%s: %d rollouts that ended long ago are forgotten (keep_rollouts)", endpoint, gone)
            forgotten += gone
        if not forgotten:
            self._next = self._clock() + EVERY
