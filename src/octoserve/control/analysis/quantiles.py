"""Quantiles of latency from histograms, alone and compared, at any number of looks.

A quantile x of level t is where at most 1 - t of all values lie above x, and at least 1 - t at or above it: a
statement about a rate, for which an e-process exists (`tilting`); what is not rejected is a confidence sequence,
as in Howard and Ramdas 2022 ("Sequential estimation of quantiles with applications to A/B testing and
best-arm identification"), with a betting mixture in place of their stitched bounds. Two quantiles are compared
without a union bound: the claim "q = r * q_base + s" is rejected if for every value x that q_base might have the two
statements, of the comparison at x and of the candidate at r x + s, are rejected together.

All of it is about values rounded down to their bucket (2 % wide): ratios are exact to about 2 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from octoserve.control.analysis.rates import Interval
from octoserve.control.analysis.tilting import Bools, Floats, Sample, log_e, tilts
from octoserve.core.evidence import seconds_of_bucket

_POINTS = 13
_ROUNDS = 4
_REACH = math.log(1e4)
"""Ratios further from the estimate than e to this are not looked for."""
_ROUNDING = 1e-9


class Histogram(NamedTuple):
    """Values in seconds, ascending, and for each how many there are of it or of greater ones; at the end of
    `above` a zero."""

    seconds: Floats
    above: Floats

    @classmethod
    def of(cls, buckets: Mapping[int, int]) -> Histogram:
        """From bucket -> count; raises ValueError for a negative count."""
        if any(count < 0 for count in buckets.values()):
            raise ValueError("a histogram has a negative count")
        held = sorted((bucket, count) for bucket, count in buckets.items() if count)
        seconds = np.array([seconds_of_bucket(bucket) for bucket, _ in held], dtype=np.float64)
        counts = np.array([0, *(count for _, count in reversed(held))], dtype=np.float64)
        return cls(seconds, counts.cumsum()[::-1])

    @property
    def n(self) -> float:
        """How many values."""
        return float(self.above[0])

    def over(self, at: Floats) -> Floats:
        """How many are greater than `at`."""
        return self.above[np.searchsorted(self.seconds, at * (1 + _ROUNDING), side="right")]

    def from_(self, at: Floats) -> Floats:
        """How many are `at` or greater."""
        return self.above[np.searchsorted(self.seconds, at * (1 - _ROUNDING), side="left")]

    def quantile(self, level: float) -> float:
        """The least value with a share of `level` at or under it; NaN of none."""
        if not self.n:
            return math.nan
        enough = self.n - self.above[1:] >= level * self.n * (1 - 1e-12)
        return float(self.seconds[int(np.argmax(enough))])


def quantile_bounds(buckets: Mapping[int, int], level: float, *, alpha: float) -> Interval:
    """One quantile, in seconds; each bound holds at all looks with probability 1 - alpha; 0 and inf where unknown."""
    values = Histogram.of(buckets)
    _check(level)
    none, tail = np.zeros(1), 1 - level
    threshold = math.log(1 / alpha)
    over, reached = values.over(values.seconds), values.from_(values.seconds)
    n = np.array([values.n])
    low = log_e(tilts(0.0, True), Sample(n, over, none, none), tail, tail) >= threshold
    high = log_e(tilts(0.0, False), Sample(n, reached, none, none), tail, tail) >= threshold
    # A value of which it is rejected that so many lie above it is less than the quantile, which is then the next.
    least = values.seconds[int(low.sum())] if low.any() and int(low.sum()) < len(low) else 0.0
    most = values.seconds[int((~high).sum()) - 1] if high.any() and not high.all() else math.inf
    return Interval(values.quantile(level), float(least), float(most))


def compare_quantiles(
    candidate: Mapping[int, int],
    base: Mapping[int, int],
    level: float,
    *,
    seconds: float = 0.0,
    alpha: float,
    alpha_high: float | None = None,
    share: float = 0.5,
    margin: float | None = None,
) -> Interval:
    """r in q = r * q_base + seconds, with q and q_base the quantiles of `level`; without `seconds` their ratio.

    margin: if given, ends are worked out only if one of them has passed it; else they are 0 and inf
    An end is 0, or inf, where nothing is known; the estimate is NaN if one of the histograms is empty, and 0 where
    `seconds` alone are more than the candidate takes.
    """
    _check(level)
    own, other = Histogram.of(candidate), Histogram.of(base)
    if not own.n or not other.n:
        return Interval(math.nan, 0.0, math.inf)
    estimate = max((own.quantile(level) - seconds) / other.quantile(level), 0.0)
    middle = max(estimate, 1e-6)
    pair = _Pair(own, other, 1 - level, seconds, share)
    thresholds = math.log(1 / alpha), math.log(1 / (alpha_high or alpha))
    if margin is not None and not any(
        pair.rejects(worse, np.array([margin]), threshold)[0]
        for worse, threshold in zip((True, False), thresholds, strict=True)
    ):
        return Interval(estimate, 0.0, math.inf)
    low = _edge(pair, True, thresholds[0], middle)
    high = _edge(pair, False, thresholds[1], middle)
    return Interval(estimate, min(low, estimate) if low else 0.0, high)


class _Pair(NamedTuple):
    own: Histogram
    other: Histogram
    tail: float
    seconds: float
    share: float

    def rejects(self, worse: bool, ratios: Floats, threshold: float) -> Bools:
        """Of each ratio, whether "the candidate's quantile is r times the other's plus `seconds`, at most" (at least,
        if not `worse`) is rejected for every value of the other's quantile.

        Between two values that were seen, what the counts say is weakest at one of them; outside of them all
        it is weakest at infinity, or at 0.
        """
        at = self.other.seconds
        thresholds = ratios[:, None] * at + self.seconds
        end = np.zeros((len(ratios), 1))
        if worse:
            own = np.concatenate([self.own.over(thresholds), end], axis=1)
            other = np.append(self.other.from_(at), 0.0)
        else:
            own = np.concatenate([self.own.from_(thresholds), end + self.own.n], axis=1)
            other = np.append(self.other.over(at), self.other.n)
        mix = tilts(self.share, worse)
        fixed = mix.weight - self.own.n * np.log1p(self.tail * mix.a) - self.other.n * np.log1p(self.tail * mix.b)
        terms = own[..., None] * mix.u + (other[:, None] * mix.v + fixed)
        top = terms.max(axis=-1)
        # The log of a sum is at least that of its largest term, and more by log(terms) at most: few are close.
        rejected: Bools = top.min(axis=1) >= threshold - math.log(len(mix.u))
        row, column = np.nonzero(rejected[:, None] & (top < threshold))
        close = top[row, column]
        value = close + np.log(np.exp(terms[row, column] - close[:, None]).sum(axis=1))
        rejected[row[value < threshold]] = False
        return rejected


def _edge(pair: _Pair, worse: bool, threshold: float, middle: float) -> float:
    """Where rejection begins on the way from `middle` down to 0 (up to infinity, if not `worse`), on its far side."""
    end = 0.0 if worse else math.inf
    sign = -1.0 if worse else 1.0
    start, stop = 0.0, _REACH
    for _ in range(_ROUNDS):
        steps = np.linspace(start, stop, _POINTS)
        kept = np.flatnonzero(~pair.rejects(worse, middle * np.exp(sign * steps), threshold))
        first = int(kept[-1]) + 1 if len(kept) else 0
        if first == len(steps):
            return end
        start, stop = float(steps[max(first - 1, 0)]), float(steps[first])
    return middle * math.exp(sign * stop)


def _check(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a quantile of level {level} is none")
