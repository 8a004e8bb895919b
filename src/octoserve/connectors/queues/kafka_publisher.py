"""Single messages into a topic, each on all copies on return, from any thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from octoserve.connectors.queues.address import Address
from octoserve.connectors.queues.kafka import PARAMETERS
from octoserve.connectors.queues.kafka_wire import Record, Sender, Wire, where_of
from octoserve.connectors.queues.protocol import ID_HEADER, Unwritable
from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import OctoserveError, SettingsError, TooLarge, Unavailable

log = logging.getLogger(__name__)

_APART = 1.0
"""Seconds after a failure in which nothing is tried: who waited meanwhile is told at once, and not one by one."""
_LEAVING = 2.0
"""Seconds that the end waits for a message that is on its way."""


class KafkaPublisher:
    """See `Publisher`. Connects with the first message."""

    def __init__(self, address: Address, clock: Clock = monotonic) -> None:
        """Raises SettingsError."""
        self._where = where_of(address, PARAMETERS)
        self._clock = clock
        self._lock = threading.Lock()
        self._sender: Sender | None = None
        self._failed: OctoserveError | None = None
        self._failed_at = 0.0

    def check(self) -> None:
        """See `Publisher.check`."""
        Wire(self._where)

    def prepare(self) -> None:
        """See `Publisher.prepare`."""
        self._send([])

    def publish(self, value: bytes, id: str, headers: Mapping[str, str]) -> None:
        """See `Publisher.publish`."""
        try:
            self._send([Record(self._where.topic, value, id.encode(), {**headers, ID_HEADER: id})])
        except Unwritable as error:
            log.info("%s", error)
            raise TooLarge(
                f"the request has {len(value)} bytes, more than the queue takes; see input_location"
            ) from None

    def _send(self, records: list[Record]) -> None:
        with self._lock:
            if self._failed is not None and self._clock() < self._failed_at + _APART:
                raise self._failed
            self._failed = None
            try:
                if self._sender is None:
                    wire = Wire(self._where)
                    wire.partitions()
                    self._sender = Sender(wire)
                self._sender.send(records)
            except (Unavailable, SettingsError) as error:
                self._failed, self._failed_at = Unavailable(str(error)), self._clock()
                raise self._failed from None

    def close(self) -> None:
        """See `Publisher.close`."""
        if not self._lock.acquire(timeout=_LEAVING):
            return
        try:
            if self._sender is not None:
                self._sender.close()
                self._sender = None
        finally:
            self._lock.release()
