"""The page that Prometheus scrapes, read by Prometheus' own client library."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from octoserve.telemetry.families import Family, Sample
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.prometheus import CONTENT_TYPE, merge, render

BOUNDS = (0.1, 1.0)
Observations = dict[str, list[float]]


def snapshot(observed: Observations, counted: dict[str, float]) -> bytes:
    registry = Registry()
    seconds = registry.histogram("seconds", "Some seconds.", ("model",), BOUNDS)
    for model, values in observed.items():
        for value in values:
            seconds.histogram(model).observe(value)
    total = registry.counter("rows_total", "Rows.", ("model",))
    for model, value in counted.items():
        total.counter(model).add(value)
    registry.gauge("pending", "Waiting.", (), lambda: {(): float(len(observed))})
    return registry.snapshot()


def read(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in values, f"{key} twice"
            values[key] = sample.value
    return values


def test_a_page() -> None:
    page = render([snapshot({"m": [0.05, 0.1, 0.5, 5]}, {"m": 3})])
    assert page.decode().splitlines() == [
        "# HELP seconds Some seconds.",
        "# TYPE seconds histogram",
        'seconds_bucket{model="m",le="0.1"} 2',
        'seconds_bucket{model="m",le="1"} 3',
        'seconds_bucket{model="m",le="+Inf"} 4',
        'seconds_sum{model="m"} 5.65',
        'seconds_count{model="m"} 4',
        "# HELP rows_total Rows.",
        "# TYPE rows_total counter",
        'rows_total{model="m"} 3',
        "# HELP pending Waiting.",
        "# TYPE pending gauge",
        "pending 1",
    ]
    assert page.endswith(b"\n")
    assert "0.0.4" in CONTENT_TYPE


_MODELS = st.text(min_size=1, max_size=4)
_PROCESS = st.tuples(
    st.dictionaries(_MODELS, st.lists(st.integers(0, 40).map(lambda n: n / 16), max_size=5), max_size=3),
    st.dictionaries(_MODELS, st.integers(0, 1000).map(float), max_size=3),
)


@given(st.lists(_PROCESS, max_size=4))
def test_processes_are_added_up_exactly(processes: list[tuple[Observations, dict[str, float]]]) -> None:
    together: Observations = {}
    counted: dict[str, float] = {}
    for observed, counts in processes:
        for model, values in observed.items():
            together[model] = together.get(model, []) + values
        for model, value in counts.items():
            counted[model] = counted.get(model, 0) + value
    together = {model: values for model, values in together.items() if values}
    got = read(render([snapshot(*process) for process in processes]))
    if processes:
        assert got.pop(("pending", ())) == sum(len(observed) for observed, _ in processes)
    want: dict[Any, float] = {("rows_total", (("model", model),)): value for model, value in counted.items()}
    for model, values in together.items():
        label = ("model", model)
        for bound, text in ((0.1, "0.1"), (1.0, "1"), (math.inf, "+Inf")):
            want["seconds_bucket", (("le", text), label)] = sum(v <= bound for v in values)
        want["seconds_sum", (label,)] = sum(values)
        want["seconds_count", (label,)] = len(values)
    assert got == want


@given(st.text(max_size=10), st.text(max_size=10))
def test_any_text_may_be_a_label(value: str, help: str) -> None:
    family = Family("g", "gauge", help, ("x",), (), (Sample((value,), 1.0),))
    [((name, labels), got)] = read(render([], [family])).items()
    assert (name, dict(labels), got) == ("g", {"x": value}, 1.0)


@given(st.floats())
def test_any_number_may_be_a_value(value: float) -> None:
    page = render([], [Family("g", "gauge", "", (), (), (Sample((), value),))])
    [got] = read(page).values()
    assert got == value or (math.isnan(got) and math.isnan(value))


def test_merge_keeps_the_order_of_families() -> None:
    a, b = Family("b", "counter", "", (), (), ()), Family("a", "counter", "", (), (), (Sample((), 1.0),))
    assert [f.name for f in merge([a, b, a, b])] == ["b", "a"]
    assert merge([a, b, b])[1].samples[0].total == 2
    assert render([]) in (b"", b"\n")
