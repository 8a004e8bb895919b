"""Counts of a stratum: what is counted, bounded, folded and added up over workers."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.evidence import (
    ALL,
    KEY_SAMPLE,
    ArmEvidence,
    PairEvidence,
    Stratum,
    add,
    bucket_of_seconds,
    merge,
    seconds_of_bucket,
    unite,
)
from octoserve.dataplane.exposure import (
    MAX_SEGMENTS,
    OTHER,
    Counts,
    Exposure,
    KeySample,
    buckets_of_seconds,
)
from octoserve.routing.plan import BUCKETS

arms = st.builds(
    ArmEvidence,
    assigned=st.integers(0, 100),
    attempts=st.integers(0, 100),
    failures=st.integers(0, 100),
    latency=st.dictionaries(st.integers(0, 5), st.integers(1, 9), max_size=3),
)
pairs = st.builds(
    PairEvidence, offered=st.integers(0, 9), dropped=st.dictionaries(st.sampled_from("ab"), st.integers())
)
strata = st.builds(
    Stratum,
    endpoint=st.just("m"),
    name=st.just("s"),
    arms=st.dictionaries(st.sampled_from(["stable", "candidate"]), st.dictionaries(st.sampled_from(["", "a"]), arms)),
    pairs=st.dictionaries(st.sampled_from(["", "a"]), pairs),
    keys=st.none() | st.dictionaries(st.sampled_from(["stable", "candidate"]), st.integers(0, 9)),
)


@given(strata, strata, strata)
def test_evidence_adds_up_in_any_order(a: Stratum, b: Stratum, c: Stratum) -> None:
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, Stratum(endpoint="m", name="s")) == a


@given(arms)
def test_nothing_changes_nothing(a: ArmEvidence) -> None:
    assert add(a, ArmEvidence()) == a


@given(st.floats(1e-5, 1000))
def test_a_bucket_is_two_percent_wide(seconds: float) -> None:
    bucket = bucket_of_seconds(seconds)
    assert seconds_of_bucket(bucket) <= seconds * 1.000001
    assert seconds < seconds_of_bucket(bucket + 1) * 1.000001


def test_latencies_keep_their_quantiles_and_leave_the_fresh_ones_out() -> None:
    counts = Counts()
    took = np.random.default_rng(1).lognormal(-6, 1, 20_000)
    counts.answered([], 100)
    for start in range(100, len(took), 64):
        counts.answered(took[start : start + 64].tolist(), len(took[start : start + 64]))
    counts.failed()
    evidence = counts.evidence()
    assert (evidence.attempts, evidence.failures) == (20_001, 1)
    assert sum(evidence.latency.values()) == 19_900
    ordered = np.repeat(*zip(*sorted(evidence.latency.items()), strict=True))
    p99 = seconds_of_bucket(int(ordered[int(0.99 * len(ordered))]))
    assert abs(p99 / np.quantile(took[100:], 0.99) - 1) < 0.03


def test_segments_are_bounded() -> None:
    exposure = Exposure("m", "s", keyed=False)
    names = [exposure.segment(f"country={i}") for i in range(MAX_SEGMENTS + 5)]
    assert names[-5:] == [OTHER] * 5
    assert exposure.segment("country=3") == "country=3"


@given(st.lists(st.integers(0, 2**50), max_size=50), st.lists(st.integers(0, 2**50), max_size=50))
def test_keys_that_two_workers_saw_count_once(ours: list[int], theirs: list[int]) -> None:
    samples = []
    for keys in (ours, theirs):
        sample = KeySample()
        for key in keys:
            sample.add(key, "stable")
        samples.append((sample.level, sample.keys()))
    assert unite(samples).get("stable", 0) == len(set(ours) | set(theirs))


def test_the_sample_is_bounded_and_keeps_its_shares() -> None:
    random = np.random.default_rng(7)
    places = random.integers(0, 2**50, 60_000).tolist()
    sample = KeySample()
    for place in places:
        if not place & sample.mask:
            sample.add(place, "candidate" if place // 7 % 10 == 0 else "stable")
    assert len(sample.keys()) <= KEY_SAMPLE
    counted = unite([(sample.level, sample.keys()), (0, {8: "stable"})])
    share = counted["candidate"] / sum(counted.values())
    assert 0.07 < share < 0.13


def test_as_evidence() -> None:
    exposure = Exposure("m", "r/1", keyed=True)
    exposure.counts("candidate").assigned += 2
    exposure.counts("candidate", "country=DE").assigned += 1
    exposure.pair(ALL).offered += 1
    told = exposure.evidence()
    assert told.arms["candidate"]["country=DE"].assigned == 1
    assert told.pairs[ALL].offered == 1
    assert told.name == "r/1"
    assert BUCKETS == 10_000


@given(st.lists(st.floats(0, 100), max_size=50))
def test_many_at_once_fall_into_the_same_buckets(seconds: list[float]) -> None:
    buckets, counts = buckets_of_seconds(seconds)
    one_by_one = Counter(bucket_of_seconds(s) for s in seconds)
    total = Counter(dict(zip(buckets, counts, strict=True)))
    # One may differ by rounding at a bound; never by more than a bucket.
    assert sum(total.values()) == len(seconds)
    assert sum(abs(total[b] - one_by_one[b]) for b in total | one_by_one) <= 2 * len(seconds) * 0.1 + 2
