"""`rollout.backend:` of the spec: what each kind knows and wants, and what is said where it is something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from octoserve.core.errors import SettingsError
from octoserve.spec import check, load


def backend(**section: Any) -> Any:
    return check({"repository": "models", "rollout": {"backend": section}}, {}).rollout.backend


def test_the_workers_draw_by_default() -> None:
    assert backend().kind == "in-process"


def test_an_envoy_of_ones_own() -> None:
    section = backend(kind="envoy", start=True, listen=8090)
    assert (section.listen, section.admin, section.folder) == ("127.0.0.1:8090", "", None)
    assert backend(kind="envoy", start=True, listen="[::1]:8090").listen == "[::1]:8090"


def test_an_envoy_that_others_run() -> None:
    assert backend(kind="envoy", admin="http://10.0.0.7:9901/").admin == "10.0.0.7:9901"


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"kind": "nginx"}, "'in-process', 'envoy', 'istio' or 'gateway-api' wanted"),
        ({"start": True}, "fields of in-process"),
        ({"kind": "envoy"}, "`start: true`, or `admin`"),
        ({"kind": "envoy", "start": True, "admin": "127.0.0.1:9901"}, "not both"),
        ({"kind": "envoy", "start": True, "listen": "here"}, "host:port wanted, 'here' came"),
        ({"kind": "envoy", "start": True, "listen": "a:99999"}, "host:port wanted"),
        ({"kind": "envoy", "start": True, "output": "x"}, "not output"),
        ({"kind": "istio"}, "output and service wanted"),
        ({"kind": "istio", "output": "x", "service": "s", "shadow_service": "t"}, "not shadow_service"),
        ({"kind": "gateway-api", "output": "x", "service": "s", "gateways": ["g"]}, "{version} in it"),
        ({"kind": "gateway-api", "output": "x", "service": "s-{version}"}, "gateways"),
        ({"kind": "envoy", "strat": True}, "did you mean 'start'?"),
    ],
)
def test_what_is_meant_is_asked_for(section: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        backend(**section)
    assert says in str(caught.value)


def test_folders_are_taken_from_the_specs_own(tmp_path: Path) -> None:
    spec = tmp_path / "octoserve.yaml"
    rollouts = {
        "repository": "models",
        "rollout": {"backend": {"kind": "envoy", "start": True, "folder": "routes"}},
        "models": {"iris": {"rollout": {"backend": {"kind": "istio", "output": "mesh", "service": "iris"}}}},
    }
    spec.write_text(yaml.safe_dump(rollouts))
    settings = load({}, {}, spec)
    assert settings.rollout.backend.folder == tmp_path / "routes"
    own = settings.models["iris"].rollout
    assert own is not None
    assert own.backend.output == tmp_path / "mesh"
