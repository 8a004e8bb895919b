"""gRPC on one connection: calls in bytes, with a transport that only remembers and a clock that is set."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from octoserve.patterns.online.grpc import http2_frames as h2
from octoserve.patterns.online.grpc.transport import (
    GrpcCall,
    GrpcLimits,
    GrpcServer,
    percent_encoded,
    status_block,
)

HEADERS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/t.T/Unary",
    ":authority": "h",
    "te": "trailers",
    "content-type": "application/grpc",
}


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


class Transport:
    """Keeps what was written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False
        self.eof = False

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.written.append(bytes(data))

    def writelines(self, pieces: list[bytes]) -> None:
        self.write(b"".join(pieces))

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> object:
        return ("10.0.0.1", 4711)

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Answer:
    """What the client has seen of one call."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.body = b""
        self.ended = False
        self.reset: int | None = None

    @property
    def messages(self) -> list[bytes]:
        found, rest = [], self.body
        while rest:
            size = int.from_bytes(rest[1:5], "big")
            found.append(rest[5 : 5 + size])
            rest = rest[5 + size :]
        return found

    @property
    def status(self) -> int:
        return int(self.headers["grpc-status"])


class Server:
    """A GrpcServer with one client."""

    def __init__(self, limits: GrpcLimits | None = None, windows: int = 1 << 20) -> None:
        self.time = 50.0
        self.cuts: list[str] = []
        self.calls: list[GrpcCall] = []
        self.requests: list[bytes] = []
        self.cancels = 0
        self.events: list[Any] = []
        self.server = GrpcServer(
            {"/t.T/Unary": self.unary, "/t.T/Later": self.later, "/t.T/Broken": self.broken},
            {"/t.T/Stream": self.stream},
            limits or GrpcLimits(),
            clock=lambda: self.time,
            on_cut=self.cuts.append,
        )
        self.encoder, self.decoder = Encoder(), Decoder()
        self.answers: dict[int, Answer] = {}
        self.next_id = 1
        self.transport = Transport()
        self.connection = self.server()

        async def begin() -> None:
            self.connection.connection_made(self.transport)

        asyncio.run(begin())
        self.connection._loop = None
        self.send(
            h2.PREFACE + h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, windows)]) + h2.window_update_frame(0, 1 << 24)
        )

    def unary(self, call: GrpcCall, message: bytes) -> None:
        self.calls.append(call)
        call.reply(message.upper())

    def later(self, call: GrpcCall, message: bytes) -> None:
        self.calls.append(call)
        self.requests.append(message)
        call.on_cancel = self.cancelled

    def cancelled(self) -> None:
        self.cancels += 1

    def broken(self, call: GrpcCall, message: bytes) -> None:
        raise RuntimeError("secret")

    def stream(self, call: GrpcCall) -> None:
        self.calls.append(call)
        call.on_message = self.events.append
        call.on_half_close = lambda: self.events.append("end")
        call.on_cancel = self.cancelled

    def send(self, data: bytes) -> None:
        self.connection.data_received(data)
        self.read()

    def start(self, path: str = "/t.T/Unary", ended: bool = False, **extra: str) -> Answer:
        fields = HEADERS | {":path": path} | {name.replace("_", "-"): v for name, v in extra.items()}
        return self.start_raw(fields, ended)

    def start_raw(self, fields: Mapping[str, str], ended: bool = False) -> Answer:
        self.id, self.next_id = self.next_id, self.next_id + 2
        answer = self.answers[self.id] = Answer()
        self.send(h2.header_frames(self.id, self.encoder.encode(list(fields.items())), ended, 16384))
        return answer

    def data(self, body: bytes, ended: bool = True, step: int = 16384) -> None:
        pieces = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
        for place, piece in enumerate(pieces):
            last = ended and place == len(pieces) - 1
            self.send(h2.frame_head(len(piece), h2.DATA, int(last), self.id) + piece)

    def call(self, path: str, body: bytes, step: int = 16384, **extra: str) -> Answer:
        answer = self.start(path, **extra)
        self.data(body, step=step)
        return answer

    def read(self) -> None:
        self.connection._flush()
        data = b"".join(self.transport.written)
        self.transport.written.clear()
        while data:
            length = int.from_bytes(data[:3], "big")
            kind, flags, sid, body = data[3], data[4], h2.read_u32(data, 5), data[9 : 9 + length]
            data = data[9 + length :]
            assert kind != h2.GOAWAY or h2.read_u32(body, 4) != h2.INTERNAL_ERROR
            answer = self.answers.get(sid)
            if answer is None:
                continue
            assert not answer.ended or kind in (h2.RST_STREAM, h2.WINDOW_UPDATE)
            if kind == h2.HEADERS:
                answer.headers.update(dict(self.decoder.decode(body)))
            elif kind == h2.DATA:
                answer.body += body
            elif kind == h2.RST_STREAM:
                answer.reset = h2.read_u32(body, 0)
            answer.ended |= kind in (h2.DATA, h2.HEADERS) and bool(flags & h2.END_STREAM)


def test_a_unary_call() -> None:
    server = Server()
    for text in (b"abc", b"", b"def"):
        answer = server.call("/t.T/Unary", framed(text))
        assert answer.headers[":status"] == "200"
        assert answer.headers["content-type"] == "application/grpc"
        assert (answer.messages, answer.status, answer.ended) == ([text.upper()], 0, True)
    assert server.server.in_flight == 0
    assert server.calls[0].method == "/t.T/Unary"
    assert server.calls[0].peer == "10.0.0.1:4711"


@pytest.mark.parametrize("step", [1, 2, 4, 5, 6, 7, 9, 100])
def test_frames_need_not_be_messages(step: int) -> None:
    server = Server()
    assert server.call("/t.T/Unary", framed(b"hello"), step).messages == [b"HELLO"]
    server.start("/t.T/Stream")
    server.data(framed(b"a") + framed(b"") + framed(b"bcdef"), step=step)
    assert server.events == [b"a", b"", b"bcdef", "end"]
    assert server.server.held == 0


def test_end_stream_in_a_frame_of_its_own() -> None:
    server = Server()
    answer = server.start()
    server.data(framed(b"abc"), ended=False)
    assert not answer.ended
    server.data(b"")
    assert answer.messages == [b"ABC"]
    assert server.server.held == 0


def test_one_write_for_all_answers_of_a_turn() -> None:
    server = Server()
    for _ in range(5):
        server.call("/t.T/Later", framed(b"x"))
    for call in server.calls:
        call.reply(b"y")
    server.connection._flush()
    assert len(server.transport.written) == 1
    server.read()
    assert all(answer.messages == [b"y"] for answer in server.answers.values())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1H", 3600), ("2M", 120), ("3S", 3), ("4m", 0.004), ("5u", 5e-6), ("6n", 6e-9), ("99999999S", 99999999)],
)
def test_deadlines(text: str, seconds: float) -> None:
    server = Server()
    for _ in range(3):
        server.call("/t.T/Later", framed(b""), grpc_timeout=text)
        assert server.calls[-1].deadline == pytest.approx(server.time + seconds)
        server.time += 10
    server.call("/t.T/Later", framed(b""))
    assert server.calls[-1].deadline is None


@pytest.mark.parametrize("text", ["", "1", "S", "1s", "123456789S", "-1S", "1 S", "1.5S"])
def test_malformed_timeouts(text: str) -> None:
    server = Server()
    assert server.call("/t.T/Unary", framed(b""), grpc_timeout=text).status == 13


def test_metadata() -> None:
    server = Server()
    server.call("/t.T/Later", framed(b""), x_id="7", y_bin="AAE=")
    assert server.calls[0].metadata["x-id"] == "7"
    assert server.calls[0].metadata["y-bin"] == "AAE="
    assert ":path" not in server.calls[0].metadata


REFUSALS: dict[str, tuple[Callable[[Server], Answer], int]] = {
    "unknown method": (lambda s: s.call("/t.T/Nothing", framed(b"")), 12),
    "unknown encoding": (lambda s: s.call("/t.T/Unary", framed(b""), grpc_encoding="snappy"), 12),
    "no message": (lambda s: s.call("/t.T/Unary", b""), 12),
    "no body": (lambda s: s.start("/t.T/Unary", ended=True), 12),
    "two messages": (lambda s: s.call("/t.T/Unary", framed(b"a") * 2), 12),
    "two messages, two frames": (lambda s: s.call("/t.T/Unary", framed(b"a") * 2, step=6), 12),
    "half a message": (lambda s: s.call("/t.T/Unary", framed(b"abc")[:-1]), 13),
    "half a prefix": (lambda s: s.call("/t.T/Unary", b"\0\0"), 13),
    "compressed identity": (lambda s: s.call("/t.T/Unary", framed(b"abc", 1)), 13),
    "bad flag": (lambda s: s.call("/t.T/Unary", framed(b"abc", 2), grpc_encoding="gzip"), 13),
    "not gzip": (lambda s: s.call("/t.T/Unary", framed(b"abc", 1), grpc_encoding="gzip"), 13),
    "half gzip": (lambda s: s.call("/t.T/Unary", framed(gzip.compress(b"a")[:-5], 1), grpc_encoding="gzip"), 13),
    "bomb": (lambda s: s.call("/t.T/Unary", framed(gzip.compress(bytes(9999)), 1), grpc_encoding="gzip"), 8),
    "too large": (lambda s: s.call("/t.T/Unary", framed(bytes(1001))), 8),
    "claims too much": (lambda s: s.call("/t.T/Unary", framed(bytes(1001))[:6]), 8),
    "handler fails": (lambda s: s.call("/t.T/Broken", framed(b"")), 13),
}


@pytest.mark.parametrize(("act", "code"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(act: Callable[[Server], Answer], code: int) -> None:
    server = Server(GrpcLimits(max_message_bytes=1000))
    answer = act(server)
    assert (answer.status, answer.messages, answer.ended) == (code, [], True)
    assert "secret" not in answer.headers["grpc-message"]
    assert server.server.held == 0
    assert server.call("/t.T/Unary", framed(b"ok")).messages == [b"OK"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"content-type": "application/json"}, "415"),
        ({"content-type": "application/grpc-web"}, "415"),
        ({":method": "GET"}, "405"),
    ],
)
def test_what_is_not_grpc(change: dict[str, str], status: str) -> None:
    answer = Server().start_raw(HEADERS | change, ended=True)
    assert answer.headers[":status"] == status
    assert "grpc-status" not in answer.headers
    assert len(answer.body) == int(answer.headers["content-length"])


def test_content_types_of_grpc() -> None:
    for kind in ("application/grpc", "application/grpc+proto", "application/grpc;charset=x"):
        assert Server().call("/t.T/Unary", framed(b"a"), content_type=kind).messages == [b"A"]


def test_content_length_must_hold() -> None:
    server = Server()
    assert server.call("/t.T/Unary", framed(b"ab"), content_length="7").messages == [b"AB"]
    assert server.call("/t.T/Later", framed(b"ab"), content_length="8").reset == h2.PROTOCOL_ERROR
    assert server.call("/t.T/Later", framed(b"ab"), content_length="x").reset == h2.PROTOCOL_ERROR
    assert not server.requests


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_requests(name: str, pack: Callable[[bytes], bytes]) -> None:
    server = Server()
    assert server.call("/t.T/Unary", framed(pack(b"abc" * 99), 1), grpc_encoding=name).messages == [b"ABC" * 99]
    assert server.call("/t.T/Unary", framed(b"plain"), grpc_encoding=name).messages == [b"PLAIN"]


def test_an_early_answer_leaves_the_rest_unread() -> None:
    server = Server(GrpcLimits(max_message_bytes=1000))
    answer = server.start()
    server.data(framed(bytes(5000)), ended=False)
    assert (answer.status, answer.ended, answer.reset) == (8, True, None)
    server.data(bytes(600_000), ended=False)
    assert answer.reset == h2.NO_ERROR
    server.data(bytes(100))
    assert not server.connection.over
    assert not server.connection.streams


def test_cancel_is_told_once_and_answers_after_it_do_nothing() -> None:
    server = Server()
    answer = server.call("/t.T/Later", framed(b"a"))
    server.send(h2.rst_stream_frame(server.id, h2.CANCEL))
    call = server.calls[0]
    assert (server.cancels, call.cancelled) == (1, True)
    call.reply(b"x")
    call.send(b"x")
    call.finish()
    call.fail(13, "x")
    server.connection.connection_lost(None)
    assert (server.cancels, answer.headers) == (1, {})
    assert server.server.connections == 0


def test_no_cancel_after_the_answer() -> None:
    server = Server()
    server.call("/t.T/Later", framed(b"a"))
    server.calls[0].reply(b"")
    server.calls[0].reply(b"")
    server.send(h2.rst_stream_frame(server.id, h2.CANCEL))
    server.connection.connection_lost(None)
    assert server.cancels == 0


def closing(act: Callable[[Server, GrpcCall], None], path: str = "/t.T/Later") -> list[str]:
    """What a call's `on_closed` was told while `act` ended it, and its connection after that."""
    server = Server()
    told: list[str] = []
    server.start(path)
    if path == "/t.T/Later":
        server.data(framed(b"a"))
    call = server.calls[0]
    call.on_closed = lambda: told.append("closed")
    assert not told
    act(server, call)
    server.read()
    server.connection.connection_lost(None)
    call.finish()
    return told


