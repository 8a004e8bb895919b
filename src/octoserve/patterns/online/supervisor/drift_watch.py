"""How far live rows are from their version's reference profile, over a sliding window, of all workers together.

Workers count rows by bin, and their counts only grow (`dataplane.drift`); here they are looked at now and then, and
what a window holds is the difference of two looks. A supervisor that restarts begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from octoserve.control.drift.report import DriftReport, as_json, build
from octoserve.core.clock import Clock, monotonic
from octoserve.core.drift import chance_limit, js, psi
from octoserve.core.errors import SettingsError
from octoserve.core.observation import DriftSettings, Observations
from octoserve.core.profile import Profile
from octoserve.repository import profiles
from octoserve.telemetry.families import TALLY, Family, Sample

log = logging.getLogger(__name__)

LOOKS = 60
"""In a window: it is exact to a sixtieth."""
_LEAST, _MOST = 1.0, 60.0
_SOON = 0.2

Key = tuple[str, str, str, str]
"""Model, version, profile, column."""
Counts = tuple[int, ...]


class Looks:
    """Cumulative counts at rising times, of a window and the look before it."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, Counts]] = deque()

    def add(self, at: float, counts: Counts, window: float) -> None:
        """One more, unless it comes too soon."""
        if self._kept and at < self._kept[-1][0] + window / LOOKS - 1e-6:
            return
        self._kept.append((at, counts))
        while len(self._kept) > 1 and self._kept[1][0] <= at - window:
            self._kept.popleft()

    def since(self, at: float) -> Counts:
        """The counts as they stood then; the oldest known if that is later."""
        found = self._kept[0][1]
        for when, counts in self._kept:
            if when > at:
                break
            found = counts
        return found


