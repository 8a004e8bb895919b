"""Counters and histograms of one process, exact, with nothing computed on the hot path.

Observing is one `list.append`; values are folded into buckets when a thousand wait, or when somebody asks.
A `snapshot` is MessagePack: it crosses the control socket and is merged over workers by `prometheus`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from octoserve.telemetry.families import Family, Labels, Sample

FOLD_AT = 1024

SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class Histogram:
    """`observe` is the hot path: a bare append. Call `fold_if_due` now and then (once a batch)."""

    __slots__ = ("_bounds", "_counts", "_pending", "_total", "observe", "observe_all")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = np.asarray(bounds, dtype=np.float64)
        self._counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self._total = 0.0
        self._pending: list[float] = []
        self.observe: Callable[[float], None] = self._pending.append
        self.observe_all: Callable[[Sequence[float]], None] = self._pending.extend

    def fold_if_due(self) -> None:
        """Fold when enough values wait, so that memory stays bounded."""
        if len(self._pending) >= FOLD_AT:
            self.fold()

    def fold(self) -> None:
        """Move what waits into the buckets (upper bounds inclusive, as Prometheus has them)."""
        if self._pending:
            values = np.asarray(self._pending, dtype=np.float64)
            self._pending.clear()
            places = np.searchsorted(self._bounds, values, side="left")
            self._counts += np.bincount(places, minlength=len(self._counts))
            self._total += float(values.sum())

    def sample(self, labels: Labels) -> Sample:
        """The series as it stands, everything folded in."""
        self.fold()
        return Sample(labels, self._total, int(self._counts.sum()), tuple(self._counts.tolist()))


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Grow by `amount`."""
        self.value += amount

    def sample(self, labels: Labels) -> Sample:
        """The series as it stands."""
        return Sample(labels, self.value)


class Metric:
    """A named family that makes its series on first use; keep the series, not the look-up."""

    def __init__(self, name: str, kind: str, help: str, label_names: Labels, bounds: tuple[float, ...] = ()) -> None:
        self.name = name
        self.kind = kind
        self.help = help
        self.label_names = label_names
        self.bounds = bounds
        self._series: dict[Labels, Histogram | Counter] = {}

    def histogram(self, *labels: str) -> Histogram:
        """The series of these labels."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = Histogram(self.bounds)
        assert isinstance(series, Histogram)
        return series

    def counter(self, *labels: str) -> Counter:
        """The series of these labels."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = Counter()
        assert isinstance(series, Counter)
        return series

    def family(self) -> Family:
        """All series as they stand."""
        samples = tuple(series.sample(labels) for labels, series in list(self._series.items()))
        return Family(self.name, self.kind, self.help, self.label_names, self.bounds, samples)


class Registry:
    """All metrics of one process. `gauges` are asked when a snapshot is taken."""

    def __init__(self) -> None:
        self._metrics: list[Metric] = []
        self._gauges: list[Callable[[], Family]] = []

    def histogram(self, name: str, help: str, labels: Labels, bounds: tuple[float, ...] = SECONDS) -> Metric:
        """Declare a histogram family."""
        return self._add(Metric(name, "histogram", help, labels, bounds))

    def counter(self, name: str, help: str, labels: Labels) -> Metric:
        """Declare a counter family; by custom its name ends in `_total`."""
        return self._add(Metric(name, "counter", help, labels))

    def gauge(self, name: str, help: str, labels: Labels, read: Callable[[], dict[Labels, float]]) -> None:
        """Declare a gauge family; `read` gives its value by labels when asked."""

        def family() -> Family:
            samples = tuple(Sample(key, value) for key, value in read().items())
            return Family(name, "gauge", help, labels, (), samples)

        self._gauges.append(family)

    def reading(self, family: Callable[[], Family]) -> None:
        """Declare a family that is made when asked, of counts that somebody else keeps."""
        self._gauges.append(family)

    def _add(self, metric: Metric) -> Metric:
        self._metrics.append(metric)
        return metric

    def families(self) -> list[Family]:
        """Everything as it stands."""
        return [metric.family() for metric in self._metrics] + [gauge() for gauge in self._gauges]

    def snapshot(self) -> bytes:
        """`families` in MessagePack."""
        return msgspec.msgpack.encode(self.families())
