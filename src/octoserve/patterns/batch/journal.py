"""What is finished, one line a split. A line counts once it is whole and on the disk.

A line is `crc32 in 8 hexadecimal digits, a blank, JSON, newline`. A crash while appending leaves a torn last line: who
holds the lease cuts it off, others read past it. A torn line that is not the last means somebody else's hands.
"""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path

import msgspec

from octoserve.connectors.files import LocalFiles
from octoserve.core.errors import OctoserveError


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A published file. rows: of predictions, or of bad rows."""

    name: str
    rows: int
    bytes: int
    sha256: str


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="split"):
    """A split that is done.

    token:   of the run that did it
    seconds: how long it was under way; `at` is Unix time
    """

    split: int
    token: int
    part: Part
    bad: Part | None = None
    seconds: float = 0.0
    at: float = 0.0


class Began(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    """A run that got the lease. Lines of runs before it that come after it count for nothing."""

    token: int
    host: str
    pid: int
    at: float
    workers: int = 1
    budget_rows: int | None = None
    budget_share: float | None = None
    """Of bad rows, as in `RunSettings`; both None in a line of before they were noted."""


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """Why a run ended without a commit, in its own words; one that was killed says nothing. reason: an error's."""

    token: int
    reason: str
    text: str
    at: float


Line = Began | Finished | Ended
_decode = msgspec.json.Decoder(Line).decode


class DamagedJournal(OctoserveError):
    """The journal is not what octoserve wrote."""

    reason = "damaged"


def encode(line: Line) -> bytes:
    """A line's bytes."""
    text = msgspec.json.encode(line)
    return b"%08x %s\n" % (zlib.crc32(text), text)


def parse(data: bytes, where: str | Path = "the journal") -> tuple[list[Line], int]:
    """The whole lines, and how many bytes they take. Raises DamagedJournal."""
    lines: list[Line] = []
    at = 0
    while at < len(data):
        end = data.find(b"\n", at)
        line = _line(data[at:end]) if end >= 0 else None
        if line is None:
            if end >= 0 and end + 1 < len(data):
                raise DamagedJournal(
                    f"{where}: line {len(lines) + 1} is damaged, and others follow it, which no crash leaves behind; "
                    "restore it, or begin anew in another sink"
                )
            break
        lines.append(line)
        at = end + 1
    return lines, at


def _line(text: bytes) -> Line | None:
    checksum, _, body = text.partition(b" ")
    try:
        return _decode(body) if int(checksum, 16) == zlib.crc32(body) else None
    except (ValueError, msgspec.DecodeError):
        return None


class State(msgspec.Struct, frozen=True):
    """What a journal says. finished: split -> its last line that counts; runs: all of them, in order."""

    finished: dict[int, Finished]
    runs: tuple[Began, ...]
    ended: Ended | None = None
    """Of the last run."""


def state_of(lines: list[Line]) -> State:
    """Lines of a run count until the next run began."""
    finished: dict[int, Finished] = {}
    runs: list[Began] = []
    token = 0
    ended: Ended | None = None
    for line in lines:
        if isinstance(line, Began):
            runs.append(line)
            token, ended = max(token, line.token), None
        elif isinstance(line, Ended):
            ended = line if line.token >= token else ended  # above it: a run that could not even say that it began
        elif line.token == token:
            finished[line.split] = line
    return State(finished, tuple(runs), ended)


def read(path: Path) -> State:
    """Of a journal that somebody may be writing."""
    try:
        return state_of(parse(path.read_bytes(), path)[0])
    except FileNotFoundError:
        return State({}, ())


class Journal:
    """The journal of who holds the lease.

    A line that could not be written (a full disk) is taken back, for nothing may follow a torn one; where not even that
    is possible, nothing more is written until a next run has cut it off.
    """

    def __init__(self, files: LocalFiles, path: Path) -> None:
        """Cuts a torn end off. Raises DamagedJournal, OSError."""
        self._files = files
        self._path = path
        self._torn = False
        data = path.read_bytes() if path.exists() else b""
        lines, size = parse(data, path)
        if size < len(data):
            files.truncate(path, size)
        self._size = size
        self.state = state_of(lines)
        self._descriptor = files.open_to_append(path)
        files.fsync(self._descriptor)
        files.fsync_folder(path.parent)

    def append(self, line: Line) -> None:
        """Returns when the line is on the disk. Raises OSError: it is not, and never will be."""
        if self._torn:
            raise OSError(errno.EIO, "an earlier line is torn", str(self._path))
        data = encode(line)
        try:
            self._files.write(self._descriptor, data)
            self._files.fsync(self._descriptor)
        except OSError:
            self._take_back()
            raise
        self._size += len(data)

    def _take_back(self) -> None:
        try:
            self._files.truncate(self._path, self._size)
        except OSError:
            self._torn = True

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)
