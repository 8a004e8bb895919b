"""The process that runs the loop. What it cannot survive, its supervisor does: see `supervisor`.

A run of the model has a deadline that the kernel keeps: SIGALRM's default action ends the process, also one that hangs
in native code and never comes back to Python.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from octoserve.codecs.json_rows import JsonRows
from octoserve.codecs.request_rows import OpenInferenceRows, RawRows
from octoserve.connectors.queues.protocol import Fenced, QueueSink, QueueSource
from octoserve.core.errors import NotFound, OctoserveError, SettingsError, Unavailable
from octoserve.patterns.message_queue import opening
from octoserve.patterns.message_queue.ledger import Ledger
from octoserve.patterns.message_queue.loop import Limits, Loop, Stopped, Work
from octoserve.patterns.message_queue.model import Found, Model, find
from octoserve.patterns.message_queue.opening import Kinds
from octoserve.patterns.message_queue.outcome import Policy
from octoserve.patterns.message_queue.promise import promise
from octoserve.patterns.message_queue.scoring import Decode
from octoserve.patterns.message_queue.settings import QueueSettings, WorkerConfig, owner_of
from octoserve.patterns.message_queue.statistics import Statistics
from octoserve.telemetry.metrics import Registry

log = logging.getLogger(__name__)

DONE, FAILED, ASKED_WRONGLY, AWAY, FENCED = 0, 1, 2, 75, 76
"""Exit codes. The last two: start another."""
_BEAT = 1.0
_PATIENCE = 5.0
"""Seconds that a supervisor which does not listen is waited for, where the next report may not be made."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker tells its supervisor, every second and at its end.

    ready: it takes messages; promise: what source and sink give; error: why it ends, if that was not wanted
    """

    snapshot: bytes = b""
    ready: bool = False
    promise: str = ""
    error: str = ""


class Link:
    """The worker's end of the socket to its supervisor. A supervisor that is gone is a wish to stop."""

    def __init__(self, end: socket.socket, stop: threading.Event) -> None:
        self._end = end
        self._send = msgspec.msgpack.Encoder().encode
        self._told = -_BEAT
        threading.Thread(target=self._listen, args=(stop,), daemon=True).start()

    def _listen(self, stop: threading.Event) -> None:
        with contextlib.suppress(OSError):
            self._end.recv(1)
        stop.set()

    def tell(self, report: Report, patience: float = _PATIENCE) -> None:
        """One that does not fit, after `patience`, is left out: the next one says as much."""
        with contextlib.suppress(OSError):
            if patience:
                room = select.poll()
                room.register(self._end, select.POLLOUT)
                room.poll(patience * 1000)
            self._end.send(self._send(report), socket.MSG_DONTWAIT)

    def beat(self, registry: Registry, now: bool) -> None:
        """The figures, once a second or now."""
        at = time.monotonic()
        if now or at - self._told >= _BEAT:
            self._told = at
            self.tell(Report(snapshot=registry.snapshot(), ready=True), _PATIENCE if now else 0.0)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """The process is ended by SIGALRM if this takes longer."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def decoder(model: Model, settings: QueueSettings) -> Decode:
    """How payloads become the model's inputs. Raises SettingsError."""
    if settings.payload == "open-inference":
        return OpenInferenceRows(model.signature).decode
    if settings.payload == "raw":
        return RawRows(model.signature).decode
    features: Mapping[str, tuple[str, ...]] = model.settings.features or {}
    if settings.columns:
        if len(model.signature.inputs) != 1:
            raise SettingsError("columns: for models of one input; this one's are found by their names")
        features = {"": settings.columns}
    missing = settings.missing or model.settings.missing or "refuse"
    return JsonRows(model.signature, features, missing).decode


def run_worker(config: WorkerConfig, kinds: Kinds, end: socket.socket) -> int:
    """The whole life of a worker; its exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    link = Link(end, stop)
    try:
        _work(config, kinds, link, stop)
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
    return DONE


def _work(config: WorkerConfig, kinds: Kinds, link: Link, stop: threading.Event) -> None:
    settings = msgspec.structs.replace(config.settings, worker=config.index)
    found: Found = find(Path(settings.repository), settings.model, settings.version, kinds.runtimes)
    registry = Registry()
    source, sink = opening.source(kinds, settings), opening.sink(kinds, settings)
    with ThreadPoolExecutor(1, "run") as executor:
        model = Model(found, kinds.runtimes, registry, executor)
        owner = f"{owner_of(os.getpid())}/{uuid.uuid4().hex[:8]}"
        ledger = opening.ledger(kinds, settings, source.name, owner, config.ends)
        loop = make_loop(
            settings, model, source, sink, ledger, registry, owner, stop, lambda now: link.beat(registry, now)
        )
        model.tick = loop.keep
        link.tell(Report(promise=str(promise(source.traits, sink.traits))))
        try:
            loop.run()
        finally:
            link.tell(Report(snapshot=registry.snapshot()))
            ledger.close()


def make_loop(
    settings: QueueSettings,
    model: Model,
    source: QueueSource,
    sink: QueueSink,
    ledger: Ledger,
    registry: Registry,
    owner: str,
    stop: threading.Event,
    beat: Callable[[bool], None],
) -> Loop:
    """The loop of these settings."""
    work = Work(
        scorer=model,
        decode=decoder(model, settings),
        outputs=model.signature.outputs,
        policy=Policy(settings.max_attempts, settings.retry_delay),
        guard=lambda: deadline(settings.run_timeout),
    )
    limits = Limits(settings.batch_rows, settings.batch_bytes, settings.batch_seconds, settings.until_idle)
    statistics = Statistics(registry, model.name, time.time)
    return Loop(source, sink, ledger, work, limits, statistics, lane=owner, stop=stop.is_set, beat=beat)
