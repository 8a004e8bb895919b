"""Which origin an address means, and the one function by which whoever scores once reads a repository."""

from __future__ import annotations

import logging
import os
import threading
import time
from functools import cache
from pathlib import Path

from octoserve.core.errors import NotFound, SettingsError
from octoserve.core.names import is_elsewhere
from octoserve.origins.cache import SETTLE, Cache, root_of
from octoserve.origins.protocol import Away, Key, Origin
from octoserve.repository.digest import folder_digest

log = logging.getLogger(__name__)

CACHE = Path(".octoserve/cache")
PICKLE = "pickle"
"""The word of `trust` that lets a registry's pickles be read."""
_ROUNDS = 5
_lock = threading.Lock()


def origin_of(url: str, trust: bool = False) -> Origin:
    """trust: pickles of a registry may be read. Connects to nothing. Raises SettingsError."""
    if url.startswith("mlflow"):
        from octoserve.origins.mlflow import MlflowOrigin

        return MlflowOrigin(url, trust)
    from octoserve.origins.objects import ObjectOrigin

    return ObjectOrigin(url)


def cache_folder(state_dir: Path | None = None) -> Path:
    """Where caches lie: as OCTOSERVE_REPOSITORY_CACHE says, else in the state directory."""
    told = os.environ.get("OCTOSERVE_REPOSITORY_CACHE")
    return Path(told) if told else state_dir / "cache" if state_dir is not None else CACHE


def root_here(repository: str | os.PathLike[str], cache: Path | None = None) -> Path:
    """The folder by which a repository is read: itself, or its cache, whatever that holds."""
    if not is_elsewhere(repository):
        return Path(repository)
    return root_of(cache or cache_folder(), str(repository).rstrip("/"))


def here(
    repository: str | os.PathLike[str], model: str, number: int | None, cache: Path | None = None
) -> tuple[Path, int]:
    """The folder by which a version that lies elsewhere is read, and its number. Blocking.

    number: None for the highest. It is fetched if it is not in the cache, and stays there while this process lives; an
    origin that is away is done without if the cache has it.
    Raises NotFound, SettingsError, Away.
    """
    with _lock:
        held = _opened(str(repository), (cache or cache_folder()).absolute())
        with held.writing():
            return held.root, _fetched(held, model, number)


def versions_there(repository: str, cache: Path) -> tuple[Key, ...]:
    """What an origin has, or what the cache has where it is away. Raises Away, SettingsError."""
    held = _opened(repository, cache.absolute())
    cached = held.cached()
    try:
        return tuple(sorted(held.origin.look().versions))
    except (Away, SettingsError) as error:
        if not cached:
            raise
        log.warning("%s; this is what the cache has", error)
        return tuple(sorted(cached))


@cache
def _opened(repository: str, folder: Path) -> Cache:
    trust = [word.strip() for word in os.environ.get("OCTOSERVE_TRUST", "").split(",")]
    return Cache(folder, origin_of(repository, PICKLE in trust))


def _fetched(held: Cache, model: str, number: int | None) -> int:
    offered: list[int] = []
    """Of the model, as last seen."""

    def choice(name: str, versions: object, aliases: object) -> list[int]:
        if name != model:
            return []
        offered[:] = list(versions)  # type: ignore[call-overload]
        return [offered[-1] if number is None else number]

    error = ""
    for _ in range(_ROUNDS):
        offered.clear()
        try:
            done = held.round(choice, prune=False)
            error = done.error
        except (Away, SettingsError) as problem:
            error = str(problem)
            offered[:] = sorted(n for name, n in held.cached() if name == model)
            if not offered:
                raise
            held.hold([(model, offered[-1] if number is None else number)])
        else:
            if done.young and not error:
                time.sleep(SETTLE)  # it was written just now; see docs/model-repository.md
                continue
        wanted = offered[-1] if offered and number is None else number
        if wanted is None or wanted not in offered:
            there = ", ".join(map(str, offered)) or "no version"
            raise NotFound(f"no version {number or ''} of {model!r} in {held.origin.name}; there is {there}")
        key = model, wanted
        record = held.record(key)
        if held.place(key).is_dir() and record is not None and folder_digest(held.place(key)) == record.digest:
            if error:
                log.warning("%s; %s version %d is taken from the cache", error, *key)
            return wanted
        held.distrust(key)
        if error:
            raise Away(f"{error}; and {model} version {wanted} is not in the cache")
        if key in held.refused:
            raise SettingsError(f"{model} version {wanted} of {held.origin.name}: {held.refused[key]}")
    raise Away(f"{model} of {held.origin.name} goes on changing; try again when it is written")
