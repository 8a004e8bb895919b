"""HTTP/2 connection: bytes in, bytes out, with a transport that only remembers and a clock that is set."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from octoserve.patterns.online.grpc import http2_frames as h2
from octoserve.patterns.online.grpc.http2 import Http2Connection
from octoserve.patterns.online.grpc.http2_headers import HeaderDecoder, literal_field
from octoserve.patterns.online.grpc.http2_stream import Http2Limits, Stream

REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/x"), (":authority", "h")]
HELLO = h2.PREFACE + h2.settings_frame([])
ANSWER = b"\x88"


class Transport:
    """Keeps what was written. `full` is what the socket's buffer still holds."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.full = 0
        self.closed = self.aborted = self.eof = False
        self.reading = True

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        assert high > low

    def write(self, data: bytes) -> None:
        assert not self.eof
        self.written += data

    def writelines(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.write(piece)

    def get_write_buffer_size(self) -> int:
        return self.full

    def get_extra_info(self, name: str) -> object:
        return ("10.0.0.1", 4711) if name == "peername" else None

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """(type, flags, stream, payload) of all that was written since the last call."""
        found, data = [], bytes(self.written)
        while data:
            length = int.from_bytes(data[:3], "big")
            found.append((data[3], data[4], h2.read_u32(data, 5), data[9 : 9 + length]))
            assert len(data) >= 9 + length
            data = data[9 + length :]
        self.written.clear()
        return found


class Echo(Stream):
    """Collects a request and answers with its body, unless told to keep quiet."""

    def __init__(self, connection: Connection, stream_id: int) -> None:
        super().__init__(connection, stream_id)
        self.body = bytearray()
        self.aborts = 0
        self.drained = 0

    def on_data(self, data: bytes, start: int, end: int) -> None:
        self.body += data[start:end]
        if self.remote_done:
            self.on_end()

    def on_end(self) -> None:
        assert isinstance(self.connection, Connection)
        if self.connection.answers:
            self.send_headers(ANSWER)
            self.send_data(bytes(self.body))
            self.send_end()

    def on_abort(self) -> None:
        self.aborts += 1

    def sent_all(self) -> None:
        self.drained += 1


class Connection(Http2Connection):
    answers = True

    def __init__(self, limits: Http2Limits | None = None) -> None:
        self.time = 100.0
        self.cuts: list[str] = []
        self.opened: list[Echo] = []
        super().__init__(limits or Http2Limits(), lambda: self.time, self.cuts.append)

    def read_head(self, fields: Any) -> Any:
        self.rules.request(fields)
        return fields

    def open_stream(self, stream_id: int, head: Any, ended: bool) -> Stream:
        self.opened.append(Echo(self, stream_id))
        return self.opened[-1]

    def pass_time(self, seconds: float) -> None:
        self.time += seconds
        self.sweep(self.time)


class Peer:
    """The client's end."""

    def __init__(self, limits: Http2Limits | None = None, hello: bytes = HELLO) -> None:
        self.encoder = Encoder()
        self.transport = Transport()
        self.connection = Connection(limits)

        async def begin() -> None:
            self.connection.connection_made(self.transport)

        asyncio.run(begin())
        self.connection._loop = None
        if hello:
            self.send(hello)
            self.transport.frames()

    def send(self, data: bytes) -> None:
        self.connection.data_received(data)

    def request(self, stream_id: int, ended: bool = True, extra: list[tuple[str, str]] | None = None) -> None:
        block = self.encoder.encode(REQUEST + (extra or []))
        self.send(h2.header_frames(stream_id, block, ended, 16384))

    def data(self, stream_id: int, body: bytes, ended: bool = False) -> None:
        self.send(h2.frame_head(len(body), h2.DATA, int(ended), stream_id) + body)

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        self.connection._flush()
        return self.transport.frames()

    def failed_with(self) -> int | None:
        """The code of a GOAWAY that ended the connection."""
        codes = [h2.read_u32(body, 4) for kind, _, _, body in self.frames() if kind == h2.GOAWAY]
        return codes[-1] if codes and self.connection.over else None

    def resets(self) -> list[tuple[int, int]]:
        return [(sid, h2.read_u32(body, 0)) for kind, _, sid, body in self.frames() if kind == h2.RST_STREAM]


def test_settings_come_first_and_a_request_is_answered() -> None:
    peer = Peer(hello=b"")
    first = peer.transport.frames()
    assert first[0][0] == h2.SETTINGS
    assert first[1][0] == h2.WINDOW_UPDATE
    peer.send(HELLO)
    peer.request(1, ended=False)
    peer.data(1, b"abc", ended=True)
    kinds = [(kind, flags, sid, body) for kind, flags, sid, body in peer.frames()]
    assert kinds == [
        (h2.SETTINGS, h2.ACK, 0, b""),
        (h2.HEADERS, h2.END_HEADERS, 1, ANSWER),
        (h2.DATA, 0, 1, b"abc"),
        (h2.DATA, h2.END_STREAM, 1, b""),
    ]
    assert not peer.connection.streams


def test_every_split_of_a_session_gives_the_same_answer() -> None:
    encoder = Encoder()
    session = HELLO + b"".join(
        h2.header_frames(sid, encoder.encode(REQUEST), False, 16384)
        + h2.frame_head(5, h2.DATA, 1, sid) + b"hello" + h2.ping_frame(b"12345678")
        for sid in (1, 3, 5)
    )  # fmt: skip
    whole = Peer(hello=b"")
    whole.send(session)
    expected = bytes(whole.transport.written)
    for cut in range(1, len(session)):
        peer = Peer(hello=b"")
        peer.send(session[:cut])
        peer.send(session[cut:])
        assert bytes(peer.transport.written) == expected
    byte_by_byte = Peer(hello=b"")
    for place in range(len(session)):
        byte_by_byte.send(session[place : place + 1])
    assert bytes(byte_by_byte.transport.written) == expected


def test_continuation_padding_and_priority_are_understood() -> None:
    peer = Peer()
    block = peer.encoder.encode(REQUEST)
    head = h2.frame_head(len(block) + 4 + 6, h2.HEADERS, h2.PADDED | h2.HAS_PRIORITY, 1)
    peer.send(head + b"\x04" + b"\0\0\0\0\x10" + block + b"\0\0\0\0")
    peer.send(h2.frame_head(0, h2.CONTINUATION, h2.END_HEADERS, 1))
    peer.send(h2.frame_head(6, h2.DATA, h2.PADDED | h2.END_STREAM, 1) + b"\x02abc\0\0")
    assert (h2.DATA, 0, 1, b"abc") in peer.frames()


FAULTS = {
    "wrong preface": (b"GET / HTTP/1.1\r\n\r\n" + bytes(30), h2.PROTOCOL_ERROR),
    "no settings": (h2.PREFACE + h2.ping_frame(bytes(8)), h2.PROTOCOL_ERROR),
    "frame too large": (HELLO + h2.frame_head(16385, h2.DATA, 0, 1), h2.FRAME_SIZE_ERROR),
    "data on stream 0": (HELLO + h2.frame_head(1, h2.DATA, 0, 0) + b"x", h2.PROTOCOL_ERROR),
    "data on an idle stream": (HELLO + h2.frame_head(1, h2.DATA, 0, 1) + b"x", h2.PROTOCOL_ERROR),
    "headers on an even stream": (HELLO + h2.header_frames(2, b"\x82", True, 16384), h2.PROTOCOL_ERROR),
    "push": (HELLO + h2.frame_head(4, h2.PUSH_PROMISE, 0, 1) + bytes(4), h2.PROTOCOL_ERROR),
    "short ping": (HELLO + h2.frame_head(7, h2.PING, 0, 0) + bytes(7), h2.FRAME_SIZE_ERROR),
    "ping on a stream": (HELLO + h2.frame_head(8, h2.PING, 0, 1) + bytes(8), h2.PROTOCOL_ERROR),
    "short settings": (HELLO + h2.frame_head(5, h2.SETTINGS, 0, 0) + bytes(5), h2.FRAME_SIZE_ERROR),
    "push enabled": (HELLO + h2.settings_frame([(h2.ENABLE_PUSH, 2)]), h2.PROTOCOL_ERROR),
    "huge window": (HELLO + h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, 2**31)]), h2.FLOW_CONTROL_ERROR),
    "small frame": (HELLO + h2.settings_frame([(h2.MAX_FRAME_SIZE, 16383)]), h2.PROTOCOL_ERROR),
    "no increment": (HELLO + h2.window_update_frame(0, 0), h2.PROTOCOL_ERROR),
    "window overflow": (HELLO + h2.window_update_frame(0, 2**31 - 1), h2.FLOW_CONTROL_ERROR),
    "reset of an idle stream": (HELLO + h2.rst_stream_frame(1, 8), h2.PROTOCOL_ERROR),
    "continuation alone": (HELLO + h2.frame_head(0, h2.CONTINUATION, 4, 1), h2.PROTOCOL_ERROR),
    "broken block": (HELLO + h2.header_frames(1, b"\xc0", True, 16384), h2.COMPRESSION_ERROR),
    "truncated block": (HELLO + h2.header_frames(1, b"\x40\x05ab", True, 16384), h2.COMPRESSION_ERROR),
    "padding too long": (HELLO + h2.frame_head(1, h2.DATA, h2.PADDED, 1) + b"\x01", h2.PROTOCOL_ERROR),
}


