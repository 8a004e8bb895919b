"""What loads say about a promise: bounds, verdicts, the search for the highest load, replicas. All of it played."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from scipy.stats import beta

from octoserve.cli.load import Outcome
from octoserve.cli.verify_slo import (
    BROKEN,
    CLOSE,
    KEPT,
    NOT_KNOWN,
    Found,
    Step,
    bounds,
    replicas_for,
    requests_wanted,
    search,
    step_of,
)
from octoserve.core.errors import SettingsError
from octoserve.core.slo import Slo

SLO = Slo(latency=0.02, availability=0.999)


def outcome(fast: int = 0, slow: int = 0, shed: int = 0, **more: int) -> Outcome:
    made = Outcome(seconds=1.0, latencies=[0.001] * fast + [0.5] * slow, statuses=Counter({200: fast + slow}))
    made.statuses[429] = shed
    made.unanswered = more.get("unanswered", 0)
    made.broken = more.get("broken", 0)
    return made


# Verdicts


@pytest.mark.parametrize(("bad", "total"), [(0, 10), (0, 3000), (3, 50), (10, 10), (50, 1000), (999, 1000)])
def test_bounds_hold_and_are_no_tighter_than_the_exact_ones(bad: int, total: int) -> None:
    low, high = bounds(bad, total)
    assert 0 <= low <= bad / total <= high <= 1
    exact_high = beta.ppf(0.95, bad + 1, total - bad) if bad < total else 1.0
    exact_low = beta.ppf(0.05, bad, total - bad + 1) if bad else 0.0
    assert high >= exact_high - 1e-9
    assert low <= exact_low + 1e-9
    assert high - low < 3 * (exact_high - exact_low) + 1e-9, "and not much wider"


def test_no_requests_say_nothing() -> None:
    assert bounds(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("came", "verdict"),
    [
        (outcome(fast=5000), KEPT),
        (outcome(fast=500), NOT_KNOWN),  # 500 without a failure do not show 99.9 %
        (outcome(fast=5000, slow=20), KEPT),
        (outcome(fast=5000, slow=200), BROKEN),
        (outcome(fast=5000, slow=50), NOT_KNOWN),
        (outcome(fast=5000, shed=100), BROKEN),
        (outcome(fast=5000, unanswered=100), BROKEN),
        (outcome(fast=5000, broken=100), BROKEN),
        (outcome(shed=5000), BROKEN),
        (outcome(unanswered=1), BROKEN),
    ],
)
def test_a_verdict_is_what_is_shown(came: Outcome, verdict: str) -> None:
    assert step_of(came, 100, SLO).verdict == verdict


def test_only_what_is_promised_is_judged() -> None:
    assert step_of(outcome(fast=5000, shed=5000), 100, Slo(latency=0.02)).verdict == KEPT
    assert step_of(outcome(fast=5000, slow=5000), 100, Slo(availability=0.99)).verdict == KEPT


def test_requests_that_are_wrong_say_nothing_about_a_promise() -> None:
    came = Outcome(seconds=1.0, statuses=Counter({400: 10}), sample=b'{"error":"unknown input"}')
    with pytest.raises(SettingsError, match=r"refuses the request itself.*unknown input"):
        step_of(came, 100, SLO)


def test_enough_requests_decide() -> None:
    for slo in (SLO, Slo(latency=0.02), Slo(availability=0.9999)):
        n = requests_wanted(slo)
        allowed = min(1 - target for target in slo.objectives().values())
        assert bounds(int(n * allowed / 2), n)[1] <= allowed * 1.001


# The search


class Queue:
    """A server that takes `service` seconds a request, one at a time, and sheds what would wait over `patience`."""

    def __init__(self, service: float, patience: float = math.inf, most: float = math.inf) -> None:
        self.service, self.patience, self.most = service, patience, most
        self.loads: list[tuple[float, int]] = []

    def measure(self, rate: float, least: int) -> Step:
        """Evenly spaced requests, in time that passes by itself; `most` is what the generator can make."""
        self.loads.append((rate, least))
        real = min(rate, self.most)
        count = max(2000, least)
        came, free = Outcome(seconds=count / real), 0.0
        for i in range(count):
            due = i / rate
            sent = max(due, i / real)
            start = max(sent, free)
            if start - sent > self.patience:
                came.statuses[429] += 1
                continue
            free = start + self.service
            came.statuses[200] += 1
            came.latencies.append(free - due)
        return step_of(came, rate, SLO)


@pytest.mark.parametrize("start", [1, 100, 900, 5000, 100_000])
@pytest.mark.parametrize("patience", [math.inf, 0.01])
def test_the_highest_load_is_found_from_either_side(start: float, patience: float) -> None:
    queue = Queue(0.001, patience)
    found = search(queue.measure, SLO, start)
    assert found.highest is not None
    assert 1000 / CLOSE / CLOSE <= found.highest.rate <= 1010
    assert found.highest.verdict == KEPT
    assert found.broken is not None
    assert found.highest.rate < found.broken.rate <= found.highest.rate * CLOSE * 1.2
    assert queue.loads[-1][1] >= requests_wanted(SLO), "what is said to be kept was confirmed"
    assert len(found.steps) == len(queue.loads) < 30


def test_a_service_that_is_too_slow_for_anything_keeps_nothing() -> None:
    found = search(Queue(0.05).measure, SLO, 100)
    assert found.highest is None
    assert all(not step.seen_kept() for step in found.steps)


def test_what_the_generator_cannot_make_is_not_claimed() -> None:
    """A generator at its end charges the service for its own lateness, so the limit found is its own."""
    found = search(Queue(0.0001, most=500).measure, SLO, 100)
    assert found.highest is not None
    assert found.highest.rate <= 510


def test_what_cannot_be_confirmed_is_lowered() -> None:
    seen: list[float] = []

    def measure(rate: float, least: int) -> Step:
        """Short steps look well up to 1,000/s; long ones are bad above 800/s."""
        seen.append(rate)
        bad = rate > (800 if least else 1000)
        return step_of(outcome(fast=40_000, slow=4000 if bad else 0), rate, SLO)

    found = search(measure, SLO, 100)
    assert found.highest is not None
    assert 800 * 0.85 * 0.85 <= found.highest.rate <= 800


def test_a_machine_that_is_busy_otherwise_is_noticed() -> None:
    def step(rate: float, bad: bool) -> Step:
        return step_of(outcome(fast=20_000, slow=5000 if bad else 0), rate, SLO)

    calm = Found(steps=(step(100, False), step(200, False), step(400, True)), highest=step(200, False), broken=None)
    assert calm.steady()
    assert not calm.beside(step(150, True)).steady()
    assert calm.beside(step(150, False)).highest == calm.highest
    kept = Found(steps=(), highest=None, broken=None).beside(step(50, False))
    assert kept.highest is not None, "what was shown before the search holds"
    assert Found(steps=(), highest=None, broken=None).beside(step(50, True)).highest is None


def test_noise_lowers_what_is_found_and_does_not_hide_it() -> None:
    """What looked well in short steps is broken in long ones, down to a third of it."""

    def measure(rate: float, least: int) -> Step:
        return step_of(outcome(fast=40_000, slow=4000 if rate > (300 if least else 1000) else 0), rate, SLO)

    found = search(measure, SLO, 100)
    assert found.highest is not None
    assert found.highest.rate <= 300


def test_a_search_that_is_never_confirmed_claims_nothing() -> None:
    def measure(rate: float, least: int) -> Step:
        return step_of(outcome(fast=100, slow=0 if rate < 1000 else 100), rate, SLO)

    found: Found = search(measure, SLO, 100)
    assert found.highest is None


# Replicas


@pytest.mark.parametrize(("load", "carry"), [(1, 1), (800, 1), (801, 2), (1600, 2), (8000, 10), (8001, 11)])
def test_replicas_carry_the_load_with_room_and_one_more_may_be_gone(load: float, carry: int) -> None:
    made = replicas_for(load, step_of(outcome(fast=1000), 1000, SLO))
    assert (made.carry, made.total) == (carry, carry + 1)
