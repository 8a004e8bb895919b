"""`rollout.backend:` of octoserve.yaml: who carries out the shares of a rollout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from octoserve.spec.values import Section

_HOST_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):(\d{1,5})")


def _check_address(value: str) -> str:
    found = _HOST_PORT.fullmatch(value)
    if value and (found is None or int(found[2]) > 65535):
        raise ValueError("host:port")
    return value


def _listen(value: Any) -> Any:
    return f"127.0.0.1:{value}" if isinstance(value, int) and not isinstance(value, bool) else value


def _admin(value: Any) -> Any:
    return value.removeprefix("http://").rstrip("/") if isinstance(value, str) else value


HostPort = Annotated[str, AfterValidator(_check_address)]

_KNOWS = {
    "in-process": frozenset[str](),
    "envoy": frozenset({"start", "listen", "folder", "admin", "http", "grpc", "grpc_endpoint"}),
    "istio": frozenset({"output", "service", "namespace", "port", "hosts", "gateways", "label"}),
    "gateway-api": frozenset({"output", "service", "shadow_service", "namespace", "port", "hosts", "gateways"}),
}


class BackendSection(Section):
    """Who carries out the shares of a rollout. See docs/routing-backends.md."""

    kind: Literal["in-process", "envoy", "istio", "gateway-api"] = "in-process"
    """in-process: the workers draw. The others draw in front of them, and the workers do as they are told."""

    start: bool = False
    """envoy: whether `octoserve serve` starts an Envoy, keeps it running and ends it."""
    listen: Annotated[HostPort, BeforeValidator(_listen)] = "127.0.0.1:8090"
    """envoy: where clients come in, `8090` or `0.0.0.0:8090`; port 0 picks a free one."""
    folder: Path | None = None
    """envoy: its configuration, into which routes are renamed; a folder of its own on a local disk. Unset: one in
    `state_dir`."""
    admin: Annotated[HostPort, BeforeValidator(_admin)] = ""
    """envoy: its admin's address, to be asked what is in force; unset: what the Envoy that is started here says."""
    http: list[HostPort] = Field(default_factory=list)
    """envoy: who answers HTTP; unset: this service."""
    grpc: list[HostPort] = Field(default_factory=list)
    """envoy: who answers gRPC; unset: this service."""
    grpc_endpoint: str = ""
    """envoy: the endpoint whose gRPC calls are split though their metadata has no `x-octoserve-endpoint` (their
    messages name it, which Envoy does not read); those of others are then answered by the stable version."""

    output: Path | None = None
    """istio, gateway-api: the folder that manifests are renamed into, for what brings them into the cluster."""
    service: str = ""
    """istio: the Service whose pods answer. gateway-api: the one of a version; `{version}` stands for its number."""
    shadow_service: str = ""
    """gateway-api: the Service that gets the copies of a version, and nothing else; `{version}` as above."""
    namespace: str = "default"
    """istio, gateway-api: of the resources."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8080
    """istio, gateway-api: the Services' HTTP port."""
    hosts: list[str] = Field(default_factory=list)
    """istio, gateway-api: names that clients use."""
    gateways: list[str] = Field(default_factory=list)
    """istio, gateway-api: by which clients come in."""
    label: str = "octoserve.io/version"
    """istio: of pods: the version that they answer for."""

    @field_validator("service", "shadow_service")
    @classmethod
    def _by_version(cls, value: str, info: ValidationInfo) -> str:
        if value and info.data.get("kind") == "gateway-api" and "{version}" not in value:
            raise ValueError("a name with {version} in it, since each version has a Service of its own")
        return value

    @model_validator(mode="after")
    def _fields_of_its_kind(self) -> Self:
        strange = sorted(self.model_fields_set - _KNOWS[self.kind] - {"kind"})
        if strange:
            known = ", ".join(sorted(_KNOWS[self.kind])) or "nothing else"
            raise ValueError(f"fields of {self.kind} ({known}), not {', '.join(strange)},")
        if self.kind == "envoy" and not self.start and not self.admin:
            raise ValueError("`start: true`, or `admin`, the address of the Envoy that runs,")
        if self.kind == "envoy" and self.start and self.admin:
            raise ValueError(
                "`start: true` or `admin`, not both: the Envoy that is started here says where its admin is,"
            )
        missing = [name for name in ("output", "service") if not getattr(self, name)]
        if self.kind in ("istio", "gateway-api") and missing:
            raise ValueError(f"{' and '.join(missing)}")
        if self.kind == "gateway-api" and not self.gateways:
            raise ValueError("gateways: the Gateway that clients come in by")
        return self
