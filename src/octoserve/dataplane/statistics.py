"""What one version did, counted by batch: the source of metrics and of the statistics extension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from octoserve.core.admission import LEVELS
from octoserve.dataplane.slo import INTERNAL, EndpointSlo
from octoserve.telemetry.metrics import ROWS, Counter, Histogram, Metric, Registry

if TYPE_CHECKING:
    from octoserve.dataplane.call import Call

_MAX_SIZES = 1024
LET_IN, SHED = "in", "shed"


class Metrics:
    """The data plane's metric families; one a process."""

    def __init__(self, registry: Registry, levels: bool = False) -> None:
        """levels: whether requests have priorities"""
        version = ("model", "version")
        self.requests = registry.histogram(
            "octoserve_request_seconds",
            "From a decoded request to its encoded answer.",
            (*version, "door", "outcome"),
        )
        self.queue = registry.histogram("octoserve_queue_seconds", "From admission to the start of the run.", version)
        self.run = registry.histogram("octoserve_run_seconds", "One run of the model, whatever its rows.", version)
        self.rows = registry.histogram("octoserve_batch_rows", "Rows in one run of the model.", version, ROWS)
        self.inferences = registry.counter("octoserve_rows_total", "Rows answered.", version)
        self.levels: Metric | None = None
        if levels:
            self.levels = registry.counter(
                "octoserve_priority_requests_total",
                "Requests by priority, and whether there was room and time for them.",
                (*version, "priority", "outcome"),
            )


class VersionStatistics:
    """Series of one version, held so that the hot path looks nothing up. Durations in seconds."""

    def __init__(self, metrics: Metrics, model: str, version: int, slo: EndpointSlo | None = None) -> None:
        self._requests = metrics.requests
        self._levels = metrics.levels
        self._of_levels: dict[tuple[int, str], Counter] = {}
        self._labels = (model, str(version))
        self.queue = metrics.queue.histogram(*self._labels)
        self.run = metrics.run.histogram(*self._labels)
        self.rows = metrics.rows.histogram(*self._labels)
        self.inferences: Counter = metrics.inferences.counter(*self._labels)
        self._slo = slo
        self._ok: dict[str, Histogram] = {}
        self.successes = 0
        self.failures = 0
        self.executions = 0
        self.row_count = 0
        self.success_seconds = 0.0
        self.failure_seconds = 0.0
        self.queue_seconds = 0.0
        self.run_seconds = 0.0
        self.last_inference = 0.0
        self.hits = 0
        self.hit_seconds = 0.0
        self.batches: dict[int, list[float]] = {}
        """Rows of a run -> [runs, seconds]."""

    def ok(self, door: str) -> Histogram:
        """Latencies of answered requests of one door."""
        series = self._ok.get(door)
        if series is None:
            series = self._ok[door] = self._requests.histogram(*self._labels, door, "ok")
        return series

    def of_level(self, level: int, outcome: str) -> Counter:
        """How many requests of a priority were let in, or shed."""
        series = self._of_levels.get((level, outcome))
        if series is None:
            assert self._levels is not None
            series = self._of_levels[level, outcome] = self._levels.counter(*self._labels, LEVELS[level], outcome)
        return series

    def failed(self, door: str, reason: str, seconds: float) -> None:
        """Count a request that this version did not answer."""
        self.failures += 1
        self.failure_seconds += seconds
        if self._slo is not None:
            self._slo.failed(door, reason)
        series = self._requests.histogram(*self._labels, door, reason)
        series.observe(seconds)
        series.fold_if_due()

    def delivered(self, calls: Sequence[Call], start: float, end: float) -> list[float]:
        """Count answers of one run, which began at `start`; all had left at `end`. Gives the latency of each."""
        if not calls:
            return []
        latencies = [end - call.arrived for call in calls]
        waits = [start - call.arrived for call in calls]
        doors = {call.door for call in calls}
        for door in doors:
            of_door = latencies
            if len(doors) > 1:
                of_door = [took for took, call in zip(latencies, calls, strict=True) if call.door == door]
            self.ok(door).observe_all(of_door)
            if self._slo is not None and door != INTERNAL:
                self._slo.observe_all(of_door)
        self.success_seconds += sum(latencies)
        self.queue.observe_all(waits)
        self.queue_seconds += sum(waits)
        self.successes += len(calls)
        self.last_inference = end
        return latencies

    def hit(self, door: str, seconds: float) -> None:
        """Count an answer from the cache: a request that was answered, and nothing that was queued or run."""
        self.hits += 1
        self.hit_seconds += seconds
        self.successes += 1
        self.success_seconds += seconds
        series = self.ok(door)
        series.observe(seconds)
        series.fold_if_due()
        if self._slo is not None and door != INTERNAL:
            self._slo.observe_all((seconds,))
            self._slo.fold_if_due()

    def ran(self, rows: int, seconds: float, answered: int) -> None:
        """Count one run of the model; `answered` of its rows came out of it, the others failed."""
        self.executions += 1
        self.run_seconds += seconds
        self.row_count += answered
        self.inferences.value += answered
        self.run.observe(seconds)
        sizes = self.batches.get(rows)
        if sizes is not None:
            sizes[0] += 1
            sizes[1] += seconds
        elif len(self.batches) < _MAX_SIZES:
            self.batches[rows] = [1, seconds]
        self.rows.observe(rows)

    def fold_if_due(self) -> None:
        """Keep what waits to be folded bounded."""
        self.queue.fold_if_due()
        self.run.fold_if_due()
        self.rows.fold_if_due()
        for series in self._ok.values():
            series.fold_if_due()
        if self._slo is not None:
            self._slo.fold_if_due()