@pytest.mark.parametrize(("data", "code"), FAULTS.values(), ids=FAULTS.keys())
def test_connection_faults(data: bytes, code: int) -> None:
    peer = Peer(hello=b"")
    peer.send(data)
    assert peer.failed_with() == code
    assert peer.transport.eof
    assert peer.connection.cuts == ["connection_error"]


MALFORMED = {
    "upper case": [("X-Y", "1")],
    "connection": [("connection", "close")],
    "te": [("te", "gzip")],
    "late pseudo": [("a", "b"), (":path", "/")],
    "two paths": [(":path", "/")],
    "unknown pseudo": [(":x", "/")],
    "line break": [("a", "b\nc")],
    "space": [("a", " b")],
}


@pytest.mark.parametrize("extra", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_loses_its_stream_only(extra: list[tuple[str, str]]) -> None:
    peer = Peer()
    peer.request(1, extra=extra)
    assert peer.resets() == [(1, h2.PROTOCOL_ERROR)]
    peer.request(3)
    assert any(kind == h2.HEADERS and sid == 3 for kind, _, sid, _ in peer.frames())


def test_stream_ids() -> None:
    peer = Peer()
    peer.request(1)
    peer.frames()
    peer.data(1, b"late")
    assert peer.resets() == [(1, h2.STREAM_CLOSED)]
    peer.request(1)
    assert peer.failed_with() == h2.STREAM_CLOSED
    skipper = Peer()
    skipper.request(5)
    skipper.request(3)
    assert skipper.failed_with() == h2.PROTOCOL_ERROR


def test_what_was_under_way_when_we_reset_is_no_fault() -> None:
    peer = Peer()
    peer.request(1, ended=False, extra=[("te", "gzip")])
    peer.data(1, b"x")
    peer.request(1)
    assert peer.resets() == [(1, h2.PROTOCOL_ERROR)]
    assert not peer.connection.over


def test_trailers_end_a_request() -> None:
    peer = Peer()
    peer.request(1, ended=False)
    peer.send(h2.header_frames(1, literal_field(b"x", b"y"), True, 16384))
    assert peer.frames()[-1] == (h2.DATA, h2.END_STREAM, 1, b"")
    peer.request(3, ended=False)
    peer.send(h2.header_frames(3, b"\x82", True, 16384))
    assert peer.resets() == [(3, h2.PROTOCOL_ERROR)]


def test_data_waits_for_both_windows_and_goes_round() -> None:
    peer = Peer()
    peer.send(h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, 10)]))
    peer.connection.answers = False
    peer.request(1)
    peer.request(3)
    peer.frames()
    for stream in peer.connection.opened:
        stream.send_headers(ANSWER)
        stream.send_data(bytes([stream.id]) * 25)
        stream.send_end()
    sent = [(sid, len(body)) for kind, _, sid, body in peer.frames() if kind == h2.DATA]
    assert sent == [(1, 10), (3, 10)]
    peer.send(h2.window_update_frame(3, 100))
    assert [(sid, len(body)) for kind, _, sid, body in peer.frames()] == [(3, 15), (3, 0)]
    peer.send(h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, 14)]))
    assert (h2.DATA, 0, 1, b"\1\1\1\1") in peer.frames()
    peer.send(h2.window_update_frame(1, 100))
    assert [len(body) for *_, body in peer.frames()] == [11, 0]
    assert peer.connection.unsent == 0
    assert not peer.connection.streams


