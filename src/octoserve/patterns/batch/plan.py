"""Splits from files' ranges, and how many rows a block has: pure, so that the same files give the same plan."""

from __future__ import annotations

from collections.abc import Sequence

from octoserve.connectors.source import Range
from octoserve.patterns.batch.job import Split

BLOCK_BYTES = 4 << 20
"""Enough that what a block costs beside its rows, some 2 ms, is little: at 1 MB a tenth of all CPU went there."""
MOST_ROWS = 8192
"""In a block: more gains nothing, and what a model needs within a run grows with them."""


def plan_splits(files: Sequence[Sequence[Range]], split_bytes: int) -> tuple[Split, ...]:
    """Every range once, in order; each split within one file and, of several ranges, no larger than `split_bytes`.

    Ranges without rows are left out: they would make empty parts. But a table without any row is one split, so that
    its result has columns. A file's first row is 0.
    """
    splits: list[Split] = []
    for number, ranges in enumerate(files):
        row = 0
        open_: list[Range] = []
        first = 0
        for range_ in ranges:
            if not range_.rows:
                continue
            adjoins = bool(open_) and open_[-1].stop == range_.start
            if open_ and (not adjoins or sum(r.bytes for r in open_) + range_.bytes > split_bytes):
                splits.append(_split(len(splits), number, open_, first))
                open_ = []
            if not open_:
                first = row
            open_.append(range_)
            row += range_.rows
        if open_:
            splits.append(_split(len(splits), number, open_, first))
    if not splits and files:
        splits.append(Split(0, 0, 0, 0, 0, 0, 0))
    return tuple(splits)


def _split(index: int, file: int, ranges: Sequence[Range], first_row: int) -> Split:
    rows, size = sum(r.rows for r in ranges), sum(r.bytes for r in ranges)
    return Split(index, file, ranges[0].start, ranges[-1].stop, first_row, rows, size)


def block_rows(splits: Sequence[Split], width: int, most: int | None = None) -> int:
    """Rows that take about `BLOCK_BYTES`: by the source's mean row, and `width` bytes of tensors for it."""
    rows, size = sum(split.rows for split in splits), sum(split.bytes for split in splits)
    mean = size // max(1, rows) + width
    return max(1, min(most or MOST_ROWS, BLOCK_BYTES // max(1, mean)))
