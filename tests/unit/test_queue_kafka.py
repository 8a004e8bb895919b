"""What an address of Kafka names, and what it may not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from octoserve.connectors.queues.address import parse
from octoserve.connectors.queues.kafka import PARAMETERS, kafka_source
from octoserve.connectors.queues.kafka_wire import PRODUCER, Outbox, Record, Where, Wire, lane_of, topic_of, where_of
from octoserve.core.errors import SettingsError, Unavailable


def where(text: str) -> Where:
    return where_of(parse(text, "source"), PARAMETERS)


def test_an_address_names_topic_and_group():
    found = where("kafka://h:9093/orders?group=scoring&create=6&protocol=consumer&instance=a&linger.ms=7")
    assert (found.topic, found.group, found.create, found.protocol, found.instance) == (
        "orders", "scoring", 6, "consumer", "a",
    )  # fmt: skip
    assert found.settings == {"bootstrap.servers": "h:9093", "linger.ms": "7"}
    assert (found.dead, found.retry_prefix) == ("orders.scoring.dead", "orders.scoring.retry.")
    assert where("kafka://h/orders").settings == {"bootstrap.servers": "h:9092"}
    assert where("kafka://h/orders?bootstrap.servers=i:1").settings["bootstrap.servers"] == "h:9092,i:1"


def test_who_we_are_may_stand_in_the_address_and_is_shown_nowhere():
    found = where("kafka://me:pass%2Fword@h/orders?sasl.mechanism=SCRAM-SHA-512")
    assert found.settings["sasl.username"] == "me"
    assert found.settings["sasl.password"] == "pass/word"
    assert found.settings["sasl.mechanisms"] == "SCRAM-SHA-512"
    assert found.settings["security.protocol"] == "SASL_SSL"
    assert "word" not in repr(found) + found.label


def test_who_asks_what_is_wrong_takes_no_message():
    polled: list[str] = []
    wire, error = Wire(where("kafka://h/orders")), SimpleNamespace(code=lambda: 1, str=lambda: "odd")
    consumer = SimpleNamespace(poll=lambda timeout: polled.append("consumer"), consume=None)
    producer = SimpleNamespace(poll=lambda timeout: polled.append("producer"))
    assert isinstance(wire.wrong(consumer, error), Unavailable)
    assert isinstance(wire.wrong(producer, error), Unavailable)
    assert polled == ["producer"]


def test_settings_come_from_a_file(tmp_path: Path):
    file = tmp_path / "client.properties"
    file.write_text("# ours\nsecurity.protocol = SSL\nssl.key.password=a=b\n\nlinger.ms=1\n")
    found = where(f"kafka://h/orders?config={file}&linger.ms=2")
    assert found.settings["ssl.key.password"] == "a=b"
    assert found.settings["linger.ms"] == "2"
    file.write_text("no equals sign")
    with pytest.raises(SettingsError, match="line 1"):
        where(f"kafka://h/orders?config={file}")
    with pytest.raises(SettingsError, match="cannot read"):
        where(f"kafka://h/orders?config={tmp_path}/none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kafka://h/", "name of a topic"),
        ("kafka://h/a b", "name of a topic"),
        ("kafka://h/orders?group=a/b", "name of a topic or a group"),
        ("kafka://h/orders?create=many", "number of partitions"),
        ("kafka://h/orders?protocol=eager", "KIP-848"),
        ("kafka://h/orders?grup=g", "unknown parameter 'grup'"),
        ("kafka://h/orders?sasl.password=x1y2z3", "config=PATH"),
        ("kafka://h/orders?enable.auto.commit=true", "is not free"),
        ("kafka:///orders", "a broker is wanted"),
        (f"kafka://h/{'x' * 240}", "too many"),
    ],
)
def test_what_is_refused(text: str, said: str):
    with pytest.raises(SettingsError, match=said) as raised:
        where(text)
    assert "x1y2z3" not in str(raised.value)


def test_a_lane_is_a_partition():
    assert topic_of(lane_of("a.b-c", 7)) == ("a.b-c", 7)


def test_an_outbox_keeps_what_a_lane_sends_until_it_is_sent():
    outbox = Outbox()
    outbox.put("a/0", Record("r", b"1"))
    outbox.put("a/1", Record("r", b"2"))
    outbox.clear("a/0")
    assert list(outbox.of("a/0")) == []
    assert [record.value for record in outbox.of("a/1")] == [b"2"]


def test_an_outbox_says_once_which_lanes_went():
    outbox = Outbox()
    outbox.put("a/0", Record("r", b"1"))
    outbox.leave(["a/0", "a/1"])
    assert list(outbox.of("a/0")) == []
    assert set(outbox.left()) == {"a/0", "a/1"}
    assert not outbox.left()


def test_what_people_say_goes_before_our_choice(monkeypatch: pytest.MonkeyPatch):
    wire = Wire(where("kafka://h/orders?linger.ms=77"))
    monkeypatch.setattr(wire, "kafka", SimpleNamespace(Producer=dict, KafkaException=Exception))
    told = wire.client("Producer", **PRODUCER)
    assert told["linger.ms"] == "77"
    assert (told["acks"], told["enable.idempotence"]) == ("all", True), "which nobody may say"


class Raw:
    """A message as the client has it."""

    def __init__(self, offset: int) -> None:
        self.offset = lambda: offset
        self.error = self.headers = self.key = lambda: None
        self.topic, self.partition = lambda: "orders", lambda: 0
        self.timestamp, self.value = lambda: (1, 1000), lambda: b"{}"


class Consumer:
    """A client that has as many as are asked for."""

    def __init__(self) -> None:
        self.given = 0

    def consume(self, count: int, timeout: float) -> list[Raw]:
        self.given += count
        return [Raw(offset) for offset in range(self.given - count, self.given)]


def test_a_poll_takes_as_many_as_are_wanted_and_leaves_none_over():
    source = kafka_source(parse("kafka://h/orders", "source"), 3, 10.0, 30.0, Outbox())
    source._consumer, source._ours = Consumer(), {"orders/0"}
    assert [len(source.poll(64, 1 << 20, 0.5)) for _ in range(4)] == [64] * 4
    assert len(source.poll(1, 1 << 20, 0.5)) == 1
    assert len(source.poll(10, 7, 0.5)) == 3, "no more bytes than are wanted"
    assert len(source.poll(10, 1 << 20, 0.5)) == 10
    assert source._consumer.given == 64 * 4 + 1 + 10 + 3
