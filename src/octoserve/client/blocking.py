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
from octoserve.client.talk import Ask, Steps, T, Talk
from octoserve.client.wire import Answer
from octoserve.core.errors import DeadlineExceeded, Unavailable
from octoserve.core.signature import Signature
from octoserve.core.tensors import Array
from octoserve.security.trust import client_context


class Client:
    """A running server. Safe to use from several threads; a context manager.

    url:     http://host:port, of octoserve's HTTP door or of what stands before it
    timeout: seconds for one prediction, connecting included; sent along as its deadline
    headers: sent with each request
    api_key: a key or token, sent with each request; unset: OCTOSERVE_API_KEY
    ca:      for https: a PEM file of whom to trust; unset: OCTOSERVE_CA, else the system's authorities
    tls:     for https, instead of `ca`: where a certificate is to be shown, see `octoserve.security.trust`
    """

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
        self._idle: list[http.client.HTTPConnection] = []
        self._turn = threading.Lock()
        self._talk = Talk()

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

        Raises InvalidInput, Unauthenticated, Forbidden, NotFound, Overloaded (which has `retry_after`),
        Unavailable, DeadlineExceeded, Internal.
        """
        return self._run(self._talk.predict(model, rows, str(version), outputs, headers or {}), timeout)

    def signature(self, model: str, version: int | str = "", *, timeout: float | None = None) -> Signature:
        """What a model takes and gives, as the server says it now. Raises as `predict`."""
        return self._run(self._talk.signature(model, str(version)), timeout)

    def _run(self, steps: Steps[T], timeout: float | None) -> T:
        until = time.monotonic() + (self._timeout if timeout is None else timeout)
        try:
            ask = next(steps)
            while True:
                ask = steps.send(self._carry(ask, until))
        except StopIteration as over:
            result: T = over.value
            return result

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

    def _carry(self, ask: Ask, until: float) -> Answer:
        while True:
            with self._turn:
                connection = self._idle.pop() if self._idle else None
            kept = connection is not None
            left = until - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"{self._address}: the time for this request is over")
            try:
                connection = connection or self._connect(left)
                answer = self._send(connection, ask, left)
            except TimeoutError:
                self._drop(connection)
                raise DeadlineExceeded(f"{self._address}: no answer came in time") from None
            except (OSError, http.client.HTTPException) as error:
                self._drop(connection)
                # A server closes a kept connection when it likes, so one may end under a request: another is tried.
                if not kept or not isinstance(error, http.client.RemoteDisconnected | ConnectionError):
                    raise Unavailable(
                        f"{self._address} does not answer: {str(error) or type(error).__name__}"
                    ) from None
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

    def _send(self, connection: http.client.HTTPConnection, ask: Ask, left: float) -> Answer:
        connection.sock.settimeout(left)
        headers = {**self._headers, "x-request-timeout": f"{left:.6f}", **ask.headers}
        connection.request(ask.method, self._address.prefix + ask.path, ask.body or None, headers)
        response = connection.getresponse()
        content = response.read()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)

    def _drop(self, connection: http.client.HTTPConnection | None) -> None:
        if connection is not None:
            connection.close()
