"""Spans: what became of a sampled request, and where its time went. Who takes them in is `otlp`'s business.

A request is sampled or not when its head has been read: by its `traceparent`, else by a draw. One that is not has no
span, and costs nothing from there on. A sampled one has a `Span` that it is followed by, and each span that ends is
given to a sink, which never blocks. No module here imports OpenTelemetry.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Literal, Protocol, TypeVar

from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import OctoserveError
from octoserve.core.trace_context import RANDOM, SAMPLED, TraceContext, Tracing, context_in, left_out
from octoserve.telemetry.families import Family, Sample

Kind = Literal["internal", "server", "client", "consumer", "producer"]
Value = str | int | float | bool
T = TypeVar("T")


class Sink(Protocol):
    """Takes in spans that have ended; any thread may give them."""

    def __call__(self, span: Span) -> None:
        """Keep it, or count it as dropped. Never waits, never raises."""
        ...

    def counts(self) -> Mapping[str, int]:
        """Outcome -> spans so far."""
        ...

    def close(self) -> None:
        """Give on what is left, within a bound."""
        ...


class Span:
    """One piece of work of a sampled request. Times in nanoseconds since 1970; `end` is 0 until it has ended."""

    __slots__ = (
        "attributes", "end_time", "error", "fault", "flags", "id", "kind", "links", "name", "parent", "start",
        "state", "trace", "tracer",
    )  # fmt: skip

    def __init__(self, tracer: Tracer, name: str, kind: Kind, parent: TraceContext, start: int | None = None) -> None:
        """parent: the span above it, whose `span` is 0 for a trace's first"""
        self.tracer = tracer
        self.name = name
        self.kind: Kind = kind
        self.trace = parent.trace
        self.parent = parent.span
        self.flags = parent.flags | SAMPLED
        self.state = parent.state
        self.id = tracer.draw(64) or 1
        self.start = tracer.now() if start is None else start
        self.end_time = 0
        self.attributes: dict[str, Value] = {}
        self.links: Sequence[TraceContext] = ()
        self.error = ""
        """Why it did not do what was asked; "" if it did."""
        self.fault = False
        """Whether that is the server's fault, and not who asked's."""

    @property
    def context(self) -> TraceContext:
        """As others know it."""
        return TraceContext(self.trace, self.id, self.flags, self.state)

    def headers(self) -> dict[str, str]:
        """What a request to another server carries."""
        return self.context.headers()

    def child(self, name: str, kind: Kind = "internal", start: int | None = None) -> Span:
        """A piece of this work, which begins now."""
        return Span(self.tracer, name, kind, self.context, start)

    def failed(self, reason: str, fault: bool = True) -> None:
        """It did not go well."""
        self.error, self.fault = reason, fault

    def end(self, at: int | None = None) -> None:
        """It is over; once is enough."""
        if not self.end_time:
            self.end_time = self.tracer.now() if at is None else at
            self.tracer.sink(self)


Over = Callable[[Span, OctoserveError | None], None]
"""Writes down how a request ended, in its protocol's words."""


class Unsampled:
    """In place of a span, where nothing is recorded and other servers are to know it."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def headers(self) -> dict[str, str]:
        """Of a trace that nobody records."""
        draw = self._tracer.draw
        return TraceContext(draw(128) or 1, draw(64) or 1, RANDOM).headers()


ACTIVE: ContextVar[Span | Unsampled | None] = ContextVar("octoserve_span", default=None)
"""What this thread, or task, is working on; None where tracing is off, and outside of any request."""


class Tracer:
    """Begins the spans of one process.

    clock: the data plane's; wall: nanoseconds since 1970; draw: so many random bits
    """

    def __init__(
        self,
        sink: Sink,
        tracing: Tracing,
        *,
        clock: Clock = monotonic,
        wall: Callable[[], int] = time.time_ns,
        draw: Callable[[int], int] = random.getrandbits,
    ) -> None:
        self.sink = sink
        self.now = wall
        self.draw = draw
        self._clock = clock
        self._bound = round(tracing.share * (1 << 64))
        self._parent_based = tracing.parent_based
        self.received: tuple[Span, Over] | None = None
        """The request that a door is handing to the data plane; see `handing_over`."""
        self.unsampled = Unsampled(self)

    def begin(self, headers: Mapping[str, str], name: str, kind: Kind = "server") -> Span | None:
        """The span of a request with these headers (names in lower case); None if it is not sampled.

        The draw is that of `TraceIdRatioBased`, by the last 64 bits of the trace's id: whoever samples as large a
        share of the same traces by it samples the same ones.
        """
        if self._parent_based and left_out(headers):
            return None
        parent = context_in(headers)
        if parent is None:
            low = self.draw(64)
            if low >= self._bound:
                return None
            return Span(self, name, kind, TraceContext(self.draw(64) << 64 | low or 1, 0, RANDOM))
        wanted = parent.sampled if self._parent_based else parent.trace & (1 << 64) - 1 < self._bound
        return Span(self, name, kind, parent) if wanted else None

    def root(self, name: str, links: Sequence[TraceContext], kind: Kind = "internal") -> Span:
        """Work of its own, in a trace of its own, that is due to others."""
        span = Span(self, name, kind, TraceContext(self.draw(128) or 1, 0, RANDOM))
        span.links = links
        return span

    def at(self, when: float) -> int:
        """A time of the data plane's clock, in nanoseconds since 1970."""
        return self.now() + round((when - self._clock()) * 1e9)

    def family(self) -> Family:
        """What became of the spans, for a registry's `reading`."""
        samples = tuple(Sample((outcome,), float(count)) for outcome, count in self.sink.counts().items())
        return Family("octoserve_spans_total", "counter", "Spans that have ended.", ("outcome",), (), samples)

    @contextlib.contextmanager
    def handing_over(self, span: Span, over: Over) -> Iterator[None]:
        """Within it a door hands a request to the data plane, or has it refused; on the event loop, without awaiting.

        Whoever takes them sets `received` to None, and ends the span. What nobody took ends here.
        """
        self.received = received = span, over
        try:
            yield
        finally:
            if self.received is received:
                self.received = None
                span.end()


@contextlib.contextmanager
def active(span: Span | Unsampled) -> Iterator[None]:
    """Within it, this is what the thread works on: logs name it, other servers are told of it."""
    token = ACTIVE.set(span)
    try:
        yield
    finally:
        ACTIVE.reset(token)


@contextlib.contextmanager
def part(name: str, kind: Kind = "internal") -> Iterator[Span | Unsampled | None]:
    """A piece of what this thread works on, where that is sampled; given, since a request may be sent with it."""
    above = ACTIVE.get()
    if not isinstance(above, Span):
        yield above
        return
    span = above.child(name, kind)
    try:
        with active(span):
            yield span
    except BaseException as error:
        span.failed(f"{type(error).__name__}: {error}"[:200])
        raise
    finally:
        span.end()


def within(name: str, work: Callable[..., T], *arguments: object) -> T:
    """What `work` gives; a piece of what this thread works on, where that is sampled."""
    if ACTIVE.get() is None:
        return work(*arguments)
    with part(name):
        return work(*arguments)


def outgoing() -> dict[str, str]:
    """Headers by which a request to another server is part of what this thread works on; empty where tracing is off."""
    span = ACTIVE.get()
    return {} if span is None else span.headers()
