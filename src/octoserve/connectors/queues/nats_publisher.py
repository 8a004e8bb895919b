"""Single messages into a JetStream stream, each on disk on return, from any thread."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from importlib.util import find_spec

from octoserve.connectors.queues.headers import value_of
from octoserve.connectors.queues.nats_server import binary
from octoserve.connectors.queues.nats_wire import HEADERS, REMEDY, REQUEST, Where, Wire
from octoserve.connectors.queues.protocol import ID_HEADER
from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import OctoserveError, SettingsError, TooLarge, Unavailable

_APART = 1.0
"""Seconds between two tries to connect; who comes in between is told at once."""
_LEAVING = 2.0
"""Seconds that the end waits for a try to connect."""


class NatsPublisher:
    """See `Publisher`. Connects with the first message."""

    def __init__(self, where: Where, clock: Clock = monotonic, setting: str = "async.source") -> None:
        self._where = where
        self._setting = setting
        self._clock = clock
        self._lock = threading.Lock()
        self._wire: Wire | None = None
        self._ensured = False
        self._failed: OctoserveError | None = None
        self._failed_at = 0.0

    def check(self) -> None:
        """See `Publisher.check`."""
        if find_spec("nats") is None:
            raise SettingsError(f"{self._setting}: {REMEDY}")
        if self._where.ours:  # the embedded one
            binary()

    def prepare(self) -> None:
        """See `Publisher.prepare`."""
        self._connected()

    def publish(self, value: bytes, id: str, headers: Mapping[str, str]) -> None:
        """See `Publisher.publish`.

        Without `Nats-Msg-Id`: the server would drop an id that is used again once its answer is forgotten.
        """
        wire = self._connected()
        if not wire.client.is_connected:
            raise Unavailable(f"{self._where.label} is away")
        most = wire.client.max_payload - HEADERS
        if len(value) > most:
            raise TooLarge(f"the request has {len(value)} bytes, the queue takes {most}; see input_location")
        named = {**headers, ID_HEADER: value_of(id)}
        subject = self._where.subject or self._where.stream

        async def send() -> None:
            await wire.js.publish(subject, value, timeout=REQUEST, headers=named, stream=self._where.stream)

        try:
            wire.call(send(), REQUEST + 1)
        except Unavailable:
            self._ensured = False  # somebody may have removed the stream
            raise

    def _connected(self) -> Wire:
        wire = self._wire
        if wire is not None and self._ensured:
            return wire
        with self._lock:
            if self._failed is not None and self._clock() < self._failed_at + _APART:
                raise self._failed
            try:
                if self._wire is None:
                    self._wire = Wire(self._where)
                if not self._ensured:
                    self._wire.call(self._wire.ensure_stream(self._setting), REQUEST)
                    self._ensured = True
            except OctoserveError as error:
                self._failed, self._failed_at = Unavailable(str(error)), self._clock()
                raise self._failed from None
            self._failed = None
            return self._wire

    def close(self) -> None:
        """See `Publisher.close`."""
        if not self._lock.acquire(timeout=_LEAVING):
            return  # it is trying to connect
        try:
            if self._wire is not None:
                self._wire.close()
                self._wire = None
        finally:
            self._lock.release()
