"""Compares a mirror's answers and leaves the pairs in this process's spool. Works in the mirror's thread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from octoserve.core.comparison import Comparison, Difference
from octoserve.core.tensors import Tensor
from octoserve.dataplane.mirror import Copy
from octoserve.routing.plan import RoutePlan
from octoserve.telemetry.pairs import Pair, RawTensor
from octoserve.telemetry.spool import Spool

SEGMENT_SECONDS = 10.0
"""How soon a pair may be read by others."""


class PairJudge:
    """For one plan's mirror to `version`. The seed of a plan is its rollout's id.

    folder: of the spool
    name:   of this process in it
    """

    def __init__(self, plan: RoutePlan, version: int, folder: Path, name: str) -> None:
        self._plan = plan
        self._version = version
        self._comparison = Comparison(plan.tolerance)
        self._spool: Spool[Pair] = Spool(folder, name, segment_seconds=SEGMENT_SECONDS)

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
        pair = Pair(
            endpoint=self._plan.endpoint,
            rollout=self._plan.seed,
            stratum=self._plan.stratum,
            time=copy.arrived,
            kind=kind,
            key=copy.key,
            segments=dict(segment.split("=", 1) for segment in copy.segments if "=" in segment),
            stable_version=copy.version,
            candidate_version=self._version if kind == "shadow" else copy.version,
            inputs=[RawTensor.of(tensor) for tensor in copy.inputs],
            stable=[RawTensor.of(tensor) for tensor in copy.stable],
            candidate=[RawTensor.of(tensor) for tensor in outputs or ()],
            error=error,
            stable_seconds=copy.seconds,
            candidate_seconds=seconds,
            differing={} if difference is None else difference.outputs,
            rows=copy.rows,
            rows_differing=0 if difference is None else difference.rows_differing,
        )
        return self._spool.append(pair)

    def rest(self) -> None:
        """See `mirror.Judge`."""
        self._spool.rotate_if_due()

    def close(self) -> None:
        """See `mirror.Judge`."""
        self._spool.close()
