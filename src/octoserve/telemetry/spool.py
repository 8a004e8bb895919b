"""A spool: a folder in which processes leave what others take up later, and lose nothing by dying.

The spool is a folder of segments. A segment is `MAGIC`, then frames: length (u32 LE), CRC-32 of the payload
(u32 LE), payload (what is kept, in MessagePack). Each process appends to a segment of its own, `*.open`, and holds
its file lock while it does; a whole segment is `*.spool` and never changes.

The commit order, and what a crash after each step leaves:

    1. lock the folder, see that a segment still fits   nothing
    2. create NAME.open, lock it, unlock the folder     an empty segment: `recover` removes it
    3. append a frame, in one write                     kill -9: every appended frame (the kernel has it), at most the
                                                        last one torn: `recover` cuts it off. Power loss: some
                                                        first frames of the open segment
    4. fsync the segment                                as before, and power loss keeps all
    5. rename it to NAME.spool                          the one or the other name, both with every frame
    6. fsync the folder                                 a whole segment, which is taken up and then removed by
                                                        `telemetry.taking_up`

`recover` may be called by anyone at any time: a segment whose lock is held is alive and left alone. Names are
never used twice, so that what is made from a segment can bear its name.

The bound is exact: a segment is opened only if the whole ones, the open ones at their full size, and the new one
fit together. Beyond it `append` refuses at the cost of one comparison.
"""

from __future__ import annotations

import fcntl
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Generic, TypeVar

import msgspec

from octoserve.core.clock import Clock, monotonic

MAGIC = b"octspl01"
OPEN, WHOLE, DAMAGED = ".open", ".spool", ".damaged"

_HEAD = Struct("<II")
_RETRY = 0.5
"""Seconds until a spool that was full is looked at again."""

Item = TypeVar("Item")


