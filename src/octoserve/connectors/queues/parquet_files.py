"""Results as Parquet files in a folder: `parquet:///folder?every=5s`, one a micro-batch, each whole or not there.

A file is written under a name that readers pass over, flushed, and renamed. Its rows have their message ids: after a
crash some may be in two files.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from octoserve.connectors.arrow import pyarrow
from octoserve.connectors.queues import columns
from octoserve.connectors.queues.address import Address
from octoserve.connectors.queues.protocol import Claim, Move, Results, SinkTraits, Stored, Unwritable
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.core.signature import TensorSpec

_TYPES = {
    "BOOL": "bool_", "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "UINT8": "uint8",
    "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "FP16": "float32", "BF16": "float32",
    "FP32": "float32", "FP64": "float64", "BYTES": "string",
}  # fmt: skip


class ParquetFolder:
    """A folder of files by day: `day=2026-11-25/143005-<random>.parquet`, in UTC."""

    def __init__(self, folder: Path, prefix: str = "", every: float = 5.0) -> None:
        self._folder = folder
        self._prefix = prefix
        self.traits = SinkTraits(gathers=every)
        self._schema: Any = None

    @property
    def label(self) -> str:
        """See `QueueSink.label`."""
        return f"parquet:///{self._folder}"

    def open(self, source: str, outputs: Sequence[TensorSpec]) -> None:
        """See `QueueSink.open`."""
        pa, names = pyarrow(), columns.names(outputs, self._prefix)
        fields = [(name, _type(spec)) for name, spec in zip(names, outputs, strict=True)]
        ends = [("model", pa.string()), ("version", pa.int64()), ("scored_at", pa.timestamp("us", "UTC"))]
        self._schema = pa.schema([("message_id", pa.string()), *fields, *ends])
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"sink: cannot write to {self._folder}: {error.strerror}") from None

    def claim(self, lanes: Sequence[str], seconds: float | None) -> dict[str, Claim]:
        """See `QueueSink.claim`; a folder knows no owners."""
        return dict.fromkeys(lanes, Claim(1))

    def store(self, results: Results, moves: Sequence[Move]) -> Stored:
        """See `QueueSink.store`."""
        if not results.ids:
            return Stored(0)
        pa = pyarrow()
        arrays: list[Any] = [pa.array(results.ids, pa.string())]
        for array, spec in zip(results.columns, results.outputs, strict=True):
            arrays.append(_column(array, spec))
        at = datetime.fromtimestamp(results.scored_at, UTC)
        rows = len(results.ids)
        arrays += [pa.array([results.model] * rows), pa.array(results.versions), pa.array([at] * rows)]
        whole = [array.cast(field.type) for array, field in zip(arrays, self._schema, strict=True)]
        table = pa.Table.from_arrays(whole, schema=self._schema)
        folder = self._folder / f"day={at:%Y-%m-%d}"
        try:
            _publish(table, folder, f"{at:%H%M%S}-{uuid.uuid4().hex[:12]}.parquet")
        except OSError as error:
            raise Unavailable(f"{self.label}: {error.strerror or error}") from None
        return Stored(rows)

    def close(self) -> None:
        """See `QueueSink.close`."""


def parquet_folder(address: Address) -> ParquetFolder:
    """Of `parquet:///folder`, `parquet:////absolute/folder`. Raises SettingsError."""
    address.only(("prefix", "every"))
    path = address.path.removeprefix("/")
    if address.host or not path:
        raise SettingsError("sink: a folder's address is parquet:///folder, with three slashes")
    every = address.parameters.get("every", "5s")
    try:
        seconds = float(every.removesuffix("s"))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise SettingsError(f"sink: every= is seconds such as 5s, {every!r} came")
    return ParquetFolder(Path(path), address.parameters.get("prefix", ""), seconds)


def _publish(table: Any, folder: Path, name: str) -> None:
    """Written, flushed, renamed, and the folder flushed."""
    folder.mkdir(parents=True, exist_ok=True)
    ahead = folder / f".{name}"
    try:
        with ahead.open("wb") as file:
            pyarrow("parquet").write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        ahead.rename(folder / name)
    except BaseException:
        ahead.unlink(missing_ok=True)
        raise
    for each in (folder, folder.parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _type(spec: TensorSpec) -> Any:
    pa = pyarrow()
    type_ = getattr(pa, _TYPES[spec.datatype])()
    if not columns.is_scalar(spec):
        for _ in spec.shape[1:]:
            type_ = pa.list_(type_)
    return type_


def _column(array: Any, spec: TensorSpec) -> Any:
    pa = pyarrow()
    if columns.is_scalar(spec):
        return pa.array(columns.values(array, spec), _type(spec))
    try:
        nested = columns.plain(array, spec).tolist()
        return pa.array(nested, _type(spec))
    except pa.ArrowException as error:
        raise Unwritable(f"output {spec.name!r}: {error}") from None
