"""What a file format offers a sink: record batches into a file whose bytes follow from them, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO, Protocol

from octoserve.connectors.arrow import RecordBatch, Schema
from octoserve.connectors.files import OutFile
from octoserve.connectors.source import TableFormat


class TableWriter(Protocol):
    """A file that is being written. The same batches give the same bytes."""

    def write(self, batch: RecordBatch) -> None:
        """Append rows. Raises OSError, StoreTrouble."""
        ...

    def close(self) -> None:
        """Write what belongs at the end; the file itself is finished by who made it."""
        ...


class SinkFormat(TableFormat, Protocol):
    """A format that is written, too. Of a `text` one, files hold neither types nor metadata."""

    def refuse(self, schema: Schema) -> None:
        """Raises SettingsError, with the column's name, for what a file cannot hold."""
        ...

    def writer(self, file: OutFile, schema: Schema, group_rows: int, dictionary: Sequence[str]) -> TableWriter:
        """Into a new file.

        group_rows: rows that lie together, where the format has such groups; dictionary: columns whose values repeat
        """
        ...

    def written(self, schema: Schema) -> Schema:
        """Of a table that is written with `schema`: what is read again."""
        ...

    def table(self, file: BinaryIO, schema: Schema | None, columns: Sequence[str] | None) -> Any:
        """All of a file that `writer` wrote, or some columns of it, as a pyarrow Table.

        schema: what `written` gave; of a text format it must be known
        """
        ...
