"""An Envoy's configuration, written from route plans. Pure: values in, JSON values out.

The split is Envoy's own (docs/decisions/0006-split.md): a header hash, XXH64, modulo the sum of the weights, which
is kept at BUCKETS, walked in the order of the plan's arms. `regex_rewrite` puts the seed before the key by replacing
the empty text at its start: a pattern that had to match the key would leave keys alone that are not UTF-8.

Each arm is a cluster of its own, so Envoy counts arms apart. What Envoy drew it writes into the request, over
whatever the client sent there. That has to happen in the most specific place (the weighted cluster): Envoy works
from there outwards, and a removal further out would take it away again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from octoserve.core.errors import SettingsError
from octoserve.core.evidence import BASELINE, CANDIDATE, STABLE
from octoserve.routing.key import parse_key
from octoserve.routing.plan import (
    BUCKETS,
    DRAWN_HEADERS,
    ENDPOINT_HEADER,
    OVERRIDE,
    SHADOW,
    SHADOW_HEADER,
    STRATUM_HEADER,
    RoutePlan,
    headers_of,
)

ROUTES = "octoserve"
"""Name of the route configuration, and of its statistics."""
OTHER = "other"
"""The cluster of whatever no plan speaks of."""
GRPC_METHODS = ("ModelInfer", "ModelStreamInfer")

Upstream = tuple[str, ...] | Mapping[int, tuple[str, ...]]
"""host:port of what answers: one list for every version (an octoserve, which serves them all), or a list for each."""


class EnvoySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What an Envoy stands between.

    listen:             host:port for clients, HTTP/1.1 and HTTP/2 without TLS; port 0 picks a free one
    http:               who answers HTTP/1.1
    grpc:               who answers gRPC (HTTP/2 without TLS); () for nobody
    grpc_endpoint:      the endpoint that gRPC calls are split for which name none in their metadata
                        (`x-octoserve-endpoint`): their messages do, which Envoy does not read
    paths:              of requests that are split; `{endpoint}` stands for the name
    timeout:            seconds for an answer
    idle_timeout:       seconds that a connection to an upstream may idle: less than the upstream allows, or a
                        request meets a connection that is just being closed
    shadow_timeout:     seconds that a shadow gets for an answer
    shadow_concurrency: copies in flight to one version; as many again may wait for a connection, more are dropped
                        and counted
    shadow_buffer:      bytes that may wait for one connection to a shadow. A shadow that does not read holds up the
                        request that it copies once this is full, so it is more than the largest request; its product
                        with shadow_concurrency bounds what shadows cost in memory
    """

    listen: str = "127.0.0.1:8080"
    http: Upstream
    grpc: Upstream = ()
    grpc_endpoint: str = ""
    paths: tuple[str, ...] = ("/v2/models/{endpoint}/infer",)
    timeout: float = 60.0
    connect_timeout: float = 1.0
    idle_timeout: float = 30.0
    shadow_timeout: float = 10.0
    shadow_concurrency: int = 32
    shadow_buffer: int = 80 << 20


class ClusterName(msgspec.Struct, frozen=True):
    """A cluster's name in its parts: an endpoint's version in one role, over one protocol."""

    endpoint: str
    version: int
    role: str
    grpc: bool = False

    def __str__(self) -> str:
        return f"{self.endpoint}/{self.version}/{self.role}" + ("/grpc" if self.grpc else "")

    @classmethod
    def parse(cls, text: str) -> ClusterName | None:
        """The parts; None for a cluster that is not a version's."""
        parts = text.split("/")
        grpc = len(parts) == 4 and parts[3] == "grpc"
        if len(parts) != 3 + grpc or not parts[1].isdigit():
            return None
        return cls(parts[0], int(parts[1]), parts[2], grpc)


# --- clusters -----------------------------------------------------------------------------------------


def clusters_of(plan: RoutePlan, settings: EnvoySettings) -> set[ClusterName]:
    """The clusters that a plan's routes name, and those that its next steps will: a step then changes routes only."""
    wanted = {(version, STABLE) for version in _versions(plan, settings)}
    wanted |= {(arm.version, arm.role) for arm in plan.arms}
    wanted |= {(arm.version, BASELINE) for arm in plan.arms if arm.role == STABLE}
    wanted |= {(version, OVERRIDE) for version in plan.overrides.values()}
    wanted |= {(version, SHADOW) for version in {m.version for m in plan.mirrors} | _candidates(plan)}
    over = (False, True) if _splits_grpc(plan.endpoint, settings) else (False,)
    return {ClusterName(plan.endpoint, version, role, grpc) for version, role in wanted for grpc in over}


