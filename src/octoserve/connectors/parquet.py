"""Parquet files: read as a stream, a few hundred KB of each column at a time; written so that the same rows give the
same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from octoserve.connectors.arrow import RecordBatch, Schema, fixed_width, pyarrow
from octoserve.connectors.files import OutFile
from octoserve.connectors.opening import is_object, opened
from octoserve.connectors.source import Range, Rows, SourceFile
from octoserve.core.errors import InvalidInput

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
        self._group_rows = group_rows
        self._file = pyarrow().PythonFile(file, mode="w")
        self._writer = pyarrow("parquet").ParquetWriter(
            self._file,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=list(dictionary) or False,  # trying one on floats or keys costs more than scoring them
            store_schema=True,
        )

    def write(self, batch: RecordBatch) -> None:
        """Append rows. Raises OSError."""
        if batch.num_rows:
            self._writer.write_batch(batch, row_group_size=self._group_rows)

    def close(self) -> None:
        """Write the footer; the file itself is finished by who made it."""
        self._writer.close()


def footer(file: SourceFile) -> tuple[int, Mapping[bytes, bytes]]:
    """A file's rows and what its writer noted, from its footer. Raises InvalidInput, OSError."""
    with open_parquet(file) as table:
        return table.metadata.num_rows, table.schema_arrow.metadata or {}