def test_connection_window_limits_all_streams() -> None:
    peer = Peer()
    peer.send(h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, 1 << 20)]))
    peer.connection.answers = False
    peer.request(1)
    stream = peer.connection.opened[0]
    stream.send_data(bytes(100_000))
    assert sum(len(body) for kind, *_, body in peer.frames() if kind == h2.DATA) == 65_535
    assert stream.drained == 0
    peer.send(h2.window_update_frame(0, 1 << 20))
    assert sum(len(body) for kind, *_, body in peer.frames() if kind == h2.DATA) == 100_000 - 65_535
    assert stream.drained == 1


def test_windows_are_widened_in_batches() -> None:
    peer = Peer(Http2Limits(stream_window=40_000, connection_window=100_000))
    peer.request(1, ended=False)
    updates = []
    for _ in range(10):
        peer.data(1, bytes(10_000))
        updates += [(sid, h2.read_u32(body, 0)) for kind, _, sid, body in peer.frames() if kind == 8]
    assert updates == [(1, 30_000), (0, 60_000), (1, 30_000), (1, 30_000)]


def test_an_overrun_window_loses_the_stream() -> None:
    limits = Http2Limits(stream_window=40_000, connection_window=100_000)
    peer = Peer(limits)
    peer.request(1, ended=False)
    stream = peer.connection.opened[0]
    stream.hold_window = True
    for _ in range(5):
        peer.data(1, bytes(10_000))
    assert peer.resets() == [(1, h2.FLOW_CONTROL_ERROR)]
    assert stream.aborts == 1


