"""The pure pick: plan and key -> version.

bucket = XXH64(seed || ":" || key), seed 0 of XXH64 itself, mod 10,000: UTF-8 seed, key bytes as they came.
Written down to the byte because other systems must assign the same key to the same version (Envoy does so
natively, see docs/decisions/0006-split.md); test vectors are in tests/unit/test_split.py. A request without a
key takes a random bucket.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import xxhash
from numpy.typing import NDArray

from octoserve.routing.plan import BUCKETS, Arm, RoutePlan

_hash = xxhash.xxh64_intdigest


def bucket_of(seed: str, key: bytes) -> int:
    """The bucket that owns `key` under `seed`, 0..BUCKETS-1."""
    bucket: int = _hash(seed.encode() + b":" + key) % BUCKETS
    return bucket


def buckets_of(seed: str, keys: Iterable[bytes]) -> NDArray[np.int64]:
    """`bucket_of` each key."""
    start = seed.encode() + b":"
    return np.fromiter((_hash(start + key) % BUCKETS for key in keys), dtype=np.int64)


def arm_of(plan: RoutePlan, bucket: int) -> Arm:
    """The arm that owns a bucket."""
    for arm in plan.arms:
        if arm.lo <= bucket < arm.hi:
            return arm
    raise AssertionError("a plan's arms cover every bucket")


def pick(plan: RoutePlan, key: bytes | None = None) -> int:
    """The version that answers."""
    if key is not None and plan.overrides:
        version = plan.overrides.get(key.decode("utf-8", "surrogateescape"))
        if version is not None:
            return version
    bucket = random.randrange(BUCKETS) if key is None else bucket_of(plan.seed, key)
    return arm_of(plan, bucket).version
