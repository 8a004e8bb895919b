"""Results by HTTP: `https://host/path`. One POST a result, with its message id as `Idempotency-Key`.

What is answered with 2xx has arrived. 408, 425, 429, 5xx and what is not answered come again; any other answer says
that this result will never be taken.
"""

from __future__ import annotations

import base64
import http.client
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote, urlsplit

from octoserve.connectors.queues import columns
from octoserve.connectors.queues.address import Address
from octoserve.connectors.queues.headers import value_of
from octoserve.connectors.queues.protocol import Claim, Message, Move, Results, SinkTraits, Stored, Unwritable
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.core.signature import TensorSpec
from octoserve.core.trace_context import carried

_AT_ONCE = 8
"""Requests in flight."""
_TIMEOUT = 30.0
_AGAIN = (408, 425, 429)


class Webhook:
    """An address that takes results."""

    traits = SinkTraits()

    def __init__(self, address: Address) -> None:
        """Raises SettingsError."""
        parts = urlsplit(address.base)
        if not parts.hostname:
            raise SettingsError(f"sink: a webhook's address is https://host/path, {address.label} came")
        self.label = address.label
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._target = (parts.path or "/") + (f"?{address.query}" if address.query else "")
        self._headers = {"Content-Type": "application/json", "User-Agent": "octoserve"}
        if parts.username:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        self._names: list[str] = []
        self._arrived: set[str] = set()
        """Of the results in work, those that need not be sent again."""
        self._threads: ThreadPoolExecutor | None = None
        self._own = threading.local()

    def open(self, source: str, outputs: Sequence[TensorSpec]) -> None:
        """See `QueueSink.open`. Nothing is sent yet, so that nothing is known of who listens."""
        self._names = columns.names(outputs, remedy="call it otherwise in the model, or choose another sink")
        self._threads = ThreadPoolExecutor(_AT_ONCE, "webhook")

    def claim(self, lanes: Sequence[str], seconds: float | None) -> dict[str, Claim]:
        """See `QueueSink.claim`; who listens knows no owners."""
        return dict.fromkeys(lanes, Claim(1))

    def store(self, results: Results, moves: Sequence[Move]) -> Stored:
        """See `QueueSink.store`. Tried again with what was refused or not answered, it sends only that."""
        assert self._threads is not None
        bodies = columns.objects(results, self._names)
        each = zip(results.ids, bodies, results.messages, strict=True)
        left = [one for one in each if one[0] not in self._arrived]
        troubles = [trouble for trouble in self._threads.map(lambda one: self._send(*one), left) if trouble]
        refused = next((trouble for trouble in troubles if isinstance(trouble, Unwritable)), None)
        if refused is not None or troubles:
            raise refused or troubles[0]
        self._arrived.difference_update(results.ids)
        return Stored(len(results.ids))

    def _send(self, id: str, body: bytes, message: Message) -> Exception | None:
        """What is wrong, if anything."""
        try:
            status, reason = self._post(id, body, carried(message.headers))
        except (OSError, http.client.HTTPException) as error:
            return Unavailable(f"{self.label}: {str(error) or type(error).__name__}")
        if 200 <= status < 300:
            self._arrived.add(id)
            return None
        text = f"{self.label}: {status} {reason}"
        return Unavailable(text) if status in _AGAIN or status >= 500 else Unwritable(text)

    def _post(self, id: str, body: bytes, trace: Mapping[str, str]) -> tuple[int, str]:
        """A kept connection may have been closed meanwhile: then once more on a new one."""
        headers = {**self._headers, **trace, "Idempotency-Key": value_of(id)}
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        for kept in (connection is not None, False):
            if not kept:
                kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
                connection = kind(self._host, self._port, timeout=_TIMEOUT)
                self._own.connection = connection
            assert connection is not None
            try:
                connection.request("POST", self._target, body, headers)
                answer = connection.getresponse()
                answer.read()
                return answer.status, answer.reason
            except (OSError, http.client.HTTPException):
                connection.close()
                self._own.connection = None
                if not kept:
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        """See `QueueSink.close`."""
        if self._threads is not None:
            self._threads.shutdown(wait=True)
            self._threads = None
