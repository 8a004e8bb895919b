"""A client for an event loop: connections are kept, one for each request that is under way."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httptools

from octoserve.client import wire
from octoserve.client.talk import Ask, Steps, T, Talk
from octoserve.client.wire import Answer
from octoserve.core.errors import DeadlineExceeded, InvalidInput, Unavailable
from octoserve.core.signature import Signature
from octoserve.core.tensors import Array
from octoserve.security.trust import client_context

_AT_ONCE = 1 << 18


class AsyncClient:
    """As `blocking.Client`, with the same arguments, awaited. Lives on one event loop."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        timeout: float = 30.0,
        headers: Mapping[str, str] | None = None,
        api_key: str | None = None,
        ca: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._address = wire.address_of(url)
        self._timeout = timeout
        self._headers = wire.headers_with(api_key, headers)
        self._tls = tls if tls is not None or not self._address.tls else client_context(ca)
        self._idle: list[_Connection] = []
        self._talk = Talk()

    async def predict(
        self,
        model: str,
        rows: Any,
        *,
        version: int | str = "",
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        """See `Client.predict`."""
        return await self._run(self._talk.predict(model, rows, str(version), outputs, headers or {}), timeout)

    async def signature(self, model: str, version: int | str = "", *, timeout: float | None = None) -> Signature:
        """See `Client.signature`."""
        return await self._run(self._talk.signature(model, str(version)), timeout)

    async def _run(self, steps: Steps[T], timeout: float | None) -> T:
        until = time.monotonic() + (self._timeout if timeout is None else timeout)
        try:
            ask = next(steps)
            while True:
                ask = steps.send(await self._carry(ask, until))
        except StopIteration as over:
            result: T = over.value
            return result

    async def close(self) -> None:
        """Close the connections that no request is under way on."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _carry(self, ask: Ask, until: float) -> Answer:
        while True:
            connection = self._idle.pop() if self._idle else None
            kept = connection is not None
            left = until - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"{self._address}: the time for this request is over")
            content = self._request(ask, left)
            try:
                async with asyncio.timeout(left):
                    if connection is None:
                        host, port, _, _ = self._address
                        connection = _Connection(*await asyncio.open_connection(host, port, ssl=self._tls))
                    answer = await connection.ask(content)
            except TimeoutError:
                _drop(connection)
                raise DeadlineExceeded(f"{self._address}: no answer came in time") from None
            except (OSError, EOFError, httptools.HttpParserError) as error:
                _drop(connection)
                # A server closes a kept connection when it likes, so one may end under a request: another is tried.
                if not kept or (connection is not None and connection.began):
                    raise Unavailable(
                        f"{self._address} does not answer: {str(error) or type(error).__name__}"
                    ) from None
            except BaseException:
                _drop(connection)
                raise
            else:
                if connection.keeps:
                    self._idle.append(connection)
                else:
                    connection.close()
                return answer

    def _request(self, ask: Ask, left: float) -> bytes:
        address = self._address
        said = {
            "host": address.authority,
            "content-length": str(len(ask.body)),
            "x-request-timeout": f"{left:.6f}",
            **self._headers,
            **ask.headers,
        }
        wrong = next((name for name, value in said.items() if not (name + value).isprintable()), None)
        wrong = wrong or next((name for name, value in said.items() if max(name + value, default="") > "\xff"), None)
        if wrong is not None:
            raise InvalidInput(f"header {wrong!r}: one line of printable text in Latin-1 is wanted")
        lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        return f"{ask.method} {address.prefix}{ask.path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + ask.body


class _Connection:
    """One at a time. `httptools` calls the methods that begin with `on_`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.keeps = True
        self.began = False
        """Whether anything came of the answer."""

    async def ask(self, content: bytes) -> Answer:
        """Send, and wait for the whole answer. Raises OSError, EOFError, httptools.HttpParserError."""
        self.began = self._whole = False
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        parser = httptools.HttpResponseParser(self)
        self._writer.write(content)
        await self._writer.drain()
        while not self._whole:
            data = await self._reader.read(_AT_ONCE)
            if not data:
                raise EOFError("the connection was closed")
            self.began = True
            parser.feed_data(data)
        self.keeps = parser.should_keep_alive()
        return Answer(parser.get_status_code(), self._headers, b"".join(self._body))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._whole = True

    def close(self) -> None:
        self._writer.close()


def _drop(connection: _Connection | None) -> None:
    if connection is not None:
        connection.close()
