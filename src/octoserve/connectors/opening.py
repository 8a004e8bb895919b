"""A source file as bytes at a place, whether it lies on a disk or in an object store."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO

from octoserve.connectors import objects
from octoserve.connectors.source import SourceFile


def is_object(path: str) -> bool:
    """Whether it is the URL of an object."""
    return path.startswith("s3://")


def opened(file: SourceFile) -> BinaryIO:
    """For reading from any place, unbuffered: every read is one of the disk, or one request. Raises OSError,
    objects.Changed where an object is no longer what `file` says."""
    if not is_object(file.path):
        return open(file.path, "rb", buffering=0)
    bucket, key = objects.split_url(file.path)
    held = objects.bucket(bucket)
    return ObjectFile(file.size, lambda start, stop: held.read(key, start, stop, file.etag))


class ObjectFile(io.RawIOBase, BinaryIO):
    """An object as a file that is read only. Nothing is held between reads."""

    def __init__(self, size: int, ranged: Callable[[int, int], Any]) -> None:
        """ranged: bytes from start to stop."""
        super().__init__()
        self._size = size
        self._ranged = ranged
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The next byte."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """One request; fewer bytes only at the end."""
        stop = self._size if size is None or size < 0 else min(self._size, self._at + size)
        if stop <= self._at:
            return b""
        data = bytes(self._ranged(self._at, stop))
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        """All that is left."""
        return self.read()
