"""What an HTTP/2 connection sends: control frames at once, DATA as the windows and the socket allow.

All that is produced while one read is handled, or in one turn of the loop, leaves in one write: with many
calls at once the kernel's part of a call is then a fraction of a write. DATA waits in its stream while the
peer's windows are shut or the socket is full, and a peer whose socket is full is not read from either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from . import http2_frames as h2
from .http2_stream import Http2Limits, Stream

log = logging.getLogger(__name__)

_REMEMBERED_RESETS: Final = 256
WRITE_HIGH: Final = 1 << 20
WRITE_LOW: Final = 1 << 18


class Http2Output(asyncio.Protocol):
    """The sending side of a connection, and the ends of its streams."""

    def __init__(self, limits: Http2Limits, clock: Callable[[], float], on_cut: Callable[[str], None]) -> None:
        self.limits = limits
        self.clock = clock
        self.streams: dict[int, Stream] = {}
        self.now = clock()
        """The time of the last sweep: near enough for time-outs of seconds, and free."""
        self.peer_window = h2.DEFAULT_WINDOW
        self.send_window = h2.DEFAULT_WINDOW
        self.peer_frame = h2.MIN_FRAME_SIZE
        self.unsent = 0
        """Bytes of DATA that wait in streams."""
        self.clear = True
        """Nothing stands in the way of an answer that fits the windows: it may be written at once."""
        self.out: list[bytes | memoryview] = []
        self.flush_due = False
        """A flush will come in any case (a read is being handled, or one is scheduled)."""
        self.over = False
        """No frame is read or written any more."""
        self.draining = False
        """No new streams; the connection ends with the last of the open ones."""
        self._on_cut = on_cut
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: Any = None
        self._last_id = 0
        self._our_resets: dict[int, None] = {}
        self._sending: dict[int, Stream] = {}
        self._paused = False
        self._pumping = False
        self._table_update = b""
        self._unwritten_since = self.now

    def pause_writing(self) -> None:
        """The socket is full: DATA waits, and no more requests are read until the peer has read answers."""
        self._paused = True
        self._unwritten_since = self.now
        self._judge_clear()
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self._judge_clear()
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._send_waiting()

    def count_unsent(self, size: int) -> None:
        """So many more bytes, or fewer, of DATA wait."""
        self.unsent += size

    # Writing.

    def write(self, frame: bytes | memoryview) -> None:
        """Whole frames that no window governs; they leave with the next flush."""
        if self.over:
            return
        self.out.append(frame)
        if not self.flush_due:
            self.schedule_flush()

    def schedule_flush(self) -> None:
        """Write at the end of this turn of the loop, with whatever else is answered in it."""
        self.flush_due = True
        if self._loop is not None:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.flush_due = False
        if self.draining and not self.streams and not self.over:
            self._end("")
        out = self.out
        if not out:
            return
        self.out = []
        if not self._transport.is_closing():
            self._transport.write(b"".join(out))
        if self.over:
            self._close()

    def _close(self) -> None:
        """Say no more, and read on for a moment: closing with unread bytes would make the kernel reset the
        connection, and the peer could lose our last answers and the GOAWAY (RFC 9293, 3.6.1)."""
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        else:
            self._transport.close()

    def write_headers(self, stream_id: int, block: bytes, end_stream: bool) -> None:
        if self._table_update:
            block, self._table_update = self._table_update + block, b""
            self._judge_clear()
        self.write(h2.header_frames(stream_id, block, end_stream, self.peer_frame))

    def write_end(self, stream: Stream, trailers: bytes) -> None:
        """END_STREAM, after which the stream sends nothing."""
        if trailers:
            self.write_headers(stream.id, trailers, True)
        else:
            self.write(h2.frame_head(0, h2.DATA, h2.END_STREAM, stream.id))
        self.ended(stream)

    def want_to_send(self, stream: Stream) -> None:
        """The stream has DATA that waits."""
        self._sending[stream.id] = stream
        self._send_waiting()
        if self.unsent > self.limits.max_buffered_bytes and stream.queued:
            self._on_cut("unsent_overflow")
            self._reset_aborting(stream, h2.ENHANCE_YOUR_CALM)

    def _send_waiting(self) -> None:
        """Send what the windows and the socket allow, a frame of each stream in turn."""
        if self._pumping:
            return  # a callback below us has queued more; the loop below takes it
        self._pumping = True
        try:
            self._pump()
        finally:
            self._pumping = False
        self._judge_clear()
        if self.out and not self.flush_due:
            self.schedule_flush()

    def _pump(self) -> None:
        sending = self._sending
        budget = WRITE_HIGH
        while sending and self.send_window > 0 and not self._paused and not self.over:
            moved = False
            for stream in list(sending.values()):
                room = min(stream.send_window, self.send_window, self.peer_frame)
                if room > 0 and stream.queued:
                    moved = True
                    budget -= self._send_chunk(stream, room)
                if not stream.queued:
                    self._sent_all(stream)
                if budget <= 0:  # let the transport say whether it is full
                    budget = WRITE_HIGH
                    self._write_out()
                    if self._paused:
                        break
            if not moved:
                break

    def _send_chunk(self, stream: Stream, room: int) -> int:
        pieces = stream.take_chunk(room)
        size = sum(map(len, pieces))
        self.send_window -= size
        stream.moved()
        self.out.append(h2.frame_head(size, h2.DATA, 0, stream.id))
        self.out += pieces
        return size

    def _sent_all(self, stream: Stream) -> None:
        self._sending.pop(stream.id, None)
        block = stream.last_block
        if block is not None:
            self.write_end(stream, block)
        elif not stream.closed:
            stream.sent_all()

    def _write_out(self) -> None:
        """Hand big DATA to the transport without joining it: a copy saved."""
        out, self.out = self.out, []
        if out and not self._transport.is_closing():
            self._transport.writelines(out)

    def _judge_clear(self) -> None:
        self.clear = not (self._paused or self._table_update)

    # The end of streams.

    def ended(self, stream: Stream) -> None:
        """We have sent END_STREAM. A request that still comes in is read to its end, within its window."""
        stream.closed = True
        self._forget_if_done(stream)

    def _forget_if_done(self, stream: Stream) -> None:
        if stream.remote_done and not stream.queued:
            self.streams.pop(stream.id, None)
        elif self.draining and not stream.queued:
            self.reset(stream, h2.NO_ERROR)

    def reset(self, stream: Stream, code: int) -> None:
        """RST_STREAM from us, without a call of `on_abort`."""
        if self.streams.pop(stream.id, None) is None:
            return
        self._sending.pop(stream.id, None)
        stream.drop()
        self._remember_reset(stream.id)
        self.write(h2.rst_stream_frame(stream.id, code))

    def _reset_aborting(self, stream: Stream, code: int) -> None:
        self.reset(stream, code)
        self._abort(stream)

    def _remember_reset(self, stream_id: int) -> None:
        """What is under way on it is no fault of the peer's (RFC 9113, 5.1); the last few hundred do."""
        resets = self._our_resets
        if len(resets) >= _REMEMBERED_RESETS:
            del resets[next(iter(resets))]
        resets[stream_id] = None

    def _abort(self, stream: Stream) -> None:
        try:
            stream.on_abort()
        except Exception:
            log.exception("a stream's abort failed")

    def _abandon(self) -> None:
        streams, self.streams = list(self.streams.values()), {}
        self._sending.clear()
        for stream in streams:
            stream.drop()
            self._abort(stream)

    # The end of the connection.

    def _end(self, reason: str, code: int = h2.NO_ERROR) -> None:
        self.out.append(h2.goaway_frame(self._last_id, code, reason))
        self.over = True
        self._abandon()
        if not self.flush_due:
            self._flush()

    def abort(self) -> None:
        """Drop it without a word."""
        if self._transport is not None:
            self._transport.abort()

    def cut(self, reason: str) -> None:
        """End it at once: the peer is silent, or does not read."""
        if not self.over:
            self._on_cut(reason)
            self.over = True
            self._abandon()
            self._transport.abort()
