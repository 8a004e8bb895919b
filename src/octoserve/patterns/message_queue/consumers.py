"""The consumers of asynchronous requests that a service runs itself: of each model one supervisor of workers.

Which version they hold is the service's word (`want`): when it changes, they end in good order and are started anew.
Each supervisor runs in a thread, and its workers are processes; a service that is killed leaves none behind, since they
notice that their supervisor is gone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence

import msgspec

from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import OctoserveError
from octoserve.patterns.message_queue.keeper import Keeper
from octoserve.patterns.message_queue.settings import QueueSettings
from octoserve.patterns.message_queue.supervisor import Spawn, Supervisor
from octoserve.telemetry.families import Family
from octoserve.telemetry.prometheus import merge

log = logging.getLogger(__name__)

_LOOK = 0.5
"""Seconds between looks at what is wanted."""
_AGAIN = 5.0
"""Seconds before a supervisor that could not start is started again."""

SettingsOf = Callable[[str, int], QueueSettings]
"""Model and version -> how its queue is worked on."""


class _Group:
    """A model's workers, of one version."""

    def __init__(self, version: int, supervisor: Supervisor) -> None:
        self.version = version
        self.supervisor = supervisor
        self.stopping = False
        self._thread = threading.Thread(target=self._run, name="consumers", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.supervisor.run()
        except OctoserveError as error:
            log.error("asynchronous requests are not answered: %s; tried again in %g s", error, _AGAIN)
        except Exception:
            log.exception("asynchronous requests are not answered; tried again in %g s", _AGAIN)

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Let it finish what it has in hand."""
        if not self.stopping:
            self.stopping = True
            self.supervisor.stop()


class Consumers:
    """See the module."""

    def __init__(
        self,
        models: Sequence[str],
        settings_of: SettingsOf,
        workers: int,
        spawn: Spawn,
        keeper: Keeper,
        *,
        log_level: str = "info",
        log_format: str = "text",
        clock: Clock = monotonic,
    ) -> None:
        """workers: of each model; 0 for none"""
        self._models = tuple(models) if workers else ()
        self._settings_of = settings_of
        self._workers = workers
        self._spawn = spawn
        self._log = (log_level, log_format)
        self._keeper = keeper
        self._clock = clock
        self._groups: dict[str, _Group] = {}
        self._due: dict[str, float] = {}
        self._past: list[Family] = []
        self._leaving = False

    async def run(self, stable: Callable[[], Mapping[str, int]]) -> None:
        """Until cancelled. stable: which version of each model is trusted now."""
        keeping = asyncio.create_task(self._keeper.run())
        try:
            while True:
                self.want(stable())
                await asyncio.sleep(_LOOK)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    def want(self, stable: Mapping[str, int]) -> None:
        """One look: start what is missing, stop what is outdated."""
        now = self._clock()
        for model in self._models if not self._leaving else ():
            group = self._groups.get(model)
            version = stable.get(model)
            if group is not None and not group.alive:
                self._past = merge([*self._past, *_counts(group.supervisor.families())])
                del self._groups[model]
                if not group.stopping:
                    self._due[model] = now + _AGAIN
                group = None
            if group is not None:
                if version is not None and version != group.version:
                    group.stop()
            elif version is not None and now >= self._due.get(model, now):
                log.info("asynchronous requests of %s are answered by version %d", model, version)
                self._groups[model] = _Group(version, self._make(model, version))

    def _make(self, model: str, version: int) -> Supervisor:
        level, form = self._log
        settings = self._settings_of(model, version)
        return Supervisor(settings, self._workers, self._spawn, log_level=level, log_format=form)

    async def leave(self, seconds: float) -> None:
        """Let all finish what they have in hand, at most so long; the last call."""
        self._leaving = True
        for group in self._groups.values():
            group.stop()
        end = self._clock() + seconds
        while any(group.alive for group in self._groups.values()) and self._clock() < end:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self._keeper.close)

    def families(self) -> list[Family]:
        """The queues' metrics; those of their data planes would pass for the doors'."""
        living = [
            _of_model(family, model)
            for model, group in list(self._groups.items())
            for family in group.supervisor.families()
        ]
        return [family for family in merge([*self._past, *living]) if _is_queues(family.name)]


def _is_queues(name: str) -> bool:
    return name.startswith("octoserve_queue_") and name != "octoserve_queue_seconds"  # which is a data plane's


def _of_model(family: Family, model: str) -> Family:
    """Queues without partitions are told apart by their models."""
    if family.kind != "gauge":
        return family
    named = tuple(msgspec.structs.replace(s, labels=(model,)) if s.labels == ("",) else s for s in family.samples)
    return msgspec.structs.replace(family, samples=named)


def _counts(families: Sequence[Family]) -> list[Family]:
    return [family for family in families if family.kind != "gauge"]
