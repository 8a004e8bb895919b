"""One service: ports, workers, control loop, admin API; from start to drain.

Order of a start: lock the service, hold the ports, listen on the control socket, take up living workers or
spawn new ones, and only then import what the admin API needs: workers import and load meanwhile. The
supervisor itself never loads a model.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from octoserve import __version__
from octoserve.control.policy import parse as parse_policy
from octoserve.control.predictions.keeper import PredictionKeeper
from octoserve.control.rollout.store import Ledger, SqliteStore
from octoserve.control.rollout.values import IN_PROCESS
from octoserve.control.snapshot import ModelWishes
from octoserve.control.store import Store
from octoserve.core.admission import Admission, CacheLimits
from octoserve.core.errors import OctoserveError, SettingsError, Unavailable
from octoserve.core.names import is_loopback
from octoserve.patterns.online.link.messages import Drain, Hello, Missed, Operation, OperationReply, ToSupervisor
from octoserve.patterns.online.link.unix_socket import frame, inside_path, listen, messages, peer_of
from octoserve.patterns.online.settings import Limits, MultiModel, WorkerConfig
from octoserve.patterns.online.supervisor.consumers import Consumers, NoConsumers, async_requests
from octoserve.patterns.online.supervisor.control_room import ControlRoom
from octoserve.patterns.online.supervisor.deadlines import deadline_of, deadlines_of, default_deadline_of
from octoserve.patterns.online.supervisor.drift_watch import DriftWatch
from octoserve.patterns.online.supervisor.elsewhere import Elsewhere, Nearby, open_repository
from octoserve.patterns.online.supervisor.fleet import Fleet, FleetTimes
from octoserve.patterns.online.supervisor.fleet_member import Member
from octoserve.patterns.online.supervisor.pairs import NoPairs, Pairs
from octoserve.patterns.online.supervisor.ports import ReservedPort, reserve
from octoserve.patterns.online.supervisor.replicas import identity
from octoserve.patterns.online.supervisor.rollout_readings import MetricReadings
from octoserve.patterns.online.supervisor.rollout_starts import Strategy
from octoserve.patterns.online.supervisor.rollouts import Rollouts
from octoserve.patterns.online.supervisor.route_backend import RouteBackends, key_of
from octoserve.patterns.online.supervisor.security_watch import SecurityWatch
from octoserve.patterns.online.supervisor.service_files import ServiceFiles, ServiceRecord, write_atomically
from octoserve.patterns.online.supervisor.slo_watch import SloWatch
from octoserve.patterns.online.supervisor.worker_process import spawn_blank
from octoserve.repository.layout import ARTIFACTS, Formats, VersionOnDisk
from octoserve.security.caller import DATA_DOOR

if TYPE_CHECKING:
    from octoserve.control.rollout.values import Rollout
    from octoserve.control.rollout.view import Preview
    from octoserve.patterns.online.supervisor.live_figures import LiveFigures
    from octoserve.patterns.online.supervisor.route_fronts import Front
    from octoserve.spec import BackendSection, ModelSection, RolloutSection, ServeSettings

log = logging.getLogger(__name__)

TICK = 0.1
READY_LIMIT = 60.0
FRONT_GRACE = 5.0
"""Seconds that what stands in front of the workers gets to answer what it has, before they drain."""
GIVE_UP_AFTER = 3
"""Deaths of first workers, none of which ever said Hello, after which a start is given up."""


class Supervisor:
    """See the module. `run` once.

    spawn:     starts a worker process that waits for its configuration
    spare:     such processes, started ahead
    strategies: what makes the course of a rollout, by name
    pairs:     what keeps a shadow's pairs, made for the state directory
    consumers: what answers asynchronous requests
    formats:   what versions are made of
    on_ready:  called once when the ports are known and the first versions have loaded or failed
    """

    def __init__(
        self,
        settings: ServeSettings,
        *,
        spawn: Callable[[], subprocess.Popen[bytes]] = spawn_blank,
        spare: Sequence[subprocess.Popen[bytes]] = (),
        on_ready: Callable[[Supervisor], None] | None = None,
        times: FleetTimes | None = None,
        strategies: Mapping[str, Strategy] | None = None,
        pairs: Callable[[Path], Pairs] | None = None,
        formats: Formats | None = None,
        consumers: Consumers | None = None,
    ) -> None:
        self.settings = settings
        self._spare = spare
        self._on_ready = on_ready
        self._stop = asyncio.Event()
        self._cut_short = asyncio.Event()
        self.ready = False
        self._left_alone = 0
        """Workers that were adopted and are left to a successor."""
        self.exit_code = 0
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.predictions = PredictionKeeper(settings.observations(), settings.state_dir.resolve() / "predictions")
        self.predictions.check()
        formats = formats or Formats(ARTIFACTS)
        self.repository, cache = open_repository(settings, formats)
        self._claim()
        self.security = SecurityWatch(settings, self.files.inside)
        self.security.open()
        root = self.repository.root
        self.fleet = Fleet(
            settings.workers,
            self._worker_config,
            fingerprint_of(settings, self.http_port, self.grpc_port),
            on_change=self._changed,
            on_record=self._write_record,
            on_operation=self._operate,
            spawn=spawn,
            times=times or FleetTimes(hang=settings.hang, retire=settings.grace),
        )
        self.room = ControlRoom(
            self.repository,
            lambda: Store(settings.state_dir, root, self.files.name),
            self.fleet,
            wishes_of(None, settings),
            {name: wishes_of(section, settings) for name, section in settings.models.items()},
            settings.scan,
        )
        self.room.fronts = RouteBackends(
            self.room, lambda endpoint: front_section(endpoint, settings), self._fronts(), self._changed
        )
        self.elsewhere: Elsewhere | Nearby = Nearby()
        if cache is not None:
            self.elsewhere = Elsewhere(cache, settings, self.room)
        self.consumers: Consumers = consumers or NoConsumers()
        self.pairs: Pairs = pairs(settings.state_dir) if pairs is not None else NoPairs()
        self.rollouts = Rollouts(
            rollout_store(settings),
            self.room,
            self.fleet,
            sections=lambda endpoint: rollout_section(endpoint, settings),
            strategies=strategies or {},
            preview=self._preview,
            readings=lambda rollout: self.readings(rollout),
            keep=settings.keep_rollouts,
        )
        if pairs is not None:
            self.rollouts.followers.spool = self._spool()
        self.readings = MetricReadings(
            lambda: list(self.rollouts.live.values()) if self.rollouts.leads else [],
            lambda endpoint: rollout_section(endpoint, settings).providers,
            time.time,
        )
        self.slo = SloWatch(
            settings.slos(),
            self.fleet.collect,
            lambda model: deadline_of(model, settings),
            self._all_heard,
        )
        self.drift = DriftWatch(
            settings.observations(),
            self.fleet.collect,
            self._folder_of,
            self._all_heard,
        )
        self.live_figures: LiveFigures
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    # Start.

    def _claim(self) -> None:
        """Find or make the service's files, and hold its ports."""
        settings = self.settings
        files = None
        if settings.http_port == 0:
            files = ServiceFiles.find_orphan(settings.state_dir, str(self.repository.root))
        last = files.read() if files is not None else None
        http: ReservedPort | None = None
        if files is None:
            if settings.http_port == 0:
                http = reserve(settings.host, 0, "http_port")
            port = http.port if http is not None else settings.http_port
            files = ServiceFiles.claim(settings.state_dir, port)
            last = files.read()
        self.files = files
        self._living = last.living() if last is not None else ()
        adopt = last if self._living else None
        ours = adopt is not None
        if http is None:
            http = reserve(settings.host, adopt.http_port if adopt else settings.http_port, "http_port", ours)
        same_grpc = adopt is not None and settings.grpc_port in (0, adopt.grpc_port)
        grpc_port = adopt.grpc_port if adopt is not None and same_grpc else settings.grpc_port
        self._ports = [http, reserve(settings.host, grpc_port, "grpc_port", same_grpc)]
        self.http_port, self.grpc_port = (held.port for held in self._ports)
        self.admin_socket = admin_socket(settings)
        self.admin_port = self.admin_socket.getsockname()[1]

    def _fronts(self) -> dict[str, Front]:
        """What the spec wants in front of the workers, by section. Raises SettingsError."""
        rollouts = [self.settings.rollout, *(m.rollout for m in self.settings.models.values() if m.rollout is not None)]
        sections = {key_of(r.backend): r.backend for r in rollouts if r.backend.kind != IN_PROCESS}
        if not sections:
            return {}
        if self.settings.security.tls is not None:
            raise SettingsError(
                "security.tls: with an Envoy of ours in front of the workers (rollout.backend) TLS is not "
                "offered; leave one of them out, or end TLS in a proxy before it"
            )
        from octoserve.patterns.online.supervisor.route_fronts import Behind, make_fronts

        host = _reached_at(self.settings.host)
        folder = self.settings.state_dir.resolve() / f"envoy-{self.files.name}"
        doors = f"{host}:{self.http_port}", f"{host}:{self.grpc_port}"
        return make_fronts(sections, Behind(*doors, folder, self.settings.idle_timeout))

    def _spool(self) -> Path:
        """Where pairs of a shadow are left."""
        return (self.settings.state_dir / "shadow" / "spool").resolve()

    def _worker_config(self, index: int) -> WorkerConfig:
        settings = self.settings
        return WorkerConfig(
            index=index,
            host=settings.host,
            http_port=self.http_port,
            grpc_port=self.grpc_port,
            control_path=str(self.files.socket.resolve()),
            limits=Limits(
                max_body=settings.max_body,
                max_buffered=settings.max_buffered,
                max_connections=settings.max_connections,
                receive_timeout=settings.receive_timeout,
                idle_timeout=settings.idle_timeout,
            ),
            admission=Admission(
                max_queue=settings.max_queue,
                default_deadline=default_deadline_of(settings),
                deadlines=deadlines_of(settings),
                slos=settings.slos(),
                max_batch_bytes=settings.max_batch_bytes,
                max_pending_bytes=settings.max_buffered,
                priorities=settings.admission.levels(),
                tenants=settings.admission.rules(settings.workers),
                caches=caches_of(settings),
            ),
            spool=str(self._spool()),
            observations=settings.observations(),
            predictions=str(self.predictions.spool),
            trust=tuple(settings.trust),
            tracing=settings.spans(),
            repository_api=settings.clients_may_load(),
            doors=tuple(settings.doors),
            default_model=settings.default_model or "",
            asynchronous=async_requests(settings),
            security=self.security.told,
            multi_model=multi_model(settings),
            log_level=settings.log_level,
            log_format=settings.log_format,
        )

    def _all_heard(self) -> bool:
        """Whether each worker of before has said what it had counted."""
        return all(member.snapshot for member in self.fleet.members() if member.adopted)

    def _folder_of(self, model: str, version: int) -> tuple[Path, str] | None:
        """Of a version that is there, and its digest."""
        scan = self.room.scan
        versions = scan.models.get(model, ()) if scan is not None else ()
        return next(((Path(disk.path), disk.digest) for disk in versions if disk.version == version), None)

    def _write_record(self) -> None:
        settings = self.settings
        record = ServiceRecord(
            root=str(self.repository.root),
            host=settings.host,
            asked_http=settings.http_port,
            http_port=self.http_port,
            grpc_port=self.grpc_port,
            admin_port=self.admin_port,
            supervisor=os.getpid(),
            workers=self.fleet.records(),
        )
        self.files.write(record)

    # Life.

    async def run(self) -> int:
        """Serve until told to stop; the exit code."""
        loop = asyncio.get_running_loop()
        listener = listen(self.files.socket)
        self._server = await asyncio.start_unix_server(self._converse, sock=listener)
        self._handle_signals(loop)
        await self.security.prepare()
        self.fleet.adopt(self._living)
        self.fleet.start(self._spare)
        try:
            try:
                await self.room.open(adopting=bool(self._living))
                self.room.floor = await self.room.fronts.newest()
                if not await self._unless_stopped(self.rollouts.open(*self._holder())):
                    return self.exit_code
            except Exception:
                self._left_alone = self.fleet.disown()  # what is stored cannot be read: workers of before serve on
                raise
            self._start(self.room.run())
            self._start(self.elsewhere.run())
            self._start(self.room.fronts.run())
            self._start(self._watch())
            self._start(self._announce())
            self._start(self._admin())
            self._start(self.rollouts.run())
            self._start(self.readings.run())
            self._start(self.pairs.run(), vital=False)
            self._start(self.predictions.run(), vital=False)
            self._start(self.slo.run(), vital=False)
            self._start(self.security.run())
            self._start(self.drift.run(), vital=False)
            self._start(self.consumers.run(self._stable), vital=False)
            await self._stop.wait()
        finally:
            await self._leave()
        return self.exit_code

    def _holder(self) -> tuple[str, str]:
        """Who leads rollouts: this process, or, where others share the store, this replica; and who it was before."""
        if self.settings.rollout_store is None:
            return f"{socket.gethostname()} pid {os.getpid()}", ""
        return identity(self.settings.state_dir, self.files.name, goes_on=bool(self._living))

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do it, or stop before it is done."""
        doing, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((doing, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not doing.done():
            doing.cancel()
            return False
        await doing
        return True

    async def _leave(self) -> None:
        log.info("draining: at most %g s", self.settings.grace)
        await self.room.fronts.leave(min(self.settings.grace / 2, FRONT_GRACE))
        await self.rollouts.leave()
        clean, _ = await asyncio.gather(
            self.fleet.stop(self.settings.grace, self._cut_short), self.consumers.leave(self.settings.grace)
        )
        if not clean:
            self.exit_code = self.exit_code or 1
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.predictions.finish()
        if self._server is not None:
            self._server.close()
        await self.rollouts.close()
        await self.room.close()
        if self.settings.ports_file is not None and self.ready:
            self.settings.ports_file.unlink(missing_ok=True)
        self.files.close(workers_left=self._left_alone > 0)
        for held in self._ports:
            held.close()
        log.info("stopped")

    def _stable(self) -> dict[str, int]:
        """Which version of each model is trusted now."""
        return {plan.endpoint: plan.stable for plan in self.room.current.plans}

    def stop(self, exit_code: int = 0) -> None:
        """Drain and leave; the second call cuts that short."""
        self.exit_code = self.exit_code or exit_code
        if self._stop.is_set():
            self._cut_short.set()
        self._stop.set()

    def _handle_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self.stop)

    def _start(self, work: Any, vital: bool = True) -> None:
        """Run it beside the others; the service does not outlive a `vital` one that fails."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended if vital else self._tasks.discard)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("the supervisor stops: %s", error, exc_info=error)
            self.stop(1)

    async def _watch(self) -> None:
        """Tend the workers. What fails in one tick is tried again at the next."""
        complaint = ""
        while True:
            try:
                self.fleet.tick()
                await self._keep_socket()
                complaint = ""
            except Exception as error:
                if str(error) != complaint:
                    complaint = str(error)
                    log.exception("tending the workers: %s; tried again every %g s", error, TICK)
            failures = max((slot.failures for slot in self.fleet.slots), default=0)
            if failures >= GIVE_UP_AFTER and not self.fleet.ever_connected:
                log.error("workers end before they say Hello; see their messages above")
                self.stop(1)
                return
            await asyncio.sleep(TICK)

    async def _keep_socket(self) -> None:
        """Listen anew if somebody has removed the control socket: later workers need it."""
        if self.files.socket.exists() or self._server is None:
            return
        log.warning("%s is gone; it is made again", self.files.socket)
        self.files.restore()
        server = await asyncio.start_unix_server(self._converse, sock=listen(self.files.socket))
        self._server.close()
        self._server = server

    async def _announce(self) -> None:
        """Once the first versions have loaded or failed in every worker, say that the service is ready."""
        if self.settings.ports_file is not None:
            self.settings.ports_file.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        limit = loop.time() + READY_LIMIT
        while not self._settled() and loop.time() < limit:
            await asyncio.sleep(0.01)
        self.ready = True
        if self.settings.ports_file is not None:
            ports = {"http": self.http_port, "grpc": self.grpc_port, "admin": self.admin_port, "pid": os.getpid()}
            fronts = self.room.fronts.addresses()
            if fronts:
                ports["front"] = int(fronts[0].rpartition(":")[2])
            write_atomically(self.settings.ports_file, msgspec.json.encode(ports), mode=0o644)
        if self._on_ready is not None:
            self._on_ready(self)

    def _settled(self) -> bool:
        """What is there has loaded or failed, and what stands in front knows it."""
        return self.elsewhere.looked() and self.room.initially_settled() and self.room.fronts.settled()

    async def _admin(self) -> None:
        # In a thread: importing takes long enough that workers would wait for an answer.
        admin = await asyncio.to_thread(importlib.import_module, "octoserve.patterns.online.supervisor.admin")
        self.live_figures = admin.LiveFigures(self.fleet.collect, lambda: self.room.current.plans)
        self._start(self.live_figures.run(), vital=False)
        await admin.serve_admin(self, self.admin_socket)

    # Conversations.

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = peer_of(writer.get_extra_info("socket"))
        if peer is not None and peer[1] != os.getuid():
            log.warning("a process of user %d came to the control socket and was sent away", peer[1])
            writer.close()
            return
        member: Member | None = None
        decoder = msgspec.msgpack.Decoder(ToSupervisor)
        try:
            async for message in messages(reader, decoder):
                if member is not None and isinstance(message, Missed):
                    self.security.missed()
                elif member is not None and not isinstance(message, Hello):
                    self.fleet.hear(member, message)
                elif member is None and isinstance(message, Hello) and (not peer or peer[0] == message.pid):
                    member = self.fleet.connect(message, writer)
                    if member is None:
                        # A worker that no record knows would serve old plans for ever.
                        log.warning("a worker that is not ours any more (pid %d) is sent away", message.pid)
                        writer.write(frame(Drain(self.fleet.times.retire)))
                        break
                else:
                    break
        except (msgspec.MsgspecError, ValueError) as error:
            log.warning("a peer of the control socket sent what is no message: %s", error)
        finally:
            if member is not None:
                self.fleet.disconnect(member, writer)
            writer.close()

    def _changed(self) -> None:
        self.room.wake()
        self.rollouts.wake()
        self.room.fronts.wake()

    async def _preview(self, rollout: Rollout, disk: VersionOnDisk) -> Preview:
        from octoserve.patterns.online.supervisor.rollout_preview import Previewer

        doors = [inside_path(str(self.files.inside), member.index) for member in self.fleet.serving()]
        return await Previewer(doors, self.pairs.recorded)(rollout, disk)

    async def change(self, action: str, model: str, who: str) -> None:
        """Load or unload a model, written down by whom; see `ControlRoom.load`."""
        noted = await self.rollouts.noted(model, who, action)
        if action == "unload":
            await self.room.unload(model)
            return
        await self.room.load(model)
        if not noted:  # it has just come
            await self.rollouts.noted(model, who, action)

    def _operate(self, member: Member, operation: Operation) -> None:
        self._start(self._operation(member, operation), vital=False)

    async def _operation(self, member: Member, operation: Operation) -> None:
        error, kind = "", ""
        try:
            await self.change(operation.action, operation.model, operation.who or DATA_DOOR)
        except OctoserveError as problem:
            error, kind = str(problem), type(problem).__name__
        except Exception as problem:
            log.exception("%s %r", operation.action, operation.model)
            error, kind = f"{operation.action} {operation.model!r}: {problem}; try again", Unavailable.__name__
        member.send(OperationReply(operation.id, error, kind))


