"""The report as one HTML file that needs nothing else: no script, no font, no image from elsewhere.

Everything that came with a request (keys, segments, inputs, labels, errors) is escaped on its way in: text only ever
enters the page by `_e`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octoserve.control.analysis.verdict import Outcome, Verdict
from octoserve.control.report import wording as w
from octoserve.control.report.markup import bar, notes, page, tiles
from octoserve.control.report.markup import escaped as _e
from octoserve.control.report.markup import section as _section
from octoserve.control.report.markup import table as _table
from octoserve.control.report.report import (
    BATCH,
    Example,
    LabelShift,
    NumberShift,
    OutputReport,
    Report,
    SegmentReport,
)

_LONGEST = 4_000
_TONES = {Outcome.PASS: "good", Outcome.FAIL: "bad", Outcome.SRM: "bad"}


def as_html(report: Report) -> str:
    """A whole page; UTF-8."""
    kind, between = w.kind(report), w.between(report)
    sections = (_verdicts, _segments, _outputs, _latency, _accounts, _errors, _examples)
    body = "\n".join(part for part in (make(report) for make in sections) if part)
    return page(
        title=f"{kind}: {report.endpoint}, {between}",
        kicker=kind,
        heading=report.endpoint,
        meta=(
            f"{_e(between)} · {_e(w.course(report))} <code>{_e(report.rollout)}</code>",
            _e(w.span(report)),
        ),
        headline=report.headline,
        content=f"{_tiles(report)}\n{notes(report.notes)}\n{body}",
        footer=f"Made {w.moment(report.made)}. A disagreement is a difference beyond tolerance; the noise floor is the "
        f"stable version compared with itself on the same inputs. Quantiles are within 1 %.{w.decides(report)}",
    )


def _tiles(report: Report) -> str:
    rate = report.rate
    floor = (
        f"noise floor {w.share(rate.noise_share)} of {w.whole(rate.noise_compared)}"
        if rate.noise_share is not None
        else "no noise floor"
    )
    rows = (
        f"{w.share(report.rows_differing / report.rows)} of {w.whole(report.rows)} rows" if report.rows else "no rows"
    )
    error_share = report.error_pairs / report.pairs if report.pairs else None
    cells = [
        ("Answers that differ", w.share(rate.share), floor),
        ("Pairs", w.whole(report.pairs), f"{rows} differ" if report.rows else rows),
        ("Candidate failed", w.share(error_share), f"{w.whole(report.error_pairs)} {w.asked(report)}"),
    ]
    if report.of != BATCH:
        said = f"{w.seconds(report.stable.p99)} → {w.seconds(report.candidate.p99)}"
        if not report.stable.n:
            said = f"{w.seconds(report.candidate.p99)}; no noise share to compare with"
        cells.append(("Run time p99", w.ratio(report.candidate.p99, report.stable.p99), said))
    return tiles(cells)


def _verdicts(report: Report) -> str:
    if not report.verdicts:
        return ""
    rows = [
        (_e(v.check), _e(v.segment or "all"), _badge(v), _effect(v), _margin(v), w.whole(v.n), _e(v.note))
        for v in report.verdicts
    ]
    columns = ("Check", "Segment", "Verdict", "Effect, interval", "Margin", "Samples", "Note")
    return _section("verdicts", "Verdicts", _table("What the checks say of the candidate", columns, rows, (0, 1, 2, 6)))


def _badge(verdict: Verdict) -> str:
    return f'<span class="badge {_TONES.get(verdict.outcome, "open")}">{_e(verdict.outcome.value)}</span>'


def _effect(v: Verdict) -> str:
    return w.DASH if v.estimate is None else f"{w.number(v.estimate)} [{w.number(v.low)}, {w.number(v.high)}]"


def _margin(v: Verdict) -> str:
    return w.DASH if v.margin is None else f"{w.number(v.margin)} {_e(v.unit)}"


def _segments(report: Report) -> str:
    if not report.segments:
        return ""
    outputs = [output.name for output in report.outputs][:4]
    top = max((s.rate.share or 0.0 for s in report.segments), default=0.0)
    rows = [_segment(s, outputs, top) for s in report.segments]
    columns = ("Segment", "Differ", "Noise", "Pairs", "Failed", "p50 change", *outputs)
    lead = "Most affected first. The last columns say which output differs."
    return _section("segments", "For whom", _table("Disagreement by segment", columns, rows), lead)


def _segment(s: SegmentReport, outputs: Sequence[str], top: float) -> tuple[str, ...]:
    n = s.rate.compared
    return (
        f"{_e(s.name)}=<b>{_e(s.value)}</b>",
        bar(s.rate.share or 0.0, top, w.share(s.rate.share)),
        w.share(s.rate.noise_share),
        w.whole(n),
        w.whole(s.errors),
        w.ratio(s.candidate.p50, s.stable.p50),
        *(w.share(s.outputs.get(name, 0) / n if n else None) for name in outputs),
    )


def _outputs(report: Report) -> str:
    if not report.outputs:
        return ""
    rows = [
        (
            _e(o.name),
            _e(o.datatype),
            w.share(o.rate.share),
            w.share(o.rate.noise_share),
            w.whole(o.rate.compared),
            _e(w.magnitude(o.worst) or w.DASH),
        )
        for o in report.outputs
    ]
    columns = ("Output", "Datatype", "Differ", "Noise", "Pairs", "Worst")
    cards = "\n".join(_output(o) for o in report.outputs)
    return _section("outputs", "What changed", _table("Disagreement by output", columns, rows, (0, 1)) + cards)


def _output(output: OutputReport) -> str:
    parts = [_numbers(output, shift) for shift in output.numbers if shift.stable.n or shift.candidate.n]
    if output.labels is not None:
        parts.append(_labels(output, output.labels))
    return "\n".join(f'<article class="card">{part}</article>' for part in parts)


def _numbers(output: OutputReport, shift: NumberShift) -> str:
    title = f"{output.name}{shift.column}"
    rows = [
        (
            _key(role),
            *map(w.number, (d.mean, d.p5, d.p50, d.p95, d.low, d.high)),
            w.whole(d.odd),
        )
        for role, d in (("stable", shift.stable), ("candidate", shift.candidate))
    ]
    columns = ("Version", "Mean", "p5", "p50", "p95", "Least", "Most", "NaN, inf")
    said = (
        f"Pair by pair the mean change is {w.signed(shift.mean_change)}, its mean size {w.number(shift.mean_size)}; "
        f"the distributions are {shift.distance:.3f} apart (Kolmogorov-Smirnov, 0 to 1)."
    )
    table = _table(f"Distribution of {title}", columns, rows)
    return f"<h3>{_e(title)}</h3>{_chart(title, shift)}<p>{_e(said)}</p>{table}"


def _key(role: str) -> str:
    return f'<span class="whose"><i class="key {role}"></i>{role}</span>'


def _chart(title: str, shift: NumberShift) -> str:
    """Shares by bin: the stable version filled, the candidate as a line over it."""
    if not shift.edges:
        return ""
    wide, high = 600.0, 120.0
    shares = [[count / max(sum(bins), 1) for count in bins] for bins in (shift.stable_bins, shift.candidate_bins)]
    top = max(max(values) for values in shares) or 1.0
    step = wide / len(shares[0])

    def path(values: list[float]) -> str:
        corners = [f"M0 {high:g}"]
        for i, value in enumerate(values):
            y = high - value / top * (high - 6)
            corners.append(f"V{y:.1f}H{(i + 1) * step:.1f}")
        return "".join(corners) + f"V{high:g}"

    said = (
        f"Histogram of {title}: median {w.number(shift.stable.p50)} for stable, "
        f"{w.number(shift.candidate.p50)} for the candidate"
    )
    return (
        f'<figure><svg viewBox="0 -2 {wide:g} {high + 4:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{_e(said)}">'
        f'<path class="stable" d="{path(shares[0])}Z"/><path class="candidate" d="{path(shares[1])}"/></svg>'
        f'<figcaption><span>{w.number(shift.edges[0])}</span><span><i class="key stable"></i>stable '
        f'<i class="key candidate"></i>candidate</span><span>{w.number(shift.edges[-1])}</span></figcaption></figure>'
    )


def _labels(output: OutputReport, shift: LabelShift) -> str:
    total = shift.same + shift.changed
    top = max((move.count for move in shift.moves), default=1)
    moves = [
        (f'{_e(m.stable)} <span class="to">→</span> {_e(m.candidate)}', bar(m.count, top, w.whole(m.count)))
        for m in shift.moves
    ]
    labels = [
        (_e(c.label), w.whole(c.stable), w.whole(c.candidate), w.signed(float(c.candidate - c.stable)))
        for c in shift.labels
    ]
    more = f" {w.whole(shift.more_moves)} rarer moves are not shown." if shift.more_moves else ""
    said = f"{w.whole(shift.changed)} of {w.whole(total)} labels changed ({w.share(shift.changed / total)}).{more}"
    table = _table(f"{output.name}: which label became which", ("Move", "Times"), moves) if moves else ""
    counts = _table(f"{output.name}: labels by version", ("Label", "Stable", "Candidate", "Change"), labels)
    return f'<h3>{_e(output.name)}</h3><p>{_e(said)}</p><div class="two">{table}{counts}</div>'


def _latency(report: Report) -> str:
    if report.of == BATCH or not report.pairs:
        return ""
    rows = [
        (
            _key(role),
            *map(w.seconds, (one.p50, one.p90, one.p99, one.p999, one.high)),
            w.whole(one.n),
        )
        for role, one in (("stable", report.stable), ("candidate", report.candidate))
    ]
    s, c = report.stable, report.candidate
    pairs = ((c.p50, s.p50), (c.p90, s.p90), (c.p99, s.p99), (c.p999, s.p999), (c.high, s.high))
    rows.append(("change", *(w.ratio(after, before) for after, before in pairs), ""))
    columns = ("Version", "p50", "p90", "p99", "p99.9", "Most", "Answers")
    lead = (
        "Runs of one request each in the mirror's own thread; the stable version's are those of the noise share. What "
        "clients wait for holds queue and batch too: compare that in a canary."
    )
    return _section("latency", "Run time", _table("Run time of both versions in the mirror", columns, rows), lead)


def _accounts(report: Report) -> str:
    if not report.accounts:
        return ""
    rows = [
        (
            _e(a.stratum),
            w.whole(a.offered),
            w.whole(a.sent),
            w.whole(sum(a.dropped.values())),
            w.whole(a.ok),
            w.whole(a.error),
            w.whole(a.timeout),
            _e(", ".join(f"{reason} {w.whole(n)}" for reason, n in a.dropped.items()) or w.DASH),
        )
        for a in report.accounts
    ]
    columns = ("Stratum", "Offered", "Sent", "Dropped", "Ok", "Error", "Timeout", "Drops by reason")
    lead = "Offered = sent + dropped, sent = ok + error + timeout."
    return _section("accounts", "Accounts", _table("What became of the copies", columns, rows, (0, 7)), lead)


def _errors(report: Report) -> str:
    if not report.errors:
        return ""
    rows = [(f"<code>{_e(e.error)}</code>", w.whole(e.count)) for e in report.errors]
    return _section("errors", "The candidate's errors", _table("Errors by text", ("Error", "Pairs"), rows))


def _examples(report: Report) -> str:
    if not report.examples:
        return ""
    cards = "\n".join(_example(number, example) for number, example in enumerate(report.examples, 1))
    return _section("examples", "Worst disagreements", cards, "The worst of each output in turn.")


def _example(number: int, example: Example) -> str:
    chips = [("key", example.key)] if example.key is not None else []
    chips += list(example.segments.items())
    if example.row is not None:
        chips.append(("row", f"[{example.row}] of {example.rows}, {example.rows_differing} differ"))
    marks = "".join(f'<span class="chip">{_e(name)} <b>{_e(value)}</b></span>' for name, value in chips)
    reasons = []
    for name, d in example.differing.items():
        measure = w.magnitude(d.magnitude)
        tail = f' <span class="dim">({_e(measure)})</span>' if measure else ""
        reasons.append(f"<li><b>{_e(name)}</b>: {_e(d.reason)}{tail}</li>")
    rows = [
        (
            _e(name),
            f"<code>{_short(example.stable.get(name))}</code>",
            f"<code>{_short(example.candidate.get(name))}</code>",
        )
        for name in example.stable
    ]
    table = _table(f"Outputs of example {number}", ("Output", "Stable", "Candidate"), rows, (0, 1, 2))
    took = ""
    if example.candidate_seconds is not None:
        ran, waited = w.seconds(example.candidate_seconds), w.seconds(example.stable_seconds)
        took = f'<p class="dim">{_e(w.moment(example.time))} · answered after {_e(waited)}, the copy ran {_e(ran)}</p>'
    return (
        f'<article class="card example"><h3>{number}. {marks}</h3><ul class="reasons">{"".join(reasons)}</ul>'
        f"<details><summary>Inputs and outputs</summary>{table}{_inputs(example.inputs)}"
        f"{took}</details></article>"
    )


def _inputs(inputs: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{_e(name)}</dt><dd><code>{_short(value)}</code></dd>" for name, value in inputs.items())
    return f'<dl class="inputs">{rows}</dl>'


def _short(value: Any) -> str:
    if value is None:
        return w.DASH
    text = msgspec.json.encode(value).decode()
    return _e(text if len(text) <= _LONGEST else text[:_LONGEST] + " ...")
