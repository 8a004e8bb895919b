"""What each version did lately, a point every two seconds for five minutes: for charts, not for verdicts.

Made from the workers' own metrics: the difference of two snapshots of the request histogram.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from octoserve.core.errors import CLIENTS_DOING
from octoserve.routing.plan import BUCKETS, RoutePlan
from octoserve.telemetry.families import Family

STEP = 2.0
POINTS = 150
FAMILY = "octoserve_request_seconds"
Key = tuple[str, str]


class Sums:
    """Of one version, since the workers started."""

    def __init__(self, buckets: int) -> None:
        self.all = 0
        self.errors = 0
        self.buckets = np.zeros(buckets, dtype=np.int64)


class LiveFigures:
    """collect: the workers' metric snapshots; plans: what is routed now."""

    def __init__(
        self,
        collect: Callable[[], Any],
        plans: Callable[[], Iterable[RoutePlan]],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._collect = collect
        self._plans = plans
        self._now = now
        self._before: dict[Key, Sums] | None = None
        self._points: deque[dict[Key, dict[str, float | None]]] = deque(maxlen=POINTS)
        self._shares: deque[dict[Key, float]] = deque(maxlen=POINTS)

    async def run(self) -> None:
        """A point every STEP seconds. Ends by cancellation."""
        while True:
            self.take(await self._collect())
            await asyncio.sleep(STEP)

    def take(self, snapshots: Sequence[bytes]) -> None:
        """One more point, of the workers' snapshots as they are now."""
        sums, bounds = sums_of(snapshots)
        before = self._before
        self._before = sums
        if before is None:
            return
        self._points.append({key: _point(total, before.get(key), bounds) for key, total in sums.items()})
        self._shares.append(
            {
                (plan.endpoint, str(version)): share
                for plan in self._plans()
                for version, share in shares_of(plan).items()
            }
        )

    def view(self) -> dict[str, Any]:
        """For `GET /api/live`."""
        keys = sorted({key for point in self._points for key in point} | {k for s in self._shares for k in s})
        endpoints: dict[str, Any] = {}
        for endpoint, version in keys:
            entry = endpoints.setdefault(endpoint, {"versions": {}, "share": {}})
            points = [point.get((endpoint, version), _NOTHING) for point in self._points]
            entry["versions"][version] = {name: [point[name] for point in points] for name in _NOTHING}
            entry["share"][version] = [share.get((endpoint, version), 0.0) for share in self._shares]
        return {"now": self._now(), "step": STEP, "endpoints": endpoints}


_NOTHING: Mapping[str, float | None] = {"rate": 0.0, "errors": 0.0, "p50": None, "p99": None}


def shares_of(plan: RoutePlan) -> dict[int, float]:
    """Version -> its share of requests, of 1."""
    shares: dict[int, float] = {}
    for arm in plan.arms:
        shares[arm.version] = shares.get(arm.version, 0.0) + (arm.hi - arm.lo) / BUCKETS
    return {version: round(share, 6) for version, share in shares.items() if share}


def sums_of(snapshots: Sequence[bytes]) -> tuple[dict[Key, Sums], tuple[float, ...]]:
    """(model, version) -> sums over workers, doors and outcomes; and the histogram's bounds."""
    sums: dict[Key, Sums] = {}
    bounds: tuple[float, ...] = ()
    for snapshot in snapshots:
        for family in msgspec.msgpack.decode(snapshot, type=list[Family]):
            if family.name != FAMILY:
                continue
            bounds = family.bounds
            for sample in family.samples:
                model, version, _, outcome = sample.labels
                if not version or outcome in CLIENTS_DOING:
                    continue
                total = sums.setdefault((model, version), Sums(len(bounds) + 1))
                total.all += sample.count
                if outcome == "ok":
                    total.buckets += np.array(sample.buckets, dtype=np.int64)
                else:
                    total.errors += sample.count
    return sums, bounds


def _point(total: Sums, before: Sums | None, bounds: tuple[float, ...]) -> dict[str, float | None]:
    earlier = before or Sums(len(total.buckets))
    buckets = np.maximum(total.buckets - earlier.buckets, 0)
    return {
        "rate": max(0, total.all - earlier.all) / STEP,
        "errors": max(0, total.errors - earlier.errors) / STEP,
        "p50": quantile(buckets, bounds, 0.5),
        "p99": quantile(buckets, bounds, 0.99),
    }


def quantile(buckets: np.ndarray[Any, np.dtype[np.int64]], bounds: Sequence[float], q: float) -> float | None:
    """By straight lines within a bucket, as Prometheus does; None of nothing."""
    total = int(buckets.sum())
    if not total:
        return None
    rank = q * total
    reached = np.cumsum(buckets)
    place = int(np.searchsorted(reached, rank))
    if place >= len(bounds):
        return float(bounds[-1])
    low = bounds[place - 1] if place else 0.0
    below = int(reached[place - 1]) if place else 0
    return float(low + (bounds[place] - low) * (rank - below) / max(1, int(buckets[place])))
