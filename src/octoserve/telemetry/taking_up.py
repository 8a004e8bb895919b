"""Out of a spool into files by day: each frame is in the store once, whatever dies when.

The commit order for one segment, and what a crash after each step leaves:

    1. read the segment                            nothing
    2. write .NAME.part beside each file's place,  a part file, which no reader reads (its name has a dot before, its
       fsync it                                    ending is another) and the next `take_up` sweeps
    3. rename each to NAME                         items that are in the store and in the spool: the next `take_up`
                                                   makes the same files from the same segment and replaces them
    4. fsync the folders                           the same
    5. remove the segment, fsync the spool         done: each item is in the store once

So an item is counted once at any time: readers read the store only. How many rows were written is checked before
step 3. One process takes up at a time (file lock); any number may read. A store elsewhere (an object store) has
steps of its own for 2 to 4; a file's name comes from its segment's there too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import msgspec

from octoserve.core.errors import Internal, OctoserveError, Unavailable
from octoserve.telemetry.spool import MAGIC, WHOLE, folder_lock, frames, recover, segments, sync_folder

PART = ".part"
Item = TypeVar("Item")


class TakenUp(msgspec.Struct, frozen=True):
    """What one `take_up` did. `failed` segments stay in the spool and are tried again; `error` is the last one's."""

    segments: int = 0
    items: int = 0
    damaged: int = 0
    failed: int = 0
    error: str = ""


def take_up(
    spool: Path,
    damaged: Path,
    decode: Callable[[bytes], Item],
    publish: Callable[[str, Sequence[Item]], None],
    locked: Path,
    swept: Path | None = None,
) -> TakenUp:
    """Move every whole segment into the store, those of dead processes included. Blocking.

    damaged: a folder for segments that could not be read to their end
    publish: steps 2 to 4, told the segment's name; raises OSError or OctoserveError where it cannot, and Unavailable
             where the store is away, so that the other segments need not be tried now
    locked:  a folder whose lock is held meanwhile, so that one process takes up at a time
    swept:   the store's folder, to be rid of part files of those who died; None where it is elsewhere
    """
    recover(spool)
    if not spool.is_dir():
        return TakenUp()
    locked.mkdir(mode=0o700, parents=True, exist_ok=True)
    done, items, torn, failed, error = 0, 0, 0, 0, ""
    with folder_lock(locked):
        for part in swept.rglob(f"*{PART}") if swept is not None else ():
            part.unlink()
        for segment in segments(spool):
            try:
                found, is_whole = read_segment(segment, decode)
                if found:
                    publish(segment.stem, found)
                _remove(segment, None if is_whole else damaged)
            except (OSError, OctoserveError) as raised:
                failed, error = failed + 1, f"{segment.name}: {raised}"
                if isinstance(raised, Unavailable):
                    break
                continue
            done, items, torn = done + 1, items + len(found), torn + (not is_whole)
    return TakenUp(done, items, torn, failed, error)


def read_segment(segment: Path, decode: Callable[[bytes], Item]) -> tuple[list[Item], bool]:
    """What is in it, and whether that is all there was. A segment is a few MB at most."""
    data = segment.read_bytes()
    found: list[Item] = []
    at, is_whole = len(MAGIC), True
    for payload, at in frames(data):  # noqa: B007
        try:
            found.append(decode(payload))
        except msgspec.MsgspecError:
            is_whole = False
    return found, is_whole and at == len(data)


def _remove(segment: Path, damaged: Path | None) -> None:
    if damaged is None:
        segment.unlink(missing_ok=True)
    else:
        damaged.mkdir(mode=0o700, exist_ok=True)
        os.replace(segment, damaged / segment.name)
        sync_folder(damaged)
    sync_folder(segment.parent)


def publish_files(
    root: Path,
    files: Mapping[Path, Sequence[Item]],
    write: Callable[[Path, Sequence[Item]], int],
    wanted: int,
) -> None:
    """Steps 2 to 4 in a folder. write: a file, fsynced, and says how many rows it has. Raises Internal unless `wanted`
    rows were written in all, and then nothing was published."""
    written = 0
    for path, some in files.items():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        written += write(unpublished(path), some)
    if written != wanted:
        raise Internal(f"{written} of {wanted} rows were written; nothing was published")
    for path in files:
        os.replace(unpublished(path), path)
    depth = {path: len(path.relative_to(root).parts) for path in files}
    for folder in {parent for path in files for parent in list(path.parents)[: depth[path]]}:
        sync_folder(folder)


def unpublished(path: Path) -> Path:
    """pyarrow passes over names with a dot before, globs for an ending over another ending."""
    return path.with_name(f".{path.name}{PART}")


class Kept(msgspec.Struct, frozen=True):
    """A file of a store. day: as in its path; age: what goes first within a day, smaller is older"""

    name: str
    day: str
    size: int
    age: tuple[float, str]


def day_of(time: float) -> str:
    """The UTC day of a wall clock time, as paths have it."""
    return datetime.fromtimestamp(time, UTC).date().isoformat()


def to_drop(files: Sequence[Kept], days: int, max_bytes: int, now: float) -> list[Kept]:
    """What retention drops: files older than `days` (UTC, today not counted), then the oldest days until `max_bytes`
    suffice. Days go whole, but for the newest, which loses its oldest files."""
    oldest = (datetime.fromtimestamp(now, UTC).date() - timedelta(days=days)).isoformat()
    files = sorted(files, key=lambda file: (file.day, file.age))
    gone = [file for file in files if file.day < oldest]
    left = [file for file in files if file.day >= oldest]
    total = sum(file.size for file in left)
    while total > max_bytes and left:
        newest = left[0].day == left[-1].day
        some = [left[0]] if newest else [file for file in left if file.day == left[0].day]
        gone += some
        left = left[len(some) :]
        total -= sum(file.size for file in some)
    return gone


def drop_old(folder: Path, before: float) -> None:
    """Damaged segments of before a time."""
    for path in folder.glob(f"*{WHOLE}"):
        if path.stat().st_mtime < before:
            path.unlink()
