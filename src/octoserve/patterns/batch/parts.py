"""One split's files while they are written, and the order in which they become the result.

1. Written where nobody looks, hashed; on a disk fsynced.   Crash after it: orphans.
2. The lease is asked.                                      The same.
3. Bad rows, then the part: published.                      Not journaled: done again, the same bytes, the same name.
4. The journal's line, durable.                             Done.
"""

from __future__ import annotations

from typing import Protocol

from octoserve.connectors.arrow import Schema
from octoserve.connectors.files import OutFile
from octoserve.patterns.batch.job import Split
from octoserve.patterns.batch.journal import Finished, Part
from octoserve.patterns.batch.outputs import Layout
from octoserve.patterns.batch.scoring import Scored

BAD = "_bad"


class Shelf(Protocol):
    """Where parts are written and published by name: `part-00000.parquet`, `_bad/part-00000.parquet`."""

    @property
    def token(self) -> int:
        """Of the run."""
        ...

    def new_file(self, name: str) -> OutFile:
        """To be published under that name. Raises OSError, StoreTrouble."""
        ...

    def publish(self, file: OutFile, name: str) -> None:
        """Of a finished file; whole or not at all."""
        ...

    def check(self) -> None:
        """Raises Fenced."""
        ...

    def journal(self, line: Finished) -> None:
        """Returns when it is durable. In any thread."""
        ...


class _Table:
    """A file that is being written."""

    def __init__(self, shelf: Shelf, name: str, schema: Schema, shape: Layout) -> None:
        self.name = name
        self.rows = 0
        self.file = shelf.new_file(name)
        dictionary = [column for column in shape.dictionary if column in schema.names]
        self.writer = shape.format.writer(self.file, schema, shape.group_rows, dictionary)

    def finish(self) -> Part:
        self.writer.close()
        digest = self.file.finish()
        return Part(name=self.name, rows=self.rows, bytes=self.file.tell(), sha256=digest)


class SplitFiles:
    """See `sinks.SplitOut`."""

    def __init__(self, shelf: Shelf, split: Split, shape: Layout, stem: str = "") -> None:
        """stem: put before the files' names."""
        self._shelf = shelf
        self._split = split
        self._shape = shape
        self._name = f"{stem}{split.name}{shape.format.endings[0]}"
        self._good = _Table(shelf, self._name, shape.schema, shape)
        self._bad: _Table | None = None

    def write(self, scored: Scored) -> None:
        """The next block, in order. Raises OSError, StoreTrouble."""
        self._good.writer.write(scored.good)
        self._good.rows += scored.good.num_rows
        if scored.bad is not None:
            if self._bad is None:
                self._bad = _Table(self._shelf, f"{BAD}/{self._name}", self._shape.bad_schema, self._shape)
            self._bad.writer.write(scored.bad)
            self._bad.rows += scored.bad.num_rows

    def finish(self, seconds: float, at: float) -> Finished:
        """See the module. Raises OSError, StoreTrouble, Fenced."""
        shelf = self._shelf
        part = self._good.finish()
        bad = self._bad.finish() if self._bad is not None else None
        shelf.check()
        if self._bad is not None and bad is not None:
            shelf.publish(self._bad.file, bad.name)
        shelf.publish(self._good.file, part.name)
        line = Finished(split=self._split.index, token=shelf.token, part=part, bad=bad, seconds=seconds, at=at)
        shelf.journal(line)
        return line

    def abandon(self) -> None:
        """Remove what was not published."""
        for table in (self._good, self._bad):
            if table is not None:
                table.file.abandon()
