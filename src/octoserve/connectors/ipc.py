"""Arrow IPC files, also known as Feather, and streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from octoserve.connectors.arrow import Schema, pyarrow
from octoserve.connectors.opening import is_object, opened
from octoserve.connectors.source import Range, Rows, SourceFile
from octoserve.core.errors import InvalidInput


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
