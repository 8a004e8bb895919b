"""Sample ratio: do the arms have the shares of traffic that they were to have?

The sequential multinomial test of Lindon and Malek 2022 ("Anytime-valid inference for multinomial count data"): the
ratio of a Dirichlet mixture, centred at the expected shares, to the expected shares is a martingale if these are
right. A mismatch means that requests were lost, repeated or misrouted in one arm only, so that no comparison of the
arms may be believed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

ALPHA = 0.001
"""Small: a mismatch is a defect of the plumbing, shows soon by far more than this, and stops all else."""

TOLERANCE = 0.02
"""Part of an arm's share. Counts of distinct keys are sketches, and testers' overrides come on top of the shares;
less than this distorts no comparison."""

_CONCENTRATION = 100.0
"""The mixture's, in requests: shares that are off by a few points of an even split are found soonest."""


def log_evidence(counts: Mapping[str, float], shares: Mapping[str, float]) -> float:
    """Log of the e-process against `shares` (positive, any total) from `counts` by arm; 0 for no counts.

    Arms without a share are left out. Raises ValueError for negative counts.
    """
    total = sum(shares.values())
    found = 0.0
    n = 0.0
    for arm, share in shares.items():
        if share <= 0:
            continue
        count = counts.get(arm, 0)
        if not 0 <= count < math.inf:
            raise ValueError(f"{count} is no count")
        part = share / total
        prior = _CONCENTRATION * part
        found += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(part)
        n += count
    return found + math.lgamma(_CONCENTRATION) - math.lgamma(_CONCENTRATION + n)


def furthest(counts: Mapping[str, float], shares: Mapping[str, float]) -> tuple[str, float, float]:
    """The arm that is furthest from its share, relative to it: its name, its share as it is, and as it should be."""
    arms = [arm for arm, share in shares.items() if share > 0]
    total, n = sum(shares[arm] for arm in arms), sum(counts.get(arm, 0) for arm in arms)
    seen = {arm: (counts.get(arm, 0) / n if n else 0.0, shares[arm] / total) for arm in arms}
    name = max(arms, key=lambda arm: abs(seen[arm][0] / seen[arm][1] - 1))
    return name, *seen[name]


def mismatch(counts: Mapping[str, float], shares: Mapping[str, float], alpha: float = ALPHA) -> bool:
    """Whether the shares are contradicted, and by enough to matter."""
    if sum(counts.get(arm, 0) for arm, share in shares.items() if share > 0) == 0:
        return False
    _, seen, expected = furthest(counts, shares)
    return abs(seen / expected - 1) > TOLERANCE and log_evidence(counts, shares) >= math.log(1 / alpha)
