"""Counts what a rollout is judged by: per arm and segment, under one setting of shares (a stratum).

On the hot path counting is an addition a request and a list a run; histograms are made when somebody asks. Lives on
one event loop. `core.evidence` has the values that leave this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from octoserve.core.evidence import ALL, GROWTH, KEY_SAMPLE, SMALLEST, ArmEvidence, PairEvidence, Stratum

FRESH = 20
"""A fresh arm's first answers in each worker are left out of its latencies: caches are cold, branches untaken."""
FOLD_AT = 4096
MAX_SEGMENTS = 50
OTHER = "(other)"
"""Where segments beyond MAX_SEGMENTS are counted: a segment is the client's text, and memory is bounded."""

FAILURES = frozenset({"internal", "deadline", "queue_full", "deadline_unmeetable", "refused"})
"""Reasons (`core.errors`) for which a version answers. Others are the client's doing or everybody's."""


def buckets_of_seconds(seconds: Sequence[float]) -> tuple[list[int], list[int]]:
    """`bucket_of_seconds` of many, as buckets and how many fell into each."""
    scaled = np.log(np.maximum(seconds, SMALLEST) / SMALLEST) / GROWTH
    buckets, counts = np.unique(scaled.astype(np.int64), return_counts=True)
    return buckets.tolist(), counts.tolist()


class Counts:
    """One arm in one segment."""

    __slots__ = ("_folded", "_latencies", "assigned", "attempts", "failures")

    def __init__(self) -> None:
        self.assigned = 0
        self.attempts = 0
        self.failures = 0
        self._latencies: list[float] = []
        self._folded: dict[int, int] = {}

    def answered(self, seconds: Sequence[float], attempts: int) -> None:
        """Attempts came back with answers; `seconds` of those that are no longer fresh."""
        self.attempts += attempts
        self._latencies.extend(seconds)
        if len(self._latencies) >= FOLD_AT:
            self._fold()

    def failed(self) -> None:
        """An attempt did not."""
        self.attempts += 1
        self.failures += 1

    def _fold(self) -> None:
        folded = self._folded
        for bucket, count in zip(*buckets_of_seconds(self._latencies), strict=True):
            folded[bucket] = folded.get(bucket, 0) + count
        self._latencies.clear()

    def evidence(self) -> ArmEvidence:
        """As it stands."""
        self._fold()
        return ArmEvidence(
            assigned=self.assigned, attempts=self.attempts, failures=self.failures, latency=dict(self._folded)
        )


class PairCounts:
    """What became of mirrored requests in one segment. Fields as in `core.evidence.PairEvidence`."""

    def __init__(self) -> None:
        self.offered = 0
        self.dropped: dict[str, int] = {}
        self.sent = 0
        self.ok = 0
        self.error = 0
        self.timeout = 0
        self.compared = 0
        self.disagreed = 0
        self.outputs: dict[str, int] = {}
        self.noise_compared = 0
        self.noise_disagreed = 0

    def evidence(self) -> PairEvidence:
        """As it stands."""
        fields: dict[str, Any] = {name: dict(v) if isinstance(v, dict) else v for name, v in vars(self).items()}
        return PairEvidence(**fields)


class KeySample:
    """A bounded sample of distinct keys and the arm each went to, drawn by hash: the same keys in every worker.

    Kept are keys whose hash ends in `level` zero bits (after the part that the bucket is made of); when too many
    are, the level rises and half of them go. So it is always all keys of a share of the key space, whatever came
    how often (distinct sampling, Gibbons 2001), and samples of several workers are united at the highest level.
    """

    __slots__ = ("_keys", "level", "mask")

    def __init__(self) -> None:
        self._keys: dict[int, str] = {}
        self.level = 0
        self.mask = 0

    def add(self, place: int, role: str) -> None:
        """A key that the sample may want: `place & mask == 0` (the caller asks that, being on the hot path)."""
        self._keys[place] = role
        while len(self._keys) > KEY_SAMPLE:
            self.level += 1
            self.mask = (1 << self.level) - 1
            self._keys = {key: role for key, role in self._keys.items() if not key & self.mask}

    def keys(self) -> dict[int, str]:
        """Place -> role."""
        return dict(self._keys)


class Exposure:
    """One endpoint's counts in one stratum."""

    def __init__(self, endpoint: str, stratum: str, keyed: bool) -> None:
        self.endpoint = endpoint
        self.stratum = stratum
        self.arms: dict[str, dict[str, Counts]] = {}
        self.pairs: dict[str, PairCounts] = {ALL: PairCounts()}
        self.sample = KeySample() if keyed else None
        self._segments: set[str] = set()

    def counts(self, role: str, segment: str = ALL) -> Counts:
        """The counts of an arm in a segment, made on first use."""
        by_segment = self.arms.setdefault(role, {})
        counts = by_segment.get(segment)
        if counts is None:
            counts = by_segment[segment] = Counts()
        return counts

    def pair(self, segment: str) -> PairCounts:
        """The pairs' counts in a segment, made on first use."""
        counts = self.pairs.get(segment)
        if counts is None:
            counts = self.pairs[segment] = PairCounts()
        return counts

    def segment(self, name: str) -> str:
        """`name` if it is known or there is room, else OTHER."""
        if name in self._segments:
            return name
        if len(self._segments) >= MAX_SEGMENTS:
            return OTHER
        self._segments.add(name)
        return name

    def evidence(self) -> Stratum:
        """As it stands. Keys travel apart (`KeySample`), since those of several workers overlap."""
        arms = {role: {s: c.evidence() for s, c in segments.items()} for role, segments in self.arms.items()}
        pairs = {segment: counts.evidence() for segment, counts in self.pairs.items() if counts.offered}
        return Stratum(endpoint=self.endpoint, name=self.stratum, arms=arms, pairs=pairs)
