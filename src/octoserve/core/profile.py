"""A reference profile: how each feature and output of a version was spread over the data it was made with.

A column is a row of bins with a count each, the last one of missing values:

- numbers of many values: bins between deciles, `edges`. The first holds what is no more than the first edge, the last
  what is more than the last one, any other what is more than one edge and no more than the next. NaN is missing.
  Deciles that coincide are one edge.
- numbers of few values (`levels`) and texts (`texts`): a bin each, one of all others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import msgspec

NUMBERS, LEVELS, TEXTS = "numbers", "levels", "texts"
FORMAT = 1


class ColumnProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One feature or output.

    side:      `core.fields.INPUT` or OUTPUT
    kind:      NUMBERS, LEVELS or TEXTS
    edges:     of NUMBERS, ascending, no two alike
    levels, texts: of the others, the most frequent first
    counts:    of each bin: len(edges) + 1, or a bin a value and one of all others; and then of the missing
    low, high: of numbers, the least and the most that are none of NaN and the infinities
    """

    name: str
    side: str
    datatype: str
    kind: str
    counts: tuple[int, ...]
    edges: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    def labels(self) -> list[str]:
        """What is in each bin, for people."""
        if self.kind == NUMBERS:
            edges = [f"{edge:.5g}" for edge in self.edges]
            between = [f"{a} to {b}" for a, b in pairwise(edges)]
            made = [f"up to {edges[0]}", *between, f"over {edges[-1]}"]
        elif self.kind == LEVELS:
            made = [_level(level, self.datatype) for level in self.levels] + ["other"]
        else:
            made = [text or '""' for text in self.texts] + ["other"]
        return [*made, "missing"]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Of one version. digest: of the version's files; data: where the rows came from; left_out: could not be scored."""

    format: int = FORMAT
    model: str
    version: int
    digest: str
    made: float
    data: str
    rows: int
    counted: int
    """Of those rows, drawn at random, that the bins and the counts were made of."""
    left_out: int = 0
    columns: tuple[ColumnProfile, ...] = ()

    def id(self) -> str:
        """Told apart from one made anew: counts by the bins of one mean nothing to the other."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:12]

    def column(self, name: str) -> ColumnProfile | None:
        """By its name."""
        return next((column for column in self.columns if column.name == name), None)


def bins_problem(column: ColumnProfile) -> str:
    """What is wrong with a column that somebody wrote; "" if nothing."""
    wanted = {NUMBERS: len(column.edges) + 1, LEVELS: len(column.levels) + 1, TEXTS: len(column.texts) + 1}
    if column.kind not in wanted:
        return f"kind {column.kind!r} is none of {', '.join(wanted)}"
    if len(column.counts) != wanted[column.kind] + 1 or min(column.counts) < 0:
        return f"{wanted[column.kind] + 1} counts wanted, {len(column.counts)} came"
    if column.kind == NUMBERS and (not column.edges or not _ascends(column.edges)):
        return "its edges do not ascend"
    return ""


def _ascends(edges: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(edges))


def _level(level: float, datatype: str) -> str:
    return ("false", "true")[int(level)] if datatype == "BOOL" and level in (0.0, 1.0) else f"{level:.6g}"