def test_closed_is_told_once_however_a_call_ends() -> None:
    reset = h2.rst_stream_frame(1, h2.CANCEL)
    ends: list[Callable[[Server, GrpcCall], None]] = [
        lambda server, call: call.reply(b"x"),
        lambda server, call: call.reply(bytes(1 << 22)),
        lambda server, call: call.fail(13, "x"),
        lambda server, call: server.send(reset),
        lambda server, call: server.connection.connection_lost(None),
        lambda server, call: server.connection.cut("x"),
        lambda server, call: server.data(b"more"),  # after END_STREAM
    ]
    for act in ends:
        assert closing(act) == ["closed"]


def test_closed_is_told_where_the_transport_ends_a_stream() -> None:
    ends: list[Callable[[Server, GrpcCall], None]] = [
        lambda server, call: server.data(framed(b"x", 1), ended=False),
        lambda server, call: server.data(framed(b"abc")[:-1]),
        lambda server, call: call.finish(),
        lambda server, call: (call.send(b"x"), call.finish())[1],  # type: ignore[func-returns-value]
    ]
    for act in ends:
        assert closing(act, "/t.T/Stream") == ["closed"]


def test_a_failing_end_is_ours_to_log(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    answer = server.call("/t.T/Later", framed(b"a"))
    server.calls[0].on_closed = lambda: 1 / 0  # type: ignore[assignment,return-value]
    server.calls[0].reply(b"x")
    server.read()
    assert answer.messages == [b"x"]
    assert "ZeroDivisionError" in caplog.text


def test_a_stream_both_ways() -> None:
    server = Server()
    answer = server.start("/t.T/Stream", x_a="b")
    call = server.calls[0]
    call.send(b"hello")
    server.data(framed(b"one"), ended=False)
    call.send(b"")
    server.data(framed(b"two"))
    call.send(b"x" * 40_000)
    call.finish(0, "", [("x-count", "2")])
    server.read()
    assert server.events == [b"one", b"two", "end"]
    assert answer.messages == [b"hello", b"", b"x" * 40_000]
    assert (answer.status, answer.headers["x-count"], answer.ended) == (0, "2", True)


def test_errors_carry_their_text() -> None:
    server = Server()
    answer = server.call("/t.T/Later", framed(b""))
    server.calls[0].fail(5, "kein Modell „a%b“\n", [("retry-after", "3")])
    server.read()
    assert answer.headers["grpc-message"] == "kein Modell %E2%80%9Ea%25b%E2%80%9C%0A"
    assert (answer.status, answer.headers["retry-after"]) == (5, "3")


def test_a_slow_producer_is_told_when_to_go_on() -> None:
    server = Server(windows=10_000)
    answer = server.start("/t.T/Stream", ended=True)
    call = server.calls[0]
    told: list[int] = []
    call.on_writable = lambda: told.append(call.queued)
    sent = 0
    while call.writable:
        call.send(bytes(50_000))
        sent += 1
    assert sent < 10
    assert not told
    server.send(h2.window_update_frame(server.id, 1 << 20))
    assert told == [0]
    assert call.writable
    call.finish()
    server.read()
    assert [len(message) for message in answer.messages] == [50_000] * sent
    assert answer.status == 0


def test_a_slow_consumer_holds_the_client_back() -> None:
    server = Server(GrpcLimits(stream_window=40_000))
    server.start("/t.T/Stream")
    call = server.calls[0]
    call.pause_reading()
    server.data(framed(bytes(100)) * 350, ended=False, step=1000)
    assert not server.events
    assert 0 < call.recv_left < 40_000
    assert server.server.held >= 35_000
    call.resume_reading()
    assert len(server.events) == 350
    assert call.recv_left == 40_000
    assert server.server.held == 0
    call.pause_reading()
    server.data(framed(b"last"))
    assert len(server.events) == 350
    call.resume_reading()
    assert server.events[350:] == [b"last", "end"]


def test_unfinished_requests_are_bounded() -> None:
    server = Server(GrpcLimits(max_buffered_bytes=50_000))
    first = server.start()
    server.data(framed(bytes(60_000))[:40_000], ended=False)
    second = server.start()
    server.data(framed(bytes(60_000))[:20_000], ended=False)
    assert (second.status, first.ended, server.cuts) == (8, False, ["buffer_full"])
    total = Server(GrpcLimits(max_total_buffered_bytes=50_000))
    third = total.start()
    total.data(framed(bytes(60_000)))
    assert third.status == 8
    assert total.server.held == 0


def test_unread_answers_are_bounded_over_all_connections() -> None:
    """The worst reader is cut, and the others get theirs."""
    server = Server(GrpcLimits(max_total_unsent_bytes=1_000_000), windows=0)
    worst = server.connection
    server.call("/t.T/Later", framed(b"a"))
    server.calls[0].reply(bytes(700_000))
    assert (server.server.unsent, worst.over) == (700_005, False)
    other, transport = server.server(), Transport()

    async def begin() -> None:
        other.connection_made(transport)

    asyncio.run(begin())
    other._loop = None
    other.data_received(h2.PREFACE + h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, 0)]))
    fields = list((HEADERS | {":path": "/t.T/Later"}).items())
    other.data_received(h2.header_frames(1, Encoder().encode(fields), False, 16384))
    other.data_received(h2.frame_head(6, h2.DATA, 1, 1) + framed(b"a"))
    server.calls[1].reply(bytes(400_000))
    assert (worst.over, other.over, server.cuts) == (True, False, ["unsent_overflow"])
    assert server.server.unsent == 400_005
    other.connection_lost(None)
    assert server.server.unsent == 0


