"""Blocks of predictions as a table: a row a row of the model, a typed column a feature and an output.

Columns of ours begin with `_`, and come first; then inputs, then outputs, as `core.fields` names them.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from octoserve.connectors.arrow import pyarrow
from octoserve.core.observation import PARQUET
from octoserve.core.tensors import array_from_raw
from octoserve.telemetry.predictions import Block, Cells

_TYPES = {
    "BOOL": "bool_", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "UINT8": "uint8",
    "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "FP16": "float32", "FP32": "float32",
    "FP64": "float64", "BYTES": "string",
}  # fmt: skip
_GROUP = 65_536
_ROWS_AT_ONCE = 1024
_encode = msgspec.json.Encoder().encode


def table_of(blocks: Sequence[Block]) -> Any:
    """One Arrow table of blocks of one version."""
    pa = pyarrow()
    return pa.concat_tables([_table(block) for block in blocks], promote_options="default")


def _table(block: Block) -> Any:
    pa = pyarrow()
    repeats = np.asarray(block.rows, dtype=np.int64)
    rows = int(repeats.sum())

    def spread(values: Sequence[Any], type_: Any) -> Any:
        """Of each request, for each of its rows."""
        column = pa.array(values, type_)
        return column if rows == len(values) else column.take(pa.array(np.repeat(np.arange(len(values)), repeats)))

    word = pa.string()
    times = [round(time * 1e6) for time in block.times]
    first = np.repeat(np.cumsum(repeats) - repeats, repeats)
    columns: dict[str, Any] = {
        "_time": spread(times, pa.timestamp("us", "UTC")),
        "_request_id": spread([id_ or None for id_ in block.ids], word),
        "_row": pa.array(np.arange(rows) - first, pa.int64()),
        "_model": pa.array([block.model] * rows, word),
        "_version": pa.array([block.version] * rows, pa.int64()),
        "_arm": spread([arm or None for arm in block.arms], word),
        "_key": spread([_key(key) for key in block.keys], word),
        "_latency_seconds": spread(block.seconds, pa.float64()),
        "_status": spread(block.statuses, word),
        "_cut": spread([names or None for names in block.cut or [""] * len(block.rows)], word),
    }
    for cells in block.cells:
        for name, column in _columns(cells, rows):
            columns[name if name not in columns else f"input_{name}"] = column
    return pa.table(columns)


def _columns(cells: Cells, rows: int) -> list[tuple[str, Any]]:
    pa = pyarrow()
    type_ = getattr(pa, _TYPES[cells.datatype])()
    if cells.raw is None:
        nothing = pa.nulls(rows, pa.list_(type_) if cells.is_list else type_)
        return [(name, nothing) for name in cells.names]
    table = array_from_raw(cells.raw, cells.datatype, (rows, cells.width))
    if cells.is_list:
        offsets = np.arange(rows + 1, dtype=np.int32) * cells.width
        return [(cells.names[0], pa.ListArray.from_arrays(pa.array(offsets), _values(table.ravel(), cells, type_)))]
    return [(name, _values(table[:, place], cells, type_)) for place, name in enumerate(cells.names)]


def _values(values: Any, cells: Cells, type_: Any) -> Any:
    pa = pyarrow()
    if cells.datatype == "BYTES":
        return pa.array([value.decode("utf-8", "replace") for value in values.tolist()], type_)
    if cells.datatype == "FP16":
        values = values.astype(np.float32)
    return pa.array(np.ascontiguousarray(values), type_)


def _key(key: bytes | None) -> str | None:
    if key is None:
        return None
    try:
        return key.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(key).decode()


def as_bytes(table: Any, format_: str) -> bytes:
    """A whole file."""
    if format_ == PARQUET:
        out = BytesIO()
        pyarrow("parquet").write_table(table, out, compression="zstd", row_group_size=_GROUP)
        return out.getvalue()
    lines: list[bytes] = []
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        lines.extend(_encode(_plain(row)) for row in batch.to_pylist())
    return b"\n".join(lines) + b"\n"


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    time: datetime = row["_time"]
    row["_time"] = time.astimezone(UTC).isoformat().replace("+00:00", "Z")
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            row[name] = None
    return row


def write(path: Path, data: bytes) -> None:
    """A file, and fsync."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
