"""Spans on their way to an OTLP collector: the only module that imports OpenTelemetry.

What ended waits in a queue of bounded length, and a thread of its own sends it. A full queue drops the newest and
counts it; a collector that is away, slow or hung costs memory for the queue and nothing else. The OTEL_* variables of
exporter, batching and resource mean what they mean to OpenTelemetry's SDK.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from octoserve import __version__
from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import SettingsError
from octoserve.core.trace_context import TraceContext, Tracing
from octoserve.telemetry.tracing import Span, Tracer

log = logging.getLogger(__name__)

QUEUE, BATCH, DELAY = 2048, 512, 5.0
"""Spans that wait, spans of one request to the collector, seconds between two: the SDK's own defaults."""
CLOSE_SECONDS = 1.0
"""That the end of a process waits for the collector."""
COMPLAINT_SECONDS = 60.0
_PATH = "/v1/traces"


def check() -> None:
    """Raises SettingsError where OpenTelemetry is not installed. Imports nothing."""
    try:
        found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise SettingsError("tracing: OpenTelemetry is not installed here: pip install 'octoserve[otel]'")


def tracer_of(tracing: Tracing, process: str) -> Tracer:
    """What begins a process's spans, and sends them. process: who speaks, e.g. `worker 0`. Raises SettingsError."""
    check()
    return Tracer(Exporter(tracing, process), tracing)


class Exporter:
    """See the module, and `tracing.Sink`."""

    def __init__(self, tracing: Tracing, process: str, sender: Any = None) -> None:
        """sender: an SDK's SpanExporter, in place of the one of OTLP by HTTP"""
        self._otel = _OpenTelemetry(tracing, process)
        self._most = _number("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE)
        self._batch = min(_number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH), self._most)
        self._delay = _number("OTEL_BSP_SCHEDULE_DELAY", int(DELAY * 1000)) / 1000
        self._sender = sender or self._otel.sender(tracing)
        self._queue: deque[Span] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._exported = self._dropped = self._failed = 0
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def __call__(self, span: Span) -> None:
        """See `Sink.__call__`."""
        with self._lock:
            if len(self._queue) >= self._most or self._closing:
                self._dropped += 1
                return
            self._queue.append(span)
            full = len(self._queue) >= self._batch
        if full:
            self._wake.set()

    def counts(self) -> Mapping[str, int]:
        """See `Sink.counts`."""
        with self._lock:
            return {"exported": self._exported, "dropped": self._dropped, "failed": self._failed}

    def close(self) -> None:
        """See `Sink.close`; what has not left by then is dropped, and counted."""
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)
        with self._lock:
            self._dropped += len(self._queue)
            self._queue.clear()
        if self._thread.is_alive():
            log.warning("spans were dropped: the collector did not take them within %g s", CLOSE_SECONDS)
        self._sender.shutdown()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._delay)
            self._wake.clear()
            closing = self._closing
            while spans := self._take():
                self._send(spans)
            if closing:
                return

    def _take(self) -> list[Span]:
        with self._lock:
            return [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]

    def _send(self, spans: Sequence[Span]) -> None:
        try:
            sent = self._sender.export([self._otel.readable(span) for span in spans]).name == "SUCCESS"
        except Exception as error:
            log.warning("spans could not be sent: %s", error)
            sent = False
        with self._lock:
            self._exported += len(spans) if sent else 0
            self._failed += 0 if sent else len(spans)


def _number(variable: str, default: int) -> int:
    """Raises SettingsError."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise SettingsError(f"{variable}: a whole number of 1 or more wanted, {text!r} came")
    return int(text)


class _Seldom(logging.Filter):
    """One complaint a minute: a collector that is away has one for each request to it."""

    def __init__(self, clock: Clock = monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._last = -COMPLAINT_SECONDS

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter.filter`."""
        now = self._clock()
        if now - self._last < COMPLAINT_SECONDS:
            return False
        self._last = now
        return True


class _OpenTelemetry:
    """The SDK, and our spans as its own."""

    def __init__(self, tracing: Tracing, process: str) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._api = trace
        self._span = ReadableSpan
        told = {"service.instance.id": f"{os.uname().nodename}/{process}/{os.getpid()}"}
        if tracing.service:
            told["service.name"] = tracing.service
        elif not _named(os.environ):
            told["service.name"] = "octoserve"
        self._resource = Resource.create(told)
        self._scope = InstrumentationScope("octoserve", __version__)
        self._kinds = {kind.name.lower(): kind for kind in trace.SpanKind}

    def sender(self, tracing: Tracing) -> Any:
        """What sends spans by HTTP, as protobuf."""
        from opentelemetry.exporter.otlp.proto.http import trace_exporter

        logging.getLogger(trace_exporter.__name__).addFilter(_Seldom())
        if not tracing.endpoint:
            return trace_exporter.OTLPSpanExporter()
        place = tracing.endpoint.rstrip("/")
        return trace_exporter.OTLPSpanExporter(endpoint=place if place.endswith(_PATH) else place + _PATH)

    def _context(self, context: TraceContext, remote: bool = False) -> Any:
        api = self._api
        state = api.TraceState.from_header([context.state]) if context.state else None
        return api.SpanContext(context.trace, context.span, remote, api.TraceFlags(context.flags), state)

    def readable(self, span: Span) -> Any:
        """A span that has ended, as the SDK has it."""
        api = self._api
        parent = TraceContext(span.trace, span.parent, span.flags, span.state) if span.parent else None
        attributes = dict(span.attributes)
        if span.error:
            attributes.setdefault("error.type", span.error)
        status = api.Status(api.StatusCode.ERROR, span.error) if span.fault else api.Status()
        return self._span(
            name=span.name,
            context=self._context(span.context),
            parent=self._context(parent, span.kind in ("server", "consumer")) if parent is not None else None,
            resource=self._resource,
            attributes=attributes,
            links=[api.Link(self._context(link)) for link in span.links],
            kind=self._kinds[span.kind],
            status=status,
            start_time=span.start,
            end_time=max(span.end_time, span.start),
            instrumentation_scope=self._scope,
        )


def _named(environ: Mapping[str, str]) -> bool:
    """Whether the variables name the service."""
    attributes = environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")
    return bool(environ.get("OTEL_SERVICE_NAME")) or any(a.strip().startswith("service.name=") for a in attributes)