def cluster_resources(names: Iterable[ClusterName], settings: EnvoySettings) -> list[dict[str, Any]]:
    """Clusters as Envoy's CDS wants them. Raises SettingsError for a version that nobody answers for."""
    resources = [_cluster(str(name), hosts_of(name, settings), settings, name) for name in sorted(names, key=str)]
    for name, upstream in ((OTHER, settings.http), (f"{OTHER}/grpc", settings.grpc)):
        if upstream and not isinstance(upstream, Mapping):
            resources.append(_cluster(name, upstream, settings, ClusterName("", 0, OTHER, name != OTHER)))
    return resources


def hosts_of(name: ClusterName, settings: EnvoySettings) -> tuple[str, ...]:
    """host:port of each that answers for the version. Raises SettingsError if nobody does."""
    upstream = settings.grpc if name.grpc else settings.http
    hosts = upstream.get(name.version, ()) if isinstance(upstream, Mapping) else upstream
    if not hosts:
        field = "grpc" if name.grpc else "http"
        raise SettingsError(
            f"{field}: nobody is named that answers for {name.endpoint!r} version {name.version}; Envoy would take a "
            "route there and answer 503"
        )
    return hosts


def _cluster(name: str, hosts: Sequence[str], settings: EnvoySettings, meaning: ClusterName) -> dict[str, Any]:
    addresses = [address_of(host) for host in hosts]
    is_ip = all(_is_ip(address["socket_address"]["address"]) for address in addresses)
    shadow = meaning.role == SHADOW
    many = settings.shadow_concurrency if shadow else 1 << 20
    common: dict[str, Any] = {"idle_timeout": _seconds(settings.idle_timeout)}
    if shadow:
        common["max_stream_duration"] = _seconds(settings.shadow_timeout)
    protocol: dict[str, Any] = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": common,
        "explicit_http_config": {"http2_protocol_options" if meaning.grpc else "http_protocol_options": {}},
    }
    if meaning.role == CANDIDATE:
        # Overrides the route's mirrors: what the candidate answers itself is not copied to it.
        protocol["request_mirror_policies"] = [{"cluster": name, "runtime_fraction": _fraction(0)}]
    cluster: dict[str, Any] = {
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC" if is_ip else "STRICT_DNS",
        "connect_timeout": _seconds(settings.connect_timeout),
        "circuit_breakers": {
            "thresholds": [
                {"max_connections": many, "max_pending_requests": many, "max_requests": many, "max_retries": many}
            ]
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}} for address in addresses]}],
        },
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
    }
    if shadow:
        cluster["per_connection_buffer_limit_bytes"] = settings.shadow_buffer
    return cluster


def _versions(plan: RoutePlan, settings: EnvoySettings) -> set[int]:
    """Those that a request may reach by the plan, and those that it may name."""
    return plan.versions() | (set(settings.http) if isinstance(settings.http, Mapping) else set())


def _candidates(plan: RoutePlan) -> set[int]:
    return {arm.version for arm in plan.arms if arm.role == CANDIDATE}


# --- routes -------------------------------------------------------------------------------------------


def route_resource(plans: Iterable[RoutePlan], settings: EnvoySettings) -> dict[str, Any]:
    """The route configuration, as Envoy's RDS wants it. It carries its plans, so that it can be read back."""
    kept = sorted(plans, key=lambda plan: plan.endpoint)
    routes = [route for plan in kept for route in _routes_of(plan, settings)]
    routes += [route for plan in kept if plan.endpoint == settings.grpc_endpoint for route in _grpc(plan, settings)]
    return {
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": ROUTES,
        "validate_clusters": True,
        "metadata": {"filter_metadata": {ROUTES: {"plans": msgspec.json.encode(kept).decode()}}},
        "request_headers_to_remove": [SHADOW_HEADER],
        "virtual_hosts": [{"name": ROUTES, "domains": ["*"], "routes": [*routes, *_other_routes(settings)]}],
    }