def test_slow_requests() -> None:
    server = Server()
    unary = server.start()
    server.data(framed(b"abc")[:4], ended=False)
    stream = server.start("/t.T/Stream")
    for _ in range(8):
        server.time += 10
        server.server.sweep(server.time)
    server.read()
    assert (unary.reset, stream.reset) == (h2.CANCEL, None)
    server.data(framed(b"abc")[:4], ended=False)
    for _ in range(5):
        server.time += 10
        server.server.sweep(server.time)
    server.read()
    assert (stream.reset, server.cancels) == (h2.CANCEL, 1)
    assert server.cuts == ["slow_request", "slow_request"]


def test_connections_are_counted_and_limited() -> None:
    server = Server(GrpcLimits(max_connections=1))
    second = Transport()

    async def begin() -> None:
        server.server().connection_made(second)

    asyncio.run(begin())
    assert second.closed
    assert (server.server.connections, server.cuts) == (1, ["too_many_connections"])


def test_drain_finishes_what_is_in_flight() -> None:
    server = Server()
    answer = server.call("/t.T/Later", framed(b"a"))
    assert server.server.in_flight == 1
    server.server.drain()
    server.send(h2.ping_frame(b"draining", h2.ACK))
    assert not server.transport.eof
    server.calls[0].reply(b"done")
    server.read()
    assert answer.messages == [b"done"]
    assert server.transport.eof
    assert server.server.in_flight == 0


