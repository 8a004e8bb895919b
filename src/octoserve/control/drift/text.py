"""The drift report for a terminal; without colours it says the same."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from octoserve.control.drift.report import MOVED_MUCH, MOVED_SOME, QUIET, UNKNOWN, ColumnDrift, DriftReport
from octoserve.control.report import wording as w
from octoserve.control.report.text import plain

WIDTH = 24
"""Characters of the longest bar."""
WORDS = {QUIET: "quiet", MOVED_SOME: "moved", MOVED_MUCH: "moved much", UNKNOWN: "not known"}
_STYLES = {QUIET: "green", MOVED_SOME: "yellow", MOVED_MUCH: "bold red", UNKNOWN: "dim"}


def as_status(reports: Sequence[DriftReport]) -> RenderableType:
    """A line a version."""
    table = _table(("MODEL", "VERSION", "ROWS", "MOVED", "MOST", "OVER"), 1)
    for report in reports:
        first = report.columns[0] if report.columns and report.columns[0].psi is not None else None
        moved = str(len(report.moved())) if first is not None else f"at least {report.minimum:,} rows"
        most = f"{first.name} {w.number(first.psi)}" if first is not None else w.DASH
        cells = (report.model, str(report.version), f"{report.rows:,}", moved, most, report.over)
        table.add_row(*(plain(cell) for cell in cells))
    return table


def as_text(report: DriftReport) -> RenderableType:
    """Something that a rich console prints."""
    parts: list[RenderableType] = [
        plain(f"drift {report.model} version {report.version}  {report.over}", "bold"),
        plain(profile_line(report), "dim"),
        Text(),
        plain(report.headline, "bold"),
    ]
    parts += [plain(f"! {note}", "yellow") for note in report.notes]
    if report.columns:
        table = _table(("column", "side", "", "PSI", "JS", "by chance", "rows"), 3)
        for c in report.columns:
            chance = w.DASH if c.limit is None else f"< {w.number(c.limit)}"
            cells = (w.number(c.psi), w.number(c.js), chance, f"{c.rows:,}")
            state = plain(WORDS[c.level], _STYLES[c.level])
            table.add_row(plain(c.name), plain(c.side), state, *(plain(cell) for cell in cells))
        parts += [Text(), table]
    for column in report.moved():
        parts += [Text(), *_histogram(column)]
    return Group(*parts)


def profile_line(report: DriftReport) -> str:
    """What it is compared with."""
    return f"against {report.profile_rows:,} rows of {report.profile_data}, profiled {w.moment(report.profile_made)}"


def _table(columns: Sequence[str], left: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right", header_style="dim", overflow="fold")
    return table


def _histogram(column: ColumnDrift) -> list[RenderableType]:
    """From where to where, bin by bin: the profile's share above, the live one below."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for _ in range(4):
        table.add_column(overflow="fold")
    top = max(max(b.reference, b.live) for b in column.bins) or 1.0
    for b in column.bins:
        for label, whose, share in ((b.label, "profile", b.reference), ("", "live", b.live)):
            bar = "█" * round(share / top * WIDTH) or "·"
            style = "dim" if whose == "profile" else ""
            table.add_row(plain(label), plain(whose, "dim"), plain(bar, style), plain(w.share(share)))
    return [plain(f"{column.name}  PSI {w.number(column.psi)}", "bold"), table]
