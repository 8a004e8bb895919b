"""A version folder's files: their fingerprint (cheap, each scan) and their digest (reads them, once)."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from octoserve.repository.layout import PARTIAL, Refused

MAX_FILES = 10_000
MAX_DEPTH = 16


class Entry(msgspec.Struct, frozen=True):
    """One file: its path relative to the version folder, with `/`, and what the inode says."""

    name: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int = 0


class Fingerprint(msgspec.Struct, frozen=True):
    """`partial` names a file that is still being written, by its ending. `newest` is in Unix seconds."""

    text: str
    newest: float
    partial: str = ""
    names: tuple[str, ...] = ()


def fingerprint(folder: Path, root: Path | None = None) -> Fingerprint:
    """Names, sizes and times of all files. Raises Refused for links that leave `root`, OSError if it vanishes."""
    hashed = hashlib.sha256()
    newest = folder.stat().st_ctime_ns
    partial = ""
    names: list[str] = []
    for entry in files(folder, root):
        hashed.update(f"{entry.name}\0{entry.size}\0{entry.mtime_ns}\0".encode(errors="surrogateescape"))
        newest = max(newest, entry.ctime_ns)
        names.append(entry.name)
        if entry.name.endswith(PARTIAL):
            partial = entry.name
    return Fingerprint(hashed.hexdigest()[:32], newest / 1e9, partial, tuple(names))


def stamp(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Names, sizes, times and inodes: the same before and after means the same files. Raises OSError, Refused."""
    return tuple((entry.name, entry.size, entry.mtime_ns, entry.inode) for entry in files(folder, None))


def folder_digest(folder: Path, without: Collection[str] = ()) -> str:
    """`sha256:...` over the sorted files' relative names, sizes and contents. Blocking; reads everything.

    For each file, in order of its name's bytes: the name in UTF-8, a zero byte, the size in decimal, a zero
    byte, the content.
    """
    hashed = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    for entry in files(folder, None):
        if entry.name in without:
            continue
        hashed.update(f"{entry.name}\0{entry.size}\0".encode(errors="surrogateescape"))
        with open(folder / entry.name, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                hashed.update(buffer[:count])
    return "sha256:" + hashed.hexdigest()


def files(folder: Path, root: Path | None) -> list[Entry]:
    """All regular files below `folder`, sorted by name; hidden ones too, since a model may read them."""
    real_root = os.path.realpath(root) if root is not None else None
    found: list[Entry] = []
    for entry in _walk(folder, "", real_root, 0):
        found.append(entry)
        if len(found) > MAX_FILES:
            raise Refused(f"{folder} holds more than {MAX_FILES} files; a version is a small set of artifacts")
    return sorted(found, key=lambda entry: os.fsencode(entry.name))


def _walk(folder: Path, prefix: str, root: str | None, depth: int) -> Iterator[Entry]:
    if depth > MAX_DEPTH:
        raise Refused(f"{folder} is nested deeper than {MAX_DEPTH} folders (a link in a circle?)")
    with os.scandir(folder) as entries:
        for item in entries:
            if item.is_symlink() and root is not None:
                check_inside(item.path, root)
            try:
                info = item.stat()
            except FileNotFoundError:
                if item.is_symlink():
                    raise Refused(f"{item.path} is a link to nothing") from None
                continue  # gone between the listing and the look; the next scan sees the rest
            name = prefix + item.name
            if stat.S_ISDIR(info.st_mode):
                yield from _walk(Path(item.path), name + "/", root, depth + 1)
            elif stat.S_ISREG(info.st_mode):
                yield Entry(name, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
            else:
                raise Refused(f"{item.path} is neither a file nor a folder")


def check_inside(path: str, root: str) -> None:
    """Raise Refused if `path`, its links followed, lies outside `root` (already a real path)."""
    real = os.path.realpath(path)
    if real != root and not real.startswith(root.rstrip("/") + "/"):
        raise Refused(f"{path} is a link that leaves the repository (to {real}); put the files inside {root}")