def test_drain_ends_streams_that_wait_for_messages() -> None:
    server = Server()
    idle, told = server.start("/t.T/Stream"), server.start("/t.T/Stream")
    server.calls[1].on_drain = lambda: server.events.append("drain")
    server.calls[1].on_linger_over = lambda: server.events.append("over")
    unary = server.call("/t.T/Later", framed(b"a"))
    server.server.drain()
    assert (server.events, idle.ended) == (["drain"], False)
    server.server.linger_over()
    server.read()
    assert (idle.status, idle.ended, told.ended, unary.ended) == (14, True, False, False)
    assert server.events == ["drain", "over"]
    server.server.abort()
    assert server.transport.closed


def test_a_failing_cancel_is_ours_to_log(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.call("/t.T/Later", framed(b"a"))
    server.calls[0].on_cancel = lambda: 1 / 0  # type: ignore[assignment,return-value]
    server.send(h2.rst_stream_frame(server.id, h2.CANCEL))
    assert not server.connection.over
    assert "ZeroDivisionError" in caplog.text


def test_a_method_is_of_one_kind() -> None:
    with pytest.raises(ValueError, match="either unary or a stream"):
        GrpcServer({"/a": lambda call, message: None}, {"/a": lambda call: None})


@given(st.text(max_size=50))
def test_percent_encoding_is_reversible_ascii(text: str) -> None:
    from urllib.parse import unquote

    encoded = percent_encoded(text.encode("utf-8", "replace").decode())
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert unquote(encoded.decode()) == text.encode("utf-8", "replace").decode()


@given(st.integers(0, 16), st.text(max_size=2000))
def test_any_status_can_be_sent(code: int, text: str) -> None:
    fields = dict(Decoder().decode(status_block(code, text, ())))
    assert fields["grpc-status"] == str(code)


@given(st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=8), st.sampled_from(["Unary", "Stream"]))
def test_random_bodies(pieces: list[tuple[bytes, bool]], method: str) -> None:
    """Whatever the body: no failure of ours, nothing kept after the end, and the next call is served."""
    server = Server(GrpcLimits(max_message_bytes=100))
    answer = server.start(f"/t.T/{method}", grpc_encoding="gzip")
    for body, ended in [*pieces, (b"", True)]:
        if server.id in server.connection.streams and not server.connection.streams[server.id].remote_done:
            server.data(body, ended=ended)
    assert not server.connection.over
    if method == "Unary":
        assert answer.ended
        assert server.server.held == 0
    assert server.call("/t.T/Unary", framed(b"ok")).messages == [b"OK"]


