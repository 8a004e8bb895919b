"""Single messages into a topic, each on all copies on return, from any thread."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from octoserve.connectors.queues.address import Address
from octoserve.connectors.queues.kafka import PARAMETERS
from octoserve.connectors.queues.kafka_wire import Record, Sender, Wire, where_of
from octoserve.connectors.queues.protocol import ID_HEADER, Unwritable
from octoserve.core.errors import SettingsError, TooLarge, Unavailable


class KafkaPublisher:
    """See `Publisher`. Connects with the first message."""

    def __init__(self, address: Address) -> None:
        """Raises SettingsError."""
        self._where = where_of(address, PARAMETERS)
        self._lock = threading.Lock()
        self._sender: Sender | None = None

    def check(self) -> None:
        """See `Publisher.check`."""
        Wire(self._where)

    def prepare(self) -> None:
        """See `Publisher.prepare`."""
        with self._lock:
            self._connected()

    def publish(self, value: bytes, id: str, headers: Mapping[str, str]) -> None:
        """See `Publisher.publish`."""
        record = Record(self._where.topic, value, id.encode(), {**headers, ID_HEADER: id})
        try:
            with self._lock:
                self._connected().send([record])
        except Unwritable as error:
            raise TooLarge(f"the request has {len(value)} bytes: {error}") from None
        except SettingsError as error:
            raise Unavailable(str(error)) from None

    def _connected(self) -> Sender:
        if self._sender is None:
            wire = Wire(self._where)
            wire.partitions()
            self._sender = Sender(wire)
        return self._sender

    def close(self) -> None:
        """See `Publisher.close`."""
        with self._lock:
            if self._sender is not None:
                self._sender.close()
                self._sender = None
