"""Kafka as a source: one of a consumer group, whose partitions are claimed in the sink when they come.

Where the sink knows how far a partition is, that is where it begins, whatever the group has committed. What is settled
is committed half a second later, when a partition goes, and at the end. Retries lie in topics of their own, one for
each attempt, so that those of one topic have the same delay and come in the order in which they are due.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from octoserve.connectors.queues.address import Address
from octoserve.connectors.queues.kafka_ages import Ages
from octoserve.connectors.queues.kafka_wire import (
    DUE_HEADER,
    FAILURES_HEADER,
    KEY_HEADER,
    REQUEST,
    Outbox,
    Record,
    Sender,
    Where,
    Wire,
    bounded,
    carried,
    due_of,
    lane_of,
    message_of,
    text_of,
    topic_of,
    where_of,
)
from octoserve.connectors.queues.letters import about
from octoserve.connectors.queues.protocol import (
    ATTEMPT_HEADER,
    HISTORY_HEADER,
    ID_HEADER,
    ORIGIN_HEADER,
    DeadLetter,
    Desk,
    Fenced,
    Lag,
    Message,
    NotYet,
    SourceTraits,
    Unwritable,
)
from octoserve.core.errors import OctoserveError, SettingsError, Unavailable

log = logging.getLogger(__name__)

PARAMETERS = ("group", "create", "protocol", "instance", "config")
_LEVELS = 9
"""Retry topics at most; later attempts share the last."""
_RETRY_PARTITIONS = 4
_COMMIT = 0.5
"""Seconds between commits."""
_LOOK = 0.5
"""Seconds after which a held source sees that a partition went."""
_CLAIM = 1.0
"""Seconds between tries of a sink that could not be claimed in."""
AUX: Mapping[str, str] = {"max.message.bytes": str(64 << 20)}
"""Of the topics that we make: a message with its history is larger than it was."""
DEAD: Mapping[str, str] = {**AUX, "cleanup.policy": "compact"}
"""Dead letters stay until they are replayed, which writes their key once more, with nothing."""


def kafka_source(
    address: Address, max_attempts: int, session: float, run_timeout: float, outbox: Outbox, index: int = 0
) -> KafkaSource:
    """Raises SettingsError. session: seconds after which the partitions of who is silent go to others."""
    where = where_of(address, PARAMETERS)
    if where.instance:
        where = where._replace(instance=f"{where.instance}-{index}")
    return KafkaSource(where, max(0, max_attempts - 1), session, max(300.0, 4 * run_timeout), outbox)


class KafkaSource:
    """One member of a group. Everything but the client's own threads is on the loop's thread, its callbacks too."""

    def __init__(
        self,
        where: Where,
        levels: int,
        session: float,
        longest: float,
        outbox: Outbox | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """levels: retry topics; session, longest: seconds without a heartbeat, and between two polls."""
        self._where = where
        self._wire = Wire(where)
        self._sender = Sender(self._wire)
        self._retries = [f"{where.retry_prefix}{level}" for level in range(1, min(levels, _LEVELS) + 1)]
        self._session = session
        self._longest = longest
        self._outbox = outbox or Outbox()
        self._wall = wall
        self._desk: Desk
        self._consumer: Any = None
        self._closing = False
        self._joined = False
        """Whether the group has given us our part, be it none."""
        self._ours: set[str] = set()
        self._unclaimed: set[str] = set()
        """Partitions that came while the sink was away."""
        self._next_claim = 0.0
        self._held = False
        self._arrived: deque[Message] = deque()
        self._waiting: dict[str, deque[Message]] = {}
        """Of a retry topic's partition, messages that are not due, the soonest first; it is paused meanwhile."""
        self._next: dict[str, int] = {}
        """Of each partition the first offset that is not done, once it is known."""
        self._taken: dict[str, int] = {}
        """And the first that has not come."""
        self._ends: dict[str, int] = {}
        """Where a partition ended when we last reached its end: behind its last message, and what is no message."""
        self._ages = Ages(wall)
        self._trouble: OctoserveError | None = None
        self._said = -REQUEST

    @property
    def name(self) -> str:
        """See `QueueSource.name`."""
        return f"kafka:{self._where.topic}/{self._where.group}"

    @property
    def traits(self) -> SourceTraits:
        """See `QueueSource.traits`."""
        return SourceTraits(system="kafka", shape="log")

    def open(self, desk: Desk) -> None:
        """See `QueueSource.open`."""
        self._desk = desk
        partitions, copies = self._wire.partitions()
        wanted = [*self._retries, self._where.dead]
        missing = [name for name in wanted if name not in self._wire.described(wanted)]
        if missing:
            try:
                self._wire.make(
                    {name: DEAD if name == self._where.dead else AUX for name in missing},
                    min(partitions, _RETRY_PARTITIONS),
                    copies,
                )
            except SettingsError as error:
                raise SettingsError(f"{error}; topics for retries and dead letters are needed") from None
        self._consumer = self._wire.client("Consumer", **self._settings())
        self._consumer.subscribe(
            [self._where.topic, *self._retries],
            on_assign=self._assigned,
            on_revoke=self._went,
            on_lost=self._lost,
        )

    def _settings(self) -> dict[str, Any]:
        where = self._where
        found: dict[str, Any] = {
            "group.id": where.group,
            "group.protocol": where.protocol,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": not self._outbox.taken,
            "auto.commit.interval.ms": int(_COMMIT * 1e3),
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "max.poll.interval.ms": int(max(self._longest, 2 * self._session) * 1e3),
            "queued.max.messages.kbytes": 32 << 10,
            "fetch.wait.max.ms": 100,
            "on_commit": self._committed,
        }
        if where.protocol == "classic":  # in the other one the broker says these
            found["partition.assignment.strategy"] = "cooperative-sticky"
            found["session.timeout.ms"] = int(self._session * 1e3)
            found["heartbeat.interval.ms"] = int(min(3.0, self._session / 3) * 1e3)
        if where.instance:
            found["group.instance.id"] = where.instance
        return found

    # --- partitions come and go ----------------------------------------------------------------------

    def _assigned(self, consumer: Any, partitions: Sequence[Any]) -> None:
        self._joined = True
        lanes = [lane_of(each.topic, each.partition) for each in partitions]
        if not lanes:
            return
        try:
            offsets = self._desk.granted(lanes)
        except Unavailable as error:
            log.warning("%s: its partitions wait for the sink: %s", self._where.label, error)
            self._unclaimed.update(lanes)
            self._next_claim = time.monotonic() + _CLAIM
            consumer.incremental_assign(partitions)
            consumer.pause(partitions)
        except OctoserveError as error:
            self._trouble = error
        else:
            self._begin(lanes, offsets)

    def _begin(self, lanes: Sequence[str], offsets: Mapping[str, int | None]) -> None:
        made = []
        for lane in lanes:
            offset = offsets.get(lane)
            made.append(self._partition(lane, offset))
            if offset is not None:
                self._next[lane] = self._taken[lane] = offset
        self._consumer.incremental_assign(made)
        self._ours.update(lanes)
        # The sink may be ahead of what the group has committed: who asks for the lag sees what is committed.
        self._store([lane for lane in lanes if lane in self._next])
        # One that was paused when it went is paused when it comes back.
        (self._consumer.pause if self._held else self._consumer.resume)(made)
        log.info("%s: %s came", self._where.label, ", ".join(sorted(lanes)))

    def _claim_again(self) -> None:
        if not self._unclaimed or time.monotonic() < self._next_claim:
            return
        lanes = sorted(self._unclaimed)
        try:
            offsets = self._desk.granted(lanes)
        except Unavailable:
            self._next_claim = time.monotonic() + _CLAIM
            return
        self._unclaimed.clear()
        self._consumer.incremental_unassign([self._partition(lane) for lane in lanes])
        self._begin(lanes, offsets)

    def _went(self, consumer: Any, partitions: Sequence[Any]) -> None:
        lanes = [lane_of(each.topic, each.partition) for each in partitions]
        self._drop(lanes)
        if not lanes or self._closing:
            return
        log.info("%s: %s went", self._where.label, ", ".join(sorted(lanes)))
        try:
            self._desk.revoked(lanes)
        except OctoserveError as error:
            self._trouble = error
        consumer.incremental_unassign(partitions)

    def _lost(self, consumer: Any, partitions: Sequence[Any]) -> None:
        """The group has given us up, or is not there to ask: that nothing is ours does not say that nothing is left."""
        self._joined = False
        self._went(consumer, partitions)

    def _drop(self, lanes: Sequence[str]) -> None:
        gone = set(lanes)
        self._ours -= gone
        self._unclaimed -= gone
        self._outbox.leave(gone)
        self._arrived = deque(each for each in self._arrived if each.position.partition not in gone)
        for lane in gone:
            for known in (self._next, self._taken, self._ends, self._waiting):
                known.pop(lane, None)
            self._ages.gone(lane)

    def _partition(self, lane: str, offset: int | None = None) -> Any:
        topic, number = topic_of(lane)
        if offset is None:
            return self._wire.kafka.TopicPartition(topic, number)
        return self._wire.kafka.TopicPartition(topic, number, offset)

    # --- messages ------------------------------------------------------------------------------------

    def poll(self, rows: int, nbytes: int, timeout: float) -> list[Message]:
        """See `QueueSource.poll`."""
        self._go_on()
        self._release()
        if not self._arrived:
            self._take(self._consumer.consume(1, self._patience(timeout)))
        # What is there of the rest. One more than is wanted would be left over, and the next micro-batch be that one.
        if self._arrived and (room := rows - len(self._arrived)) > 0:
            self._take(self._consumer.consume(room, 0.0))
        self._release()
        self._claim_again()
        self._raise()
        taken = self._cut(rows, nbytes)
        self._ages.in_work(taken)
        return taken

    def _patience(self, timeout: float) -> float:
        due = [due_of(waiting[0]) for waiting in self._waiting.values()]
        return max(0.0, min([timeout, *(at - self._wall() for at in due)]))

    def _take(self, came: Sequence[Any]) -> None:
        ours, taken, waiting, arrived = self._ours, self._taken, self._waiting, self._arrived
        for raw in came:
            error = raw.error()
            if error is not None:
                self._told(raw, error)
                continue
            lane = lane_of(raw.topic(), raw.partition())
            if lane not in ours:
                continue
            message = message_of(raw, lane)
            offset = message.position[1]
            if lane not in taken:
                self._next.setdefault(lane, offset)
            taken[lane] = offset + 1
            if lane in waiting:
                waiting[lane].append(message)
            elif message.attempt and due_of(message) > self._wall():
                waiting[lane] = deque([message])
                self._consumer.pause([self._partition(lane)])
            else:
                arrived.append(message)

    def _told(self, raw: Any, error: Any) -> None:
        """Something that came instead of a message."""
        code, codes = error.code(), self._wire.kafka.KafkaError
        if code == codes._PARTITION_EOF:
            lane = lane_of(raw.topic(), raw.partition())
            if lane in self._ours:
                self._ends[lane] = raw.offset()
                self._reach_end(lane)
        elif error.fatal() or code == codes._FATAL:  # this member is over: its group goes on without it
            self._trouble = Fenced(f"{self._where.label}: {text_of(error)}")
        elif code == codes._MAX_POLL_EXCEEDED:
            log.warning("%s: %s", self._where.label, text_of(error))
        else:
            wrong = self._wire.wrong(self._consumer, error)
            if isinstance(wrong, SettingsError):
                self._trouble = wrong
            elif time.monotonic() - self._said > REQUEST:
                self._said = time.monotonic()
                log.warning("%s", wrong)

    def _reach_end(self, lane: str) -> None:
        """What lies between the last message and the end is a transaction's mark: it is done with the last."""
        end, following = self._ends.get(lane), self._next.get(lane)
        if end is None:
            return
        if following is not None and (self._taken.get(lane, following) > following or end <= following):
            return
        self._next[lane] = self._taken[lane] = end
        if following is not None:
            self._store([lane])

    def _release(self) -> None:
        """What has become due."""
        if not self._waiting:
            return
        now = self._wall()
        for lane, waiting in list(self._waiting.items()):
            while waiting and due_of(waiting[0]) <= now:
                self._arrived.append(waiting.popleft())
            if not waiting:
                del self._waiting[lane]
                if not self._held:
                    self._consumer.resume([self._partition(lane)])

    def _cut(self, rows: int, nbytes: int) -> list[Message]:
        taken: list[Message] = []
        size, arrived = 0, self._arrived
        if len(arrived) <= rows and sum([len(message.value) for message in arrived]) <= nbytes:
            taken += arrived
            arrived.clear()
            return taken
        while arrived and len(taken) < rows:
            size += len(arrived[0].value)
            if taken and size > nbytes:
                break
            taken.append(arrived.popleft())
        return taken

    def _raise(self) -> None:
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            raise trouble

    # --- holding back --------------------------------------------------------------------------------

    def hold(self, timeout: float) -> None:
        """See `QueueSource.hold`: partitions are paused, and polling goes on. Raises Fenced."""
        if not self._held:
            self._held = True
            self._consumer.pause([self._partition(lane) for lane in self._ours])
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            raw = self._consumer.poll(min(left, _LOOK))
            if raw is not None:
                self._take([raw])
            self._claim_again()
            self._raise()

    def _go_on(self) -> None:
        if self._held:
            self._held = False
            lanes = [lane for lane in self._ours if lane not in self._waiting]
            self._consumer.resume([self._partition(lane) for lane in lanes])

    # --- done, tried again, given up -----------------------------------------------------------------

    def settle(self, messages: Sequence[Message]) -> None:
        """See `QueueSource.settle`: what is done is a prefix, since micro-batches are done whole and in order."""
        last: dict[str, Message] = {}
        for message in messages:
            lane, offset = message.position
            if lane not in last or offset > last[lane].position.offset:
                last[lane] = message
        ours = [lane for lane in last if lane in self._ours]
        for lane in ours:
            self._next[lane] = last[lane].position.offset + 1
            self._ages.done(last[lane])
        self._store(ours)
        for lane in ours:
            self._reach_end(lane)

    def _store(self, lanes: Sequence[str]) -> None:
        """To be committed."""
        if self._outbox.taken or not lanes:
            return
        try:
            self._consumer.store_offsets(offsets=[self._partition(lane, self._next[lane]) for lane in lanes])
        except self._wire.kafka.KafkaException as error:
            log.debug("%s: not committed, it went: %s", self._where.label, text_of(error.args[0]))

    def _committed(self, error: Any, partitions: Sequence[Any]) -> None:
        codes = self._wire.kafka.KafkaError
        if error is None or error.code() == codes._NO_OFFSET:
            return
        if error.code() == codes.FENCED_INSTANCE_ID:  # told of here before a heartbeat brings it
            self._trouble = Fenced(f"{self._where.label}: {text_of(error)}")
            return
        log.warning("%s: offsets are not committed: %s", self._where.label, text_of(error))

    def retry(self, message: Message, id: str, attempt: int, delay: float) -> None:
        """See `QueueSource.retry`. Where the sink commits our offsets, it is sent in that transaction."""
        if not self._retries:
            raise SettingsError("source: a message is to be tried again, and max_attempts=1 has no topic for it")
        headers = {
            **carried(message.headers),
            ID_HEADER: id,
            ORIGIN_HEADER: message.name,
            ATTEMPT_HEADER: str(attempt),
            DUE_HEADER: str(int((self._wall() + delay) * 1e3)),
            FAILURES_HEADER: msgspec.json.encode(message.history).decode(),
        }
        topic = self._retries[min(attempt, len(self._retries)) - 1]
        record = Record(topic, message.value, message.key, headers)
        if self._outbox.taken:
            self._outbox.put(message.position.partition, record)
        else:
            self._send([record])

    def bury(self, letters: Sequence[DeadLetter]) -> None:
        """See `QueueSource.bury`. The key is the origin, so that one that is buried twice is one."""
        self._send([dead_record(self._where.dead, letter) for letter in letters])

    def _send(self, records: Sequence[Record]) -> None:
        try:
            self._sender.send(records)
        except Unwritable as error:
            raise SettingsError(f"source: {error}: raise that of {records[0].topic}") from None

    # --- how far it is -------------------------------------------------------------------------------

    def lag(self) -> list[Lag]:
        """See `QueueSource.lag`; of our partitions."""
        if not self._joined or self._unclaimed:
            raise NotYet(f"{self._where.label}: the group has not given out its partitions yet")
        return [self._lag(lane) for lane in sorted(self._ours)]

    def _lag(self, lane: str) -> Lag:
        partition = self._partition(lane)
        try:
            low, high = self._consumer.get_watermark_offsets(partition, cached=True)
            if high < 0:
                low, high = self._consumer.get_watermark_offsets(partition, timeout=REQUEST)
        except self._wire.kafka.KafkaException as error:
            raise self._wire.wrong(self._consumer, error.args[0]) from None
        behind = max(0, high - self._next.get(lane, max(low, 0)))
        first = next((each for each in self._arrived if each.position.partition == lane), None)
        waiting = self._waiting.get(lane)
        retries = lane.startswith(self._where.retry_prefix)
        return Lag(
            partition=lane,
            behind=0 if retries else behind,
            in_hand=behind if retries else 0,
            oldest=self._ages.oldest(lane, behind, first or (waiting[0] if waiting else None)),
        )

    def close(self) -> None:
        """See `QueueSource.close`: leaves the group, so that others have the partitions at once."""
        self._closing = True
        if self._consumer is not None:
            try:
                bounded(2 * REQUEST, self._consumer.close)
            except TimeoutError:
                log.warning("%s: left without a word, it does not answer", self._where.label)
            self._consumer = None
        self._sender.close()


def dead_record(topic: str, letter: DeadLetter) -> Record:
    """What lies in the dead letters' topic."""
    headers = {
        **carried(letter.headers),
        ID_HEADER: letter.id,
        ORIGIN_HEADER: letter.origin,
        HISTORY_HEADER: about(letter),
    }
    if letter.key is not None:
        headers[KEY_HEADER] = letter.key.hex()
    return Record(topic, letter.value, letter.origin.encode(), headers)