def test_a_full_socket_stops_reading_and_data() -> None:
    peer = Peer()
    peer.connection.answers = False
    peer.request(1)
    peer.connection.pause_writing()
    assert not peer.transport.reading
    stream = peer.connection.opened[0]
    stream.send_data(b"x" * 100)
    assert not [frame for frame in peer.frames() if frame[0] == h2.DATA]
    peer.connection.resume_writing()
    assert peer.transport.reading
    assert (h2.DATA, 0, 1, b"x" * 100) in peer.frames()


FLOODS = {
    "ping": h2.ping_frame(bytes(8)),
    "settings": h2.settings_frame([]),
    "settings acks": h2.SETTINGS_ACK,
    "priority": h2.frame_head(5, h2.PRIORITY, 0, 3) + bytes(5),
    "unknown": h2.frame_head(0, 77, 0, 0),
    "empty data": h2.frame_head(0, h2.DATA, 0, 1),
}


@pytest.mark.parametrize("frame", FLOODS.values(), ids=FLOODS.keys())
def test_floods(frame: bytes) -> None:
    peer = Peer(Http2Limits(max_control_frames=50))
    peer.request(1, ended=False)
    peer.send(frame * 40)
    peer.connection.pass_time(1)
    peer.send(frame * 50)
    assert not peer.connection.over
    peer.send(frame)
    assert peer.failed_with() == h2.ENHANCE_YOUR_CALM
    assert peer.connection.cuts == ["flood"]


