"""A worker without a supervisor: when it is ready, how its doors open and close, what it counts at the end."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octoserve.lifecycle.states import State, VersionRef, VersionReport
from octoserve.patterns.online import worker as module
from octoserve.patterns.online.link.messages import CatalogEntry, Desired
from octoserve.patterns.online.settings import WorkerConfig
from octoserve.patterns.online.worker import Worker, raise_open_files
from octoserve.routing.plan import RoutePlan
from octoserve.telemetry.families import Family
from octoserve.telemetry.logs import DroppingHandler


class Versions:
    """A manager whose versions are in the state that the test says."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, int], State] = {}
        self.cut_leases = 0

    def apply(self, versions: tuple[VersionRef, ...]) -> None:
        for ref in versions:
            self.states.setdefault((ref.model, ref.version), State.LOADING)

    def reports(self) -> list[VersionReport]:
        return [VersionReport(model, version, state) for (model, version), state in self.states.items()]


def desired(generation: int, *versions: tuple[str, int], routed: tuple[tuple[str, int], ...] = ()) -> Desired:
    return Desired(
        generation,
        tuple(VersionRef(model, version, "", "") for model, version in versions),
        tuple(RoutePlan.to(model, version, generation) for model, version in routed),
        {},
        tuple(CatalogEntry(model, version, "READY") for model, version in versions),
    )


class Alone(Worker):
    """A worker whose versions are the test's."""

    def __init__(self, folder: Path) -> None:
        config = WorkerConfig(
            index=0, host="127.0.0.1", http_port=0, grpc_port=0, control_path=str(folder / "control.sock")
        )
        super().__init__(config, {}, asyncio.get_running_loop())
        self.versions = Versions()
        self._manager = self.versions  # type: ignore[assignment]

    def become(self, state: State, *versions: tuple[str, int]) -> None:
        self.versions.states.update(dict.fromkeys(versions, state))
        self._report(self.versions.reports())

    def ready(self) -> bool:
        return self._service.ready()

    async def opened(self) -> None:
        while len(self._servers) < 2:
            await asyncio.sleep(0)


def played(folder: Path, act: Callable[[Alone], Awaitable[None]]) -> Alone:
    async def run() -> Alone:
        worker = Alone(folder)
        await act(worker)
        for server in worker._servers:
            server.close()
        return worker

    return asyncio.run(run())


def test_ready_stays_while_another_version_loads(tmp_path: Path) -> None:
    async def act(worker: Alone) -> None:
        worker._apply(desired(1, ("m", 1), ("n", 1)))
        assert not worker.ready()
        worker.become(State.READY, ("m", 1), ("n", 1))
        await worker.opened()
        assert not worker.ready()  # nothing is routed
        worker._apply(desired(2, ("m", 1), ("n", 1), routed=(("m", 1),)))
        assert not worker.ready()
        worker._apply(desired(3, ("m", 1), ("n", 1), routed=(("m", 1), ("n", 1))))
        assert worker.ready()
        worker._apply(desired(4, ("m", 1), ("m", 2), ("n", 1), ("o", 1), routed=(("m", 1), ("n", 1))))
        assert worker.ready()
        worker.become(State.READY, ("o", 1))  # ready and not routed yet
        assert worker.ready()
        worker.drain(0.01)
        assert not worker.ready()
        assert await worker._drained == 0

    played(tmp_path, act)


def test_a_version_that_comes_before_the_first_are_routed_does_not_count(tmp_path: Path) -> None:
    async def act(worker: Alone) -> None:
        worker._apply(desired(1, ("m", 1)))
        worker.become(State.READY, ("m", 1))
        await worker.opened()
        worker._apply(desired(2, ("m", 1), ("m", 2), routed=(("m", 1),)))
        assert worker.ready()

    played(tmp_path, act)


def test_a_model_that_goes_before_it_is_routed_is_not_waited_for(tmp_path: Path) -> None:
    async def act(worker: Alone) -> None:
        worker._apply(desired(1, ("m", 1), ("n", 1)))
        worker.become(State.READY, ("m", 1), ("n", 1))
        await worker.opened()
        del worker.versions.states["n", 1]
        worker._apply(desired(2, ("m", 1), routed=(("m", 1),)))
        assert worker.ready()

    played(tmp_path, act)


def test_a_drain_while_the_doors_open_leaves_none_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ACCEPT_SECONDS", 0)

    async def act(worker: Alone) -> None:
        loop: Any = asyncio.get_running_loop()
        create, servers = loop.create_server, []

        async def slowly(*args: Any, **kwargs: Any) -> asyncio.AbstractServer:
            for _ in range(50):
                await asyncio.sleep(0)
            servers.append(await create(*args, **kwargs))
            return servers[-1]  # type: ignore[no-any-return]

        loop.create_server = slowly
        worker._apply(desired(1))
        await asyncio.sleep(0)
        worker.drain(0.01)
        assert await worker._drained == 0
        assert servers
        assert not any(server.is_serving() for server in servers)

    played(tmp_path, act)


def test_doors_that_cannot_open_while_draining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def taken(host: str, port: int) -> Any:
        raise OSError("taken")

    monkeypatch.setattr(module, "listening_socket", taken)

    async def act(worker: Alone) -> None:
        worker._apply(desired(1))
        assert await worker._drained == 1
        worker.drain(0)
        assert worker._draining is not None
        await worker._draining

    played(tmp_path, act)
    assert "cannot listen: taken" in caplog.text
    assert "InvalidStateError" not in caplog.text


def test_what_was_cut_and_dropped_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DroppingHandler, "dropped", 3)

    async def act(worker: Alone) -> None:
        worker.versions.cut_leases = 2
        families = msgspec.msgpack.decode(worker._snapshot(), type=list[Family])
        found = {f.name: (f.kind, f.samples[0].total) for f in families if f.samples}
        assert found["octoserve_cut_leases_total"] == ("counter", 2.0)
        assert found["octoserve_dropped_log_lines_total"] == ("counter", 3.0)

    played(tmp_path, act)


def test_open_files_are_raised_to_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits = [(64, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    raise_open_files(4000)
    assert limits[-1] == (4096, 4096)
    assert not caplog.records
    raise_open_files(5000)
    assert "fewer than max_connections" in caplog.text
    assert len(limits) == 2
