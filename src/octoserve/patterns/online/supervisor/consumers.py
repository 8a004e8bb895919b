"""What the supervisor needs of the consumers of asynchronous requests; the message queue pattern does that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from octoserve.patterns.online.settings import AsyncRequests
from octoserve.telemetry.families import Family

if TYPE_CHECKING:
    from octoserve.spec import ServeSettings


class Consumers(Protocol):
    """They answer what this service's doors accept."""

    async def run(self, stable: Callable[[], Mapping[str, int]]) -> None:
        """Until cancelled. stable: which version of each model is trusted now."""
        ...

    async def leave(self, seconds: float) -> None:
        """Let them finish what they have in hand, at most so long; the last call."""
        ...

    def families(self) -> Sequence[Family]:
        """Their metrics."""
        ...


class NoConsumers:
    """Where no request is asynchronous."""

    async def run(self, stable: Callable[[], Mapping[str, int]]) -> None:
        """Nothing to do."""

    async def leave(self, seconds: float) -> None:
        """Nobody is there."""

    def families(self) -> Sequence[Family]:
        """None."""
        return ()


def async_requests(settings: ServeSettings) -> AsyncRequests | None:
    """What a worker's door has to know of them; None where no model takes any."""
    section = settings.asynchronous
    if not section.models:
        return None
    state_dir = settings.state_dir.resolve()
    return AsyncRequests(
        models=tuple(section.models),
        source=section.source,
        store=section.store or f"sqlite:///{state_dir / 'async.db'}?table=answers",
        state_dir=str(state_dir),
        callbacks=tuple(section.callbacks),
        results=section.results or "",
        inputs=tuple(section.inputs),
        max_pending=section.max_pending,
    )
