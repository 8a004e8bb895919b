"""The durable store of pairs: Parquet by endpoint, rollout and day, made from the workers' spools.

    <folder>/spool/NAME.spool                                                     (telemetry.pairs)
    <folder>/pairs/endpoint=E/rollout=R/day=2026-11-24/NAME.parquet               what of a segment belongs there
    <folder>/damaged/NAME.spool                                                   what could not be read to its end

The commit order, and what a crash after each step leaves: `telemetry.taking_up`. How many rows a file has is checked
before it is published.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from octoserve.control.report.pair import Stored, Summary
from octoserve.patterns.shadow import parquet
from octoserve.telemetry.pairs import Pair
from octoserve.telemetry.spool import folder_lock
from octoserve.telemetry.taking_up import Kept, TakenUp, day_of, drop_old, publish_files, take_up, to_drop

_NO_ROLLOUT = "__HIVE_DEFAULT_PARTITION__"
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\"#%'*/:=?\\{}\[\]^<>|]")

_decode_pair = msgspec.msgpack.Decoder(Pair).decode


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

    def convert(self) -> TakenUp:
        """Move every whole segment into the store, those of dead workers included.

        Raises SettingsError where pyarrow is not installed.
        """
        parquet.pyarrow()
        return take_up(self.spool, self._damaged, _decode_pair, self._publish, self.folder, self.folder)

    def _publish(self, segment: str, pairs: Sequence[Pair]) -> None:
        files: dict[Path, list[Pair]] = {}
        for pair in pairs:
            files.setdefault(self._place(pair) / f"{segment}.parquet", []).append(pair)
        publish_files(self.folder, files, parquet.write, len(pairs))

    def _place(self, pair: Pair) -> Path:
        day = day_of(pair.time)
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
        first = "" if query.since is None else day_of(query.since)
        last = "~" if query.until is None else day_of(query.until)
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
        if not self.folder.is_dir():
            return Dropped()
        with folder_lock(self.folder):
            sizes = {path: path.stat() for path in self.files()}
            kept = [Kept(str(p), _day(p), size.st_size, (size.st_mtime_ns, p.name)) for p, size in sizes.items()]
            gone = [Path(file.name) for file in to_drop(kept, days, max_bytes, now)]
            pairs = sum(parquet.count(path) for path in gone)
            for path in gone:
                path.unlink()
            self._remove_empty(gone)
            drop_old(self._damaged, now - days * 86400)
        return Dropped(len(gone), pairs, sum(sizes[path].st_size for path in gone))

    def _remove_empty(self, gone: list[Path]) -> None:
        for folder in {parent for path in gone for parent in list(path.parents)[:3]}:
            if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
                shutil.rmtree(folder, ignore_errors=True)


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
