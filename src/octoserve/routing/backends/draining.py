"""Waiting for requests in flight to end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from octoserve.core.clock import Clock

Sleep = Callable[[float], Awaitable[None]]
PAUSE = 0.01
"""Seconds between two looks."""


async def wait_until_idle(
    in_flight: Callable[[], Awaitable[int]], deadline: float, clock: Clock, sleep: Sleep, quiet: int = 1
) -> int:
    """Look until `quiet` looks in a row have seen nothing, or until the deadline. Returns what the last look saw.

    quiet: 2 where a request may have been routed and not yet be counted when a look sees nothing
    """
    seen_nothing = 0
    while True:
        count = await in_flight()
        seen_nothing = seen_nothing + 1 if count == 0 else 0
        if seen_nothing >= quiet or clock() >= deadline:
            return count
        await sleep(min(PAUSE, max(0.0, deadline - clock())))
