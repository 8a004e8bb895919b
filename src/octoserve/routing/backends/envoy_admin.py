"""What a running Envoy says of itself, by its admin port."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

from octoserve.core.errors import Unavailable
from octoserve.routing.backends.envoy_config import ROUTES, ClusterName
from octoserve.routing.backends.protocol import ArmCount

_COUNTED = (
    "upstream_rq_total",
    "upstream_rq_5xx",
    "upstream_rq_pending_overflow",
    "upstream_rq_max_duration_reached",
    "upstream_rq_active",
    "upstream_rq_pending_active",
)
_RDS = f"http.{ROUTES}.rds.{ROUTES}"
_CDS = "cluster_manager.cds"


class EnvoyAdmin:
    """Each call raises Unavailable if Envoy does not answer within `timeout` seconds.

    address: says host:port; called each time, since an Envoy that was restarted has another one
    """

    def __init__(self, address: Callable[[], str], timeout: float = 2.0) -> None:
        self._address = address
        self._timeout = timeout

    async def ready(self) -> bool:
        """Whether it takes requests."""
        return (await self._get("/ready")).strip() == b"LIVE"

    async def versions(self) -> tuple[str, str, int]:
        """Version texts of routes and clusters, and how many configurations it has rejected."""
        names = (f"{_RDS}.version_text", f"{_CDS}.version_text", f"{_RDS}.update_rejected", f"{_CDS}.update_rejected")
        stats = await self._stats(names)
        rejected = int(stats.get(names[2], 0)) + int(stats.get(names[3], 0))
        return str(stats.get(names[0], "")), str(stats.get(names[1], "")), rejected

    async def active_clusters(self) -> set[str]:
        """Names of clusters that requests can be sent to (others are still being warmed)."""
        dump = await self._json("/config_dump?resource=dynamic_active_clusters&mask=cluster.name")
        return {entry["cluster"]["name"] for entry in dump.get("configs", ())}

    async def routes(self) -> tuple[str, dict[str, Any]]:
        """The route configuration in force: its version text, and itself; ("", {}) without one."""
        dump = await self._json("/config_dump?resource=dynamic_route_configs")
        for entry in dump.get("configs", ()):
            if entry["route_config"]["name"] == ROUTES:
                return entry["version_info"], entry["route_config"]
        return "", {}

    async def counts(self) -> tuple[ArmCount, ...]:
        """What was counted of each version in each role, HTTP and gRPC together."""
        wanted = "|".join(_COUNTED)
        found: dict[tuple[str, int, str], dict[str, int]] = {}
        for name, value in (await self._matching(rf"^cluster\..*/.*\.({wanted})$")).items():
            cluster, _, counter = name.removeprefix("cluster.").rpartition(".")
            parts = ClusterName.parse(cluster)
            if parts is not None:
                arm = found.setdefault((parts.endpoint, parts.version, parts.role), {})
                arm[counter] = arm.get(counter, 0) + int(value)
        return tuple(
            ArmCount(
                endpoint=endpoint,
                version=version,
                role=role,
                requests=arm.get("upstream_rq_total", 0),
                errors=_errors(arm),
                dropped=arm.get("upstream_rq_pending_overflow", 0),
                in_flight=arm.get("upstream_rq_active", 0) + arm.get("upstream_rq_pending_active", 0),
            )
            for (endpoint, version, role), arm in sorted(found.items())
        )

    async def listening_on(self) -> str:
        """host:port of the listener."""
        listeners = await self._json("/listeners?format=json")
        address = listeners["listener_statuses"][0]["local_address"]["socket_address"]
        return f"{address['address']}:{address['port_value']}"

    async def in_flight(self) -> int:
        """Requests of clients that have no answer yet."""
        return sum(int(value) for value in (await self._stats((f"http.{ROUTES}.downstream_rq_active",))).values())

    async def stop_taking(self) -> None:
        """No new connections; those that are there are told to close with their next answer."""
        await self._call("POST", "/healthcheck/fail")
        await self._call("POST", "/drain_listeners")

    async def quit(self) -> None:
        """Ask it to end."""
        await self._call("POST", "/quitquitquit")

    async def _stats(self, names: Iterable[str]) -> dict[str, Any]:
        return await self._matching("^(" + "|".join(name.replace(".", r"\.") for name in names) + ")$")

    async def _matching(self, pattern: str) -> dict[str, Any]:
        stats = await self._json(f"/stats?format=json&filter={quote(pattern, safe='')}")
        return {entry["name"]: entry["value"] for entry in stats["stats"] if "name" in entry}

    async def _json(self, path: str) -> Any:
        body = await self._get(path)
        try:
            return json.loads(body)
        except ValueError as error:
            raise Unavailable(f"Envoy's admin answered {path} with no JSON: {error}") from None

    async def _get(self, path: str) -> bytes:
        return await self._call("GET", path)

    async def _call(self, method: str, path: str) -> bytes:
        return await asyncio.to_thread(self._call_now, method, path)

    def _call_now(self, method: str, path: str) -> bytes:
        address = self._address()
        connection = http.client.HTTPConnection(address, timeout=self._timeout)
        try:
            connection.request(method, path)
            return connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"Envoy's admin at {address} does not answer: {error}") from None
        finally:
            connection.close()


def _errors(arm: Mapping[str, int]) -> int:
    """A request that is dropped counts among the 5xx, a shadow's that ran out of time does not."""
    answered = arm.get("upstream_rq_5xx", 0) - arm.get("upstream_rq_pending_overflow", 0)
    return answered + arm.get("upstream_rq_max_duration_reached", 0)
