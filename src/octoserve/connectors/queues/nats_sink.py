"""Results as messages of a JetStream stream: `nats://host:port/STREAM?subject=s`, or `embedded:NAME`.

Each is a JSON object, acknowledged by the server, and carries its message id as `Nats-Msg-Id`: the server drops one
that comes again within the stream's duplicate window (two minutes unless it was made otherwise), a reader the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from octoserve.connectors.queues import columns
from octoserve.connectors.queues.headers import value_of
from octoserve.connectors.queues.nats_wire import WINDOW, Where, Wire
from octoserve.connectors.queues.protocol import ID_HEADER, Claim, Move, Results, SinkTraits, Stored, Unwritable
from octoserve.core.errors import Unavailable
from octoserve.core.signature import TensorSpec


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
        for id, body in zip(results.ids, bodies, strict=True):
            if len(body) > wire.client.max_payload:
                raise Unwritable(f"{self.label}: {id}: {len(body)} bytes, a message takes {wire.client.max_payload}")
        repeated = 0
        for start in range(0, len(bodies), WINDOW):
            ids = results.ids[start : start + WINDOW]
            repeated += wire.call(self._send(wire, ids, bodies[start : start + WINDOW]), 60)
        return Stored(len(bodies) - repeated, repeated)

    async def _send(self, wire: Wire, ids: Sequence[str], bodies: Sequence[bytes]) -> int:
        """How many the server had already."""
        subject = self._where.subject or self._where.stream
        sent = []
        for id, body in zip(ids, bodies, strict=True):
            headers = dict.fromkeys((ID_HEADER, "Nats-Msg-Id"), value_of(id))
            sent.append(await wire.js.publish_async(subject, body, headers=headers, stream=self._where.stream))
        try:
            acks = await asyncio.wait_for(asyncio.gather(*sent), 30)
        except TimeoutError:
            raise Unavailable(f"{self.label} does not acknowledge") from None
        return sum(bool(ack.duplicate) for ack in acks)

    def close(self) -> None:
        """See `QueueSink.close`."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
