"""Routing by a mesh or a gateway of Kubernetes: a plan is resources, and what the cluster has is what is in force.

Which resources, `istio` and `gateway_api` say: pure functions. How they reach a cluster and come back from it (its
API, a repository that something watches) is injected.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from octoserve.core.errors import SettingsError, Unsupported
from octoserve.routing.backends.generations import Generations
from octoserve.routing.backends.protocol import Capabilities, InForce, Observed, refuse_unless_able
from octoserve.routing.plan import Arm, RoutePlan

Manifest = dict[str, Any]

PLAN = "octoserve.io/plan"
"""Annotation: the plan that a resource was rendered from, as JSON."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "octoserve"}

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class Renderer(Protocol):
    """Plans to resources, and the way back."""

    capabilities: Capabilities

    def render(self, plan: RoutePlan, before: RoutePlan | None) -> list[Manifest]:
        """Resources in the order in which they must arrive. What only `before` names is still named, since proxies
        do not take them all at one time. Raises SettingsError."""

    def arms(self, manifest: Manifest) -> tuple[Arm, ...]:
        """The arms that a resource has by its own weights; () for one that carries no split."""


class ManifestBackend:
    """See `protocol.RoutingBackend`.

    publish: hands resources to the cluster, in order; returns when its proxies have them. Raises Unavailable
    read:    those that the cluster has now
    """

    def __init__(
        self,
        renderer: Renderer,
        publish: Callable[[Sequence[Manifest]], Awaitable[None]],
        read: Callable[[], Awaitable[Iterable[Manifest]]],
    ) -> None:
        self._renderer = renderer
        self._publish = publish
        self._read = read

    def capabilities(self) -> Capabilities:
        return self._renderer.capabilities

    async def apply(self, plan: RoutePlan) -> None:
        refuse_unless_able(plan, self._renderer.capabilities)
        plans = Generations(plan for plan, _ in await self._in_force())
        before = plans.newest.get(plan.endpoint)
        plans.accept(plan)
        await self._publish(self._renderer.render(plan, before))

    async def observe(self) -> Observed:
        return Observed(plans={plan.endpoint: InForce(plan.generation, arms) for plan, arms in await self._in_force()})

    async def drain(self, endpoint: str, version: int, deadline: float) -> int:
        raise Unsupported(
            f"{self._renderer.capabilities.backend} does not say which requests are in flight: what answers for a "
            "version must finish its own before it ends (a Pod: within terminationGracePeriodSeconds)"
        )

    async def _in_force(self) -> list[tuple[RoutePlan, tuple[Arm, ...]]]:
        found = []
        for manifest in await self._read():
            text = manifest.get("metadata", {}).get("annotations", {}).get(PLAN)
            arms = self._renderer.arms(manifest)
            if text is not None and arms:
                found.append((msgspec.json.decode(text, type=RoutePlan), arms))
        return found


def resource(api: str, kind: str, name: str, namespace: str, plan: RoutePlan, spec: dict[str, Any]) -> Manifest:
    """A resource that carries its plan. Raises SettingsError for a name that Kubernetes does not take."""
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"name: {name!r} is no name of a Kubernetes resource (63 of a-z, 0-9 and '-' at most); set it"
        )
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": MANAGED_BY,
        "annotations": {PLAN: msgspec.json.encode(plan).decode()},
    }
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}
