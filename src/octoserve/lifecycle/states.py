"""The states of a version in one process, and the only function that may change them.

new -> loading -> warming -> ready -> draining -> unloaded
         |           |
         +-----------+--> failed (-> loading again, when its files changed)
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class State(StrEnum):
    """Where a version stands in one worker."""

    NEW = "new"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    UNLOADED = "unloaded"
    FAILED = "failed"


_LEGAL: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.LOADING, State.UNLOADED}),
    State.LOADING: frozenset({State.WARMING, State.FAILED, State.UNLOADED}),
    State.WARMING: frozenset({State.READY, State.FAILED, State.UNLOADED}),
    State.READY: frozenset({State.DRAINING}),
    State.DRAINING: frozenset({State.UNLOADED}),
    State.UNLOADED: frozenset(),
    State.FAILED: frozenset({State.LOADING, State.UNLOADED}),
}


def advance(now: State, to: State) -> State:
    """`to`, if the step is legal; an illegal step is a bug and raises ValueError."""
    if to not in _LEGAL[now]:
        raise ValueError(f"a version cannot go from {now} to {to}")
    return to


class VersionRef(msgspec.Struct, frozen=True):
    """One immutable artifact, wanted in memory. `digest` is that of its folder when it was first seen whole."""

    model: str
    version: int
    path: str
    digest: str
    runtime: str = "onnx"
    threads: int = 1
    batching: bool | None = None
    max_batch_rows: int = 64
    attempt: int = 0
    """Grows when a failed version's files changed: the same version is to be tried again."""
    cached: bool = False
    """Whether its answers may be kept."""

    def __str__(self) -> str:
        return f"{self.model} version {self.version}"


class VersionReport(msgspec.Struct, frozen=True):
    """What one worker says of one version."""

    model: str
    version: int
    state: State
    reason: str = ""
    attempt: int = 0
