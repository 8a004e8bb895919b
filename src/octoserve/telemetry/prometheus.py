"""Prometheus text format (version 0.0.4) from the snapshots of many processes, summed series by series."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from octoserve.telemetry.families import TALLY, Family, Labels, Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_decode = msgspec.msgpack.Decoder(list[Family]).decode


def render(snapshots: Sequence[bytes], extra: Iterable[Family] = ()) -> bytes:
    """The page that Prometheus scrapes: all snapshots added up, then `extra` families."""
    families = [family for snapshot in snapshots for family in _decode(snapshot)]
    lines: list[str] = []
    for family in merge(family for family in (*families, *extra) if family.kind != TALLY):
        lines.append(f"# HELP {family.name} {_escape_help(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for sample in family.samples:
            lines.extend(_sample_lines(family, sample))
    return ("\n".join(lines) + "\n").encode()


def merge(families: Iterable[Family]) -> list[Family]:
    """One family a name, samples with equal labels added up; in order of first appearance."""
    named: dict[str, Family] = {}
    series: dict[str, dict[Labels, Sample]] = {}
    for family in families:
        named.setdefault(family.name, family)
        mine = series.setdefault(family.name, {})
        for sample in family.samples:
            mine[sample.labels] = _add(mine[sample.labels], sample) if sample.labels in mine else sample
    return [
        msgspec.structs.replace(family, samples=tuple(series[name][k] for k in sorted(series[name])))
        for name, family in named.items()
    ]


def _add(a: Sample, b: Sample) -> Sample:
    buckets = tuple(x + y for x, y in zip(a.buckets, b.buckets, strict=True))
    return Sample(a.labels, a.total + b.total, a.count + b.count, buckets)


def _sample_lines(family: Family, sample: Sample) -> Iterable[str]:
    pairs = [f'{k}="{_escape(v)}"' for k, v in zip(family.label_names, sample.labels, strict=True)]
    plain = "{" + ",".join(pairs) + "}" if pairs else ""
    if family.kind != "histogram":
        yield f"{family.name}{plain} {_number(sample.total)}"
        return
    below = 0
    for bound, count in zip((*family.bounds, float("inf")), sample.buckets, strict=True):
        below += count
        inside = ",".join([*pairs, f'le="{_number(bound)}"'])
        yield f"{family.name}_bucket{{{inside}}} {below}"
    yield f"{family.name}_sum{plain} {_number(sample.total)}"
    yield f"{family.name}_count{plain} {sample.count}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escape_help(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
