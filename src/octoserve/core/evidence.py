"""Sufficient statistics of a rollout: what the data plane counts and the control plane judges.

Values that only add up: `merge` is commutative and associative, so evidence of workers, and of workers that
are gone, is one sum whatever the order. Never summed over strata: a stratum is one setting of the shares
(pooling over shares would let Simpson's paradox in).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

STABLE, BASELINE, CANDIDATE = "stable", "baseline", "candidate"
"""Roles of arms. The baseline is the stable version on equal footing: as much traffic as the
candidate, counted apart."""

KEY_SAMPLE = 2048
"""Distinct keys that a sample for the sample-ratio check keeps at most."""

ALL = ""
"""The segment that every request is in."""

GROWTH = math.log(1.02)
"""Of the bounds of latency buckets, as a logarithm."""
SMALLEST = 1e-6
"""Seconds at bucket 0; bucket b holds SMALLEST * 1.02**b <= seconds < SMALLEST * 1.02**(b + 1)."""


def bucket_of_seconds(seconds: float) -> int:
    """The bucket of a duration: 2 % wide, so a quantile read from buckets is within 2 %."""
    return 0 if seconds <= SMALLEST else int(math.log(seconds / SMALLEST) / GROWTH)


def seconds_of_bucket(bucket: int) -> float:
    """Lower edge of a bucket, in seconds."""
    return SMALLEST * math.exp(bucket * GROWTH)


class ArmEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """What one arm did in one stratum and one segment.

    assigned:  requests that the split gave to this arm
    attempts:  those that have an outcome for which the version answers (not: malformed, cancelled, shed)
    failures:  attempts that the version failed
    latency:   bucket (`bucket_of_seconds`) -> answered attempts; a fresh arm's first ones are left out
    """

    assigned: int = 0
    attempts: int = 0
    failures: int = 0
    latency: Mapping[int, int] = {}


class PairEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """What became of mirrored requests in one stratum and one segment.

    offered = sent + sum(dropped), sent = ok + error + timeout, to the last request.

    compared, disagreed: pairs (stable's answer, candidate's), and those that differ beyond tolerance
    outputs:             output name -> pairs in which that output differs beyond tolerance
    noise_compared, noise_disagreed: the same for the stable version against itself
    """

    offered: int = 0
    dropped: Mapping[str, int] = {}
    sent: int = 0
    ok: int = 0
    error: int = 0
    timeout: int = 0
    compared: int = 0
    disagreed: int = 0
    outputs: Mapping[str, int] = {}
    noise_compared: int = 0
    noise_disagreed: int = 0


class Stratum(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence of one endpoint under one setting of shares.

    name:  the route plan's `stratum`
    arms:  role -> segment -> counts; segment `ALL` has every request, others their own
    pairs: segment -> counts
    keys:  role -> distinct keys seen by it, for the sample-ratio check; None where requests carry no key
    """

    endpoint: str
    name: str
    arms: Mapping[str, Mapping[str, ArmEvidence]] = {}
    pairs: Mapping[str, PairEvidence] = {}
    keys: Mapping[str, int] | None = None


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker has seen of one endpoint's split.

    keys: level and members of its sample of distinct keys; None where requests carry no key
    cut:  why its breaker cut the candidate, "" if it did not
    seed: the rollout that this belongs to
    """

    evidence: Stratum
    seed: str
    cut: str = ""
    keys: tuple[int, dict[int, str]] | None = None


Counts = TypeVar("Counts", ArmEvidence, PairEvidence)


def add(a: Counts, b: Counts) -> Counts:
    """Field by field; mappings key by key."""
    fields: dict[str, Any] = {}
    for name in a.__struct_fields__:
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, Mapping):
            fields[name] = {key: x.get(key, 0) + y.get(key, 0) for key in x.keys() | y.keys()}
        else:
            fields[name] = x + y
    return type(a)(**fields)


def _add_segments(a: Mapping[str, Counts], b: Mapping[str, Counts]) -> dict[str, Counts]:
    merged = dict(a)
    for segment, counts in b.items():
        merged[segment] = add(merged[segment], counts) if segment in merged else counts
    return merged


def merge(a: Stratum, b: Stratum) -> Stratum:
    """The sum of two workers' evidence of one stratum. Raises ValueError for two different ones.

    `keys` add up as if no key had been seen by both: who can tell overlaps merges key sketches first.
    """
    if (a.endpoint, a.name) != (b.endpoint, b.name):
        raise ValueError(f"evidence of {b.endpoint} {b.name!r} does not add to that of {a.endpoint} {a.name!r}")
    arms = {role: _add_segments(a.arms.get(role, {}), b.arms.get(role, {})) for role in a.arms.keys() | b.arms.keys()}
    keys = a.keys if b.keys is None else b.keys
    if a.keys is not None and b.keys is not None:
        keys = {role: a.keys.get(role, 0) + b.keys.get(role, 0) for role in a.keys.keys() | b.keys.keys()}
    return Stratum(endpoint=a.endpoint, name=a.name, arms=arms, pairs=_add_segments(a.pairs, b.pairs), keys=keys)


def join_keys(samples: Iterable[tuple[int, dict[int, str]]]) -> tuple[int, dict[int, str]]:
    """Several samples of distinct keys as one of the same kind, no larger than one: see `exposure.KeySample`."""
    level, united = _united(samples)
    while len(united) > KEY_SAMPLE and level < 64:
        level += 1
        united = {key: role for key, role in united.items() if not key & ((1 << level) - 1)}
    return level, united


def _united(samples: Iterable[tuple[int, dict[int, str]]]) -> tuple[int, dict[int, str]]:
    """All of them at the highest level among them."""
    told = list(samples)
    level = max((level for level, _ in told), default=0)
    mask = (1 << level) - 1
    return level, {key: role for _, keys in told for key, role in keys.items() if not key & mask}


def seen_of(seed: str, endpoint: str, stratum: str, seen: Iterable[Seen]) -> Seen | None:
    """What several processes have seen of a rollout's current stratum, as if they were one; None if nothing."""
    told = [each for each in seen if each.seed == seed]
    cut = next((each.cut for each in told if each.cut), "")
    mine = [each for each in told if stratum and each.evidence.name == stratum]
    if not mine and not cut:
        return None
    total = Stratum(endpoint=endpoint, name=stratum)
    for one in mine:
        total = merge(total, one.evidence)
    keys = [each.keys for each in mine if each.keys is not None]
    return Seen(evidence=total, seed=seed, cut=cut, keys=join_keys(keys) if keys else None)


def unite(samples: Iterable[tuple[int, dict[int, str]]]) -> dict[str, int]:
    """Role -> distinct keys, over several workers' (level, keys), at the highest level among them."""
    _, united = _united(samples)
    return dict(Counter(united.values()))
