"""Our gRPC transport with the reference client (grpcio, C-core), over a real socket."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import uvloop

from octoserve.patterns.online.grpc.transport import GrpcCall, GrpcLimits, GrpcServer

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
WAIT = 20.0


class Running:
    """A server on a loop of its own thread."""

    def __init__(self, limits: GrpcLimits) -> None:
        self.cuts: list[str] = []
        self.cancelled = threading.Event()
        self.deadlines: list[float | None] = []
        self.server = GrpcServer(
            {
                "/t.T/Echo": lambda call, message: call.reply(message),
                "/t.T/Later": self.later,
                "/t.T/Fail": lambda call, message: call.fail(5, "nö: 100%", [("x-why", "because")]),
                "/t.T/Silent": self.silent,
                "/t.T/Metadata": lambda call, message: call.reply(call.metadata[message.decode()].encode()),
            },
            {"/t.T/Chat": self.chat, "/t.T/Count": self.count},
            limits,
            on_cut=self.cuts.append,
        )
        self.loop = uvloop.new_event_loop()
        self.port = 0
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.main, daemon=True)
        self.thread.start()
        assert self.ready.wait(WAIT)

    def main(self) -> None:
        asyncio.set_event_loop(self.loop)
        listener = self.loop.run_until_complete(self.loop.create_server(self.server, "127.0.0.1", 0))
        self.port = listener.sockets[0].getsockname()[1]
        self.ready.set()
        self.loop.run_forever()
        listener.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(WAIT)

    def later(self, call: GrpcCall, message: bytes) -> None:
        self.loop.call_later(0.01, call.reply, message)

    def silent(self, call: GrpcCall, message: bytes) -> None:
        self.deadlines.append(call.deadline)
        call.on_cancel = self.cancelled.set

    def chat(self, call: GrpcCall) -> None:
        call.on_message = call.send
        call.on_half_close = call.finish
        call.on_cancel = self.cancelled.set

    def count(self, call: GrpcCall) -> None:
        """As many messages of 10 kB as asked for, only as fast as they are read."""
        left = 0

        def produce() -> None:
            nonlocal left
            while left and call.writable:
                left -= 1
                call.send(bytes(10_000))
            if not left:
                call.finish()

        def begin(message: bytes) -> None:
            nonlocal left
            left = int(message)
            call.on_writable = produce
            produce()

        call.on_message = begin


@pytest.fixture
def running() -> Iterator[Running]:
    server = Running(GrpcLimits())
    yield server
    server.stop()


@pytest.fixture
def channel(running: Running) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}", options=UNLIMITED) as opened:
        yield opened


def test_unary_calls(channel: Any) -> None:
    echo = channel.unary_unary("/t.T/Echo")
    for size in (0, 1, 100, 16_379, 16_380, 65_535, 1_000_000):
        message = bytes([size % 251]) * size
        assert echo(message, timeout=WAIT) == message


def test_twenty_megabytes_both_ways(channel: Any, running: Running) -> None:
    message = bytes(range(250)) * 80_000
    assert channel.unary_unary("/t.T/Echo")(message, timeout=WAIT) == message
    assert channel.unary_unary("/t.T/Later")(message, timeout=WAIT) == message
    assert running.server.held == 0
    assert not running.cuts


def test_too_large_a_message(running: Running, channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Echo")(bytes((64 << 20) + 1), timeout=WAIT)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert channel.unary_unary("/t.T/Echo")(b"next", timeout=WAIT) == b"next"


def test_errors(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Fail")(b"", timeout=WAIT)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "nö: 100%"
    assert dict(caught.value.trailing_metadata())["x-why"] == "because"
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Nothing")(b"", timeout=WAIT)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_metadata(channel: Any) -> None:
    call = channel.unary_unary("/t.T/Metadata")
    for value in ("a", "b", "b" * 300, "a"):
        assert call(b"x-key", metadata=[("x-key", value)], timeout=WAIT) == value.encode()


@pytest.mark.parametrize("method", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compression(channel: Any, method: Any) -> None:
    message = b"abc" * 100_000
    assert channel.unary_unary("/t.T/Echo")(message, compression=method, timeout=WAIT) == message


def test_a_stream_both_ways(channel: Any) -> None:
    messages = [b"x" * (37 * place) for place in range(300)]
    assert list(channel.stream_stream("/t.T/Chat")(iter(messages), timeout=WAIT)) == messages


def test_a_server_stream_is_paced_by_its_reader(channel: Any, running: Running) -> None:
    answers = channel.unary_stream("/t.T/Count")(b"3000", timeout=WAIT)
    assert sum(len(answer) for answer in answers) == 30_000_000
    assert not running.cuts


def test_cancel(channel: Any, running: Running) -> None:
    future = channel.unary_unary("/t.T/Silent").future(b"")
    future.cancel()
    stream = channel.stream_stream("/t.T/Chat")(iter([b"a"]), timeout=WAIT)
    next(stream)
    stream.cancel()
    waiting = channel.unary_unary("/t.T/Silent").future(b"", timeout=WAIT)
    while not running.deadlines:
        time.sleep(0.01)
    waiting.cancel()
    assert running.cancelled.wait(WAIT)
    assert channel.unary_unary("/t.T/Echo")(b"next", timeout=WAIT) == b"next"


def test_deadline(channel: Any, running: Running) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Silent")(b"", timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert running.cancelled.wait(WAIT)
    assert running.deadlines[0] is not None
    assert abs(running.deadlines[0] - time.monotonic()) < WAIT


def test_two_hundred_calls_on_one_channel(channel: Any, running: Running) -> None:
    call = channel.unary_unary("/t.T/Later")
    messages = [b"%d" % place * 50 for place in range(200)]
    futures = [call.future(message, timeout=WAIT) for message in messages]
    assert [future.result() for future in futures] == messages
    assert running.server.connections == 1


def test_many_threads_and_channels(running: Running) -> None:
    def work(place: int) -> bool:
        with grpc.insecure_channel(f"127.0.0.1:{running.port}", options=[("grpc.use_local_subchannel_pool", 1)]) as own:
            echo = own.unary_unary("/t.T/Echo")
            return all(echo(b"%d" % turn, timeout=WAIT) == b"%d" % turn for turn in range(50))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(16)))


def test_keepalive_pings(running: Running) -> None:
    options = [
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_timeout_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    with grpc.insecure_channel(f"127.0.0.1:{running.port}", options=options) as own:
        echo = own.unary_unary("/t.T/Echo")
        assert echo(b"a", timeout=WAIT) == b"a"
        time.sleep(3.2)
        assert echo(b"b", timeout=WAIT) == b"b"
    assert running.server.connections <= 1
    assert not running.cuts


def test_drain_loses_no_call(channel: Any, running: Running) -> None:
    call = channel.unary_unary("/t.T/Later")
    futures = [call.future(b"%d" % place, timeout=WAIT) for place in range(100)]
    running.loop.call_soon_threadsafe(running.server.drain)
    assert [future.result() for future in futures] == [b"%d" % place for place in range(100)]


def test_asyncio_client(running: Running) -> None:
    async def main() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as own:
            echo = own.unary_unary("/t.T/Echo")
            answers = await asyncio.gather(*(echo(b"%d" % place) for place in range(100)))
            assert answers == [b"%d" % place for place in range(100)]

    asyncio.run(main())
