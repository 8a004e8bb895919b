"""What people do to a topic at a terminal: send, look, replay dead letters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from octoserve.connectors.queues.address import Address
from octoserve.connectors.queues.kafka import PARAMETERS
from octoserve.connectors.queues.kafka_wire import (
    KEY_HEADER,
    REQUEST,
    Record,
    Sender,
    Wire,
    carried,
    lane_of,
    message_of,
    topic_of,
    where_of,
)
from octoserve.connectors.queues.letters import letter_of
from octoserve.connectors.queues.protocol import ID_HEADER, DeadLetter, Lag, Message
from octoserve.core.errors import Unavailable


class KafkaTools:
    """Send to, look at and repair a topic."""

    def __init__(self, address: Address) -> None:
        """Raises SettingsError, Unavailable."""
        self._where = where_of(address, PARAMETERS)
        self._wire = Wire(self._where)
        self._wire.partitions()
        self._sender = Sender(self._wire)

    def send(self, values: Iterator[bytes], sent: Callable[[int], None]) -> int:
        """See `QueueTools.send`."""
        count = self._sender.stream((Record(self._where.topic, value) for value in values), sent)
        sent(count)
        return count

    def tail(self, last: int, follow: bool) -> Iterator[Message]:
        """See `QueueTools.tail`. In order within a partition, and about so between them."""
        with _Reader(self._wire) as reader:
            bounds = reader.bounds(self._where.topic)
            found = reader.read({lane: max(low, high - last) for lane, (low, high) in bounds.items()} if last else {})
            yield from sorted(found, key=lambda m: (m.published, m.position))[-last:] if last else ()
            if follow:
                yield from reader.follow({lane: high for lane, (_, high) in bounds.items()})

    def lag(self) -> list[Lag]:
        """See `QueueTools.lag`: of the group, its retries included."""
        with _Reader(self._wire) as reader:
            topics = [self._where.topic, *reader.topics(self._where.retry_prefix)]
            return [lag for topic in topics for lag in reader.lag(topic, topic != self._where.topic)]

    def dead(self) -> list[DeadLetter]:
        """See `QueueTools.dead`."""
        if not self._wire.described([self._where.dead]):
            return []
        letters: dict[bytes | None, DeadLetter] = {}
        with _Reader(self._wire) as reader:
            bounds = reader.bounds(self._where.dead)
            for message, gone in reader.raw({lane: low for lane, (low, _) in bounds.items()}):
                if gone:
                    letters.pop(message.key, None)
                else:
                    sequence = (message.key or b"").decode("utf-8", "replace")
                    hexed = message.headers.get(KEY_HEADER)
                    key = bytes.fromhex(hexed) if hexed is not None else None
                    letters.setdefault(message.key, letter_of(message, sequence, key, (KEY_HEADER,)))
        return sorted(letters.values(), key=lambda letter: (letter.buried, letter.published))

    def replay(self, letters: Sequence[DeadLetter]) -> int:
        """See `QueueTools.replay`."""
        where = self._where
        # Sent, then removed: a crash between sends them twice, under their message ids.
        self._sender.send(
            Record(where.topic, each.value, each.key, {**carried(each.headers), ID_HEADER: each.id}) for each in letters
        )
        return self._sender.send(Record(where.dead, None, each.sequence.encode()) for each in letters)

    def close(self) -> None:
        """See `QueueTools.close`."""
        self._sender.close()


class _Reader:
    """A consumer that takes part in no group, and commits nothing."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._client = wire.client(
            "Consumer",
            **{
                "group.id": wire.where.group,  # whose offsets are asked for
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 100,
            },
        )

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def topics(self, prefix: str) -> list[str]:
        """Those whose names begin so."""
        found = self._ask(self._client.list_topics, timeout=REQUEST).topics
        return sorted(name for name in found if name.startswith(prefix))

    def bounds(self, topic: str) -> dict[str, tuple[int, int]]:
        """Lane -> its first offset, and the one after its last."""
        partitions = self._ask(self._client.list_topics, topic, timeout=REQUEST).topics[topic].partitions
        return {lane_of(topic, number): self._bounds(topic, number) for number in sorted(partitions)}

    def _bounds(self, topic: str, number: int) -> tuple[int, int]:
        found: tuple[int, int] = self._ask(
            self._client.get_watermark_offsets, self._partition(topic, number), timeout=REQUEST
        )
        return found

    def _partition(self, topic: str, number: int, offset: int | None = None) -> Any:
        made = self._wire.kafka.TopicPartition
        return made(topic, number) if offset is None else made(topic, number, offset)

    def _ask(self, what: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return what(*arguments, **named)
        except self._wire.kafka.KafkaException as error:
            raise self._wire.wrong(self._client, error.args[0]) from None

    def lag(self, topic: str, retries: bool) -> list[Lag]:
        """A partition each."""
        bounds = self.bounds(topic)
        asked = [self._partition(topic, number) for number in range(len(bounds))]
        committed = {each.partition: each.offset for each in self._ask(self._client.committed, asked, timeout=REQUEST)}
        starts = {}
        for number, (lane, (low, high)) in enumerate(bounds.items()):
            at = committed[number] if committed[number] >= 0 else low
            starts[lane] = (max(at, low), high)
        late = {lane: at for lane, (at, high) in starts.items() if at < high}
        firsts: dict[str, float] = {}
        for message in self.read(late, 1):
            firsts.setdefault(message.position.partition, message.published)
        return [
            Lag(
                partition=lane,
                behind=0 if retries else high - at,
                in_hand=high - at if retries else 0,
                oldest=firsts.get(lane),
            )
            for lane, (at, high) in starts.items()
            if not retries or high > at
        ]

    def read(self, starts: Mapping[str, int], each: int | None = None) -> list[Message]:
        """From there to the end, as that was when it was reached; `each`: so many of a partition are enough."""
        return [message for message, gone in self.raw(starts, each) if not gone]

    def raw(self, starts: Mapping[str, int], each: int | None = None) -> Iterator[tuple[Message, bool]]:
        """And of each whether it has no value at all, which says that its key is gone."""
        left = set(starts)
        counts = dict.fromkeys(starts, 0)
        for lane, raw in self._come(starts):
            if raw is None:
                left.discard(lane)
            elif lane in left:
                yield message_of(raw, lane), raw.value() is None
                counts[lane] += 1
                if counts[lane] == each:
                    left.discard(lane)
            if not left:
                return

    def follow(self, starts: Mapping[str, int]) -> Iterator[Message]:
        """From there on, for ever."""
        for lane, raw in self._come(starts, patience=None):
            if raw is not None:
                yield message_of(raw, lane)

    def _come(self, starts: Mapping[str, int], patience: float | None = 3 * REQUEST) -> Iterator[tuple[str, Any]]:
        """Lane and message; None for its end. Raises Unavailable if nothing comes for long."""
        if not starts:
            return
        self._client.assign([self._partition(*topic_of(lane), offset) for lane, offset in starts.items()])
        heard = time.monotonic()
        while True:
            for raw in self._client.consume(500, 0.1):
                error = raw.error()
                if error is None:
                    heard = time.monotonic()
                    yield lane_of(raw.topic(), raw.partition()), raw
                elif error.code() == self._wire.kafka.KafkaError._PARTITION_EOF:
                    heard = time.monotonic()
                    yield lane_of(raw.topic(), raw.partition()), None
                elif error.code() not in (error._TRANSPORT, error._ALL_BROKERS_DOWN):
                    raise self._wire.wrong(self._client, error)
            if patience is not None and time.monotonic() - heard > patience:
                raise Unavailable(f"{self._wire.where.label} does not answer")
