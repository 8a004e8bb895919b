"""Burn rates from the workers' counters, over an injected clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octoserve.core.slo import BAD, DAY, GOOD, WINDOWS, Slo, Slos
from octoserve.patterns.online.supervisor.slo_watch import COARSE, FINE, STEP, Ring, SloWatch
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.prometheus import render
from support.loops import FakeClock

PROMISE = Slo(latency=0.02, availability=0.999)
AVAILABLE = ("m", "availability")


class Workers:
    """Two workers, and a service that counts them up."""

    def __init__(self, slos: Slos = Slos(default=PROMISE)) -> None:
        self.clock = FakeClock()
        self.collected = self.asked = 0
        self.counts: list[dict[tuple[str, str], list[int]]] = [{AVAILABLE: [0, 0]}, {AVAILABLE: [0, 0]}]
        self.watch = SloWatch(slos, self.collect, lambda model: 0.04, self.settled, self.clock)

    def snapshots(self) -> list[bytes]:
        made = []
        for counts in self.counts:
            registry = Registry()
            for place, name in enumerate((GOOD, BAD)):
                family = registry.counter(name, "", ("model", "objective"))
                for labels, values in counts.items():
                    family.counter(*labels).add(values[place])
            made.append(registry.snapshot())
        return made

    async def collect(self) -> list[bytes]:
        self.collected += 1
        return self.snapshots()

    def settled(self) -> bool:
        self.asked += 1
        return self.asked > 2

    def serve(self, seconds: float, good: int, bad: int, every: float = STEP) -> None:
        """So many requests every so many seconds, in turn by either worker, for that long."""
        for step in range(round(seconds / every)):
            self.watch.take(self.snapshots())
            mine = self.counts[step % 2][AVAILABLE]
            mine[0] += good
            mine[1] += bad
            self.clock.advance(every)

    def rates(self, key: tuple[str, str] = AVAILABLE) -> dict[str, float]:
        [burning] = [f for f in self.watch.families(self.snapshots()) if f.name == "octoserve_slo_burn_rate"]
        return {s.labels[2]: s.total for s in burning.samples if s.labels[:2] == key}

    def view(self) -> Any:
        return asyncio.run(self.watch.view())


def test_a_steady_share_of_failures_burns_alike_in_all_windows() -> None:
    workers = Workers()
    workers.serve(7200, 998, 2)
    assert workers.rates() == {window: pytest.approx(2.0) for window in WINDOWS}


def test_an_outage_shows_in_short_windows_first_and_leaves_them_first() -> None:
    workers = Workers()
    workers.serve(6 * 3600, 100, 0)
    workers.serve(300, 0, 100)
    rates = workers.rates()
    assert rates["5m"] == pytest.approx(1000)
    assert rates["30m"] == pytest.approx(1000 / 6)
    assert rates["1h"] == pytest.approx(1000 / 12)
    # Five minutes of the last six hours, which are known to five minutes.
    assert 1000 / 73 <= rates["6h"] <= 1000 / 71
    assert workers.view()["models"]["m"]["objectives"]["availability"]["burning"] == ["fast", "slow", "creeping"]
    workers.serve(600, 100, 0)
    rates = workers.rates()
    assert rates["5m"] == 0.0
    assert rates["1h"] == pytest.approx(1000 / 12)
    assert "fast" not in workers.view()["models"]["m"]["objectives"]["availability"]["burning"]


def test_three_days_back_are_known_and_no_longer() -> None:
    workers = Workers()
    workers.serve(COARSE, 0, 100)
    workers.serve(2.9 * DAY, 100, 0, every=COARSE)
    assert workers.rates()["3d"] > 0
    workers.serve(0.2 * DAY, 100, 0, every=COARSE)
    assert set(workers.rates().values()) == {0.0}


def test_memory_is_bounded() -> None:
    for ring, step, span in ((Ring(STEP, FINE), STEP, FINE), (Ring(COARSE, 3 * DAY), COARSE, 3 * DAY)):
        for look in range(5000):
            ring.add(look * step, look, 0)
        assert ring.since(5000 * step - span)[0] == pytest.approx(5000 - span / step, abs=1.1)
        assert len(ring._times) == len(ring._good) == len(ring._bad) <= span / step + 2


def test_no_requests_burn_nothing() -> None:
    workers = Workers()
    workers.serve(60, 0, 0)
    assert set(workers.rates().values()) == {0.0}
    assert set(Workers().rates().values()) == {0.0}, "before the first look"


def test_what_was_counted_before_the_supervisor_came_is_not_news() -> None:
    workers = Workers()
    workers.counts[0][AVAILABLE] = [0, 5000]
    workers.serve(600, 100, 0)
    assert set(workers.rates().values()) == {0.0}
    assert workers.view()["known_seconds"] == 600


def test_a_model_that_comes_later_is_counted_from_its_first_request() -> None:
    workers = Workers()
    workers.serve(600, 100, 0)
    workers.counts[1]["late", "latency"] = [5, 5]
    assert workers.rates(("late", "latency"))["5m"] == pytest.approx(50), "also before the next look"
    workers.counts[1]["late", "latency"] = [0, 10]
    workers.serve(STEP, 100, 0)
    assert workers.rates(("late", "latency"))["5m"] == pytest.approx(100)


def test_counts_that_fall_are_no_negative_burn() -> None:
    workers = Workers()
    workers.serve(600, 50, 50)
    workers.counts[0][AVAILABLE] = [0, 0]
    workers.counts[1][AVAILABLE] = [0, 0]
    assert all(rate >= 0 for rate in workers.rates().values())


def test_the_page_and_the_view_say_what_is_promised() -> None:
    workers = Workers(Slos(models={"m": PROMISE, "off": None}))
    workers.counts[0]["m", "latency"] = [990, 10]
    workers.counts[0]["off", "latency"] = [1, 1]
    workers.counts[0]["gone", "latency"] = [1, 1]
    workers.serve(STEP, 9990, 10)
    page = render([], workers.watch.families(workers.snapshots())).decode()
    assert 'octoserve_slo_target{model="m",objective="availability"} 0.999' in page
    assert 'octoserve_slo_target{model="m",objective="latency"} 0.99' in page
    assert 'octoserve_slo_latency_seconds{model="m"} 0.02' in page
    assert 'octoserve_slo_burn_rate{model="m",objective="availability",window="5m"} ' in page
    assert "off" not in page
    assert "gone" not in page
    view = workers.view()["models"]
    assert list(view) == ["m"]
    assert view["m"]["deadline"] == 0.04
    assert view["m"]["latency_p99"] == 0.02
    assert view["m"]["window"] == 30 * DAY
    assert view["m"]["objectives"]["availability"]["good"] == 9990
    assert view["m"]["objectives"]["latency"]["bad"] == 10


def test_workers_that_were_there_before_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if seconds == STEP:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(workers.watch.run())
    assert len(slept) == 3
    assert workers.collected == 1, "not before all of them have been heard"


def test_without_a_promise_nothing_is_shown_and_nothing_runs() -> None:
    workers = Workers(Slos())
    asyncio.run(workers.watch.run())
    assert workers.watch.families(workers.snapshots()) == []
    assert workers.view()["models"] == {}
