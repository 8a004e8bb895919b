"""The versions that a queue is scored with, found by their digests and published to a data plane of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from octoserve.core.errors import SettingsError
from octoserve.core.evidence import Seen
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Tensor
from octoserve.dataplane.endpoint import DataPlane
from octoserve.dataplane.splits import Judges
from octoserve.dataplane.table import ScoredTable
from octoserve.lifecycle import loading, lookup
from octoserve.lifecycle.lease import Handle
from octoserve.lifecycle.probe import settle_batching
from octoserve.lifecycle.states import VersionRef
from octoserve.patterns.message_queue.waiting import ticked, ticking
from octoserve.routing.plan import RoutePlan
from octoserve.runtimes.protocol import Runtime
from octoserve.telemetry.metrics import Registry

T = TypeVar("T")


def find(repository: str, name: str, number: int | None, runtimes: Mapping[str, Runtime]) -> VersionRef:
    """number: None for the highest. Reads the version's files. Raises NotFound, SettingsError."""
    found, _ = lookup.find(repository, name, number, runtimes, "a queue may run a message")
    threads = found.settings.threads or 1
    return VersionRef(name, found.version, found.path, found.digest, found.runtime, threads, found.settings.batching)


def load(ref: VersionRef, runtimes: Mapping[str, Runtime]) -> Handle:
    """Blocking. Raises BrokenVersion, and SettingsError if its answers are not row by row."""
    loaded = loading.load(runtimes, ref.runtime, Path(ref.path), ref.threads, ref.batching)
    settle_batching(loaded)
    if not loaded.signature.batchable:
        takes = ", ".join(map(str, loaded.signature.inputs)) or "nothing"
        raise SettingsError(
            f"{ref.model} version {ref.version} takes no rows: its answers are not row by row; it takes {takes}"
        )
    return Handle(ref, loaded)


def unlike(outputs: Sequence[TensorSpec], other: Handle) -> str:
    """Why a version's results cannot stand beside those of these outputs; "" if they can."""
    theirs = {spec.name: spec for spec in other.signature.outputs}
    for spec in outputs:
        came = theirs.get(spec.name)
        if came is None or (came.datatype, came.shape) != (spec.datatype, spec.shape):
            wanted = f"output {spec} is wanted, {came or 'no such output'} came"
            return f"{other.ref} does not answer as the others: {wanted}; the results are one table"
    return ""


class Models:
    """Tables of rows through the data plane, from a thread that waits."""

    def __init__(
        self, name: str, registry: Registry, executor: Executor, *, live: bool = False, judges: Judges | None = None
    ) -> None:
        """live: the data plane's event loop runs all the time, in a thread of its own, as copies for a shadow need it.

        judges: see `DataPlane`
        """
        self.name = name
        self.tick: Callable[[], None] = lambda: None
        """Called every second while a run takes its time, on the thread that waits for it."""
        self._loop = asyncio.new_event_loop()
        self.plane = DataPlane(registry, self._loop, executor, judges=judges)
        self._loaded: dict[int, Handle] = {}
        self._live = live
        if live:
            threading.Thread(target=self._loop.run_forever, name="data plane", daemon=True).start()

    def on_loop(self, work: Callable[[], T]) -> T:
        """Do it where the data plane lives."""
        if not self._live:
            return work()

        async def done() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result()

    @property
    def version(self) -> int:
        """The one that is trusted now."""
        plan = self.plane.plan(self.name)
        assert plan is not None, "a plan comes first"
        return plan.stable

    def publish(self, handle: Handle) -> None:
        """It may be scored with."""
        self._loaded[handle.ref.version] = handle
        self.on_loop(lambda: self.plane.publish(handle))

    def retire(self, number: int) -> None:
        """It is scored with no more: no plan names it, and nothing runs."""
        handle = self._loaded.pop(number)

        def unload() -> None:
            self.plane.retire(handle)
            handle.when_idle(handle.loaded.close)

        self.on_loop(unload)

    def route(self, plan: RoutePlan) -> None:
        """This plan is in force."""
        known = [(self.name, number) for number in self._loaded]
        self.on_loop(lambda: self.plane.route([plan], {}, known))

    def seen(self) -> list[Seen]:
        """What was counted under the plan in force."""
        return self.on_loop(self.plane.splits.seen)

    def sweep(self) -> None:
        """About once a second."""
        self.on_loop(self.plane.splits.sweep)

    def signature(self, number: int) -> Signature:
        """Of one that was published."""
        return self._loaded[number].signature

    def run(self, number: int, columns: Sequence[Tensor]) -> ScoredTable:
        """All rows, or an OctoserveError, or what `tick` raises."""
        if not self._live:
            return self._loop.run_until_complete(ticking(self._infer(number, columns), self.tick))
        return ticked(asyncio.run_coroutine_threadsafe(self._infer(number, columns), self._loop), self.tick)

    async def _infer(self, number: int, columns: Sequence[Tensor]) -> ScoredTable:
        return await self.plane.infer_table(self.name, columns, str(number))


class Bound:
    """One version of them, as `scoring.Scorer`."""

    def __init__(self, models: Models, version: int) -> None:
        self.name = models.name
        self.version = version
        self._models = models

    def score(self, columns: Sequence[Tensor]) -> ScoredTable:
        """See `Scorer.score`."""
        return self._models.run(self.version, columns)
