"""A batcher for runs that wait: for a server elsewhere, or inside code that nobody knows (`LoadedModel.lanes`).

Never on the event loop, in threads of its own, so many at a time. A server that hangs holds up its own lanes and no
other model. What arrives while a lane is free goes at once; while none is, it forms the next batch.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from octoserve.dataplane.batcher import Batcher, BatchLimits, Ground, Outcome
from octoserve.dataplane.call import Call
from octoserve.dataplane.statistics import VersionStatistics
from octoserve.lifecycle.lease import Handle

log = logging.getLogger(__name__)


class LanesBatcher(Batcher):
    """Several runs of one version in flight. Single-threaded: lives on the event loop."""

    def __init__(self, handle: Handle, statistics: VersionStatistics, limits: BatchLimits, ground: Ground) -> None:
        own = ThreadPoolExecutor(handle.lanes, f"run-{handle.ref.model}")
        super().__init__(handle, statistics, limits, ground._replace(executor=own))
        self._lanes = handle.lanes
        self._flights: dict[int, tuple[list[Call], int, float]] = {}
        """Calls, bytes and the beginning of each run in flight."""
        self._next_flight = 0

    @property
    def run_age(self) -> float:
        """Of the oldest run in flight; 0 without one."""
        began = [began for _, _, began in self._flights.values()]
        return self._clock() - min(began) if began else 0.0

    def _turn(self) -> None:
        while len(self._flights) < self._lanes:
            calls, rows, size = self._next_batch()
            if not calls:
                break
            number = self._next_flight
            self._next_flight += 1
            self._flights[number] = calls, size, self._clock()
            self._running = [*self._running, *calls]
            self._executor.submit(self._fly, number, calls, rows)
        # Full lanes: a landing takes the next turn. Free ones, and nothing waits: the next offer does.
        self._scheduled = len(self._flights) >= self._lanes

    def _fly(self, number: int, calls: list[Call], rows: int) -> None:
        outcome = self._execute(calls, rows, True)
        try:
            self._loop.call_soon_threadsafe(self._land, number, outcome)
        except RuntimeError:
            log.debug("the event loop closed during a run")

    def _land(self, number: int, outcome: tuple[int, float, float, Any, Outcome]) -> None:
        calls, size, _ = self._flights.pop(number)
        self._running = [call for _calls, _, _ in self._flights.values() for call in _calls]
        self._settle(calls, size, *outcome)
        self._scheduled = bool(self._waiting)
        if self._waiting:
            self._loop.call_soon(self._turn)  # one too many does no harm: it finds nothing, or full lanes

    def _learn(self, rows: int, size: int, seconds: float, cpu: float | None) -> None:
        """What waits ahead passes through all lanes."""
        super()._learn(rows, size, seconds / self._lanes, cpu)
