"""Results as messages of a topic: `kafka://host:port/topic`.

Of a Kafka source in the same cluster, each partition has a producer of its own, known by a `transactional.id`. What its
transaction commits is the results, the retries and the source's offsets, or none of them; who takes the partition over
ends the transaction of who had it, and nothing of it is accepted any more. From any other source the results are
acknowledged by all copies, and carry the message id as their key.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from octoserve.connectors.queues import columns
from octoserve.connectors.queues.address import Address
from octoserve.connectors.queues.kafka_wire import (
    PRODUCER,
    Outbox,
    Record,
    Sender,
    Where,
    Wire,
    bounded,
    carried,
    text_of,
    topic_of,
    where_of,
)
from octoserve.connectors.queues.protocol import (
    ID_HEADER,
    Claim,
    Fenced,
    Move,
    Results,
    SinkTraits,
    Stored,
    Unwritable,
)
from octoserve.core.errors import OctoserveError, SettingsError, Unavailable
from octoserve.core.signature import TensorSpec

log = logging.getLogger(__name__)

PARAMETERS = ("create", "config", "transactions", "prefix")
_TRANSACTION = 60.0
"""Seconds after which the cluster ends a transaction that nobody goes on with."""
_ANSWER = 10.0
"""Seconds that a coordinator may take for an answer."""
_ENDING = 30.0
"""Seconds that a commit is waited for; then nobody here knows what became of it."""


_ABANDONED: list[object] = []


def kafka_sink(address: Address, outbox: Outbox) -> KafkaSink:
    """Raises SettingsError."""
    chosen = address.parameters.get("transactions", "yes")
    if chosen not in ("yes", "no"):
        raise SettingsError(f"sink: transactions= is yes or no; {chosen!r} came")
    where = where_of(address, PARAMETERS)
    return KafkaSink(where, outbox, chosen == "yes", address.parameters.get("prefix", ""))


class _Lane:
    """A partition of the source that is ours, and its producer."""

    def __init__(self, epoch: int, producer: Any, offset: int | None) -> None:
        self.epoch = epoch
        self.producer = producer
        self.offset = offset
        """Up to which it is committed."""
        self.parked: list[Record] = []
        """What was found to be writable and waits for an offset to be committed with."""
        self.refused: list[Any] = []
        """Why messages of the transaction were not taken. Each has a list of its own: reports come late."""


class KafkaSink:
    """A topic of results, each one JSON object with `message_id`, the outputs, `model`, `version` and `scored_at`."""

    def __init__(self, where: Where, outbox: Outbox, transactions: bool = True, prefix: str = "") -> None:
        self._where = where
        self._wire = Wire(where)
        self._sender = Sender(self._wire)
        self._outbox = outbox
        self._transactions = transactions
        self._prefix = prefix
        self._names: list[str] = []
        self._group = ""
        """Of the source whose offsets we commit, else ""."""
        self._offsets: Any = None
        """A consumer of that group that never joins it: what asks for offsets, and names the group."""
        self._lanes: dict[str, _Lane] = {}
        self._claims = 0
        self._stuck = False
        """Whether a producer does not come back. To end it would wait for it; its process ends instead."""

    @property
    def traits(self) -> SinkTraits:
        """See `QueueSink.traits`."""
        return SinkTraits(commits_for=("kafka",) if self._transactions else ())

    @property
    def label(self) -> str:
        """See `QueueSink.label`."""
        return self._where.label

    def open(self, source: str, outputs: Sequence[TensorSpec]) -> None:
        """See `QueueSink.open`."""
        self._names = columns.names(outputs, self._prefix)
        self._wire.partitions()
        system, _, rest = source.partition(":")
        if not self._transactions or system != "kafka":
            return
        topic, _, self._group = rest.partition("/")
        if not self._wire.described([topic]):
            raise SettingsError(
                f"sink: {self.label}: there is no topic {topic!r} in this cluster. A transaction holds results and the "
                "source's offsets, so both lie in one cluster; between two: &transactions=no (at-least-once)"
            )
        self._offsets = self._wire.client(
            "Consumer", **{"group.id": self._group, "enable.auto.commit": False, "isolation.level": "read_committed"}
        )
        self._outbox.taken = True

    def claim(self, lanes: Sequence[str], seconds: float | None) -> dict[str, Claim]:
        """See `QueueSink.claim`. Who had them has its transactions ended, and cannot begin another."""
        self._claims += 1
        if not self._group:
            return {lane: Claim(self._claims) for lane in lanes}
        self._let_go()
        producers = {lane: self._producer(lane) for lane in lanes}
        for producer in producers.values():
            self._try(producer, producer.init_transactions, _ENDING)
        committed = self._committed(lanes)
        found = {}
        for lane, at in zip(lanes, committed, strict=True):
            offset = at.offset if at.offset >= 0 else None
            self._lanes[lane] = _Lane(self._claims, producers[lane], offset)
            self._outbox.clear(lane)
            found[lane] = Claim(self._claims, offset)
        return found

    def _let_go(self) -> None:
        """Of the producers of partitions that went: each has connections and threads of its own."""
        gone = [self._lanes.pop(lane) for lane in self._outbox.left() if lane in self._lanes]
        if gone:
            try:
                bounded(_ANSWER, gone.clear)  # the last that knows of a producer ends it
            except TimeoutError:
                log.warning("%s: a producer of a partition that went does not end", self.label)

    def _producer(self, lane: str) -> Any:
        settings = {name: value for name, value in PRODUCER.items() if name != "message.timeout.ms"}
        topic, number = topic_of(lane)
        return self._wire.client(
            "Producer",
            **settings,
            **{
                "transactional.id": f"octoserve.{self._group}.{topic}.{number}",
                "transaction.timeout.ms": int(_TRANSACTION * 1e3),
                "message.timeout.ms": int(_TRANSACTION * 5e2),
                # A request to a coordinator that went away is not sent again, and is waited for so long.
                "socket.timeout.ms": int(_ANSWER * 1e3),
            },
        )

    def _try(self, client: Any, what: Any, *arguments: Any, **named: Any) -> Any:
        """Raises Fenced, SettingsError, Unavailable."""
        try:
            return what(*arguments, **named)
        except self._wire.kafka.KafkaException as error:
            raise self._meaning(client, error.args[0]) from None

    def _committed(self, lanes: Sequence[str]) -> list[Any]:
        """How far each is. Asked again while the group's coordinator is being looked for."""
        asked = [self._wire.kafka.TopicPartition(*topic_of(lane)) for lane in lanes]
        end = time.monotonic() + _ANSWER
        while True:
            try:
                found: list[Any] = self._try(self._offsets, self._offsets.committed, asked, timeout=_ANSWER)
                return found
            except Unavailable:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def _within(self, what: Any, *arguments: Any) -> Any:
        """A step of a transaction. Raises Unavailable if it can be taken back and done again, else Fenced."""
        try:
            return bounded(2 * _ANSWER, what, *arguments)
        except TimeoutError:
            self._stuck = True
            raise Fenced(f"{self.label} does not answer; begun anew") from None
        except SystemError:  # confluent-kafka's, where a fatal error meets a report of delivery
            raise Fenced(f"{self.label}: the producer is over; begun anew") from None
        except self._wire.kafka.KafkaException as error:
            problem = error.args[0]
            if problem.txn_requires_abort() and not problem.fatal():
                raise Unavailable(f"{self.label}: {text_of(problem)}") from None
            # Another has the partition; or nobody knows what became of this, and who begins anew is told.
            raise Fenced(f"{self.label}: {text_of(problem)}; begun anew") from None

    def _meaning(self, client: Any, error: Any) -> OctoserveError:
        """A fatal error of a producer with transactions is that another has taken its place, or as good as that."""
        if error.fatal() or error.code() in (
            self._wire.kafka.KafkaError._FENCED,
            self._wire.kafka.KafkaError.PRODUCER_FENCED,
            self._wire.kafka.KafkaError.INVALID_PRODUCER_EPOCH,
        ):
            return Fenced(f"{self.label}: {text_of(error)}; nothing was written")
        return self._wire.wrong(client, error)

    # --- storing -------------------------------------------------------------------------------------

    def store(self, results: Results, moves: Sequence[Move]) -> Stored:
        """See `QueueSink.store`."""
        records = self._records(results)
        if not self._group:
            self._sender.send(records)
            return Stored(len(records))
        self._let_go()
        by_lane: dict[str, list[Record]] = {move.lane: [] for move in moves}
        for message, record in zip(results.messages, records, strict=True):
            by_lane[message.position.partition].append(record)
        for move in moves:
            self._lane(move)
        begun: list[tuple[_Lane, Move]] = []
        try:
            for move in moves:
                lane = self._lane(move)
                # One that is committed already, in a call of which another lane failed, has nothing to do.
                if move.offset is None or lane.offset is None or lane.offset < move.offset:
                    begun.append((lane, move))
                    self._begin(lane, [*lane.parked, *by_lane[move.lane], *self._outbox.of(move.lane)])
            if any(move.offset is None for move in moves):
                self._park(begun, by_lane)
            while begun:
                self._commit(*begun[0])
                begun.pop(0)
        except (Unavailable, Unwritable):
            self._abort([lane for lane, _ in begun])
            raise
        return Stored(len(records))

    def _lane(self, move: Move) -> _Lane:
        lane = self._lanes.get(move.lane)
        if lane is None or lane.epoch != move.epoch:
            raise Fenced(f"{self.label}: {move.lane} is no longer ours (epoch {move.epoch}); nothing was written")
        return lane

    def _begin(self, lane: _Lane, records: Sequence[Record]) -> None:
        producer = lane.producer
        refused: list[Any] = []
        lane.refused = refused

        def delivered(error: Any, message: Any) -> None:
            if error is not None:
                refused.append(error)

        self._within(producer.begin_transaction)
        for record in records:
            while True:
                try:
                    producer.produce(
                        record.topic, record.value, record.key, on_delivery=delivered,
                        headers=list(record.headers.items()),
                    )  # fmt: skip
                    break
                except BufferError:
                    producer.poll(0.1)
                except self._wire.kafka.KafkaException as error:
                    raise self._refused(producer, error.args[0]) from None
            producer.poll(0)

    def _refused(self, producer: Any, error: Any) -> OctoserveError:
        if error.code() == self._wire.kafka.KafkaError.MSG_SIZE_TOO_LARGE:
            return Unwritable(f"{self.label}: {text_of(error)}: the topic's max.message.bytes is less")
        return Unavailable(f"{self.label}: {text_of(error)}")

    def _flush(self, lane: _Lane) -> None:
        if self._within(lane.producer.flush, _ANSWER):
            raise Fenced(f"{self.label} does not answer; begun anew")
        if lane.refused:
            raise self._refused(lane.producer, lane.refused[0])

    def _park(self, begun: list[tuple[_Lane, Move]], by_lane: Mapping[str, list[Record]]) -> None:
        """No offset yet, so nothing is committed: what the topic takes is kept, to be written with the offset."""
        for lane, _ in begun:
            self._flush(lane)
        self._abort([lane for lane, _ in begun])
        for lane, move in begun:
            lane.parked += by_lane[move.lane]
        begun.clear()

    def _commit(self, lane: _Lane, move: Move) -> None:
        producer = lane.producer
        self._flush(lane)
        at = self._wire.kafka.TopicPartition(*topic_of(move.lane), move.offset)
        group = self._offsets.consumer_group_metadata()
        self._within(producer.send_offsets_to_transaction, [at], group, _ANSWER)
        self._within(producer.commit_transaction, _ANSWER)
        lane.offset = move.offset
        lane.parked.clear()
        self._outbox.clear(move.lane)

    def _abort(self, lanes: Sequence[_Lane]) -> None:
        """What is not over. Raises Fenced if it cannot be said what has become of it."""
        for lane in lanes:
            try:
                bounded(2 * _ANSWER, lane.producer.abort_transaction, _ANSWER)
            except TimeoutError:
                self._stuck = True
                raise Fenced(f"{self.label} does not answer; begun anew") from None
            except self._wire.kafka.KafkaException as error:
                problem = error.args[0]
                if problem.code() != self._wire.kafka.KafkaError._STATE:  # there is none
                    raise Fenced(f"{self.label}: a transaction cannot be ended: {text_of(problem)}") from None

    def _records(self, results: Results) -> list[Record]:
        bodies = columns.objects(results, self._names)
        return [
            Record(self._where.topic, body, id.encode(), {**carried(message.headers), ID_HEADER: id})
            for message, id, body in zip(results.messages, results.ids, bodies, strict=True)
        ]

    def close(self) -> None:
        """See `QueueSink.close`."""
        self._outbox.taken = False
        if self._stuck:
            _ABANDONED.append(self._lanes)
        self._lanes = {}
        self._sender.close()
        if self._offsets is not None:
            self._offsets.close()
            self._offsets = None
