"""The pick of a proxy in front, as its headers name it, held against the plan that is in force here.

The plan here has the last word: an arm, a tester's version or a shadow that it does not have, and what another
endpoint's plan has drawn, is answered by the stable version, whatever a proxy says that follows an older plan. So an
abort is in effect once the workers follow, though no proxy does yet. Such requests, and those that no proxy has drawn,
are counted apart (`UNASSIGNED`): they say nothing of this plan's shares. A candidate's failures count for its breaker
all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from octoserve.core.evidence import CANDIDATE, STABLE
from octoserve.routing.plan import (
    ARM_HEADER,
    ENDPOINT_HEADER,
    OVERRIDE,
    SHADOW,
    SHADOW_HEADER,
    STRATUM_HEADER,
    VERSION_HEADER,
    RoutePlan,
)

if TYPE_CHECKING:
    from octoserve.dataplane.call import Call
    from octoserve.dataplane.split import ArmRoute

UNASSIGNED = "unassigned"


class Route(Protocol):
    """Makes the way to a version in a role; `counted_as`: see `ArmRoute`."""

    def __call__(self, version: int, role: str, counted_as: str = "") -> ArmRoute: ...


class Drawn:
    """See the module."""

    def __init__(self, plan: RoutePlan, route: Route) -> None:
        self._endpoint = quote(plan.endpoint, safe="")
        self._stratum = plan.stratum
        arms = {(arm.role, arm.version) for arm in plan.arms if arm.hi > arm.lo} | {(STABLE, plan.stable)}
        by_hand = {(OVERRIDE, version) for version in plan.overrides.values()}
        by_hand |= {(SHADOW, mirror.version) for mirror in plan.mirrors if mirror.share}
        apart = {(role, str(version)): route(version, role) for role, version in sorted(by_hand)}
        self._now = {(role, str(version)): route(version, role) for role, version in sorted(arms)} | apart
        """By this plan: what a proxy names, to where it goes."""
        self._before = {
            (role, str(version)): route(version, role, UNASSIGNED) for role, version in sorted(arms)
        } | apart
        """The same, drawn by another plan."""
        self._unassigned = self._before[STABLE, str(plan.stable)]
        self._candidates = {version for role, version in arms if role == CANDIDATE}

    def arm_of(self, call: Call, cut: str) -> ArmRoute:
        """Where a request goes. cut: why the candidate is cut here, if it is."""
        header = call.header
        if header(ENDPOINT_HEADER) != self._endpoint:
            return self._unassigned
        role = SHADOW if header(SHADOW_HEADER) else header(ARM_HEADER) or ""
        known = self._now if (header(STRATUM_HEADER) or "") == self._stratum else self._before
        arm = known.get((role, header(VERSION_HEADER) or ""), self._unassigned)
        if arm.batcher is None or (cut and arm.version in self._candidates and role != SHADOW):
            return self._unassigned
        return arm