frame = st.builds(
    lambda kind, flags, sid, body: h2.frame_head(len(body), kind, flags, sid) + body,
    st.sampled_from([h2.DATA, h2.DATA, h2.RST_STREAM, h2.WINDOW_UPDATE, h2.SETTINGS, h2.GOAWAY, h2.PING]),
    st.sampled_from([0, h2.END_STREAM, h2.PADDED]),
    st.sampled_from([0, 1, 3, 5]),
    st.one_of(st.binary(max_size=30), st.binary(max_size=20).map(framed), st.just(bytes(4)), st.just(bytes(8))),
)


@given(
    st.lists(st.one_of(frame, st.sampled_from(["Unary", "Later", "Stream", "Broken", "None"])), max_size=25),
    st.sampled_from([0, 7, 1 << 20]),
)
def test_random_sessions(steps: list[bytes | str], windows: int) -> None:
    """Calls and random frames in any order, answers late or never: each call ends once, and nothing leaks."""
    server = Server(GrpcLimits(max_message_bytes=100, max_concurrent_streams=4), windows)
    for step in steps:
        if server.connection.over:
            break
        if isinstance(step, str):
            server.start(f"/t.T/{step}")
        else:
            server.send(step)
        for call in server.calls[::2]:
            call.send(b"x" * 20)
            call.finish()
    server.server.sweep(server.time + 1)
    server.server.sweep(server.time + 60)
    server.connection.connection_lost(None)
    assert server.cancels <= len(server.calls)
    assert (server.server.held, server.connection.unsent, server.server.connections) == (0, 0, 0)
    server.read()
