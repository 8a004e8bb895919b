"""HTTP/1.1 connections: whatever the bytes and however they come, well-formed answers or a closed connection."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octoserve.patterns.online.http import connection as connection_module
from octoserve.patterns.online.http.connection import Connection, Http1Server
from octoserve.patterns.online.http.head import MAX_HEAD, MAX_HEADERS, BadRequest, ChunkedBody, Head, parse_head
from octoserve.patterns.online.settings import Limits
from support.loops import FakeClock, drive, ticks
from support.transport import FakeTransport, Response, responses


class Echo:
    """An application that says what it understood; `/hold` is answered when the test says so."""

    def __init__(self) -> None:
        self.cuts: list[str] = []
        self.routed = 0
        self.held: list[tuple[Connection, Head, bytes]] = []
        self.cancelled: list[bytes] = []

    def route(self, head: Head) -> None:
        self.routed += 1
        head.handler = {"/hold": self.hold, "/fail": self.fail}.get(head.path, self.echo)

    def echo(self, connection: Connection, head: Head, body: bytes) -> None:
        connection.respond_json(said(head, body))

    def hold(self, connection: Connection, head: Head, body: bytes) -> None:
        self.held.append((connection, head, body))
        connection.call = _Cancels(self.cancelled, body)

    def fail(self, connection: Connection, head: Head, body: bytes) -> None:
        raise ZeroDivisionError("a bug in a handler")

    def release(self) -> None:
        connection, head, body = self.held.pop(0)
        self.echo(connection, head, body)

    def error_body(self, status: int, message: str) -> bytes:
        return msgspec.json.encode({"error": message})

    def cut(self, reason: str) -> None:
        self.cuts.append(reason)


class _Cancels:
    def __init__(self, into: list[bytes], body: bytes) -> None:
        self.into = into
        self.body = body

    def cancel(self) -> None:
        self.into.append(self.body)


def said(head: Head, body: bytes) -> bytes:
    marks = {name: value for name, value in head.headers.items() if name.startswith("x-")}
    return msgspec.json.encode([head.method, head.path, head.query, marks, body.hex()])


class Wire:
    """A server, its clock, and connections to it."""

    def __init__(self, **limits: Any) -> None:
        self.clock = FakeClock()
        self.application = Echo()
        self.server = Http1Server(self.application, Limits(**limits), self.clock)

    def connect(self) -> FakeTransport:
        return FakeTransport(self.server())

    def after(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.server.sweep()


def send(transport: FakeTransport, *segments: bytes) -> None:
    """The segments arrive one by one, as long as the server reads; what is due in between happens."""

    async def work() -> None:
        for segment in segments:
            if not transport.reading:
                break
            transport.protocol.data_received(segment)
            await ticks(2)
        await ticks(20)

    drive(work())


def ask(*segments: bytes, **limits: Any) -> tuple[list[Response], FakeTransport]:
    """What a fresh server answers."""
    transport = Wire(**limits).connect()
    send(transport, *segments)
    return responses(transport.written), transport


def request(path: str = "/a", body: bytes = b"", *lines: str, method: str = "POST") -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: h", *lines, f"Content-Length: {len(body)}"]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def chunked(*chunks: bytes, path: str = "/a", end: bytes = b"0\r\n\r\n") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + end


def understood(response: Response) -> tuple[str, str, str, dict[str, str], bytes]:
    assert response.status == 200, response
    method, path, query, marks, body = msgspec.json.decode(response.body)
    return method, path, query, marks, bytes.fromhex(body)


# --- framing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [request(body=b"0123456789"), chunked(b"01234", b"56789"), request(body=b"")])
def test_a_request_may_be_split_anywhere(whole: bytes) -> None:
    [want], _ = ask(whole)
    for at in range(1, len(whole)):
        [got], transport = ask(whole[:at], whole[at:])
        assert got.body == want.body, at
        assert not transport.closing


def test_a_request_may_come_byte_by_byte() -> None:
    for whole in (request(body=b"0123456789"), chunked(b"01234", b"56789")):
        [got], _ = ask(*(whole[i : i + 1] for i in range(len(whole))))
        assert understood(got)[4] == b"0123456789"


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), st.data())
def test_pipelined_requests_are_answered_in_order_however_they_are_cut(
    bodies: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(request(f"/{i}", body) for i, body in enumerate(bodies))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    segments = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
    got, transport = ask(*segments)
    assert [(r[1], r[4]) for r in map(understood, got)] == [(f"/{i}", body) for i, body in enumerate(bodies)]
    assert not transport.closing


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=8), st.data())
def test_chunked_bodies_come_out_whole(chunks: list[bytes], data: st.DataObject) -> None:
    stream = chunked(*chunks)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    segments = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
    [got], transport = ask(*segments)
    assert understood(got)[4] == b"".join(chunks)
    assert not transport.closing


def test_chunk_extensions_and_trailers_are_read_and_dropped() -> None:
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    [got], _ = ask(head + b"3;name=value\r\nabc\r\n0\r\nX-Trailer: t\r\n\r\n")
    assert understood(got)[3:] == ({}, b"abc")


def test_requests_that_follow_a_chunked_one_are_answered_or_the_connection_says_close() -> None:
    transport = Wire().connect()
    send(transport, chunked(b"abc"), request("/next", b"d"))
    assert [understood(r)[4] for r in responses(transport.written)] == [b"abc", b"d"]
    [got], transport = ask(chunked(b"abc") + request("/next", b"d"))
    assert understood(got)[4] == b"abc"
    assert got.headers["connection"] == "close"
    assert transport.closing


def test_what_arrives_during_an_answer_waits_for_it() -> None:
    wire = Wire()
    transport = wire.connect()
    send(transport, request("/hold", b"1"), request("/b", b"2"), request("/hold", b"3"))
    assert not transport.written
    drive(_then(wire.application.release))
    assert [understood(r)[4] for r in responses(transport.written)] == [b"1", b"2"]
    drive(_then(wire.application.release))
    assert [understood(r)[4] for r in responses(transport.written)] == [b"1", b"2", b"3"]


async def _then(work: Callable[[], None]) -> None:
    work()
    await ticks(20)


# --- keep-alive ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"x", b""])
@pytest.mark.parametrize(
    ("version", "lines", "announced", "closes"),
    [
        ("1.1", [], None, False),
        ("1.1", ["Connection: keep-alive"], None, False),
        ("1.1", ["Connection: close"], "close", True),
        ("1.1", ["Connection: Close"], "close", True),
        ("1.1", ["Connection: TE, close"], "close", True),
        ("1.1", ["Connection: TE", "Connection: close"], "close", True),
        ("1.0", [], "close", True),
        ("1.0", ["Connection: keep-alive"], "keep-alive", False),
    ],
)
def test_keep_alive(version: str, lines: list[str], announced: str | None, closes: bool, body: bytes) -> None:
    head = "\r\n".join([f"POST /a HTTP/{version}", "Host: h", *lines, f"Content-Length: {len(body)}", "", ""])
    [got], transport = ask(head.encode() + body)
    assert understood(got)[4] == body
    assert got.headers.get("connection") == announced
    assert transport.closing is closes


def test_http_connection0_needs_no_host() -> None:
    [got], _ = ask(b"GET /a HTTP/1.0\r\n\r\n")
    assert got.status == 200


def test_nothing_is_answered_behind_close() -> None:
    got, transport = ask(request("/a", b"", "Connection: close") + request("/b"))
    assert len(got) == 1
    assert transport.closing


@pytest.mark.parametrize("version", ["0.9", "2.0", "3.0", "1.2", "1"])
def test_other_versions_are_refused(version: str) -> None:
    [got], transport = ask(f"GET /a HTTP/{version}\r\nHost: h\r\n\r\n".encode())
    assert got.status == 400
    assert transport.closing


def test_expect_100_continue() -> None:
    wire = Wire()
    transport = wire.connect()
    send(transport, request("/a", b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 3"))
    assert transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    send(transport, b"abc")
    assert [r.status for r in responses(transport.written)] == [100, 200]


def test_expect_is_not_answered_when_the_body_is_there_already() -> None:
    got, _ = ask(request("/a", b"abc", "Expect: 100-continue"))
    assert [r.status for r in got] == [200]


def test_expect_100_continue_before_chunks() -> None:
    wire = Wire()
    transport = wire.connect()
    head, _, body = chunked(b"abc").partition(b"\r\n\r\n")
    send(transport, head + b"\r\nExpect: 100-continue\r\n\r\n")
    assert transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    send(transport, body)
    assert [r.status for r in responses(transport.written)] == [100, 200]


def test_http_connection0_gets_no_100() -> None:
    head = b"POST /a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    got, _ = ask(head, b"ab")
    assert [r.status for r in got] == [200]


def test_other_expectations_are_refused() -> None:
    [got], transport = ask(request("/a", b"", "Expect: wonders"))
    assert got.status == 417
    assert transport.closing


@pytest.mark.parametrize("whole", [request("/a", b"abc"), chunked(b"abc"), request("/a", b"")])
def test_an_upgrade_is_ignored(whole: bytes) -> None:
    whole = whole.replace(
        b"Host: h", b"Host: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA"
    )
    [want], _ = ask(whole)
    assert want.status == 200
    for at in range(1, len(whole)):
        [got], _ = ask(whole[:at], whole[at:])
        assert got.body == want.body


def test_an_answer_to_head_has_no_body() -> None:
    class Refuses(Echo):
        def echo(self, connection: Connection, head: Head, body: bytes) -> None:
            connection.respond_error(405, "no")

    wire = Wire()
    wire.server.application = Refuses()
    transport = wire.connect()
    send(transport, request("/a", method="HEAD"), request("/b"))
    first, second = responses(transport.written, ["HEAD", "POST"])
    assert int(first.headers["content-length"]) == len(second.body)


# --- the head cache --------------------------------------------------------------------------------------


def test_a_head_that_repeats_is_routed_once() -> None:
    wire = Wire()
    transport = wire.connect()
    send(transport, *[request("/a", bytes([i])) for i in range(5)])
    assert wire.application.routed == 1
    assert [understood(r)[4] for r in responses(transport.written)] == [bytes([i]) for i in range(5)]


_TOKEN = st.text("abcdefghij-", min_size=1, max_size=8).filter(lambda t: t.strip("-"))
_HEAD = st.tuples(
    st.sampled_from(["GET", "POST", "PUT"]),
    st.lists(_TOKEN, max_size=3).map(lambda parts: "/" + "/".join(parts)),
    st.text("abc=&", max_size=5),
    st.dictionaries(_TOKEN.map(lambda t: "x-" + t), st.text("abcdef 123", max_size=9).map(str.strip), max_size=4),
)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=9)), min_size=1, max_size=12),
    st.lists(_HEAD, min_size=6, max_size=6),
)
def test_two_heads_are_never_taken_for_each_other(order: list[tuple[int, bytes]], heads: list[Any]) -> None:
    wire = Wire()
    transport = wire.connect()
    for which, body in order:
        method, path, query, marks = heads[which]
        url = path + (f"?{query}" if query else "")
        send(transport, request(url, body, *(f"{k}: {v}" for k, v in marks.items()), method=method))
    got = [understood(r) for r in responses(transport.written)]
    assert got == [(*heads[which], body) for which, body in order]


def test_the_head_cache_is_bounded() -> None:
    wire = Wire()
    transport = wire.connect()
    stream = [request(f"/{i}") for i in range(3000)]
    send(transport, b"".join(stream[:1500]))
    for segment in stream[1500:]:
        drive(_feed(transport, segment))
    assert len(wire.server.heads) <= 1024


async def _feed(transport: FakeTransport, segment: bytes) -> None:
    transport.protocol.data_received(segment)
    await asyncio.sleep(0)


def test_long_heads_are_not_kept() -> None:
    wire = Wire()
    send(wire.connect(), request("/a", b"", f"X-Long: {'y' * 5000}"))
    assert not wire.server.heads


# --- limits ----------------------------------------------------------------------------------------------


def test_a_head_that_never_ends_is_cut() -> None:
    wire = Wire()
    transport = wire.connect()
    send(transport, b"GET /a HTTP/1.1\r\nHost: h\r\n", *[b"X-%d: %b\r\n" % (i, b"y" * 1000) for i in range(100)])
    assert [r.status for r in responses(transport.written)] == [431]
    assert transport.closing
    assert wire.application.cuts == ["head_too_large"]


def test_a_whole_head_that_is_too_long_is_refused() -> None:
    [got], _ = ask(request("/a", b"", f"X-Long: {'y' * MAX_HEAD}"))
    assert got.status == 431


def test_too_many_headers_are_refused() -> None:
    lines = [f"X-{i}: y" for i in range(MAX_HEADERS - 2)]
    [got], _ = ask(request("/a", b"", *lines))
    assert got.status == 200
    [got], transport = ask(request("/a", b"", *lines, "X-More: y"))
    assert 400 <= got.status < 500
    assert transport.closing


def test_a_body_may_have_the_limit_and_no_byte_more() -> None:
    assert ask(request("/a", b"x" * 100), max_body=100)[0][0].status == 200
    assert ask(chunked(b"x" * 60, b"x" * 40), max_body=100)[0][0].status == 200
    for whole in (request("/a", b"x" * 101), chunked(b"x" * 60, b"x" * 41)):
        [got], transport = ask(whole, max_body=100)
        assert got.status == 413
        assert b"100" in got.body
        assert transport.closing


def test_a_declared_length_over_the_limit_is_refused_before_the_body() -> None:
    [got], _ = ask(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999999999\r\n\r\n", max_body=100)
    assert got.status == 413


@pytest.mark.parametrize("form", ["declared", "chunked"])
def test_all_bodies_together_are_bounded(form: str) -> None:
    wire = Wire(max_body=1 << 20, max_buffered=1 << 20)
    first, second = wire.connect(), wire.connect()
    big = b"x" * (600 << 10)
    whole = request("/hold", big) if form == "declared" else chunked(*[big[:1000]] * 600, path="/hold")
    segments = [whole[i : i + 16384] for i in range(0, len(whole), 16384)]
    send(first, *segments)
    assert len(wire.application.held) == 1
    assert wire.server.buffered >= 600_000
    send(second, *segments)
    assert [r.status for r in responses(second.written)] == [503]
    assert wire.application.cuts == ["max_buffered"]
    second.lose()
    drive(_then(wire.application.release))
    assert wire.server.buffered == 0
    third = wire.connect()
    send(third, *segments)
    third.lose()
    assert wire.server.buffered == 0
    assert wire.application.cancelled


def test_connections_are_bounded() -> None:
    wire = Wire(max_connections=2)
    first, second, third = wire.connect(), wire.connect(), wire.connect()
    assert [r.status for r in responses(third.written)] == [503]
    assert third.closing
    third.lose()
    first.lose()
    fourth = wire.connect()
    send(second, request())
    send(fourth, request())
    assert responses(second.written)[0].status == responses(fourth.written)[0].status == 200


# --- time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    [b"GET /a HT", request("/a", b"0123456789")[:-5], chunked(b"01234")[:-7]],
    ids=["head", "body", "chunks"],
)
def test_slow_loris_is_cut_after_the_receive_timeout(start: bytes) -> None:
    wire = Wire()
    transport = wire.connect()
    wire.after(1)
    send(transport, start)
    for _ in range(29):
        wire.after(1)
        assert not transport.closing
    wire.after(1.5)
    assert [r.status for r in responses(transport.written)] == [408]
    assert transport.closing
    assert wire.application.cuts == ["slow"]


def test_a_byte_now_and_then_does_not_help() -> None:
    wire = Wire()
    transport = wire.connect()
    for byte in b"GET / HTTP/1.1\r\nHost: h\r\nX-More: " + b"y" * 50:
        send(transport, bytes([byte]))
        wire.after(1)
        if transport.closing:
            break
    assert [r.status for r in responses(transport.written)] == [408]


def test_the_time_of_an_answer_is_not_the_clients() -> None:
    wire = Wire()
    transport = wire.connect()
    send(transport, request("/hold"))
    wire.after(1000)
    assert not transport.closing
    drive(_then(wire.application.release))
    assert responses(transport.written)[0].status == 200


def test_an_idle_connection_is_closed_without_a_word() -> None:
    wire = Wire()
    fresh, used = wire.connect(), wire.connect()
    wire.after(74)
    send(used, request())
    before = bytes(used.written)
    wire.after(2)
    assert fresh.closing
    assert not fresh.written
    assert not used.closing
    wire.after(80)
    assert used.closing
    assert used.written == before
    assert not wire.application.cuts


def test_a_client_that_does_not_read_is_not_answered_on_and_is_cut() -> None:
    wire = Wire()
    transport = wire.connect()
    transport.reads = False
    transport.high_water = 1000
    send(transport, b"".join(request(f"/{i}", b"x" * 50) for i in range(200)))
    assert not transport.reading
    assert len(transport.written) < 3000
    wire.after(29)
    assert not transport.closing
    wire.after(2)
    assert transport.aborted
    assert wire.application.cuts == ["not_reading"]


def test_a_client_that_reads_again_gets_all_its_answers() -> None:
    wire = Wire()
    transport = wire.connect()
    transport.reads = False
    transport.high_water = 1000
    send(transport, b"".join(request(f"/{i}") for i in range(200)))
    drive(_then(transport.read_all))

    drive(ticks(500))
    assert [understood(r)[1] for r in responses(transport.written)] == [f"/{i}" for i in range(200)]
    assert transport.reading


def test_pipelined_requests_do_not_pile_up() -> None:
    wire = Wire()
    transport = wire.connect()
    send(transport, request("/hold"), *[b"x" * 65536] * 100)
    assert not transport.reading
    assert len(transport.protocol._buffer) <= 6 * 65536  # type: ignore[attr-defined]


# --- ends ------------------------------------------------------------------------------------------------


def test_a_client_that_goes_away_cancels_its_call() -> None:
    wire = Wire()
    transport = wire.connect()
    send(transport, request("/hold", b"mine"))
    transport.lose()
    assert wire.application.cancelled == [b"mine"]
    assert not wire.server.connections
    wire.application.release()  # an answer that comes too late hurts nobody
    assert not transport.written


def test_a_client_that_goes_away_in_the_middle_of_a_body_leaves_nothing() -> None:
    for whole in (request("/a", b"x" * 200_000), chunked(b"x" * 200_000)):
        wire = Wire()
        transport = wire.connect()
        send(transport, whole[:150_000])
        transport.lose()
        assert wire.server.buffered == 0
        assert wire.server.in_flight == 0


def test_drain_answers_what_comes_once_more_and_closes_what_is_idle() -> None:
    wire = Wire()
    idle, last, busy, receiving = wire.connect(), wire.connect(), wire.connect(), wire.connect()
    send(busy, request("/hold", b"1"))
    send(receiving, request("/a", b"12")[:-1])
    assert wire.server.in_flight == 2
    wire.server.drain()
    assert not any(transport.closing for transport in (idle, last, busy, receiving))
    late = wire.connect()  # the kernel had accepted it
    send(last, request())
    send(late, request())
    wire.server.close_idle()
    assert idle.closing
    assert not idle.written
    assert not busy.closing
    assert not receiving.closing
    send(receiving, b"2")
    drive(_then(wire.application.release))
    for transport in (busy, receiving, last, late):
        [got] = responses(transport.written)
        assert got.status == 200
        assert got.headers["connection"] == "close"
        assert transport.closing
    assert wire.server.in_flight == 0


def test_a_handler_that_fails_is_a_500_and_the_next_request_is_served() -> None:
    transport = Wire().connect()
    send(transport, request("/fail"), request("/a"))
    first, second = responses(transport.written)
    assert first.status == 500
    assert b"ZeroDivision" not in first.body
    assert second.status == 200


# --- smuggling -------------------------------------------------------------------------------------------


def raw(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join(["POST /a HTTP/1.1", "Host: h", *lines, "", ""]).encode("latin-1") + body


SMUGGLED = {
    "length and chunked": raw("Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunked and length": raw("Transfer-Encoding: chunked", "Content-Length: 5", body=b"0\r\n\r\n"),
    "two lengths": raw("Content-Length: 5", "Content-Length: 6", body=b"abcdef"),
    "two equal lengths": raw("Content-Length: 5", "Content-Length: 5", body=b"abcde"),
    "a list of lengths": raw("Content-Length: 5, 5", body=b"abcde"),
    "chunked, identity": raw("Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "identity": raw("Transfer-Encoding: identity", body=b"abc"),
    "gzip, chunked": raw("Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "xchunked": raw("Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "quoted chunked": raw('Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"),
    "vertical tab": raw("Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "two codings": raw("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "space before colon": raw("Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "space before length's colon": raw("Content-Length : 5", body=b"abcde"),
    "obs-fold": raw("X-A: b", " Content-Length: 5", body=b"abcde"),
    "obs-fold in coding": raw("Transfer-Encoding:", " chunked", body=b"0\r\n\r\n"),
    "plus": raw("Content-Length: +5", body=b"abcde"),
    "minus": raw("Content-Length: -5", body=b"abcde"),
    "hexadecimal": raw("Content-Length: 0x5", body=b"abcde"),
    "underscore": raw("Content-Length: 1_0", body=b"abcdefghij"),
    "decimal": raw("Content-Length: 5.0", body=b"abcde"),
    "empty length": raw("Content-Length:", body=b"abcde"),
    "superscript": raw("Content-Length: \xb2", body=b"ab"),
    "a huge length": raw(f"Content-Length: {'9' * 40}", body=b"abcde"),
    "length past 64 bits": raw("Content-Length: 18446744073709551621", body=b"abcde"),
    "NUL in a value": raw("X-A: b\x00c"),
    "NUL in a name": raw("X-\x00A: b"),
    "CR in a value": raw("X-A: b\rc"),
    "a line without colon": raw("X-A"),
    "an empty name": raw(": b"),
    "no host": b"POST /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "two hosts": raw("Host: i"),
    "bare LF after a line": b"POST /a HTTP/1.1\nHost: h\r\nContent-Length: 0\r\n\r\n",
    "bare LF between headers": b"POST /a HTTP/1.1\r\nHost: h\nContent-Length: 0\r\n\r\n",
    "bare LF at the end": b"GET /a HTTP/1.1\r\nHost: h\n\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
    "coding in HTTP/1.0": b"POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "leading space": b" POST /a HTTP/1.1\r\nHost: h\r\n\r\n",
    "space in the target": b"POST /a b HTTP/1.1\r\nHost: h\r\n\r\n",
    "lower-case method": b"post /a HTTP/1.1\r\nHost: h\r\n\r\n",
    "lower-case protocol": b"GET /a http/1.1\r\nHost: h\r\n\r\n",
    "CONNECT": b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
    "the HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n",
    "nothing": b"\r\n\r\n",
}


@pytest.mark.parametrize("shape", SMUGGLED)
def test_ambiguous_requests_are_refused(shape: str) -> None:
    got, transport = ask(SMUGGLED[shape], request("/next"))
    assert [r.status for r in got] == [400]
    assert got[0].headers["connection"] == "close"
    assert isinstance(msgspec.json.decode(got[0].body)["error"], str)
    assert transport.closing


BAD_CHUNKS = {
    "plus": b"+3\r\nabc\r\n0\r\n\r\n",
    "minus": b"-3\r\nabc\r\n0\r\n\r\n",
    "0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "space": b" 3\r\nabc\r\n0\r\n\r\n",
    "no hex": b"zz\r\nabc\r\n0\r\n\r\n",
    "empty": b"\r\nabc\r\n0\r\n\r\n",
    "bare LF": b"3\nabc\r\n0\r\n\r\n",
    "bare LF behind data": b"3\r\nabc\n0\r\n\r\n",
    "too much data": b"3\r\nabcd\r\n0\r\n\r\n",
    "huge": b"ffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "bad trailer": b"3\r\nabc\r\n0\r\nX Y: z\r\n\r\n",
}


@pytest.mark.parametrize("shape", BAD_CHUNKS)
def test_malformed_chunks_are_refused(shape: str) -> None:
    got, transport = ask(chunked(end=BAD_CHUNKS[shape]), request("/next"))
    assert [r.status for r in got] == [400]
    assert transport.closing


def test_a_head_says_what_it_says() -> None:
    head = parse_head(
        b"POST /a%20b?c=d&e HTTP/1.1\r\nHOST: h\r\nX-Two: 1\r\nx-two: 2\r\nX-Pad:  \t y \t\r\nContent-Length: 7\r\n\r\n"
    )
    assert (head.method, head.path, head.query, head.content_length) == ("POST", "/a%20b", "c=d&e", 7)
    assert head.headers == {"host": "h", "x-two": "1, 2", "x-pad": "y", "content-length": "7"}
    assert (head.keep_alive, head.http10, head.chunked, head.expects_continue) == (True, False, False, False)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("http://h/a/b?c", "/a/b", "c"),
        ("HTTPS://h:1/a", "/a", ""),
        ("http://h", "", ""),
        ("http://h?c", "", "c"),
        ("/http://h/a", "/http://h/a", ""),
        ("*", "*", ""),
    ],
)
def test_targets(target: str, path: str, query: str) -> None:
    head = parse_head(f"OPTIONS {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    assert (head.path, head.query) == (path, query)


# --- fuzz ------------------------------------------------------------------------------------------------

_PIECES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n", b"POST /hold HTTP/1.1\r\n", b"PUT /a HTTP/1.0\r\n", b"Host: h\r\n", b"\r\n", b"\n",
        b"Content-Length: 3\r\n", b"Content-Length: 99999\r\n", b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n",
        b"0\r\n\r\n", b"Connection: close\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b"Expect: 100-continue\r\n",
        b"abc", b"\0", b" ", b":", b"\xff", b"Content-Length", request("/a", b"abc"), chunked(b"abc"),
    ]
)  # fmt: skip


@given(st.lists(st.one_of(_PIECES, st.binary(max_size=20)), max_size=20))
@example([chunked(b"abc").replace(b"Host: h", b"Host: h\r\nConnection: Upgrade\r\nUpgrade: h2c")])
def test_any_bytes_are_answered_well_or_cut(segments: list[bytes]) -> None:
    wire = Wire(max_body=1000, max_buffered=10_000)
    transport = wire.connect()
    send(transport, *segments)  # raises what data_received raises
    while wire.application.held:
        drive(_then(wire.application.release))
    for response in responses(transport.written):
        assert response.status in (100, 200, 400, 413, 417, 431, 503)
        if response.status >= 400:
            assert list(msgspec.json.decode(response.body)) == ["error"]
            assert transport.closing
    wire.after(31)  # what is not whole by then is cut
    assert wire.server.in_flight == 0
    transport.lose()
    assert wire.server.buffered == 0
    assert not wire.server.connections


@given(st.binary(max_size=300))
def test_any_head_parses_or_is_a_bad_request(raw: bytes) -> None:
    try:
        assert parse_head(raw + b"\r\n\r\n").method
    except BadRequest as error:
        assert error.status in (400, 417)  # noqa: PT017


@given(st.sampled_from([request("/a", b"abc"), chunked(b"abc"), request("/b", b"", "Expect: 100-continue")]), st.data())
def test_a_mutated_request_is_answered_well_or_cut(whole: bytes, data: st.DataObject) -> None:
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    wire = Wire(max_body=1000)
    transport = wire.connect()
    send(transport, bytes(changed))
    for response in responses(transport.written):
        assert response.status in (100, 200, 400, 413, 417)


# --- clients that read nothing, whatever waits for them ----------------------------------------------------


def test_an_answer_too_small_to_pause_anything_is_waited_for_only_so_long() -> None:
    wire = Wire()
    transport = wire.connect()
    transport.reads = False
    send(transport, request("/a", b"x"))
    assert not transport.writing_paused
    wire.after(29)
    assert not transport.aborted
    wire.after(2)
    assert transport.aborted
    assert wire.application.cuts == ["not_reading"]


def test_a_connection_that_is_to_close_is_cut_when_its_last_answer_is_not_read() -> None:
    wire = Wire()
    transport = wire.connect()
    transport.reads = False
    send(transport, request("/a", b"x", "Connection: close"))
    assert transport.closing
    wire.after(20)
    assert not transport.aborted
    wire.after(20)
    assert transport.aborted


def test_a_client_with_something_unread_at_every_look_is_kept_while_it_gets_answers() -> None:
    wire = Wire()
    transport = wire.connect()
    for _ in range(10):
        transport.reads = False
        send(transport, request("/a", b"x"))
        wire.after(20)
        assert not transport.aborted
        transport.read_all()


def test_the_rest_of_a_large_answer_is_waited_for_only_so_long() -> None:
    wire = Wire()
    transport = wire.connect()
    transport.reads = False
    send(transport, request("/a", b"x" * 100_000))  # 200 KB of answer
    wire.after(1)
    transport.writing_paused = False  # it reads below the high-water mark, and then no more
    transport.unsent = 10_000
    transport.protocol.resume_writing()
    wire.after(20)
    assert not transport.aborted
    wire.after(20)
    assert transport.aborted


# --- what is held is counted, and given back -----------------------------------------------------------------


def test_what_is_sent_ahead_of_an_answer_is_counted_and_bounded() -> None:
    wire = Wire()
    transport = wire.connect()
    ahead = b"".join(request(f"/{i}", b"y" * 30_000) for i in range(3))
    send(transport, request("/hold", b"1"), ahead[:30_000], ahead[30_000:60_000], ahead[60_000:])
    assert not transport.reading
    assert wire.server.buffered >= len(ahead) - 2 * 4096
    drive(_then(wire.application.release))
    assert len(responses(transport.written)) == 4
    assert transport.reading
    assert wire.server.buffered == 0


def test_what_is_sent_ahead_over_the_budget_is_dropped_behind_a_close() -> None:
    wire = Wire(max_body=1000, max_buffered=10_000)
    transport = wire.connect()
    send(transport, request("/hold", b"1"), request("/b", b"2") * 400)
    assert wire.application.cuts == ["max_buffered"]
    drive(_then(wire.application.release))
    [got] = responses(transport.written)
    assert got.headers["connection"] == "close"
    assert transport.closing
    transport.lose()
    assert wire.server.buffered == 0


@pytest.mark.parametrize(
    "part",
    [
        b"POST /a HTTP/1.1\r\nHost: h\r\nX-Long: " + b"x" * 20_000,
        request("/a", b"x" * 30_000)[:20_000],
        chunked(b"x" * 30_000)[:20_000],
    ],
    ids=["head", "body", "chunks"],
)
def test_what_slow_senders_hold_is_counted(part: bytes) -> None:
    wire = Wire(max_buffered=50_000)
    first, second, third = (wire.connect() for _ in range(3))
    send(first, part)
    send(second, part)
    assert 38_000 < wire.server.buffered < 42_000
    send(third, part)
    assert [r.status for r in responses(third.written)] == [503]
    for transport in (first, second, third):
        transport.lose()
    assert wire.server.buffered == 0


def test_announcing_a_small_body_takes_nothing() -> None:
    wire = Wire()
    send(wire.connect(), request("/a", b"x" * 60_000)[:200])
    assert wire.server.buffered == 0


# --- chunks ------------------------------------------------------------------------------------------------------


def test_a_body_in_tiny_chunks_takes_little_more_than_its_size() -> None:
    stream = b"2\r\nab\r\n" * 100_000
    body = ChunkedBody(1 << 20)
    tracemalloc.start()
    try:
        for at in range(0, len(stream), 8192):
            body.feed(stream[at : at + 8192])
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert body.size == 200_000
    assert taken < 500_000


@pytest.mark.parametrize(
    "waste", [b"1;" + b"x" * 1000 + b"\r\na\r\n", b"1\r\na\r\n0\r\n" + b"x-trailer: " + b"y" * 2000 + b"\r\n"]
)
def test_what_surrounds_chunks_is_bounded_too(waste: bytes) -> None:
    head = chunked(end=b"")
    rest = b"x-more: " + b"z" * 900 + b"\r\n" if b"trailer" in waste else waste
    transport = Wire(max_body=100_000).connect()
    send(transport, head + waste, *[rest * 20] * 20)
    [got] = responses(transport.written)
    assert got.status == 413
    assert transport.closing


# --- many connections --------------------------------------------------------------------------------------------


def test_many_connections_are_looked_at_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "SWEEP_SLICE", 3)
    wire = Wire()
    transports = [wire.connect() for _ in range(10)]

    async def work() -> list[int]:
        closed = []
        wire.after(80)
        for _ in range(4):
            closed.append(sum(t.closing for t in transports))
            if len(closed) == 1:
                next(t for t in transports if not t.closing).lose()  # gone before its turn
            await ticks(1)
        return closed

    first, *_, last = drive(work())
    assert first == 3
    assert last == 10
