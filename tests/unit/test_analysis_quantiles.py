"""Quantiles from histograms, means from sums, and the sample ratio."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octoserve.control.analysis import ratio
from octoserve.control.analysis.means import compare_means, spread
from octoserve.control.analysis.quantiles import Histogram, compare_quantiles, quantile_bounds
from octoserve.control.analysis.reading import ArmSums
from octoserve.core.evidence import bucket_of_seconds, seconds_of_bucket
from support.scale import scale

histograms = st.dictionaries(st.integers(0, 900), st.one_of(st.integers(0, 500), st.integers(0, 10**9)), max_size=12)
levels = st.sampled_from([0.5, 0.9, 0.99, 0.999])


def lognormal(rng, n, median=0.02, sigma=0.5):
    buckets = [bucket_of_seconds(x) for x in median * np.exp(sigma * rng.standard_normal(n))]
    return dict(zip(*(array.tolist() for array in np.unique(buckets, return_counts=True)), strict=True))


@given(histograms, histograms, levels, st.sampled_from([0.0, 0.005, 1e6]))
@settings(max_examples=scale(30, 500), deadline=None)
def test_ratio_interval_holds_its_estimate(own, base, level, seconds):
    found = compare_quantiles(own, base, level, seconds=seconds, alpha=0.05)
    if sum(own.values()) and sum(base.values()):
        assert 0 <= found.low <= found.estimate <= found.high
    else:
        assert math.isnan(found.estimate)
        assert (found.low, found.high) == (0, math.inf)


@given(histograms, levels)
@settings(max_examples=scale(30, 500), deadline=None)
def test_quantile_is_that_of_the_values(buckets, level):
    values = np.repeat([seconds_of_bucket(b) for b in buckets], [min(c, 50) for c in buckets.values()])
    small = {bucket: min(count, 50) for bucket, count in buckets.items()}
    found = quantile_bounds(small, level, alpha=0.05)
    if not len(values):
        assert math.isnan(found.estimate)
        return
    assert found.estimate == pytest.approx(np.quantile(values, level, method="inverted_cdf"))
    assert found.low <= found.estimate <= found.high


@given(histograms, levels, st.floats(1e-5, 0.3), st.floats(1e-5, 0.3))
@settings(max_examples=scale(20, 300), deadline=None)
def test_smaller_alpha_gives_a_wider_interval(buckets, level, one, other):
    small, large = sorted((one, other))
    wide, narrow = (compare_quantiles(buckets, buckets, level, alpha=alpha) for alpha in (small, large))
    assert wide.low <= narrow.low * 1.01
    assert wide.high >= narrow.high * 0.99
    assert wide.low <= 1 <= wide.high or not sum(buckets.values())


def test_a_slower_tail_is_found_and_an_equal_one_is_not():
    rng = np.random.default_rng(2)
    base = lognormal(rng, 5_000)
    same = compare_quantiles(lognormal(rng, 5_000), base, 0.99, alpha=0.01)
    twice = compare_quantiles(lognormal(rng, 5_000, median=0.04), base, 0.99, alpha=0.01)
    assert same.low < 1.25
    assert 0.8 < same.low < 1 < same.high < 1.3
    assert 1.5 < twice.low < 2 < twice.high < 2.6


def test_seconds_are_taken_off():
    rng = np.random.default_rng(2)
    base, slower = lognormal(rng, 3_000, 0.001), lognormal(rng, 3_000, 0.002)
    without = compare_quantiles(slower, base, 0.9, alpha=0.01)
    allowed = compare_quantiles(slower, base, 0.9, seconds=0.002, alpha=0.01)
    assert without.low > 1.25
    assert allowed.high < 1.25
    assert allowed.estimate == pytest.approx(without.estimate * 1 - 0.002 / Histogram.of(base).quantile(0.9))


def test_a_quantile_stays_in_its_bounds_at_all_looks():
    """300 streams of 30 looks; the true p90 of a lognormal, rounded to its bucket."""
    rng, missed = np.random.default_rng(8), 0
    true = seconds_of_bucket(bucket_of_seconds(0.02 * math.exp(0.5 * NormalDist().inv_cdf(0.9))))
    for _ in range(scale(60, 600)):
        total: dict[int, int] = {}
        out = False
        for _ in range(30):
            for bucket, count in lognormal(rng, 40).items():
                total[bucket] = total.get(bucket, 0) + count
            found = quantile_bounds(total, 0.9, alpha=0.05)
            out |= not found.low <= true * (1 + 1e-9) <= found.high * (1 + 2e-9)
        missed += out
    assert missed / scale(60, 600) <= 0.10


def test_histograms_refuse_what_is_no_count():
    with pytest.raises(ValueError, match="negative"):
        compare_quantiles({3: -1}, {3: 1}, 0.9, alpha=0.05)
    with pytest.raises(ValueError, match="level"):
        quantile_bounds({3: 1}, 1.0, alpha=0.05)


# Means.


def sums(values):
    return ArmSums(n=len(values), total=float(np.sum(values)), squares=float(np.sum(np.square(values))))


def test_spread_is_the_variance():
    values = np.random.default_rng(1).normal(50, 3, 1_000)
    assert spread(sums(values)) == pytest.approx(np.var(values, ddof=1))
    assert spread(sums(np.full(1_000, 1e6 + 0.1))) == 0
    with pytest.raises(ValueError, match="squares"):
        spread(ArmSums(n=10, total=100, squares=900))


def test_means_are_covered_at_all_looks():
    rng, streams = np.random.default_rng(3), scale(150, 2_000)
    own, base = rng.exponential(10, (streams, 60, 30)), rng.exponential(10, (streams, 60, 30))
    missed = 0
    for a, b in zip(own, base, strict=True):
        ends = [compare_means(sums(a[:i].ravel()), sums(b[:i].ravel()), alpha=0.025) for i in range(4, 61, 4)]
        missed += any(not end.low <= 0 <= end.high for end in ends)
    assert missed / streams <= 0.05
    shifted = compare_means(sums(own[0].ravel() + 5), sums(base[0].ravel()), alpha=0.025)
    assert 2 < shifted.low < 5 < shifted.high < 8


def test_means_without_variance_or_samples_say_nothing():
    some, constant = ArmSums(n=100, total=500, squares=3_000), ArmSums(n=100, total=0, squares=0)
    assert compare_means(constant, constant, alpha=0.05).high == math.inf
    assert math.isnan(compare_means(some, ArmSums(), alpha=0.05).estimate)
    broken = compare_means(constant, some, alpha=0.05)
    assert broken.high < 0


@given(st.floats(1e-6, 0.4), st.floats(1e-6, 0.4))
def test_means_are_monotone_in_alpha(one, other):
    a, b = ArmSums(n=100, total=500, squares=3_000), ArmSums(n=900, total=4_000, squares=20_000)
    wide, narrow = (compare_means(a, b, alpha=alpha) for alpha in sorted((one, other)))
    assert wide.low <= narrow.low <= narrow.estimate <= narrow.high <= wide.high


# The sample ratio.

SHARES = {"candidate": 1_000, "baseline": 1_000, "stable": 8_000}


def test_sample_ratio_keeps_alpha_and_finds_a_loss():
    rng, streams = np.random.default_rng(4), scale(300, 2_000)
    rows = rng.multinomial(100, [0.1, 0.1, 0.8], (streams, 60)).cumsum(axis=1)
    right = [[ratio.log_evidence(dict(zip(SHARES, row, strict=True)), SHARES) for row in one] for one in rows.tolist()]
    assert np.mean(np.max(right, axis=1) >= math.log(20)) <= 0.05
    # A tenth of the candidate's requests are lost.
    assert ratio.mismatch({"candidate": 9_000, "baseline": 10_000, "stable": 80_000}, SHARES)
    assert not ratio.mismatch({"candidate": 10_050, "baseline": 9_950, "stable": 80_000}, SHARES)


def test_sample_ratio_of_nothing_and_of_arms_without_a_share():
    assert not ratio.mismatch({}, SHARES)
    assert not ratio.mismatch({"candidate": 10**9}, {"candidate": 0, "stable": 10_000})
    assert ratio.mismatch({"candidate": 0, "baseline": 10**9, "stable": 8 * 10**9}, SHARES)


def test_sample_ratio_matches_the_dirichlet_multinomial():
    """By its definition, Polya's urn: what was drawn is put back with one more of its kind."""
    counts = {"candidate": 13, "baseline": 8, "stable": 79}
    urn, shares, evidence = [10.0, 10.0, 80.0], [0.1, 0.1, 0.8], 0.0
    for kind, count in enumerate(counts.values()):
        for _ in range(count):
            evidence += math.log(urn[kind] / sum(urn) / shares[kind])
            urn[kind] += 1
    assert ratio.log_evidence(counts, SHARES) == pytest.approx(evidence)


@given(st.dictionaries(st.sampled_from(list(SHARES)), st.integers(0, 10**9)))
def test_sample_ratio_of_any_counts(counts):
    assert isinstance(ratio.mismatch(counts, SHARES), bool)
