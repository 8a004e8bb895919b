"""Small servers that stand behind a proxy, good and bad ones, on a thread of their own; and a fast plain client."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc

GOOD, HANGS, FAILS, DEAF = "good", "hangs", "fails", "deaf"
"""Answers; reads and never answers; answers 500; accepts connections and never reads."""


class Request:
    """What an upstream was asked."""

    def __init__(self, head: bytes, body_size: int) -> None:
        first, *lines = head.split(b"\r\n")
        self.path = first.split(b" ")[1].decode()
        pairs = [line.partition(b":") for line in lines]
        self.headers = {name.decode().lower(): value.strip().decode("latin-1") for name, _, value in pairs}
        self.body_size = body_size


class Upstream:
    """An HTTP/1.1 server that answers with its name, the arm and the version that the request says it was bound to."""

    def __init__(self, threaded: UpstreamThread, name: str, behaviour: str = GOOD) -> None:
        self.name = name
        self.behaviour = behaviour
        self.requests: list[Request] = []
        self.release = threading.Event()
        """Set: requests are answered. Cleared by `hold`: they wait."""
        self.release.set()
        self._threaded = threaded
        self._waiting: list[_Connection] = []
        self.port: int = threaded.call(self._listen())

    async def _listen(self) -> int:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def hold(self) -> None:
        """Requests from now on wait for `let_go`."""
        self.release.clear()

    def let_go(self) -> None:
        """Answer what waits, and what comes."""
        self.release.set()
        self._threaded.loop.call_soon_threadsafe(self._answer_waiting)

    def _answer_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.answer()

    def close(self) -> None:
        """Refuse connections from now on."""
        self._threaded.loop.call_soon_threadsafe(self._server.close)


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._buffer = bytearray()
        self._left = 0
        self._size = 0
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._upstream.behaviour == DEAF:
            transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        while data:
            if self._left:
                taken = min(self._left, len(data))
                self._left -= taken
                data = data[taken:]
                if not self._left:
                    self._asked()
                continue
            self._buffer += data
            data = b""
            end = self._buffer.find(b"\r\n\r\n")
            if end >= 0:
                self._head, data = bytes(self._buffer[:end]), bytes(self._buffer[end + 4 :])
                self._buffer.clear()
                self._size = self._left = _content_length(self._head)
                if not self._left:
                    self._asked()

    def _asked(self) -> None:
        upstream = self._upstream
        upstream.requests.append(Request(self._head, self._size))
        if upstream.behaviour == HANGS:
            return
        if upstream.release.is_set():
            self.answer()
        else:
            upstream._waiting.append(self)

    def answer(self) -> None:
        status = "500 Broken" if self._upstream.behaviour == FAILS else "200 OK"
        last = self._upstream.requests[-1].headers
        body = f"{self._upstream.name} {last.get('x-octoserve-arm', '-')} {last.get('x-octoserve-version', '-')}"
        self._transport.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


class UpstreamThread:
    """The thread that upstreams live on."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)


class GrpcUpstream:
    """A gRPC server that answers every unary call as `Upstream` does."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests: list[dict[str, str]] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((self._Any(self),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    class _Any(grpc.GenericRpcHandler):  # type: ignore[misc]
        def __init__(self, upstream: GrpcUpstream) -> None:
            self._upstream = upstream

        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(self._answer)

        def _answer(self, request: bytes, context: Any) -> bytes:
            asked = {name: str(value) for name, value in context.invocation_metadata()}
            self._upstream.requests.append(asked)
            arm, version = asked.get("x-octoserve-arm", "-"), asked.get("x-octoserve-version", "-")
            return f"{self._upstream.name} {arm} {version}".encode()

    def stop(self) -> None:
        self._server.stop(None)


class PlainClient:
    """One keep-alive connection; asks one thing after the other."""

    def __init__(self, address: str, timeout: float = 10.0) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def __enter__(self) -> PlainClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, path: str, headers: Mapping[str, bytes] | None = None, body: bytes = b"") -> None:
        """Write a POST."""
        lines = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in (headers or {}).items())
        start = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n".encode()
        self._socket.sendall(start + lines + b"\r\n" + body)

    def receive(self) -> tuple[int, str]:
        """Status and body of the next answer."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._read()
        head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
        size = _content_length(head)
        while len(self._buffer) < size:
            self._read()
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return int(head.split(b" ", 2)[1]), body.decode()

    def ask(self, path: str, headers: Mapping[str, bytes] | None = None, body: bytes = b"") -> tuple[int, str]:
        self.send(path, headers, body)
        return self.receive()

    def _read(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self._buffer += data


def wait_until(true: Any, timeout: float = 5.0) -> None:
    """Until `true()` is; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)
