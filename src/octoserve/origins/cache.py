"""The local cache of one origin: a folder that is read like any repository, and one writer at a time.

A version is written in this order, and a crash leaves, after each step:

1. its files, in `incoming/`, synchronised       left-overs, which the next round removes
2. its record, by rename                         a record that does not fit what lies there: fetched again
3. an older copy moved away, the folder renamed  it is done

Who reads a version holds a shared lock on its folder, so that nobody takes it away; a lock dies with its process.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import SettingsError
from octoserve.origins.protocol import Away, Key, Moved, Object, Offer, Offered, Origin
from octoserve.repository.digest import files, folder_digest
from octoserve.repository.layout import Refused, version_number
from octoserve.telemetry.spool import sync_folder

log = logging.getLogger(__name__)

SETTLE = 2.0
SKEW = 60.0
"""Seconds that the origin's clock may be ahead of ours."""
ROOM = 64 << 20
"""Bytes that are left free."""
Choice = Callable[[str, Sequence[int], Mapping[str, int]], Collection[int]]
"""A model, its versions ascending and its aliases -> which of them are wanted here."""


class Kept(msgspec.Struct, frozen=True):
    """One file as it was fetched."""

    name: str
    size: int
    mark: str


class Record(msgspec.Struct, frozen=True):
    """A version as it was fetched. digest: of the folder; mark: see `Offered`."""

    mark: str
    digest: str
    files: tuple[Kept, ...] = ()


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What the last complete look said. looked: Unix time, 0 for never."""

    looked: float = 0.0
    aliases: dict[str, dict[str, int]] = {}


class Round(msgspec.Struct, kw_only=True):
    """What one round did. young: versions that may still be written; missing: wanted, and not here."""

    fetched: list[Key] = []
    removed: list[Key] = []
    young: list[Key] = []
    missing: list[Key] = []
    size: int = 0
    error: str = ""


class Cache:
    """See the module. `round` is for one thread; what reads may be asked from any."""

    def __init__(
        self,
        folder: Path,
        origin: Origin,
        *,
        settle: float = SETTLE,
        clock: Clock = monotonic,
        wall: Clock = time.time,
    ) -> None:
        """Raises SettingsError if nothing can be written there."""
        self.origin = origin
        self.folder = folder_of(folder, origin.name)
        self.root = root_of(folder, origin.name)
        self._settle, self._clock, self._wall = settle, clock, wall
        try:
            for part in (self.root, self.folder / "records"):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"cache: a folder that can be written is wanted: {error}") from None
        self.said = self._read_said()
        self.refused: dict[Key, str] = {}
        """Why versions that the origin has are not here."""
        self.still = threading.Lock()
        """Held while a version is swapped for another: no scan sees neither."""
        self._refusals: dict[Key, tuple[str, str]] = {}
        self._distrusted: set[Key] = set()
        self._seen: dict[Key, tuple[str, float]] = {}
        self._absent: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._held: dict[Key, int] = {}
        self._notes: frozenset[str] = frozenset()

    # What is here.

    def record(self, key: Key) -> Record | None:
        """What was fetched; None if that is not known."""
        try:
            return msgspec.json.decode(self._record_path(key).read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError):
            return None

    def cached(self) -> set[Key]:
        """Every version whose folder is here."""
        return {
            (model.name, number)
            for model in self.root.iterdir()
            for number in (version_number(item.name) for item in (model.iterdir() if model.is_dir() else ()))
            if number is not None
        }

    def place(self, key: Key) -> Path:
        """Where its folder is, or would be."""
        return self.root / key[0] / str(key[1])

    def distrust(self, key: Key) -> None:
        """Its files are not those that were fetched; the next round fetches them again."""
        self._distrusted.add(key)

    def hold(self, keys: Collection[Key]) -> None:
        """Nobody removes these while this process lives, or until it holds others."""
        for key in self._held.keys() - set(keys):
            os.close(self._held.pop(key))
        for key in set(keys):
            held = self._held.get(key)
            try:
                here = self.place(key).stat().st_ino
                if held is not None and os.fstat(held).st_ino == here:
                    continue
                handle = os.open(self.place(key), os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                continue
            fcntl.flock(handle, fcntl.LOCK_SH)
            self._held[key] = handle
            if held is not None:
                os.close(held)

    # Writing.

    @contextmanager
    def writing(self, waits: Callable[[], bool] = lambda: True) -> Iterator[bool]:
        """The one writer, for this block: False if `waits`, asked every 0.1 s, ended the wait for another."""
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not waits():
                        yield False
                        return
                    time.sleep(0.1)
            yield True
        finally:
            os.close(handle)

    def round(self, choice: Choice, trust: Callable[[str], bool] = lambda model: False, prune: bool = True) -> Round:
        """One look, and what follows from it. The caller is the writer.

        trust: models whose objects the caller says are whole
        prune: whether what is gone or not wanted is removed
        Raises Away, SettingsError where the origin says nothing that can be used; then nothing has changed.
        """
        for leftover in ("incoming", "gone"):
            shutil.rmtree(self.folder / leftover, ignore_errors=True)
        offer = self.origin.look()
        here = self.cached()
        if not offer.versions and here:
            raise Away(
                f"{self.origin.name} shows no version at all, and {len(here)} are in the cache: that is taken for a "
                "failure of the store, and what is here stays"
            )
        for note in sorted(set(offer.notes) - self._notes):
            log.info("repository: %s", note)
        self._notes = frozenset(offer.notes)
        done = Round()
        wanted = self._wanted(offer, choice)
        self.refused = {key: offer.versions[key].problem for key in wanted if offer.versions[key].problem}
        for key in sorted(wanted, key=lambda key: (self._failures.get(key, 0), key[0], -key[1])):
            if not offer.versions[key].problem:
                self._bring(key, offer.versions[key], trust(key[0]), done)
        self._failures = {key: count for key, count in self._failures.items() if key in wanted}
        self.hold(wanted if prune else wanted | self._held.keys())
        if prune:
            self._prune(here, offer, wanted, done)
        self.said = Said(looked=self._wall(), aliases={m: dict(named) for m, named in offer.aliases.items()})
        _write(self.folder / "said.json", msgspec.json.encode(self.said))
        return done

    def _wanted(self, offer: Offer, choice: Choice) -> set[Key]:
        numbers: dict[str, list[int]] = {}
        for model, number in sorted(offer.versions):
            numbers.setdefault(model, []).append(number)
        return {
            (model, number)
            for model, versions in numbers.items()
            for number in set(choice(model, versions, offer.aliases.get(model, {}))) & set(versions)
        }

    def _bring(self, key: Key, offered: Offered, trusted: bool, done: Round) -> None:
        """Fetch what is not here in these marks, unless it is still being written or was refused like this before.

        An origin that goes away in the middle is asked for nothing more in this round; the next one begins with others.
        """
        record = self.record(key)
        there = self.place(key).is_dir() and key not in self._distrusted
        if there and record is not None and record.mark == offered.mark:
            return
        before = self._refusals.get(key)
        if before is not None and before[0] == offered.mark and not trusted:
            self.refused[key] = before[1]
        elif done.error:
            done.missing.append(key)
        elif not (trusted or self._rests(key, offered)):
            done.young.append(key)
        else:
            self._try(key, offered, record if there else None, done)

    def _try(self, key: Key, offered: Offered, old: Record | None, done: Round) -> None:
        try:
            self._fetch(key, offered, old)
        except (Refused, SettingsError, OSError) as error:
            if isinstance(error, Refused):
                self._refusals[key] = offered.mark, str(error)
            self.refused[key] = str(error)
            log.error("%s version %d is not taken from %s: %s", *key, self.origin.name, error)
        except (Away, Moved) as error:
            self._failures[key] = self._failures.get(key, 0) + 1
            done.missing.append(key)
            if isinstance(error, Away):
                done.error = str(error)
        else:
            self._distrusted.discard(key)
            self._refusals.pop(key, None)
            done.fetched.append(key)
            done.size += sum(entry.size for entry in files(self.place(key), None))
            log.info("%s version %d was fetched from %s", *key, self.origin.name)

    def _rests(self, key: Key, offered: Offered) -> bool:
        """Whether nothing more seems to come: see docs/model-repository.md."""
        if offered.whole:
            return True
        now = self._clock()
        mark, since = self._seen.get(key, ("", now))
        if mark != offered.mark:
            self._seen[key] = offered.mark, now
            since = now
        old = offered.modified > 0 and self._wall() - offered.modified >= self._settle + SKEW
        return old or (mark == offered.mark and now - since >= self._settle)

    def _fetch(self, key: Key, offered: Offered, old: Record | None) -> None:
        """The steps of the module. old: the record of what is here, if that may be used."""
        place = self.place(key)
        incoming = self.folder / "incoming" / f"{key[1]}"
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(parents=True)
        room = shutil.disk_usage(incoming).free
        if room < offered.size + ROOM:
            raise OSError(f"{offered.size} bytes are wanted, and {self.folder} has room for {room}")
        whole = old is not None and folder_digest(place) == old.digest
        kept = {file for file in old.files if file.mark} if old is not None and whole else set()

        def have(wanted: Object) -> Path | None:
            return place / wanted.name if Kept(wanted.name, wanted.size, wanted.mark) in kept else None

        self.origin.fetch(key, offered, incoming, have)
        _synchronise(incoming)
        record = Record(
            mark=offered.mark,
            digest=folder_digest(incoming),
            files=tuple(Kept(o.name, o.size, o.mark) for o in offered.objects),
        )
        _write(self._record_path(key), msgspec.json.encode(record))
        if old is not None and whole and old.digest == record.digest:
            return  # the same bytes, written again
        place.parent.mkdir(exist_ok=True)
        with self.still:
            if place.exists():
                self._put_away(place)
            incoming.rename(place)
        sync_folder(place.parent)

    def _put_away(self, place: Path) -> None:
        """Out of sight in one step; the next round deletes it."""
        gone = self.folder / "gone"
        gone.mkdir(exist_ok=True)
        place.rename(gone / f"{len(os.listdir(gone))}-{place.name}-{os.getpid()}")

    def _prune(self, here: set[Key], offer: Offer, wanted: set[Key], done: Round) -> None:
        absent = {key for key in here if key not in offer.versions}
        for key in sorted(here - wanted):
            if key in absent & self._absent or (key not in absent and not self._is_held(key)):
                with self.still:
                    self._put_away(self.place(key))
                self._record_path(key).unlink(missing_ok=True)
                done.removed.append(key)
                if key in absent:
                    log.info("%s version %d is gone from %s", *key, self.origin.name)
        for model in {key[0] for key in done.removed}:
            if not any((self.root / model).iterdir()):
                (self.root / model).rmdir()
        self._absent = absent
        shutil.rmtree(self.folder / "gone", ignore_errors=True)

    def _is_held(self, key: Key) -> bool:
        """Whether a process reads it."""
        try:
            handle = os.open(self.place(key), os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def _record_path(self, key: Key) -> Path:
        return self.folder / "records" / key[0] / f"{key[1]}.json"

    def _read_said(self) -> Said:
        try:
            return msgspec.json.decode((self.folder / "said.json").read_bytes(), type=Said)
        except (OSError, msgspec.MsgspecError):
            return Said()


def folder_of(cache: Path, name: str) -> Path:
    """Where the cache of this origin lies."""
    readable = re.sub(r"[^a-zA-Z0-9]+", "-", name).strip("-")[:60]
    return cache / f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def root_of(cache: Path, name: str) -> Path:
    """The repository in it."""
    return folder_of(cache, name) / "models"


def _write(path: Path, content: bytes) -> None:
    """Whole, and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ahead = path.with_name(f".{path.name}.tmp")
    with open(ahead, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    ahead.replace(path)
    sync_folder(path.parent)


def _synchronise(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(Path(parent) / name, "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))