def test_rapid_reset() -> None:
    peer = Peer(Http2Limits(max_resets=20))
    peer.connection.answers = False
    for place in range(20):
        peer.request(2 * place + 1)
        peer.send(h2.rst_stream_frame(2 * place + 1, h2.CANCEL))
    assert all(stream.aborts == 1 for stream in peer.connection.opened)
    assert not peer.connection.over
    peer.request(41)
    peer.send(h2.rst_stream_frame(41, h2.CANCEL))
    assert peer.failed_with() == h2.ENHANCE_YOUR_CALM


def test_resets_that_the_peer_provokes_count_too() -> None:
    peer = Peer(Http2Limits(max_resets=20))
    peer.connection.answers = False
    for place in range(21):
        peer.request(2 * place + 1)
        peer.send(h2.window_update_frame(2 * place + 1, 0))
    assert peer.failed_with() == h2.ENHANCE_YOUR_CALM


def test_too_many_streams_are_refused() -> None:
    peer = Peer(Http2Limits(max_concurrent_streams=2))
    peer.connection.answers = False
    for sid in (1, 3, 5):
        peer.request(sid)
    assert peer.resets() == [(5, h2.REFUSED_STREAM)]
    assert len(peer.connection.opened) == 2


def test_header_limits() -> None:
    endless = Peer()
    endless.send(h2.frame_head(1, h2.HEADERS, 0, 1) + b"\x82")
    endless.send(h2.frame_head(0, h2.CONTINUATION, 0, 1) * 65)
    assert endless.failed_with() == h2.ENHANCE_YOUR_CALM
    long = Peer(Http2Limits(max_header_bytes=1000))
    long.send(h2.header_frames(1, literal_field(b"a", b"b" * 990), True, 16384))
    assert long.failed_with() == h2.ENHANCE_YOUR_CALM
    bomb = Peer()
    bomb.send(
        h2.header_frames(1, literal_field(b"a", b"b" * 3000).replace(b"\0", b"\x40", 1) + b"\xbe" * 9000, True, 16384)
    )
    assert bomb.failed_with() == h2.ENHANCE_YOUR_CALM


def test_unsent_answers_are_bounded() -> None:
    peer = Peer(Http2Limits(max_buffered_bytes=100_000))
    peer.connection.answers = False
    for sid in (1, 3):
        peer.request(sid)
    first, second = peer.connection.opened
    first.send_data(bytes(120_000))
    second.send_data(bytes(60_000))
    assert second.aborts == 1
    peer.request(5)
    assert peer.resets() == [(3, h2.ENHANCE_YOUR_CALM), (5, h2.REFUSED_STREAM)]


def test_slow_preface_and_slow_frames_are_cut() -> None:
    silent = Peer(hello=b"")
    silent.connection.pass_time(31)
    assert silent.connection.cuts == ["slow_preface"]
    assert silent.transport.aborted
    slow = Peer()
    slow.connection.pass_time(1)
    for byte in h2.frame_head(100, h2.DATA, 0, 1):
        slow.send(bytes([byte]))
        slow.connection.pass_time(5)
    assert slow.connection.cuts == ["slow_request"]


def test_a_slow_request_loses_its_stream() -> None:
    peer = Peer()
    peer.request(1, ended=False)
    peer.connection.pass_time(31)
    assert peer.resets() == [(1, h2.CANCEL)]
    assert peer.connection.opened[0].aborts == 1
    assert not peer.connection.over


