"""Counters and histograms: exact, whatever was folded when."""

from __future__ import annotations

import bisect
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.telemetry.families import Family
from octoserve.telemetry.metrics import FOLD_AT, SECONDS, Histogram, Registry

BOUNDS = (0.1, 1.0, 10.0)
_VALUES = st.lists(st.one_of(st.floats(0, 100), st.sampled_from([0.0, *BOUNDS])), max_size=60)


@given(_VALUES, st.sets(st.integers(0, 60)))
def test_a_histogram_is_exact(values: list[float], folds: set[int]) -> None:
    histogram = Histogram(BOUNDS)
    for i, value in enumerate(values):
        histogram.observe(value)
        if i in folds:
            histogram.fold()
    sample = histogram.sample(("a",))
    buckets = [0] * (len(BOUNDS) + 1)
    for value in values:
        buckets[bisect.bisect_left(BOUNDS, value)] += 1  # an upper bound belongs to its bucket
    assert sample.labels == ("a",)
    assert list(sample.buckets) == buckets
    assert sample.count == len(values)
    assert sample.total == pytest.approx(math.fsum(values))
    assert histogram.sample(("a",)) == sample


def test_what_waits_to_be_folded_is_bounded() -> None:
    histogram = Histogram(BOUNDS)
    for i in range(10 * FOLD_AT):
        histogram.observe(0.5)
        if i % 64 == 0:
            histogram.fold_if_due()
            assert len(histogram._pending) < FOLD_AT + 64
    assert histogram.sample(()).count == 10 * FOLD_AT


def test_observe_may_be_kept() -> None:
    histogram = Histogram(BOUNDS)
    observe = histogram.observe
    observe(1)
    histogram.fold()
    observe(2)
    assert histogram.sample(()).count == 2


def test_series_are_made_once_for_their_labels() -> None:
    registry = Registry()
    requests = registry.counter("requests_total", "Requests.", ("model", "outcome"))
    requests.counter("m", "ok").add()
    requests.counter("m", "ok").add(2)
    requests.counter("m", "shed").add()
    seconds = registry.histogram("seconds", "Seconds.", ("model",))
    assert seconds.histogram("m") is seconds.histogram("m")
    assert seconds.bounds == SECONDS
    [family, _] = registry.families()
    assert {s.labels: s.total for s in family.samples} == {("m", "ok"): 3, ("m", "shed"): 1}


def test_gauges_are_asked_when_they_are_wanted() -> None:
    registry = Registry()
    values = {("a",): 1.0}
    registry.gauge("g", "A gauge.", ("x",), lambda: values)
    assert [s.total for s in registry.families()[0].samples] == [1.0]
    values = {("a",): 2.0, ("b",): 3.0}
    assert [s.total for s in registry.families()[0].samples] == [2.0, 3.0]


def test_a_snapshot_is_everything() -> None:
    registry = Registry()
    registry.histogram("h", "H.", ("x",), BOUNDS).histogram("a").observe(0.5)
    registry.counter("c_total", "C.", ()).counter().add(1.5)
    registry.gauge("g", "G.", (), lambda: {(): 7.0})
    assert msgspec.msgpack.decode(registry.snapshot(), type=list[Family]) == registry.families()
