"""The version that whole requests are answered by, in a data plane of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from octoserve.core.errors import OctoserveError, SettingsError
from octoserve.core.results import Result
from octoserve.core.signature import Signature
from octoserve.core.tensors import Tensor
from octoserve.dataplane.endpoint import DataPlane
from octoserve.lifecycle import loading
from octoserve.lifecycle.lease import Handle
from octoserve.lifecycle.probe import settle_batching
from octoserve.patterns.message_queue.model import find
from octoserve.patterns.message_queue.settings import QueueSettings
from octoserve.patterns.message_queue.waiting import ticking
from octoserve.routing.plan import RoutePlan
from octoserve.runtimes.protocol import Runtime
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.tracing import Tracer

T = TypeVar("T")


class RequestModel:
    """Requests through the data plane, from a thread that waits."""

    def __init__(
        self,
        settings: QueueSettings,
        runtimes: Mapping[str, Runtime],
        registry: Registry,
        executor: Executor,
        tracer: Tracer | None = None,
    ) -> None:
        """Loads the version, also one that takes no rows. Raises NotFound, BrokenVersion, SettingsError."""
        if settings.plan is not None:
            raise SettingsError("version: whole requests are answered by one version: a number, or stable")
        ref = find(settings.repository, settings.model, settings.version, runtimes)
        loaded = loading.load(runtimes, ref.runtime, Path(ref.path), ref.threads, ref.batching)
        settle_batching(loaded)
        self.name = ref.model
        self.version = ref.version
        self.signature: Signature = loaded.signature
        self.tick: Callable[[], None] = lambda: None
        """Called every second while runs take their time, on the thread that waits for them."""
        self._loop = asyncio.new_event_loop()
        self._plane = DataPlane(registry, self._loop, executor, tracer=tracer)
        self._plane.publish(Handle(ref, loaded))
        self._plane.route([RoutePlan.to(ref.model, ref.version, 1)], {}, [(ref.model, ref.version)])

    def infer(self, requests: Sequence[Sequence[Tensor]], ended: Callable[[], None]) -> list[Result | OctoserveError]:
        """Each request's result, or why there is none. ended: called whenever one has come. Raises what `tick` does."""

        async def one(inputs: Sequence[Tensor]) -> Result | OctoserveError:
            try:
                return await self._plane.infer(self.name, inputs)
            except OctoserveError as error:
                return error
            finally:
                ended()

        async def all_of() -> list[Result | OctoserveError]:
            return await asyncio.gather(*map(one, requests))

        return self._loop.run_until_complete(ticking(all_of(), self.tick))

    def waited(self, work: Callable[[], T]) -> T:
        """What it returns or raises, in a thread of its own. Raises what `tick` does."""
        return self._loop.run_until_complete(ticking(asyncio.to_thread(work), self.tick))
