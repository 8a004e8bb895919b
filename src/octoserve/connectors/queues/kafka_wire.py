"""A way to Kafka: what an address names, the client's settings, topics, and messages that are acknowledged by all.

Settings are librdkafka's ("Configuration properties" in its documentation). Those of people come from parameters with
a dot in their name, or from a file (`config=`), where secrets belong: an address is seen by others, a file need not be.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

from octoserve.connectors.queues.address import Address
from octoserve.connectors.queues.protocol import (
    ATTEMPT_HEADER,
    HISTORY_HEADER,
    ORIGIN_HEADER,
    Failure,
    Message,
    Position,
    Unwritable,
)
from octoserve.core.errors import OctoserveError, SettingsError, Unavailable

log = logging.getLogger(__name__)

REMEDY = "Kafka needs a client library: pip install 'octoserve[kafka]'"
REQUEST = 10.0
"""Seconds that an answer of the cluster is waited for."""
FAILURES_HEADER = "octoserve-failures"
"""How a message of a retry topic failed, JSON of `Failure`s."""
DUE_HEADER = "octoserve-due"
"""When a message of a retry topic is to be tried, milliseconds since 1970."""
KEY_HEADER = "octoserve-key"
"""The key of the message that a dead letter was made of, as hexadecimal digits: its own key is its origin."""
OURS = (ATTEMPT_HEADER, DUE_HEADER, FAILURES_HEADER, HISTORY_HEADER, KEY_HEADER, ORIGIN_HEADER)
"""Headers that go no further than the topic they are in."""
_LARGEST = 64 << 20
"""Bytes of a message that we send; a topic may take less."""
_SECRETS = ("password", "secret", "pem", "jaas")
_FIXED = (
    "group.id", "group.protocol", "group.instance.id", "enable.auto.commit", "enable.auto.offset.store",
    "enable.partition.eof", "transactional.id", "enable.idempotence", "acks", "isolation.level", "auto.offset.reset",
    "partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms",
)  # fmt: skip
"""What the promises rest on."""
_NAME = 249
"""Letters of a topic's name at most."""


class Where(NamedTuple):
    """What an address names. settings: of every client, secrets too; create: partitions of a topic made if missing."""

    label: str
    setting: str
    topic: str
    group: str
    settings: Mapping[str, Any]
    create: int = 0
    protocol: str = "classic"
    instance: str = ""

    @property
    def dead(self) -> str:
        """The dead letters' topic."""
        return f"{self.topic}.{self.group}.dead"

    @property
    def retry_prefix(self) -> str:
        """What the names of the retry topics begin with; their level follows, from 1."""
        return f"{self.topic}.{self.group}.retry."

    def __repr__(self) -> str:
        return f"Where({self.label}, group={self.group})"


def where_of(address: Address, known: Sequence[str]) -> Where:
    """`kafka://user:password@host:port/topic?group=g`. known: parameters without a dot. Raises SettingsError."""
    own = {name: value for name, value in address.parameters.items() if "." not in name}
    msgspec.structs.replace(address, parameters=own).only(known)
    what = address.setting
    topic = address.path.strip("/")
    group = own.get("group", "octoserve")
    if not _is_name(topic) or not _is_name(group):
        wrong = topic if not _is_name(topic) else group
        raise SettingsError(
            f"{what}: letters, digits, '.', '_' and '-' make the name of a topic or a group; {wrong!r} came"
        )
    if len(f"{topic}.{group}.retry.9") > _NAME:
        raise SettingsError(
            f"{what}: topic and group have {len(topic) + len(group)} letters, too many for a topic's name"
        )
    protocol = own.get("protocol", "classic")
    if protocol not in ("classic", "consumer"):
        raise SettingsError(f"{what}: protocol= is classic or consumer (KIP-848); {protocol!r} came")
    return Where(
        label=address.label,
        setting=what,
        topic=topic,
        group=group,
        settings=_settings(address),
        create=_count(own.get("create", "0"), f"{what}: create="),
        protocol=protocol,
        instance=own.get("instance", ""),
    )


def _is_name(text: str) -> bool:
    return bool(text) and text not in (".", "..") and all(c.isascii() and (c.isalnum() or c in "._-") for c in text)


