"""One version of a repository that nobody watches, for those who score with it and leave."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from octoserve.core.errors import NotFound, SettingsError
from octoserve.core.names import is_elsewhere
from octoserve.repository.digest import stamp
from octoserve.repository.layout import DiskState, VersionOnDisk
from octoserve.repository.local import LocalRepository
from octoserve.runtimes.protocol import Runtime, artifacts_of


class Found(NamedTuple):
    """A whole version with its digest, and the stamp of its files from before the digest was taken."""

    version: VersionOnDisk
    stamp: tuple[tuple[str, int, int, int], ...]


def find(
    repository: str | os.PathLike[str], name: str, number: int | None, runtimes: Mapping[str, Runtime], may_repeat: str
) -> Found:
    """A version to score with, fetched if the repository lies elsewhere; all of its files are read, once. Blocking.

    number:     None for the highest
    may_repeat: what may happen twice after a crash ("a batch may run a row"), which a model with effects must not
    Raises NotFound, SettingsError, Away.
    """
    if is_elsewhere(repository):
        from octoserve.origins.opening import here

        root, number = here(repository, name, number)
    else:
        root = Path(repository)
    local = LocalRepository(root, artifacts_of(runtimes.values()), (name,), named=tuple(runtimes), settle=0.0)
    versions = local.scan(trust=(name,)).models.get(name, ())
    if not versions:
        raise NotFound(f"no model {name!r} in {repository}; `octoserve model list --repository {repository}` shows all")
    found = next((v for v in versions if v.version == number), None) if number is not None else versions[-1]
    if found is None:
        there = ", ".join(str(v.version) for v in versions)
        raise NotFound(f"no version {number} of {name!r} in {repository}; there is {there}")
    before = stamp(Path(found.path))
    local.digest(found)
    found = next(v for v in local.scan(trust=(name,)).models[name] if v.version == found.version)
    if found.state is not DiskState.WHOLE:
        raise SettingsError(f"{name} version {found.version} cannot be used: {found.reason}")
    if found.settings.effects == "external":
        raise SettingsError(
            f"{name} version {found.version} has effects: external, and {may_repeat} twice (after a crash): use a "
            "version without"
        )
    return Found(found, before)
