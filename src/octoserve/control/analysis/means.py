"""Two means, compared at any number of looks: candidate minus comparison.

The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas ("Time-uniform central limit
theory and asymptotic confidence sequences"): the bound of Robbins' normal mixture, with the variance as estimated. It
is valid in the limit of many samples, as a z-test is: for values with a heavy tail (revenue) that needs thousands.
"""

from __future__ import annotations

import math

from octoserve.control.analysis.rates import Interval
from octoserve.control.analysis.reading import ArmSums

_PRIOR = 100.0
"""The mixture's weight, in samples of each arm: the interval is sharpest at about ten times as many (at alpha 0.01),
and does not depend on alpha otherwise, so that a smaller one always gives a wider interval."""

_CONSTANT = 1e-12
"""A variance of less than this part of the mean's square is rounding, not variance."""


def spread(sums: ArmSums) -> float:
    """The variance; 0 if it is not to be told from rounding. Raises ValueError for sums that no numbers have."""
    mean, square = sums.total / sums.n, sums.squares / sums.n
    variance = square - mean * mean
    if variance < -1e-6 * max(square, mean * mean):
        raise ValueError("the sum of squares is less than the sum allows")
    return 0.0 if variance <= _CONSTANT * mean * mean else variance * sums.n / max(sums.n - 1, 1)


def compare_means(candidate: ArmSums, base: ArmSums, *, alpha: float, alpha_high: float | None = None) -> Interval:
    """total / n - base's total / n. Without a sample in each arm, NaN, and an infinite interval.

    An arm that has not varied yet is taken to vary as the other does; where neither has, nothing bounds the
    means, and the interval is infinite.
    """
    if candidate.n < 1 or base.n < 1:
        return Interval(math.nan, -math.inf, math.inf)
    estimate = candidate.total / candidate.n - base.total / base.n
    own, other = spread(candidate), spread(base)
    own, other = own or other, other or own
    if not own:
        return Interval(estimate, -math.inf, math.inf)
    variance = own / candidate.n + other / base.n
    # How many samples in each arm would tell as much; the mixture's time.
    time = (own + other) / variance
    return Interval(
        estimate,
        estimate - _width(time, alpha) * math.sqrt(variance),
        estimate + _width(time, alpha_high or alpha) * math.sqrt(variance),
    )


def _width(time: float, alpha: float) -> float:
    """In standard errors, one-sided."""
    grown = time / _PRIOR
    return math.sqrt(2 * (1 + 1 / grown) * math.log1p(math.sqrt(grown + 1) / (2 * alpha)))