def test_idle_connections_are_closed_and_busy_ones_pinged() -> None:
    idle = Peer()
    idle.connection.pass_time(1)
    idle.connection.pass_time(601)
    assert idle.failed_with() == h2.NO_ERROR
    busy = Peer()
    busy.connection.answers = False
    busy.request(1)
    busy.connection.pass_time(1)
    busy.connection.pass_time(121)
    assert [kind for kind, *_ in busy.frames()] == [h2.PING]
    busy.connection.pass_time(31)
    assert busy.connection.cuts == ["dead_peer"]
    assert busy.connection.opened[0].aborts == 1


def test_a_peer_that_does_not_read_is_cut() -> None:
    peer = Peer()
    peer.request(1, ended=False)
    peer.send(h2.frame_head(5, h2.DATA, 0, 1))
    peer.connection.pause_writing()
    peer.transport.full = 1000
    for full in (1000, 900, 900, 900, 900):
        peer.transport.full = full
        peer.connection.pass_time(11)
    assert peer.connection.cuts == ["not_reading"]
    windowless = Peer()
    windowless.send(h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, 0)]))
    windowless.request(1, ended=False)
    windowless.data(1, b"abc", ended=True)
    for _ in range(2):
        windowless.connection.pass_time(31)
    assert windowless.resets() == [(1, h2.CANCEL)]


def test_drain_takes_two_steps() -> None:
    peer = Peer()
    peer.connection.answers = False
    peer.request(1)
    peer.connection.drain()
    goaway, ping = peer.frames()
    assert h2.read_u32(goaway[3], 0) == h2.MAX_STREAM_ID
    peer.request(3)  # was under way
    peer.send(h2.ping_frame(ping[3], h2.ACK))
    assert [(kind, h2.read_u32(body, 0)) for kind, *_, body in peer.frames()] == [(h2.GOAWAY, 3)]
    peer.request(5)
    assert peer.resets() == [(5, h2.REFUSED_STREAM)]
    for stream in peer.connection.opened:
        stream.send_headers(ANSWER, end_stream=True)
    peer.frames()
    assert peer.transport.eof


def test_drain_of_a_peer_that_answers_no_ping() -> None:
    peer = Peer()
    peer.connection.drain()
    peer.connection.pass_time(2)
    peer.frames()
    assert peer.transport.eof
    peer.connection.pass_time(1)
    peer.connection.pass_time(3)
    assert peer.transport.closed


def test_lost_connection_aborts_each_stream_once() -> None:
    peer = Peer()
    peer.connection.answers = False
    peer.request(1)
    peer.connection.connection_lost(None)
    stream = peer.connection.opened[0]
    assert stream.aborts == 1
    stream.send_headers(ANSWER)
    stream.send_data(b"x")
    stream.send_end(b"\x88")
    assert not peer.transport.frames()


def test_a_smaller_table_is_acknowledged_in_the_next_block() -> None:
    peer = Peer()
    peer.send(h2.settings_frame([(h2.HEADER_TABLE_SIZE, 0)]))
    peer.frames()
    peer.request(1)
    blocks = [body for kind, *_, body in peer.frames() if kind == h2.HEADERS]
    decoder = Decoder()
    decoder.max_allowed_table_size = 0
    assert list(decoder.decode(blocks[0], raw=True)) == [(b":status", b"200")]


def test_heads_are_forgotten_when_the_table_changes() -> None:
    peer = Peer()
    seen: list[Any] = []
    read = peer.connection.read_head
    peer.connection.read_head = lambda fields: (seen.append(dict(fields)), read(fields))[1]  # type: ignore
    for sid, value in ((1, "a"), (3, "a"), (5, "a"), (7, "b"), (9, "a"), (11, "b")):
        peer.request(sid, extra=[("k", value)])
        assert seen[-1][b"k"] == value.encode()
    block = peer.encoder.encode([*REQUEST, ("k", "a")])
    count = len(seen)
    for sid in (13, 15, 17):
        peer.send(h2.header_frames(sid, block, True, 16384))
    assert len(seen) <= count + 1


names = st.text("abcdefgh-", min_size=1, max_size=12)
values = st.one_of(st.text("abc/ 09", max_size=30), st.text("xyz", min_size=120, max_size=300))
lists = st.lists(st.tuples(names, values, st.booleans()), max_size=30)


