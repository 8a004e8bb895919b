"""What came of each endpoint's promise, counted request by request: good and bad, an objective each.

The latency objective looks at answers alone, the availability objective at answers and at failures of ours. What is
the client's doing (`CLIENTS_DOING`) counts in neither, nor does what the process asks itself.
"""

from __future__ import annotations

import math

from octoserve.core.errors import CLIENTS_DOING
from octoserve.core.slo import AVAILABILITY, BAD, GOOD, LATENCY, Slo, Slos
from octoserve.telemetry.families import Family, Labels, Sample
from octoserve.telemetry.metrics import Histogram, Registry

INTERNAL = "internal"
"""The door of calls that come from inside the process."""


class EndpointSlo:
    """Counts of one endpoint. `observe_all` is the hot path: latencies of answers, in seconds, a bare list extend."""

    __slots__ = ("_answered", "_slo", "failures", "fold_if_due", "observe_all")

    def __init__(self, slo: Slo) -> None:
        self._slo = slo
        self._answered = Histogram((math.inf if slo.latency is None else slo.latency,))
        self.observe_all = self._answered.observe_all
        self.fold_if_due = self._answered.fold_if_due
        self.failures = 0

    def failed(self, door: str, reason: str) -> None:
        """Count a request that got no answer, if that was our doing."""
        if door != INTERNAL and reason not in CLIENTS_DOING:
            self.failures += 1

    def counts(self) -> dict[str, tuple[int, int]]:
        """Objective -> good and bad requests so far."""
        within, late = self._answered.sample(()).buckets
        all_of_them = {LATENCY: (within, late), AVAILABILITY: (within + late, self.failures)}
        return {objective: all_of_them[objective] for objective in self._slo.objectives()}


class SloCounts:
    """All endpoints of one process."""

    def __init__(self, registry: Registry, slos: Slos) -> None:
        self._slos = slos
        self._endpoints: dict[str, EndpointSlo | None] = {}
        if slos.any():
            registry.reading(lambda: self._family(GOOD, "Requests that kept their endpoint's promise.", 0))
            registry.reading(lambda: self._family(BAD, "Requests that broke their endpoint's promise.", 1))

    def of(self, model: str) -> EndpointSlo | None:
        """The counts of a model that exists; None where it promises nothing."""
        if model not in self._endpoints:
            slo = self._slos.of(model)
            self._endpoints[model] = None if slo is None else EndpointSlo(slo)
        return self._endpoints[model]

    def _family(self, name: str, help: str, place: int) -> Family:
        samples = []
        for model, endpoint in self._endpoints.items():
            if endpoint is not None:
                for objective, counts in endpoint.counts().items():
                    labels: Labels = (model, objective)
                    samples.append(Sample(labels, float(counts[place])))
        return Family(name, "counter", help, ("model", "objective"), (), tuple(samples))
