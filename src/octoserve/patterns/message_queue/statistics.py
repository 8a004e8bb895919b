"""What a queue counts: messages by what became of them, attempts, sizes, times, and how far behind it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from octoserve.connectors.queues.protocol import Lag
from octoserve.core.clock import Clock
from octoserve.core.slo import BAD, FRESHNESS, GOOD
from octoserve.telemetry.families import Labels
from octoserve.telemetry.metrics import ROWS, SECONDS, Registry

STORED, REPEATED, RETRIED, DEAD = "stored", "repeated", "retried", "dead"
SCORED, FAILED = "scored", "failed"
_LATENCY = (*SECONDS, 60.0, 300.0, 900.0, 3600.0)


class _Fresh:
    """Messages that kept the queue's promise, and those that broke it."""

    def __init__(self, registry: Registry, model: str, seconds: float) -> None:
        self._seconds = seconds
        names = ("model", "objective")
        good = registry.counter(GOOD, "Messages that kept their queue's promise.", names)
        bad = registry.counter(BAD, "Messages that broke their queue's promise.", names)
        self.good, self.bad = good.counter(model, FRESHNESS), bad.counter(model, FRESHNESS)

    def stored(self, ages: Sequence[float]) -> None:
        """ages: seconds from publication to result."""
        late = sum(age > self._seconds for age in ages)
        self.bad.add(late)
        self.good.add(len(ages) - late)


class Statistics:
    """Of one worker."""

    def __init__(self, registry: Registry, model: str, wall: Clock, freshness: float | None = None) -> None:
        """freshness: seconds from publication to result that are promised; None: nothing is"""
        self._wall = wall
        self._fresh = _Fresh(registry, model, freshness) if freshness is not None else None
        self._lags: Sequence[Lag] = ()
        messages = registry.counter(
            "octoserve_queue_messages_total",
            "Messages by outcome: stored, repeated (its result was there), retried, dead.",
            ("model", "outcome"),
        )
        self.outcomes = {word: messages.counter(model, word) for word in (STORED, REPEATED, RETRIED, DEAD)}
        self._model = model
        self._versions = registry.counter(
            "octoserve_queue_version_messages_total",
            "Messages by the version that ran: scored (and stored, or found to be there), failed.",
            ("model", "version", "outcome"),
        )
        self.attempts = registry.counter(
            "octoserve_queue_attempts_total", "Messages that a run was begun for.", ("model",)
        ).counter(model)
        self.sink_retries = registry.counter(
            "octoserve_queue_sink_retries_total",
            "Waits for what was away: sink, source, ledger of attempts, dead-letter queue, schema registry, answers.",
            ("model",),
        ).counter(model)
        self.rows = registry.histogram(
            "octoserve_queue_batch_rows", "Messages in a micro-batch.", ("model",), ROWS
        ).histogram(model)
        self.batch_seconds = registry.histogram(
            "octoserve_queue_batch_seconds", "From a micro-batch's begin to its end.", ("model",)
        ).histogram(model)
        self.latency = registry.histogram(
            "octoserve_queue_latency_seconds",
            "From a message's publication to its result in the sink.",
            ("model",),
            _LATENCY,
        ).histogram(model)
        registry.gauge(
            "octoserve_queue_lag", "Messages that nobody has taken yet.", ("partition",), lambda: self._each("behind")
        )
        registry.gauge(
            "octoserve_queue_in_hand", "Messages taken and not done.", ("partition",), lambda: self._each("in_hand")
        )
        registry.gauge(
            "octoserve_queue_oldest_seconds", "Age of the oldest message that is not done.", ("partition",), self._ages
        )

    def stands(self, lags: Sequence[Lag]) -> None:
        """How far behind the queue is now."""
        self._lags = lags

    def stored(self, published: Sequence[float], repeated: int) -> None:
        """A micro-batch's results are in the sink."""
        now = self._wall()
        self.outcomes[STORED].add(len(published) - repeated)
        self.outcomes[REPEATED].add(repeated)
        ages = [max(0.0, now - at) for at in published]
        self.latency.observe_all(ages)
        self.latency.fold_if_due()
        if self._fresh is not None:
            self._fresh.stored(ages)

    def dead(self, count: int, unfit: int) -> None:
        """So many are dead letters. unfit: of them, those that could never have had a result."""
        self.outcomes[DEAD].add(count)
        if self._fresh is not None:
            self._fresh.bad.add(count - unfit)

    def scored_by(self, versions: NDArray[np.int64]) -> None:
        """Who scored the results that are in the sink."""
        for version, count in zip(*np.unique(versions, return_counts=True), strict=True):
            self._versions.counter(self._model, str(version), SCORED).add(int(count))

    def failed_by(self, version: int) -> None:
        """A message on which this version failed."""
        self._versions.counter(self._model, str(version), FAILED).add()

    def _each(self, field: str) -> dict[Labels, float]:
        return {(lag.partition,): float(getattr(lag, field)) for lag in self._lags}

    def _ages(self) -> dict[Labels, float]:
        now = self._wall()
        return {(lag.partition,): max(0.0, now - lag.oldest) if lag.oldest else 0.0 for lag in self._lags}
