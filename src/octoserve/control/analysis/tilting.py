"""The e-process under rates and quantiles: two samples of yes/no outcomes against one pair of rates.

Fix rates (p, q) of the candidate and of its comparison. For a tilt (u, v) the likelihood ratio

    exp(u k + v m) / ((1 - p + p e^u)^n (1 - q + q e^v)^N)      k of n, and m of N, said yes

is a martingale of mean 1 in each new outcome, whichever arm it comes from, if (p, q) is true; with u >= 0 >= v
it is a supermartingale if the candidate is better, or the comparison worse, than that. So is a mixture of such
ratios with fixed weights. By Ville's inequality it ever exceeds 1/alpha with probability alpha at most, so
one may look at any time (Ramdas, Gruenwald, Vovk, Shafer 2023, "Game-theoretic statistics and safe anytime-valid
inference"). Which tilts are in the mixture is a matter of power alone, never of validity.

The tilts: for each total separation s (a step of the ladder, in log odds) the one that is closest to a null
that only fixes the difference of the rates, i.e. whose expected log is stationary along it. That is
the reverse information projection of Turner, Ly and Gruenwald 2024 ("Generic e-variables for exact
sequential k-sample tests that allow for optional stopping"), for small rates and the planned shares of the arms;
a nuisance rate then costs next to nothing, while a prior over both rates (universal inference) pays for it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_LADDER = (0.01, 0.06, 0.3, 0.85, 2.0, 4.0)
_WEIGHTS = (0.04, 0.05, 0.09, 0.62, 0.06, 0.04)
"""Most on a rate about 2.3 times what is accepted: the regression that must be found soonest. The others find
smaller ones with more data, and gross ones at once."""

_OTHER_SHARES = (0.1, 0.5, 0.9)
_OTHER_LADDER = (0.06, 0.3, 0.85, 2.0)
_OTHER_WEIGHT = 0.08 / 12
"""For arms whose shares are not as planned: a segment with a few heavy customers, a metric of another baseline."""

_ALONE = 4.0
_ALONE_WEIGHT = 0.01
"""Of one arm only, where the other one has next to nothing."""


_EXACT = 0.005
"""In units of the log."""


class Tilts(NamedTuple):
    """A mixture: tilts of the candidate (`u`) and of its comparison (`v`), log weights, and e^u - 1, e^v - 1."""

    u: Floats
    v: Floats
    weight: Floats
    a: Floats
    b: Floats


@lru_cache(maxsize=256)
def tilts(share: float, worse: bool) -> Tilts:
    """The mixture against "the candidate is no worse" (`worse`), or against "it is no better".

    share: of both arms' outcomes, how many are expected to be the candidate's, 0..1; it matters for power only
    """
    own, other = zip(*(_split(one, ladder, worse) for one, ladder in _couplings(share)), strict=True)
    sign = 1.0 if worse else -1.0
    u = sign * np.concatenate([*own, [_ALONE, 0.0]])
    v = -sign * np.concatenate([*other, [0.0, _ALONE]])
    others = len(_OTHER_SHARES) * len(_OTHER_LADDER)
    weight = np.array([*_WEIGHTS, *[_OTHER_WEIGHT] * others, _ALONE_WEIGHT, _ALONE_WEIGHT])
    return Tilts(u, v, np.log(weight / weight.sum()), np.expm1(u), np.expm1(v))


def _couplings(share: float) -> list[tuple[float, tuple[float, ...]]]:
    return [(min(max(share, 1e-4), 1 - 1e-4), _LADDER), *((other, _OTHER_LADDER) for other in _OTHER_SHARES)]


def _split(share: float, ladder: tuple[float, ...], worse: bool) -> tuple[Floats, Floats]:
    """Each separation in its two parts, candidate's and comparison's, so that the first-order condition holds:
    what the arms' rates move by, each weighed with its share and divided by its variance, is equal."""
    ratio, total = share / (1 - share), np.array(ladder)
    low, high = np.zeros_like(total), total.copy()
    for _ in range(60):
        own = (low + high) / 2
        if worse:
            beyond = ratio * np.expm1(own) > -np.expm1(own - total)
        else:
            beyond = -ratio * np.expm1(-own) > np.expm1(total - own)
        low, high = np.where(beyond, low, own), np.where(beyond, own, high)
    return low, total - low


