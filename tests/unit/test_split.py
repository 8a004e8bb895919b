"""The sticky pick. The vectors are the specification: Envoy, Spark and devices must agree with them."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from octoserve.routing.plan import BUCKETS, Arm, RoutePlan, split_arms
from octoserve.routing.split import bucket_of, buckets_of, pick

VECTORS = [
    ("", b"", 1481),
    ("", b"a", 2316),
    ("seed", b"user-1", 6207),
    ("seed", b"user-2", 8403),
    ("seed2", b"user-1", 4151),
    ("2024-01-01/fraud", b"\x00\xff", 7823),
    ("é", b"\xd0\xba\xd0\xbb\xd1\x8e\xd1\x87", 5082),
    ("a", b":b", 5847),
    ("a:", b"b", 5847),
    ("s", b"x" * 1000, 7684),
]


@pytest.mark.parametrize(("seed", "key", "bucket"), VECTORS)
def test_vectors(seed: str, key: bytes, bucket: int) -> None:
    assert bucket_of(seed, key) == bucket


@given(st.text(max_size=10), st.binary(max_size=20))
def test_the_bucket_is_as_written_down(seed: str, key: bytes) -> None:
    digest = xxhash.xxh64(seed.encode("utf-8") + b":" + key, seed=0).digest()
    assert bucket_of(seed, key) == int.from_bytes(digest, "big") % 10_000


def plan(candidate: int, seed: str = "s") -> RoutePlan:
    return RoutePlan("m", 1, split_arms(1, 2, candidate, baseline=True), seed)


@given(st.binary(max_size=20), st.lists(st.integers(0, BUCKETS), min_size=2, max_size=6).map(sorted))
def test_who_saw_the_candidate_goes_on_seeing_it(key: bytes, shares: list[int]) -> None:
    seen = [pick(plan(share), key) for share in shares]
    assert seen == sorted(seen)


@given(st.binary(max_size=20), st.integers(0, BUCKETS))
def test_a_pick_depends_on_seed_and_key_alone(key: bytes, share: int) -> None:
    assert len({pick(plan(share), key) for _ in range(3)}) == 1
    assert pick(plan(0), key) == 1
    assert pick(plan(BUCKETS), key) == 2


@pytest.mark.parametrize("share", [100, 1000, 2500, 5000])
def test_shares_are_kept(share: int) -> None:
    keys = [b"user-%d" % i for i in range(20_000)]
    got = sum(pick(plan(share), key) == 2 for key in keys) / len(keys)
    want = share / BUCKETS
    assert abs(got - want) < 5 * (want * (1 - want) / len(keys)) ** 0.5


def test_another_seed_is_another_draw() -> None:
    keys = [b"user-%d" % i for i in range(10_000)]
    first = {key for key in keys if pick(plan(1000, "a"), key) == 2}
    second = {key for key in keys if pick(plan(1000, "b"), key) == 2}
    assert abs(len(first & second) / len(first) - 0.1) < 0.05


def test_without_a_key_shares_are_random() -> None:
    got = [pick(plan(5000)) for _ in range(2000)]
    assert 800 < got.count(2) < 1200


def test_an_arm_without_buckets_gets_nobody() -> None:
    three = RoutePlan("m", 1, (Arm(1, 0, 5000), Arm(9, 5000, 5000), Arm(2, 5000, BUCKETS)))
    assert {pick(three, b"%d" % i) for i in range(1000)} == {1, 2}


def test_many_keys_at_once_get_the_same_buckets() -> None:
    keys = [b"user-%d" % i for i in range(500)]
    assert buckets_of("s", keys).tolist() == [bucket_of("s", key) for key in keys]


def test_a_tester_sees_what_the_override_says_and_others_what_they_would() -> None:
    tested = msgspec.structs.replace(plan(0), overrides={"tester": 2})
    assert pick(tested, b"tester") == 2
    assert {pick(tested, b"%d" % i) for i in range(200)} == {1}
    assert pick(tested) == 1


def test_the_baseline_is_as_large_as_the_candidate_and_takes_nothing_from_it() -> None:
    arms = split_arms(1, 2, 1000, baseline=True)
    assert [(a.version, a.hi - a.lo, a.role) for a in arms] == [
        (2, 1000, "candidate"),
        (1, 1000, "baseline"),
        (1, 8000, "stable"),
    ]
    assert [a.role for a in split_arms(1, 2, 6000, baseline=True)] == ["candidate", "stable"]


def test_a_hundred_thousand_keys_as_the_weight_grows() -> None:
    """Shares within half a point at every step, nobody leaves the candidate, nobody is in two arms."""
    buckets = buckets_of("rollout-7", [b"user-%d" % i for i in range(100_000)])
    seen = np.zeros(len(buckets), dtype=bool)
    for share in (100, 500, 1000, 2500, 5000, BUCKETS):
        arms = split_arms(1, 2, share, baseline=True)
        inside = {arm.role: (buckets >= arm.lo) & (buckets < arm.hi) for arm in arms}
        assert sum(inside.values()).all()  # type: ignore[union-attr]
        assert sum(int(i.sum()) for i in inside.values()) == len(buckets)
        now = inside["candidate"]
        assert (now | ~seen).all(), f"somebody left at {share}"
        assert abs(now.mean() - share / BUCKETS) < 0.005
        seen = now
    assert seen.all()
