"""An origin in memory, whose failures are the test's; and the cache of one, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from octoserve.origins.cache import Cache, Choice, Round
from octoserve.origins.protocol import Away, Key, Moved, Object, Offer, Offered
from octoserve.repository.digest import folder_digest


class Shelf:
    """See `Origin`. What lies there is put there by `put`; `away` is what a request fails with, if any."""

    name = "shelf://"

    def __init__(self) -> None:
        self.files: dict[Key, dict[str, tuple[bytes, str]]] = {}
        self.aliases: dict[str, dict[str, int]] = {}
        self.whole = False
        self.away = ""
        self.cut: set[Key] = set()
        """Versions in whose middle the origin goes away."""
        self.moved: set[Key] = set()
        self.refuse: dict[Key, Exception] = {}
        self.fetched: list[str] = []
        self._marks = 0

    def put(self, key: Key, **files: bytes) -> None:
        """Write these files, `model_onnx=...`, as one upload; the others of the version stay."""
        for name, content in files.items():
            self._marks += 1
            self.files.setdefault(key, {})[name.replace("_", ".")] = content, f"e{self._marks}"

    def look(self) -> Offer:
        if self.away:
            raise Away(self.away)
        return Offer({key: self._offered(key, files) for key, files in self.files.items()}, self.aliases)

    def _offered(self, key: Key, files: dict[str, tuple[bytes, str]]) -> Offered:
        objects = tuple(
            Object(name, f"{key[0]}/{key[1]}/{name}", len(content), mark)
            for name, (content, mark) in sorted(files.items())
        )
        return Offered(mark=repr(objects), size=sum(o.size for o in objects), whole=self.whole, objects=objects)

    def fetch(self, key: Key, offered: Offered, folder: Path, have: Callable[[Object], Path | None]) -> None:
        if key in self.refuse:
            raise self.refuse[key]
        for wanted in offered.objects:
            there = have(wanted)
            if there is None:
                self.fetched.append(wanted.key)
            (folder / wanted.name).write_bytes(there.read_bytes() if there else self.files[key][wanted.name][0])
            if key in self.moved:
                raise Moved("it was replaced")
            if key in self.cut:
                raise Away("the connection was cut")


def newest(count: int) -> Choice:
    """The highest so many of each model."""

    def choice(model: str, versions: Sequence[int], aliases: Mapping[str, int]) -> Sequence[int]:
        return [*versions[-count:], *aliases.values()]

    return choice


class Mirror:
    """A cache of a shelf. `now` is both clocks."""

    def __init__(self, folder: Path, shelf: Shelf) -> None:
        self.folder, self.shelf = folder, shelf
        self.now = 1_000_000.0
        self.restart()

    def restart(self) -> None:
        """Another process takes the cache up."""
        self.cache = Cache(self.folder, self.shelf, clock=lambda: self.now, wall=lambda: self.now)

    def look(self, choice: Choice | None = None, after: float = 0.0, trust: str = "", prune: bool = True) -> Round:
        """One round as the only writer."""
        self.now += after
        with self.cache.writing() as mine:
            assert mine
            return self.cache.round(choice or newest(3), lambda model: model == trust, prune)

    def settled(self, choice: Choice | None = None) -> Round:
        """Two rounds, between which everything rests."""
        self.look(choice)
        return self.look(choice, after=5.0)

    def content(self, key: Key) -> dict[str, bytes]:
        """What the house reads of a version; nothing if it is not there. It is what was recorded."""
        place = self.cache.place(key)
        if not place.is_dir():
            return {}
        record = self.cache.record(key)
        assert record is not None
        assert record.digest == folder_digest(place)
        return {path.name: path.read_bytes() for path in sorted(place.iterdir())}
