"""Which files a source is: patterns, folders and single files, on disk or in an object store, in one order whatever the
system lists first."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Sequence
from urllib.parse import unquote

from octoserve.connectors import objects
from octoserve.connectors.opening import is_object
from octoserve.connectors.source import SourceFile
from octoserve.core.errors import SettingsError

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def find(patterns: Sequence[str], endings: Sequence[str]) -> list[SourceFile]:
    """Every file, once, sorted by path. Folders are walked; names that begin with `.` or `_` are passed over there.

    endings: which files of a folder count. Raises SettingsError for a pattern that matches nothing.
    """
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        far = is_object(pattern)
        files = _objects(pattern, endings) if far else [identify(path) for path in _paths(pattern, endings)]
        if not files:
            where = "" if far else f" below {os.getcwd()}"
            raise SettingsError(
                f"source: files wanted, {pattern!r} matches none{where}; folders are searched for names "
                f"that end in {', '.join(endings)}"
            )
        for file in files:
            found.setdefault(file.path, file)
    return [found[path] for path in sorted(found)]


def identify(path: str) -> SourceFile:
    """A file's identity as it lies there. Raises SettingsError if it cannot be read."""
    if is_object(path):
        bucket, key = objects.split_url(path)
        try:
            return _as_file(bucket, objects.bucket(bucket).head(key))
        except objects.Missing as error:
            raise SettingsError(f"source: cannot read {error}") from None
    try:
        info = os.stat(path)
    except OSError as error:
        raise SettingsError(f"source: cannot read {path}: {error.strerror}") from None
    if not stat.S_ISREG(info.st_mode):
        raise SettingsError(f"source: {path} is no file")
    return SourceFile(path, info.st_size, info.st_mtime_ns, partitions(path))


def partitions(path: str) -> dict[str, str | None]:
    """Hive's columns in a path: `day=2026-01-01/part.parquet`."""
    found: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        name, equals, value = folder.partition("=")
        if equals and name:
            found[unquote(name)] = None if value == HIVE_NULL else unquote(value)
    return found


def _paths(pattern: str, endings: Sequence[str]) -> list[str]:
    matches = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
    paths: list[str] = []
    for match in matches:
        if os.path.isdir(match):
            paths.extend(_walk(match, endings))
        else:
            paths.append(os.path.abspath(match))
    return paths


def _walk(folder: str, endings: Sequence[str]) -> list[str]:
    paths: list[str] = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        wanted = [name for name in names if not name.startswith((".", "_")) and name.endswith(tuple(endings))]
        paths.extend(os.path.abspath(os.path.join(root, name)) for name in wanted)
    return paths


def _objects(pattern: str, endings: Sequence[str]) -> list[SourceFile]:
    bucket, key = objects.split_url(pattern)
    held = objects.bucket(bucket)
    if not _MAGIC.search(key):
        if key and not key.endswith("/"):
            try:
                return [_as_file(bucket, held.head(key))]
            except objects.Missing:
                pass
        folder = key.rstrip("/") + "/" if key.strip("/") else ""
        inside = [found for found in held.list(folder) if _counts(found.key[len(folder) :], endings)]
        return [_as_file(bucket, found) for found in inside]
    folder = key[: _MAGIC.search(key).start()].rpartition("/")[0]  # type: ignore[union-attr]  # it was found above
    wanted = _as_expression(key.rstrip("/"))
    return [_as_file(bucket, found) for found in held.list(folder) if _matches(wanted, found.key, endings)]


_MAGIC = re.compile(r"[*?\[]")
_PARTS = re.compile(r"\*\*/|\*|\?|\[!?[^\]]+\]|.", re.DOTALL)


def _as_expression(pattern: str) -> re.Pattern[str]:
    """What `glob` matches: nothing but `**/` crosses a slash, and a name that begins with a dot must be named."""
    text, fresh = "", True
    for part in _PARTS.findall(pattern):
        begins = r"(?!\.)" if fresh else ""
        if part == "**/":
            text += r"(?:[^/.][^/]*/)*"
        elif part == "*":
            text += begins + "[^/]*"
        elif part == "?":
            text += begins + "[^/]"
        elif len(part) > 1:
            text += begins + ("[^/" + part[2:] if part.startswith("[!") else part)
        else:
            text += re.escape(part)
        fresh = part.endswith("/")
    return re.compile(text)


def _matches(wanted: re.Pattern[str], key: str, endings: Sequence[str]) -> bool:
    """The object itself, or as what lies in a folder that matches."""
    if wanted.fullmatch(key):
        return True
    folders = [place for place, letter in enumerate(key) if letter == "/"]
    return any(wanted.fullmatch(key[:place]) and _counts(key[place + 1 :], endings) for place in folders)


def _counts(name: str, endings: Sequence[str]) -> bool:
    return name.endswith(tuple(endings)) and not any(part.startswith((".", "_")) for part in name.split("/"))


def _as_file(bucket: str, found: objects.Found) -> SourceFile:
    path = f"s3://{bucket}/{found.key}"
    return SourceFile(path, found.size, 0, partitions(path), found.etag)
