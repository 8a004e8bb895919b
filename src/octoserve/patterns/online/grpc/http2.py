"""One HTTP/2 connection on the server's side (RFC 9113), as an `asyncio.Protocol` without a task or a future.

Knows frames, streams, windows and limits; what a request means is for the subclass that `open_stream`
makes. All that is produced while one read is handled, or in one turn of the loop, leaves in one write:
with many calls at once the kernel's part of a call is then a fraction of a read and a fraction of a write.

Memory is bounded on every side. What comes in: one frame, one header block, and what streams keep (they
are told the budget by their owner). What goes out: DATA waits in its stream while the peer's windows are
shut or the socket is full, and a peer whose socket is full is not read from either. Floods of frames that
cost us work and the peer nothing (PING, SETTINGS, resets, empty DATA; CVE-2019-9512 to 9518, CVE-2023-44487,
CVE-2025-8671) are counted between two sweeps and end the connection with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from . import http2_frames as h2
from .http2_frames import FRAME_HEAD_BYTES, ConnectionFault, StreamFault
from .http2_headers import Field, FieldRules, HeaderDecoder
from .http2_output import WRITE_HIGH, WRITE_LOW, Http2Output
from .http2_stream import Http2Limits, Stream

log = logging.getLogger(__name__)

_unpack_frame_head = h2.FRAME_HEAD.unpack_from
_REMEMBERED_BLOCKS: Final = 64
_REMEMBERED_BLOCK_BYTES: Final = 256
_MAX_CONTINUATIONS: Final = 64
_MAX_DATA_CHUNK: Final = 1 << 17
_LINGER: Final = 2.0
_DRAIN_PING: Final = b"draining"
_ALIVE_PING: Final = b"alive?\0\0"


class Http2Connection(Http2Output):
    """The protocol of one connection. The owner calls `sweep` about once a second."""

    def __init__(self, limits: Http2Limits, clock: Callable[[], float], on_cut: Callable[[str], None]) -> None:
        super().__init__(limits, clock, on_cut)
        self._decoder = HeaderDecoder(limits.max_header_bytes)
        self.rules = FieldRules()
        self._heads: dict[bytes, Any] = {}
        self._heads_at = 0
        self._partial = bytearray()
        self._needed = len(h2.PREFACE)
        self._started = False
        self._block: bytearray | None = None
        self._block_of = (0, 0)
        self._continuations = 0
        self._next_id = 1
        self._skipped_ids = False
        self._recv_left = h2.DEFAULT_WINDOW
        self._final_id = h2.MAX_STREAM_ID
        self._control = 0
        self._resets = 0
        self._heard = True
        self._heard_at = self._partial_since = self.now
        self._over_at = self.now
        self._backlog = 0
        self._pinged_at: float | None = None
        self._drain_at: float | None = None
        self._handlers: tuple[Callable[[int, int, bytes, int, int], None], ...] = (
            self._on_data, self._on_headers, self._on_priority, self._on_rst_stream, self._on_settings,
            self._on_push_promise, self._on_ping, self._on_goaway, self._on_window_update,
            self._on_continuation,
        )  # fmt: skip

    # What a subclass gives.

    def read_head(self, fields: list[Field]) -> Any:
        """What `open_stream` needs to know of a request's fields, for this and all equal ones.

        Raises StreamFault for a malformed request.
        """
        raise NotImplementedError

    def open_stream(self, stream_id: int, head: Any, ended: bool) -> Stream:
        """A new stream, not yet in `streams`; `started` is called next."""
        raise NotImplementedError

    def on_lost(self) -> None:
        """The connection is gone."""

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        limits = self.limits
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        transport.set_write_buffer_limits(high=WRITE_HIGH, low=WRITE_LOW)
        settings = (
            (h2.MAX_CONCURRENT_STREAMS, limits.max_concurrent_streams),
            (h2.INITIAL_WINDOW_SIZE, limits.stream_window),
            (h2.MAX_FRAME_SIZE, limits.max_frame_bytes),
            (h2.MAX_HEADER_LIST_SIZE, limits.max_header_bytes),
        )
        self.out.append(h2.settings_frame(settings))
        self.out.append(h2.window_update_frame(0, limits.connection_window - self._recv_left))
        self._recv_left = limits.connection_window
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Handle every whole frame and keep the rest. Never raises, whatever the bytes are."""
        if self.over:
            return
        self._heard = True
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                return
            data = bytes(self._partial)
            self._partial.clear()
        self.flush_due = True
        try:
            if self._started:
                self._consume(data, 0)
            else:
                self._consume_preface(data)
        except ConnectionFault as fault:
            self._fail(fault.code, fault.reason)
        except Exception:
            log.exception("HTTP/2 connection failed")
            self._fail(h2.INTERNAL_ERROR, "internal error")
        self._flush()

    def eof_received(self) -> None:
        """A peer that writes no more gets its connection closed: HTTP/2 has no half-open use (RFC 9113, 9.1)."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.over = True
        self._abandon()
        self.out.clear()
        self._heads.clear()
        self._partial.clear()
        self.on_lost()

    # Reading frames.

    def _consume_preface(self, data: bytes) -> None:
        """RFC 9113, 3.4: 24 fixed bytes, then SETTINGS."""
        known = h2.PREFACE
        if not known.startswith(data[: len(known)]):
            raise ConnectionFault(h2.PROTOCOL_ERROR, "this port speaks HTTP/2 with prior knowledge")
        if len(data) < len(known) + FRAME_HEAD_BYTES:
            self._keep(data, 0, len(known) + FRAME_HEAD_BYTES)
            return
        if data[len(known) + 3] != h2.SETTINGS or data[len(known) + 4] & h2.ACK:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "SETTINGS must come first")
        self._started = True
        self._consume(data, len(known))

    def _keep(self, data: bytes, position: int, needed: int) -> None:
        """Keep the unread rest until `needed` bytes of it are there."""
        self._partial += data if not position else memoryview(data)[position:]
        self._needed = needed
        self._partial_since = self.now

    def _consume(self, data: bytes, position: int) -> None:
        """Dispatch whole frames from `position` on."""
        size = len(data)
        most = self.limits.max_frame_bytes
        handlers = self._handlers
        while size - position >= FRAME_HEAD_BYTES:
            high, low, kind, flags, stream_id = _unpack_frame_head(data, position)
            length = high << 8 | low
            if length > most:
                raise ConnectionFault(h2.FRAME_SIZE_ERROR, "frame too large")
            start = position + FRAME_HEAD_BYTES
            end = start + length
            if end > size:
                self._keep(data, position, FRAME_HEAD_BYTES + length)
                return
            position = end
            if self._block is not None and kind != h2.CONTINUATION:
                raise ConnectionFault(h2.PROTOCOL_ERROR, "frame inside a header block")
            if kind <= h2.CONTINUATION:
                try:
                    handlers[kind](stream_id & 0x7FFFFFFF, flags, data, start, end)
                except StreamFault as fault:
                    self._reset_for(stream_id & 0x7FFFFFFF, fault.code)
            else:  # 5.5: unknown frames are ignored
                self._count_control()
            if self.over:
                return
        if position < size:
            self._keep(data, position, FRAME_HEAD_BYTES)

    def _on_data(self, stream_id: int, flags: int, data: bytes, start: int, end: int) -> None:
        length = end - start
        self._recv_left -= length
        if self._recv_left < self.limits.connection_window >> 1:
            self._widen_connection()
        if flags & h2.PADDED:
            start, end = h2.unpad(data, start, end)
        stream = self.streams.get(stream_id)
        if stream is None or stream.remote_done:
            self._on_data_of_none(stream_id)
            return
        stream.recv_left -= length
        if stream.recv_left < self.limits.stream_window >> 1:
            self._widen_stream(stream, flags)
            if stream.closed and stream_id not in self.streams:
                return
        if flags & h2.END_STREAM:
            stream.remote_done = True
            if stream.body_left is not None and stream.body_left != end - start:
                raise StreamFault(h2.PROTOCOL_ERROR, "content-length does not match")
            if stream.closed:
                self._forget_if_done(stream)
                return
        else:
            if stream.body_left is not None:
                stream.body_left -= end - start
            if start == end:
                self._count_control()
            if stream.closed:
                return
        stream.on_data(data, start, end)

    def _on_data_of_none(self, stream_id: int) -> None:
        """DATA for a stream that takes none (RFC 9113, 5.1)."""
        if stream_id == 0 or stream_id > self._last_id or not stream_id & 1:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "DATA on an idle stream")
        if stream_id not in self._our_resets:  # what was under way when we reset it is no fault
            raise StreamFault(h2.STREAM_CLOSED, "DATA on a closed stream")
        self._count_control()

    def _widen_connection(self) -> None:
        """Always the whole window again: what streams keep is bounded by their own windows and budget."""
        if self._recv_left < 0:
            raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "connection window overrun")
        full = self.limits.connection_window
        self.out.append(h2.window_update_frame(0, full - self._recv_left))
        self._recv_left = full

    def _widen_stream(self, stream: Stream, flags: int) -> None:
        if stream.recv_left < 0:
            raise StreamFault(h2.FLOW_CONTROL_ERROR, "stream window overrun")
        if flags & h2.END_STREAM or stream.hold_window:
            return
        if stream.closed and not stream.queued:  # answered, and the peer goes on (RFC 9113, 8.1)
            self.reset(stream, h2.NO_ERROR)
        else:
            stream.widen()

    def _on_headers(self, stream_id: int, flags: int, data: bytes, start: int, end: int) -> None:
        if flags & (h2.PADDED | h2.HAS_PRIORITY):
            if flags & h2.PADDED:
                start, end = h2.unpad(data, start, end)
            if flags & h2.HAS_PRIORITY:
                if end - start < 5:
                    raise ConnectionFault(h2.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
                if h2.read_u32(data, start) & 0x7FFFFFFF == stream_id:
                    raise ConnectionFault(h2.PROTOCOL_ERROR, "a stream that depends on itself")
                start += 5
        if not stream_id & 1:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "HEADERS on a stream that no client opens")
        if flags & h2.END_HEADERS:
            self._on_block(stream_id, flags, data[start:end])
        else:
            self._block = bytearray(data[start:end])
            self._block_of = (stream_id, flags)
            self._continuations = 0

    def _on_continuation(self, stream_id: int, flags: int, data: bytes, start: int, end: int) -> None:
        block = self._block
        if block is None or stream_id != self._block_of[0]:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "CONTINUATION out of place")
        self._continuations += 1
        if len(block) + end - start > self.limits.max_header_bytes or self._continuations > _MAX_CONTINUATIONS:
            raise ConnectionFault(h2.ENHANCE_YOUR_CALM, "header block too large")
        block += memoryview(data)[start:end]
        if flags & h2.END_HEADERS:
            self._block = None
            self._on_block(stream_id, self._block_of[1], bytes(block))

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        """A whole header block: of a new stream, or the trailers of an open one."""
        if stream_id <= self._last_id:
            self._on_late_block(stream_id, flags, block)
            return
        if stream_id != self._next_id:
            self._skipped_ids = True
        self._last_id, self._next_id = stream_id, stream_id + 2
        head = self._heads.get(block)
        if head is None:
            head = self._decode_head(block)
        if len(self.streams) >= self.limits.max_concurrent_streams or stream_id > self._final_id:
            self._refuse(stream_id)
            return
        if self.unsent > self.limits.max_buffered_bytes >> 1:
            self._refuse(stream_id)
            return
        ended = bool(flags & h2.END_STREAM)
        stream = self.open_stream(stream_id, head, ended)
        stream.remote_done = ended
        if ended and stream.body_left:
            raise StreamFault(h2.PROTOCOL_ERROR, "content-length does not match")
        self.streams[stream_id] = stream
        self.started(stream, head)

    def started(self, stream: Stream, head: Any) -> None:
        """The stream is in `streams`; whatever it does now, it may do at once."""
        if stream.remote_done:
            stream.on_end()

    def _decode_head(self, block: bytes) -> Any:
        """Decode a block and remember the outcome while the dynamic table stays as it is.

        A block that does not change the table means the same until another one does, and most clients
        send the same one for every call of a method. Malformed requests are not remembered.
        """
        fields, stable = self._decode(block)
        head = self.read_head(fields)
        if stable and len(block) <= _REMEMBERED_BLOCK_BYTES:
            if len(self._heads) >= _REMEMBERED_BLOCKS:
                self._heads.clear()
            self._heads[block] = head
        return head

    def _decode(self, block: bytes) -> tuple[list[Field], bool]:
        """Decode a block, and say whether it left the table as it was; if not, all heads are forgotten."""
        fields = self._decoder.decode(block)
        stable = self._decoder.changes == self._heads_at
        if not stable:
            self._heads.clear()
            self._heads_at = self._decoder.changes
        return fields, stable

    def _on_late_block(self, stream_id: int, flags: int, block: bytes) -> None:
        """HEADERS on a stream that was opened before: trailers (RFC 9113, 8.1), or a fault."""
        fields, _ = self._decode(block)
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id in self._our_resets:
                self._count_control()
                return
            code = h2.PROTOCOL_ERROR if self._skipped_ids else h2.STREAM_CLOSED
            raise ConnectionFault(code, "HEADERS on a closed stream")
        if stream.remote_done:
            raise StreamFault(h2.STREAM_CLOSED, "HEADERS after END_STREAM")
        if not flags & h2.END_STREAM:
            raise StreamFault(h2.PROTOCOL_ERROR, "trailers without END_STREAM")
        self.rules.trailers(fields)
        stream.remote_done = True
        if stream.body_left:
            raise StreamFault(h2.PROTOCOL_ERROR, "content-length does not match")
        if stream.closed:
            self._forget_if_done(stream)
        else:
            stream.on_end()

    def _refuse(self, stream_id: int) -> None:
        """REFUSED_STREAM promises that nothing was done, so that a client may retry (RFC 9113, 8.7)."""
        self._on_cut("refused_stream")
        self._count_reset()
        self._remember_reset(stream_id)
        self.out.append(h2.rst_stream_frame(stream_id, h2.REFUSED_STREAM))

    def _on_priority(self, stream_id: int, flags: int, data: bytes, start: int, end: int) -> None:
        """Ignored (RFC 9113, 5.3.2) once it is seen to be well-formed."""
        if stream_id == 0:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if end - start != 5:
            raise StreamFault(h2.FRAME_SIZE_ERROR, "PRIORITY of a wrong size")
        if h2.read_u32(data, start) & 0x7FFFFFFF == stream_id:
            raise StreamFault(h2.PROTOCOL_ERROR, "a stream that depends on itself")
        self._count_control()

    def _on_rst_stream(self, stream_id: int, flags: int, data: bytes, start: int, end: int) -> None:
        if end - start != 4:
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
        if stream_id == 0 or stream_id > self._last_id:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        self._count_reset()
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._remove(stream)

    def _on_settings(self, stream_id: int, flags: int, data: bytes, start: int, end: int) -> None:
        if stream_id:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "SETTINGS on a stream")
        if (end - start) % 6 or (flags & h2.ACK and end != start):
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
        self._count_control()
        if flags & h2.ACK:
            return
        for name, value in h2.read_settings(data[start:end]):
            self._apply_setting(name, value)
        self.out.append(h2.SETTINGS_ACK)
        self._send_waiting()

    def _apply_setting(self, name: int, value: int) -> None:
        if name == h2.INITIAL_WINDOW_SIZE:
            self._set_peer_window(value)
        elif name == h2.MAX_FRAME_SIZE:
            if not h2.MIN_FRAME_SIZE <= value <= h2.MAX_FRAME_SIZE_LIMIT:
                raise ConnectionFault(h2.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE out of range")
            self.peer_frame = min(value, _MAX_DATA_CHUNK)
        elif name == h2.ENABLE_PUSH and value > 1:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH out of range")
        elif name == h2.HEADER_TABLE_SIZE and value < h2.DEFAULT_TABLE_BYTES:
            # We use no dynamic table, but a smaller limit must be acknowledged in the next block
            # (RFC 7541, 4.2): by a size update to nothing, which holds for all later limits too.
            self._table_update = b"\x20"
            self._judge_clear()

    def _set_peer_window(self, value: int) -> None:
        """The initial window of streams changes for the open ones too (RFC 9113, 6.9.2)."""
        if value > h2.MAX_WINDOW:
            raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE out of range")
        change = value - self.peer_window
        self.peer_window = value
        for stream in self.streams.values():
            stream.send_window += change
            if stream.send_window > h2.MAX_WINDOW:
                raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "stream window overflow")

    def _on_push_promise(self, stream_id: int, flags: int, data: bytes, start: int, end: int) -> None:
        raise ConnectionFault(h2.PROTOCOL_ERROR, "a client does not push")

    def _on_ping(self, stream_id: int, flags: int, data: bytes, start: int, end: int) -> None:
        if stream_id:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "PING on a stream")
        if end - start != 8:
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "PING of a wrong size")
        self._count_control()
        if not flags & h2.ACK:
            self.out.append(h2.ping_frame(data[start:end], h2.ACK))
        elif data[start:end] == _DRAIN_PING and self._drain_at is not None:
            self._finish_drain()

    def _on_goaway(self, stream_id: int, flags: int, data: bytes, start: int, end: int) -> None:
        """The peer opens no more streams; those that are open are finished."""
        if stream_id:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "GOAWAY on a stream")
        if end - start < 8:
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "GOAWAY too short")
        self._count_control()
        self.draining = True

    def _on_window_update(self, stream_id: int, flags: int, data: bytes, start: int, end: int) -> None:
        if end - start != 4:
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong size")
        increment = h2.read_u32(data, start) & 0x7FFFFFFF
        if not stream_id:
            self.send_window += increment
            if not increment or self.send_window > h2.MAX_WINDOW:
                code = h2.FLOW_CONTROL_ERROR if increment else h2.PROTOCOL_ERROR
                raise ConnectionFault(code, "bad WINDOW_UPDATE")
            if self._sending:
                self._send_waiting()
            return
        if stream_id > self._last_id or not stream_id & 1:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
        stream = self.streams.get(stream_id)
        if stream is None:
            return  # 5.1: may come after the end
        stream.send_window += increment
        if not increment or stream.send_window > h2.MAX_WINDOW:
            raise StreamFault(h2.FLOW_CONTROL_ERROR if increment else h2.PROTOCOL_ERROR, "bad WINDOW_UPDATE")
        if stream.queued:
            self._send_waiting()

    def _reset_for(self, stream_id: int, code: int) -> None:
        """A stream error: tell the peer, and the stream where there is one."""
        self._on_cut("stream_error")
        self._count_reset()
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._reset_aborting(stream, code)
        else:
            if code != h2.STREAM_CLOSED:
                self._remember_reset(stream_id)
            self.out.append(h2.rst_stream_frame(stream_id, code))

    def _remove(self, stream: Stream) -> None:
        """The peer has reset it."""
        self.streams.pop(stream.id, None)
        self._sending.pop(stream.id, None)
        stream.drop()
        self._abort(stream)

    def _fail(self, code: int, reason: str) -> None:
        """RFC 9113, 5.4.1: GOAWAY with the reason, then close."""
        if not self.over:
            self._on_cut("connection_error" if code != h2.ENHANCE_YOUR_CALM else "flood")
            self._end(reason, code)

    @property
    def backed_up(self) -> bool:
        """Whether bytes wait to be written, or for the peer to read."""
        return self._transport is not None and (bool(self.out) or self._transport.get_write_buffer_size() > 0)

    def drain(self) -> None:
        """Finish what is open and take nothing new (RFC 9113, 6.8): two GOAWAYs, a round trip between them.

        The first names no last stream, so that requests under way are still served; the second is sent
        once the peer must have seen the first, or at the next sweep but one.
        """
        if self._drain_at is None and not self.over:
            self._drain_at = self.now
            self.write(h2.goaway_frame(h2.MAX_STREAM_ID, h2.NO_ERROR, "draining"))
            self.write(h2.ping_frame(_DRAIN_PING))

    def _finish_drain(self) -> None:
        if not self.draining:
            self._final_id = self._last_id
            self.draining = True
            self.write(h2.goaway_frame(self._last_id, h2.NO_ERROR, "draining"))
            for stream in [each for each in self.streams.values() if each.closed and not each.queued]:
                self.reset(stream, h2.NO_ERROR)

    # Limits.

    def _count_control(self) -> None:
        self._control += 1
        if self._control > self.limits.max_control_frames:
            raise ConnectionFault(h2.ENHANCE_YOUR_CALM, "too many control frames")

    def _count_reset(self) -> None:
        self._resets += 1
        if self._resets > self.limits.max_resets:
            raise ConnectionFault(h2.ENHANCE_YOUR_CALM, "too many resets")

    def sweep(self, now: float) -> None:
        """Cut what has taken too long. `now` is of the same clock as the constructor's."""
        self.now = now
        self._control = self._resets = 0
        if self.over:
            self._sweep_closing(now - self._over_at)
            return
        self._over_at = now
        if self._heard:
            self._heard, self._heard_at, self._pinged_at = False, now, None
        if self._drain_at is not None and not self.draining and now - self._drain_at > 1.0:
            self._finish_drain()
        reason = self._why_cut(now)
        if reason:
            self.cut(reason)
            return
        for stream in list(self.streams.values()):
            self._sweep_stream(stream, now)
        if self._is_idle(now):
            self._on_cut("idle")
            self._end("idle")
        elif self.streams and self._pinged_at is None and now - self._heard_at > self.limits.ping_after:
            self._pinged_at = now
            self.write(h2.ping_frame(_ALIVE_PING))

    def _sweep_closing(self, since: float) -> None:
        """The peer should have closed its side; what we said last may still be on its way."""
        if since > self.limits.send_timeout:
            self._transport.abort()
        elif since > _LINGER and not self._transport.get_write_buffer_size():
            self._transport.close()

    def _why_cut(self, now: float) -> str | None:
        limits = self.limits
        unfinished = not self._started or self._partial or self._block is not None
        if unfinished and not self._paused:  # while we do not read, it is not the peer that keeps us waiting
            if now - self._partial_since > limits.receive_timeout:
                return "slow_request" if self._started else "slow_preface"
        else:
            self._partial_since = now
        backlog = self._transport.get_write_buffer_size()
        if not backlog or backlog < self._backlog:
            self._unwritten_since = now
        self._backlog = backlog
        if now - self._unwritten_since > limits.send_timeout:
            return "not_reading"
        if self._pinged_at is not None and now - self._pinged_at > limits.receive_timeout:
            return "dead_peer"
        return None

    def _sweep_stream(self, stream: Stream, now: float) -> None:
        if stream.closed and not stream.queued:
            if now - stream.born > self.limits.receive_timeout:  # answered; the rest is not worth waiting for
                self.reset(stream, h2.NO_ERROR)
        elif not self._paused and stream.overdue(now):
            self._on_cut("slow_request")
            self._reset_aborting(stream, h2.CANCEL)
        elif stream.queued and now - stream.stalled_since(now) > self.limits.send_timeout:
            self._on_cut("not_reading")
            self._reset_aborting(stream, h2.CANCEL)

    def _is_idle(self, now: float) -> bool:
        return not self.streams and not self.over and now - self._heard_at > self.limits.idle_timeout
