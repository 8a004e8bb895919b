"""Records through a real schema registry (Apicurio Registry 3.0.9, by the interface of Confluent's)."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octoserve.codecs.framed import framed
from octoserve.connectors.queues.address import parse
from octoserve.connectors.queues.kafka_tools import KafkaTools
from octoserve.connectors.queues.nats_server import EmbeddedBroker
from octoserve.connectors.queues.nats_tools import NatsTools
from octoserve.connectors.queues.nats_wire import where_of
from octoserve.connectors.queues.schema_registry import PROTOBUF, Schema
from octoserve.core.errors import InvalidInput, NotFound
from support import kafka, schema_registry
from support.queue_runs import dead, of, put_tricky, run, settings_of, table
from support.queues import in_thread
from support.schema_registry import Registry
from support.supervised import until

AVSC = json.dumps(
    {
        "type": "record", "name": "Thing",
        "fields": [{"name": "id", "type": "string"}, {"name": "x", "type": ["null", "double"], "default": None}],
    }
)  # fmt: skip
PROTO = 'syntax = "proto3";\nmessage Thing {\n  string id = 1;\n  optional double x = 2;\n}\n'


@pytest.fixture(scope="module")
def registry() -> Registry:
    return schema_registry.shared()


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    broker = EmbeddedBroker(tmp_path / "state")
    broker.join()
    yield tmp_path / "state"
    broker.leave()


def lines(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def sent(tmp_path: Path, source: str, registry: Registry, schema: str, rows: list[dict[str, Any]], *more: str) -> None:
    """By the command that people have for it."""
    file = tmp_path / ("thing.avsc" if schema.startswith("{") else "thing.proto")
    file.write_text(schema)
    command = ["queue", "send", source, lines(tmp_path, rows), "--schema", str(file), "--schema-registry"]
    done = subprocess.run(
        [sys.executable, "-m", "octoserve", *command, registry.address, *more], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def counted(supervisor: Any, name: str) -> float:
    return sum(s.total for family in supervisor.families() if family.name == name for s in family.samples)


def raw(state_dir: Path, values: list[bytes]) -> None:
    tools = NatsTools(where_of(parse("embedded", "source"), state_dir))
    tools.send(iter(values), lambda count: None)
    tools.close()


def test_a_schema_has_one_number_and_comes_back_with_what_it_rests_on(registry: Registry):
    client = registry.client
    number = client.register("thing-value", Schema(kind="AVRO", text=AVSC))
    assert client.register("thing-value", Schema(kind="AVRO", text=AVSC)) == number
    assert json.loads(client.schema(number).text) == json.loads(AVSC)
    proto = client.schema(client.register("proto-value", Schema(kind=PROTOBUF, text=PROTO)))
    assert proto.kind == PROTOBUF
    assert "optional double x = 2" in proto.text
    with pytest.raises(NotFound):
        client.schema(10**6)
    with pytest.raises(InvalidInput):
        client.register("thing-value", Schema(kind="AVRO", text="{"))


@pytest.mark.parametrize(("payload", "schema"), [("avro", AVSC), ("protobuf", PROTO)])
def test_records_are_rows_and_what_is_none_is_a_dead_letter(
    payload: str, schema: str, registry: Registry, state_dir: Path, tmp_path: Path
):
    given = [{"id": f"m{i}", "x": i / 2} for i in range(300)]
    sent(tmp_path, "embedded", registry, schema, [*given, {"id": "none", "x": None}], "--state-dir", str(state_dir))
    subject = Schema(kind=payload.upper(), text=schema)
    number = registry.client.register("default-value", subject)
    raw(state_dir, [b"{}", framed(10**6, b"\0"), framed(number, b"\0\xff\xff")])
    settings = settings_of(
        put_tricky(tmp_path / "r"), state_dir, f"sqlite:///{tmp_path}/x.db?table=t", payload=payload,
        schema_registry=registry.address,
    )  # fmt: skip
    figures, _ = run(settings)
    assert table(tmp_path / "x.db") == {row["id"]: row["x"] * 2 + 1 for row in given}
    assert (figures.stored, figures.dead) == (300, 4)
    why = [letter.history[-1].error for letter in dead(state_dir).values()]
    for text in (
        "'x' is missing",
        "number are wanted first",
        "schema 1000000 is not in the registry",
        "the bytes are no",
    ):
        assert sum(text in each for each in why) == 1, why


def test_messages_wait_for_a_registry_that_is_away(registry: Registry, state_dir: Path, tmp_path: Path):
    given = [{"id": f"m{i}", "x": float(i)} for i in range(20)]
    sent(tmp_path, "embedded", registry, AVSC, given, "--state-dir", str(state_dir))
    settings = settings_of(
        put_tricky(tmp_path / "r"), state_dir, f"sqlite:///{tmp_path}/x.db?table=t", payload="avro",
        schema_registry=registry.address, max_attempts=1,
    )  # fmt: skip
    supervisor = of(settings)
    with registry.away():
        running = in_thread(supervisor.run)
        until(lambda: counted(supervisor, "octoserve_queue_sink_retries_total") >= 1, 60, "it to be asked in vain")
        assert dead(state_dir) == {}
    running.join(120)
    assert not running.is_alive()
    assert table(tmp_path / "x.db") == {row["id"]: row["x"] * 2 + 1 for row in given}
    assert counted(supervisor, "octoserve_queue_attempts_total") == 20
    assert dead(state_dir) == {}


def test_from_kafka_as_the_wire_format_says(registry: Registry, tmp_path: Path):
    source = f"kafka://{kafka.shared()}/{kafka.topic()}?create=1"
    number = registry.client.register("by-hand-value", Schema(kind="AVRO", text=AVSC))
    tools = KafkaTools(parse(source, "source"))
    # The name's length and letters, the union's second branch, a double: without a writer of ours.
    names = [f"k{i}".encode() for i in range(50)]
    records = [bytes([2 * len(n)]) + n + b"\x02" + struct.pack("<d", i) for i, n in enumerate(names)]
    tools.send((struct.pack(">bI", 0, number) + record for record in records), lambda count: None)
    tools.close()
    settings = settings_of(
        put_tricky(tmp_path / "r"), tmp_path / "s", f"sqlite:///{tmp_path}/x.db?table=t", payload="avro",
        schema_registry=registry.address, source=source, redeliver_after=6.0,
    )  # fmt: skip
    run(settings)
    assert table(tmp_path / "x.db") == {f"k{i}": 2.0 * i + 1 for i in range(50)}
