"""Arrow IPC files, also known as Feather, and streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from octoserve.connectors.arrow import Array, RecordBatch, Schema, plain_columns, plain_schema, pyarrow
from octoserve.connectors.files import OutFile
from octoserve.connectors.opening import is_object, opened
from octoserve.connectors.source import Range, Rows, SourceFile
from octoserve.core.errors import InvalidInput, SettingsError


class ArrowIpc:
    """The format. A file is read by its record batches, which are held whole; a stream from its beginning only."""

    name = "arrow"
    endings = (".arrow", ".feather", ".arrows")
    text = False

    def inspect(self, file: SourceFile) -> tuple[Schema, list[Range]]:
        """See `TableFormat.inspect`; a range is a record batch, or the whole stream."""
        pa = pyarrow()
        try:
            with pa.memory_map(file.path) if not is_object(file.path) else pa.PythonFile(opened(file), "r") as mapped:
                reader = _opened(mapped)
                if _is_stream(reader):
                    rows = size = 0
                    for batch in reader:
                        rows, size = rows + batch.num_rows, size + batch.nbytes
                    return reader.schema, [Range(0, 1, rows, size)]
                found = []
                for i in range(reader.num_record_batches):
                    batch = reader.get_batch(i)
                    found.append(Range(i, i + 1, batch.num_rows, batch.nbytes))
                return reader.schema, found
        except (pa.ArrowException, OSError) as error:
            raise InvalidInput(f"{file.path} is no Arrow IPC file that can be read: {error}") from None

    def read(
        self, file: SourceFile, start: int, stop: int, columns: Sequence[str], schema: Schema, rows: int
    ) -> Iterator[Rows]:
        """See `TableFormat.read`; a block ends where a record batch does."""
        pa = pyarrow()
        with pa.OSFile(file.path) if not is_object(file.path) else pa.PythonFile(opened(file), "r") as raw:
            reader = _opened(raw, [schema.get_field_index(name) for name in columns])
            batches = reader if _is_stream(reader) else (reader.get_batch(i) for i in range(start, stop))
            for batch in batches:
                chosen = batch.select(list(columns))
                for at in range(0, chosen.num_rows, rows):
                    yield Rows(chosen.slice(at, rows), {})

    def refuse(self, schema: Schema) -> None:
        """See `SinkFormat.refuse`."""
        pa = pyarrow()
        for field in plain_schema(schema):
            try:
                pyarrow("ipc").new_file(pa.BufferOutputStream(), pa.schema([field])).close()
            except pa.ArrowException as error:
                raise SettingsError(
                    f"column {field.name} of type {field.type} cannot be written as Arrow: {error}"
                ) from None

    def writer(self, file: OutFile, schema: Schema, group_rows: int, dictionary: Sequence[str]) -> ArrowWriter:
        """See `SinkFormat.writer`."""
        return ArrowWriter(file, schema, group_rows)

    def written(self, schema: Schema) -> Schema:
        """See `SinkFormat.written`."""
        return plain_schema(schema)

    def table(self, file: BinaryIO, schema: Schema | None, columns: Sequence[str] | None) -> Any:
        """See `SinkFormat.table`."""
        with _opened(pyarrow().PythonFile(file, "r")) as reader:
            found = reader.read_all()
        return found if columns is None else found.select(list(columns))


class ArrowWriter:
    """Writes an IPC file: not compressed, so that it can be mapped, and read in every language.

    A record batch has `group_rows` rows, or a block more.
    """

    def __init__(self, file: OutFile, schema: Schema, group_rows: int) -> None:
        pa = pyarrow()
        self._schema = plain_schema(schema)
        self._group_rows = group_rows
        self._waiting: list[RecordBatch] = []
        self._rows = 0
        self._file = pa.PythonFile(file, mode="w")
        self._writer = pyarrow("ipc").new_file(self._file, self._schema)

    def write(self, batch: RecordBatch) -> None:
        """See `TableWriter.write`."""
        columns = [_settled(column) for column in plain_columns(batch, self._schema)]
        self._waiting.append(pyarrow().RecordBatch.from_arrays(columns, schema=self._schema))
        self._rows += batch.num_rows
        if self._rows >= self._group_rows:
            self._flush()

    def close(self) -> None:
        """See `TableWriter.close`."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            (whole,) = pyarrow().Table.from_batches(self._waiting).combine_chunks().to_batches()
            self._writer.write_batch(whole)
        self._waiting, self._rows = [], 0


def _settled(column: Array) -> Array:
    """The same column with zeros where there is no value. What lies under a null is nobody's: a decoder leaves there
    what was in memory, and this file has all of a column's bytes."""
    pa = pyarrow()
    type_, types, rows = column.type, pa.types, len(column)
    if types.is_nested(type_):
        return pa.array(column.to_pylist(), type_) if _has_nulls(column) else column
    if not column.null_count or types.is_null(type_):
        return column
    present = column.is_valid().to_numpy(zero_copy_only=False)
    mask = pa.py_buffer(np.packbits(present, bitorder="little"))
    if types.is_boolean(type_):
        bits = np.packbits(column.fill_null(False).to_numpy(zero_copy_only=False), bitorder="little")
        return pa.Array.from_buffers(type_, rows, [mask, pa.py_buffer(bits)])
    try:
        width = type_.bit_width // 8
    except ValueError:  # texts and bytes: nothing lies there
        return column
    begin = column.offset * width
    values = np.frombuffer(column.buffers()[1], np.uint8)[begin : begin + rows * width].reshape(rows, width).copy()
    values[~present] = 0
    return pa.Array.from_buffers(type_, rows, [mask, pa.py_buffer(values)])


def _has_nulls(column: Array) -> bool:
    if column.null_count:
        return True
    types = pyarrow().types
    if types.is_struct(column.type):
        return any(map(_has_nulls, column.flatten()))
    return types.is_nested(column.type) and not types.is_map(column.type) and _has_nulls(column.flatten())


def _opened(file: Any, fields: Sequence[int] | None = None) -> Any:
    ipc = pyarrow("ipc")
    options = ipc.IpcReadOptions(included_fields=sorted(fields) if fields is not None else None, use_threads=False)
    try:
        return ipc.open_file(file, options=options)
    except pyarrow().ArrowInvalid:
        file.seek(0)
        return ipc.open_stream(file, options=options)


def _is_stream(reader: Any) -> bool:
    return not hasattr(reader, "num_record_batches")
