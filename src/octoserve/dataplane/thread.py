"""A thread that does what the event loop gives it: work that nobody waits for."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)


class Hand(Protocol):
    """Does one thing after the other, somewhere else."""

    def give(self, work: Callable[[], None]) -> None:
        """Do it, after what was given before."""
        ...

    def give_way(self, niceness: int) -> None:
        """From now on with less of a right to a core; there is no way back."""
        ...

    def stop(self) -> None:
        """End once everything given is done."""
        ...


class Thread:
    """One daemon thread that does what it is given; it may be left behind in a run that never ends."""

    def __init__(self, name: str) -> None:
        self._given: deque[Callable[[], None] | None] = deque()
        self._there = threading.Semaphore(0)
        self._niceness = os.getpriority(os.PRIO_PROCESS, 0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def give_way(self, niceness: int) -> None:
        """See Hand. Only Linux has priorities of threads by the name of their process's."""
        if niceness > self._niceness and sys.platform == "linux" and self._thread.native_id is not None:
            self._niceness = niceness
            with contextlib.suppress(OSError):  # it has ended, or was started with less
                os.setpriority(os.PRIO_PROCESS, self._thread.native_id, niceness)

    def give(self, work: Callable[[], None]) -> None:
        """Do it, after what was given before."""
        self._given.append(work)
        self._there.release()

    def stop(self) -> None:
        """End once everything given is done."""
        self._given.append(None)
        self._there.release()

    def _run(self) -> None:
        while True:
            self._there.acquire()
            work = self._given.popleft()
            if work is None:
                return
            try:
                work()
            except Exception:
                log.exception("%s", self._thread.name)
