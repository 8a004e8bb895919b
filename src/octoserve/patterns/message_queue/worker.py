"""The process that runs the loop. What it cannot survive, its supervisor does: see `supervisor`.

A run of the model has a deadline that the kernel keeps: SIGALRM's default action ends the process, also one that hangs
in native code and never comes back to Python.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import select
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from octoserve.connectors.queues.protocol import Fenced, QueueSink, QueueSource
from octoserve.control.rollout.following import Route
from octoserve.core.errors import NotFound, OctoserveError, SettingsError, Unavailable
from octoserve.patterns.message_queue import opening
from octoserve.patterns.message_queue.crew import Crew
from octoserve.patterns.message_queue.cutovers import Cutovers
from octoserve.patterns.message_queue.following import Followed
from octoserve.patterns.message_queue.ledger import Ledger
from octoserve.patterns.message_queue.loop import Limits, Loop, Stopped, Work
from octoserve.patterns.message_queue.opening import Kinds
from octoserve.patterns.message_queue.outcome import Policy
from octoserve.patterns.message_queue.promise import promise
from octoserve.patterns.message_queue.request_work import loop_of_requests
from octoserve.patterns.message_queue.settings import REQUESTS, QueueSettings, WorkerConfig, owner_of
from octoserve.patterns.message_queue.statistics import Statistics
from octoserve.patterns.message_queue.traced import Traced
from octoserve.patterns.message_queue.waiting import deadline
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.tracing import Tracer

if TYPE_CHECKING:
    from octoserve.patterns.message_queue.schemas import Schemas

log = logging.getLogger(__name__)

DONE, FAILED, ASKED_WRONGLY, AWAY, FENCED = 0, 1, 2, 75, 76
"""Exit codes. The last two: start another."""
_BEAT = 1.0
LARGEST = 1 << 20
"""Bytes of a message between a worker and its supervisor."""
_YOUNG = 50_000
"""Objects that may come before the collector looks at them; Python's own choice is 700."""
_PATIENCE = 5.0
"""Seconds that a supervisor which does not listen is waited for, where the next report may not be made."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells its supervisor, every second and at its end.

    ready: it takes messages; promise: what source and sink give; error: why it ends, if that was not wanted
    followed: of a queue that follows a service; running: the role of the arm that runs from now on, None for no change
    """

    snapshot: bytes = b""
    ready: bool = False
    promise: str = ""
    error: str = ""
    followed: Followed | None = None
    running: str | None = None


class Link:
    """The worker's end of the socket to its supervisor. A supervisor that is gone is a wish to stop."""

    def __init__(self, end: socket.socket, stop: threading.Event) -> None:
        self._end = end
        self.hear: Callable[[Route], None] = lambda route: None
        """Told what the service says, in a thread of its own."""
        self.followed: Callable[[str], Followed] | None = None
        self._running = ""
        self._send = msgspec.msgpack.Encoder().encode
        self._told = -_BEAT
        threading.Thread(target=self._listen, args=(stop,), daemon=True).start()

    def _listen(self, stop: threading.Event) -> None:
        read = msgspec.msgpack.Decoder(Route).decode
        with contextlib.suppress(OSError):
            while told := self._end.recv(LARGEST):
                self.hear(read(told))
        stop.set()

    def tell(self, report: Report, patience: float = _PATIENCE) -> bool:
        """One that finds no room in time is left out: the next one says as much. Whether it could ever fit."""
        try:
            if patience:
                room = select.poll()
                room.register(self._end, select.POLLOUT)
                room.poll(patience * 1000)
            self._end.send(self._send(report), socket.MSG_DONTWAIT)
        except OSError as error:
            return error.errno != errno.EMSGSIZE
        return True

    def beat(self, registry: Registry, now: bool) -> None:
        """The figures, once a second or now."""
        at = time.monotonic()
        if now or at - self._told >= _BEAT:
            self._told = at
            patience = _PATIENCE if now else 0.0
            self.tell(Report(snapshot=registry.snapshot(), ready=True), patience)
            followed = self.followed(self._running) if self.followed is not None else None
            if followed is not None and not self.tell(Report(followed=followed), patience):
                log.error("what was seen is too much to tell, by too many segments: it is left out")
                self.tell(Report(followed=msgspec.structs.replace(followed, seen=())), patience)

    def runs(self, role: str) -> None:
        """A run of this arm begins; "" when it is over."""
        self._running = role
        self.tell(Report(running=role))


