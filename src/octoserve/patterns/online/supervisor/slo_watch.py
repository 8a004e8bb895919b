"""How fast the budgets of the SLOs burn, from the workers' counters over the last three days.

Two bounded rings an objective: a count every 15 s for the windows up to an hour, every 5 minutes for the longer ones.
A supervisor that restarts begins anew; what it does not know yet counts as not having been. Alert rules go by the
counters alone, see `deploy/monitoring.py`.
"""

from __future__ import annotations

import asyncio
import bisect
from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from octoserve.core.clock import Clock, monotonic
from octoserve.core.slo import BAD, GOOD, WINDOWS, Slo, Slos, alerts, burn
from octoserve.telemetry.families import Family, Sample

STEP = 15.0
"""Seconds between two counts."""
FINE = 75 * 60.0
"""How far back every count is kept; beyond that one in COARSE seconds, for the longest window."""
COARSE = 300.0
_SOON = 0.2

Key = tuple[str, str]
Counts = dict[Key, tuple[float, float]]
"""(model, objective) -> good and bad requests so far."""


class Ring:
    """Cumulative counts at rising times, the oldest forgotten. 24 bytes each."""

    def __init__(self, step: float, span: float) -> None:
        self._step = step
        self._most = int(span / step) + 2
        self._times, self._good, self._bad = array("d"), array("d"), array("d")

    def add(self, at: float, good: float, bad: float) -> None:
        """Keep this count, unless the last one is too recent."""
        if self._times and at < self._times[-1] + self._step - STEP / 2:
            return
        for kept, value in ((self._times, at), (self._good, good), (self._bad, bad)):
            kept.append(value)
            del kept[: -self._most]

    def since(self, at: float) -> tuple[float, float]:
        """The count as it stood then; the oldest known if that is later."""
        place = max(0, bisect.bisect_right(self._times, at) - 1)
        return self._good[place], self._bad[place]


class SloWatch:
    """See the module.

    collect:  the workers' metric snapshots
    deadline: of a model, for who looks
    settled:  whether workers that were there before have all been heard: what they counted by then is not news
    """

    def __init__(
        self,
        slos: Slos,
        collect: Callable[[], Awaitable[list[bytes]]],
        deadline: Callable[[str], float | None] = lambda _: None,
        settled: Callable[[], bool] = lambda: True,
        clock: Clock = monotonic,
    ) -> None:
        self._slos = slos
        self._collect = collect
        self._deadline = deadline
        self._settled = settled
        self._clock = clock
        self._rings: dict[Key, tuple[Ring, Ring]] = {}
        self._began: float | None = None
        self._looked: float | None = None

    async def run(self) -> None:
        """Count every STEP seconds. Ends by cancellation; at once where nothing is promised."""
        while self._slos.any():
            if self._looked is None and not self._settled():
                await asyncio.sleep(_SOON)
                continue
            self.take(await self._collect())
            await asyncio.sleep(STEP)

    def take(self, snapshots: Sequence[bytes]) -> None:
        """One more count, of the workers' snapshots as they are now."""
        now = self._clock()
        for key, (good, bad) in self._counts(snapshots).items():
            rings = self._rings.get(key)
            if rings is None:
                rings = self._rings[key] = Ring(STEP, FINE), Ring(COARSE, max(WINDOWS.values()))
                if self._looked is not None:  # it is new since the last look, and began at 0
                    for ring in rings:
                        ring.add(self._looked, 0.0, 0.0)
            for ring in rings:
                ring.add(now, good, bad)
        self._began = now if self._began is None else self._began
        self._looked = now

    def families(self, snapshots: Sequence[bytes]) -> list[Family]:
        """What is promised, and how fast it burns, for the page of metrics."""
        if not self._slos.any():
            return []
        burning, promised, latencies = [], [], {}
        for (model, objective), counts in self._counts(snapshots).items():
            slo = self._slos.of(model)
            assert slo is not None
            target = slo.objectives()[objective]
            promised.append(Sample((model, objective), target))
            if slo.latency is not None:
                latencies[model] = Sample((model,), slo.latency)
            rates = self._rates((model, objective), counts, target)
            burning += [Sample((model, objective, window), rate) for window, rate in rates.items()]
        names = ("model", "objective")
        return [
            _gauge("octoserve_slo_burn_rate", "Budget burnt, 1 lasts the window.", (*names, "window"), burning),
            _gauge("octoserve_slo_target", "Share of requests that must be good.", names, promised),
            _gauge("octoserve_slo_latency_seconds", "99 % take no longer.", ("model",), list(latencies.values())),
        ]

    async def view(self) -> dict[str, Any]:
        """For `GET /api/slo`. Durations in seconds."""
        known = 0.0 if self._began is None else self._clock() - self._began
        models: dict[str, Any] = {}
        for (model, objective), counts in sorted(self._counts(await self._collect()).items()):
            slo = self._slos.of(model)
            assert slo is not None
            entry = models.setdefault(model, self._promise(model, slo))
            target = slo.objectives()[objective]
            rates = self._rates((model, objective), counts, target)
            over = [a.name for a in alerts(slo.window, target) if min(rates[a.long], rates[a.short]) > a.factor]
            good, bad = counts
            entry["objectives"][objective] = {
                "target": target, "good": int(good), "bad": int(bad),
                "burn_rate": {window: round(rate, 4) for window, rate in rates.items()}, "burning": over,
            }  # fmt: skip
        return {"known_seconds": round(known, 1), "models": models}

    def _promise(self, model: str, slo: Slo) -> dict[str, Any]:
        return {
            "latency_p99": slo.latency, "availability": slo.availability, "window": slo.window,
            "deadline": self._deadline(model), "objectives": {},
        }  # fmt: skip

    def _rates(self, key: Key, counts: tuple[float, float], target: float) -> dict[str, float]:
        """Window -> how many times too fast; counts before the first look are left out."""
        rings = self._rings.get(key)
        if rings is None:  # new since the last look: it began at 0
            return dict.fromkeys(WINDOWS, 0.0 if self._looked is None else burn(*counts, target))
        rates = {}
        now = self._clock()
        for name, seconds in WINDOWS.items():
            good, bad = rings[seconds > FINE].since(now - seconds)
            rates[name] = burn(max(0.0, counts[0] - good), max(0.0, counts[1] - bad), target)
        return rates

    def _counts(self, snapshots: Sequence[bytes]) -> Counts:
        """Of all workers together, of what is promised now."""
        sums: dict[str, dict[Key, float]] = {GOOD: {}, BAD: {}}
        for snapshot in snapshots:
            for family in msgspec.msgpack.decode(snapshot, type=list[Family]):
                mine = sums.get(family.name)
                if mine is not None:
                    for sample in family.samples:
                        key = sample.labels[0], sample.labels[1]
                        mine[key] = mine.get(key, 0.0) + sample.total
        return {key: (good, sums[BAD].get(key, 0.0)) for key, good in sums[GOOD].items() if self._promised(*key)}

    def _promised(self, model: str, objective: str) -> bool:
        slo = self._slos.of(model)
        return slo is not None and objective in slo.objectives()


def _gauge(name: str, help: str, labels: tuple[str, ...], samples: list[Sample]) -> Family:
    return Family(name, "gauge", help, labels, (), tuple(samples))
