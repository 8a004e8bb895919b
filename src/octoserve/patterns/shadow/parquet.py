"""Pairs as Parquet: the columns that people query, and rows back from them. The one module that knows pyarrow.

The partition's values (endpoint, rollout, day) are in the path only, as Hive has it. A segment of the rollout is a
column `segment_NAME` (letters, digits, `_`); its own name is in the column's metadata.
"""

from __future__ import annotations

import base64
import importlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from octoserve.control.report.readable import text_of
from octoserve.core.comparison import Deviation
from octoserve.core.errors import SettingsError
from octoserve.telemetry.pairs import Pair, RawTensor

RAW_BYTES = 16 << 10
"""Bytes of all tensors of a pair up to which their raw forms are kept too."""

_ROWS_AT_ONCE = 512
_GROUP = 4096

_encode = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode
_differing = msgspec.json.Decoder(dict[str, Deviation]).decode
_raws = msgspec.msgpack.Decoder(tuple[list[RawTensor], list[RawTensor], list[RawTensor]]).decode


Row = TypeVar("Row", bound=msgspec.Struct)


def pyarrow() -> Any:
    """The library. Raises SettingsError that says how to install it."""
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError:
        raise SettingsError(
            "the store of pairs needs pyarrow, which is not installed: pip install 'octoserve[rollout]'"
        ) from None


def _schema(arrow: Any, segment_columns: dict[str, str], metadata: dict[str, str]) -> Any:
    word = arrow.dictionary(arrow.int32(), arrow.string())
    fields = [
        arrow.field("time", arrow.timestamp("us", "UTC"), nullable=False),
        arrow.field("kind", word, nullable=False),
        arrow.field("stratum", word, nullable=False),
        arrow.field("key", arrow.string()),
        arrow.field("key_base64", arrow.string()),
        *(arrow.field(column, word, metadata={"segment": name}) for name, column in segment_columns.items()),
        arrow.field("stable_version", arrow.int64(), nullable=False),
        arrow.field("candidate_version", arrow.int64(), nullable=False),
        arrow.field("stable_seconds", arrow.float64(), nullable=False),
        arrow.field("candidate_seconds", arrow.float64(), nullable=False),
        arrow.field("agreed", arrow.bool_()),
        arrow.field("worst", arrow.float64()),
        arrow.field("rows", arrow.int64(), nullable=False),
        arrow.field("rows_differing", arrow.int64(), nullable=False),
        arrow.field("differing", arrow.string(), nullable=False),
        arrow.field("error", word, nullable=False),
        arrow.field("inputs", arrow.string(), nullable=False),
        arrow.field("stable", arrow.string(), nullable=False),
        arrow.field("candidate", arrow.string(), nullable=False),
        arrow.field("datatypes", word, nullable=False),
        arrow.field("raw", arrow.binary()),
    ]
    return arrow.schema(fields, metadata=metadata)


def write(path: Path, pairs: Sequence[Pair]) -> int:
    """Write pairs of one endpoint and rollout and fsync the file; returns the rows that its footer counts."""
    arrow = pyarrow()
    names = sorted({name for pair in pairs for name in pair.segments})
    columns = _columns(names)
    rows = [_row(pair, columns) for pair in pairs]
    schema = _schema(arrow, columns, {"endpoint": pairs[0].endpoint, "rollout": pairs[0].rollout})
    table = arrow.Table.from_pylist(rows, schema=schema)
    with open(path, "wb") as file:
        arrow.parquet.write_table(table, file, compression="zstd", row_group_size=_GROUP)
        file.flush()
        os.fsync(file.fileno())
    return count(path)


def _columns(names: Sequence[str]) -> dict[str, str]:
    """Segment -> column; two that would share a column get a number."""
    columns: dict[str, str] = {}
    for name in names:
        plain = column = "segment_" + re.sub(r"\W", "_", name)
        number = 2
        while column in columns.values():
            column, number = f"{plain}_{number}", number + 1
        columns[name] = column
    return columns


