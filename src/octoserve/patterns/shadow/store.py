"""The durable store of pairs: Parquet by endpoint, rollout and day, made from the workers' spools.

    <folder>/spool/NAME.spool                                                     (telemetry.pairs)
    <folder>/pairs/endpoint=E/rollout=R/day=2026-11-24/NAME.parquet               what of a segment belongs there
    <folder>/damaged/NAME.spool                                                   what could not be read to its end

The commit order for one segment, and what a crash after each step leaves:

    1. read the segment                            nothing
    2. write .NAME.parquet.part beside its place,  a part file, which no reader reads (its name has a dot before, its
       fsync it; so for each place                 ending is another) and the next `convert` sweeps
    3. rename each to NAME.parquet                 pairs that are in the store and in the spool: the next `convert`
                                                   makes the same files from the same segment and replaces them
    4. fsync the folders                           the same
    5. remove the segment, fsync the spool         done: each pair is in the store once

So a pair is counted once at any time: readers read the store only. The number of rows is checked against the
number of frames before step 3. One process converts at a time (file lock); any number may read.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from octoserve.control.report.pair import Stored, Summary
from octoserve.core.errors import Internal
from octoserve.patterns.shadow import parquet
from octoserve.telemetry.pairs import MAGIC, WHOLE, Pair, folder_lock, frames, recover, segments, sync_folder

PART = ".part"
_NO_ROLLOUT = "__HIVE_DEFAULT_PARTITION__"
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\"#%'*/:=?\\{}\[\]^<>|]")

_decode_pair = msgspec.msgpack.Decoder(Pair).decode


class Converted(msgspec.Struct, frozen=True):
    """What one `convert` did. `failed` segments stay in the spool and are tried again; `error` is the last one's."""

    segments: int = 0
    pairs: int = 0
    damaged: int = 0
    failed: int = 0
    error: str = ""