def run_worker(config: WorkerConfig, kinds: Kinds, end: socket.socket, tracer: Tracer | None = None) -> int:
    """The whole life of a worker; its exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    link = Link(end, stop)
    try:
        _work(config, kinds, link, stop, tracer)
    except Stopped as error:
        log.warning("%s", error)
    except (SettingsError, NotFound) as error:
        link.tell(Report(error=str(error)))
        return ASKED_WRONGLY
    except Fenced as error:
        link.tell(Report(error=str(error)))
        return FENCED
    except Unavailable as error:
        link.tell(Report(error=str(error)))
        return AWAY
    except OctoserveError as error:
        link.tell(Report(error=str(error)))
        return FAILED
    finally:
        if tracer is not None:
            tracer.sink.close()
    return DONE


def _work(config: WorkerConfig, kinds: Kinds, link: Link, stop: threading.Event, tracer: Tracer | None) -> None:
    settings = msgspec.structs.replace(config.settings, worker=config.index)
    registry = Registry()
    if tracer is not None:
        registry.reading(tracer.family)
    with ThreadPoolExecutor(1, "run") as executor:
        crew = None
        schemas = opening.schemas(settings)
        if settings.payload != REQUESTS:
            crew = _crew(settings, kinds, registry, executor, config.route, schemas)
        source, sink = opening.source(kinds, settings), opening.sink(kinds, settings)
        owner = f"{owner_of(os.getpid())}/{uuid.uuid4().hex[:8]}"
        ledger = opening.ledger(kinds, settings, source.name, owner, config.ends)
        cutovers = Cutovers(Path(settings.state_dir), source.name)
        traced = Traced(tracer, source.name, source.traits.system, settings.model) if tracer is not None else None

        def beat(now: bool) -> None:
            link.beat(registry, now)

        if crew is None:
            loop = loop_of_requests(
                settings, kinds, registry, executor, source, sink, ledger, owner, stop.is_set, beat, tracer, traced
            )
        else:
            follows = config.route is not None
            loop = make_loop(
                settings, crew, source, sink, ledger, registry, owner, stop, beat, link, follows, cutovers, traced,
                schemas,
            )  # fmt: skip
            crew.models.tick = loop.keep
            if schemas is not None:
                schemas.tick = loop.keep
        link.tell(Report(promise=str(promise(source.traits, sink.traits))))
        # What is here now stays, and a micro-batch has some thousand objects that hold no cycle: the collector, which
        # would take a fifth of the time, need not walk them again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG)
        try:
            loop.run()
        finally:
            link.tell(Report(snapshot=registry.snapshot()))
            ledger.close()
            cutovers.close()


def _crew(
    settings: QueueSettings,
    kinds: Kinds,
    registry: Registry,
    executor: Executor,
    route: Route | None,
    schemas: Schemas | None,
) -> Crew:
    try:
        read = schemas.read if schemas is not None else None
        return Crew(settings, kinds.runtimes, registry, executor, route, read=read)
    except NotFound as error:
        if route is None:
            raise
        raise Unavailable(f"{error}; the service answers with it") from None  # nobody asked wrongly: it may come


def make_loop(
    settings: QueueSettings,
    crew: Crew,
    source: QueueSource,
    sink: QueueSink,
    ledger: Ledger,
    registry: Registry,
    owner: str,
    stop: threading.Event,
    beat: Callable[[bool], None],
    link: Link,
    follows: bool,
    cutovers: Cutovers,
    traced: Traced | None = None,
    schemas: Schemas | None = None,
) -> Loop:
    """The loop of these settings."""

    def turn() -> None:
        if crew.turn():
            beat(True)

    if follows:
        link.hear, link.followed = crew.hear, crew.followed
    statistics = Statistics(registry, settings.model, time.time, settings.freshness)
    runs = link.runs if follows else lambda role: None
    routed = crew.routed(lambda: deadline(settings.run_timeout), statistics.failed_by, runs)
    work = Work(
        model=crew.models,
        decode=crew.voice(crew.models.version).decode,
        outputs=crew.outputs,
        policy=Policy(settings.max_attempts, settings.retry_delay),
        score=routed.score,
        ready=None if schemas is None else lambda messages: schemas.ready([message.value for message in messages]),
    )
    limits = Limits(settings.batch_rows, settings.batch_bytes, settings.batch_seconds, settings.until_idle)
    return Loop(
        source, sink, ledger, work, limits, statistics, lane=owner, stop=stop.is_set, beat=beat,
        turns=crew.turns if follows else lambda: False,
        turn=turn if follows else lambda: None,
        note=lambda messages: cutovers.note(messages, crew.scored_by()),
        traced=traced,
    )  # fmt: skip
