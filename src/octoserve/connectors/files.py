"""The local file system, one method a step that a crash may fall behind; and whole files made from these steps.

Everything durable goes through here, so that a test can end the process after any step.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Protocol

from octoserve.connectors.gathering import Gathering
from octoserve.core.errors import OctoserveError


class DiskTrouble(OctoserveError):
    """Something could not be written, with the system's reason; what was published stays."""

    reason = "disk"


_TRIES = 10
"""To remove a folder that somebody writes to."""


class LocalFiles:
    """The steps. Each raises OSError."""

    def create(self, path: Path) -> int:
        """A new or emptied file; its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def open_to_append(self, path: Path) -> int:
        """The descriptor of a file that grows."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def write(self, descriptor: int, data: bytes) -> None:
        """All of `data`."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def fsync(self, descriptor: int) -> None:
        """Onto the disk."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Let go of it."""
        os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """A file over a file, or a folder to where nothing or an empty folder is; whole or not at all."""
        os.rename(old, new)

    def fsync_folder(self, path: Path) -> None:
        """Make the names in a folder durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def truncate(self, path: Path, size: int) -> None:
        """Cut a file."""
        os.truncate(path, size)

    def make_folder(self, path: Path) -> None:
        """With its parents; one that is there is fine."""
        path.mkdir(parents=True, exist_ok=True)

    def remove(self, path: Path) -> None:
        """A file, if it is there."""
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """A folder and all in it, if it is there; also what somebody puts there meanwhile, who ends soon."""
        for left in reversed(range(_TRIES)):
            try:
                shutil.rmtree(path)
                break
            except OSError as error:
                if not path.exists():
                    break
                if not left or error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    raise


class OutFile(Protocol):
    """What pyarrow writes a table to: a file of which nothing is seen until it is published."""

    @property
    def closed(self) -> bool:
        """For pyarrow, which asks."""
        ...

    def write(self, data: bytes) -> int:
        """Take `data`."""
        ...

    def tell(self) -> int:
        """Bytes so far."""
        ...

    def flush(self) -> None:
        """Nothing: `finish` does it, once."""
        ...

    def close(self) -> None:
        """Nothing: pyarrow closes what it was given, and the file is not finished by that."""
        ...

    def finish(self) -> str:
        """All of it is where it must be to be published; the SHA-256 of it in hexadecimal."""
        ...

    def abandon(self) -> None:
        """Remove it, if that is possible; it is never published."""
        ...


class NewFile(Gathering):
    """A file being written, hashed on the way. Has what pyarrow wants of a sink; `finish` or `abandon` ends it."""

    def __init__(self, files: LocalFiles, path: Path) -> None:
        super().__init__()
        self.path = path
        self._files = files
        self._descriptor: int | None = files.create(path)

    @property
    def closed(self) -> bool:
        """For pyarrow, which asks."""
        return self._descriptor is None

    def finish(self) -> str:
        """Everything onto the disk; the SHA-256 of it in hexadecimal."""
        assert self._descriptor is not None
        self._flush()
        self._files.fsync(self._descriptor)
        self._files.close(self._descriptor)
        self._descriptor = None
        return self._hash.hexdigest()

    def abandon(self) -> None:
        """Remove it, if that is possible; it is never published."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._files.close(self._descriptor)
            self._descriptor = None
        with contextlib.suppress(OSError):
            self._files.remove(self.path)

    def _put(self, data: bytes) -> None:
        assert self._descriptor is not None
        self._files.write(self._descriptor, data)


def publish(files: LocalFiles, temp: Path, final: Path) -> None:
    """Give a finished file its name. Crash before the rename: an orphan beside `temp`; after it: published."""
    files.rename(temp, final)
    files.fsync_folder(final.parent)


def write_whole(files: LocalFiles, path: Path, data: bytes, temp_folder: Path) -> None:
    """A small file, there whole or not at all: temp, fsync, rename, fsync of the folder."""
    temp = NewFile(files, temp_folder / f"{path.name}.tmp")
    try:
        temp.write(data)
        temp.finish()
        publish(files, temp.path, path)
    except OSError:
        temp.abandon()
        raise
