"""Two rates of yes/no outcomes, compared at any number of looks: candidate minus comparison.

Three always-valid methods were tried by simulation: 0.5 % against 5 % failures at a tenth of the requests, margin
1 %, alpha 0.05 / 3, a look every 100 requests, found within 5,000 (12,000 runs of the first, 2,000 of the others):

    tilted pairs (`tilting`), in the manner of Turner and Gruenwald's safe tests     95.7 %
    universal inference: Jeffreys' mixture of both arms over the null's maximum
    likelihood (Wasserman, Ramdas, Balakrishnan 2020)                               56 %
    a Beta-binomial confidence sequence per arm (Howard et al. 2021), union bound    48 %

so the first is used. The test against a difference d is the least e-process over all pairs of rates that
differ by d; it falls as d grows, so that the differences that are not rejected are an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from octoserve.control.analysis.tilting import Bools, Floats, Sample, both, log_e, rejects, tilts

_POINTS = 24
_ROUNDS = 3


class Interval(NamedTuple):
    """An effect and its bounds. Each bound holds at all looks together with its own probability: the truth is ever
    under `low` with probability alpha at most, and ever over `high` with probability alpha_high at most."""

    estimate: float
    low: float
    high: float


def worse_than(
    n: Floats, failures: Floats, base_n: Floats, base_failures: Floats, margin: float, alpha: float, share: float = 0.5
) -> Bools:
    """Whether "rate - base rate <= margin" is rejected at alpha, element by element over arrays of counts."""
    return rejects(tilts(share, True), Sample(n, failures, base_n, base_failures), margin, math.log(1 / alpha))


def compare_rates(
    n: float,
    failures: float,
    base_n: float,
    base_failures: float,
    *,
    alpha: float,
    alpha_high: float | None = None,
    share: float = 0.5,
    margin: float | None = None,
) -> Interval:
    """failures / n - base_failures / base_n.

    margin: if given, ends are worked out only if one of them has passed it; else they are -1 and 1 (it saves most
            of the time where nobody looks at open intervals)
    share: the part of n + base_n that is expected to be n's; a wrong one costs power, never validity
    An arm without outcomes says nothing: its rate may be anything, and the estimate is NaN.
    """
    _check(n, failures)
    _check(base_n, base_failures)
    if not n or not base_n:
        estimate = math.nan
        middle = (failures / n if n else 0.5) - (base_failures / base_n if base_n else 0.5)
    else:
        estimate = middle = failures / n - base_failures / base_n
    sample = Sample(*(np.array([float(counts)]) for counts in (n, failures, base_n, base_failures)))

    mix, thresholds = both(tilts(share, True), tilts(share, False)), _thresholds(alpha, alpha_high)

    def rejected(differences: Floats) -> Bools:
        return rejects(mix, sample, differences, thresholds)

    if margin is not None and not rejected(np.full((2, 1), margin)).any():
        return Interval(estimate, -1.0, 1.0)
    return Interval(estimate, *_ends(rejected, middle, -1.0, 1.0))


def rate_above(n: float, failures: float, *, alpha: float, alpha_high: float | None = None) -> Interval:
    """failures / n against a comparison that never fails; NaN, 0, 1 without outcomes."""
    _check(n, failures)
    sample = Sample(*(np.array([float(counts)]) for counts in (n, failures, 0.0, 0.0)))
    middle = failures / n if n else 0.5

    mix, thresholds = both(tilts(0.0, True), tilts(0.0, False)), _thresholds(alpha, alpha_high)

    def rejected(rates: Floats) -> Bools:
        return log_e(mix, sample, rates, np.zeros_like(rates)) >= thresholds

    return Interval(failures / n if n else math.nan, *_ends(rejected, middle, 0.0, 1.0))


def _thresholds(alpha: float, alpha_high: float | None) -> Floats:
    """Of the two rows: against "no worse", and against "no better"."""
    return np.array([[math.log(1 / alpha)], [math.log(1 / (alpha_high or alpha))]])


def _check(n: float, failures: float) -> None:
    if not (0 <= failures <= n < math.inf):
        raise ValueError(f"{failures} failures of {n} are no counts")


def _ends(rejected: Callable[[Floats], Bools], middle: float, low: float, high: float) -> tuple[float, float]:
    """Where rejection begins on the ways from `middle` down to `low`, and up to `high`, on its far sides; they
    themselves where it never does. `rejected` takes and gives a row for each way.

    First by powers, since intervals are as small as 1e-6 and as large as 1, then evenly.
    """
    way = np.array([[low - middle], [high - middle]])
    parts, stop = np.tile(np.geomspace(1e-9, 1.0, _POINTS), (2, 1)), [1.0, 1.0]
    for _ in range(_ROUNDS):
        kept = ~rejected(middle + way * parts)
        for row in range(2):
            held = np.flatnonzero(kept[row])
            first = int(held[-1]) + 1 if len(held) else 0
            start = float(parts[row, first - 1]) if first else 0.0
            # Once the far side of a bracket is known to be rejected, it stays the last part of the next one.
            stop[row] = float(parts[row, first]) if first < _POINTS else math.inf
            parts[row] = np.linspace(start, min(stop[row], 1.0), _POINTS)
    ends = [middle + float(way[row, 0]) * stop[row] for row in range(2)]
    return ends[0] if stop[0] <= 1 else low, ends[1] if stop[1] <= 1 else high
