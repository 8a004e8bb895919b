"""What stands in front of the workers, made from the spec: manifests in a folder, an Envoy's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from octoserve.core.errors import SettingsError, Unavailable
from octoserve.patterns.online.supervisor.route_backend import key_of
from octoserve.patterns.online.supervisor.route_fronts import Behind, EnvoyFront, ManifestFront, make_fronts
from octoserve.routing.plan import RoutePlan, split_arms
from octoserve.spec import BackendSection
from support.loops import drive

PLAN = RoutePlan("iris", 7, split_arms(1, 2, 1_000), seed="r", stratum="r/0", by_proxy=True)


def mesh(output: Path, **more: Any) -> ManifestFront:
    return ManifestFront(BackendSection(kind="istio", output=output, service="iris.models", **more))


def test_a_plan_is_manifests_in_a_folder_and_is_read_back(tmp_path: Path) -> None:
    front = mesh(tmp_path / "mesh", port=9000)
    drive(front.backend.apply(PLAN))
    assert sorted(p.name for p in (tmp_path / "mesh").iterdir()) == [
        "destinationrule-iris.yaml",
        "virtualservice-iris.yaml",
    ]
    route = yaml.safe_load((tmp_path / "mesh" / "virtualservice-iris.yaml").read_text())["spec"]["http"][0]["route"]
    assert [entry["weight"] for entry in route] == [10, 90]
    assert route[0]["headers"]["request"]["set"]["x-octoserve-stratum"] == "r/0"
    assert route[0]["destination"]["port"] == {"number": 9000}
    again = mesh(tmp_path / "mesh")
    assert drive(again.newest()) == 7
    assert drive(again.backend.observe()).plans["iris"].arms == PLAN.arms


def test_what_others_put_into_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("kind: Service\nmetadata: {annotations: }\n")
    (tmp_path / "list.yaml").write_text("[1, 2]\n")
    front = mesh(tmp_path)
    assert drive(front.newest()) == 0
    drive(front.backend.apply(PLAN))
    assert (tmp_path / "other.yaml").read_text().startswith("kind: Service")
    (tmp_path / "broken.yaml").write_text("{")
    with pytest.raises(Unavailable, match=r"while parsing|expected"):
        drive(front.backend.observe())


def test_a_gateways_services_are_named_by_version(tmp_path: Path) -> None:
    section = BackendSection(kind="gateway-api", output=tmp_path, service="iris-v{version}", gateways=["public"])
    front = ManifestFront(section)
    drive(front.backend.apply(PLAN))
    rule = yaml.safe_load((tmp_path / "httproute-iris.yaml").read_text())["spec"]["rules"][0]
    assert [(ref["name"], ref["weight"]) for ref in rule["backendRefs"]] == [("iris-v2", 1000), ("iris-v1", 9000)]


def behind(folder: Path) -> Behind:
    return Behind("127.0.0.1:8080", "127.0.0.1:8081", folder, 20.0)


def envoy(state: Path, **more: Any) -> EnvoyFront:
    return EnvoyFront(BackendSection(kind="envoy", admin="127.0.0.1:9901", **more), behind(state))


def test_an_envoy_answers_by_this_service(tmp_path: Path) -> None:
    envoy(tmp_path, listen="127.0.0.1:8090")
    clusters = json.loads((tmp_path / "clusters.json").read_text())["resources"]
    assert {cluster["name"] for cluster in clusters} == {"other", "other/grpc"}
    text = json.dumps(clusters)
    assert '"port_value": 8080' in text
    assert '"idle_timeout": "10.000s"' in text, "less than the service's own"
    assert json.loads((tmp_path / "envoy.json").read_text())["admin"]["address"]["socket_address"]["port_value"] == 9901


def test_a_free_port_stays_the_same_over_starts(tmp_path: Path) -> None:
    first = envoy(tmp_path, listen="127.0.0.1:0")
    assert not first.address.endswith(":0")
    assert envoy(tmp_path, listen="127.0.0.1:0").address == first.address
    assert envoy(tmp_path, listen="127.0.0.1:8090").address == "127.0.0.1:8090"


def test_two_envoys_over_one_folder_are_refused(tmp_path: Path) -> None:
    sections = [BackendSection(kind="envoy", admin=f"127.0.0.1:{port}") for port in (1, 2)]
    with pytest.raises(SettingsError, match="different Envoys over one folder"):
        make_fronts({key_of(section): section for section in sections}, behind(tmp_path))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"rollout\.backend\.folder"):
        envoy(tmp_path, folder=tmp_path / "file" / "envoy")
    with pytest.raises(SettingsError, match=r"rollout\.backend\.output"):
        mesh(tmp_path / "file" / "mesh")
