"""A client for threads: connections are kept, one for each request that is under way."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from octoserve.client import wire
from octoserve.client.wire import Answer
from octoserve.core.errors import DeadlineExceeded, InvalidInput, Unavailable
from octoserve.core.signature import Signature
from octoserve.core.tensors import Array


class Client:
    """A running server. Safe to use from several threads; a context manager.

    url:     http://host:port, of octoserve's HTTP door or of what stands before it
    timeout: seconds for one prediction, connecting included; sent along as its deadline
    headers: sent with each request, such as Authorization
    tls:     for https, where the system's own certificates are not what is wanted
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        timeout: float = 30.0,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._address = wire.address_of(url)
        self._timeout = timeout
        self._headers = dict(headers or {})
        self._tls = tls
        self._idle: list[http.client.HTTPConnection] = []
        self._turn = threading.Lock()
        self._signatures: dict[tuple[str, str], Signature] = {}

    def predict(
        self,
        model: str,
        rows: Any,
        *,
        version: int | str = "",
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        """Output name -> array.

        rows:    an array, for a model of one input; or a mapping of every input's name to its array
        version: a number or a label; without one the route plan decides
        outputs: those that are wanted; None for all

        Raises InvalidInput, NotFound, Overloaded (which has `retry_after`), Unavailable, DeadlineExceeded, Internal.
        """
        until = time.monotonic() + (self._timeout if timeout is None else timeout)
        key = model, str(version)
        known = self._signatures.get(key)
        signature = known or self.signature(model, version, timeout=until - time.monotonic())
        try:
            return self._infer(key, signature, rows, outputs, until, headers)
        except InvalidInput:
            # The version that answers may have been replaced by one that takes something else.
            if known is None or same(self.signature(model, version, timeout=until - time.monotonic()), known):
                raise
            return self._infer(key, self._signatures[key], rows, outputs, until, headers)

    def _infer(
        self,
        key: tuple[str, str],
        signature: Signature,
        rows: Any,
        outputs: Sequence[str] | None,
        until: float,
        headers: Mapping[str, str] | None,
    ) -> dict[str, Array]:
        body, said = wire.request(signature, rows, outputs)
        path = wire.path_of(*key) + "/infer"
        return wire.arrays_in(self._ask("POST", path, body, {**said, **(headers or {})}, until))

    def signature(self, model: str, version: int | str = "", *, timeout: float | None = None) -> Signature:
        """What a model takes and gives, as the server says it now. Raises as `predict`."""
        until = time.monotonic() + (self._timeout if timeout is None else timeout)
        answer = self._ask("GET", wire.path_of(model, str(version)), b"", {}, until)
        found = self._signatures[model, str(version)] = wire.signature_in(answer)
        return found

    def close(self) -> None:
        """Close the connections that no request is under way on."""
        with self._turn:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str], until: float) -> Answer:
        while True:
            with self._turn:
                connection = self._idle.pop() if self._idle else None
            kept = connection is not None
            left = until - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"{self._address}: the time for this request is over")
            try:
                connection = connection or self._connect(left)
                answer = self._send(connection, method, path, body, headers, left)
            except TimeoutError:
                self._drop(connection)
                raise DeadlineExceeded(f"{self._address}: no answer came in time") from None
            except (OSError, http.client.HTTPException) as error:
                self._drop(connection)
                # A server closes a kept connection when it likes, so one may end under a request: another is tried.
                if not kept or not isinstance(error, http.client.RemoteDisconnected | ConnectionError):
                    raise Unavailable(f"{self._address} does not answer: {error or type(error).__name__}") from None
                continue
            except BaseException:
                self._drop(connection)
                raise
            if connection.sock is not None:  # else the server said that it closes
                with self._turn:
                    self._idle.append(connection)
            return answer

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        host, port, tls, _ = self._address
        made: http.client.HTTPConnection
        if tls:
            made = http.client.HTTPSConnection(host, port, timeout=timeout, context=self._tls)
        else:
            made = http.client.HTTPConnection(host, port, timeout=timeout)
        made.connect()
        made.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        left: float,
    ) -> Answer:
        connection.sock.settimeout(left)
        sent = {**self._headers, "x-request-timeout": f"{left:.6f}", **headers}
        connection.request(method, self._address.prefix + path, body or None, sent)
        response = connection.getresponse()
        content = response.read()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)

    def _drop(self, connection: http.client.HTTPConnection | None) -> None:
        if connection is not None:
            connection.close()


def same(one: Signature, other: Signature) -> bool:
    """Whether both take and give the same."""
    return (one.inputs, one.outputs) == (other.inputs, other.outputs)