class DriftWatch:
    """See the module.

    collect: the workers' metric snapshots
    folder:  of a version, and its digest; None for one that is gone
    settled: whether workers that were there before have all been heard: what they counted by then is not news
    """

    def __init__(
        self,
        observations: Observations,
        collect: Callable[[], Awaitable[list[bytes]]],
        folder: Callable[[str, int], tuple[Path, str] | None],
        settled: Callable[[], bool] = lambda: True,
        clock: Clock = monotonic,
        now: Clock = time.time,
    ) -> None:
        self._observations = observations
        self._collect = collect
        self._folder = folder
        self._settled = settled
        self._clock = clock
        self._now = now
        self._looks: dict[Key, Looks] = {}
        self._looked: float | None = None
        self._profiles: dict[tuple[str, str, str], Profile | None] = {}
        self._watched = [o.drift for o in observations.all() if o.drift is not None]

    async def run(self) -> None:
        """Look again and again. Ends by cancellation; at once where nothing is watched."""
        while self._watched:
            if self._looked is None and not self._settled():
                await asyncio.sleep(_SOON)
                continue
            self.take(await self._collect())
            await asyncio.sleep(max(_LEAST, min(_MOST, min(drift.window for drift in self._watched) / LOOKS)))

    def take(self, snapshots: Sequence[bytes]) -> None:
        """One more look, at the workers' snapshots as they are now."""
        now = self._clock()
        counts = self._counts(snapshots)
        for key, bins in counts.items():
            window = self._settings(key[0]).window
            looks = self._looks.get(key)
            if looks is None:
                looks = self._looks[key] = Looks()
                if self._looked is not None:  # it is new since the last look, and began at 0
                    looks.add(self._looked, (0,) * len(bins), window)
            looks.add(now, bins, window)
        for gone in self._looks.keys() - counts.keys():
            del self._looks[gone]
        self._looked = now

    def _counts(self, snapshots: Sequence[bytes]) -> dict[Key, Counts]:
        """Of all workers together, of what is watched now."""
        sums: dict[Key, Counts] = {}
        if not self._watched:
            return sums
        for snapshot in snapshots:
            for family in msgspec.msgpack.decode(snapshot, type=list[Family]):
                if family.kind != TALLY:
                    continue
                for sample in family.samples:
                    model, version, profile, column = sample.labels
                    if self._observations.of(model).drift is None:
                        continue
                    key = (model, version, profile, column)
                    before = sums.get(key, (0,) * len(sample.buckets))
                    sums[key] = tuple(a + b for a, b in zip(before, sample.buckets, strict=True))
        return sums

    def _settings(self, model: str) -> DriftSettings:
        return self._observations.of(model).drift or DriftSettings()

    def _windows(self, snapshots: Sequence[bytes]) -> dict[tuple[str, str, str], dict[str, Counts]]:
        """Version and profile -> column -> counts of the window that ends now."""
        now = self._clock()
        found: dict[tuple[str, str, str], dict[str, Counts]] = {}
        for key, counts in self._counts(snapshots).items():
            looks = self._looks.get(key)
            if looks is not None:
                begun = looks.since(now - self._settings(key[0]).window)
            else:  # new since the last look: it began at 0
                begun = (0,) * len(counts) if self._looked is not None else counts
            live = tuple(max(0, a - b) for a, b in zip(counts, begun, strict=True))
            found.setdefault(key[:3], {})[key[3]] = live
        return found

    def _profile(self, whose: tuple[str, str, str]) -> Profile | None:
        """The one that these counts are by; None once it was made anew, or is gone."""
        if whose not in self._profiles:
            model, version, id_ = whose
            place = self._folder(model, int(version))
            if place is None:
                return None  # not seen yet, or gone: asked again
            found: Profile | None = None
            try:
                found = profiles.read(*place)
            except SettingsError as error:
                log.warning("%s", error)
            for old in [key for key in self._profiles if key[:2] == whose[:2]]:
                del self._profiles[old]
            self._profiles[whose] = found if found is not None and found.id() == id_ else None
        return self._profiles[whose]

    def families(self, snapshots: Sequence[bytes]) -> list[Family]:
        """For the page of metrics. A column below the minimum of rows has no number."""
        if not self._watched:
            return []
        made: dict[str, list[Sample]] = {"rows": [], "psi": [], "js": [], "psi_chance": []}
        for whose, columns in sorted(self._windows(snapshots).items()):
            profile = self._profile(whose)
            if profile is None:
                continue
            minimum = self._settings(whose[0]).minimum
            made["rows"].append(Sample(whose[:2], float(max(map(sum, columns.values()), default=0))))
            for name, live in columns.items():
                column = profile.column(name)
                if column is None or sum(live) < minimum:
                    continue
                for kind, measure in (("psi", psi), ("js", js), ("psi_chance", chance_limit)):
                    value = measure(column.counts, live)
                    if value is not None:
                        made[kind].append(Sample((*whose[:2], name), value))
        version, feature = ("model", "version"), ("model", "version", "feature")
        return [
            _gauge("octoserve_drift_rows", "Rows that drift is measured over.", version, made["rows"]),
            _gauge("octoserve_drift_psi", "Population stability index.", feature, made["psi"]),
            _gauge("octoserve_drift_psi_chance", "PSI stays below if nothing moved.", feature, made["psi_chance"]),
            _gauge("octoserve_drift_js", "Jensen-Shannon divergence in bits.", feature, made["js"]),
        ]

    async def view(self) -> dict[str, Any]:
        """For `GET /api/drift`: model -> version -> the report."""
        snapshots = await self._collect()
        models: dict[str, Any] = {}
        for whose, columns in sorted(self._windows(snapshots).items()):
            report = self._report(whose, columns)
            if report is not None:
                models.setdefault(whose[0], {})[whose[1]] = as_json(report)
        return {"models": models}

    def _report(self, whose: tuple[str, str, str], columns: dict[str, Counts]) -> DriftReport | None:
        profile = self._profile(whose)
        if profile is None:
            return None
        settings = self._settings(whose[0])
        return build(
            profile, columns, now=self._now(), over=f"the last {_words(settings.window)}", minimum=settings.minimum
        )


def _words(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _gauge(name: str, help: str, labels: tuple[str, ...], samples: list[Sample]) -> Family:
    return Family(name, "gauge", help, labels, (), tuple(samples))
