"""Istio's and Gateway API's resources, against the published schemas and read back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.errors import SettingsError, Unsupported
from octoserve.routing.backends.gateway_api import GatewayApi, GatewaySettings
from octoserve.routing.backends.istio import Istio, IstioSettings
from octoserve.routing.backends.manifests import Manifest, ManifestBackend, Renderer
from octoserve.routing.backends.protocol import RoutingBackend, needs_of_plan, refuse_unless_able
from octoserve.routing.plan import BUCKETS, MirrorTo, RoutePlan, split_arms
from support.loops import drive

CRDS = Path(__file__).resolve().parent.parent / "data" / "crds"


def strict(schema: Any) -> Any:
    """As an API server with strict field validation takes it: a field that the schema does not name is an error."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    is_object = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    if is_object and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    return found


def validator_of(kind: str) -> jsonschema.Draft202012Validator:
    schema = strict(json.loads((CRDS / f"{kind.lower()}.json").read_text()))
    own = {"apiVersion": {"type": "string"}, "kind": {"const": kind}, "metadata": {"type": "object"}}  # Kubernetes'
    schema["properties"] |= own
    return jsonschema.Draft202012Validator(schema)


VALIDATORS = {kind: validator_of(kind) for kind in ("VirtualService", "DestinationRule", "HTTPRoute")}
ISTIO = Istio(IstioSettings(service="iris.models.svc.cluster.local", gateways=("istio-system/public",)))
GATEWAY = GatewayApi(
    GatewaySettings(
        gateways=("public",),
        services={1: "iris-v1", 2: "iris-v2"},
        shadows={2: "iris-v2-shadow"},
        hostnames=("models.example.com",),
    )
)


class Cluster:
    """What an API server keeps."""

    def __init__(self) -> None:
        self.resources: dict[tuple[str, str], Manifest] = {}

    async def publish(self, manifests: Sequence[Manifest]) -> None:
        for manifest in manifests:
            self.resources[manifest["kind"], manifest["metadata"]["name"]] = json.loads(json.dumps(manifest))

    async def read(self) -> Iterable[Manifest]:
        return self.resources.values()


def backend_of(renderer: Renderer) -> tuple[ManifestBackend, Cluster]:
    cluster = Cluster()
    return ManifestBackend(renderer, cluster.publish, cluster.read), cluster


