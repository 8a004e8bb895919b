"""What a metrics provider is: a check's query and a window in, a reading out; it never raises."""

from __future__ import annotations

from typing import Protocol

import msgspec

from octoserve.control.analysis.reading import Reading
from octoserve.control.rollout.values import MetricCheck


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked about: two versions of an endpoint, since <= time < until, in wall clock seconds since 1970."""

    endpoint: str
    candidate: int
    stable: int
    since: float
    until: float


class MetricProvider(Protocol):
    """Reads sums by arm from an outside system. Blocking, within its time-out; used by one thread at a time."""

    def problem(self, check: MetricCheck) -> str:
        """Why this provider can never read that check; "" if it may. Asked before a rollout starts; no I/O."""

    def read(self, check: MetricCheck, query: Window) -> Reading:
        """The sums of the window. Whatever goes wrong is `Reading.error`, which shows no credentials."""

    def close(self) -> None:
        """The last call."""
