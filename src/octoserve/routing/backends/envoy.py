"""Routing by an Envoy: `apply` renames files into the folder that it watches, and believes only what it then says of
itself.

Order of one apply, and what a crash after each step means:

1. clusters.json is renamed into place, if the plan needs clusters that Envoy does not have. Nothing routes there yet.
2. Envoy says that they are active. Routes to a cluster that it does not have, mirrors to one foremost, would be
   taken and go nowhere.
3. routes.json is renamed into place. Envoy swaps its routes in one piece; an Envoy that starts now starts with them.
   A new backend over the same folder reads the plans back from it, and applying the plan again confirms it.
4. Envoy says that it routes by this version. If it has rejected it, the file before comes back into place.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.routing.backends.draining import Sleep, wait_until_idle
from octoserve.routing.backends.envoy_admin import EnvoyAdmin
from octoserve.routing.backends.envoy_config import (
    ADMIN_FILE,
    BOOTSTRAP_FILE,
    CLUSTERS_FILE,
    ROUTES_FILE,
    ClusterName,
    EnvoySettings,
    bootstrap,
    cluster_resources,
    clusters_of,
    plans_in,
    route_resource,
    version_of,
)
from octoserve.routing.backends.generations import Generations
from octoserve.routing.backends.protocol import Capabilities, InForce, Observed, refuse_unless_able
from octoserve.routing.key import HEADER
from octoserve.routing.plan import Arm, RoutePlan

NAME = "Envoy"
_LOOK = 0.002
"""Seconds between two looks at what Envoy has taken."""


class EnvoyBackend:
    """See `protocol.RoutingBackend`.

    folder:  Envoy's configuration; its own, on a local disk (renames are what Envoy watches for)
    admin:   host:port of the admin; "" reads what the Envoy of `EnvoyProcess` has written into the folder
    timeout: seconds that Envoy gets to take a configuration
    """

    def __init__(
        self,
        folder: Path,
        settings: EnvoySettings,
        admin: str = "",
        timeout: float = 10.0,
        clock: Clock = monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.folder = folder.resolve()
        self._settings = settings
        self._timeout = timeout
        self._clock = clock
        self._sleep = sleep
        self._lock = asyncio.Lock()
        self.admin = EnvoyAdmin(lambda: admin or _written_address(self.folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._plans = Generations(self._written_plans())
        self._active: set[ClusterName] = set()
        """Clusters that Envoy has said it has."""
        self._clusters = {name for plan in self._plans.newest.values() for name in clusters_of(plan, settings)}
        self._write_clusters()
        self._write_routes(self._plans.newest)
        boot = bootstrap(str(self.folder), settings, admin or "127.0.0.1:0")
        self.bootstrap_changed = not _holds(self.folder / BOOTSTRAP_FILE, boot)
        """Whether an Envoy that runs over this folder was started with something else."""
        rename_into_place(self.folder / BOOTSTRAP_FILE, boot)

    def capabilities(self) -> Capabilities:
        """Segments are counted by an octoserve behind it, which answers for every version."""
        return Capabilities(
            backend=NAME,
            keys=(HEADER,),
            baseline=True,
            overrides=1000,
            segments=not isinstance(self._settings.http, Mapping),
            mirrors=8,
            beside_split=True,
            drains=True,
        )

    def newest(self) -> int:
        """The highest generation that its files hold; 0 without any."""
        return max((plan.generation for plan in self._plans.newest.values()), default=0)

    async def apply(self, plan: RoutePlan) -> None:
        refuse_unless_able(plan, self.capabilities())
        _refuse_unwritable(plan)
        async with self._lock:
            before = dict(self._plans.newest)
            needed = clusters_of(plan, self._settings)
            cluster_resources(needed, self._settings)  # refuses a version without upstream before anything is written
            self._plans.accept(plan)
            try:
                await self._bring_clusters(needed)
                await self._bring_routes(before)
            except SettingsError:
                self._plans = Generations(before.values())
                raise

    async def observe(self) -> Observed:
        version, routes = await self.admin.routes()
        generations = msgspec.json.decode(version or "{}", type=dict[str, int])
        arms = _arms_in(routes)
        plans = {name: InForce(number, arms[name]) for name, number in generations.items() if name in arms}
        return Observed(plans=plans, counts=await self.admin.counts())

    async def drain(self, endpoint: str, version: int, deadline: float) -> int:
        """Envoy's gauge of requests in flight, looked at twice: a worker of Envoy may take the routes a moment late."""

        async def look() -> int:
            counts = await self.admin.counts()
            return sum(arm.in_flight for arm in counts if arm.endpoint == endpoint and arm.version == version)

        left = await wait_until_idle(look, deadline, self._clock, self._sleep, quiet=2)
        if left == 0:
            await self._forget(endpoint, version)
        return left

    # --- bringing Envoy to a configuration --------------------------------------------------------------

    async def _bring_clusters(self, needed: set[ClusterName]) -> None:
        if needed <= self._active:
            return
        if not needed <= self._clusters:
            self._clusters |= needed
            self._write_clusters()
        names = {str(name) for name in needed}

        async def all_active() -> bool:
            return names <= await self.admin.active_clusters()

        await self._wait(all_active, "the clusters")
        self._active |= needed

    async def _bring_routes(self, before: dict[str, RoutePlan]) -> None:
        wanted = version_of(self._plans.newest.values())
        rejected_before = (await self.admin.versions())[2]
        self._write_routes(self._plans.newest)

        async def taken() -> bool:
            routes, _, rejected = await self.admin.versions()
            if rejected > rejected_before:
                self._write_routes(before)
                raise SettingsError(f"Envoy has rejected the routes {wanted}; its log says why. It keeps those it had")
            return routes == wanted

        await self._wait(taken, f"the routes {wanted}")

    async def _wait(self, done: Callable[[], Awaitable[bool]], what: str) -> None:
        deadline = self._clock() + self._timeout
        while not await done():
            if self._clock() >= deadline:
                raise Unavailable(f"Envoy has not taken {what} within {self._timeout:g} s")
            await self._sleep(_LOOK)

    async def _forget(self, endpoint: str, version: int) -> None:
        """Take the clusters of a version out that no plan names any more."""
        async with self._lock:
            plan = self._plans.newest.get(endpoint)
            if plan is None or version in plan.versions():
                return
            kept = {name for name in self._clusters if (name.endpoint, name.version) != (endpoint, version)}
            if kept != self._clusters:
                self._clusters = kept
                self._active &= kept
                self._write_clusters()

    # --- files --------------------------------------------------------------------------------------------

    def _written_plans(self) -> list[RoutePlan]:
        try:
            response = json.loads((self.folder / ROUTES_FILE).read_bytes())
            return plans_in(response["resources"][0])
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, IndexError, TypeError, msgspec.MsgspecError) as error:
            raise SettingsError(
                f"{self.folder / ROUTES_FILE} is not a file of octoserve's ({error}); give Envoy a folder of its own"
            ) from None

    def _write_clusters(self) -> None:
        resources = cluster_resources(self._clusters, self._settings)
        version = str(len(resources))
        rename_into_place(self.folder / CLUSTERS_FILE, {"version_info": version, "resources": resources})

    def _write_routes(self, plans: dict[str, RoutePlan]) -> None:
        resource = route_resource(plans.values(), self._settings)
        response = {"version_info": version_of(plans.values()), "resources": [resource]}
        rename_into_place(self.folder / ROUTES_FILE, response)