class Sample(NamedTuple):
    """Counts of both arms: of `n` outcomes `k` said yes, of the comparison's `base_n` `base_k`. Any shapes that
    broadcast."""

    n: Floats
    k: Floats
    base_n: Floats
    base_k: Floats


class _Value(NamedTuple):
    """Log of the mixture along p = q + gap: its value, slope and curvature in q."""

    value: Floats
    slope: Floats
    curve: Floats


def log_e(mix: Tilts, sample: Sample, p: Floats | float, q: Floats | float) -> Floats:
    """The log of the e-process against the rates p (candidate) and q (comparison)."""
    n, k, base_n, base_k, p, q = (np.asarray(array, dtype=np.float64)[..., None] for array in (*sample, p, q))
    won = mix.u * k + mix.v * base_k + mix.weight
    terms = won - n * np.log1p(p * mix.a) - base_n * np.log1p(q * mix.b)
    top = terms.max(axis=-1)
    value: Floats = top + np.log(np.exp(terms - top[..., None]).sum(axis=-1))
    return value


def both(one: Tilts, other: Tilts) -> Tilts:
    """Two mixtures, for the two rows of an array."""
    return Tilts(*(np.stack(pair)[:, None] for pair in zip(one, other, strict=True)))


def rejects(mix: Tilts, sample: Sample, difference: Floats | float, threshold: Floats | float) -> Bools:
    """Whether `log_e` is `threshold` at least for every pair of rates with p - q = difference, element by element.

    mix: one mixture for all elements, or with more axes before the last, which are theirs

    The log of the mixture is convex in the rates: Newton's method in a bracket finds its least value, and the slope
    times what is left of the bracket bounds it from below. Most are settled after a step or two, before they are
    exact. What is nearer to the threshold than `_EXACT`, or not settled after 100 steps, is not rejected.
    """
    arrays = np.broadcast_arrays(*sample, difference, threshold)
    n, k, base_n, base_k, gap, wanted = (np.asarray(array, dtype=np.float64).ravel() for array in arrays)
    if own_mix := mix.u.ndim > 1:
        full = (*arrays[0].shape, mix.u.shape[-1])
        mix = Tilts(*(np.broadcast_to(array, full).reshape(-1, full[-1]) for array in mix))
    low, high = np.maximum(0.0, -gap), np.minimum(1.0, 1.0 - gap)
    at = np.clip((k + base_k - gap * n) / np.maximum(n + base_n, 1.0), low, high)
    state = np.stack([n, k, base_n, base_k, gap, wanted, low, high, at])
    rejected, open_ones = np.zeros(len(n), dtype=bool), np.arange(len(n))
    for _ in range(100):
        n, k, base_n, base_k, gap, wanted, low, high, at = state
        found = _along(mix, Sample(n, k, base_n, base_k), gap, at)
        least = found.value - np.maximum(found.slope * (at - low), found.slope * (at - high))
        beyond = least >= wanted
        rejected[open_ones[beyond]] = True
        going = ~beyond & (found.value >= wanted) & (found.value - least > _EXACT)
        if not going.any():
            break
        low, high = np.where(found.slope > 0, low, at), np.where(found.slope > 0, at, high)
        # Each step goes a little too far, so that the bracket closes from both sides.
        step = at - 1.01 * found.slope / np.maximum(found.curve, 1e-300)
        at = np.where((step > low) & (step < high), step, (low + high) / 2)
        state = np.stack([n, k, base_n, base_k, gap, wanted, low, high, at])[:, going]
        open_ones = open_ones[going]
        mix = Tilts(*(array[going] for array in mix)) if own_mix else mix
    return rejected.reshape(arrays[0].shape)


def _along(mix: Tilts, sample: Sample, gap: Floats, at: Floats) -> _Value:
    n, k, base_n, base_k = (counts[:, None] for counts in sample)
    p, q = (at + gap)[:, None] * mix.a, at[:, None] * mix.b
    terms = mix.u * k + mix.v * base_k + mix.weight - n * np.log1p(p) - base_n * np.log1p(q)
    top = terms.max(axis=1)
    parts = np.exp(terms - top[:, None])
    mass = parts.sum(axis=1)
    parts /= mass[:, None]
    own, base = mix.a / (1 + p), mix.b / (1 + q)
    slopes = -n * own - base_n * base
    slope = (parts * slopes).sum(axis=1)
    curve = (parts * (slopes**2 + n * own**2 + base_n * base**2)).sum(axis=1) - slope**2
    return _Value(top + np.log(mass), slope, curve)