def version_of(plans: Iterable[RoutePlan]) -> str:
    """What Envoy is told to call this configuration: {endpoint: generation}, as JSON."""
    return msgspec.json.encode({plan.endpoint: plan.generation for plan in plans}, order="sorted").decode()


def plans_in(resource: Mapping[str, Any]) -> list[RoutePlan]:
    """The plans that a route configuration carries. Raises msgspec.ValidationError, KeyError."""
    text: str = resource["metadata"]["filter_metadata"][ROUTES]["plans"]
    return msgspec.json.decode(text, type=list[RoutePlan])


def _routes_of(plan: RoutePlan, settings: EnvoySettings) -> list[dict[str, Any]]:
    name = quote(plan.endpoint, safe="")
    routes = []
    for path in settings.paths:
        routes += _drawn(plan, {"path_separated_prefix": path.format(endpoint=name)}, False, settings)
    routes += _grpc(plan, settings, {"name": ENDPOINT_HEADER, "string_match": {"exact": name}})
    if isinstance(settings.http, Mapping):
        path = f"/v2/models/{name}"
        routes += [_named_version(plan, version, path, settings) for version in sorted(_versions(plan, settings))]
        routes.append(_not_found(f"{path}/versions"))  # else another version would answer for the one that is named
        rest = _answer(ClusterName(plan.endpoint, plan.stable, STABLE), settings)
        routes.append({"match": {"path_separated_prefix": path}, "route": rest, **_unbound()})
    return routes


def _grpc(plan: RoutePlan, settings: EnvoySettings, *headers: dict[str, Any]) -> list[dict[str, Any]]:
    """Of calls with such headers."""
    if not _splits_grpc(plan.endpoint, settings):
        return []
    paths = [f"/inference.GRPCInferenceService/{method}" for method in GRPC_METHODS]
    matches = [{"path": path, "headers": list(headers)} for path in paths]
    return [route for match in matches for route in _drawn(plan, match, True, settings)]


def _drawn(plan: RoutePlan, match: dict[str, Any], grpc: bool, settings: EnvoySettings) -> list[dict[str, Any]]:
    routes = []
    if plan.key:
        header = parse_key(plan.key).name
        routes += [_override(plan, match, header, key, grpc, settings) for key in sorted(plan.overrides)]
    return [*routes, _split(plan, match, grpc, settings)]


def _override(
    plan: RoutePlan, match: dict[str, Any], header: str, key: str, grpc: bool, settings: EnvoySettings
) -> dict[str, Any]:
    version = plan.overrides[key]
    is_key = {"name": header, "string_match": {"exact": key}}
    return {
        "match": {**match, "headers": [*match.get("headers", ()), is_key]},
        "route": _answer(ClusterName(plan.endpoint, version, OVERRIDE, grpc), settings),
        "request_headers_to_add": _bound(plan, OVERRIDE, version),
    }


def _split(plan: RoutePlan, match: dict[str, Any], grpc: bool, settings: EnvoySettings) -> dict[str, Any]:
    arms = [
        {
            "name": str(ClusterName(plan.endpoint, arm.version, arm.role, grpc)),
            "weight": arm.hi - arm.lo,
            "request_headers_to_add": _bound(plan, arm.role, arm.version),
        }
        for arm in plan.arms
        if arm.hi > arm.lo
    ]
    route: dict[str, Any] = {**_limits(settings), "weighted_clusters": {"clusters": arms}}
    if plan.key:
        route["weighted_clusters"]["use_hash_policy"] = True
        seed = plan.seed.replace("\\", "\\\\") + ":"
        rewrite = {"pattern": {"regex": "^"}, "substitution": seed}
        route["hash_policy"] = [{"header": {"header_name": parse_key(plan.key).name, "regex_rewrite": rewrite}}]
    mirrors = [
        {
            "cluster": str(ClusterName(plan.endpoint, mirror.version, SHADOW, grpc)),
            "runtime_fraction": _fraction(mirror.share),
            "disable_shadow_host_suffix_append": True,
            "request_headers_mutations": [
                {"append": header} for header in [*_bound(plan, SHADOW, mirror.version), _set(SHADOW_HEADER, "true")]
            ],
        }
        for mirror in plan.mirrors
        if mirror.share
    ]
    if mirrors:
        route["request_mirror_policies"] = mirrors
    return {"match": match, "route": route}