def _arms_in(routes: dict[str, Any]) -> dict[str, tuple[Arm, ...]]:
    """Endpoint -> arms, as Envoy's weights have them."""
    found: dict[str, tuple[Arm, ...]] = {}
    for host in routes.get("virtual_hosts", ()):
        for route in host.get("routes", ()):
            clusters = route.get("route", {}).get("weighted_clusters", {}).get("clusters", ())
            arms: list[Arm] = []
            for cluster in clusters:
                name = ClusterName.parse(cluster["name"])
                if name is not None:
                    lo = arms[-1].hi if arms else 0
                    arms.append(Arm(name.version, lo, lo + int(cluster["weight"]), name.role))
                    found[name.endpoint] = tuple(arms)
    return found


def _refuse_unwritable(plan: RoutePlan) -> None:
    """Keys that no header can carry."""
    for key in plan.overrides:
        if not key or not key.isprintable() or key != key.strip():
            raise SettingsError(f"overrides: {key!r} cannot be a header's value, so Envoy never sees it; leave it out")
    if not plan.seed.isprintable():
        raise SettingsError(f"seed: {plan.seed!r} has characters that cannot stand in a header")


def _holds(path: Path, value: dict[str, Any]) -> bool:
    try:
        return path.read_bytes() == msgspec.json.encode(value)
    except FileNotFoundError:
        return False


def _written_address(folder: Path) -> str:
    try:
        return (folder / ADMIN_FILE).read_text().strip()
    except FileNotFoundError:
        raise Unavailable(f"no Envoy has been started over {folder}") from None


def rename_into_place(path: Path, value: dict[str, Any]) -> None:
    """Write beside it, make it durable, rename: Envoy looks at renames only, and never sees half a file."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(value))
            os.fchmod(file.fileno(), 0o644)  # an Envoy may run as somebody else
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
