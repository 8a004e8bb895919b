"""Rates: the interval's algebra, and the bounds that it keeps at every look."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octoserve.control.analysis.rates import compare_rates, rate_above, worse_than
from octoserve.control.analysis.tilting import Sample, log_e, rejects, tilts
from support.scale import scale

HUGE = 10**9


@st.composite
def arm(draw, least=0):
    n = draw(st.one_of(st.integers(least, 60), st.integers(least, 20_000), st.integers(least, HUGE)))
    return n, draw(st.one_of(st.just(0), st.just(n), st.integers(0, n)))


shares = st.one_of(st.just(0.5), st.floats(0, 1))
alphas = st.floats(1e-6, 0.3)


@given(arm(), arm(), alphas, shares)
@settings(max_examples=scale(50, 750), deadline=None)
def test_interval_holds_its_estimate_and_lies_in_the_range_of_differences(own, base, alpha, share):
    found = compare_rates(*own, *base, alpha=alpha, share=share)
    assert -1 <= found.low <= found.high <= 1
    if own[0] and base[0]:
        assert found.low <= found.estimate <= found.high
        assert found.estimate == own[1] / own[0] - base[1] / base[0]
    else:
        assert math.isnan(found.estimate)


@given(arm(1), arm(1), alphas, alphas, shares)
@settings(max_examples=scale(20, 300), deadline=None)
def test_smaller_alpha_gives_a_wider_interval(own, base, one, other, share):
    small, large = sorted((one, other))
    wide, narrow = (compare_rates(*own, *base, alpha=alpha, share=share) for alpha in (small, large))
    # An end is found to a few thousandths of its distance from the estimate.
    slack = 0.005 * (wide.high - wide.low)
    assert wide.low <= narrow.low + slack
    assert wide.high >= narrow.high - slack


@given(st.integers(1, 2_000), st.data())
@settings(max_examples=scale(20, 300), deadline=None)
def test_equal_arms_are_never_told_apart_however_much_there_is_of_them(n, data):
    k = data.draw(st.integers(0, n))
    for times in (1, 10, 1_000, 100_000):
        found = compare_rates(n * times, k * times, n * times, k * times, alpha=0.3)
        assert found.low <= 0 <= found.high
        assert found.low == pytest.approx(-found.high, abs=1e-9 + 0.02 * found.high)


def test_more_of_the_same_narrows_the_interval():
    widths = [
        (found.high - found.low)
        for times in (1, 3, 10, 100, 1_000, 10_000)
        for found in [compare_rates(100 * times, 3 * times, 900 * times, 18 * times, alpha=0.05, share=0.1)]
    ]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.002


@given(arm(), arm(), st.floats(-1, 1), alphas, shares)
@settings(max_examples=scale(26, 400), deadline=None)
def test_deciding_at_a_margin_is_the_interval_at_that_margin(own, base, margin, alpha, share):
    found = compare_rates(*own, *base, alpha=alpha, share=share)
    decided = bool(worse_than(*(np.array([float(x)]) for x in (*own, *base)), margin, alpha, share)[0])
    if found.low > margin:
        assert decided
    brief = compare_rates(*own, *base, alpha=alpha, share=share, margin=margin)
    assert brief == found or (brief.low, brief.high) == (-1, 1) or math.isnan(brief.estimate)
    if decided:
        assert (brief.low, brief.high) == (found.low, found.high)


@pytest.mark.parametrize("worse", [True, False])
@pytest.mark.parametrize(("n", "k", "base_n", "base_k"), [(500, 24, 4500, 22), (50, 0, 60, 9), (900, 450, 80, 20)])
@pytest.mark.parametrize("difference", [-0.2, 0.0, 0.01, 0.3])
def test_rejecting_is_exact(worse, n, k, base_n, base_k, difference):
    mix = tilts(0.1, worse)
    sample = Sample(*(np.array([float(x)]) for x in (n, k, base_n, base_k)))
    low, high = max(0.0, -difference), min(1.0, 1 - difference)
    for _ in range(12):  # the least of it, between neighbours of the least on a grid
        grid = np.linspace(low, high, 22)[1:-1]
        found = np.concatenate([log_e(mix, sample, np.array([q + difference]), np.array([q])) for q in grid])
        least, gap = int(found.argmin()), grid[1] - grid[0]
        low, high = grid[least] - gap, grid[least] + gap
    exact = float(found.min())
    assert rejects(mix, sample, difference, exact - 0.01)[0]
    assert not rejects(mix, sample, difference, exact + 0.01)[0]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("p", [0.003, 0.2, 0.97])
def test_each_outcome_is_a_fair_bet_and_a_losing_one_inside_the_null(share, p):
    """Mean 1 of the likelihood ratios, enumerated; which is what Ville's inequality rests on."""
    q, mix = 0.3, tilts(share, True)

    def mean(true_p, true_q):
        total = 0.0
        for own, base in itertools.product((0, 1), repeat=2):
            chance = (true_p if own else 1 - true_p) * (true_q if base else 1 - true_q)
            sample = Sample(*(np.array([float(x)]) for x in (1, own, 1, base)))
            total += chance * math.exp(float(log_e(mix, sample, np.array([p]), np.array([q]))[0]))
        return total

    assert mean(p, q) == pytest.approx(1)
    assert mean(p * 0.9, q) <= 1
    assert mean(p, q * 1.2) <= 1
    assert np.exp(mix.weight).sum() == pytest.approx(1)


@given(arm(), alphas)
@settings(max_examples=scale(33, 500), deadline=None)
def test_one_arm_against_none_that_fails(own, alpha):
    found = rate_above(*own, alpha=alpha)
    assert 0 <= found.low <= found.high <= 1
    assert math.isnan(found.estimate) if not own[0] else found.low <= found.estimate <= found.high


@pytest.mark.parametrize(
    "counts", [(1, 2, 5, 0), (-1, 0, 5, 0), (5, -1, 5, 0), (5, 1, 5, math.nan), (math.inf, 1, 5, 0)]
)
def test_what_is_no_count_is_refused(counts):
    with pytest.raises(ValueError, match="no counts"):
        compare_rates(*counts, alpha=0.05)


def test_many_looks_keep_alpha_at_the_worst_of_the_null():
    """A candidate that is exactly as bad as accepted: 400 rollouts of 60 looks."""
    rng = np.random.default_rng(5)
    n = rng.binomial(100, 0.3, (400, 60))
    base_n = 100 - n
    counts = (n, rng.binomial(n, 0.06), base_n, rng.binomial(base_n, 0.05))
    n, k, base_n, base_k = (np.cumsum(array, axis=1).astype(float) for array in counts)
    alarms = worse_than(n, k, base_n, base_k, 0.01, 0.05, 0.3).any(axis=1).mean()
    assert alarms <= 0.05 + 0.03
    assert worse_than(n, k, base_n, base_k, -0.03, 0.05, 0.3).any(axis=1).mean() > 0.5


def test_a_look_is_cheap():
    best = min(_seconds() for _ in range(20))
    assert best < 0.025  # 5 ms on an idle core; this runs on busy ones


def _seconds() -> float:
    start = time.thread_time()
    compare_rates(500, 5, 4500, 22, alpha=0.01, share=0.1)
    return time.thread_time() - start
