"""A service whose repository lies elsewhere: its cache is kept up while it runs, and how that stands is told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octoserve.control.policy import select
from octoserve.core.names import is_elsewhere
from octoserve.repository.layout import Formats
from octoserve.repository.local import LocalRepository
from octoserve.telemetry.families import Family, Sample

if TYPE_CHECKING:
    from octoserve.origins.cache import Cache
    from octoserve.origins.follower import Follower
    from octoserve.patterns.online.supervisor.control_room import ControlRoom
    from octoserve.spec import ServeSettings

PATIENCE = 100.0
"""Seconds that a `load` waits for a round."""


def open_repository(settings: ServeSettings, formats: Formats) -> tuple[LocalRepository, Cache | None]:
    """What the control plane looks at, and the cache that it is, if it lies elsewhere. Raises SettingsError."""
    if not is_elsewhere(settings.repository):
        return (
            LocalRepository(
                Path(settings.repository),
                formats.artifacts,
                settings.model or None,
                named=formats.named,
                settle=settings.settle,
            ),
            None,
        )
    from octoserve.origins.cache import Cache
    from octoserve.origins.cached import CachedRepository
    from octoserve.origins.opening import PICKLE, origin_of

    origin = origin_of(str(settings.repository), PICKLE in settings.trust)
    cache = Cache(settings.cache_folder(), origin, settle=settings.settle)
    return CachedRepository(cache, formats.artifacts, settings.model or None, named=formats.named), cache


class Elsewhere:
    """Follows an origin for a service."""

    def __init__(self, cache: Cache, settings: ServeSettings, room: ControlRoom) -> None:
        self._cache, self._settings, self._room = cache, settings, room
        self._follower: Follower | None = None
        self._seen_with: int | None = None
        """The look of the room that has seen what the first rounds brought."""
        cold = not cache.cached()
        room.complete = lambda: not cold or self.looked()

    async def run(self) -> None:
        """Until it is cancelled."""
        from octoserve.origins.follower import Follower

        loop = asyncio.get_running_loop()

        def told() -> None:
            try:
                loop.call_soon_threadsafe(self._changed)  # after each round
            except RuntimeError:
                pass  # the loop has ended, and the process does

        settings = self._settings
        self._follower = Follower(self._cache, self._wanted, settings.repository_poll, told, settle=settings.settle)
        self._room.refresh = self._refresh
        self._follower.start()
        try:
            await asyncio.Event().wait()
        finally:
            self._follower.stop()

    def _changed(self) -> None:
        if self._seen_with is None and self._follower is not None and self._follower.looked:
            self._seen_with = self._room.begin_anew()
        else:
            self._room.look_now()

    def looked(self) -> bool:
        """Whether the origin has been asked once, and what there was is here and seen."""
        return self._seen_with is not None and self._room.looks >= self._seen_with

    async def _refresh(self, model: str) -> None:
        if self._follower is not None:
            await asyncio.to_thread(self._follower.refresh, model, PATIENCE)

    def _wanted(self, model: str, versions: Sequence[int], aliases: Mapping[str, int]) -> set[int]:
        """Called in the follower's thread; what it reads of the room is replaced whole."""
        if self._settings.model and model not in self._settings.model:
            return set()
        newest = set(versions[-self._settings.repository_versions :])
        policy = select(self._room.policy_of(model), versions, ())
        return newest | policy | self._room.named(model) | set(aliases.values())

    def view(self) -> dict[str, Any]:
        """For people."""
        if self._follower is None:
            return {"origin": self._cache.origin.name, "looked": None, "error": "not asked yet"}
        standing = self._follower.standing()
        return {
            "origin": standing.origin,
            "cache": str(self._cache.folder),
            "looked": standing.looked or None,
            "age": self._follower.age() if standing.looked else None,
            "error": standing.error,
            "missing": standing.missing,
            "refused": {f"{model}/{version}": why for (model, version), why in sorted(self._cache.refused.items())},
        }

    def families(self) -> list[Family]:
        """Metrics."""
        if self._follower is None:
            return []
        standing = self._follower.standing()

        def one(name: str, kind: str, help: str, value: float) -> Family:
            return Family(f"octoserve_repository_{name}", kind, help, (), (), (Sample((), float(value)),))

        return [
            one("age_seconds", "gauge", "Since the repository elsewhere last said what it has.", self._follower.age()),
            one("missing_versions", "gauge", "Versions that are wanted and could not be fetched.", standing.missing),
            Family(
                "octoserve_repository_polls_total", "counter", "Times that the repository elsewhere was asked.",
                ("outcome",), (),
                (Sample(("ok",), float(standing.good)), Sample(("failed",), float(standing.failed))),
            ),
            one("fetched_versions_total", "counter", "Versions that were fetched.", standing.fetched),
            one("fetched_bytes_total", "counter", "Bytes of the versions that were fetched.", standing.size),
        ]  # fmt: skip


class Nearby:
    """The same for a repository that is a folder: nothing to follow."""

    async def run(self) -> None:
        """Nothing."""

    def looked(self) -> bool:
        """A folder is looked at anyway."""
        return True

    def view(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def families(self) -> list[Family]:
        """None."""
        return []
