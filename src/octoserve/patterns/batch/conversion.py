"""Rows of a record batch as tensors. No copy where the columns already lie as the model wants them.

Rows that cannot be made into tensors are told apart first, with the reason of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octoserve.connectors.arrow import Array as ArrowArray
from octoserve.connectors.arrow import RecordBatch, pyarrow
from octoserve.core.datatypes import DATATYPES
from octoserve.core.tensors import Array
from octoserve.patterns.batch.matching import Feed, datatype_of


def unfit(batch: RecordBatch, feeds: Sequence[Feed], nan_for_missing: bool) -> dict[int, str]:
    """Rows that lack a value, or whose list has another length than the model wants: row -> reason."""
    reasons: dict[int, str] = {}
    for feed in feeds:
        allowed = nan_for_missing and DATATYPES[feed.spec.datatype].kind == "float"
        for name in feed.columns:
            column = batch.column(name)
            lists = feed.shape != () and not feed.stacked and _is_list(column)
            if column.null_count and not (allowed and not lists):
                for row in np.flatnonzero(~valid(column)).tolist():
                    reasons.setdefault(row, f"missing value in column {name!r}")
            if lists:
                _unfit_lists(column, name, feed, allowed, reasons)
    return reasons


def tensors(batch: RecordBatch, feeds: Sequence[Feed]) -> list[Array]:
    """Inputs in signature order, of rows that are fit. A missing number, where allowed, is NaN."""
    return [_tensor(batch, feed) for feed in feeds]


def _tensor(batch: RecordBatch, feed: Feed) -> Array:
    kind = DATATYPES[feed.spec.datatype]
    rows = batch.num_rows
    if kind.kind == "bytes":
        if feed.stacked:
            table = np.empty((rows, len(feed.columns)), dtype=object)
            for i, name in enumerate(feed.columns):
                table[:, i] = words(batch.column(name))
            return table.reshape((rows, *feed.shape))
        return words(_elements(batch.column(feed.columns[0]), len(feed.shape))).reshape((rows, *feed.shape))
    if not feed.stacked:
        flat = numbers(_elements(batch.column(feed.columns[0]), len(feed.shape)), kind.dtype)
        return flat.reshape((rows, *feed.shape))
    if len(feed.columns) == 1:
        return numbers(batch.column(feed.columns[0]), kind.dtype).reshape((rows, *feed.shape))
    columns = [batch.column(name) for name in feed.columns]
    wanted = columns[0].type
    if datatype_of(wanted) == feed.spec.datatype != "BOOL" and all(
        c.type == wanted and not c.null_count for c in columns
    ):
        chosen = pyarrow().RecordBatch.from_arrays(columns, names=[str(i) for i in range(len(columns))])
        made: Array = chosen.to_tensor(row_major=True).to_numpy()
        return made
    table = np.empty((rows, len(columns)), dtype=kind.dtype)
    for i, column in enumerate(columns):
        table[:, i] = numbers(column, kind.dtype)
    return table


def valid(column: ArrowArray) -> NDArray[np.bool_]:
    """Which rows have a value."""
    return bits(column.is_valid())


def bits(column: ArrowArray) -> NDArray[np.bool_]:
    """A boolean column without nulls as an array."""
    start, count = column.offset, len(column)
    packed = np.frombuffer(column.buffers()[1], dtype=np.uint8) if count else np.empty(0, np.uint8)
    return np.unpackbits(packed, count=start + count, bitorder="little")[start:].view(np.bool_)


def numbers(column: ArrowArray, dtype: np.dtype[Any]) -> Array:
    """A column of numbers as an array, a view where nothing is converted; nulls are NaN.

    Goes by the buffers: pyarrow's own way to numpy imports pandas if that is installed.
    """
    pa = pyarrow()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    count = len(column)
    if pa.types.is_boolean(column.type):
        values: Array = bits(column) if count else np.empty(0, np.bool_)
    else:
        own = DATATYPES[datatype_of(column.type) or ""].dtype
        start = column.offset
        values = np.frombuffer(column.buffers()[1], dtype=own)[start : start + count] if count else np.empty(0, own)
    converted = values.astype(dtype, copy=False)
    if column.null_count:
        converted = converted.copy()
        converted[~valid(column)] = np.nan
    return converted


def words(column: ArrowArray) -> Array:
    """A column of text or bytes as an object array of `bytes`."""
    pa = pyarrow()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    made = np.empty(len(column), dtype=object)
    made[:] = [item.encode() if isinstance(item, str) else item for item in column.to_pylist()]
    return made


def _is_list(column: ArrowArray) -> bool:
    types = pyarrow().types
    if isinstance(column.type, pyarrow().BaseExtensionType):
        return True
    return bool(types.is_fixed_size_list(column.type) or types.is_list(column.type) or types.is_large_list(column.type))


def _elements(column: ArrowArray, depth: int) -> ArrowArray:
    """The innermost values of rows that are fit, flat."""
    if isinstance(column.type, pyarrow().BaseExtensionType):
        column = column.storage
    for _ in range(depth):
        if not _is_list(column):
            break
        column = column.flatten()
    return column


def _unfit_lists(column: ArrowArray, name: str, feed: Feed, nan_for_missing: bool, reasons: dict[int, str]) -> None:
    """Level by level: each list must have its dimension's length, and no value in it may be missing."""
    if isinstance(column.type, pyarrow().BaseExtensionType):
        column = column.storage
    owner = np.arange(len(column))  # the row that each list of this level belongs to
    for size in feed.shape:
        if not _is_list(column):
            break
        present = valid(column)
        for row in owner[~present].tolist():
            reasons.setdefault(row, f"missing value in column {name!r}")
        if pyarrow().types.is_fixed_size_list(column.type):
            lengths = np.where(present, size, 0)
        else:
            offsets = numbers(column.offsets, np.dtype(np.int64))
            lengths = np.where(present, np.diff(offsets), 0)
            for at in np.flatnonzero(present & (lengths != size)).tolist():
                reasons.setdefault(
                    int(owner[at]), f"a list of {lengths[at]} in column {name!r}, where the model takes {size}"
                )
        owner = np.repeat(owner, lengths)
        column = column.flatten()
    if column.null_count and not nan_for_missing:
        for row in np.unique(owner[~valid(column)]).tolist():
            reasons.setdefault(row, f"missing value in a list of column {name!r}")