def fingerprint_of(settings: ServeSettings, *ports: int) -> str:
    """Of everything that a worker cannot change while it runs. A worker with another one is replaced."""
    told = settings.model_dump(
        mode="json",
        exclude={
            "state_dir", "ports_file", "admin_host", "admin_port", "admin_token", "protect_metrics", "workers",
            "grace", "settle", "scan", "hang", "model", "version_policy", "models", "rollout", "http_port",
            "grpc_port", "rollout_store", "keep_rollouts", "repository_cache",
            "repository_versions", "repository_poll",
        },
    )  # fmt: skip
    threads = {name: section.threads for name, section in settings.models.items() if section.threads}
    batching = {name: section.batching.model_dump() for name, section in settings.models.items()}
    shares = settings.admission.rules(settings.workers)  # of as many as there are
    promised = deadlines_of(settings), settings.slos(), settings.observations(), shares, caches_of(settings)
    spans = settings.spans()
    otel = sorted(pair for pair in os.environ.items() if pair[0].startswith("OTEL_")) if spans is not None else []
    fixed = (__version__, told, ports, threads, batching, spans, otel, *promised)
    return hashlib.sha256(repr(fixed).encode()).hexdigest()[:16]


def multi_model(settings: ServeSettings) -> MultiModel | None:
    """Where SageMaker puts models, if it does."""
    if settings.multi_model is None:
        return None
    return MultiModel(folder=str(settings.multi_model), repository=str(settings.repository), workers=settings.workers)


