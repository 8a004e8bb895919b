"""What becomes of answers that are kept: their askers are told, and after a while they are forgotten.

One process of a service does this. Two would tell twice, and nothing worse: a callback is at-least-once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from octoserve.connectors.queues.answers import Answer, AnswerStore
from octoserve.core.clock import Clock
from octoserve.core.errors import OctoserveError

log = logging.getLogger(__name__)

_LOOK = 1.0
_FORGET = 60.0
"""Seconds between looks at what is to be forgotten, at most; a tenth of `keep` where that is less."""
_AT_ONCE = 64
_THREADS = 8
_PATIENCE = 120.0
"""Seconds that a callback may take before another may try it."""
_LONGEST = 300.0
"""Seconds between tries of a callback, at most."""

Tell = Callable[[Answer], bool]
"""Whether there is nothing more to tell. Blocking; never raises."""


class Keeper:
    """Of one store. keep: seconds."""

    def __init__(
        self,
        store: AnswerStore,
        keep: float,
        tell: Tell | None = None,
        wall: Clock = time.time,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """tell: None where nobody is to be told; ended: called last"""
        self._ended = ended
        self._store = store
        self._keep = keep
        self._tell = tell
        self._wall = wall
        self._forgot = 0.0
        self._threads = ThreadPoolExecutor(_THREADS, "callback") if tell is not None else None
        self._complaint = ""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                busy = await asyncio.to_thread(self.step)
                self._complaint = ""
            except OctoserveError as error:
                busy = False
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    log.warning("answers are not looked after: %s; tried again every %g s", error, _LOOK)
            await asyncio.sleep(0 if busy else _LOOK)

    def step(self) -> bool:
        """One look; whether there may be more to do at once. Raises Unavailable, SettingsError."""
        now = self._wall()
        if now - self._forgot >= min(_FORGET, self._keep / 10):
            self._forgot = now
            count = self._store.forget(now - self._keep)
            if count:
                log.info("%d requests and their answers are forgotten after %g s", count, self._keep)
        if self._tell is None or self._threads is None:
            return False
        owed = self._store.owed(now, _PATIENCE, _AT_ONCE)
        for answer, over in zip(owed, self._threads.map(self._tell, owed), strict=True):
            again = None if over else self._wall() + min(_LONGEST, 2.0 ** min(answer.tries, 10))
            self._store.told(answer.id, again)
        return len(owed) == _AT_ONCE

    def close(self) -> None:
        """The last call."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self._store.close()
        self._ended()
