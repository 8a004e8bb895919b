"""Which source is meant by what somebody wrote: files, a table of Delta or Iceberg, or PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from octoserve.connectors import discovery, formats
from octoserve.connectors.arrow import Schema
from octoserve.connectors.delta import delta_source, is_delta
from octoserve.connectors.iceberg import PREFIX as ICEBERG
from octoserve.connectors.iceberg import iceberg_source
from octoserve.connectors.postgres import SCHEMES as POSTGRES
from octoserve.connectors.postgres import Databases, PostgresSource, address
from octoserve.connectors.source import Range, Rows, Source, SourceFile, TableFormat
from octoserve.core.errors import SettingsError


class Files:
    """Files of one format, on disk or in an object store."""

    def __init__(self, format_: TableFormat, files: Sequence[SourceFile], asked: Sequence[str] = ()) -> None:
        self.files = tuple(files)
        self.pinned = tuple(absolute(pattern) for pattern in asked)
        self.text = format_.text
        self.format = format_.name
        self._format = format_

    def inspect(self, file: SourceFile) -> tuple[Schema, list[Range]]:
        """See `Source.inspect`."""
        return self._format.inspect(file)

    def read(
        self, file: SourceFile, start: int, stop: int, columns: Sequence[str], schema: Schema, rows: int
    ) -> Iterator[Rows]:
        """See `Source.read`."""
        return self._format.read(file, start, stop, columns, schema, rows)

    def identify(self, file: SourceFile) -> SourceFile:
        """See `Source.identify`."""
        return discovery.identify(file.path)

    def close(self) -> None:
        """Nothing is held."""


def find(source: Sequence[str], name: str = "", databases: Databases | None = None) -> Source:
    """What is to be read. name: of the format, where it is said; databases: the way to PostgreSQL.

    Raises SettingsError, Unavailable.
    """
    if any(word.startswith(POSTGRES) for word in source):
        if len(source) > 1:
            raise SettingsError(f"source: one query wanted, {len(source)} sources came; join them in SQL")
        if databases is None:
            raise SettingsError("source: PostgreSQL cannot be read from here")
        return PostgresSource(source[0], databases)
    tables = [word for word in source if word.startswith(ICEBERG) or ((not name or name == "delta") and is_delta(word))]
    if tables:
        if len(source) > 1:
            raise SettingsError(f"source: one table wanted, {len(source)} sources came")
        return iceberg_source(source[0]) if source[0].startswith(ICEBERG) else delta_source(source[0])
    asked = [_one_spelling(word) for word in source]
    format_, files = formats.find(asked, name)
    return Files(format_, files, asked)


def absolute(pattern: str) -> str:
    """The same wherever it is read."""
    return pattern if "://" in pattern else os.path.abspath(pattern)


def _one_spelling(word: str) -> str:
    scheme, mark, rest = word.partition("://")
    if not mark:
        return word
    if scheme not in ("s3", "s3a", "s3n"):
        raise SettingsError(f"source: a path, or an s3:// or postgresql:// URL wanted, {address(word).shown!r} came")
    return f"s3://{rest}"
