"""Times of changes: pushed, followed by all, superseded."""

from __future__ import annotations

from octoserve.patterns.online.supervisor.plan_times import KEPT, PlanTimes


def test_a_change_takes_until_the_last_worker_follows() -> None:
    times = PlanTimes()
    times.pushed(3, 10.0)
    times.followed(2, 10.1)
    assert times.quantiles()["changes"] == 0
    times.followed(3, 10.5)
    times.followed(3, 11.0)
    assert times.quantiles() == {"changes": 1, "p50": 0.5, "p99": 0.5}
    assert (sum(times.counts), times.total) == (1, 0.5)


def test_a_change_that_another_replaces_is_not_counted() -> None:
    times = PlanTimes()
    times.pushed(3, 10.0)
    times.pushed(4, 12.0)
    times.followed(3, 12.5)
    times.followed(4, 13.0)
    assert times.quantiles()["p50"] == 1.0


def test_quantiles_of_the_last_ones_and_a_histogram_of_all() -> None:
    times = PlanTimes()
    for i in range(KEPT + 100):
        times.pushed(i, 0.0)
        times.followed(i, 0.004 if i % 2 else 0.02)
    assert times.quantiles() == {"changes": KEPT, "p50": 0.02, "p99": 0.02}
    assert sum(times.counts) == KEPT + 100
