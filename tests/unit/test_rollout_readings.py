"""Metric checks are read beside each other: a provider that hangs holds up its own checks and no others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from octoserve.control.analysis.reading import ArmSums, Reading
from octoserve.control.providers.protocol import Window
from octoserve.control.rollout.values import Course, MetricCheck, Phase, Rollout, Step
from octoserve.core.errors import Unavailable
from octoserve.patterns.online.supervisor import rollout_readings
from octoserve.patterns.online.supervisor.rollout_readings import MetricReadings

GOOD = Reading(candidate=ArmSums(n=7, total=3.0))


class Provider:
    """Answers GOOD, once `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.inside = 0
        self.windows: list[Window] = []
        self.error: Exception | None = None

    def problem(self, check: MetricCheck) -> str:
        return "never" if check.name == "impossible" else ""

    def read(self, check: MetricCheck, query: Window) -> Reading:
        self.inside += 1
        assert self.inside == 1, "one thread at a time"
        self.windows.append(query)
        try:
            if self.error is not None:
                raise self.error
            assert self.go.wait(30)
            return GOOD
        finally:
            self.inside -= 1

    def close(self) -> None:
        pass


def check(name: str, provider: str, **more: bool) -> MetricCheck:
    return MetricCheck(name=name, provider=provider, queries={"rows": "select 1"}, **more)


def rollout(*checks: MetricCheck, id: str = "r1", **more: object) -> Rollout:
    course = Course(strategy="canary", steps=(Step(),), checks=checks)
    made = {"id": id, "endpoint": "m", "stable": 1, "candidate": 2, "phase": Phase.RUNNING, "settled": 5.0, **more}
    return Rollout(course=course, **made)  # type: ignore[arg-type]


class House:
    def __init__(self, *live: Rollout) -> None:
        self.live = list(live)
        self.providers = {"sql://a": Provider(), "sql://b": Provider()}
        urls = {"a": "sql://a", "b": "sql://b"}
        self.readings = MetricReadings(lambda: self.live, lambda _: urls, lambda: 9.0, lambda url: self.providers[url])

    def errors(self, of: Rollout) -> dict[str, str]:
        return {name: reading.error for name, reading in self.readings(of).items()}

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not reached():
                await asyncio.sleep(0.001)


def test_a_provider_that_hangs_holds_up_its_own_checks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_readings, "PATIENCE", 0.05)
    one = rollout(check("slow", "a"), check("after", "a"), check("quick", "b"))
    other = rollout(check("quick too", "b"), id="r2")
    house = House(one, other)
    late = "provider 'a': no answer within 0.05 s"

    async def story() -> None:
        house.providers["sql://a"].go.clear()
        assert house.readings.begin()
        await house.until(lambda: set(house.readings(one)) == {"slow", "after", "quick"})
        await house.until(lambda: bool(house.readings(other)))
        assert house.errors(one) == {"slow": late, "after": late, "quick": ""}
        assert house.errors(other) == {"quick too": ""}
        # The next round reads the quick one again, and does not enter the one that hangs a second time.
        await house.until(lambda: "sql://b" not in house.readings._lanes)
        house.readings.begin()
        await house.until(lambda: len(house.providers["sql://b"].windows) == 4)
        assert len(house.providers["sql://a"].windows) == 1
        # It is back: both are read.
        house.providers["sql://a"].go.set()
        await house.until(lambda: not house.readings._lanes)
        house.readings.begin()
        await house.until(lambda: house.errors(one) == {"slow": "", "after": "", "quick": ""})

    asyncio.run(story())


def test_what_cannot_be_read_says_why(caplog: pytest.LogCaptureFixture) -> None:
    one = rollout(check("impossible", "a"), check("unnamed", "c"), check("away", "b"))
    house = House(one)

    async def story() -> None:
        house.providers["sql://b"].error = Unavailable("b is away")
        house.readings.begin()
        await house.until(lambda: len(house.readings(one)) == 3)
        unnamed = "no provider 'c' in the spec; name it under rollout.providers"
        assert house.errors(one) == {"impossible": "never", "unnamed": unnamed, "away": "b is away"}
        house.providers["sql://b"].error = ZeroDivisionError("oh")
        await house.until(lambda: not house.readings._lanes)
        house.readings.begin()
        await house.until(lambda: "ZeroDivisionError" in house.errors(one)["away"])
        assert "oh" in caplog.text

    asyncio.run(story())


def test_windows_are_those_of_the_step_and_of_late_labels() -> None:
    sales, late = check("sales", "a"), check("late", "a", delayed=True)
    running, waiting = rollout(sales, late), rollout(sales, id="r2", settled=None)
    retaining = rollout(sales, late, id="r3", phase=Phase.RETAINING, started=1.0)
    house = House(running, waiting, retaining)

    async def story() -> None:
        house.readings.begin()
        await house.until(lambda: not house.readings._lanes)
        assert set(house.readings(running)) == {"sales", "late"}
        assert house.readings(waiting) == {}
        assert set(house.readings(retaining)) == {"late"}
        assert [(w.since, w.until) for w in house.providers["sql://a"].windows] == [(5.0, 9.0), (5.0, 9.0), (1.0, 9.0)]
        house.live = [waiting]
        assert not house.readings.begin(), "nothing is to be read"
        assert house.readings(running) == {}, "what has ended is forgotten"

    asyncio.run(story())
