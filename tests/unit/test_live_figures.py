"""Figures for charts: the difference of two snapshots, gaps where nothing was answered."""

from __future__ import annotations

import pytest

from octoserve.patterns.online.supervisor.live_figures import POINTS, STEP, LiveFigures, quantile, shares_of
from octoserve.routing.plan import RoutePlan, split_arms
from octoserve.telemetry.metrics import Registry


class Worker:
    """Requests as a worker counts them."""

    def __init__(self) -> None:
        self.registry = Registry()
        self._family = self.registry.histogram("octoserve_request_seconds", "", ("model", "version", "door", "outcome"))

    def ask(self, count: int, seconds: float = 0.003, version: str = "1", outcome: str = "ok") -> None:
        self._family.histogram("m", version, "http", outcome).observe_all([seconds] * count)


def figures() -> tuple[LiveFigures, Worker, Worker]:
    plans = [RoutePlan("m", 1, split_arms(1, 2, 1000, baseline=True))]
    return LiveFigures(lambda: None, lambda: plans, lambda: 100.0), Worker(), Worker()


def test_rates_errors_and_latencies_of_all_workers() -> None:
    live, a, b = figures()
    live.take([a.registry.snapshot(), b.registry.snapshot()])
    a.ask(60)
    b.ask(40)
    b.ask(8, outcome="internal")
    b.ask(50, outcome="invalid")
    live.take([a.registry.snapshot(), b.registry.snapshot()])
    view = live.view()
    one = view["endpoints"]["m"]["versions"]["1"]
    assert one["rate"] == [108 / STEP]
    assert one["errors"] == [8 / STEP]
    assert 0.0025 < one["p50"][0] <= 0.005
    assert view["endpoints"]["m"]["share"] == {"1": [0.9], "2": [0.1]}
    assert view["endpoints"]["m"]["versions"]["2"]["p99"] == [None]


def test_a_version_that_answers_nothing_is_null_and_not_zero() -> None:
    live, a, _ = figures()
    for count in (0, 5, 0):
        a.ask(count)
        live.take([a.registry.snapshot()])
    assert live.view()["endpoints"]["m"]["versions"]["1"]["p50"][1] is None
    assert live.view()["endpoints"]["m"]["versions"]["1"]["rate"] == [5 / STEP, 0.0]


def test_a_worker_that_is_gone_makes_no_negative_rate() -> None:
    live, a, b = figures()
    a.ask(10)
    live.take([a.registry.snapshot(), b.registry.snapshot()])
    live.take([b.registry.snapshot()])
    assert all(p["rate"] == [0.0] for p in live.view()["endpoints"]["m"]["versions"].values())


def test_five_minutes_and_no_more() -> None:
    live, a, _ = figures()
    for _ in range(POINTS + 20):
        a.ask(1)
        live.take([a.registry.snapshot()])
    assert len(live.view()["endpoints"]["m"]["versions"]["1"]["rate"]) == POINTS


@pytest.mark.parametrize(("q", "want"), [(0.5, 1.0), (0.25, 0.5), (0.99, 2.0)])
def test_quantiles_by_straight_lines(q: float, want: float) -> None:
    import numpy as np

    assert quantile(np.array([10, 10, 0]), (1.0, 2.0), q) == pytest.approx(want, rel=0.02)


def test_shares_add_up() -> None:
    assert shares_of(RoutePlan("m", 1, split_arms(1, 2, 2500, baseline=True))) == {1: 0.75, 2: 0.25}
