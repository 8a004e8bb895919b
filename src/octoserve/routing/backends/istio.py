"""Istio: a plan as a DestinationRule (which pods a version and a role mean) and a VirtualService (the shares).

What Istio cannot do, and is therefore refused: shares that are not whole percents; a split that sticks to a key
(consistentHash picks among a subset's pods, not among subsets); telling what the candidate answered from what it did
not when it mirrors. A copy's Host ends in `-shadow`: that is how its receiver knows.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec

from octoserve.core.evidence import BASELINE, CANDIDATE, STABLE
from octoserve.routing.backends.manifests import Manifest, resource
from octoserve.routing.backends.protocol import Capabilities
from octoserve.routing.plan import (
    BUCKETS,
    DRAWN_HEADERS,
    SHADOW,
    SHADOW_HEADER,
    Arm,
    RoutePlan,
    headers_of,
)

API = "networking.istio.io/v1"
PERCENT = BUCKETS // 100


class IstioSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where in a cluster the endpoint lies.

    service:   the Service whose pods answer for all versions
    port:      its HTTP port
    hosts:     names that clients use; () for the service's own
    gateways:  Istio gateways that clients come in by; () for the mesh alone
    label:     of pods: which version they answer for
    name:      of the resources; "" for the endpoint's
    """

    service: str
    port: int = 8080
    namespace: str = "default"
    hosts: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    label: str = "octoserve.io/version"
    name: str = ""


class Istio:
    """See `manifests.Renderer`."""

    capabilities = Capabilities(backend="Istio", weight_step=PERCENT, baseline=True, mirrors=8)

    def __init__(self, settings: IstioSettings) -> None:
        self._settings = settings

    def render(self, plan: RoutePlan, before: RoutePlan | None = None) -> list[Manifest]:
        settings = self._settings
        name = settings.name or plan.endpoint
        subsets = _subsets(plan) | (_subsets(before) if before is not None else set())
        rule = {
            "host": settings.service,
            "subsets": [
                {"name": _subset(version, role), "labels": {settings.label: str(version)}}
                for version, role in sorted(subsets)
            ],
        }
        path = f"/v2/models/{quote(plan.endpoint, safe='')}/infer"
        rest = [{"destination": self._destination(plan.stable, STABLE)}]
        unbound = {"request": {"remove": [*DRAWN_HEADERS, SHADOW_HEADER]}}
        service: dict[str, Any] = {
            "hosts": list(settings.hosts or (settings.service,)),
            "http": [
                {"name": "split", "match": [{"uri": {"exact": path}}], **self._split(plan)},
                {"name": "rest", "route": rest, "headers": unbound},
            ],
        }
        if settings.gateways:
            service["gateways"] = list(settings.gateways)
        return [
            resource(API, "DestinationRule", name, settings.namespace, plan, rule),
            resource(API, "VirtualService", name, settings.namespace, plan, service),
        ]

    def arms(self, manifest: Manifest) -> tuple[Arm, ...]:
        arms: list[Arm] = []
        if manifest["kind"] == "VirtualService":
            for entry in manifest["spec"]["http"][0]["route"]:
                version, _, role = entry["destination"]["subset"].removeprefix("v").partition("-")
                lo = arms[-1].hi if arms else 0
                arms.append(Arm(int(version), lo, lo + entry["weight"] * PERCENT, role))
        return tuple(arms)

    def _split(self, plan: RoutePlan) -> dict[str, Any]:
        route = [
            {
                "destination": self._destination(arm.version, arm.role),
                "weight": (arm.hi - arm.lo) // PERCENT,
                "headers": {"request": {"set": headers_of(plan, arm.role, arm.version)}},
            }
            for arm in plan.arms
            if arm.hi > arm.lo
        ]
        mirrors = [
            {
                "destination": self._destination(mirror.version, SHADOW),
                "percentage": {"value": mirror.share / PERCENT},
            }
            for mirror in plan.mirrors
            if mirror.share
        ]
        return {"route": route, **({"mirrors": mirrors} if mirrors else {})}

    def _destination(self, version: int, role: str) -> dict[str, Any]:
        settings = self._settings
        return {"host": settings.service, "subset": _subset(version, role), "port": {"number": settings.port}}


def _subset(version: int, role: str) -> str:
    return f"v{version}-{role}"


def _subsets(plan: RoutePlan) -> set[tuple[int, str]]:
    """Of every version in every role that it may have next: a step then changes the VirtualService alone."""
    return {(version, role) for version in plan.versions() for role in (STABLE, BASELINE, CANDIDATE, SHADOW)}
