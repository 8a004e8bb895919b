"""Ends of connections over a real socket: a refused upload reads why, and one that reads nothing is cut."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from octoserve.patterns.online.http.connection import Http1Server
from octoserve.patterns.online.http.head import Head
from octoserve.patterns.online.settings import Limits


class Application:
    """Answers always the same."""

    def __init__(self, answer: bytes = b"{}") -> None:
        self.answer = answer
        self.cuts: list[str] = []

    def route(self, head: Head) -> None:
        head.handler = lambda connection, head, body: connection.respond_json(self.answer)

    def error_body(self, status: int, message: str) -> bytes:
        return b'{"error":"too large"}'

    def cut(self, reason: str) -> None:
        self.cuts.append(reason)


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_upload_that_is_too_large_is_told_so(kind: str) -> None:
    loop = new_loop(kind)
    server = Http1Server(Application(), Limits(max_body=1000), loop.time)
    listener = loop.run_until_complete(loop.create_server(server, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with socket.create_connection(listener.sockets[0].getsockname(), timeout=10) as client:
            client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 20000000\r\n\r\n")
            client.sendall(b"x" * 4_000_000)  # far more than the socket holds: it must be taken in
            answer = b""
            while data := client.recv(65536):
                answer += data
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert answer.endswith(b'{"error":"too large"}')
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        listener.close()
        loop.close()


@pytest.mark.parametrize("option", ["keep-alive", "close"])
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_client_that_never_reads_is_cut(kind: str, option: str) -> None:
    loop = new_loop(kind)
    application = Application(b"x" * 30_000_000)  # more than both sockets hold
    now = 1000.0
    server = Http1Server(application, Limits(), lambda: now)

    async def work() -> None:
        nonlocal now
        listener = await loop.create_server(server, "127.0.0.1", 0)
        client = socket.create_connection(listener.sockets[0].getsockname(), timeout=10)
        client.sendall(f"POST / HTTP/1.1\r\nhost: x\r\nconnection: {option}\r\n\r\n".encode())
        while not any(c.transport.get_write_buffer_size() for c in server.connections):
            await asyncio.sleep(0.001)
        server.sweep()
        now += 600
        server.sweep()
        while server.connections:
            await asyncio.sleep(0.001)
        client.close()
        listener.close()

    try:
        loop.run_until_complete(asyncio.wait_for(work(), 20))
        assert application.cuts == ["not_reading"]
    finally:
        loop.close()
