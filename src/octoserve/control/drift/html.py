"""The drift report as one HTML file, see `control.report.markup`."""

from __future__ import annotations

from octoserve.control.drift.report import MOVED_MUCH, QUIET, ColumnDrift, DriftReport
from octoserve.control.drift.text import WORDS, profile_line
from octoserve.control.report import wording as w
from octoserve.control.report.markup import bar, escaped, notes, page, section, table, tiles


def as_html(report: DriftReport) -> str:
    """A whole page; UTF-8."""
    shown = [column for column in report.columns if column.psi is not None] or list(report.columns)
    cards = "\n".join(_column(column) for column in shown)
    parts = [_tiles(report), notes(report.notes), _columns(report)]
    parts.append(section("bins", "From where to where", cards, "Most moved first.") if cards else "")
    return page(
        title=f"Drift: {report.model} version {report.version}",
        kicker="Drift",
        heading=f"{report.model} version {report.version}",
        meta=(escaped(report.over), escaped(profile_line(report))),
        headline=report.headline,
        content="\n".join(part for part in parts if part),
        footer=f"Made {w.moment(report.made)}. PSI: under 0.1 little has moved, from 0.25 on much (Siddiqi 2006). JS: "
        "the Jensen-Shannon divergence in bits, 0 to 1 (Lin 1991). By chance: what PSI stays below in 999 of 1000 "
        "looks if nothing has moved.",
    )


def _tiles(report: DriftReport) -> str:
    first = report.columns[0] if report.columns else None
    cells = [
        ("Columns that moved", str(len(report.moved())), f"of {len(report.columns)}"),
        ("Largest PSI", w.number(first.psi) if first else w.DASH, first.name if first else ""),
        ("Rows", w.whole(report.rows), report.over),
    ]
    return tiles(cells)


def _columns(report: DriftReport) -> str:
    rows = [
        (
            escaped(c.name),
            escaped(c.side),
            _badge(c),
            escaped(w.number(c.psi)),
            escaped(w.number(c.js)),
            escaped(w.number(c.limit)),
            w.whole(c.rows),
        )
        for c in report.columns
    ]
    names = ("Column", "Side", "", "PSI", "JS", "By chance below", "Rows")
    return section("columns", "What moved", table("Drift by column", names, rows, (0, 1, 2))) if rows else ""


def _badge(column: ColumnDrift) -> str:
    tone = {QUIET: "good", MOVED_MUCH: "bad"}.get(column.level, "open")
    return f'<span class="badge {tone}">{escaped(WORDS[column.level])}</span>'


def _column(column: ColumnDrift) -> str:
    top = max((max(b.reference, b.live) for b in column.bins), default=0.0)
    rows = [
        (escaped(b.label), bar(b.reference, top, w.share(b.reference)), bar(b.live, top, w.share(b.live)))
        for b in column.bins
    ]
    made = table(f"{column.name}: shares of the rows", ("Bin", "Profile", "Live"), rows)
    return f'<article class="card"><h3>{escaped(column.name)} {_badge(column)}</h3>{made}</article>'
