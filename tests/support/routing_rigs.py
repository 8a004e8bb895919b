"""Routing backends with something behind them: octoserve's own pick, and the real Envoy before small servers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from octoserve.core.errors import SettingsError
from octoserve.routing.backends.envoy import EnvoyBackend
from octoserve.routing.backends.envoy_config import EnvoySettings
from octoserve.routing.backends.envoy_process import EnvoyProcess, envoy_binary
from octoserve.routing.backends.in_process import InProcessBackend
from octoserve.routing.backends.protocol import ArmCount, RoutingBackend
from octoserve.routing.plan import OVERRIDE, RoutePlan, split_arms
from octoserve.routing.split import arm_of, bucket_of, pick
from support.loops import drive
from support.upstreams import PlainClient, Upstream, UpstreamThread

ENDPOINT = "iris"
PATH = f"/v2/models/{ENDPOINT}/infer"
KEY = "header:x-user"
VERSIONS = (1, 2, 3)


def no_envoy() -> str:
    """Why there is none; empty if there is one."""
    try:
        envoy_binary()
    except SettingsError as error:
        return str(error)
    return ""


needs_envoy = pytest.mark.skipif(bool(no_envoy()), reason=no_envoy())


class Rig(Protocol):
    """A backend with something behind it."""

    @property
    def backend(self) -> RoutingBackend: ...

    def ask(self, key: bytes | None = None) -> tuple[str, int]:
        """Role and version that answer."""

    def hold(self, version: int) -> None:
        """One request of this version is in flight from now on."""

    def let_go(self, version: int) -> None:
        """It ends."""

    def next_generation(self) -> int: ...


class InProcessRig:
    """A worker that picks as `routing.split` does."""

    def __init__(self) -> None:
        self.plan: RoutePlan | None = None
        self.generation = 0
        self.held: Counter[int] = Counter()
        self.counted: Counter[tuple[int, str]] = Counter()

        async def acknowledged(generation: int) -> None:
            while self.plan is None or self.plan.generation < generation:
                await asyncio.sleep(0)

        def publish(plan: RoutePlan) -> None:
            asyncio.get_running_loop().call_soon(self._take, plan)

        def counts() -> list[ArmCount]:
            return [
                ArmCount(endpoint=ENDPOINT, version=version, role=role, requests=number)
                for (version, role), number in self.counted.items()
            ]

        self.backend = InProcessBackend(publish, acknowledged, lambda _, version: self.held[version], counts)

    def _take(self, plan: RoutePlan) -> None:
        self.plan = plan

    def ask(self, key: bytes | None = None) -> tuple[str, int]:
        assert self.plan is not None
        if key is not None and key.decode("utf-8", "surrogateescape") in self.plan.overrides:
            answer = OVERRIDE, pick(self.plan, key)
        elif key is not None and self.plan.key:
            arm = arm_of(self.plan, bucket_of(self.plan.seed, key))
            answer = arm.role, arm.version
        else:
            version = pick(self.plan)
            answer = next(arm.role for arm in self.plan.arms if arm.version == version), version
        self.counted[answer[1], answer[0]] += 1
        return answer

    def hold(self, version: int) -> None:
        self.held[version] += 1

    def let_go(self, version: int) -> None:
        self.held[version] -= 1

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation


class EnvoyRig:
    """The real Envoy before one small server a version."""

    def __init__(self, folder: Path, thread: UpstreamThread) -> None:
        self.upstreams = {version: Upstream(thread, f"v{version}") for version in VERSIONS}
        self.folder = folder
        self.settings = EnvoySettings(
            listen="127.0.0.1:0",
            http={version: (upstream.address,) for version, upstream in self.upstreams.items()},
        )
        self.backend = EnvoyBackend(folder, self.settings)
        self.process = drive(EnvoyProcess.start(self.backend, concurrency=2))
        self.address = drive(self.backend.admin.listening_on())
        self.client = PlainClient(self.address)
        self.generation = 0
        self._holders: dict[int, PlainClient] = {}

    def ask(self, key: bytes | None = None) -> tuple[str, int]:
        status, body = self.client.ask(PATH, {} if key is None else {"x-user": key})
        assert status == 200, (status, body)
        name, role, version = body.split()
        assert name == f"v{version}"  # what Envoy says it drew is where it went
        return role, int(version)

    def hold(self, version: int) -> None:
        upstream = self.upstreams[version]
        upstream.hold()
        before = len(upstream.requests)
        self._holders[version] = PlainClient(self.address)
        self._holders[version].send(f"/v2/models/{ENDPOINT}/versions/{version}/infer")
        deadline = time.monotonic() + 5
        while len(upstream.requests) == before:
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def let_go(self, version: int) -> None:
        self.upstreams[version].let_go()
        with self._holders.pop(version) as client:
            assert client.receive()[0] == 200

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation

    def close(self) -> None:
        drive(self.process.stop())
        self.client._socket.close()


@pytest.fixture(scope="module")
def thread() -> Iterator[UpstreamThread]:
    thread = UpstreamThread()
    yield thread
    thread.stop()


@pytest.fixture(scope="module")
def envoy(thread: UpstreamThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvoyRig]:
    rig = EnvoyRig(tmp_path_factory.mktemp("envoy"), thread)
    yield rig
    rig.close()


def canary(rig: Rig, weight: int, *, baseline: bool = False, seed: str = "r-7", **more: object) -> RoutePlan:
    arms = split_arms(1, 2, weight, baseline)
    return RoutePlan(ENDPOINT, rig.next_generation(), arms, seed=seed, key=KEY, **more)  # type: ignore[arg-type]


def keys(count: int) -> list[bytes]:
    """Some as people have them, some that are no UTF-8, an empty one."""
    odd = [bytes([0xE9, 0x41 + number % 26, 0x80 + number % 100]) + b"%d" % number for number in range(count // 10)]
    return [b"", *odd, *(b"customer-%d" % number for number in range(count - len(odd) - 1))]
