"""Gateway API: a plan as an HTTPRoute over one Service a version.

What it cannot do, and is therefore refused: a split that sticks to a key; the same Service twice among the backends
of a rule (a baseline); marking a copy as one, which is why copies go to Services of their own. `sessionPersistence`
is never
rendered: a session stays with its backend at weight 0 too, so a rollback would not reach those who have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from octoserve.core.errors import SettingsError
from octoserve.routing.backends.manifests import Manifest, resource
from octoserve.routing.backends.protocol import Capabilities
from octoserve.routing.plan import (
    ARM_HEADER,
    BUCKETS,
    DRAWN_HEADERS,
    SHADOW_HEADER,
    VERSION_HEADER,
    Arm,
    RoutePlan,
    headers_of,
)

API = "gateway.networking.k8s.io/v1"
_MODIFY = "RequestHeaderModifier"


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where in a cluster the endpoint lies.

    gateways:  names of the Gateways that clients come in by
    services:  version -> the Service that answers for it
    shadows:   version -> the Service that answers copies for it, and nothing else
    port:      of all of them
    hostnames: that clients use; () for any
    name:      of the route; "" for the endpoint's
    """

    gateways: tuple[str, ...]
    services: Mapping[int, str]
    shadows: Mapping[int, str] = {}
    port: int = 8080
    namespace: str = "default"
    hostnames: tuple[str, ...] = ()
    name: str = ""


class GatewayApi:
    """See `manifests.Renderer`. One resource, replaced whole: what only an older plan names needs no keeping."""

    capabilities = Capabilities(backend="Gateway API", mirrors=8)

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings

    def render(self, plan: RoutePlan, before: RoutePlan | None = None) -> list[Manifest]:
        settings = self._settings
        base = f"/v2/models/{quote(plan.endpoint, safe='')}"
        mirrors = [self._mirror(mirror.version, mirror.share) for mirror in plan.mirrors if mirror.share]
        clean = {
            "type": _MODIFY,
            "requestHeaderModifier": {"remove": [*DRAWN_HEADERS, SHADOW_HEADER]},
        }
        split: dict[str, Any] = {
            "name": "split",
            "matches": [{"path": {"type": "Exact", "value": f"{base}/infer"}}],
            "backendRefs": [self._backend(plan, arm) for arm in plan.arms if arm.hi > arm.lo],
        }
        if mirrors:
            split["filters"] = mirrors
        rest = {
            "name": "rest",
            "matches": [{"path": {"type": "PathPrefix", "value": base}}],
            "filters": [clean],
            "backendRefs": [{"name": self._service(plan.stable), "port": settings.port, "weight": 1}],
        }
        spec: dict[str, Any] = {
            "parentRefs": [{"name": gateway} for gateway in settings.gateways],
            "rules": [split, rest],
        }
        if settings.hostnames:
            spec["hostnames"] = list(settings.hostnames)
        name = settings.name or plan.endpoint
        return [resource(API, "HTTPRoute", name, settings.namespace, plan, spec)]

    def arms(self, manifest: Manifest) -> tuple[Arm, ...]:
        arms: list[Arm] = []
        for entry in manifest["spec"]["rules"][0]["backendRefs"]:
            told = {header["name"]: header["value"] for header in entry["filters"][0]["requestHeaderModifier"]["set"]}
            lo = arms[-1].hi if arms else 0
            arms.append(Arm(int(told[VERSION_HEADER]), lo, lo + entry["weight"], told[ARM_HEADER]))
        return tuple(arms)

    def _backend(self, plan: RoutePlan, arm: Arm) -> dict[str, Any]:
        told = [{"name": name, "value": value} for name, value in headers_of(plan, arm.role, arm.version).items()]
        return {
            "name": self._service(arm.version),
            "port": self._settings.port,
            "weight": arm.hi - arm.lo,
            "filters": [{"type": _MODIFY, "requestHeaderModifier": {"set": told}}],
        }

    def _mirror(self, version: int, share: int) -> dict[str, Any]:
        shadow = self._settings.shadows.get(version)
        if shadow is None:
            raise SettingsError(
                f"shadows: no Service is named that gets version {version}'s copies. Gateway API cannot mark a copy, "
                "so it goes to a Service that gets nothing else"
            )
        wanted: dict[str, Any] = {"backendRef": {"name": shadow, "port": self._settings.port}}
        if share % (BUCKETS // 100) == 0:
            wanted["percent"] = share // (BUCKETS // 100)
        else:
            wanted["fraction"] = {"numerator": share, "denominator": BUCKETS}
        return {"type": "RequestMirror", "requestMirror": wanted}

    def _service(self, version: int) -> str:
        found = self._settings.services.get(version)
        if found is None:
            raise SettingsError(f"services: no Service is named that answers for version {version}")
        return found
