"""The version that a queue is scored with, found by its digest and published to a data plane of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

import msgspec

from octoserve.core.errors import SettingsError
from octoserve.core.signature import Signature
from octoserve.core.tensors import Tensor
from octoserve.dataplane.endpoint import DataPlane
from octoserve.dataplane.table import ScoredTable
from octoserve.lifecycle import lookup
from octoserve.lifecycle.lease import Handle
from octoserve.lifecycle.probe import settle_batching
from octoserve.lifecycle.states import VersionRef
from octoserve.repository.layout import ModelSettings
from octoserve.routing.plan import RoutePlan
from octoserve.runtimes.protocol import Runtime, RuntimeSettings
from octoserve.telemetry.metrics import Registry

_TICK = 1.0


class Found(msgspec.Struct, frozen=True):
    """A version as it lies in the repository."""

    ref: VersionRef
    settings: ModelSettings


def find(repository: Path, name: str, number: int | None, runtimes: Mapping[str, Runtime]) -> Found:
    """number: None for the highest. Reads the version's files. Raises NotFound, SettingsError."""
    found, _ = lookup.find(repository, name, number, runtimes, "a queue may run a message")
    threads = found.settings.threads or 1
    ref = VersionRef(name, found.version, found.path, found.digest, found.runtime, threads, found.settings.batching)
    return Found(ref, found.settings)


class Model:
    """Tables of rows through the data plane, from a thread that waits."""

    def __init__(self, found: Found, runtimes: Mapping[str, Runtime], registry: Registry, executor: Executor) -> None:
        """Loads the version. Raises BrokenVersion, and SettingsError if its answers are not row by row."""
        ref = found.ref
        loaded = runtimes[ref.runtime].load(Path(ref.path), RuntimeSettings(ref.threads, ref.batching))
        settle_batching(loaded)
        if not loaded.signature.batchable:
            takes = ", ".join(map(str, loaded.signature.inputs)) or "nothing"
            raise SettingsError(
                f"{ref.model} version {ref.version} takes no rows: its answers are not row by row; it takes {takes}"
            )
        self.name = ref.model
        self.version = ref.version
        self.settings = found.settings
        self.signature: Signature = loaded.signature
        self.tick: Callable[[], None] = lambda: None
        """Called every second while a run takes its time, on the thread that waits for it."""
        self._loop = asyncio.new_event_loop()
        self._plane = DataPlane(registry, self._loop, executor)
        self._plane.publish(Handle(ref, loaded))
        self._plane.route([RoutePlan.to(ref.model, ref.version, 1)], {}, [(ref.model, ref.version)])

    def score(self, columns: Sequence[Tensor], keys: Sequence[bytes] | None = None) -> ScoredTable:
        """All rows, or an OctoserveError, or what `tick` raises. keys: by which a split picks their versions."""
        return self._loop.run_until_complete(self._ticking(columns, keys))

    async def _ticking(self, columns: Sequence[Tensor], keys: Sequence[bytes] | None) -> ScoredTable:
        run = asyncio.ensure_future(self._plane.infer_table(self.name, columns, keys=keys))
        while not (await asyncio.wait((run,), timeout=_TICK))[0]:
            self.tick()
        return run.result()

    def close(self) -> None:
        """The last call."""
        self._loop.close()
