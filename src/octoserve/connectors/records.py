"""Text files as records: where each ends, how many there are, and so many at a time.

A record ends at a newline, but not at one within quotes: with `quoted`, a newline ends a record if the quotes before it
are even in number, which holds for RFC 4180's doubled quotes too. Blank lines are no records. Counting is numpy's over
blocks of the file: planning reads a file once, at the speed of memory, and keeps nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from octoserve.connectors.arrow import RecordBatch, Schema, pyarrow
from octoserve.connectors.opening import opened
from octoserve.connectors.source import Range, Rows, SourceFile
from octoserve.core.errors import TooLarge

RANGE = 4 << 20
"""Bytes of a range: what a split is made of."""
CHUNK = 1 << 20
SAMPLE = 1000
"""Records that a file's columns' types are told from."""
MOST_BYTES = 256 << 20
"""Of one record: else one lone quote would take a file into memory whole."""

_NEWLINE, _RETURN, _QUOTE = 10, 13, 34
_UNREADABLE = 200
"""Characters of a parser's message that are kept."""


class Piece(NamedTuple):
    """Whole records. at: byte in the file; ends: behind each record, in `data`."""

    at: int
    data: bytes
    ends: NDArray[np.int64]


def ranges(file: SourceFile, start: int, quoted: bool) -> list[Range]:
    """All records from byte `start` on. Raises TooLarge, OSError."""
    pieces_ = pieces(file, start, None, quoted, RANGE)
    return [Range(piece.at, piece.at + len(piece.data), len(piece.ends), len(piece.data)) for piece in pieces_]


def pieces(file: SourceFile, start: int, stop: int | None, quoted: bool, chunk: int = CHUNK) -> Iterator[Piece]:
    """Bytes `start` to `stop`, which begin and end at records. Raises TooLarge, OSError."""
    with opened(file) as raw:
        raw.seek(start)
        at, rest = start, b""
        while True:
            wanted = chunk if stop is None else min(chunk, stop - at - len(rest))
            read = raw.read(wanted) if wanted > 0 else b""
            if not read:
                break
            rest += read
            cut, ends = _ends(rest, quoted)
            if cut:
                yield Piece(at, rest[:cut], ends)
                at, rest = at + cut, rest[cut:]
            elif len(rest) > MOST_BYTES:
                raise TooLarge(
                    f"{file.path}: no record ends within {MOST_BYTES} bytes from byte {at}; a quote is not closed?"
                )
        if rest.strip():
            yield Piece(at, rest, np.array([len(rest)]))


def _ends(data: bytes, quoted: bool) -> tuple[int, NDArray[np.int64]]:
    """How much of the data is whole lines, and behind which of them a record ends."""
    array = np.frombuffer(data, np.uint8)
    lines = np.flatnonzero(array == _NEWLINE)
    if quoted and len(lines) and _QUOTE in data:
        before = np.searchsorted(np.flatnonzero(array == _QUOTE), lines)
        lines = lines[before % 2 == 0]
    if not len(lines):
        return 0, lines
    lengths = np.diff(lines, prepend=-1) - 1
    blank = (lengths == 0) | ((lengths == 1) & (array[lines - 1] == _RETURN))
    return int(lines[-1]) + 1, lines[~blank] + 1


def blocks(file: SourceFile, start: int, stop: int, quoted: bool, rows: int) -> Iterator[Piece]:
    """The same, `rows` records to a piece, the last with fewer."""
    at, data, ends = start, b"", np.empty(0, np.int64)
    for piece in pieces(file, start, stop, quoted):
        ends = np.concatenate([ends, piece.ends + len(data)])
        data += piece.data
        first = 0
        while len(ends) - first >= rows:
            begin = int(ends[first - 1]) if first else 0
            end = int(ends[first + rows - 1])
            yield Piece(at + begin, data[begin:end], ends[first : first + rows] - begin)
            first += rows
        if first:
            used = int(ends[first - 1])
            at, data, ends = at + used, data[used:], ends[first:] - used
    if len(ends):
        yield Piece(at, data, ends)


Parse = Callable[[bytes, Sequence[str]], RecordBatch]
"""Records' bytes and columns -> rows of the planned types. Raises ArrowInvalid."""


def parse(piece: Piece, columns: Sequence[str], schema: Schema, how: Parse) -> Rows:
    """The piece as rows. A piece that cannot be parsed is taken apart to its records and their columns: what of them is
    whole is kept, the rest is null and has a reason."""
    pa = pyarrow()
    try:
        batch = how(piece.data, columns)
        if batch.num_rows == len(piece.ends):
            return Rows(batch, {})
    except pa.ArrowInvalid:
        pass
    unfit: dict[int, str] = {}
    cells: dict[str, list[object]] = {name: [] for name in columns}
    begin = 0
    for row, end in enumerate(piece.ends.tolist()):
        record, begin = piece.data[begin:end], end
        for name in columns:
            value, reason = _cell(record, name, how)
            cells[name].append(value)
            if reason:
                unfit.setdefault(row, f"column {name!r}: {reason}")
    arrays = [pa.array(cells[name], schema.field(name).type) for name in columns]
    return Rows(pa.RecordBatch.from_arrays(arrays, names=list(columns)), unfit)


def _cell(record: bytes, name: str, how: Parse) -> tuple[object, str]:
    try:
        column = how(record, (name,)).column(0)
    except pyarrow().ArrowInvalid as error:
        return None, str(error).splitlines()[0][:_UNREADABLE]
    return (column[0].as_py(), "") if len(column) == 1 else (None, f"{len(column)} records where one was expected")


def one_batch(table: Any) -> RecordBatch:
    """What a parser gave, as one."""
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pyarrow().RecordBatch.from_pylist([], schema=table.schema)
