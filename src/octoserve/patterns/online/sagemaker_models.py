"""The models that SageMaker puts into a multi-model container, as they lie in the repository.

It unpacks each into a folder of its own and names it; here that is linked in as a version, by these steps: the model's
folder is made, which only one caller can; the version is written beside, whole; where it came from is noted; one rename
publishes it. A crash before the rename leaves a folder without a version, which is cleared when the container starts.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from octoserve.core.errors import Conflict, InvalidInput, NotFound, OctoserveError
from octoserve.core.names import model_name_problem
from octoserve.patterns.online.settings import MultiModel
from octoserve.repository.layout import ignored

_NOTES = ".sagemaker"
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class NoRoom(OctoserveError):
    """Memory or disk is short: SageMaker unloads others, and asks again."""

    reason = "no_room"


class Note(msgspec.Struct):
    """Where a model came from; "" once it is unloaded: its next files are another version."""

    url: str
    version: int


class SagemakerModels:
    """See the module. Blocking."""

    def __init__(self, settings: MultiModel, room: Callable[[], float] | None = None) -> None:
        """room: bytes of memory that may still be taken"""
        self._settings = settings
        self._root = Path(settings.repository)
        self._room = room or available
        self._notes = self._root / _NOTES

    def place(self, model: str, url: str) -> None:
        """Put a model's files into the repository. Raises InvalidInput, Conflict where it is there, NoRoom."""
        source = self._source(url)
        problem = model_name_problem(model) or ("a name of its own is wanted" if not model or ignored(model) else "")
        if problem:
            raise InvalidInput(f"model_name {model[:200]!r}: {problem}")
        needed = sum(file.stat().st_size for file in source.rglob("*") if file.is_file()) * self._settings.workers
        if needed > self._room():
            raise NoRoom(f"model {model!r} needs {needed >> 20} MB of memory, {int(self._room()) >> 20} MB are left")
        folder = self._root / model
        version = self._note(model).version + 1
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise Conflict(f"model {model!r} is loaded already") from None
        try:
            ahead = folder / f".{version}.tmp"
            _copy(source, ahead)
            self._write(model, Note(url, version))
            ahead.rename(folder / str(version))
        except OSError as error:
            self.remove(model)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
                raise NoRoom(f"model {model!r}: {error}") from None
            raise InvalidInput(f"url {url!r} cannot be read: {error}") from None

    def remove(self, model: str) -> None:
        """Forget a model, and its files."""
        shutil.rmtree(self._root / model, ignore_errors=True)
        self._write(model, Note("", self._note(model).version))

    def url_of(self, model: str) -> str:
        """Raises NotFound for a model that was not put here."""
        url = self._note(model).url if not (model_name_problem(model) or ignored(model)) else ""
        if not url:
            raise NotFound(f"model {model!r} is not loaded")
        return url

    def all(self) -> dict[str, str]:
        """Every model that was put here, in order, and where from."""
        if not self._notes.is_dir():
            return {}
        names = sorted(name for name in os.listdir(self._notes) if not ignored(name))  # hidden: half-written
        return {name: url for name in names if (url := self._note(name).url)}

    def _source(self, url: str) -> Path:
        path, within = Path(url).resolve(), Path(self._settings.folder).resolve()
        if not (url.startswith("/") and path.is_relative_to(within) and path != within and path.is_dir()):
            raise InvalidInput(f"url {url[:200]!r}: a folder below {within} is wanted")
        versions = [each for each in path.iterdir() if each.is_dir() and each.name.isdigit()]
        return max(versions, key=lambda each: int(each.name), default=path)

    def _note(self, model: str) -> Note:
        try:
            return msgspec.json.decode((self._notes / model).read_bytes(), type=Note)
        except FileNotFoundError:
            return Note("", 0)

    def _write(self, model: str, note: Note) -> None:
        self._notes.mkdir(parents=True, exist_ok=True)
        ahead = self._notes / f".{model[:100]}.{os.getpid()}"
        ahead.write_bytes(msgspec.json.encode(note))
        ahead.rename(self._notes / model)


def _copy(source: Path, target: Path) -> None:
    """Files are not changed once they are there: a name more costs nothing. Another disk takes a copy."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, target / path.name)
            continue
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)


def available() -> float:
    """Bytes of memory that may be taken: of the machine, and of the container where it has a limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for limit, used in _GROUPS:
        try:
            said = Path(limit).read_text().strip()
            if said != "max":
                free = min(free, float(said) - float(Path(used).read_text()))
        except OSError:
            continue
    return free
