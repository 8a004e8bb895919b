"""Time is injected, so that every deadline, back-off and window is tested without sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds from an arbitrary start; never goes back. `monotonic` in production, a list's pop in tests."""

monotonic: Clock = time.monotonic
