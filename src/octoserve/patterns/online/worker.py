"""One worker: an event loop with the data plane, its two doors, and a link to the supervisor.

It listens once what it should hold is ready, so that a replacement never answers "not ready" where its
predecessor answered. Losing the supervisor changes nothing; SIGTERM, or the supervisor's word, drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octoserve.core.clock import monotonic
from octoserve.dataplane.endpoint import DataPlane
from octoserve.dataplane.pair_judge import PairJudge
from octoserve.lifecycle.manager import Manager
from octoserve.lifecycle.states import State, VersionReport
from octoserve.patterns.online.grpc import families
from octoserve.patterns.online.grpc.call_guard import CallGuard
from octoserve.patterns.online.grpc.door import GrpcDoor
from octoserve.patterns.online.grpc.standard import Health, reflection
from octoserve.patterns.online.grpc.transport import GrpcLimits, GrpcServer
from octoserve.patterns.online.guarding import guard_of, tls_options
from octoserve.patterns.online.http.connection import Http1Server
from octoserve.patterns.online.http.door import HttpDoor
from octoserve.patterns.online.link.messages import Desired, Hello
from octoserve.patterns.online.link.unix_socket import inside_path, listen
from octoserve.patterns.online.link.worker_end import ControlLink
from octoserve.patterns.online.service import Service
from octoserve.patterns.online.settings import AsyncRequests, WorkerConfig
from octoserve.routing.plan import RoutePlan
from octoserve.runtimes.protocol import Runtime
from octoserve.telemetry.logs import DroppingHandler
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.tracing import Tracer

if TYPE_CHECKING:
    from octoserve.dataplane.predictions import AllPredictions
    from octoserve.patterns.online.http.async_door import AsyncDoor, Way
    from octoserve.security.guard import Guard

log = logging.getLogger(__name__)

OpenWay = Callable[[AsyncRequests], "Way"]

DOORS = 2
BACKLOG = 2048
SWEEP_SECONDS = 1.0
DRAIN_LOOK_SECONDS = 0.02
DEFAULT_GRACE = 30.0
LINGER_SECONDS = 1.0
ACCEPT_SECONDS = 0.02
ROUTED_PATIENCE = 15.0
"""How long a worker keeps its doors shut over a routed version that fails in it and answers in the others."""
RUN_THREADS = 4
"""Threads for model runs too long for the event loop; a version has one run in flight, so models share them."""
SWITCH_SECONDS = 0.0005
"""How long a model's thread may wait for the interpreter while the loop is busy (Python's default is 5 ms)."""


class Worker:
    """See the module."""

    def __init__(
        self,
        config: WorkerConfig,
        runtimes: Mapping[str, Runtime],
        loop: asyncio.AbstractEventLoop,
        way: OpenWay | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """way: where requests that are answered later go, for a configuration that takes some"""
        self._config = config
        self._open_way = way
        self._closing: list[Callable[[], None]] = []
        """What is to be left in good order at the end. Blocking."""
        self._sweeps: list[Callable[[], None]] = []
        """What is to be done about once a second."""
        self._loop = loop
        self._generation = 0
        self._desired: Desired | None = None
        self._drained = loop.create_future()
        self._servers: list[asyncio.AbstractServer] = []
        self._sockets: list[socket.socket] = []
        self._tls: tuple[dict[str, Any], ...] = ()
        """What each door is opened with beside its socket."""
        self._inside_server: asyncio.AbstractServer | None = None
        self._opening: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._unrouted: set[str] | None = None
        """Models that were ready when the doors opened and have no route yet; None until then."""
        self._impatient = False
        self._patience_ended = False
        registry = self._registry = Registry()
        self.dataplane = DataPlane(
            registry,
            loop,
            ThreadPoolExecutor(RUN_THREADS, "run"),
            config.admission,
            judges=self._judge if config.spool else None,
            tracer=tracer,
            predictions=self._observed(registry),
        )
        if tracer is not None:
            registry.reading(tracer.family)
            self._closing.append(tracer.sink.close)
        self._cut_leases = registry.counter(
            "octoserve_cut_leases_total", "Requests that held a version when it was unloaded.", ()
        ).counter()
        self._dropped_lines = registry.counter(
            "octoserve_dropped_log_lines_total", "Log lines that were dropped: nobody took them in time.", ()
        ).counter()
        self._manager = Manager(
            runtimes,
            loop,
            on_ready=self.dataplane.publish,
            on_retire=self.dataplane.retire,
            on_report=self._report,
        )
        self._link = ControlLink(
            config.control_path,
            hello=self._hello,
            on_desired=self._apply,
            on_drain=lambda message: self.drain(message.grace),
            on_collect=self._snapshot,
            on_observe=self.dataplane.splits.seen,
        )
        self._service = Service(
            self.dataplane, self._link, config.repository_api, config.default_model, config.limits.max_body
        )
        self._service.routed = self._ready
        self._guard = guard_of(config.security, registry, self._link.missed)
        self._doors(registry)

    def _doors(self, registry: Registry) -> None:
        limits, access = self._config.limits, self._guard.access if self._guard is not None else None
        cuts = registry.counter("octoserve_cut_total", "Connections and requests that were cut.", ("door", "reason"))
        config = self._config
        http = HttpDoor(
            self._service, limits, cuts, self._async_door(registry), config.doors, access, config.multi_model
        )
        self._http = Http1Server(http, limits, monotonic)
        self._inside: Http1Server | None = None
        """Where the service asks itself, who is nobody's caller, no tenant, and makes no promise to itself."""
        if config.security.inside:
            self._inside = Http1Server(HttpDoor(self._service, limits, cuts, inside=True), limits, monotonic)
        refused = self.dataplane.refused
        guard = CallGuard(access, lambda error: refused("", "grpc", error)) if access is not None else None
        door, health = GrpcDoor(self._service, guard), Health(self._service, guard)
        calls = {**door.unary(), **health.unary(), **families.unary(self._service, config.doors, guard)}
        self._grpc = GrpcServer(
            calls,
            {**door.stream(), **health.stream(), **reflection(calls, guard)},
            GrpcLimits(
                max_message_bytes=limits.max_body,
                max_total_buffered_bytes=limits.max_buffered,
                max_total_unsent_bytes=limits.max_buffered,
                max_connections=limits.max_connections,
                receive_timeout=limits.receive_timeout,
            ),
            on_cut=lambda reason: cuts.counter("grpc", reason).add(),
        )
        registry.gauge("octoserve_connections", "Open connections.", ("door",), self._connections)

    def _async_door(self, registry: Registry) -> AsyncDoor | None:
        settings = self._config.asynchronous
        if settings is None or self._open_way is None:
            return None
        from octoserve.patterns.online.http.async_door import AsyncDoor

        counts = registry.counter(
            "octoserve_async_requests_total", "Requests to be answered later.", ("model", "outcome")
        )
        door = AsyncDoor(self._service, settings, self._config.limits, self._open_way(settings), counts)
        self._closing.append(door.close)
        return door

    def _judge(self, plan: RoutePlan, version: int) -> PairJudge:
        return PairJudge(plan, version, Path(self._config.spool), f"worker-{self._config.index}")

    def _observed(self, registry: Registry) -> AllPredictions | None:
        config = self._config
        if not config.observations.any():
            return None
        from octoserve.dataplane.predictions import AllPredictions

        predictions = AllPredictions(config.observations, registry, Path(config.predictions), f"worker-{config.index}")
        self._sweeps.append(predictions.sweep)
        self._closing.append(predictions.close)
        return predictions

    def _connections(self) -> dict[tuple[str, ...], float]:
        return {("http",): float(len(self._http.connections)), ("grpc",): float(self._grpc.connections)}

    def _snapshot(self) -> bytes:
        self._cut_leases.value = float(self._manager.cut_leases)
        self._dropped_lines.value = float(DroppingHandler.dropped)
        return self._registry.snapshot()

    # --- the supervisor's wishes ------------------------------------------------------------------------

    def _hello(self) -> Hello:
        config = self._config
        return Hello(os.getpid(), config.index, config.http_port, config.grpc_port, self._generation)

    def _apply(self, desired: Desired) -> None:
        """Plans and labels swap in one step; loading goes on behind."""
        self._desired = desired
        self.dataplane.route(desired.plans, desired.labels, ((e.model, e.version) for e in desired.catalog))
        self._service.catalog = desired.catalog
        self._manager.apply(desired.versions)
        if len(self._servers) == DOORS:
            self._applied(desired)
        else:
            self._listen_when_settled()

    def _applied(self, desired: Desired) -> None:
        """The first time this also says that the doors are open."""
        self._generation = desired.generation
        self._link.applied(desired.generation)

    def _report(self, reports: list[VersionReport]) -> None:
        self._link.report(reports)
        self._listen_when_settled()

    def _settled(self) -> bool:
        """Whether everything wanted is ready, or has failed with a reason."""
        if self._desired is None:
            return False
        states = {(r.model, r.version): r.state for r in self._manager.reports()}
        return all(
            states.get((ref.model, ref.version)) in (State.READY, State.FAILED) for ref in self._desired.versions
        )

    def _holds_routed(self) -> bool:
        """Whether every version that a plan names is ready here, or enough has been waited for it."""
        assert self._desired is not None
        ready = {(r.model, r.version) for r in self._manager.reports() if r.state is State.READY}
        routed = {(plan.endpoint, arm.version) for plan in self._desired.plans for arm in plan.arms}
        if routed <= ready or self._patience_ended:
            return True
        if not self._impatient:
            self._impatient = True
            log.warning("doors stay shut for %.0f s: routed versions fail here: %s", ROUTED_PATIENCE, routed - ready)
            self._loop.call_later(ROUTED_PATIENCE, self._end_patience)
        return False

    def _end_patience(self) -> None:
        self._patience_ended = True
        self._listen_when_settled()

    def _ready(self) -> bool:
        """Whether the doors have opened and every model that was ready by then is routed to.

        Once true it stays so: a version that loads beside one that answers takes no traffic away.
        """
        if self._unrouted:
            ready = {r.model for r in self._manager.reports() if r.state is State.READY}
            self._unrouted = {model for model in self._unrouted & ready if self.dataplane.plan(model) is None}
        return self._unrouted is not None and not self._unrouted

    def _listen_when_settled(self) -> None:
        if self._guard is not None and not self._guard.ready:
            return  # `_follow_security` looks again
        if self._opening is None and not self._service.draining and self._settled() and self._holds_routed():
            self._unrouted = {r.model for r in self._manager.reports() if r.state is State.READY}
            self._opening = self._loop.create_task(self._listen())
            self._opening.add_done_callback(self._listened)

    async def _listen(self) -> None:
        config = self._config
        await self._listen_inside()
        self._tls = tls_options(self._guard)
        for factory, port, tls in zip(self._factories, (config.http_port, config.grpc_port), self._tls, strict=True):
            if self._service.draining:
                return
            sock = listening_socket(config.host, port)
            self._sockets.append(sock)
            server: Any = await self._loop.create_server(factory, sock=sock, backlog=BACKLOG, **tls)
            self._servers.append(server)

    async def _listen_inside(self) -> None:
        """Where the service asks itself; anew where somebody has removed the socket: previews come by it."""
        path = inside_path(self._config.security.inside, self._config.index)
        if self._inside is None or (self._inside_server is not None and path.exists()):
            return
        listener = listen(path)
        if self._inside_server is not None:
            self._inside_server.close()
        self._inside_server = await self._loop.create_unix_server(self._inside, sock=listener)

    @property
    def _factories(self) -> tuple[Callable[[], asyncio.Protocol], ...]:
        return (self._http, self._grpc)

    def _listened(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            log.error("cannot listen: %s", error)
            self._leave(1)
        elif self._desired is not None and not self._service.draining:
            # What is here now stays: the collector need not walk it again between requests.
            gc.collect()
            gc.freeze()
            self._applied(self._desired)

    # --- life ---------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until drained; the process's exit code."""
        self._loop.add_signal_handler(signal.SIGTERM, self.drain, DEFAULT_GRACE)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
        link = self._loop.create_task(self._link.run())
        link.add_done_callback(self._abandoned)
        tasks = [self._loop.create_task(self._sweep())]
        if self._guard is not None:
            tasks.append(self._loop.create_task(self._follow_security(self._guard)))
        code: int = await self._drained
        for task in tasks:
            task.cancel()
        for close in self._closing:
            await self._loop.run_in_executor(None, close)
        await self._link.leave()
        link.cancel()
        for task in (*tasks, link):
            with contextlib.suppress(asyncio.CancelledError):
                await task
        return code

    def _abandoned(self, link: asyncio.Task[None]) -> None:
        """The link ends by itself only where no supervisor was ever there, or at the end."""
        self._leave(1)

    def _leave(self, code: int) -> None:
        if not self._drained.done():
            self._drained.set_result(code)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._http.sweep()
            if self._inside is not None:
                self._inside.sweep()
            if self._inside_server is not None and not self._service.draining:
                with contextlib.suppress(OSError):  # its folder is not there again yet: at the next sweep
                    await self._listen_inside()
            self._grpc.sweep(monotonic())
            self.dataplane.splits.sweep()
            for sweep in self._sweeps:
                sweep()

    async def _follow_security(self, guard: Guard) -> None:
        """Follow its files, in a thread: a file of many keys takes long to read. What could not be read at the start
        may be now: then the doors open."""
        while True:
            was_ready = guard.ready
            if await asyncio.to_thread(guard.look):
                self._http.forget_heads()
            if guard.ready and not was_ready:
                self._listen_when_settled()
            await asyncio.sleep(SWEEP_SECONDS)

    def drain(self, grace: float) -> None:
        """Stop accepting, finish what is in flight within `grace` seconds, leave."""
        if self._service.draining:
            return
        self._service.draining = True
        self._draining = self._loop.create_task(self._drain(grace))

    async def _drain(self, grace: float) -> None:
        code = 1
        try:
            end = self._loop.time() + grace
            self._http.drain()
            self._grpc.drain()
            await self._close_doors()
            # A client may be writing on a connection that is idle here: it gets its answer, and `Connection: close`.
            await asyncio.sleep(min(LINGER_SECONDS, grace / 2))
            await self._finish(end)
            code = 0
        except Exception:
            log.exception("draining failed")
        finally:
            self._abort()
            self._leave(code)

    async def _finish(self, end: float) -> None:
        """Wait for what is in flight, and for nothing that a client only keeps open."""
        self._http.close_idle()
        while True:
            self._grpc.linger_over()
            waiting = self._http.in_flight + self._grpc.in_flight
            if not waiting:
                return
            if self._loop.time() > end:
                log.warning("%d requests were cut at the end of the grace period", waiting)
                return
            await asyncio.sleep(DRAIN_LOOK_SECONDS)

    def _abort(self) -> None:
        """Whoever is still connected has had its answers, or does not take them."""
        self._grpc.abort()
        if self._inside_server is not None:
            self._inside_server.close()
        for server in (self._http, self._inside):
            for connection in list(server.connections) if server is not None else ():
                connection.transport.abort()

    async def _close_doors(self) -> None:
        """Take in what the kernel has accepted: closing a socket resets what still queues for it."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        for sock in self._sockets:
            sock.listen(0)
        await asyncio.sleep(ACCEPT_SECONDS)
        taken: list[Coroutine[Any, Any, Any]] = []
        doors = zip(self._sockets, self._servers, self._factories, self._tls, strict=False)
        for sock, server, factory, tls in doors:
            for connection in queued(sock):
                taken.append(self._loop.connect_accepted_socket(factory, connection, **tls))
            server.close()
        for result in await asyncio.gather(*taken, return_exceptions=True):
            if isinstance(result, OSError):
                log.debug("a connection that came while the doors closed was lost: %s", result)


def queued(sock: socket.socket) -> list[socket.socket]:
    """Connections that the kernel has accepted for a listening socket and nobody has taken yet."""
    connections: list[socket.socket] = []
    try:
        while True:
            connection, _ = sock.accept()
            connection.setblocking(False)
            connections.append(connection)
    except OSError:  # none is left
        return connections


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that shares its port with the other workers of this service."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # Accepted sockets inherit these: answers leave at once, and a peer that vanished is noticed.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setblocking(False)
    sock.bind((host, port))
    return sock


def raise_open_files(wanted: int) -> None:
    """Let this process have as many open files as it may, and say so where that is fewer than wanted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:
            log.warning("the limit of open files stays at %d: %s", soft, error)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        log.warning("at most %d open files (ulimit -n), fewer than max_connections, %d", soft, wanted)


def run_worker(
    config: WorkerConfig, runtimes: Mapping[str, Runtime], way: OpenWay | None = None, tracer: Tracer | None = None
) -> int:
    """Run a worker until it is drained; the process's exit code."""
    import uvloop

    sys.setswitchinterval(SWITCH_SECONDS)
    raise_open_files(config.limits.max_connections)

    async def main() -> int:
        return await Worker(config, runtimes, asyncio.get_running_loop(), way, tracer).run()

    code: int = uvloop.run(main())
    return code
