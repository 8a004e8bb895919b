"""Tables that stay tables for a screen reader when a narrow screen shows each row as a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from octoserve.patterns.online.supervisor.console.markup import Markup, el


class Column(NamedTuple):
    """A heading, and how its cells look: "" or "figure" (a number) or "drawn"."""

    name: str
    kind: str = ""


def table(
    ident: str, caption: Markup | str, columns: Sequence[Column], rows: Sequence[Sequence[Markup | str]]
) -> Markup:
    """The first cell of a row is its heading. Roles are written out: a changed `display` would take them away."""
    heads = (el("th", column.name, scope="col", role="columnheader", class_=column.kind or None) for column in columns)
    return el(
        "table",
        el("caption", caption),
        el("thead", el("tr", *heads, role="row"), role="rowgroup"),
        el("tbody", *(_row(columns, row) for row in rows), role="rowgroup"),
        id=ident,
        role="table",
    )


def _row(columns: Sequence[Column], row: Sequence[Markup | str]) -> Markup:
    first, *others = row
    cells = (
        el("td", cell, role="cell", class_=column.kind or None, data_name=column.name)
        for column, cell in zip(columns[1:], others, strict=True)
    )
    return el("tr", el("th", first, scope="row", role="rowheader"), *cells, role="row")
