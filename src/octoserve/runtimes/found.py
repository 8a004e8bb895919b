"""Runtimes that other packages bring, by the entry point group `octoserve.runtimes`.

    [project.entry-points."octoserve.runtimes"]
    catboost = "my_package.runtime:CatBoostRuntime"

The name is the runtime's; the class is made without arguments.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

from octoserve.core.errors import BrokenVersion
from octoserve.core.names import RUNTIMES
from octoserve.runtimes.library import first_line
from octoserve.runtimes.protocol import LoadedModel, Runtime, RuntimeSettings

log = logging.getLogger(__name__)


def found(taken: Collection[str]) -> dict[str, Runtime]:
    """By name. One that cannot be imported stays known, and says why when a version wants it.

    taken: names that are ours; a package that brings one of these again is left out, and said so in the log
    """
    runtimes: dict[str, Runtime] = {}
    for point in metadata.entry_points(group=RUNTIMES):
        if point.name in taken or point.name in runtimes:
            log.warning("runtime %r of %s is left out: there is one of this name", point.name, point.value)
            continue
        try:
            runtime: Runtime = point.load()()
            if runtime.name != point.name:
                raise TypeError(f"its name is {runtime.name!r}, its entry point's {point.name!r}")
        except Exception as error:
            log.warning("runtime %r (%s) cannot be used: %s", point.name, point.value, first_line(error))
            runtime = _Unusable(point.name, f"runtime {point.name!r} ({point.value}): {first_line(error)}")
        runtimes[point.name] = runtime
    return runtimes


class _Unusable:
    """In the place of a runtime that could not be made."""

    artifacts: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self._reason = reason

    def load(self, folder: Path, settings: RuntimeSettings) -> LoadedModel:
        """Raises BrokenVersion."""
        raise BrokenVersion(self._reason)


def library_of(runtime: Runtime) -> str:
    """What it runs on, with the version: part of what identifies a job, since another one may answer otherwise."""
    for name in getattr(runtime, "distributions", ()):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return runtime.name
