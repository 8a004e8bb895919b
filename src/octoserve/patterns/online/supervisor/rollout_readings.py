"""Reads the metric checks of live rollouts, every few seconds and in threads; a tick uses what was read last.

Each provider is a lane of its own: its checks are read one after the other, for it is used by one thread at a time, and
beside those of the others. One that does not answer holds up nothing but its own checks, which then say so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from octoserve.control.analysis.reading import Reading
from octoserve.control.rollout.values import MetricCheck, Phase, Rollout
from octoserve.core.errors import OctoserveError

if TYPE_CHECKING:
    from octoserve.control.providers.protocol import MetricProvider

log = logging.getLogger(__name__)

EVERY = 5.0
PATIENCE = 15.0
"""Seconds for one check. A provider gives up after 10 by itself, but for what it cannot bound, such as the look-up of a
name."""
MOST_LANES = 16
"""Providers that are read at a time."""

Wanted = list[tuple[Rollout, MetricCheck]]


def _open(url: str) -> MetricProvider:
    from octoserve.control.providers.opening import open_provider

    return open_provider(url)


class MetricReadings:
    """live: the rollouts under way; urls: an endpoint's providers, by name; opened: what reads from an address."""

    def __init__(
        self,
        live: Callable[[], Iterable[Rollout]],
        urls: Callable[[str], Mapping[str, str]],
        now: Callable[[], float],
        opened: Callable[[str], MetricProvider] = _open,
    ) -> None:
        self._live, self._urls, self._now, self._opened = live, urls, now, opened
        self._readings: dict[tuple[str, str], dict[str, Reading]] = {}
        self._providers: dict[str, MetricProvider] = {}
        self._lanes: dict[str, asyncio.Task[None]] = {}
        """By address: those that are being read."""
        self._threads = ThreadPoolExecutor(MOST_LANES, "metrics")

    def __call__(self, rollout: Rollout) -> Mapping[str, Reading]:
        """The newest ones of this rollout's phase and step; a check that was not read yet is absent."""
        return self._readings.get(_window_of(rollout), {})

    async def run(self) -> None:
        """Read again and again. Ends by cancellation."""
        try:
            while True:
                any_wanted = self.begin()
                await asyncio.sleep(EVERY if any_wanted else 0.5)
        finally:
            for lane in self._lanes.values():
                lane.cancel()
            self._threads.shutdown(wait=False, cancel_futures=True)

    def begin(self) -> bool:
        """Begin one reading of all that is wanted, but where the one before has not ended; whether anything is."""
        live = list(self._live())
        windows = {_window_of(rollout) for rollout in live}
        self._readings = {key: value for key, value in self._readings.items() if key in windows}
        lanes: dict[str, Wanted] = {}
        for rollout in live:
            for check in _checks(rollout):
                url = self._urls(rollout.endpoint).get(check.provider)
                if url is None:
                    missing = f"no provider {check.provider!r} in the spec; name it under rollout.providers"
                    self._note(rollout, check, Reading(error=missing))
                else:
                    lanes.setdefault(url, []).append((rollout, check))
        for url, wanted in lanes.items():
            if url not in self._lanes:
                self._lanes[url] = asyncio.ensure_future(self._read(url, wanted))
        return any(_checks(rollout) for rollout in live)

    async def _read(self, url: str, wanted: Wanted) -> None:
        """One lane. Where a check takes too long, it and those after it have no reading until it has come back."""
        try:
            loop = asyncio.get_running_loop()
            for at, (rollout, check) in enumerate(wanted):
                reading = loop.run_in_executor(self._threads, self._one, url, rollout, check)
                await asyncio.wait({reading}, timeout=PATIENCE)
                if reading.done():
                    self._note(rollout, check, reading.result())
                    continue
                for late in wanted[at:]:
                    self._note(*late, Reading(error=f"provider {check.provider!r}: no answer within {PATIENCE:g} s"))
                await reading
                return
        finally:
            del self._lanes[url]

    def _note(self, rollout: Rollout, check: MetricCheck, reading: Reading) -> None:
        self._readings.setdefault(_window_of(rollout), {})[check.name] = reading

    def _one(self, url: str, rollout: Rollout, check: MetricCheck) -> Reading:
        """In a thread."""
        from octoserve.control.providers.protocol import Window

        since = rollout.settled or rollout.entered
        if rollout.phase is Phase.RETAINING:
            since = rollout.started  # delayed labels: what the candidate answered on its way is what they are about
        window = Window(
            endpoint=rollout.endpoint,
            candidate=rollout.candidate,
            stable=rollout.stable,
            since=since,
            until=self._now(),
        )
        try:
            provider = self._providers.get(url)
            if provider is None:
                provider = self._providers[url] = self._opened(url)
            why = provider.problem(check)
            return Reading(error=why) if why else provider.read(check, window)
        except OctoserveError as error:
            return Reading(error=str(error))
        except Exception as error:
            log.exception("metric %s", check.name)
            return Reading(error=f"{type(error).__name__}: it could not be read; the log has the reason")


def _checks(rollout: Rollout) -> list[MetricCheck]:
    judged = rollout.phase is Phase.RUNNING and rollout.settled is not None
    late = rollout.phase is Phase.RETAINING
    return [c for c in rollout.course.checks if isinstance(c, MetricCheck) and (judged or (late and c.delayed))]


def _window_of(rollout: Rollout) -> tuple[str, str]:
    return rollout.id, rollout.stratum or str(rollout.phase)
