"""Event loops, clocks and executors under a test's control: nothing here sleeps."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """One loop for all tests that step it by hand."""
    return asyncio.new_event_loop()


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on the shared loop."""
    return loop().run_until_complete(work)


async def ticks(count: int = 3) -> None:
    """Let callbacks that are due run, `count` rounds of them."""
    for _ in range(count):
        await asyncio.sleep(0)


class FakeClock:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class InlineExecutor(Executor):
    """Runs what it is given at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Executor.submit`."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class ManualExecutor(Executor):
    """Keeps what it is given until the test runs it: a run that takes as long as the test wants."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], Any]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Executor.submit`."""
        self.waiting.append(functools.partial(fn, *args, **kwargs))
        return Future()

    def run_one(self) -> None:
        """Do the oldest piece of work."""
        self.waiting.popleft()()
