"""What the supervisor needs of a shadow's pairs, and nothing of how they are kept: the shadow pattern does that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from octoserve.core.errors import NotFound

if TYPE_CHECKING:
    from octoserve.control.analysis.verdict import Verdict
    from octoserve.core.evidence import Stratum
    from octoserve.core.tensors import Tensor


class Pairs(Protocol):
    """Keeps pairs and tells of them."""

    async def run(self) -> None:
        """Move pairs from the workers' spools to the store, again and again. Ends by cancellation."""
        ...

    def recorded(self, endpoint: str, count: int) -> Sequence[Sequence[Tensor]]:
        """The inputs of the last recorded requests. Blocking."""
        ...

    async def report(
        self, endpoint: str, rollout: str, evidence: Sequence[Stratum], verdicts: Sequence[Verdict], form: str
    ) -> tuple[str | bytes, str]:
        """A rollout's comparison of predictions, and its content type. Raises NotFound, InvalidInput."""
        ...


class NoPairs:
    """Where nothing keeps pairs."""

    async def run(self) -> None:
        """Nothing to do."""

    def recorded(self, endpoint: str, count: int) -> Sequence[Sequence[Tensor]]:
        """None."""
        return ()

    async def report(
        self, endpoint: str, rollout: str, evidence: Sequence[Stratum], verdicts: Sequence[Verdict], form: str
    ) -> tuple[str | bytes, str]:
        """There is none."""
        raise NotFound(f"rollout {rollout} has no pairs: nothing was mirrored")