class Dropped(msgspec.Struct, frozen=True):
    """What one `retain` removed."""

    files: int = 0
    pairs: int = 0
    bytes: int = 0


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which pairs; None is any.

    since, until: wall clock seconds, half-open
    agreed:       True: those that agree; False: those that differ
    segments:     segment's name -> value
    """

    endpoint: str | None = None
    rollout: str | None = None
    since: float | None = None
    until: float | None = None
    kind: str | None = None
    agreed: bool | None = None
    segments: Mapping[str, str] = {}


class PairStore:
    """The pairs of one state directory. Blocking: for a thread of its own, or a command.

    folder: `<state>/shadow`
    """

    def __init__(self, folder: Path) -> None:
        self.spool = folder / "spool"
        self.folder = folder / "pairs"
        self._damaged = folder / "damaged"

    def convert(self) -> Converted:
        """Move every whole segment into the store, those of dead workers included.

        Raises SettingsError where pyarrow is not installed.
        """
        parquet.pyarrow()
        recover(self.spool)
        done, pairs, damaged, failed, error = 0, 0, 0, 0, ""
        if not self.spool.is_dir():
            return Converted()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with folder_lock(self.folder):
            for part in self.folder.rglob(f"*{PART}"):
                part.unlink()
            for segment in segments(self.spool):
                try:
                    count, is_whole = self._convert_one(segment)
                except (OSError, Internal) as raised:
                    failed, error = failed + 1, f"{segment.name}: {raised}"
                    continue
                done, pairs, damaged = done + 1, pairs + count, damaged + (not is_whole)
        return Converted(done, pairs, damaged, failed, error)

    def _convert_one(self, segment: Path) -> tuple[int, bool]:
        pairs, is_whole = _read_segment(segment)
        places: dict[Path, list[Pair]] = {}
        for pair in pairs:
            places.setdefault(self._place(pair) / f"{segment.stem}.parquet", []).append(pair)
        written = 0
        for path, some in places.items():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            written += parquet.write(_unpublished(path), some)
        if written != len(pairs):
            raise Internal(f"{written} of {len(pairs)} pairs were written; nothing was published")
        for path in places:
            os.replace(_unpublished(path), path)
        for folder in {parent for path in places for parent in list(path.parents)[:4]}:
            sync_folder(folder)
        if is_whole:
            segment.unlink(missing_ok=True)
        else:
            self._damaged.mkdir(mode=0o700, exist_ok=True)
            os.replace(segment, self._damaged / segment.name)
            sync_folder(self._damaged)
        sync_folder(self.spool)
        return len(pairs), is_whole

    def _place(self, pair: Pair) -> Path:
        day = datetime.fromtimestamp(pair.time, UTC).date().isoformat()
        return self.folder / f"endpoint={_part_of(pair.endpoint)}" / f"rollout={_part_of(pair.rollout)}" / f"day={day}"

    def summaries(self, query: Query | None = None) -> Iterator[Summary]:
        """Pairs without their tensors, oldest day first; a few thousand are in memory at a time."""
        return self._rows(query or Query(), Summary)

    def pairs(self, query: Query | None = None) -> Iterator[Stored]:
        """Pairs with their tensors, oldest day first; a few hundred are in memory at a time."""
        return self._rows(query or Query(), Stored)

    def _rows(self, query: Query, kind: type[parquet.Row]) -> Iterator[parquet.Row]:
        for path in self.files(query):
            try:
                for row in parquet.read(path, kind):
                    if _is_wanted(row, query):
                        yield row
            except FileNotFoundError:
                continue  # retention has just dropped it

    def files(self, query: Query | None = None) -> list[Path]:
        """Parquet files that may hold such pairs, by day and name."""
        query = query or Query()
        endpoint = "*" if query.endpoint is None else _glob(_part_of(query.endpoint))
        rollout = "*" if query.rollout is None else _glob(_part_of(query.rollout))
        first = "" if query.since is None else datetime.fromtimestamp(query.since, UTC).date().isoformat()
        last = "~" if query.until is None else datetime.fromtimestamp(query.until, UTC).date().isoformat()
        found = self.folder.glob(f"endpoint={endpoint}/rollout={rollout}/day=*/*.parquet")
        return sorted((path for path in found if first <= _day(path) <= last), key=lambda p: (_day(p), p.name))

    def count(self, query: Query | None = None) -> int:
        """Pairs in the files that may hold such pairs, from their footers: exact for a whole rollout or endpoint."""
        return sum(parquet.count(path) for path in self.files(query))

    def rollouts(self) -> dict[tuple[str, str], int]:
        """(endpoint, rollout) -> pairs, as they are named in the files."""
        found: dict[tuple[str, str], int] = {}
        for path in self.files():
            whose = parquet.whose(path)
            found[whose] = found.get(whose, 0) + parquet.count(path)
        return found

    def retain(self, days: int, max_bytes: int, now: float) -> Dropped:
        """Drop what is older than `days` (UTC, today not counted), then the oldest days until `max_bytes` suffice.

        Days go whole, but for the newest, which loses its oldest files. Each removal is one file's, so a crash
        between two leaves a smaller store and nothing half.
        """
        oldest = (datetime.fromtimestamp(now, UTC).date() - timedelta(days=days)).isoformat()
        if not self.folder.is_dir():
            return Dropped()
        with folder_lock(self.folder):
            files = self.files()
            sizes = {path: path.stat() for path in files}
            gone = [path for path in files if _day(path) < oldest]
            left = [path for path in files if _day(path) >= oldest]
            total = sum(sizes[path].st_size for path in left)
            while total > max_bytes and left:
                is_newest = _day(left[0]) == _day(left[-1])
                day = [path for path in left if _day(path) == _day(left[0])]
                some = [min(left, key=lambda path: (sizes[path].st_mtime_ns, path.name))] if is_newest else day
                gone += some
                left = [path for path in left if path not in some]
                total -= sum(sizes[path].st_size for path in some)
            pairs = sum(parquet.count(path) for path in gone)
            for path in gone:
                path.unlink()
            self._remove_empty(gone)
            self._drop_damaged(now - days * 86400)
        return Dropped(len(gone), pairs, sum(sizes[path].st_size for path in gone))

    def _remove_empty(self, gone: list[Path]) -> None:
        for folder in {parent for path in gone for parent in list(path.parents)[:3]}:
            if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
                shutil.rmtree(folder, ignore_errors=True)

    def _drop_damaged(self, before: float) -> None:
        for path in self._damaged.glob(f"*{WHOLE}"):
            if path.stat().st_mtime < before:
                path.unlink()


def _read_segment(segment: Path) -> tuple[list[Pair], bool]:
    """Its pairs, and whether that is all there was. A segment is a few MB at most."""
    data = segment.read_bytes()
    pairs: list[Pair] = []
    at, is_whole = len(MAGIC), True
    for payload, at in frames(data):  # noqa: B007
        try:
            pairs.append(_decode_pair(payload))
        except msgspec.MsgspecError:
            is_whole = False
    return pairs, is_whole and at == len(data)


def _unpublished(path: Path) -> Path:
    """pyarrow passes over names with a dot before, globs for `*.parquet` over another ending."""
    return path.with_name(f".{path.name}{PART}")


def _part_of(name: str) -> str:
    """A name as part of a path, as Hive writes it; a very long one is told apart by its hash."""
    part = _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", name) or _NO_ROLLOUT
    if len(part.encode()) <= 200:
        return part
    return f"{name[:16]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}".translate({ord("/"): "_", ord("%"): "_"})


def _glob(part: str) -> str:
    """`part` as a glob that means itself."""
    return re.sub(r"[\[?*]", lambda found: f"[{found[0]}]", part)


def _day(path: Path) -> str:
    return path.parent.name.removeprefix("day=")


def _is_wanted(row: Any, query: Query) -> bool:
    return (
        (query.kind is None or row.kind == query.kind)
        and (query.agreed is None or row.agreed is query.agreed)
        and (query.since is None or row.time >= query.since)
        and (query.until is None or row.time < query.until)
        and all(row.segments.get(name) == value for name, value in query.segments.items())
    )
