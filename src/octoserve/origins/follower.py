"""Keeps a cache up with its origin, in a thread of its own: a round every `repository_poll`, or when somebody asks."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

import msgspec

from octoserve.core.clock import Clock
from octoserve.core.errors import OctoserveError
from octoserve.origins.cache import SETTLE, Cache, Choice, Round

log = logging.getLogger(__name__)


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How the origin and the cache stand.

    looked:  Unix time at which the origin last answered with all that it has, 0 for never
    error:   why it does not, now; empty if it does
    missing: versions that are wanted and cannot be had
    """

    origin: str
    looked: float
    error: str = ""
    missing: int = 0
    good: int = 0
    failed: int = 0
    fetched: int = 0
    size: int = 0


class Follower:
    """See the module. choice: which versions are wanted; on_change: called in the thread after each round."""

    def __init__(
        self,
        cache: Cache,
        choice: Choice,
        poll: float,
        on_change: Callable[[], None] = lambda: None,
        *,
        settle: float = SETTLE,
        wall: Clock = time.time,
    ) -> None:
        self.cache = cache
        self._choice, self._poll, self._settle, self._on_change = choice, poll, settle, on_change
        self._wall = wall
        self._turned = threading.Condition()
        self._asked = False
        self._ended = False
        self._begun = self._done = 0
        self._trusted: dict[str, int] = {}
        self._standing = Standing(origin=cache.origin.name, looked=cache.said.looked)
        self._again = 0.0
        self._thread = threading.Thread(target=self._run, name="repository", daemon=True)

    def start(self) -> None:
        """Once."""
        self._thread.start()

    def stop(self) -> None:
        """No round begins after this; one that runs may end with the process."""
        with self._turned:
            self._ended = True
            self._turned.notify_all()

    def standing(self) -> Standing:
        """Now."""
        return self._standing

    @property
    def looked(self) -> bool:
        """Whether the first round has ended, well or not, and with it the wait for what is young."""
        return self._done > 0 and not (self._again and self._done < 3)

    def age(self) -> float:
        """Seconds since the origin last answered; since 1970 if it never has."""
        return max(0.0, self._wall() - self._standing.looked)

    def refresh(self, model: str, limit: float) -> None:
        """Have a round that begins now, with this model's objects taken as whole; wait until it has ended."""
        with self._turned:
            wanted = self._begun + 1
            self._trusted[model] = self._trusted.get(model, 0) + 1
            self._asked = True
            self._turned.notify_all()
            self._turned.wait_for(lambda: self._done >= wanted or self._ended, limit)
            self._trusted[model] -= 1

    def _run(self) -> None:
        while True:
            with self._turned:
                if self._ended:
                    return
                self._asked = False
                self._begun += 1
            self.step()
            with self._turned:
                self._done = self._begun
                self._turned.notify_all()
            self._on_change()
            with self._turned:
                pause = self._again or self._poll * random.uniform(0.9, 1.1)
                self._turned.wait_for(lambda: self._asked or self._ended, pause)

    def step(self) -> None:
        """One round. What fails is said once, and tried again."""
        was = self._standing
        error, done = "", Round()
        try:
            with self.cache.writing(lambda: not self._ended) as mine:
                if not mine:
                    return
                done = self.cache.round(self._choice, lambda model: self._trusted.get(model, 0) > 0)
                error = done.error
        except (OctoserveError, OSError) as problem:
            error = str(problem)
        except Exception as problem:
            log.exception("the repository's cache; tried again")
            error = str(problem)
        if error and error != was.error:
            log.error("repository: %s; what is in the cache is served, tried again every %g s", error, self._poll)
        elif was.error and not error:
            log.info("repository: %s answers again", self.cache.origin.name)
        self._again = min(self._settle, self._poll) if done.young and not error else 0.0
        self._standing = Standing(
            origin=was.origin,
            looked=self.cache.said.looked,
            error=error,
            missing=was.missing if error and not done.missing else len(done.missing) + len(self.cache.refused),
            good=was.good + (not error),
            failed=was.failed + bool(error),
            fetched=was.fetched + len(done.fetched),
            size=was.size + done.size,
        )
