"""What compares a shadow's answers in a queue's worker, and where the pairs go.

Pairs lie in the spool of the service that is followed, where its keeper finds them as it finds its own workers'. From
another machine that cannot be reached: there they are counted, and not kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from octoserve.control.rollout.following import Route
from octoserve.core.comparison import Comparison, Difference
from octoserve.core.tensors import Tensor
from octoserve.dataplane.mirror import Copy, Judge
from octoserve.dataplane.pair_judge import PairJudge
from octoserve.routing.plan import RoutePlan


def judge_of(route: Route, plan: RoutePlan, version: int) -> Judge:
    """For copies under this plan."""
    spool = Path(route.spool)
    # The service has made its state directory; one that is not there is another machine's, or a container's.
    near = route.spool and route.host == os.uname().nodename and spool.parent.parent.is_dir()
    return PairJudge(plan, version, spool, f"queue-{os.getpid()}") if near else CountingJudge(plan)


class CountingJudge:
    """Compares, and keeps nothing."""

    def __init__(self, plan: RoutePlan) -> None:
        self._comparison = Comparison(plan.tolerance)

    def compare(self, stable: Sequence[Tensor], others: Sequence[Tensor]) -> Difference:
        """See `mirror.Judge`."""
        return self._comparison.compare(stable, others)

    def keep(
        self,
        copy: Copy,
        kind: str,
        outputs: Sequence[Tensor] | None,
        error: str,
        seconds: float,
        difference: Difference | None,
    ) -> bool:
        """See `mirror.Judge`."""
        return True

    def rest(self) -> None:
        """See `mirror.Judge`."""

    def close(self) -> None:
        """See `mirror.Judge`."""
