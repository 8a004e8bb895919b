"""Record batches as lines of text, whole columns at a time: what CSV's fields and JSON's values have in common.

Every value is written such that it can be read back exactly: floats as the shortest text that gives the same float,
with a point or an exponent, so that a column of whole ones stays one of floats; integers and decimals in full; instants
in UTC; what JSON has no number for as the words NaN, Infinity and -Infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from octoserve.connectors.arrow import Array, DataType, RecordBatch, Schema, plain_columns, plain_schema, pyarrow
from octoserve.connectors.files import OutFile

_WORDS = ((math.inf, "Infinity"), (-math.inf, "-Infinity"))


class LineWriter:
    """Writes what `line` makes of a batch's columns: a text a row, newline and all, none of them null."""

    def __init__(self, file: OutFile, schema: Schema, head: bytes, line: Callable[[Sequence[Array]], Array]) -> None:
        """head: the file's first bytes."""
        self._file = file
        self._schema = plain_schema(schema)
        self._line = line
        if head:
            file.write(head)

    def write(self, batch: RecordBatch) -> None:
        """See `TableWriter.write`."""
        if batch.num_rows:
            self._file.write(_bytes(self._line(plain_columns(batch, self._schema))))

    def close(self) -> None:
        """Nothing belongs at the end."""


def _bytes(texts: Array) -> bytes:
    """All of them, one behind the other."""
    _, offsets, data = texts.buffers()
    places = np.frombuffer(offsets, np.int32)
    return bytes(data[int(places[texts.offset]) : int(places[texts.offset + len(texts)])])


def is_single(type_: DataType) -> bool:
    """Whether `words` takes such a (plain) type: one value, and no bytes."""
    types = pyarrow().types
    kinds = (
        types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_decimal, types.is_string,
        types.is_large_string, types.is_date, types.is_time, types.is_timestamp, types.is_duration,
    )  # fmt: skip
    return any(kind(type_) for kind in kinds)


def is_text(type_: DataType) -> bool:
    """Whether its values are texts, which need quotes."""
    types = pyarrow().types
    return bool(types.is_string(type_) or types.is_large_string(type_))


def words(column: Array) -> Array:
    """A column of single values as text without quotes, null where it is null."""
    pa = pyarrow()
    type_, types = column.type, pa.types
    if types.is_floating(type_):
        return _float_words(column.cast(pa.float32()) if types.is_float16(type_) else column)
    if types.is_null(type_):
        return pa.nulls(len(column), pa.string())
    if types.is_timestamp(type_) and type_.tz:
        column = column.cast(pa.timestamp(type_.unit, "UTC"))
    if types.is_duration(type_):
        column = column.cast(pa.int64())
    return column.cast(pa.string())


def _float_words(column: Array) -> Array:
    pa, compute = pyarrow(), pyarrow("compute")
    said = compute.replace_substring_regex(column.cast(pa.string()), "^(-?[0-9]+)$", r"\1.0")
    if compute.all(compute.is_finite(column)).as_py() is not False:
        return said
    said = compute.if_else(compute.is_nan(column), "NaN", said)
    for value, word in _WORDS:
        said = compute.if_else(compute.equal(column, pa.scalar(value, column.type)), word, said)
    return said


def joined(pieces: Sequence[Array | str], null: str) -> Array:
    """The pieces of each row, one behind the other; a null among them is `null`."""
    compute = pyarrow("compute")
    return compute.binary_join_element_wise(*pieces, "", null_handling="replace", null_replacement=null)