def plans(step: int, baseline: bool) -> st.SearchStrategy[RoutePlan]:
    weights = st.integers(0, BUCKETS // step).map(lambda number: number * step)
    shares = st.integers(0, BUCKETS)

    def build(weight: int, copies: int, more: bool) -> RoutePlan:
        mirrors = (MirrorTo(2, copies),) if copies and not weight else ()
        return RoutePlan("iris", 3, split_arms(1, 2, weight, more and baseline), mirrors=mirrors)

    return st.builds(build, weights, shares, st.booleans())


def check(renderer: Renderer, plan: RoutePlan) -> None:
    refuse_unless_able(plan, renderer.capabilities)
    manifests = renderer.render(plan, None)
    for manifest in manifests:
        VALIDATORS[manifest["kind"]].validate(manifest)
    assert "sessionPersistence" not in json.dumps(manifests)
    assert [arms for manifest in manifests if (arms := renderer.arms(manifest))] == [
        tuple(arm for arm in plan.arms if arm.hi > arm.lo)
    ]


@given(plans(100, baseline=True))
def test_istio_resources_are_valid_and_say_the_plan(plan: RoutePlan) -> None:
    check(ISTIO, plan)


@given(plans(1, baseline=False))
def test_gateway_api_resources_are_valid_and_say_the_plan(plan: RoutePlan) -> None:
    check(GATEWAY, plan)


@pytest.mark.parametrize("kind", VALIDATORS)
def test_the_schemas_find_mistakes(kind: str) -> None:
    """Else the two tests above could not fail."""
    plan = RoutePlan("iris", 1, split_arms(1, 2, 1_000))
    manifests = [*ISTIO.render(plan, None), *GATEWAY.render(plan, None)]
    manifest = next(manifest for manifest in manifests if manifest["kind"] == kind)
    VALIDATORS[kind].validate(manifest)
    manifest["spec"]["weigths"] = 1
    with pytest.raises(jsonschema.ValidationError, match="weigths"):
        VALIDATORS[kind].validate(manifest)


def test_istio_mirrors_and_headers() -> None:
    plan = RoutePlan("iris", 1, split_arms(1, 2, 0), mirrors=(MirrorTo(2, 250),))
    rule, service = ISTIO.render(plan, None)
    split, rest = service["spec"]["http"]
    assert rule["kind"] == "DestinationRule"  # its subsets must be there when the routes to them are
    assert split["mirrors"][0]["percentage"] == {"value": 2.5}
    assert split["mirrors"][0]["destination"]["subset"] == "v2-shadow"
    assert split["route"][0]["headers"]["request"]["set"] == {
        "x-octoserve-arm": "stable",
        "x-octoserve-version": "1",
        "x-octoserve-endpoint": "iris",
    }
    assert rest["route"][0]["destination"]["subset"] == "v1-stable"
    assert split["match"] == [{"uri": {"exact": "/v2/models/iris/infer"}}]


def test_istio_keeps_the_subsets_that_proxies_may_still_route_to() -> None:
    before = RoutePlan("iris", 1, split_arms(1, 2, BUCKETS))
    rule, _ = ISTIO.render(RoutePlan.to("iris", 3, 2), before)
    named = {subset["name"] for subset in rule["spec"]["subsets"]}
    assert {"v1-stable", "v2-candidate", "v3-stable"} <= named


def test_gateway_api_mirrors() -> None:
    def mirror(share: int) -> Any:
        plan = RoutePlan("iris", 1, split_arms(1, 2, 0), mirrors=(MirrorTo(2, share),))
        (filters,) = [rule.get("filters") for rule in GATEWAY.render(plan, None)[0]["spec"]["rules"][:1]]
        return filters[0]["requestMirror"]

    assert mirror(500) == {"backendRef": {"name": "iris-v2-shadow", "port": 8080}, "percent": 5}
    assert mirror(125)["fraction"] == {"numerator": 125, "denominator": BUCKETS}


def test_gateway_api_names_what_is_missing() -> None:
    with pytest.raises(SettingsError, match=r"shadows: no Service .* version 1"):
        GATEWAY.render(RoutePlan("iris", 1, split_arms(2, 1, 0), mirrors=(MirrorTo(1, 9),)), None)
    with pytest.raises(SettingsError, match=r"services: no Service .* version 7"):
        GATEWAY.render(RoutePlan.to("iris", 7, 1), None)


@pytest.mark.parametrize("renderer", [ISTIO, GATEWAY], ids=["istio", "gateway"])
class TestEach:
    def test_refusals(self, renderer: Renderer) -> None:
        backend, cluster = backend_of(renderer)
        for plan, says in (
            (RoutePlan("iris", 1, split_arms(1, 2, 100), key="header:x-user"), "sticks to no key"),
            (RoutePlan("iris", 1, split_arms(1, 2, 100), overrides={"t": 2}), "overrides"),
            (RoutePlan("iris", 1, split_arms(1, 2, 100), segments=("header:a",)), "segments"),
            (RoutePlan("iris", 1, split_arms(1, 2, 100), mirrors=(MirrorTo(2, 100),)), "mirror beside weight"),
            (RoutePlan("iris", 1, split_arms(1, 2, 0), mirrors=(MirrorTo(2, 100, 1),)), "thrown away"),
        ):
            with pytest.raises(SettingsError, match=says):
                drive(backend.apply(plan))
        assert cluster.resources == {}

    def test_what_is_published_is_in_force(self, renderer: Renderer) -> None:
        backend, _ = backend_of(renderer)
        assert isinstance(backend, RoutingBackend)
        assert drive(backend.observe()).plans == {}
        plan = RoutePlan("iris", 4, split_arms(1, 2, 1_000))
        drive(backend.apply(plan))
        drive(backend.apply(plan))
        observed = drive(backend.observe()).plans["iris"]
        assert (observed.generation, observed.arms) == (4, plan.arms)
        with pytest.raises(SettingsError, match="generation 3 came after 4"):
            drive(backend.apply(RoutePlan.to("iris", 1, 3)))

    def test_requests_in_flight_are_not_known(self, renderer: Renderer) -> None:
        assert not renderer.capabilities.drains
        with pytest.raises(Unsupported, match="in flight"):
            drive(backend_of(renderer)[0].drain("iris", 1, 0.0))

    def test_a_name_that_kubernetes_does_not_take(self, renderer: Renderer) -> None:
        with pytest.raises(SettingsError, match="'My Model'"):
            renderer.render(RoutePlan.to("My Model", 1, 1), None)


def test_istio_takes_whole_percents_only() -> None:
    with pytest.raises(SettingsError, match=r"weight 0\.5 %: its shares are multiples of 1 %"):
        refuse_unless_able(RoutePlan("iris", 1, split_arms(1, 2, 50)), ISTIO.capabilities)
    refuse_unless_able(RoutePlan("iris", 1, split_arms(1, 2, 50)), GATEWAY.capabilities)


def test_gateway_api_counts_no_baseline() -> None:
    plan = RoutePlan("iris", 1, split_arms(1, 2, 1_000, baseline=True))
    with pytest.raises(SettingsError, match="set baseline: false"):
        refuse_unless_able(plan, GATEWAY.capabilities)
    assert needs_of_plan(plan).baseline
