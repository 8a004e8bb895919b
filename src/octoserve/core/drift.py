"""How far two samples are apart, bin by bin. Plain Python: a process that only reports needs no numpy.

- PSI, the population stability index: sum of (p - q) ln(p / q), the symmetrised Kullback-Leibler divergence
  (Jeffreys 1946), as scorecards use it (Siddiqi, "Credit Risk Scorecards", 2006: under 0.1 little has moved, from
  0.25 on much). Half an observation is added to every bin that holds something in either sample, so that an empty bin
  costs no infinity (Jeffreys' prior); bins that are empty in both are no bins.
- JS, the Jensen-Shannon divergence in bits, from 0 to 1 (Lin, "Divergence measures based on the Shannon entropy", IEEE
  Transactions on Information Theory 37, 1991). It needs nothing added.
- Without drift PSI is not 0: of B bins and samples of n and m its mean is about (B - 1)(1/n + 1/m), since then
  PSI / (1/n + 1/m) is nearly chi-square with B - 1 degrees of freedom (Yurdakul, 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

SOME, MUCH = 0.1, 0.25
"""PSI."""
_ADDED = 0.5
_Z = 3.09
"""Of the normal distribution, 99.9 %."""


def psi(reference: Sequence[float], live: Sequence[float]) -> float | None:
    """Of counts; None where one of the samples has none."""
    bins = _bins(reference, live)
    n, m = sum(a for a, _ in bins), sum(b for _, b in bins)
    if not n or not m:
        return None
    n, m = n + _ADDED * len(bins), m + _ADDED * len(bins)
    return sum(((b + _ADDED) / m - (a + _ADDED) / n) * math.log((b + _ADDED) * n / (a + _ADDED) / m) for a, b in bins)


def js(reference: Sequence[float], live: Sequence[float]) -> float | None:
    """Of counts; None where one of the samples has none."""
    bins = _bins(reference, live)
    n, m = sum(a for a, _ in bins), sum(b for _, b in bins)
    if not n or not m:
        return None
    total = 0.0
    for a, b in bins:
        p, q = a / n, b / m
        total += _part(p, (p + q) / 2) / 2 + _part(q, (p + q) / 2) / 2
    return max(0.0, min(1.0, total))


def by_chance(reference: Sequence[float], live: Sequence[float]) -> float | None:
    """The mean of PSI if nothing has moved; None where one of the samples is empty."""
    bins = _bins(reference, live)
    n, m = sum(a for a, _ in bins), sum(b for _, b in bins)
    return (len(bins) - 1) * (1 / n + 1 / m) if n and m else None


def chance_limit(reference: Sequence[float], live: Sequence[float]) -> float | None:
    """What PSI stays below in 999 of 1000 looks if nothing has moved: chi-square's quantile, by Wilson and Hilferty."""
    mean = by_chance(reference, live)
    degrees = len(_bins(reference, live)) - 1
    if mean is None or degrees < 1:
        return mean
    spread = 2 / (9 * degrees)
    return mean * (1 - spread + _Z * math.sqrt(spread)) ** 3


def _bins(reference: Sequence[float], live: Sequence[float]) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(reference, live, strict=True) if a or b]


def _part(p: float, mean: float) -> float:
    return p * math.log2(p / mean) if p else 0.0
