"""What stands in front of the workers and draws for them, made from `rollout.backend` of the spec."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import yaml

from octoserve.core.errors import SettingsError, Unavailable
from octoserve.patterns.online.supervisor.service_files import write_atomically
from octoserve.routing.backends.envoy import EnvoyBackend
from octoserve.routing.backends.envoy_config import BOOTSTRAP_FILE, EnvoySettings
from octoserve.routing.backends.envoy_process import EnvoyProcess, envoy_binary
from octoserve.routing.backends.gateway_api import GatewayApi, GatewaySettings
from octoserve.routing.backends.istio import Istio, IstioSettings
from octoserve.routing.backends.manifests import PLAN, Manifest, ManifestBackend, Renderer
from octoserve.routing.backends.protocol import RoutingBackend

if TYPE_CHECKING:
    from octoserve.spec import BackendSection

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds that an Envoy gets to take a plan before it is given anew."""


class Behind(NamedTuple):
    """The service that answers: its doors, a folder for what it keeps, seconds that a connection of its may idle."""

    http: str
    grpc: str
    folder: Path
    idle: float


class Front(Protocol):
    """Something in front of the workers.

    address: where clients come in, as far as it is known here; "" if not
    """

    @property
    def backend(self) -> RoutingBackend: ...
    @property
    def address(self) -> str: ...

    async def newest(self) -> int:
        """The highest generation that it was given before this process began."""

    async def keep(self) -> None:
        """See that it runs, where that is this process's doing. Raises Unavailable."""

    async def leave(self, grace: float) -> None:
        """The service ends."""


def make_fronts(sections: Mapping[str, BackendSection], behind: Behind) -> dict[str, Front]:
    """Of each section, by its key. Raises SettingsError."""
    folders = [section.folder or behind.folder for section in sections.values() if section.kind == "envoy"]
    if len(set(folders)) < len(folders):
        raise SettingsError(
            "rollout.backend: models ask for different Envoys over one folder; let them say the same, or give each a "
            "`folder` and `listen` of its own"
        )
    return {
        key: EnvoyFront(section, behind) if section.kind == "envoy" else ManifestFront(section)
        for key, section in sections.items()
    }


class EnvoyFront:
    """An Envoy: one that is started, kept and ended here, or one that others run."""

    def __init__(self, section: BackendSection, behind: Behind) -> None:
        if section.start:
            envoy_binary()  # its absence is told now, and not when it is wanted
        folder = section.folder or behind.folder
        self.address = _fixed(section.listen, folder)
        settings = EnvoySettings(
            listen=self.address,
            http=tuple(section.http) or (behind.http,),
            grpc=tuple(section.grpc) or (behind.grpc,),
            grpc_endpoint=section.grpc_endpoint,
            timeout=0.0,  # who answers has its own deadlines
            idle_timeout=min(30.0, behind.idle / 2),
        )
        try:
            self.backend = EnvoyBackend(folder, settings, section.admin, timeout=PATIENCE)
        except OSError as error:
            raise SettingsError(f"rollout.backend.folder: cannot write into {folder}: {error}") from None
        self._starts = section.start
        self._process: EnvoyProcess | None = None

    async def newest(self) -> int:
        """See `Front`."""
        return self.backend.newest()

    async def keep(self) -> None:
        """See `Front`. An Envoy that ran before is taken over."""
        if not self._starts:
            return
        if self._process is not None and not self._process.ended and await self._process.ready():
            return
        again = self._process is not None
        self._process = await EnvoyProcess.start(self.backend)
        what = "runs again" if again else "was taken over" if self._process.adopted else "runs"
        log.info("Envoy %s; clients come in at %s", what, self.address)

    async def leave(self, grace: float) -> None:
        """See `Front`."""
        if self._process is not None:
            await self._process.leave(grace)


class ManifestFront:
    """A mesh or gateway: resources in a folder, for what brings them into a cluster.

    What lies there is what counts as in force; whether a cluster follows is not seen from here. Requests say it: only
    those that were drawn by the present plan count as evidence.
    """

    address = ""

    def __init__(self, section: BackendSection) -> None:
        assert section.output is not None  # the spec wants it
        self._folder = section.output
        self.backend = ManifestBackend(_renderer(section), self._publish, self._read)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"rollout.backend.output: cannot make {self._folder}: {error}") from None

    async def newest(self) -> int:
        """See `Front`."""
        return max((now.generation for now in (await self.backend.observe()).plans.values()), default=0)

    async def keep(self) -> None:
        """See `Front`."""

    async def leave(self, grace: float) -> None:
        """See `Front`."""

    async def _publish(self, manifests: Sequence[Manifest]) -> None:
        def write() -> None:
            for manifest in manifests:
                name = f"{manifest['kind'].lower()}-{manifest['metadata']['name']}.yaml"
                write_atomically(self._folder / name, yaml.safe_dump(manifest, sort_keys=False).encode(), mode=0o644)

        try:
            await asyncio.to_thread(write)
        except OSError as error:
            raise Unavailable(f"{self._folder}: {error}") from None

    async def _read(self) -> Iterable[Manifest]:
        def read() -> list[Manifest]:
            found = []
            for path in sorted(self._folder.glob("*.yaml")):
                manifest = yaml.safe_load(path.read_text())
                if isinstance(manifest, dict) and PLAN in ((manifest.get("metadata") or {}).get("annotations") or {}):
                    found.append(manifest)
            return found

        try:
            return await asyncio.to_thread(read)
        except (OSError, yaml.YAMLError) as error:
            raise Unavailable(f"{self._folder}: {error}") from None


def _renderer(section: BackendSection) -> Renderer:
    if section.kind == "istio":
        return Istio(
            IstioSettings(
                service=section.service,
                port=section.port,
                namespace=section.namespace,
                hosts=tuple(section.hosts),
                gateways=tuple(section.gateways),
                label=section.label,
            )
        )
    return GatewayApi(
        GatewaySettings(
            gateways=tuple(section.gateways),
            services=_ByVersion(section.service),
            shadows=_ByVersion(section.shadow_service),
            port=section.port,
            namespace=section.namespace,
            hostnames=tuple(section.hosts),
        )
    )


class _ByVersion(Mapping[int, str]):
    """Version -> a name made of it; nothing where there is no template."""

    def __init__(self, template: str) -> None:
        self._template = template

    def __getitem__(self, version: int) -> str:
        if not self._template:
            raise KeyError(version)
        return self._template.replace("{version}", str(version))

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _fixed(listen: str, folder: Path) -> str:
    """The address with a port of its own: an Envoy that is started again must be where clients know it."""
    host, _, port = listen.rpartition(":")
    if port != "0":
        return listen
    try:
        boot = json.loads((folder / BOOTSTRAP_FILE).read_bytes())
        last = boot["static_resources"]["listeners"][0]["address"]["socket_address"]
        if last["address"] == host.strip("[]"):
            return f"{host}:{last['port_value']}"
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        pass
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind((host.strip("[]"), 0))
        return f"{host}:{free.getsockname()[1]}"
