"""While a run of the model takes its time: its deadline, and what is kept alive beside it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

TICK = 1.0
"""Seconds between two looks at what must not be left alone."""
T = TypeVar("T")


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """The process is ended by SIGALRM if this takes longer; `put_off` begins it anew."""
    put_off(seconds)
    try:
        yield
    finally:
        put_off(0.0)


def put_off(seconds: float) -> None:
    """The deadline is so many seconds from now; 0: there is none."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


async def ticking(work: Awaitable[T], tick: Callable[[], None]) -> T:
    """What it gives; `tick` is called every second meanwhile, and what it raises ends the wait."""
    run = asyncio.ensure_future(work)
    while not (await asyncio.wait((run,), timeout=TICK))[0]:
        tick()
    return run.result()


def ticked(run: Future[T], tick: Callable[[], None]) -> T:
    """The same for what another thread does."""
    while True:
        try:
            return run.result(TICK)
        except TimeoutError:
            if run.done():
                raise
            tick()
