"""Is a committed sink what its manifest says? Every byte is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec

from octoserve.connectors.formats import SINK_FORMATS
from octoserve.connectors.gathering import BUFFER
from octoserve.connectors.source import SourceFile
from octoserve.core.errors import InvalidInput, NotFound
from octoserve.patterns.batch import manifest
from octoserve.patterns.batch.job import Difference
from octoserve.patterns.batch.journal import Part
from octoserve.patterns.batch.outputs import bad_schema, schema_of
from octoserve.patterns.batch.parts import BAD
from octoserve.patterns.batch.workplace import INSIDE


class Verified(msgspec.Struct, frozen=True):
    """differences: none if all is as it was committed."""

    manifest: manifest.Manifest
    differences: tuple[Difference, ...]


class Reading(Protocol):
    """A sink whose parts are files."""

    def opened(self, part: str) -> AbstractContextManager[tuple[BinaryIO, SourceFile]]:
        """A part to be read, and what it is. Raises OSError, NotFound."""
        ...

    def names(self) -> set[str]:
        """Of all files there, as in the manifest."""
        ...


def verify(sink: str | Path, seen: Callable[[Part], None] = lambda part: None) -> Verified:
    """seen: called after each file. Raises NotFound if nothing is committed there, DamagedManifest."""
    from octoserve.patterns.batch.places import sink_of  # which imports the sinks, which import this

    place = sink_of(str(sink))
    whole = place.committed()
    if whole is None:
        raise NotFound(f"{place.name} holds no {manifest.SUCCESS}: no batch job was committed there")
    return Verified(whole, tuple(place.differences(whole, seen)))


def part_differences(
    sink: Reading, whole: manifest.Manifest, seen: Callable[[Part], None], known: frozenset[str] = frozenset()
) -> Iterator[Difference]:
    """Of a sink whose parts are files. known: further names that belong there."""
    for part in (*whole.parts, *whole.bad):
        yield from _part(sink, part, whole)
        seen(part)
    ours = {part.name for part in (*whole.parts, *whole.bad)} | {manifest.SUCCESS, BAD, INSIDE} | known
    for name in sorted(sink.names() - ours):
        yield Difference(name, "no such file", "a file", "nobody reads it who goes by the manifest")


def part_tables(sink: Reading, whole: manifest.Manifest, bad: bool, columns: Sequence[str] | None) -> Iterator[Any]:
    """The parts, or those of bad rows, in order."""
    format_, schema = SINK_FORMATS[whole.settings.written], None
    if not isinstance(whole.arrow_schema, msgspec.UnsetType):
        schema = schema_of(whole.arrow_schema)
        if bad:
            schema = bad_schema({name: schema.field(name) for name in whole.settings.keys})
    for part in whole.bad if bad else whole.parts:
        with sink.opened(part.name) as (raw, _):
            yield format_.table(raw, schema, columns)


def _part(sink: Reading, part: Part, whole: manifest.Manifest) -> Iterator[Difference]:
    try:
        with sink.opened(part.name) as (raw, file):
            hashed, size = hashlib.sha256(), 0
            while data := raw.read(BUFFER):
                hashed.update(data)
                size += len(data)
        digest = hashed.hexdigest()
    except (OSError, NotFound) as error:
        came = str(error.strerror) if isinstance(error, OSError) else "no such object"
        yield Difference(part.name, f"{part.bytes} bytes", came, "score the table again")
        return
    if (digest, size) != (part.sha256, part.bytes):
        wanted, came = f"{part.bytes} bytes, sha256 {part.sha256[:16]}", f"{size} bytes, sha256 {digest[:16]}"
        yield Difference(part.name, wanted, came, "restore it, or score the table again")
        return
    format_ = SINK_FORMATS[whole.settings.written]
    if format_.text:
        return  # it says no more than its bytes, and these are as they were
    try:
        schema, ranges = format_.inspect(file)
    except InvalidInput as error:
        yield Difference(part.name, f"a file of {format_.name}", str(error), "score the table again")
        return
    rows = sum(range_.rows for range_ in ranges)
    if rows != part.rows:
        yield Difference(part.name, f"{part.rows} rows", str(rows), "score the table again")
    if (schema.metadata or {}).get(b"octoserve.run", b"").decode() != whole.run:
        yield Difference(part.name, f"run {whole.run}", "another", "score the table again")