def caches_of(settings: ServeSettings) -> dict[str, CacheLimits]:
    """What a worker keeps, of the models whose answers are kept."""
    return {name: section.cache.limits() for name, section in settings.models.items() if section.cache is not None}


def rollout_store(settings: ServeSettings) -> Callable[[], Ledger]:
    """Opens what keeps rollouts. Raises SettingsError for an address that cannot be one."""
    if settings.rollout_store is None:
        return lambda: SqliteStore(settings.state_dir)
    from octoserve.control.rollout.postgres_store import PostgresStore

    store = PostgresStore(settings.rollout_store)  # connects later, in the thread that asks it first
    return lambda: store


def rollout_section(endpoint: str, settings: ServeSettings) -> RolloutSection:
    """The rollout settings of an endpoint: its model's own as a whole, else the service's."""
    section = settings.models.get(endpoint)
    return section.rollout if section is not None and section.rollout is not None else settings.rollout


def front_section(endpoint: str, settings: ServeSettings) -> BackendSection | None:
    """What an endpoint has in front of the workers; None where they draw."""
    section = rollout_section(endpoint, settings).backend
    return None if section.kind == IN_PROCESS else section


def _reached_at(host: str) -> str:
    """By whom listens at `host` can be reached from this machine, as it stands before a colon."""
    here = "127.0.0.1" if host in ("0.0.0.0", "") else "::1" if host == "::" else host
    return f"[{here}]" if ":" in here else here


