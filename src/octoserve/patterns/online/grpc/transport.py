"""gRPC over HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md): the calls on one connection, in callbacks.

A handler is a plain function, called while the read that completed its request is handled; it answers
then or later through its `GrpcCall`. No task, future or queue is made for a call, and a unary call that
meets no obstacle costs one object, one dictionary entry and two `struct` packs.

May not live here: messages' meaning (protobuf), admission, deadlines' enforcement, metrics. A handler
reads `call.deadline` and spends it; the transport only bounds how long a request may take to arrive.
"""

from __future__ import annotations

import logging
import re
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final, cast

from octoserve.security.caller import Caller

from . import http2_frames as h2
from .http2 import Http2Connection
from .http2_headers import Field, declared_length, literal_field
from .http2_stream import Http2Limits, Stream

log = logging.getLogger(__name__)

# Status codes that the transport itself answers (grpc/doc/statuscodes.md).
OK: Final = 0
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

_PREFIX: Final = Struct(">BI")
_PREFIX_BYTES: Final = 5
_RESPONSE: Final = b"\x88\x0f\x10\x10application/grpc"
"""`:status: 200` (static index 8) and content-type (name at static index 31), with no dynamic table."""
_OK_TRAILERS: Final = literal_field(b"grpc-status", b"0")
_ACCEPT_ENCODING: Final = literal_field(b"grpc-accept-encoding", b"identity,deflate,gzip")

# HEADERS, the head of a DATA frame and the message's prefix in one pack; the trailers in another.
_FRONT: Final = Struct(f">5sI{len(_RESPONSE)}sIBIBI")
_FRONT_START: Final = h2.frame_head(len(_RESPONSE), h2.HEADERS, h2.END_HEADERS, 0)[:5]
_BACK: Final = Struct(f">5sI{len(_OK_TRAILERS)}s")
_BACK_START: Final = h2.frame_head(len(_OK_TRAILERS), h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 0)[:5]
_MESSAGE: Final = Struct(">IBIBI")
_pack_front = _FRONT.pack
_pack_back = _BACK.pack
_unpack_prefix = _PREFIX.unpack_from

_SMALL: Final = h2.MIN_FRAME_SIZE - _PREFIX_BYTES
"""Messages up to here fit in one DATA frame of any peer's."""
_STREAM_BACKLOG: Final = 256 << 10
MAX_STATUS_TEXT: Final = 1024
"""Characters of an error that clients are told."""
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])").fullmatch
_UNIT_SECONDS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_WINDOW_BITS: Final = {b"gzip": 31, b"deflate": 15}
_NOT_PLAIN: Final = re.compile(rb"[^ -$&-~]")

UnaryHandler = Callable[["GrpcCall", bytes], None]
StreamHandler = Callable[["GrpcCall"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcLimits(Http2Limits):
    """What clients of the gRPC door may ask. Sizes in bytes."""

    max_message_bytes: int = 64 << 20
    """Of one request message, after decompression too."""
    max_connections: int = 1000
    max_total_buffered_bytes: int = 1 << 30
    """Of unfinished messages in, over all connections."""
    max_total_unsent_bytes: int = 1 << 30
    """Of answers that wait for slow readers, over all connections; beyond it the worst of them is cut."""


class CallHead:
    """What a request's header fields say; shared by all calls whose header block is the same."""

    __slots__ = ("_metadata", "encoding", "fields", "length", "path", "refusal", "status", "stream", "timeout", "unary")

    def __init__(self, fields: list[Field], path: bytes) -> None:
        self.fields = fields
        self.path = path
        self.unary: UnaryHandler | None = None
        self.stream: StreamHandler | None = None
        self.encoding: bytes | None = None
        self.timeout: float | None = None
        self.length: int | None = None
        self.status: int = 200
        self.refusal: tuple[int, str] | None = None
        self._metadata: dict[str, str] | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """Regular fields by name; equal names are joined by a comma (RFC 9110, 5.2)."""
        if self._metadata is None:
            joined: dict[str, str] = {}
            for raw_name, raw_value in self.fields:
                name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
                if not name.startswith(":"):
                    joined[name] = f"{joined[name]},{value}" if name in joined else value
            self._metadata = joined
        return self._metadata


class GrpcCall(Stream):
    """One call. Everything that answers does nothing once the call is answered or its client has gone."""

    connection: GrpcConnection
    deadline: float | None = None
    """When the client gives up, in seconds of the server's clock; None where it did not say."""
    caller: Caller | None = None
    """Set by a guard: who calls; None where nobody has to say so."""
    on_cancel: Callable[[], None] | None = None
    """Set by a handler: the client has gone, or the stream has failed. Not called after the answer."""
    on_closed: Callable[[], None] | None = None
    """Set by a handler: the call is over, whoever ended it and however. Called exactly once."""
    on_message: Callable[[bytes], None] | None = None
    """Set by a stream handler before it returns."""
    on_half_close: Callable[[], None] | None = None
    """Set by a stream handler: the client has sent its last message."""
    on_writable: Callable[[], None] | None = None
    """Set by a producer that saw `writable` turn false: go on."""
    on_drain: Callable[[], None] | None = None
    """Set by a stream handler: the server has begun to drain."""
    on_linger_over: Callable[[], None] | None = None
    """Set by a stream handler: no more messages are waited for; end as soon as nothing is under way. Called
    again and again. Without it the stream is ended then."""
    hold_end = False
    """The client's last message has come, and `on_half_close` waits for `resume_reading`."""
    _started = False
    _answered = False
    _paused = False
    _request: bytes | None = None
    _partial: bytearray | None = None
    _waiting: deque[bytes] | None = None
    _held = 0

    def __init__(self, connection: GrpcConnection, stream_id: int, head: CallHead) -> None:
        # Not by way of super(): this runs once a call.
        self.connection = connection
        self.id = stream_id
        self.head = head
        self.send_window = connection.peer_window
        self.recv_left = connection.stream_window
        self.born = connection.now
        if head.timeout is not None:
            self.deadline = connection.clock() + head.timeout
        if head.length is not None:
            self.body_left = head.length

    @property
    def metadata(self) -> Mapping[str, str]:
        """Request headers by lower-case name; `-bin` values are left in base64."""
        return self.head.metadata

    @property
    def method(self) -> str:
        """The path, such as `/inference.GRPCInferenceService/ModelInfer`."""
        return self.head.path.decode("latin-1")

    @property
    def peer(self) -> str:
        """The client's address."""
        return self.connection.peer

    @property
    def cancelled(self) -> bool:
        """The client went away before the answer."""
        return self.closed and not self._answered

    @property
    def writable(self) -> bool:
        """Whether a producer should go on; when false, `on_writable` says when."""
        return not self.closed and self.queued < _STREAM_BACKLOG

    # Answering.

    def reply(self, message: bytes) -> None:
        """The one message of a unary call, and OK."""
        if self.closed:
            return
        connection = self.connection
        size = len(message) + _PREFIX_BYTES
        if (
            size <= _SMALL
            and connection.clear
            and size <= self.send_window
            and size <= connection.send_window
            and self.remote_done
            and not self._started
        ):
            connection.send_window -= size
            self.closed = self._answered = True
            stream_id = self.id
            del connection.streams[stream_id]
            connection.out += (
                _pack_front(_FRONT_START, stream_id, _RESPONSE, size << 8, 0, stream_id, 0, size - 5),
                message,
                _pack_back(_BACK_START, stream_id, _OK_TRAILERS),
            )
            if not connection.flush_due:
                connection.schedule_flush()
            if self.on_closed is not None:
                self._tell_closed()
        else:
            self.send(message)
            self.finish()

    def send(self, message: bytes) -> None:
        """One message of a stream's answer."""
        if self.closed:
            return
        connection = self.connection
        if not self._started:
            self._started = True
            self.send_headers(_RESPONSE)
        size = len(message) + _PREFIX_BYTES
        if (
            size <= _SMALL
            and connection.clear
            and not self.queued
            and size <= self.send_window
            and size <= connection.send_window
        ):
            self.send_window -= size
            connection.send_window -= size
            connection.out += (_MESSAGE.pack(size << 8, 0, self.id, 0, size - 5), message)
            if not connection.flush_due:
                connection.schedule_flush()
        else:
            self.send_data(_PREFIX.pack(0, len(message)), message)

    def finish(self, code: int = OK, message: str = "", trailers: Sequence[tuple[str, str]] = ()) -> None:
        """End with a status. Without a message before it, as one block (the specification's Trailers-Only)."""
        if self.closed:
            return
        self._answered = True
        self._release()
        block = status_block(code, message, trailers)
        if self._started:
            self.send_end(block)
        else:
            self._started = True
            self.send_headers(_RESPONSE + block, end_stream=True)
        if self.on_closed is not None:
            self._tell_closed()

    def fail(self, code: int, message: str, trailers: Sequence[tuple[str, str]] = ()) -> None:
        """End with an error; the text is for the client."""
        self.finish(code, message, trailers)

    # Receiving.

    def pause_reading(self) -> None:
        """Deliver no more messages for now; the client is held back by the stream's window."""
        self._paused = self.hold_window = True

    def resume_reading(self) -> None:
        """Deliver what has waited, and let the client send on."""
        self._paused = False
        while self._waiting and not self._paused and not self.closed:
            message = self._waiting.popleft()
            self._hold(-len(message))
            self._deliver(message)
        if not self._paused and not self.closed:
            self.hold_window = False
            self.widen()
            if self.remote_done and self.hold_end:
                self.hold_end = False
                self._half_close()

    def on_data(self, data: bytes, start: int, end: int) -> None:
        if self._partial is None and end - start >= _PREFIX_BYTES:
            compressed, length = _unpack_prefix(data, start)
            if not compressed and length == end - start - _PREFIX_BYTES:
                if length > self.connection.limits.max_message_bytes:
                    self._refuse_size(length)
                    return
                # The usual case: one frame, one message.
                unary = self.head.unary
                if unary is not None and self.remote_done and self._request is None:
                    try:
                        unary(self, data[start + _PREFIX_BYTES : end])
                    except Exception:
                        self._broken()
                    return
                self._take(data[start + _PREFIX_BYTES : end])
                if self.remote_done:
                    self.on_end()
                return
        if end > start:
            self._assemble(data, start, end)
        if self.remote_done and not self.closed:
            self.on_end()

    def _assemble(self, data: bytes, start: int, end: int) -> None:
        """Messages that do not coincide with frames."""
        partial = self._partial
        if partial is None:
            partial = self._partial = bytearray()
        partial += memoryview(data)[start:end]
        if not self._hold(end - start):
            return
        position = 0
        while len(partial) - position >= _PREFIX_BYTES:
            compressed, length = _unpack_prefix(partial, position)
            if length > self.connection.limits.max_message_bytes:
                self._refuse_size(length)
                return
            first = position + _PREFIX_BYTES
            if len(partial) - first < length:
                break
            position = first + length
            message = bytes(memoryview(partial)[first:position])
            if compressed:
                unpacked = self._unpack(message, compressed)
                if unpacked is None:
                    return
                message = unpacked
            self._take(message)
            if self.closed:
                return
        if position == len(partial):
            self._partial = None
        elif position:
            del partial[:position]
        self._hold(-position)

    def _unpack(self, message: bytes, flag: int) -> bytes | None:
        """The message decompressed, or None after failing the call (grpc/doc/compression.md)."""
        encoding = self.head.encoding
        if flag != 1 or encoding is None:
            self.finish(INTERNAL, "compressed flag set without a grpc-encoding")
            return None
        limit = self.connection.limits.max_message_bytes
        inflater = zlib.decompressobj(_WINDOW_BITS[encoding])
        try:
            unpacked = inflater.decompress(message, limit + 1)
        except zlib.error:
            self.finish(INTERNAL, f"message is not {encoding.decode()}")
            return None
        if len(unpacked) > limit:
            self._refuse_size(len(unpacked))
            return None
        if not inflater.eof:
            self.finish(INTERNAL, f"message is truncated {encoding.decode()}")
            return None
        return unpacked

    def _take(self, message: bytes) -> None:
        """A whole message has come."""
        if self.head.unary is not None:
            if self._request is not None:
                self.finish(UNIMPLEMENTED, "a unary call takes one request message, and more came")
            else:
                self._request = message
                self._hold(len(message))
        elif self._paused:
            if self._waiting is None:
                self._waiting = deque()
            self._waiting.append(message)
            self._hold(len(message))
        else:
            self._deliver(message)

    def _deliver(self, message: bytes) -> None:
        if self.on_message is not None:
            self._call(self.on_message, message)

    def _call(self, callback: Callable[..., None], *args: Any) -> None:
        """Run a handler's code; what it raises is our fault, and the client learns no more than that."""
        try:
            callback(*args)
        except Exception:
            self._broken()

    def _broken(self) -> None:
        log.exception("handler of %s failed", self.method)
        self.finish(INTERNAL, "internal error")

    def on_end(self) -> None:
        if self.closed:
            return
        if self._partial is not None:
            self.finish(INTERNAL, "the request ends inside a message")
        elif self.head.unary is None:
            if self._paused:
                self.hold_end = True
            else:
                self._half_close()
        elif self._request is None:
            self.finish(UNIMPLEMENTED, "a unary call takes one request message, and none came")
        else:
            message, self._request = self._request, None
            self._release()
            self._call(self.head.unary, self, message)

    def _half_close(self) -> None:
        if self.on_half_close is not None:
            self._call(self.on_half_close)

    def on_abort(self) -> None:
        self._release()
        try:
            if not self._answered and self.on_cancel is not None:
                self.on_cancel()
        finally:
            if self.on_closed is not None:
                self._tell_closed()

    def _tell_closed(self) -> None:
        tell, self.on_closed = self.on_closed, None
        if tell is not None:
            try:
                tell()
            except Exception:
                log.exception("the end of a call of %s failed", self.method)

    def linger_over(self) -> None:
        """End a stream for which nothing is under way: the server leaves."""
        if self.closed or self.head.stream is None:
            return
        if self.on_linger_over is not None:
            self._call(self.on_linger_over)
        else:
            self.finish(UNAVAILABLE, "the server is going away")

    def sent_all(self) -> None:
        if self.on_writable is not None:
            self._call(self.on_writable)

    def overdue(self, now: float) -> bool:
        """A unary request that is not whole in time, or a stream's message that is not.

        A stream may be open for days, so there the time counts from the message's first bytes.
        """
        if self.remote_done:
            return False
        if self.head.unary is None and self._partial is None:
            self.born = now
            return False
        return now - self.born > self.connection.limits.receive_timeout

    # Memory.

    def _hold(self, size: int) -> bool:
        """Count what is kept of unfinished requests; over the budget the call is failed."""
        self._held += size
        return self.connection.hold(self, size)

    def _release(self) -> None:
        self._partial = self._request = self._waiting = None
        if self._held:
            self._hold(-self._held)

    def _refuse_size(self, length: int) -> None:
        limit = self.connection.limits.max_message_bytes
        self.finish(RESOURCE_EXHAUSTED, f"received message larger than max ({length} vs. {limit})")


class GrpcConnection(Http2Connection):
    """One connection's calls."""

    limits: GrpcLimits

    def __init__(self, server: GrpcServer) -> None:
        super().__init__(server.limits, server.clock, server.on_cut)
        self.server = server
        self.stream_window = server.limits.stream_window
        self._held = 0
        self._peer: str | None = None

    @property
    def peer(self) -> str:
        """The client's address, `host:port`, or empty where there is none."""
        if self._peer is None:
            name = self._transport.get_extra_info("peername") if self._transport else None
            self._peer = f"{name[0]}:{name[1]}" if isinstance(name, tuple) and len(name) > 1 else ""
        return self._peer

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if not self.server.admit(self):
            self.cut("too_many_connections")

    def on_lost(self) -> None:
        self.server.forget(self)

    def hold(self, call: GrpcCall, size: int) -> bool:
        """Count `size` bytes more or fewer of requests under way; false where the call had to be failed."""
        self._held += size
        self.server.held += size
        limits = self.limits
        if size > 0 and (self._held > limits.max_buffered_bytes or self.server.held > limits.max_total_buffered_bytes):
            self.server.on_cut("buffer_full")
            call.finish(RESOURCE_EXHAUSTED, "too many bytes of unfinished requests")
            return False
        return True

    def count_unsent(self, size: int) -> None:
        self.unsent += size
        self.server.unsent += size

    def want_to_send(self, stream: Stream) -> None:
        super().want_to_send(stream)
        if self.server.unsent > self.limits.max_total_unsent_bytes:
            self.server.cut_worst_reader()

    def drain(self) -> None:
        super().drain()
        for stream in list(self.streams.values()):
            call = cast(GrpcCall, stream)
            if call.on_drain is not None and not call.closed:
                call._call(call.on_drain)

    def linger_over(self) -> None:
        """No stream is kept open for messages that may still come."""
        for stream in list(self.streams.values()):
            cast(GrpcCall, stream).linger_over()

    def read_head(self, fields: list[Field]) -> CallHead:
        pseudo = self.rules.request(fields)
        head = CallHead(fields, pseudo[b":path"])
        head.length = declared_length(fields)
        values = dict(fields)
        kind = values.get(b"content-type", b"")
        if kind[:16] != b"application/grpc" or kind[16:17] not in b"+;":
            head.status = 415
        elif pseudo[b":method"] != b"POST":
            head.status = 405
        else:
            self._read_call(head, values)
        return head

    def _read_call(self, head: CallHead, values: dict[bytes, bytes]) -> None:
        head.unary = self.server.unary.get(head.path)
        head.stream = self.server.stream.get(head.path)
        timeout = values.get(b"grpc-timeout")
        if timeout is not None:
            match = _TIMEOUT(timeout)
            if match:
                head.timeout = int(match[1]) * _UNIT_SECONDS[match[2]]
            else:
                head.refusal = (INTERNAL, "malformed grpc-timeout")
        encoding = values.get(b"grpc-encoding", b"identity")
        if encoding in _WINDOW_BITS:
            head.encoding = encoding
        elif encoding != b"identity":
            head.refusal = (UNIMPLEMENTED, f"grpc-encoding {encoding[:32].decode('latin-1')} is not supported")
        if head.unary is None and head.stream is None:
            head.refusal = (UNIMPLEMENTED, f"unknown method {head.path[:200].decode('latin-1')}")

    def open_stream(self, stream_id: int, head: CallHead, ended: bool) -> Stream:
        return GrpcCall(self, stream_id, head)

    def started(self, stream: Stream, head: CallHead) -> None:
        if head.unary is not None and head.refusal is None:
            if stream.remote_done:
                stream.on_end()
            return
        call = cast(GrpcCall, stream)
        if head.status != 200:
            self._answer_http(call, head.status)
        elif head.refusal is not None:
            extra = (("grpc-accept-encoding", "identity,deflate,gzip"),) if head.unary or head.stream else ()
            call.finish(*head.refusal, extra)
        elif head.stream is not None:
            call._call(head.stream, call)
            if call.remote_done:
                call.on_end()

    @staticmethod
    def _answer_http(call: GrpcCall, status: int) -> None:
        """What is not gRPC gets an HTTP status, with a word for the person who tried (the specification asks
        for 415 where the content-type is another)."""
        text = b"this port answers gRPC calls: POST with content-type application/grpc\n"
        fields = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
        if status == 405:
            fields.append((b"allow", b"POST"))
        block = b"\x08\x03%d" % status + b"".join(literal_field(*field) for field in fields)
        call._answered = True
        call.send_headers(block)
        call.send_data(text)
        call.send_end()


class GrpcServer:
    """All connections of one door: the protocol factory for `loop.create_server`.

    `unary` and `stream` map paths such as `/inference.GRPCInferenceService/ModelInfer` to handlers.
    `on_cut` is told a short, stable reason whenever a connection or stream is cut.
    """

    def __init__(
        self,
        unary: Mapping[str, UnaryHandler],
        stream: Mapping[str, StreamHandler],
        limits: GrpcLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_cut: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.unary = {path.encode(): handler for path, handler in unary.items()}
        self.stream = {path.encode(): handler for path, handler in stream.items()}
        if self.unary.keys() & self.stream.keys():
            raise ValueError("a method is either unary or a stream")
        self.limits = limits or GrpcLimits()
        self.clock = clock
        self.on_cut = on_cut
        self.held = 0
        """Bytes of unfinished requests, over all connections."""
        self.unsent = 0
        """Bytes of answers that wait for a window or a socket, over all connections."""
        self._connections: set[GrpcConnection] = set()
        self._draining = False

    def __call__(self) -> GrpcConnection:
        """The protocol of a new connection."""
        return GrpcConnection(self)

    def admit(self, connection: GrpcConnection) -> bool:
        """Count a connection, or refuse it."""
        if len(self._connections) >= self.limits.max_connections:
            return False
        self._connections.add(connection)
        if self._draining:
            connection.drain()
        return True

    def forget(self, connection: GrpcConnection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)

    def sweep(self, now: float) -> None:
        """Cut what is too slow, idle or deaf; the owner calls this about once a second."""
        for connection in list(self._connections):
            connection.sweep(now)

    def drain(self) -> None:
        """Take nothing new, finish what is in flight; each connection closes when it has none."""
        self._draining = True
        for connection in list(self._connections):
            connection.drain()

    def linger_over(self) -> None:
        """End the streams for which nothing is under way; called again and again while draining."""
        for connection in list(self._connections):
            connection.linger_over()

    def abort(self) -> None:
        """Drop every connection: the process leaves."""
        for connection in list(self._connections):
            connection.abort()

    def cut_worst_reader(self) -> None:
        """Make room: the connection that holds most of the answers that nobody reads is the one to go."""
        max(self._connections, key=lambda connection: connection.unsent).cut("unsent_overflow")

    @property
    def in_flight(self) -> int:
        """Calls that are not answered yet, and connections whose answers have not left yet."""
        calls = [call for each in self._connections for call in each.streams.values()]
        return sum(not call.closed or call.queued > 0 for call in calls) + sum(c.backed_up for c in self._connections)

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._connections)


def status_block(code: int, message: str, trailers: Sequence[tuple[str, str]]) -> bytes:
    """Trailers with a status. The text is percent-encoded and cut to what clients take in a header."""
    if code == OK and not message and not trailers:
        return _OK_TRAILERS
    block = literal_field(b"grpc-status", b"%d" % code)
    if message:
        block += literal_field(b"grpc-message", percent_encoded(message[:MAX_STATUS_TEXT]))
    for name, value in trailers:
        block += literal_field(name.lower().encode("ascii"), value.encode("ascii"))
    return block


def percent_encoded(text: str) -> bytes:
    """UTF-8, with all but printable ASCII, and the percent sign, as %XX (the specification's Status-Message)."""
    return _NOT_PLAIN.sub(lambda match: b"%%%02X" % match[0][0], text.encode("utf-8", "replace"))
