"""The splits of all endpoints: compiled when a plan is published, and again when a version comes or goes.

What outlives a plan is kept here: a stratum's counts, an arm's last attempts and a cut candidate, as long as the
plan's seed (the rollout) stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from octoserve.core.clock import Clock
from octoserve.core.evidence import CANDIDATE, Seen
from octoserve.dataplane.batcher import Batcher
from octoserve.dataplane.breaker import Recent
from octoserve.dataplane.exposure import Exposure
from octoserve.dataplane.mirror import Judge, Mirror
from octoserve.dataplane.split import Split
from octoserve.lifecycle.lease import Handle
from octoserve.routing.plan import RoutePlan
from octoserve.telemetry.metrics import Registry

log = logging.getLogger(__name__)

Judges = Callable[[RoutePlan, int], Judge]
"""Makes what compares and keeps the pairs of a plan's mirror to a version."""


class _Kept:
    """What outlives plans of one rollout."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.recent: dict[str, Recent] = {}
        self.cut = ""
        self.exposure: Exposure | None = None
        self.mirror: Mirror | None = None
        self.mirror_of: object = None


class Splits:
    """Endpoint -> split, where a plan is more than one version for everybody.

    batchers: (endpoint, version, role) -> its queue, None where the version is not ready here
    """

    def __init__(
        self,
        batchers: Callable[[str, int, str], Batcher | None],
        registry: Registry,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        judges: Judges | None,
    ) -> None:
        self._batchers = batchers
        self._loop = loop
        self._clock = clock
        self._judges = judges
        self._kept: dict[str, _Kept] = {}
        self.by_endpoint: dict[str, Split] = {}
        self._closing: list[Mirror] = []
        """Mirrors of plans that are over, whose last copies are not counted yet: one may have hung."""
        self._totals = registry.counter(
            "octoserve_mirror_total",
            "Copies of requests by what became of them: offered = sent + dropped, sent = ok + error + timeout.",
            ("endpoint", "version", "outcome"),
        )
        self._cuts = registry.counter(
            "octoserve_breaker_total", "Candidates that this process cut at once.", ("endpoint", "version")
        )

    def publish(self, plans: Iterable[RoutePlan]) -> None:
        """All plans, replacing all that were there."""
        wanted = {plan.endpoint: plan for plan in plans if _is_split(plan)}
        for endpoint in self.by_endpoint.keys() - wanted.keys():
            self._forget(endpoint)
        self.by_endpoint = {endpoint: self._compile(plan) for endpoint, plan in wanted.items()}

    def compile_again(self, endpoint: str) -> None:
        """A version of it came or went."""
        split = self.by_endpoint.get(endpoint)
        if split is not None:
            self.by_endpoint[endpoint] = self._compile(split.plan)

    def seen(self) -> list[Seen]:
        """What is to be judged, of every endpoint."""
        told = []
        for endpoint, split in self.by_endpoint.items():
            sample = split.exposure.sample
            keys = None if sample is None else (sample.level, sample.keys())
            self._remember_cut(endpoint, split)
            told.append(Seen(evidence=split.exposure.evidence(), seed=split.plan.seed, cut=split.cut, keys=keys))
        return told

    def sweep(self) -> None:
        """Look for runs that have hung. Called about once a second."""
        for endpoint, split in self.by_endpoint.items():
            split.look_for_stalls()
            if split.mirror is not None:
                split.mirror.look_for_stalls()
            self._remember_cut(endpoint, split)
        for mirror in self._closing:
            mirror.look_for_stalls()
        self._closing = [mirror for mirror in self._closing if not mirror.is_over]

    def _close(self, mirror: Mirror | None) -> None:
        if mirror is not None:
            mirror.close()
            if not mirror.is_over:
                self._closing.append(mirror)

    def _remember_cut(self, endpoint: str, split: Split) -> None:
        kept = self._kept[endpoint]
        if split.cut and not kept.cut:
            kept.cut = split.cut
            version = next((arm.version for arm in split.plan.arms if arm.role == CANDIDATE), 0)
            self._cuts.counter(endpoint, str(version)).add()
            log.error("%s version %d is cut in this worker: %s", endpoint, version, split.cut)

    def _compile(self, plan: RoutePlan) -> Split:
        endpoint = plan.endpoint
        before = self.by_endpoint.get(endpoint)
        if before is not None:
            self._remember_cut(endpoint, before)
        kept = self._kept.get(endpoint)
        if kept is None or kept.seed != plan.seed:
            self._forget(endpoint)
            kept = self._kept[endpoint] = _Kept(plan.seed)
        if kept.exposure is None or kept.exposure.stratum != plan.stratum:
            kept.exposure = Exposure(endpoint, plan.stratum, bool(plan.key))
        split = Split(
            plan,
            lambda version, role: self._batchers(endpoint, version, role),
            kept.exposure,
            self._mirror(kept, plan),
            kept.recent,
        )
        split.cut_candidate(kept.cut)
        return split

    def _mirror(self, kept: _Kept, plan: RoutePlan) -> Mirror | None:
        assert kept.exposure is not None
        same = (plan.mirrors, plan.stratum)
        if kept.mirror is not None and kept.mirror_of == same:
            return kept.mirror
        self._close(kept.mirror)
        kept.mirror, kept.mirror_of = None, same
        if plan.mirrors and self._judges is not None:
            to = plan.mirrors[0]
            judge = self._judges(plan, to.version)
            handles = self._handles_of(plan.endpoint)
            kept.mirror = Mirror(to, kept.exposure, handles, judge, self._loop, self._clock, self._totals)
        return kept.mirror

    def _handles_of(self, endpoint: str) -> Callable[[int], Handle | None]:
        def handle(version: int) -> Handle | None:
            batcher = self._batchers(endpoint, version, "")
            return None if batcher is None else batcher.handle

        return handle

    def _forget(self, endpoint: str) -> None:
        kept = self._kept.pop(endpoint, None)
        if kept is not None:
            self._close(kept.mirror)


def _is_split(plan: RoutePlan) -> bool:
    return len(plan.arms) > 1 or bool(plan.mirrors or plan.overrides or plan.stratum)