def _row(pair: Pair, columns: dict[str, str]) -> dict[str, Any]:
    key, key_base64 = _key(pair.key)
    is_compared = not pair.error
    return {
        "time": round(pair.time * 1e6),
        "kind": pair.kind,
        "stratum": pair.stratum,
        "key": key,
        "key_base64": key_base64,
        **{columns[name]: value for name, value in pair.segments.items()},
        "stable_version": pair.stable_version,
        "candidate_version": pair.candidate_version,
        "stable_seconds": pair.stable_seconds,
        "candidate_seconds": pair.candidate_seconds,
        "agreed": not pair.differing if is_compared else None,
        "worst": max((d.magnitude for d in pair.differing.values()), default=0.0) if is_compared else None,
        "rows": pair.rows,
        "rows_differing": pair.rows_differing,
        "differing": _encode(pair.differing).decode(),
        "error": pair.error,
        "inputs": text_of(pair.inputs),
        "stable": text_of(pair.stable),
        "candidate": text_of(pair.candidate),
        "datatypes": _encode(
            {
                "inputs": {tensor.name: tensor.datatype for tensor in pair.inputs},
                "outputs": {tensor.name: tensor.datatype for tensor in pair.stable},
            }
        ).decode(),
        "raw": _raw(pair),
    }


def _key(key: bytes | None) -> tuple[str | None, str | None]:
    if key is None:
        return None, None
    try:
        return key.decode(), None
    except UnicodeDecodeError:
        return None, base64.b64encode(key).decode()


def _raw(pair: Pair) -> bytes | None:
    size = sum(len(tensor.raw) for tensors in (pair.inputs, pair.stable, pair.candidate) for tensor in tensors)
    return _pack((pair.inputs, pair.stable, pair.candidate)) if size <= RAW_BYTES else None


def tensors_of(raw: bytes) -> tuple[list[RawTensor], list[RawTensor], list[RawTensor]]:
    """Inputs, stable's and candidate's outputs from the `raw` column, bit by bit as they were."""
    return _raws(raw)


def count(path: Path) -> int:
    """Rows of a file, from its footer."""
    arrow = pyarrow()
    return int(arrow.parquet.read_metadata(path).num_rows)


def whose(path: Path) -> tuple[str, str]:
    """The endpoint and the rollout of a file, as they were named."""
    metadata = pyarrow().parquet.read_schema(path).metadata
    return metadata[b"endpoint"].decode(), metadata[b"rollout"].decode()


def read(path: Path, kind: type[Row]) -> Iterator[Row]:
    """Rows of a file as values of `kind`, a part of the file at a time. Raises FileNotFoundError."""
    arrow = pyarrow()
    with arrow.parquet.ParquetFile(path) as file:
        segments = {
            field.name: field.metadata[b"segment"].decode()
            for field in file.schema_arrow
            if field.metadata and b"segment" in field.metadata
        }
        plain = [name for name in kind.__struct_fields__ if name != "segments"]
        wanted = [*plain, "key_base64", *segments]
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
            columns = {name: batch.column(name) for name in wanted}
            columns["time"] = columns["time"].cast(arrow.int64())
            lists = {name: column.to_pylist() for name, column in columns.items()}
            for i in range(batch.num_rows):
                yield _from(kind, plain, segments, lists, i)


def _from(kind: type[Row], plain: Sequence[str], segments: dict[str, str], lists: dict[str, list[Any]], i: int) -> Row:
    fields = {name: lists[name][i] for name in plain}
    fields["time"] /= 1e6
    fields["differing"] = _differing(fields["differing"])
    if fields["key"] is None and lists["key_base64"][i] is not None:
        fields["key"] = "base64:" + lists["key_base64"][i]
    values = {name: lists[column][i] for column, name in segments.items()}
    fields["segments"] = {name: value for name, value in values.items() if value is not None}
    return kind(**fields)