class Spool(Generic[Item]):
    """Appends items, of which msgspec makes frames, for one process.

    One thread writes; one that was given up for hung and comes back does no harm.

    folder:          made if missing, for the owner alone
    worker:          prefix of the segments' names, for people
    max_bytes:       of the whole folder, all processes together
    segment_bytes:   a segment is rotated before it would outgrow this; a larger item is refused
    segment_seconds: a segment is rotated once its first frame is this old
    """

    def __init__(
        self,
        folder: Path,
        worker: str = "worker",
        *,
        max_bytes: int = 256 << 20,
        segment_bytes: int = 4 << 20,
        segment_seconds: float = 30.0,
        clock: Clock = monotonic,
    ) -> None:
        self.reason = ""
        """Why the last `append` refused: spool_full, too_large, or spool_error (then see `error`)."""
        self.error = ""
        self._folder = folder
        self._name = f"{worker}-{os.urandom(6).hex()}"
        self._max_bytes = max_bytes
        self._segment_bytes = min(segment_bytes, max_bytes)
        self._segment_seconds = segment_seconds
        self._clock = clock
        self._encoder = msgspec.msgpack.Encoder()
        self._sequence = 0
        self._fd = -1
        self._path = folder
        self._size = 0
        self._opened = 0.0
        self._retry_at = float("-inf")
        self._closed_for = ""
        self._lock = threading.RLock()

    def append(self, item: Item) -> bool:
        """Whether the item is in the spool. False: count a drop by `reason`."""
        with self._lock:
            return self._append(item)

    def _append(self, item: Item) -> bool:
        now = self._clock()
        if self._fd < 0 and now < self._retry_at:
            self.reason = self._closed_for
            return False
        payload = self._encoder.encode(item)
        size = _HEAD.size + len(payload)
        if size > self._segment_bytes - len(MAGIC):
            self.reason = "too_large"
            return False
        try:
            if self._fd >= 0 and self._is_due(now, size):
                self.rotate()
            if self._fd < 0 and not self._open(now):
                self._refuse("spool_full", now)
                return False
            written = os.writev(self._fd, (_HEAD.pack(len(payload), zlib.crc32(payload)), payload))
            if written != size:
                raise OSError(f"{self._path.name}: {written} of {size} bytes were written")
        except OSError as error:
            self._give_up(error, now)
            return False
        self._size += size
        return True

    def rotate_if_due(self) -> None:
        """To be called now and then while nothing comes, so that the last ones become readable."""
        with self._lock:
            if self._fd >= 0 and self._is_due(self._clock(), 0):
                self.close()

    def rotate(self) -> None:
        """Make the open segment whole, if there is one. Raises OSError."""
        with self._lock:
            if self._fd < 0:
                return
            os.fsync(self._fd)
            os.rename(self._path, self._path.with_suffix(WHOLE))
            sync_folder(self._folder)
            self._close()

    def close(self) -> None:
        """Make the open segment whole; one that cannot be stays for `recover`. The last call, as a rule."""
        with self._lock:
            try:
                self.rotate()
            except OSError as error:
                self._give_up(error, self._clock())

    def _is_due(self, now: float, size: int) -> bool:
        return self._size + size > self._segment_bytes or now - self._opened >= self._segment_seconds

    def _open(self, now: float) -> bool:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with folder_lock(self._folder):
            if spooled_bytes(self._folder, self._segment_bytes) + self._segment_bytes > self._max_bytes:
                return False
            self._sequence += 1
            path = self._folder / f"{self._name}-{self._sequence:06d}{OPEN}"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._fd, self._path, self._opened, self._size = fd, path, now, len(MAGIC)
        os.write(fd, MAGIC)
        return True

    def _give_up(self, error: OSError, now: float) -> None:
        """Leave the segment as it is: `recover` keeps its whole frames."""
        self.error = str(error)
        self._refuse("spool_error", now)
        self._close()

    def _refuse(self, reason: str, now: float) -> None:
        self.reason = self._closed_for = reason
        self._retry_at = now + _RETRY

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class folder_lock:
    """Whoever opens segments, or recovers them, is alone in that. Held for milliseconds."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"

    def __enter__(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def spooled_bytes(folder: Path, open_counts_as: int = 0) -> int:
    """Bytes of all segments; an open one counts as `open_counts_as` at least, since it may still grow to that."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.name.endswith((WHOLE, DAMAGED)):
                    total += entry.stat().st_size
                elif entry.name.endswith(OPEN):
                    total += max(entry.stat().st_size, open_counts_as)
            except FileNotFoundError:
                continue  # converted meanwhile
    return total


def segments(folder: Path) -> list[Path]:
    """Whole segments, by name."""
    return sorted(folder.glob(f"*{WHOLE}"))


def frames(data: bytes) -> Iterator[tuple[bytes, int]]:
    """The payloads of a segment up to the first frame that is torn or damaged, each with where it ends."""
    at = len(MAGIC)
    if data[:at] != MAGIC:
        return
    while at + _HEAD.size <= len(data):
        length, crc = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + length
        payload = data[at + _HEAD.size : end]
        if length == 0 or end > len(data) or zlib.crc32(payload) != crc:  # a tail of zeros is no frame
            return
        at = end
        yield payload, at


def recover(folder: Path) -> int:
    """Make segments of dead processes whole, cut at their last whole frame; returns the number of frames in them."""
    if not folder.is_dir():
        return 0
    found = 0
    with folder_lock(folder):
        for path in sorted(folder.glob(f"*{OPEN}")):
            found += _recover_one(path)
    return found


def _recover_one(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0  # its process has just made it whole
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists():
            return 0
        ends = [end for _, end in frames(path.read_bytes())]
        if not ends:
            path.unlink()
            return 0
        os.ftruncate(fd, ends[-1])
        os.fsync(fd)
        os.rename(path, path.with_suffix(WHOLE))
        sync_folder(path.parent)
        return len(ends)
    except BlockingIOError:
        return 0  # alive
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