@given(st.lists(lists, max_size=8), st.sampled_from([None, 0, 100, 4096]), st.booleans())
def test_our_decoder_agrees_with_the_package(blocks: list[Any], size: int | None, huffman: bool) -> None:
    """Same fields, same table, for blocks in sequence with indexed, never-indexed and resized tables."""
    encoder, ours, theirs = Encoder(), HeaderDecoder(1 << 16), Decoder()
    if size is not None:
        encoder.header_table_size = size
    for fields in blocks:
        block = encoder.encode(fields, huffman=huffman)
        assert ours.decode(block) == [tuple(field) for field in theirs.decode(block, raw=True)]
        entries = [(bytes(n), bytes(v)) for n, v in theirs.header_table.dynamic_entries]
        assert list(ours._table.dynamic_entries) == entries


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_our_decoder_refuses_what_the_package_refuses(blocks: list[bytes]) -> None:
    ours, theirs = HeaderDecoder(1 << 16), Decoder()
    for block in blocks:
        expected: Any = None
        try:
            expected = [(bytes(n), bytes(v)) for n, v in theirs.decode(block, raw=True)]
        except Exception:
            with pytest.raises(h2.ConnectionFault):
                ours.decode(block)
            return
        assert ours.decode(block) == expected


def bounded(peer: Peer) -> None:
    """Whatever came, little is kept, and nothing was written after the end."""
    connection = peer.connection
    assert len(connection._partial) <= 2 * connection.limits.max_frame_bytes
    assert len(connection.streams) <= connection.limits.max_concurrent_streams
    assert len(connection._heads) <= 64
    assert len(connection._our_resets) <= 256
    assert b"internal error" not in peer.transport.written
    assert connection.unsent == sum(stream.queued for stream in connection.streams.values())


@given(st.lists(st.binary(max_size=200), max_size=10), st.booleans())
def test_random_bytes(chunks: list[bytes], greeted: bool) -> None:
    peer = Peer(hello=HELLO if greeted else b"")
    for chunk in chunks:
        peer.send(chunk)
        bounded(peer)


frame = st.builds(
    lambda kind, flags, sid, body: h2.frame_head(len(body), kind, flags, sid) + body,
    st.integers(0, 11), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40),
)  # fmt: skip


@given(st.lists(frame, max_size=30), st.integers(1, 50))
def test_random_frames(frames: list[bytes], step: int) -> None:
    peer = Peer(Http2Limits(max_concurrent_streams=3, max_control_frames=20))
    stream = b"".join(frames)
    for start in range(0, len(stream), step):
        peer.send(stream[start : start + step])
        bounded(peer)
    peer.connection.pass_time(1)
    peer.connection.pass_time(100)
    peer.connection.connection_lost(None)
    assert all(stream.aborts <= 1 for stream in peer.connection.opened)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), st.integers(1, 400))
def test_mutated_sessions(changes: list[tuple[int, int]], cut: int) -> None:
    encoder = Encoder()
    session = bytearray(h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, 20)]))
    for sid in (1, 3, 5, 7):
        session += h2.header_frames(sid, encoder.encode([*REQUEST, ("n", str(sid))]), False, 16384)
        session += h2.frame_head(30, h2.DATA, 1, sid) + bytes(30) + h2.window_update_frame(sid, 10)
    for place, value in changes:
        session[place % len(session)] = value
    peer = Peer()
    peer.send(bytes(session[:cut]))
    peer.send(bytes(session[cut:]))
    bounded(peer)


def test_a_bug_of_ours_ends_the_connection_quietly(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer()
    peer.connection.open_stream = lambda *args: 1 / 0  # type: ignore[method-assign,assignment]
    peer.request(1)
    assert peer.failed_with() == h2.INTERNAL_ERROR
    assert "ZeroDivisionError" in caplog.text
