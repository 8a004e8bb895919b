"""Parquet files: read as a stream, a few hundred KB of each column at a time; written so that the same rows give the
same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from octoserve.connectors.arrow import RecordBatch, Schema, fixed_width, pyarrow
from octoserve.connectors.files import OutFile
from octoserve.connectors.opening import is_object, opened
from octoserve.connectors.source import Range, Rows, SourceFile
from octoserve.core.errors import InvalidInput, SettingsError

COLUMN_BUFFER = 256 << 10
"""Bytes of each column chunk that are read at a time: a row group is never held whole."""
FAR_BUFFER = 16 << 20
"""The same of an object, over all columns of a lane: every read is a request, which takes as long as a MB or two."""
FAR_COLUMN = 4 << 20
"""And of one column at most."""


class Parquet:
    """The format."""

    name = "parquet"
    endings = (".parquet", ".pq")
    text = False

    def inspect(self, file: SourceFile) -> tuple[Schema, list[Range]]:
        """See `TableFormat.inspect`; a range is a row group."""
        with open_parquet(file) as table:
            metadata = table.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            width = fixed_width(table.schema_arrow)  # what is encoded well is small in a file, and not when it is read
            sizes = [max(group.total_byte_size, group.num_rows * width) for group in groups]
            return table.schema_arrow, [Range(i, i + 1, g.num_rows, sizes[i]) for i, g in enumerate(groups)]

    def read(
        self, file: SourceFile, start: int, stop: int, columns: Sequence[str], schema: Schema, rows: int
    ) -> Iterator[Rows]:
        """See `TableFormat.read`."""
        with open_parquet(file, len(columns)) as table:
            batches = table.iter_batches(rows, row_groups=range(start, stop), columns=list(columns), use_threads=False)
            for batch in batches:
                yield Rows(batch.select(list(columns)), {})

    def refuse(self, schema: Schema) -> None:
        """See `SinkFormat.refuse`."""
        pa, parquet = pyarrow(), pyarrow("parquet")
        for field in schema:
            try:
                parquet.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])).close()
            except pa.ArrowException as error:
                raise SettingsError(
                    f"column {field.name} of type {field.type} cannot be written as Parquet: {error}"
                ) from None

    def writer(self, file: OutFile, schema: Schema, group_rows: int, dictionary: Sequence[str]) -> ParquetWriter:
        """See `SinkFormat.writer`."""
        return ParquetWriter(file, schema, group_rows, dictionary)

    def written(self, schema: Schema) -> Schema:
        """See `SinkFormat.written`."""
        return schema

    def table(self, file: BinaryIO, schema: Schema | None, columns: Sequence[str] | None) -> Any:
        """See `SinkFormat.table`."""
        return pyarrow("parquet").ParquetFile(file, pre_buffer=True).read(columns=columns)


def open_parquet(file: SourceFile, columns: int = 1) -> Any:
    """pyarrow's ParquetFile. columns: how many will be read at once. Raises InvalidInput, OSError."""
    parquet = pyarrow("parquet")
    far = is_object(file.path)
    buffer = max(COLUMN_BUFFER, min(FAR_COLUMN, FAR_BUFFER // max(1, columns))) if far else COLUMN_BUFFER
    try:
        return parquet.ParquetFile(opened(file) if far else file.path, buffer_size=buffer, pre_buffer=False)
    except (pyarrow().ArrowInvalid, pyarrow().ArrowNotImplementedError) as error:
        raise InvalidInput(f"{file.path} is no Parquet file that can be read: {error}") from None


class ParquetWriter:
    """Writes record batches into a new file. The bytes follow from the batches, the schema and `group_rows`."""

    def __init__(self, file: OutFile, schema: Schema, group_rows: int, dictionary: Sequence[str]) -> None:
        pa = pyarrow()
        self._group_rows = group_rows
        self._file = pa.PythonFile(file, mode="w")
        # Of whole numbers the differences, packed: half the time of what compresses them as they are, and fewer bytes.
        # (A name with a dot could be the path of another column.)
        plain = [field for field in schema if "." not in field.name and field.name not in dictionary]
        whole = [field.name for field in plain if pa.types.is_integer(field.type)]
        self._writer = pyarrow("parquet").ParquetWriter(
            self._file,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=list(dictionary) or False,  # trying one on floats or keys costs more than scoring them
            column_encoding=dict.fromkeys(whole, "DELTA_BINARY_PACKED"),
            store_schema=True,
        )

    def write(self, batch: RecordBatch) -> None:
        """Append rows. Raises OSError."""
        if batch.num_rows:
            self._writer.write_batch(batch, row_group_size=self._group_rows)

    def close(self) -> None:
        """Write the footer; the file itself is finished by who made it."""
        self._writer.close()
