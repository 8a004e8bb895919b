"""Pairs of a shadow, spooled and stored, for tests of what keeps them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from octoserve.core.comparison import Deviation
from octoserve.core.tensors import Tensor
from octoserve.patterns.shadow.store import PairStore, Query
from octoserve.telemetry.pairs import Pair, RawTensor
from octoserve.telemetry.spool import Spool

NOON = 1795521600.0
"""2026-11-24T12:00:00Z"""
DAY = 86400.0


def tensor(name: str, values: Any, datatype: str | None = None) -> RawTensor:
    """As it lies in the spool."""
    return RawTensor.of(Tensor.of(name, np.asarray(values), datatype))


def pair(i: int = 0, **more: Any) -> Pair:
    """The i-th: a second later than the one before; every third one differs."""
    fields: dict[str, Any] = {
        "endpoint": "m",
        "rollout": "r1",
        "time": NOON + i,
        "stable_version": 1,
        "candidate_version": 2,
        "key": b"k%d" % i,
        "segments": {"country": "DE" if i % 2 else "FR"},
        "inputs": [tensor("x", np.array([[0.1, i]], np.float32))],
        "stable": [tensor("y", np.array([0.5], np.float32))],
        "candidate": [tensor("y", np.array([0.75], np.float32))],
        "differing": {"y": Deviation("0.5 became 0.75", 5.0, 1, (0,))} if i % 3 == 0 else {},
        "rows_differing": int(i % 3 == 0),
    }
    return Pair(**(fields | more))


def spooled(folder: Path, *groups: Iterable[Pair]) -> PairStore:
    """Each group in a whole segment of its own."""
    for group in groups:
        spool = Spool(folder / "spool", "w0")
        for one in group:
            assert spool.append(one)
        spool.close()
    return PairStore(folder)


def keys(pairs_store: PairStore, query: Query | None = None) -> Counter[str | None]:
    """How often each is stored."""
    return Counter(summary.key for summary in pairs_store.summaries(query))


class Killed(BaseException):
    """What no handler catches."""


GROUPS = ([pair(0), pair(1, rollout="r2"), pair(2, time=NOON + DAY)], [pair(3), pair(4)])
"""Of two days and two rollouts; of one."""
