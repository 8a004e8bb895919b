"""How long changes take: from a plan that is pushed to the last worker that follows it."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds; upper bounds of the histogram."""
KEPT = 1000


class PlanTimes:
    """Seconds from push to acknowledgement by all. A plan that is replaced before that is not counted."""

    def __init__(self) -> None:
        self._pushed: tuple[int, float] | None = None
        self._last: deque[float] = deque(maxlen=KEPT)
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def pushed(self, generation: int, now: float) -> None:
        """It was sent to the workers."""
        self._pushed = generation, now

    def followed(self, generation: int, now: float) -> None:
        """Every worker has acknowledged `generation`."""
        if self._pushed is not None and generation >= self._pushed[0]:
            took = now - self._pushed[1]
            self._pushed = None
            self._last.append(took)
            self.counts[bisect_left(BOUNDS, took)] += 1
            self.total += took

    def quantiles(self) -> dict[str, float | int | None]:
        """Of the last KEPT changes: how many, their median and their 99th percentile."""
        ordered = sorted(self._last)
        return {
            "changes": len(ordered),
            "p50": ordered[len(ordered) // 2] if ordered else None,
            "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] if ordered else None,
        }
