"""Drift as promised, by simulation: what chance alone gives, and what is found."""

from __future__ import annotations

import numpy as np

from octoserve.control.drift.profiling import Profiler
from octoserve.control.drift.report import MOVED_MUCH, MOVED_SOME, QUIET, level_of
from octoserve.core.bins import ColumnCounts
from octoserve.core.drift import by_chance, chance_limit, psi
from octoserve.core.signature import Signature, TensorSpec
from support.scale import scale

TIMES = scale(300, 5000)
N, M = 5000, 1000
SIGNATURE = Signature([TensorSpec("x", "FP64", (-1,))], [], True)


def measured(random: np.random.Generator, shift: float) -> tuple[float, float, float]:
    """PSI, its mean by chance, and its limit, of a profile and a window made anew."""
    profiler = Profiler(SIGNATURE)
    profiler.add([random.normal(0, 1, N)], [])
    (column,) = profiler.columns()
    live = ColumnCounts(column)
    live.add(random.normal(shift, 1, M))
    counts = live.counts.tolist()
    return (
        psi(column.counts, counts) or 0.0,
        by_chance(column.counts, counts) or 0.0,
        chance_limit(column.counts, counts) or 0.0,
    )


def test_without_drift_psi_is_what_chance_gives() -> None:
    found = np.array([measured(np.random.default_rng(seed), 0.0) for seed in range(TIMES)])
    means = found.mean(axis=0)
    assert abs(means[1] - 9 * (1 / N + 1 / M)) < 1e-9
    assert 0.85 < means[0] / means[1] < 1.15
    assert (found[:, 0] > found[:, 2]).mean() <= 0.01, "1 in 1000 is promised"
    assert all(level_of(value, limit) == QUIET for value, _, limit in found.tolist())


def test_a_shift_is_found() -> None:
    for shift, levels in ((0.5, {MOVED_SOME, MOVED_MUCH}), (1.0, {MOVED_MUCH})):
        found = [measured(np.random.default_rng(seed), shift) for seed in range(50)]
        assert {level_of(value, limit) for value, _, limit in found} <= levels
