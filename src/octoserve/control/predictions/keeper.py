"""Keeps the prediction log while a service runs: out of the workers' spools into the store of each model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from octoserve.core.errors import OctoserveError
from octoserve.core.observation import Observations
from octoserve.telemetry.families import Family, Sample
from octoserve.telemetry.predictions import model_of, spool_of
from octoserve.telemetry.spool import spooled_bytes

if TYPE_CHECKING:
    from octoserve.control.predictions.store import PredictionStore

log = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two looks into the spools."""
RETAIN_EVERY = 3600.0
FINISHING = 10.0
"""Seconds that a service which ends gives to what its workers have left."""


class PredictionKeeper:
    """See the module. folder: `<state>/predictions`."""

    def __init__(self, observations: Observations, folder: Path, now: Callable[[], float] = time.time) -> None:
        self._observations = observations
        self.spool = folder / "spool"
        self._now = now
        self._stores: dict[str, PredictionStore] = {}
        self._complaints: dict[str, str] = {}
        self._busy = asyncio.Lock()
        self._waiting: dict[str, int] = {}
        self._damaged = 0

    async def run(self) -> None:
        """Take up what is whole, again and again; drop what is too old. Ends by cancellation, at once without a log."""
        retain_at = 0.0
        while self._observations.any_log():
            await self.take_up()
            if self._now() >= retain_at and self._stores:
                retain_at = self._now() + RETAIN_EVERY
                await asyncio.to_thread(self._retain)
            await asyncio.sleep(EVERY)

    async def take_up(self) -> None:
        """Everything that is whole, and what dead workers left."""
        async with self._busy:
            await asyncio.to_thread(self._take_up)

    async def finish(self) -> None:
        """The same once more, when the workers are gone; a store that is away finds the rest at the next start."""
        if self._observations.any_log():
            try:
                await asyncio.wait_for(self.take_up(), FINISHING)
            except TimeoutError:
                log.warning("predictions wait in %s for the next start: their store takes too long", self.spool)

    def check(self) -> None:
        """Raises SettingsError where what a log needs is not installed."""
        if self._observations.any_log():
            from octoserve.control.predictions.store import PredictionStore  # brings pyarrow

            for observed in self._observations.all():
                if observed.log is not None:
                    PredictionStore("any", observed.log, self.spool / "any")

    def _take_up(self) -> None:
        if not self.spool.is_dir():
            return
        for folder in sorted(path for path in self.spool.iterdir() if path.is_dir()):
            try:
                store = self._store(folder)
                if store is None:
                    continue
                done = store.take_up()
                self._damaged += done.damaged
                self._complain(folder.name, done.error)
                self._waiting[store.model] = spooled_bytes(folder)
            except (OSError, OctoserveError) as error:
                self._complain(folder.name, str(error))

    def _store(self, folder: Path) -> PredictionStore | None:
        """Of the model whose spool it is; None where it is another service's, or was filled by other settings."""
        model = model_of(folder)
        settings = self._observations.of(model).log
        if settings is None or spool_of(self.spool, model, settings) != folder:
            return None
        if model not in self._stores:
            from octoserve.control.predictions.store import PredictionStore

            self._stores[model] = PredictionStore(model, settings, folder)
        return self._stores[model]

    def _retain(self) -> None:
        for model, store in list(self._stores.items()):
            try:
                gone = store.retain(self._now())
            except (OSError, OctoserveError) as error:
                self._complain(f"{model} retain", str(error))
                continue
            if gone:
                log.info("prediction log of %s: %d of the oldest files were dropped", model, gone)

    def _complain(self, whose: str, why: str) -> None:
        if why and why != self._complaints.get(whose):
            log.error("predictions stay in the spool: %s", why)
        self._complaints[whose] = why

    def families(self) -> list[Family]:
        """For the page of metrics."""
        if not self._observations.any_log():
            return []
        rows = tuple(Sample((model,), float(store.rows)) for model, store in list(self._stores.items()))
        waiting = tuple(Sample((model,), float(size)) for model, size in list(self._waiting.items()))
        name = "octoserve_prediction_log"
        return [
            Family(f"{name}_stored_rows_total", "counter", "Rows brought into the store.", ("model",), (), rows),
            Family(f"{name}_spool_bytes", "gauge", "Bytes that wait for the store.", ("model",), (), waiting),
            Family(
                f"{name}_damaged_total", "counter", "Segments that could not be read to their end.", (), (),
                (Sample((), float(self._damaged)),),
            ),
        ]  # fmt: skip
