"""Results as messages of a JetStream stream: `nats://host:port/STREAM?subject=s`, or `embedded:NAME`.

Each is a JSON object, acknowledged by the server, and carries its message id as `Nats-Msg-Id`: the server drops one
that comes again within the stream's duplicate window (two minutes unless it was made otherwise), a reader the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from octoserve.connectors.queues import columns
from octoserve.connectors.queues.headers import value_of
from octoserve.connectors.queues.nats_wire import Where, Wire, header_bytes
from octoserve.connectors.queues.protocol import ID_HEADER, Claim, Move, Results, SinkTraits, Stored, Unwritable
from octoserve.core.signature import TensorSpec
from octoserve.core.trace_context import carried


class NatsSink:
    """A stream of results."""

    traits = SinkTraits()

    def __init__(self, where: Where, prefix: str = "") -> None:
        self._where = where
        self._prefix = prefix
        self._names: list[str] = []
        self._wire: Wire | None = None

    @property
    def label(self) -> str:
        """See `QueueSink.label`."""
        return self._where.label

    def open(self, source: str, outputs: Sequence[TensorSpec]) -> None:
        """See `QueueSink.open`."""
        self._names = columns.names(outputs, self._prefix)
        wire = self._connected()
        wire.call(wire.ensure_stream("sink"))

    def _connected(self) -> Wire:
        if self._wire is None:
            self._wire = Wire(self._where)
        return self._wire

    def claim(self, lanes: Sequence[str], seconds: float | None) -> dict[str, Claim]:
        """See `QueueSink.claim`; a stream knows no owners."""
        return dict.fromkeys(lanes, Claim(1))

    def store(self, results: Results, moves: Sequence[Move]) -> Stored:
        """See `QueueSink.store`."""
        wire = self._connected()
        bodies = columns.objects(results, self._names)
        stream, most = self._where.stream, wire.client.max_payload
        messages = []
        for message, id, body in zip(results.messages, results.ids, bodies, strict=True):
            headers = dict.fromkeys((ID_HEADER, "Nats-Msg-Id"), value_of(id)) | carried(message.headers)
            size = len(body) + header_bytes({**headers, "Nats-Expected-Stream": stream})
            if size > most:
                raise Unwritable(f"{self.label}: {id}: {size} bytes with its headers, a message takes {most}")
            messages.append((body, headers))
        repeated = wire.call(wire.publish_all(self._where.subject or stream, stream, messages), 300)
        return Stored(len(bodies) - repeated, repeated)

    def close(self) -> None:
        """See `QueueSink.close`."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
