"""A value that is made of files, and made again when they change.

What cannot be used leaves the last one in force and is said once for each change: in the log, to `told`, by `stale`.
Whether a file has changed is seen by its place, size and time, which are read before its content: what is written
meanwhile is another change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from octoserve.core.errors import SettingsError

log = logging.getLogger(__name__)

T = TypeVar("T")
Told = Callable[[str, bool], None]
"""Which files were read anew, and whether they can be used."""

_Seen = tuple[tuple[int, ...] | None, ...]


class Watched(Generic[T]):
    """what: for people. make: reads the files; raises SettingsError for what cannot be used."""

    def __init__(
        self, what: str, paths: Sequence[str], make: Callable[[], T], told: Told = lambda what, good: None
    ) -> None:
        self.what = what
        self._paths = tuple(Path(path) for path in paths if path)
        self._make = make
        self._told = told
        self._seen: _Seen | None = None
        self.value: T | None = None
        """None until the files could be used once."""
        self.stale = False
        """Whether the files, as they are, cannot be used."""

    def open(self) -> T:
        """Read them now. Raises SettingsError."""
        self._seen = self._look()
        self.value = self._make()
        return self.value

    def look(self) -> bool:
        """Read them if they have changed; whether there is a new value."""
        seen = self._look()
        if seen == self._seen:
            return False
        first, self._seen = self._seen is None, seen
        try:
            self.value = self._make()
        except Exception as error:
            self.stale = True
            self._told(self.what, False)
            if not isinstance(error, SettingsError):
                log.exception("%s: cannot be read", self.what)
            kept = "what was read before stays in force" if self.value is not None else "nothing is served until then"
            log.error("%s; %s", error, kept)
            return False
        self.stale = False
        if not first:
            self._told(self.what, True)
            log.info("%s: read anew, in force from now on", self.what)
        return True

    def _look(self) -> _Seen:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
