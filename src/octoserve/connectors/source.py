"""What a table source offers a job: files with an identity, ranges in them, and record batches out of a range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from octoserve.connectors.arrow import RecordBatch, Schema


class SourceFile(msgspec.Struct, frozen=True):
    """One file as it was found: what its identity is.

    path:       absolute, or the URL of an object, or of what else is read as if it were a file
    mtime_ns:   of a local file; 0 where `etag` says more
    partitions: Hive's columns in the path, name -> text (None: null)
    etag:       of an object; a fingerprint of the rows where there is neither file nor object
    """

    path: str
    size: int
    mtime_ns: int
    partitions: dict[str, str | None] = {}
    etag: str = ""


class Range(msgspec.Struct, frozen=True):
    """The least that a file can be read by. start, stop: row groups, record batches or bytes, as the format has it.

    bytes: what reading it gives, about
    """

    start: int
    stop: int
    rows: int
    bytes: int


class Rows(NamedTuple):
    """A block. unfit: rows that could not be read, with the reason; in `batch` they are null where they could not."""

    batch: RecordBatch
    unfit: dict[int, str]


class TableFormat(Protocol):
    """One file format. All methods block; each opens the file anew, so they may run in any thread."""

    @property
    def name(self) -> str:
        """As `--format` takes it."""
        ...

    @property
    def endings(self) -> Sequence[str]:
        """Of its files' names."""
        ...

    @property
    def text(self) -> bool:
        """Whether values have no type of their own: `read` then makes them what its schema says."""
        ...

    def inspect(self, file: SourceFile) -> tuple[Schema, list[Range]]:
        """The file's columns, and all of it in ranges, in order. Raises InvalidInput if it is not of this format."""
        ...

    def read(
        self, file: SourceFile, start: int, stop: int, columns: Sequence[str], schema: Schema, rows: int
    ) -> Iterator[Rows]:
        """The rows of ranges `start` to `stop`, in order; `rows` to a batch, the last with fewer.

        columns: these, in this order. schema: what they were planned to be
        """
        ...


class Source(Protocol):
    """A table to read: found once, and pinned to what it was then. All methods block, in any thread."""

    @property
    def format(self) -> str:
        """Its name; with `pinned` and `files` it makes the same source again in another process."""
        ...

    @property
    def pinned(self) -> tuple[str, ...]:
        """Where it is, such that looking again finds the same: absolute, with the version of what has versions.

        Without secrets.
        """
        ...

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """What is read, in the order of the rows."""
        ...

    @property
    def text(self) -> bool:
        """See `TableFormat.text`."""
        ...

    def inspect(self, file: SourceFile) -> tuple[Schema, list[Range]]:
        """See `TableFormat.inspect`."""
        ...

    def read(
        self, file: SourceFile, start: int, stop: int, columns: Sequence[str], schema: Schema, rows: int
    ) -> Iterator[Rows]:
        """See `TableFormat.read`."""
        ...

    def identify(self, file: SourceFile) -> SourceFile:
        """The file as it is now; equal to `file` unless it has changed. Raises SettingsError if it is gone."""
        ...

    def close(self) -> None:
        """Let go of what pins it."""
        ...
