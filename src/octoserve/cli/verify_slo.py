"""Whether a load keeps a promise, up to which load, and how many replicas that makes: policy, without a socket.

A step is one load that was tried. Its verdict is KEPT or BROKEN where the share of bad requests is shown to be within,
or beyond, what may be bad, at 95 % confidence (the Chernoff bound of a binomial, which holds for any number of
requests); else NOT KNOWN. The search goes by the shares as seen, which is quick; what it finds is then confirmed by a
longer step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from octoserve.cli.load import Outcome
from octoserve.core.errors import SettingsError
from octoserve.core.slo import LATENCY, Slo

KEPT, BROKEN, NOT_KNOWN = "KEPT", "BROKEN", "NOT KNOWN"
CONFIDENCE = 0.95
CLOSE = 1.1
"""The search ends when what is kept and what is not are nearer than this ratio."""
HEADROOM = 0.8
"""Share of its highest load that a replica is planned for."""
MOST_STEPS = 24
_LATER = (408, 429)
_STEPS_DOWN = (1.0, 0.85, 0.85, 0.7, 0.7, 0.5, 0.5)
"""From try to try at a confirmation: by little first."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One objective in one step. Shares of 1; `low` and `high` bound what the true share is."""

    objective: str
    verdict: str
    requests: int
    bad: int
    low: float
    high: float
    allowed: float

    def seen_kept(self) -> bool:
        """Whether the share was within, as seen."""
        return self.requests > 0 and self.bad <= self.allowed * self.requests


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One load. Times in seconds."""

    rate: float
    seconds: float
    answered_a_second: float
    p50: float | None
    p99: float | None
    sender_late: float
    """By how much the load generator itself was late, for all but 1 % of the requests."""
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> str:
        """Of all objectives together."""
        verdicts = {part.verdict for part in self.parts}
        return next((word for word in (BROKEN, NOT_KNOWN) if word in verdicts), KEPT)

    def seen_kept(self) -> bool:
        """Whether every objective was kept, as seen."""
        return all(part.seen_kept() for part in self.parts)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a search came to."""

    steps: tuple[Step, ...]
    highest: Step | None
    """The highest load that was confirmed; None where none was."""
    broken: Step | None
    """The lowest load above it that was seen to break the promise; None where none did."""

    def steady(self) -> bool:
        """Whether no load was kept above one that was broken: else something besides the load decided."""
        broken = [step.rate for step in self.steps if step.verdict == BROKEN]
        kept = [step.rate for step in self.steps if step.verdict == KEPT]
        return not broken or not kept or max(kept) < min(broken)

    def beside(self, step: Step) -> Found:
        """The same with what was measured before the search."""
        top = self.highest
        better = step.verdict == KEPT and (top is None or top.rate < step.rate)
        return Found(steps=(step, *self.steps), highest=step if better else top, broken=self.broken)


Measure = Callable[[float, int], Step]
"""A load in requests a second, and how many requests to make at least -> what came of it."""


def step_of(outcome: Outcome, rate: float, slo: Slo) -> Step:
    """Judge one run. Raises SettingsError where the requests are wrong: that says nothing about a promise."""
    wrong = {status: n for status, n in outcome.statuses.items() if 400 <= status < 500 and status not in _LATER}
    if wrong:
        told = outcome.sample[:200].decode(errors="replace")
        raise SettingsError(f"the endpoint refuses the request itself: {wrong} ({told}); see --body, --model")
    latencies = sorted(outcome.latencies)
    answered = len(latencies)
    failed = sum(n for status, n in outcome.statuses.items() if status != 200) + outcome.broken + outcome.unanswered
    parts = []
    for objective, target in slo.objectives().items():
        bad, total = (failed, answered + failed)
        if objective == LATENCY:
            assert slo.latency is not None
            bad, total = sum(1 for latency in latencies if latency > slo.latency), answered
        parts.append(_part(objective, bad, total, 1 - target))
    lags = sorted(outcome.lags)
    return Step(
        rate=rate,
        seconds=outcome.seconds,
        answered_a_second=answered / outcome.seconds if outcome.seconds else 0.0,
        p50=outcome.percentile(0.5) if answered else None,
        p99=outcome.percentile(0.99) if answered else None,
        sender_late=lags[int(0.99 * len(lags))] if lags else 0.0,
        parts=tuple(parts),
    )


