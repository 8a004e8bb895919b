"""The report for a terminal: rich tables and text; without colours it says the same.

What came with a request is neither rich's markup nor a terminal's escape sequence: all text goes through `plain`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from octoserve.control.analysis.verdict import Outcome
from octoserve.control.report import wording as w
from octoserve.control.report.report import BATCH, Example, OutputReport, Report

_SEGMENTS = 15
_LONGEST = 240
_STYLES = {Outcome.PASS: "green", Outcome.FAIL: "bold red", Outcome.SRM: "bold red"}


def as_text(report: Report) -> RenderableType:
    """Something that a rich console prints."""
    parts: list[RenderableType] = [
        plain(f"{w.kind(report)} {report.endpoint}  {w.course(report)} {report.rollout}", "bold"),
        Text(", ".join(part for part in (w.between(report), w.span(report)) if part), "dim"),
        Text(),
        plain(report.headline, "bold"),
    ]
    parts += [plain(f"! {note}", "yellow") for note in report.notes]
    verdicts = _verdicts(report)
    if verdicts is not None:
        parts += [Text(), verdicts, *_why(report)]
    tables = (_segments, _outputs, _latency, _accounts, _errors)
    for table in (make(report) for make in tables):
        if table is not None:
            parts += [Text(), table]
    for output in report.outputs:
        parts += _shift(output)
    if report.examples:
        parts += [Text(), plain("Worst disagreements", "bold")]
        for number, example in enumerate(report.examples, 1):
            parts += _example(number, example)
    return Group(*parts)


def plain(text: str, style: str = "") -> Text:
    """Text as it is; control characters, which a terminal might obey, are written out."""
    return Text("".join(c if c.isprintable() else repr(c)[1:-1] for c in text), style)


def _add(table: Table, *cells: str | Text) -> None:
    table.add_row(*(cell if isinstance(cell, Text) else plain(cell) for cell in cells))


def _table(title: str, columns: Iterable[str], left: int = 1) -> Table:
    table = Table(title=plain(title, "bold"), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(plain(column), justify="left" if i < left else "right", header_style="dim", overflow="fold")
    return table


def _verdicts(report: Report) -> Table | None:
    if not report.verdicts:
        return None
    table = _table("Verdicts", ("check", "segment", "verdict", "effect", "margin", "samples"), 3)
    for v in report.verdicts:
        effect = "" if v.estimate is None else f"{w.number(v.estimate)} [{w.number(v.low)}, {w.number(v.high)}]"
        margin = "" if v.margin is None else f"{w.number(v.margin)} {v.unit}"
        outcome = plain(v.outcome.value, _STYLES.get(v.outcome, "yellow"))
        _add(table, v.check, v.segment or "all", outcome, effect, margin, w.whole(v.n))
    return table


def _why(report: Report) -> list[RenderableType]:
    """Under the verdicts, in full width: what those on all requests, and those that fail, rest on."""
    told = [v for v in report.verdicts if v.note and (not v.segment or v.outcome is Outcome.FAIL)]
    names = [f"{v.check} {v.segment}".rstrip() for v in told]
    return [plain(f"  {name}: {v.note}", "dim") for name, v in zip(names, told, strict=True)]


def _segments(report: Report) -> Table | None:
    if not report.segments:
        return None
    outputs = [output.name for output in report.outputs][:4]
    table = _table("For whom", ("segment", "pairs", "differ", "noise", "errors", "p50 change", *outputs))
    for s in report.segments[:_SEGMENTS]:
        by_output = [w.share(s.outputs.get(name, 0) / s.rate.compared if s.rate.compared else None) for name in outputs]
        _add(
            table,
            f"{s.name}={s.value}",
            w.whole(s.rate.compared),
            plain(w.share(s.rate.share), "bold" if s.rate.disagreed else ""),
            w.share(s.rate.noise_share),
            w.whole(s.errors),
            w.ratio(s.candidate.p50, s.stable.p50),
            *by_output,
        )
    if len(report.segments) > _SEGMENTS:
        table.caption = f"{len(report.segments) - _SEGMENTS + report.more_segments} more are in the JSON form"
    return table


def _outputs(report: Report) -> Table | None:
    if not report.outputs:
        return None
    table = _table("What changed", ("output", "datatype", "pairs", "differ", "noise", "worst"), 2)
    for o in report.outputs:
        worst = w.magnitude(o.worst)
        share, noise = w.share(o.rate.share), w.share(o.rate.noise_share)
        _add(table, o.name, o.datatype, w.whole(o.rate.compared), share, noise, worst)
    return table


def _shift(output: OutputReport) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if output.numbers:
        columns = ("", "mean", "p5", "p50", "p95", "least", "most", "NaN, inf")
        table = _table(f"{output.name}: distribution", columns)
        for n in output.numbers:
            for role, d in (("stable", n.stable), ("candidate", n.candidate)):
                numbers = [w.number(v) for v in (d.mean, d.p5, d.p50, d.p95, d.low, d.high)]
                _add(table, f"{n.column} {role}".strip(), *numbers, w.whole(d.odd))
        parts += [Text(), table]
        for n in output.numbers:
            change = f"mean change {w.signed(n.mean_change)}, distance {n.distance:.3f}"
            parts.append(plain("  " + f"{n.column} {change}".strip(), "dim"))
    if output.labels is not None:
        shift = output.labels
        title = f"{output.name}: {w.whole(shift.changed)} of {w.whole(shift.same + shift.changed)} labels changed"
        parts += [Text(), plain(title, "bold")]
        parts += [plain(f"  {move.stable} → {move.candidate}: {w.whole(move.count)}") for move in shift.moves]
        if shift.more_moves:
            parts.append(plain(f"  and {w.whole(shift.more_moves)} rarer ones", "dim"))
    return parts


def _latency(report: Report) -> Table | None:
    if report.of == BATCH or not report.pairs:
        return None
    table = _table("Run time in the mirror", ("", "answers", "p50", "p90", "p99", "p99.9", "most"))
    for role, one in (("stable", report.stable), ("candidate", report.candidate)):
        times = [w.seconds(value) for value in (one.p50, one.p90, one.p99, one.p999, one.high)]
        _add(table, role, w.whole(one.n), *times)
    return table


def _accounts(report: Report) -> Table | None:
    if not report.accounts:
        return None
    table = _table("Accounts", ("stratum", "offered", "sent", "dropped", "ok", "error", "timeout"))
    for a in report.accounts:
        reasons = ", ".join(f"{reason} {w.whole(count)}" for reason, count in a.dropped.items())
        dropped = w.whole(sum(a.dropped.values())) + (f" ({reasons})" if reasons else "")
        counts = (w.whole(a.ok), w.whole(a.error), w.whole(a.timeout))
        _add(table, a.stratum, w.whole(a.offered), w.whole(a.sent), dropped, *counts)
    return table


def _errors(report: Report) -> Table | None:
    if not report.errors:
        return None
    table = _table("The candidate's errors", ("error", "pairs"))
    for e in report.errors:
        _add(table, plain(e.error), w.whole(e.count))
    return table


def _example(number: int, example: Example) -> list[RenderableType]:
    said = ", ".join(f"{name}={value}" for name, value in example.segments.items())
    whose = f"key {example.key}" if example.key is not None else "no key"
    row = f"row [{example.row}] of {example.rows}" if example.row is not None else ""
    when = w.moment(example.time) if example.time is not None else ""
    head = "  ".join(part for part in (whose, said, row, when) if part)
    lines: list[RenderableType] = [plain(f"{number}. {head}", "bold")]
    for name, d in example.differing.items():
        measure = w.magnitude(d.magnitude)
        lines.append(plain(f"{name}: {d.reason}" + (f"  ({measure})" if measure else "")))
    lines.append(plain(f"inputs {_short(example.inputs)}", "dim"))
    return [lines[0], *(Padding(line, (0, 0, 0, 3)) for line in lines[1:])]


def _short(tensors: Mapping[str, Any]) -> str:
    text = msgspec.json.encode(tensors).decode()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
