"""HTTP/1.1 connections: heads, bodies, limits and time-outs. Knows no route.

A client on a keep-alive connection sends the same head again and again, so a parsed head is kept by its
bytes and found again with one dictionary look-up; llhttp (httptools), strict, parses each new one. A
connection answers one request at a time; pipelined ones wait in its buffer. See
docs/decisions/0001-http-front-end.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Protocol, cast

from octoserve.patterns.online.http.head import MAX_HEAD, BadRequest, ChunkedBody, Head, parse_head
from octoserve.patterns.online.settings import Limits

log = logging.getLogger(__name__)

_MAX_HEADS = 1024
_PIPELINE_BUFFER = 64 << 10
_ALLOWANCE = 4 << 10
"""Bytes that a connection may hold uncounted."""
MIN_RATE = 64 << 10
"""Bytes a second that a client must keep up to be given more than `receive_timeout` for a big body or answer."""
LINGER_SECONDS = 2.0
SWEEP_SLICE = 500

_REASONS = {
    200: "OK", 202: "Accepted", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict", 411: "Length Required",
    413: "Content Too Large", 415: "Unsupported Media Type", 417: "Expectation Failed", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
    503: "Service Unavailable", 504: "Gateway Timeout", 507: "Insufficient Storage",
}  # fmt: skip


class Application(Protocol):
    """What answers the requests."""

    def route(self, head: Head) -> None:
        """Set `head.handler` (and `binding`). Called once for each distinct head."""
        ...

    def error_body(self, status: int, message: str) -> bytes:
        """The body of an error that the connection itself answers."""
        ...

    def cut(self, reason: str) -> None:
        """A connection or request was cut, for the metrics."""
        ...


class Http1Server:
    """Protocol factory, and the state that connections share."""

    def __init__(self, application: Application, limits: Limits, clock: Callable[[], float]) -> None:
        self.application = application
        self.limits = limits
        self.connections: set[Connection] = set()
        self.lingering: dict[asyncio.Transport, float] = {}
        self.heads: dict[bytes, Head] = {}
        self.buffered = 0
        self.draining = False
        self.now = clock()
        """Coarse time: `sweep` moves it on, so that a request does not ask the clock."""
        self._clock = clock
        self.date = b""
        self._stamp()

    def __call__(self) -> Connection:
        return Connection(self)

    def _stamp(self) -> None:
        self.date = f"\r\ndate: {formatdate(usegmt=True)}\r\n\r\n".encode()

    def sweep(self) -> None:
        """Cut what is too slow or too long idle; called about once a second."""
        self.now = now = self._clock()
        self._stamp()
        self._check_times(list(self.connections))
        for transport, since in list(self.lingering.items()):
            if now - since > LINGER_SECONDS:
                transport.abort()

    def _check_times(self, connections: list[Connection]) -> None:
        """A slice in each tick of the loop: thousands of connections would hold up what they ask for."""
        for connection in connections[:SWEEP_SLICE]:
            if connection in self.connections:
                connection.check_time(self.now)
        if len(connections) > SWEEP_SLICE:
            asyncio.get_running_loop().call_soon(self._check_times, connections[SWEEP_SLICE:])

    def forget_heads(self) -> None:
        """What was worked out for a head may hold no more: each is routed anew."""
        self.heads.clear()

    def drain(self) -> None:
        """Every connection closes behind its next answer."""
        self.draining = True
        for connection in self.connections:
            connection.close_after_answer()

    def close_idle(self) -> None:
        """Close connections that no request is using."""
        for connection in list(self.connections):
            if not connection.in_flight:
                connection.transport.close()

    @property
    def in_flight(self) -> int:
        """Requests being received or answered."""
        return sum(1 for connection in self.connections if connection.in_flight)


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_body",
        "_body_have",
        "_body_need",
        "_buffer",
        "_chunks",
        "_close_after",
        "_head",
        "_held",
        "_last",
        "_paused",
        "_reading_paused",
        "_server",
        "_since",
        "_unread",
        "_unsent_left",
        "_unsent_since",
        "busy",
        "call",
        "transport",
    )  # fmt: skip

    def __init__(self, server: Http1Server) -> None:
        self._server = server
        self.transport: asyncio.Transport
        self.busy = False
        self.call: Any = None
        """The data plane's call in flight, cancelled if the client goes away."""
        self._buffer = b""
        self._head: Head | None = None
        self._body: list[bytes] = []
        self._body_have = 0
        self._body_need = 0
        self._chunks: ChunkedBody | None = None
        self._held = 0
        self._last = 0.0
        self._close_after = False
        self._since: float | None = None
        self._paused = False
        self._reading_paused = False
        self._unread = False
        self._unsent_since = 0.0
        self._unsent_left = 0

    # --- transport ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        server = self._server
        server.connections.add(self)
        self._last = server.now
        self._close_after = server.draining  # who came while the doors closed gets one answer
        if len(server.connections) > server.limits.max_connections:
            self._refuse(BadRequest(503, "too many connections; try again later", "max_connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._release()
        call, self.call = self.call, None
        if call is not None:
            call.cancel()
        if self._chunks is not None:
            self._chunks.close()
            self._chunks = None

    def pause_writing(self) -> None:
        self._paused = True
        self._unsent_since = self._last
        self._unsent_left = self.transport.get_write_buffer_size()
        self._pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self._resume()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    @property
    def in_flight(self) -> bool:
        """Whether a request is being received or answered, or an answer has not left yet."""
        return self.busy or self._since is not None or self.transport.get_write_buffer_size() > 0

    def check_time(self, now: float) -> None:
        """Cut a client that sends or reads too slowly, or is idle too long."""
        limits = self._server.limits
        left = self.transport.get_write_buffer_size()
        if left and self._reads_too_slowly(now, left):
            self._server.application.cut("not_reading")
            self.transport.abort()
        elif self.transport.is_closing():
            return
        elif self._since is not None and now - self._since > limits.receive_timeout + self._received() / MIN_RATE:
            self._refuse(BadRequest(408, f"the request was not whole after {now - self._since:.0f} s", "slow"))
        elif not self.in_flight and now - self._last > limits.idle_timeout:
            self.transport.close()

    def _received(self) -> int:
        return self._chunks.size if self._chunks is not None else self._body_have

    def _reads_too_slowly(self, now: float, left: int) -> bool:
        """Whether the client has taken less than it had to of what waits for it, since its last answer.

        Also of an answer too small to pause anything, and of one that the connection is to close behind.
        """
        if self._unsent_since != self._last:
            self._unsent_since = self._last
            self._unsent_left = left
        elif left > self._unsent_left:
            self._unsent_left = left
        taken = self._unsent_left - left
        return now - self._unsent_since > self._server.limits.receive_timeout + taken / MIN_RATE

    def close_after_answer(self) -> None:
        """Answer once more, then close."""
        self._close_after = True

    # --- receiving ------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.busy:
            self._wait_behind(data)
            return
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        try:
            if self._head is None:
                self._receive_head(data)
            elif self._chunks is not None:
                self._receive_chunks(data)
            else:
                self._receive_body(data)
        except BadRequest as error:
            self._refuse(error)

    def _wait_behind(self, data: bytes) -> None:
        """Keep what came ahead of an answer. Over the budget it is dropped, and the answer says close."""
        if self._unread:
            return
        self._buffer += data
        if len(self._buffer) > _ALLOWANCE:
            try:
                self._hold(self._held + len(data))
            except BadRequest as error:
                self._server.application.cut(error.reason)
                self._buffer = b""
                self._close_after = self._unread = True
                self._pause_reading()
                return
        if len(self._buffer) > _PIPELINE_BUFFER:
            self._pause_reading()

    def _receive_head(self, data: bytes) -> None:
        server = self._server
        at = data.find(b"\r\n\r\n") + 4
        if at == 3:
            if len(data) > MAX_HEAD:
                raise BadRequest(431, f"the request head is longer than {MAX_HEAD} bytes", "head_too_large")
            if len(data) > _ALLOWANCE:
                self._hold(len(data))
            self._buffer = data
            if self._since is None:
                self._since = server.now
            return
        raw = data[:at]
        head = server.heads.get(raw)
        if head is None:
            head = self._new_head(raw)
        end = at + head.content_length
        if len(data) == end and not head.chunked:
            self._dispatch(head, data[at:])
            return
        self._head = head
        if head.chunked:
            self._chunks = ChunkedBody(server.limits.max_body)
            self._continue(head)
            self._receive_chunks(data[at:])
        elif len(data) > end:
            if len(data) - end > _ALLOWANCE:
                self._hold(len(data) - end)
            self._buffer = data[end:]
            self._dispatch(head, data[at:end])
        else:
            self._body_need = head.content_length
            self._continue(head)
            self._receive_body(data[at:])

    def _new_head(self, raw: bytes) -> Head:
        if len(raw) > MAX_HEAD:
            raise BadRequest(431, f"the request head is longer than {MAX_HEAD} bytes", "head_too_large")
        server = self._server
        head = parse_head(raw)
        if head.content_length > server.limits.max_body:
            raise BadRequest(
                413,
                f"the body has {head.content_length} bytes, at most {server.limits.max_body} are taken",
                "too_large",
            )
        server.application.route(head)
        if not head.chunked and not head.once and len(raw) <= 4096:
            if len(server.heads) >= _MAX_HEADS:
                server.heads.clear()
            server.heads[raw] = head
        return head

    def _continue(self, head: Head) -> None:
        if head.expects_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _receive_body(self, data: bytes) -> None:
        if self._since is None:
            self._since = self._server.now
        have = self._body_have + len(data)
        if have < self._body_need:
            if have > _ALLOWANCE:
                self._hold(have)
            self._body.append(data)
            self._body_have = have
            return
        extra = have - self._body_need
        if extra:
            self._buffer = data[-extra:]
            data = data[:-extra]
        self._body.append(data)
        head, body = self._head, b"".join(self._body)
        assert head is not None
        self._body.clear()
        self._body_have = 0
        self._dispatch(head, body)

    def _receive_chunks(self, data: bytes) -> None:
        if self._since is None:
            self._since = self._server.now
        chunks, head = self._chunks, self._head
        assert chunks is not None
        assert head is not None
        chunks.feed(data)
        if chunks.size > _ALLOWANCE:
            self._hold(chunks.size)
        if chunks.complete:
            self._chunks = None
            if chunks.more:
                self._close_after = True  # what follows a chunked body in the same segment is not read
            body = chunks.body()
            chunks.close()
            self._dispatch(head, body)

    def _hold(self, total: int) -> None:
        """Count what this connection holds, `total` bytes by now, against what all may hold together."""
        server = self._server
        more = total - self._held
        if more > 0:
            if server.buffered + more > server.limits.max_buffered:
                raise BadRequest(503, "the server holds as many request bodies as it may; try again", "max_buffered")
            self._held = total
            server.buffered += more

    def _release(self) -> None:
        if self._held:
            self._server.buffered -= self._held
        self._held = 0

    def _dispatch(self, head: Head, body: bytes) -> None:
        self._head = head
        self._since = None
        self.busy = True
        try:
            head.handler(self, head, body)
        except Exception:
            log.exception("a request handler failed")
            if self.busy:
                self.respond_error(500, "internal error; the server's log has the reason")

    # --- answering ------------------------------------------------------------------------------------

    def respond_json(self, body: bytes) -> None:
        """200 with a JSON body: the hot path."""
        self._write(b"%b%d%b%b" % (_JSON_OK, len(body), self._server.date, body))

    def respond(self, status: int, body: bytes, headers: str = "content-type: application/json") -> None:
        """Any other answer; `headers` are CRLF-separated lines."""
        reason = _REASONS.get(status, "Unknown")
        start = f"HTTP/1.1 {status} {reason}\r\n{headers}\r\ncontent-length: {len(body)}".encode("latin-1")
        if self._head is not None and self._head.method == "HEAD":
            body = b""  # RFC 9110, section 9.3.2: the client would take it for the start of the next answer
        self._write(b"%b%b%b" % (start, self._server.date, body))

    def respond_error(self, status: int, message: str, headers: str = "") -> None:
        """An error in the application's own shape."""
        lines = "content-type: application/json" + (f"\r\n{headers}" if headers else "")
        self.respond(status, self._server.application.error_body(status, message), lines)

    def _write(self, data: bytes) -> None:
        transport, head = self.transport, self._head
        self.busy = False
        self.call = None
        self._head = None
        self._last = self._server.now
        if self._held:
            self._release()
            if len(self._buffer) > _ALLOWANCE:  # it goes on being held, so it is not refused
                self._held = len(self._buffer)
                self._server.buffered += self._held
        if transport.is_closing():
            return
        if head is not None and head.keep_alive and not self._close_after:
            transport.write(_announce(data, b"keep-alive") if head.http10 else data)
            if self._buffer or self._reading_paused:
                asyncio.get_running_loop().call_soon(self._resume)
        else:
            transport.write(_announce(data, b"close"))
            self._close()

    def _resume(self) -> None:
        if self.busy or self._paused or self.transport.is_closing():
            return  # nobody is answered ahead of a client that does not read
        self._resume_reading()
        if self._buffer:
            self.data_received(b"")

    def _refuse(self, error: BadRequest) -> None:
        """Answer a request that cannot be read on, and close."""
        self._server.application.cut(error.reason)
        self._close_after = True
        self._since = None
        self._buffer = b""
        self._unread = True
        self.respond_error(error.status, str(error))

    def _close(self) -> None:
        transport = self.transport
        if not self._unread or not transport.can_write_eof():
            transport.close()
            return
        self._resume_reading()
        transport.write_eof()
        transport.set_protocol(_Lingering(self._server, transport))
        self.connection_lost(None)


class _Lingering(asyncio.Protocol):
    """Takes in what a refused client still sends: closing with unread bytes would make the kernel reset the
    connection, and the client could lose the answer that says why (RFC 9112, section 9.6)."""

    def __init__(self, server: Http1Server, transport: asyncio.Transport) -> None:
        self._server = server
        self._transport = transport
        server.lingering[transport] = server.now

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.lingering.pop(self._transport, None)


def _announce(data: bytes, connection: bytes) -> bytes:
    return data.replace(b"\r\n", b"\r\nconnection: %b\r\n" % connection, 1)


_JSON_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "
