"""One HTTP/2 stream as its connection sees it, and what one connection may ask of us."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import http2_frames as h2

if TYPE_CHECKING:
    from .http2_output import Http2Output


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2Limits:
    """What one connection may ask of us. Times are in seconds, sizes in bytes."""

    max_concurrent_streams: int = 1000
    """Further ones are refused, which clients may retry elsewhere."""
    max_header_bytes: int = 64 << 10
    """Of one header list, packed and unpacked."""
    max_frame_bytes: int = h2.MIN_FRAME_SIZE
    """Of one frame's payload that we accept. Bigger ones were measured and bring nothing."""
    stream_window: int = 1 << 20
    """What a client may send on a stream before we say go on. Not below 65,535: a client may use that much
    before it has read our settings (RFC 9113, 6.5.3)."""
    connection_window: int = 16 << 20
    """The same for all streams together; also above 65,535."""
    max_buffered_bytes: int = 256 << 20
    """Of unfinished messages in, and as much again of unsent messages out."""
    max_control_frames: int = 2000
    """Of frames that carry no request, between two sweeps."""
    max_resets: int = 2000
    """Of streams that were reset, by the peer or for its faults, between two sweeps."""
    receive_timeout: float = 30.0
    """For a whole request, header block or frame to arrive."""
    send_timeout: float = 30.0
    """For a peer that has something to read and reads nothing."""
    idle_timeout: float = 600.0
    """For a connection without streams."""
    ping_after: float = 120.0
    """Silence on a connection with open streams before it is asked whether it lives."""


class Stream:
    """One request and its answer. A subclass gives the four `on_` methods a meaning."""

    remote_done = False
    """The peer has sent END_STREAM."""
    closed = False
    """Nothing more can be sent: we have ended it, or it is gone."""
    recv_left: int
    """What the peer may still send before it gets a WINDOW_UPDATE."""
    hold_window = False
    """Set while the owner wants no more data than the window already allows."""
    body_left: int | None = None
    """What content-length still promises."""
    queued = 0
    """Bytes of DATA that wait for a window or for the socket."""
    _queue: deque[memoryview] | None = None
    _trailers: bytes | None = None
    _stalled: float | None = None

    def __init__(self, connection: Http2Output, stream_id: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.send_window = connection.peer_window
        self.recv_left = connection.limits.stream_window
        self.born = connection.now

    def on_data(self, data: bytes, start: int, end: int) -> None:
        """Content has come: `data[start:end]`, in order; `remote_done` says whether it is the last."""

    def on_end(self) -> None:
        """The request ended without content in its last frame."""

    def on_abort(self) -> None:
        """The stream is gone: reset, refused for a fault, or its connection is lost. Called once."""

    def sent_all(self) -> None:
        """What was queued has left, and the stream has not been ended."""

    def overdue(self, now: float) -> bool:
        """Whether the peer has taken too long over this request; asked about once a second."""
        return not self.remote_done and now - self.born > self.connection.limits.receive_timeout

    # Sending. Each does nothing once the stream is closed.

    def send_headers(self, block: bytes, end_stream: bool = False) -> None:
        """A header block that uses no dynamic table."""
        if not self.closed:
            self.connection.write_headers(self.id, block, end_stream)
            if end_stream:
                self.connection.ended(self)

    def send_data(self, *pieces: bytes) -> None:
        """DATA, now as far as the windows allow and later the rest."""
        if self.closed:
            return
        if self._queue is None:
            self._queue = deque()
        for piece in pieces:
            self._queue.append(memoryview(piece))
            self.queued += len(piece)
        self.connection.count_unsent(sum(map(len, pieces)))
        self.connection.want_to_send(self)

    def send_end(self, trailers: bytes = b"") -> None:
        """The end, after all DATA that waits: a block of trailers, or an empty DATA frame."""
        if self.closed:
            return
        if self.queued:
            self.closed = True
            self._trailers = trailers
        else:
            self.connection.write_end(self, trailers)

    def widen(self) -> None:
        """Let the peer send on, up to the full window."""
        limit = self.connection.limits.stream_window
        if self.recv_left < limit and not self.remote_done:
            self.connection.write(h2.window_update_frame(self.id, limit - self.recv_left))
            self.recv_left = limit

    # For the connection.

    def take_chunk(self, room: int) -> list[memoryview]:
        """Up to `room` bytes of what waits, taken out of the queue."""
        queue = self._queue
        taken: list[memoryview] = []
        while queue and room > 0:
            piece = queue.popleft()
            if len(piece) > room:
                queue.appendleft(piece[room:])
                piece = piece[:room]
            room -= len(piece)
            taken.append(piece)
        size = sum(map(len, taken))
        self.queued -= size
        self.send_window -= size
        self.connection.count_unsent(-size)
        return taken

    def drop(self) -> None:
        """Forget what waits; the stream is over."""
        self.closed = True
        self.connection.count_unsent(-self.queued)
        self.queued = 0
        self._queue = None
        self._trailers = None

    def stalled_since(self, now: float) -> float:
        """Since when DATA has waited without any of it leaving."""
        if self._stalled is None:
            self._stalled = now
        return self._stalled

    def moved(self) -> None:
        """Some DATA left."""
        self._stalled = None

    @property
    def last_block(self) -> bytes | None:
        """The trailers that wait behind the DATA."""
        return self._trailers