def _part(objective: str, bad: int, total: int, allowed: float) -> Part:
    low, high = bounds(bad, total)
    verdict = KEPT if high <= allowed else BROKEN if low > allowed else NOT_KNOWN
    if objective == LATENCY and not total:
        verdict = BROKEN  # nothing was answered at all
    return Part(objective=objective, verdict=verdict, requests=total, bad=bad, low=low, high=high, allowed=allowed)


def bounds(bad: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Between what the share of bad ones lies, each side at this confidence."""
    if not total:
        return 0.0, 1.0
    seen, most = bad / total, math.log(1 / (1 - confidence)) / total
    return _where(seen, 0.0, most), _where(seen, 1.0, most)


def _where(seen: float, end: float, most: float) -> float:
    """Towards `end`, the share from which `seen` is as far away as chance allows."""
    near, far = seen, end
    for _ in range(60):
        middle = (near + far) / 2
        near, far = (middle, far) if _distance(seen, middle) <= most else (near, middle)
    return far


def _distance(seen: float, share: float) -> float:
    """Kullback-Leibler, of a coin that falls `seen` from one that falls `share`."""
    made = 0.0
    for p, q in ((seen, share), (1 - seen, 1 - share)):
        if p > 0:
            made += math.inf if q <= 0 else p * math.log(p / q)
    return made


def requests_wanted(slo: Slo) -> int:
    """Requests with which a promise can be shown that is broken half as often as it may be."""
    allowed = min(1 - target for target in slo.objectives().values())
    return math.ceil(math.log(1 / (1 - CONFIDENCE)) / _distance(allowed / 2, allowed))


def search(measure: Measure, slo: Slo, start: float, on_step: Callable[[Step], None] = lambda _: None) -> Found:
    """The highest load that keeps the promise: doubled or halved to both sides of it, halved between, confirmed."""
    steps: list[Step] = []

    def tried(rate: float, least: int = 0) -> Step:
        step = measure(rate, least)
        steps.append(step)
        on_step(step)
        return step

    kept, broken = _between(tried, start)
    rate = kept.rate if kept is not None else 0.0
    highest: Step | None = None
    for factor in _STEPS_DOWN if kept is not None else ():
        rate *= factor
        confirmed = tried(rate, requests_wanted(slo))
        if confirmed.verdict == KEPT:
            highest = confirmed
            break
        broken = confirmed if confirmed.verdict == BROKEN else broken
    return Found(steps=tuple(steps), highest=highest, broken=broken)


def _between(tried: Callable[[float], Step], start: float) -> tuple[Step | None, Step | None]:
    """The highest step that was seen to keep the promise, and the lowest that was not."""
    kept: Step | None = None
    broken: Step | None = None
    rate = start
    for _ in range(MOST_STEPS):
        step = tried(rate)
        if step.seen_kept():
            kept = step
        else:
            broken = step
        if kept is None:
            rate /= 2
            if rate < 1:
                break
        elif broken is None:
            if kept.answered_a_second < kept.rate / 2:  # the generator cannot make more
                break
            rate *= 2
        elif broken.rate / kept.rate <= CLOSE:
            break
        else:
            rate = math.sqrt(kept.rate * broken.rate)
    return kept, broken


class Replicas(msgspec.Struct, frozen=True, kw_only=True):
    """How many for a load: so many carry it, one more may be gone."""

    load: float
    carry: int
    total: int


def replicas_for(load: float, highest: Step) -> Replicas:
    """Replicas like the one that was measured, each planned for HEADROOM of what it can do."""
    carry = max(1, math.ceil(round(load / (HEADROOM * highest.rate), 9)))
    return Replicas(load=load, carry=carry, total=carry + 1)