def wishes_of(section: ModelSection | None, settings: ServeSettings) -> ModelWishes:
    """A model's section of the spec in the control plane's words."""
    if section is None:
        return ModelWishes(policy=parse_policy(settings.version_policy), on_new_version=settings.rollout.on_new_version)
    return ModelWishes(
        on_new_version=(section.rollout or settings.rollout).on_new_version,
        policy=parse_policy(section.version_policy or settings.version_policy),
        labels=dict(section.labels),
        threads=section.threads,
        batching=section.batching.enabled,
        max_batch_rows=section.batching.max_rows,
        cached=section.cache is not None,
    )


def admin_socket(settings: ServeSettings) -> socket.socket:
    """A listening socket for the admin API. Raises SettingsError."""
    host, port = settings.admin_host, settings.admin_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        if not is_loopback(listener.getsockname()[0]) and not (settings.admin_token or settings.security.keys):
            raise SettingsError(
                f"admin_host: {host} lets other machines in, and no token is set; set OCTOSERVE_ADMIN_TOKEN or "
                "security.keys, or leave the admin API on 127.0.0.1"
            )
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"admin_port: cannot listen on {host} port {port}: {error.strerror or error}; stop who uses it, or "
            "choose another with --admin-port (0 picks a free one)"
        ) from None
    except SettingsError:
        listener.close()
        raise
    return listener


def serve(
    settings: ServeSettings,
    on_ready: Callable[[Supervisor], None] | None = None,
    spare: Sequence[subprocess.Popen[bytes]] = (),
    strategies: Mapping[str, Strategy] | None = None,
    pairs: Callable[[Path], Pairs] | None = None,
    formats: Formats | None = None,
    consumers: Consumers | None = None,
) -> int:
    """Run a service until it is told to stop; the exit code. Raises SettingsError."""

    async def main() -> int:
        made = Supervisor(
            settings,
            on_ready=on_ready,
            spare=spare,
            strategies=strategies,
            pairs=pairs,
            formats=formats,
            consumers=consumers,
        )
        return await made.run()

    return asyncio.run(main())
