"""What a place that versions come from must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from octoserve.core.errors import OctoserveError

Key = tuple[str, int]
"""Model and version."""

MAX_BYTES = 64 << 30
"""Of one version."""


class Away(OctoserveError):
    """The origin cannot be asked now, or does not answer as it should; what is cached stays as it is."""

    reason = "store"


class Moved(OctoserveError):
    """What was being fetched is not what was listed any more; the next look says what it is."""

    reason = "changed"


class Object(msgspec.Struct, frozen=True):
    """A file of a version. key: in the origin; name: in the version's folder; mark: another if the content is."""

    name: str
    key: str
    size: int
    mark: str


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """A version as the origin lists it.

    mark:     another one if anything in it is
    modified: Unix time of the newest file by the origin's clock, 0 if that is not known
    whole:    the origin says itself that nothing will be added
    problem:  why it cannot be taken, whatever it holds
    """

    mark: str
    size: int = 0
    modified: float = 0.0
    whole: bool = False
    problem: str = ""
    objects: tuple[Object, ...] = ()


class Offer(msgspec.Struct, frozen=True):
    """One complete look. aliases: model -> name -> version; notes: what was passed over, and why."""

    versions: Mapping[Key, Offered]
    aliases: Mapping[str, Mapping[str, int]] = {}
    notes: tuple[str, ...] = ()


class Origin(Protocol):
    """One repository elsewhere. Blocking; used by one thread at a time."""

    name: str
    """How it is called, without secrets."""

    def look(self) -> Offer:
        """Everything that is there, by one listing. Raises Away, SettingsError (no right to it)."""

    def fetch(self, key: Key, offered: Offered, folder: Path, have: Callable[[Object], Path | None]) -> None:
        """Write the version's files into `folder`, which is there and empty.

        have: where the same content lies already, to be taken instead of fetched
        Raises Away, Moved, Refused (it will not be taken as it is), SettingsError, OSError.
        """