def _named_version(plan: RoutePlan, version: int, path: str, settings: EnvoySettings) -> dict[str, Any]:
    """Whoever names a version in the path gets that one."""
    route = _answer(ClusterName(plan.endpoint, version, STABLE), settings)
    return {"match": {"path_separated_prefix": f"{path}/versions/{version}"}, "route": route, **_unbound()}


def _not_found(path: str = "") -> dict[str, Any]:
    nothing = {"status": 404, "body": {"inline_string": '{"error":"no route plan speaks of this path"}'}}
    return {"match": {"path_separated_prefix": path} if path else {"prefix": "/"}, "direct_response": nothing}


def _other_routes(settings: EnvoySettings) -> list[dict[str, Any]]:
    routes = []
    if settings.grpc and not isinstance(settings.grpc, Mapping):
        is_grpc = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
        routes.append(
            {
                "match": {"prefix": "/", "headers": [is_grpc]},
                "route": {**_limits(settings), "cluster": f"{OTHER}/grpc"},
                **_unbound(),
            }
        )
    if isinstance(settings.http, Mapping):
        routes.append(_not_found())
    else:
        routes.append({"match": {"prefix": "/"}, "route": {**_limits(settings), "cluster": OTHER}, **_unbound()})
    return routes


def _answer(cluster: ClusterName, settings: EnvoySettings) -> dict[str, Any]:
    return {**_limits(settings), "cluster": str(cluster)}


def _limits(settings: EnvoySettings) -> dict[str, Any]:
    """A retry only where the upstream cannot have seen the request."""
    return {
        "timeout": _seconds(settings.timeout),
        "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 1},
    }


def _unbound() -> dict[str, Any]:
    return {"request_headers_to_remove": list(DRAWN_HEADERS)}


def _bound(plan: RoutePlan, role: str, version: int) -> list[dict[str, Any]]:
    told = {STRATUM_HEADER: "", **headers_of(plan, role, version)}
    return [_set(name, value) for name, value in told.items()]


def _set(name: str, value: str) -> dict[str, Any]:
    """Over whatever a client sent, with nothing too; `%` would begin one of Envoy's own substitutions."""
    header = {"key": name, "value": value.replace("%", "%%")}
    return {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD", "keep_empty_value": True}


def _fraction(share: int) -> dict[str, Any]:
    assert BUCKETS == 10_000
    return {"default_value": {"numerator": share, "denominator": "TEN_THOUSAND"}}


def _splits_grpc(endpoint: str, settings: EnvoySettings) -> bool:
    if isinstance(settings.grpc, Mapping):  # versions of one endpoint
        return settings.grpc_endpoint == endpoint
    return bool(settings.grpc)


# --- the rest -----------------------------------------------------------------------------------------


def bootstrap(folder: str, settings: EnvoySettings, admin: str = "127.0.0.1:0") -> dict[str, Any]:
    """What Envoy starts with: the listener, and the files in `folder` (absolute) that renames bring in."""

    def source(name: str) -> dict[str, Any]:
        watched = {"path": f"{folder}/{name}", "watched_directory": {"path": folder}}
        return {"path_config_source": watched, "resource_api_version": "V3"}

    doors = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    connections = {
        "@type": doors,
        "stat_prefix": ROUTES,
        "server_header_transformation": "PASS_THROUGH",
        "rds": {"route_config_name": ROUTES, "config_source": source(ROUTES_FILE)},
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": router, "suppress_envoy_headers": True}}
        ],
    }
    manager = {"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}
    return {
        "node": {"id": ROUTES, "cluster": ROUTES},
        "admin": {"address": address_of(admin)},
        "dynamic_resources": {"cds_config": source(CLUSTERS_FILE)},
        "static_resources": {
            "listeners": [
                {"name": ROUTES, "address": address_of(settings.listen), "filter_chains": [{"filters": [manager]}]}
            ]
        },
    }


ROUTES_FILE, CLUSTERS_FILE, BOOTSTRAP_FILE, ADMIN_FILE = "routes.json", "clusters.json", "envoy.json", "admin.address"


def address_of(host_port: str) -> dict[str, Any]:
    """Envoy's words for host:port. Raises SettingsError."""
    host, colon, port = host_port.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise SettingsError(f"an address is host:port; {host_port!r} came")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}s"
