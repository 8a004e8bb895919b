"""Where a version's live rows, or those of a table, stand against its reference profile: as values, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octoserve.core.drift import MUCH, SOME, chance_limit, js, psi
from octoserve.core.profile import ColumnProfile, Profile

QUIET, MOVED_SOME, MOVED_MUCH, UNKNOWN = "quiet", "some", "much", "unknown"


class Bin(msgspec.Struct, frozen=True):
    """Shares of the rows, 0 to 1."""

    label: str
    reference: float
    live: float


class ColumnDrift(msgspec.Struct, frozen=True, kw_only=True):
    """One feature or output. Numbers are None below the minimum of rows; see `core.drift`.

    limit: what PSI stays below in 999 of 1000 looks if nothing has moved
    level: QUIET below SOME or within chance, MOVED_SOME, MOVED_MUCH, UNKNOWN without a number
    """

    name: str
    side: str
    kind: str
    rows: int
    psi: float | None = None
    js: float | None = None
    limit: float | None = None
    level: str = UNKNOWN
    bins: tuple[Bin, ...] = ()


class DriftReport(msgspec.Struct, frozen=True, kw_only=True):
    """Of one version. over: which rows these are, in words. Times are wall clock seconds."""

    model: str
    version: int
    made: float
    over: str
    rows: int
    minimum: int
    profile_id: str
    profile_made: float
    profile_data: str
    profile_rows: int
    headline: str = ""
    notes: tuple[str, ...] = ()
    columns: tuple[ColumnDrift, ...] = ()

    def moved(self) -> list[ColumnDrift]:
        """Those that have, most first."""
        return [column for column in self.columns if column.level in (MOVED_SOME, MOVED_MUCH)]


def build(
    profile: Profile,
    counts: Mapping[str, Sequence[int]],
    *,
    now: float,
    over: str,
    minimum: int,
    notes: Sequence[str] = (),
) -> DriftReport:
    """counts: column -> live rows by bin; a column that is not there was not seen. minimum: rows for a number."""
    columns = [_column(column, counts[column.name], minimum) for column in profile.columns if column.name in counts]
    columns.sort(key=lambda column: -(column.psi if column.psi is not None else -1.0))
    rows = max((column.rows for column in columns), default=0)
    report = DriftReport(
        model=profile.model,
        version=profile.version,
        made=now,
        over=over,
        rows=rows,
        minimum=minimum,
        profile_id=profile.id(),
        profile_made=profile.made,
        profile_data=profile.data,
        profile_rows=profile.rows,
        notes=tuple(notes),
        columns=tuple(columns),
    )
    return msgspec.structs.replace(report, headline=_headline(report))


def _column(column: ColumnProfile, live: Sequence[int], minimum: int) -> ColumnDrift:
    reference, rows = column.counts, sum(live)
    known = rows >= minimum
    n, m = max(sum(reference), 1), max(rows, 1)
    labels = column.labels()
    shares = [Bin(labels[i], reference[i] / n, live[i] / m) for i in range(len(labels)) if reference[i] or live[i]]
    value, limit = (psi(reference, live), chance_limit(reference, live)) if known else (None, None)
    return ColumnDrift(
        name=column.name,
        side=column.side,
        kind=column.kind,
        rows=rows,
        psi=value,
        js=js(reference, live) if known else None,
        limit=limit,
        level=level_of(value, limit),
        bins=tuple(shares),
    )


def level_of(value: float | None, limit: float | None) -> str:
    """In words, what a PSI says."""
    if value is None or limit is None:
        return UNKNOWN
    if value < SOME or value <= limit:
        return QUIET
    return MOVED_MUCH if value >= MUCH else MOVED_SOME


def _headline(report: DriftReport) -> str:
    if not report.columns:
        return "No column of the profile was seen: nothing is known."
    if report.rows < report.minimum:
        return f"{report.rows:,} rows; {report.minimum:,} are wanted before a number means something."
    moved = report.moved()
    seen = len(report.columns)
    if not moved:
        return f"Nothing has moved: {_count(seen, 'column')}, {report.rows:,} rows."
    named = ", ".join(f"{column.name} (PSI {column.psi:.2f})" for column in moved[:5])
    more = f" and {len(moved) - 5} more" if len(moved) > 5 else ""
    have = "has" if len(moved) == 1 else "have"
    return f"{len(moved)} of {_count(seen, 'column')} {have} moved: {named}{more}."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def as_json(report: DriftReport) -> Any:
    """Plain values."""
    return msgspec.to_builtins(report)


def from_json(content: Any) -> DriftReport:
    """The other way. Raises msgspec.ValidationError."""
    return msgspec.convert(content, DriftReport)
