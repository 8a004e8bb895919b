"""A repository in an object store: `s3://bucket/prefix/<model>/<version>/...`, one listing a look."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

from octoserve.connectors.objects import PIECE, STORES, Bucket, Changed, Found, Missing, StoreTrouble
from octoserve.core.errors import SettingsError
from octoserve.core.names import model_name_problem
from octoserve.origins.protocol import MAX_BYTES, Away, Key, Moved, Object, Offer, Offered
from octoserve.repository.digest import MAX_DEPTH, MAX_FILES
from octoserve.repository.layout import Refused, ignored, version_number

PATIENCE = timedelta(seconds=5)
"""For one request with its repetitions; a look comes again anyway."""
MAX_OBJECTS = 1_000_000
"""In one listing."""
_LONGEST = 255
"""Bytes of one name that file systems take."""


class ObjectOrigin:
    """See `Origin`. `bucket` for tests."""

    def __init__(self, url: str, bucket: Bucket | None = None) -> None:
        """Connects to nothing yet. Raises SettingsError."""
        scheme, _, rest = url.partition("://")
        name, _, prefix = rest.partition("/")
        if scheme not in STORES or not name:
            raise SettingsError(f"repository: {scheme}://bucket/folder wanted, {url!r} came")
        self.name = url.rstrip("/")
        self._prefix = prefix.strip("/")
        self._bucket = bucket or Bucket(name, patience=PATIENCE, scheme=scheme)

    def look(self) -> Offer:
        """See `Origin`."""
        found: dict[Key, list[Found]] = {}
        notes: set[str] = set()
        try:
            for number, item in enumerate(self._bucket.list(self._prefix)):
                if number >= MAX_OBJECTS:
                    raise SettingsError(f"{self.name} holds more than {MAX_OBJECTS} objects; name a folder of models")
                key, note = self._key(item.key)
                if key is not None:
                    found.setdefault(key, []).append(item)
                elif note:
                    notes.add(note)
        except (StoreTrouble, Missing) as error:
            raise Away(str(error)) from None
        return Offer({key: self._offered(key, items) for key, items in found.items()}, {}, tuple(sorted(notes)))

    def _key(self, path: str) -> tuple[Key | None, str]:
        """Model and version that an object belongs to; or why it is passed over, if that is worth a note."""
        model, _, rest = self._inside(path).partition("/")
        number, inside, name = rest.partition("/")
        if ignored(model) or not inside or ignored(number):
            return None, ""
        problem = model_name_problem(model) or _name_problem(model)
        if problem:
            return None, f"{model!a} is ignored: {problem}"
        version = version_number(number)
        if version is None:
            return None, f"{model}/{number!a} is ignored: a version is a folder named 1, 2, 3, ..."
        return ((model, version), "") if name else (None, "")

    def _inside(self, path: str) -> str:
        return path[len(self._prefix) :].lstrip("/") if self._prefix else path

    def _offered(self, key: Key, items: list[Found]) -> Offered:
        start = len(f"{key[0]}/{key[1]}/")
        items.sort(key=lambda item: item.key)
        objects = tuple(Object(self._inside(i.key)[start:], i.key, i.size, i.etag) for i in items)
        return Offered(
            mark=" ".join(f"{o.name!r}:{o.size}:{o.mark}" for o in objects),
            size=sum(o.size for o in objects),
            modified=max(i.modified for i in items),
            problem=_problem(objects),
            objects=objects,
        )

    def fetch_folder(self, name: str, folder: Path) -> None:
        """Everything below this folder of the repository, whatever it is. Raises as `fetch`."""
        start = len(f"{name}/")
        try:
            found = sorted(self._bucket.list(f"{self._prefix}/{name}".strip("/")), key=lambda item: item.key)
        except (StoreTrouble, Missing) as error:
            raise Away(str(error)) from None
        objects = tuple(Object(self._inside(i.key)[start:], i.key, i.size, i.etag) for i in found)
        problem = _problem(objects)
        if problem:
            raise Refused(problem)
        self.fetch(("", 0), Offered(mark="", objects=objects), folder, lambda _: None)

    def fetch(self, key: Key, offered: Offered, folder: Path, have: Callable[[Object], Path | None]) -> None:
        """See `Origin`. Objects whose ETag is that of a file that is here are taken from there."""
        for wanted in offered.objects:
            path = folder / wanted.name
            path.parent.mkdir(parents=True, exist_ok=True)
            there = have(wanted)
            try:
                with open(path, "xb") as file:
                    file.writelines(self._pieces(wanted) if there is None else _content(there))
            except (Changed, Missing):
                raise Moved(f"{self.name}: {wanted.key} changed while it was fetched") from None
            except StoreTrouble as error:
                raise Away(str(error)) from None
            if path.stat().st_size != wanted.size:
                raise Refused(f"{wanted.name}: {wanted.size} bytes wanted, {path.stat().st_size} came")

    def _pieces(self, wanted: Object) -> Iterable[bytes]:
        """All of one object, as it was listed: each piece is asked for with `If-Match`."""
        for start in range(0, wanted.size, PIECE):
            yield self._bucket.read(wanted.key, start, min(wanted.size, start + PIECE), wanted.mark)


def _content(path: Path) -> Iterable[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            yield piece


def _problem(objects: tuple[Object, ...]) -> str:
    """Why these files cannot be a version here; empty if they can."""
    if len(objects) > MAX_FILES:
        return f"it holds more than {MAX_FILES} files; a version is a small set of artifacts"
    size = sum(found.size for found in objects)
    if size > MAX_BYTES:
        return f"it holds {size} bytes; at most {MAX_BYTES} are fetched"
    names = {found.name for found in objects}
    for name in names:
        problem = name_problem(name)
        if problem:
            return problem
        parts = name.split("/")
        if any("/".join(parts[:depth]) in names for depth in range(1, len(parts))):
            return f"{name!a} lies in what is a file"
    return ""


def name_problem(name: str) -> str:
    """Why this path, with `/`, may not become a file of a version; empty if it may."""
    parts = name.split("/")
    if len(parts) > MAX_DEPTH:
        return f"{name!a} is nested deeper than {MAX_DEPTH} folders"
    return next((f"{name!a}: {problem}" for problem in map(_name_problem, parts) if problem), "")


def _name_problem(part: str) -> str:
    if part in ("", ".", ".."):
        return "a name has no empty part, no '.' and no '..'"
    if len(part.encode(errors="surrogateescape")) > _LONGEST:
        return f"a name has at most {_LONGEST} bytes"
    if "\\" in part or "\0" in part or not part.isprintable():
        return "a name is made of characters that can be printed, and no backslash"
    return ""
