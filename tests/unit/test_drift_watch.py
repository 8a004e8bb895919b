"""Drift over a sliding window, of all workers together, over an injected clock."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from octoserve.core.observation import DriftSettings, Observations, Observed
from octoserve.core.profile import LEVELS, ColumnProfile, Profile
from octoserve.dataplane.drift import FAMILY, LABELS
from octoserve.patterns.online.supervisor.admin_metrics import fold
from octoserve.patterns.online.supervisor.drift_watch import DriftWatch
from octoserve.repository import profiles
from octoserve.telemetry.families import TALLY, Family, Sample
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.prometheus import render
from support.loops import FakeClock

WINDOW, MINIMUM = 600.0, 100
PROFILE = Profile(
    model="m", version=1, digest="d", made=0.0, data="t", rows=1000, counted=1000,
    columns=(
        ColumnProfile(name="c", side="input", datatype="FP32", kind=LEVELS, levels=(0.0, 1.0), counts=(500, 500, 0, 0)),
    ),
)  # fmt: skip


class Workers:
    """Two of them, and what watches."""

    def __init__(self, folder: Path) -> None:
        self.version = folder / "m" / "1"
        self.version.mkdir(parents=True)
        profiles.write(self.version, PROFILE)
        self.counts = [np.zeros(4, np.int64), np.zeros(4, np.int64)]
        self.id = PROFILE.id()
        self.past: list[bytes] = []
        self.clock = FakeClock()
        observations = Observations(default=Observed(drift=DriftSettings(window=WINDOW, minimum=MINIMUM)))
        self.watch = DriftWatch(observations, self.collect, lambda m, v: (self.version, "d"), clock=self.clock)

    async def collect(self) -> list[bytes]:
        return self.snapshots()

    def snapshots(self) -> list[bytes]:
        made = list(self.past)
        for counts in self.counts:
            registry = Registry()
            samples = (Sample(("m", "1", self.id, "c"), 0.0, 0, tuple(counts.tolist())),)
            registry.reading(lambda samples=samples: Family(FAMILY, TALLY, "", LABELS, (), samples))
            made.append(registry.snapshot())
        return made

    def serve(self, seconds: float, zeros: int, ones: int) -> None:
        """So many rows in that time, by either worker in turn, and a look after each step."""
        steps = int(seconds / 10)
        for step in range(steps):
            self.counts[step % 2] += np.array([zeros // steps, ones // steps, 0, 0])
            self.clock.advance(10)
            self.watch.take(self.snapshots())

    def shown(self, name: str = "octoserve_drift_psi") -> list[float]:
        family = next(f for f in self.watch.families(self.snapshots()) if f.name == name)
        return [sample.total for sample in family.samples]


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    made = Workers(tmp_path)
    made.watch.take(made.snapshots())
    return made


def test_no_number_below_the_minimum_and_then_the_distance(workers: Workers) -> None:
    workers.serve(100, 40, 40)
    assert workers.shown() == []
    assert workers.shown("octoserve_drift_rows") == [80]
    workers.serve(100, 100, 100)
    assert workers.shown()[0] == pytest.approx(0, abs=1e-4)
    workers.serve(100, 0, 2000)
    assert workers.shown()[0] > 1
    assert workers.shown("octoserve_drift_js")[0] > 0.15


def test_what_is_older_than_the_window_is_forgotten(workers: Workers) -> None:
    workers.serve(300, 0, 3000)
    assert workers.shown()[0] > 1
    workers.serve(WINDOW, 3000, 3000)
    assert workers.shown("octoserve_drift_rows")[0] == pytest.approx(6000, rel=0.05)
    assert workers.shown()[0] < 0.05
    workers.clock.advance(2 * WINDOW)
    workers.watch.take(workers.snapshots())
    assert workers.shown() == [], "nothing comes: nothing is known"


def test_a_dead_worker_takes_no_window_with_it(workers: Workers) -> None:
    workers.serve(300, 1500, 1500)
    before = workers.shown("octoserve_drift_rows")
    workers.past = [fold(workers.snapshots()[:1])]
    workers.counts[0] = np.zeros(4, np.int64)
    assert workers.shown("octoserve_drift_rows") == before


def test_counts_of_before_the_first_look_are_no_news(tmp_path: Path) -> None:
    workers = Workers(tmp_path)
    workers.counts[0] += np.array([0, 10_000, 0, 0])
    assert workers.shown("octoserve_drift_rows") == [0]
    workers.watch.take(workers.snapshots())
    assert workers.shown() == []
    workers.serve(100, 500, 500)
    assert workers.shown("octoserve_drift_rows") == [1000]


def test_counts_by_another_profile_say_nothing(workers: Workers) -> None:
    workers.serve(100, 500, 500)
    workers.id = "another"
    workers.watch.take(workers.snapshots())
    assert workers.shown("octoserve_drift_rows") == []


def test_the_view_is_the_report_and_the_counts_are_on_no_page(workers: Workers) -> None:
    workers.serve(100, 0, 1000)
    (report,) = asyncio.run(workers.watch.view())["models"]["m"].values()
    assert report["headline"].startswith("1 of 1 column has moved: c")
    assert report["over"] == "the last 10 min"
    page = render(workers.snapshots(), workers.watch.families(workers.snapshots())).decode()
    assert 'octoserve_drift_psi{model="m",version="1",feature="c"}' in page
    assert FAMILY not in page
