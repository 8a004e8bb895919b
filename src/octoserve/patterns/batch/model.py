"""A version that a job scores with: found, identified by its digest, loaded once a thread."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from octoserve.core.errors import SettingsError
from octoserve.lifecycle.loading import load
from octoserve.lifecycle.lookup import find
from octoserve.lifecycle.probe import settle_batching
from octoserve.patterns.batch.job import ModelIdentity
from octoserve.repository.digest import stamp
from octoserve.repository.layout import ModelSettings, Refused
from octoserve.runtimes.protocol import LoadedModel, Runtime


class Version:
    """One version, and the way to load it."""

    def __init__(
        self,
        repository: str | os.PathLike[str],
        name: str,
        number: int | None,
        runtimes: Mapping[str, Runtime],
        libraries: Mapping[str, str],
    ) -> None:
        """number: None for the highest. libraries: runtime -> what it runs on, with version.

        repository: a folder, or where else it lies
        Raises NotFound, SettingsError, Away. Reads all of the version's files, once.
        """
        found, before = find(repository, name, number, runtimes, "a batch may run a row")
        self.identity = ModelIdentity(name, found.version, found.digest)
        self.settings: ModelSettings = found.settings
        self.library = libraries.get(found.runtime, found.runtime)
        self._folder = Path(found.path)
        self._runtimes = runtimes
        self.runtime = found.runtime
        self._stamp = before

    def __str__(self) -> str:
        return f"{self.identity.name} version {self.identity.version}"

    def load(self) -> LoadedModel:
        """On one thread: a model a core beats one on all of them. Raises BrokenVersion, SettingsError."""
        loaded = load(self._runtimes, self.runtime, self._folder, 1, self.settings.batching)
        self.check()
        return loaded

    def check(self) -> None:
        """Raises SettingsError if the files are not those that the digest was taken of."""
        try:
            same = stamp(self._folder) == self._stamp
        except (OSError, Refused):
            same = False
        if not same:
            raise SettingsError(
                f"the files of {self.identity.name} version {self.identity.version} have changed while the job runs; a "
                "version is never changed: publish another"
            )

    def load_first(self) -> LoadedModel:
        """The same, and the model is asked whether its rows are rows. Raises SettingsError if not."""
        loaded = self.load()
        settle_batching(loaded)
        if not loaded.signature.batchable:
            name = f"{self.identity.name} version {self.identity.version}"
            takes = ", ".join(map(str, loaded.signature.inputs)) or "nothing"
            raise SettingsError(f"{name} takes no tables: its answers are not row by row; it takes {takes}")
        return loaded