def _count(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise SettingsError(f"{what} is a number of partitions; {text!r} came")
    return int(text)


def _settings(address: Address) -> dict[str, Any]:
    """What the address says of every client, over what its file says."""
    parts = urlsplit(address.base)
    found: dict[str, Any] = {}
    if path := address.parameters.get("config"):
        found.update(_properties(Path(path), address.setting))
    for name, value in address.parameters.items():
        if "." not in name:
            continue
        if any(word in name for word in _SECRETS):
            raise SettingsError(
                f"{address.setting}: {name} is a secret, and an address is seen by others: write it into a file "
                "of lines such as sasl.password=..., and name that: config=PATH"
            )
        found[name] = value
    fixed = [name for name in found if name in _FIXED]
    if fixed:
        raise SettingsError(f"{address.setting}: {fixed[0]} is not free: what is promised rests on it")
    if address.host:
        host = address.host if parts.port else f"{address.host}:9092"
        found["bootstrap.servers"] = ",".join(filter(None, (host, found.get("bootstrap.servers"))))
    elif "bootstrap.servers" not in found:
        raise SettingsError(
            f"{address.setting}: a broker is wanted, such as kafka://localhost:9092/{address.path.strip('/')}"
        )
    if parts.username:
        found["sasl.username"] = unquote(parts.username)
        found["sasl.password"] = unquote(parts.password or "")
        found.setdefault("sasl.mechanisms", found.pop("sasl.mechanism", "PLAIN"))
        found.setdefault("security.protocol", "SASL_SSL")
    return found


def _properties(path: Path, what: str) -> dict[str, str]:
    """Lines `name=value`; those that begin with # or ! are comments."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{what}: cannot read config={path}: {getattr(error, 'strerror', None) or error}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text[0] in "#!":
            continue
        name, mark, value = text.partition("=")
        if not mark:
            raise SettingsError(f"{what}: {path}, line {number}: name=value is wanted")
        found[name.strip()] = value.strip()
    return found


class Record(NamedTuple):
    """A message to send."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Mapping[str, str] = {}


class Outbox:
    """What a source would send for a lane, left to the transaction of a sink that commits that lane's offsets.

    taken: there is such a sink: it sends these, and it alone commits offsets
    """

    def __init__(self) -> None:
        self.taken = False
        self._records: dict[str, list[Record]] = {}
        self._gone: set[str] = set()

    def put(self, lane: str, record: Record) -> None:
        """With the lane's next transaction."""
        self._records.setdefault(lane, []).append(record)

    def of(self, lane: str) -> Sequence[Record]:
        """What waits."""
        return self._records.get(lane, ())

    def clear(self, lane: str) -> None:
        """It is sent, or the lane begins anew."""
        self._records.pop(lane, None)

    def leave(self, lanes: Iterable[str]) -> None:
        """They are no longer ours."""
        for lane in lanes:
            self.clear(lane)
            self._gone.add(lane)

    def left(self) -> Collection[str]:
        """Those that went since the last call."""
        gone, self._gone = self._gone, set()
        return gone


class _Quiet:
    """What librdkafka says of its connections: of use to who looks for a fault. Errors reach us as errors."""

    def log(self, level: int, text: str, *values: object) -> None:
        """As `logging.Logger.log`."""
        log.debug(text, *values)


class Wire:
    """The client library, and what its clients are told."""

    def __init__(self, where: Where) -> None:
        """Raises SettingsError."""
        try:
            import confluent_kafka
            import confluent_kafka.admin
        except ImportError:
            raise SettingsError(f"{where.setting}: {REMEDY}") from None
        self.kafka: Any = confluent_kafka
        self.where = where
        self._last: Any = None
        """The last error that a client told of by itself."""
        self._said = 0.0

    def client(self, kind: str, **settings: Any) -> Any:
        """A `Consumer`, `Producer` or `AdminClient`. Nothing is connected to yet. Raises SettingsError."""
        made = getattr(self.kafka, kind, None) or getattr(self.kafka.admin, kind)
        # What people say goes before what is only our choice; what the promises rest on they cannot say (`_FIXED`).
        told = {"client.id": "octoserve", **settings, **self.where.settings, "error_cb": self._told, "logger": _Quiet()}
        try:
            return made(told)
        except self.kafka.KafkaException as error:
            raise SettingsError(f"{self.where.setting}: {self.where.label}: {text_of(error.args[0])}") from None

    def _told(self, error: Any) -> None:
        self._last = error
        now = time.monotonic()
        codes = (self.kafka.KafkaError._ALL_BROKERS_DOWN, self.kafka.KafkaError._AUTHENTICATION)
        if error.code() in codes and now - self._said > REQUEST:
            self._said = now
            log.warning("%s: %s; trying again", self.where.label, text_of(error))

    def wrong(self, client: Any, error: Any) -> OctoserveError:
        """What a failed request of a client means: what the client says of its connections says more.

        A consumer is not polled for that: it would give a message, to nobody.
        """
        if not hasattr(client, "consume"):
            client.poll(0)
        last, code = self._last, self.kafka.KafkaError
        if error.code() in (code._TRANSPORT, code._TIMED_OUT, code._ALL_BROKERS_DOWN) and last is not None:
            error = last
        text = f"{self.where.label}: {text_of(error)}"
        if error.code() in (code._AUTHENTICATION, code.SASL_AUTHENTICATION_FAILED, code._SSL):
            return SettingsError(f"{self.where.setting}: {text}")
        if error.code() in (
            code.TOPIC_AUTHORIZATION_FAILED, code.GROUP_AUTHORIZATION_FAILED, code.CLUSTER_AUTHORIZATION_FAILED,
            code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, code.INVALID_SESSION_TIMEOUT, code.INVALID_REPLICATION_FACTOR,
            code.INVALID_PARTITIONS, code.POLICY_VIOLATION, code.UNSUPPORTED_SASL_MECHANISM,
        ):  # fmt: skip
            return SettingsError(f"{self.where.setting}: {text}")
        return Unavailable(text)

    # --- topics --------------------------------------------------------------------------------------

    def described(self, topics: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Topic -> partitions and copies; those that are not there are left out. Raises SettingsError, Unavailable."""
        admin = self.client("AdminClient")
        asked = self.kafka.TopicCollection(list(topics))
        found = {}
        for name, future in admin.describe_topics(asked, request_timeout=REQUEST).items():
            try:
                partitions = future.result().partitions
            except self.kafka.KafkaException as error:
                if error.args[0].code() == self.kafka.KafkaError.UNKNOWN_TOPIC_OR_PART:
                    continue
                raise self.wrong(admin, error.args[0]) from None
            found[name] = (len(partitions), len(partitions[0].replicas))
        return found

    def partitions(self) -> tuple[int, int]:
        """Of the topic, which is made if it is missing and the address says so; partitions and copies.

        Raises SettingsError, Unavailable.
        """
        where = self.where
        found = self.described([where.topic])
        if not found and where.create:
            self.make({where.topic: {}}, where.create, -1)
            found = self.described([where.topic])
        if not found:
            raise SettingsError(
                f"{where.setting}: {where.label}: there is no topic {where.topic!r}; make it, or have it made with "
                "so many partitions: &create=6"
            )
        return found[where.topic]

    def make(self, topics: Mapping[str, Mapping[str, str]], partitions: int, copies: int) -> None:
        """Topics with their settings, all there on return. Raises SettingsError, Unavailable."""
        admin = self.client("AdminClient")
        new = [
            self.kafka.admin.NewTopic(name, num_partitions=partitions, replication_factor=copies, config=dict(config))
            for name, config in topics.items()
        ]
        for name, future in admin.create_topics(new, request_timeout=REQUEST).items():
            try:
                future.result()
            except self.kafka.KafkaException as error:
                if error.args[0].code() != self.kafka.KafkaError.TOPIC_ALREADY_EXISTS:
                    found = self.wrong(admin, error.args[0])
                    raise type(found)(f"{found}; wanted for making the topic {name}") from None
        for _ in range(100):  # until the brokers know of them
            if len(self.described(topics)) == len(topics):
                return
            time.sleep(0.1)
        raise Unavailable(f"{self.where.label}: {', '.join(topics)}: made, and not known to the brokers yet")


class Sender:
    """Messages that are there, on all copies, on return; none twice by the client's own doing."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._producer: Any = None
        self._failed: Any = None
        self._acknowledged = 0

    def send(self, records: Iterable[Record]) -> int:
        """How many. Raises Unwritable for a message that its topic does not take, SettingsError, Unavailable."""
        return self.stream(records)

    def stream(self, records: Iterable[Record], told: Any = None) -> int:
        """As `send`, of any number. told: called with how many are acknowledged, now and then."""
        if self._producer is None:
            self._producer = self._wire.client("Producer", **PRODUCER)
        producer, count = self._producer, 0
        self._failed, self._acknowledged = None, 0
        for record in records:
            self._produce(producer, record)
            count += 1
            if not count % 1000:
                producer.poll(0)
                if told is not None:
                    told(self._acknowledged)
            if self._failed is not None:
                break
        while len(producer):  # each is acknowledged, or fails by its time-out
            producer.poll(0.1)
        if self._failed is not None:
            raise self._trouble(self._failed)
        return count

    def _produce(self, producer: Any, record: Record) -> None:
        while True:
            try:
                producer.produce(
                    record.topic,
                    record.value,
                    record.key,
                    on_delivery=self._delivered,
                    headers=list(record.headers.items()),
                )
                return
            except BufferError:
                producer.poll(0.1)
            except self._wire.kafka.KafkaException as error:
                self._failed = error.args[0]
                return

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None:
            self._failed = error
        else:
            self._acknowledged += 1

    def _trouble(self, error: Any) -> OctoserveError:
        wire = self._wire
        if error.code() == wire.kafka.KafkaError.MSG_SIZE_TOO_LARGE:
            return Unwritable(f"{wire.where.label}: {text_of(error)}: the topic's max.message.bytes is less")
        found = wire.wrong(self._producer, error)
        if error.fatal():
            self._producer = None
        return found

    def close(self) -> None:
        """Nothing is on its way: `send` has waited."""
        self._producer = None


PRODUCER: Mapping[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    "linger.ms": 5,
    "message.max.bytes": _LARGEST,
    "message.timeout.ms": 20_000,
    "queue.buffering.max.kbytes": 128 << 10,
    "compression.type": "lz4",
}
"""Of every producer of ours."""


def bounded(seconds: float, what: Callable[..., Any], *arguments: Any) -> Any:
    """What a call of the client's returns or raises. Raises TimeoutError if it does not return.

    librdkafka's time-outs do not hold where it has lost sight of a broker that came back (2.16: a coordinator that is
    known by a connection which is being given up); such a client is of no use any more.
    """
    ended: list[tuple[Any, BaseException | None]] = []

    def call() -> None:
        try:
            ended.append((what(*arguments), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=call, name="kafka", daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended:
        raise TimeoutError
    result, error = ended[0]
    if error is not None:
        raise error
    return result


def text_of(error: Any) -> str:
    """What an error of the client's says."""
    return " ".join(str(error.str()).split()) or str(error.name())


@lru_cache(4096)
def lane_of(topic: str, partition: int) -> str:
    """A partition's name, in the sink too."""
    return f"{topic}/{partition}"


def topic_of(lane: str) -> tuple[str, int]:
    """Topic and partition of a lane."""
    topic, _, partition = lane.rpartition("/")
    return topic, int(partition)


def message_of(raw: Any, lane: str) -> Message:
    """A message of the client's. What a retry topic has written on it is read, and its name is then its origin's."""
    offset = raw.offset()
    given = raw.headers()
    _, milliseconds = raw.timestamp()
    position = tuple.__new__(Position, (lane, offset))  # half the time of Position(...), and there is one a message
    if not given:
        return Message(
            position=position,
            name=f"{lane}/{offset}",
            value=raw.value() or b"",
            key=raw.key(),
            published=milliseconds / 1e3,
        )
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in given}
    attempt = headers.get(ATTEMPT_HEADER, "")
    return Message(
        position=position,
        name=headers[ORIGIN_HEADER] if attempt and ORIGIN_HEADER in headers else f"{lane}/{offset}",
        value=raw.value() or b"",
        key=raw.key(),
        headers=headers,
        published=milliseconds / 1e3,
        attempt=int(attempt) if attempt.isascii() and attempt.isdigit() else 0,
        history=_history(headers.get(FAILURES_HEADER, "")) if attempt else (),
    )


def _history(text: str) -> tuple[Failure, ...]:
    try:
        return msgspec.json.decode(text, type=tuple[Failure, ...])
    except msgspec.MsgspecError:
        return ()


def due_of(message: Message) -> float:
    """When it is to be tried, Unix seconds; 0 for now."""
    text = message.headers.get(DUE_HEADER, "")
    return int(text) / 1e3 if text.isascii() and text.isdigit() else 0.0


def carried(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers that go on with a message."""
    return {name: value for name, value in headers.items() if name not in OURS}
