"""What is promised is computed, and the page's table says the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from octoserve.app import queue_kinds
from octoserve.connectors.queues.address import parse
from octoserve.connectors.queues.protocol import SinkTraits, SourceTraits
from octoserve.patterns.message_queue.pace import Pace
from octoserve.patterns.message_queue.promise import (
    AT_LEAST_ONCE,
    EXACTLY_ONCE,
    EXACTLY_ONCE_EFFECT,
    IDEMPOTENT,
    promise,
)
from octoserve.patterns.message_queue.settings import QueueSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "message-queue.md"
LOG = SourceTraits(system="kafka", shape="log")
ACKS = SourceTraits(system="nats", shape="acks", ours_for=10.0)


@pytest.mark.parametrize(
    ("source", "sink", "word"),
    [
        (LOG, SinkTraits(transactional=True, idempotent=True), EXACTLY_ONCE_EFFECT),
        (ACKS, SinkTraits(transactional=True, idempotent=True), EXACTLY_ONCE_EFFECT),
        (LOG, SinkTraits(commits_for=("kafka",)), EXACTLY_ONCE),
        (ACKS, SinkTraits(commits_for=("kafka",)), AT_LEAST_ONCE),
        (ACKS, SinkTraits(idempotent=True), IDEMPOTENT),
        (LOG, SinkTraits(transactional=True), AT_LEAST_ONCE),
        (LOG, SinkTraits(), AT_LEAST_ONCE),
    ],
)
def test_what_a_pair_promises(source: SourceTraits, sink: SinkTraits, word: str):
    assert promise(source, sink).word == word
    assert str(promise(source, sink)).startswith(f"{word}: ")


SOURCES = {"embedded": "embedded:q", "NATS": "nats://h/s", "Kafka": "kafka://h:9092/t?group=g"}
SINKS = {
    "SQLite": "sqlite:///x.db?table=t",
    "PostgreSQL": "postgresql://h/d?table=t", "Kafka": "kafka://h:9092/t",
    "embedded stream": "embedded:r", "NATS stream": "nats://h/r?subject=r", "Parquet": "parquet:///r",
    "webhook": "https://h/p",
}  # fmt: skip


def test_the_pages_table_is_what_is_computed(tmp_path: Path):
    table = re.search(r"\| source \| sink \| promise \|\n\|[-|]+\n((?:\|.*\n)+)", PAGE.read_text())
    assert table is not None
    told: dict[tuple[str, str], str] = {}
    for row in table[1].splitlines():
        sources, sinks, word = (cell.strip() for cell in row.strip("|").split("|"))
        told.update({(a, b): word for a in sources.split(", ") for b in sinks.split(", ")})
    kinds = queue_kinds()
    for source, sink in told:
        there, to = parse(SOURCES[source], "source"), parse(SINKS[sink], "sink")
        settings = QueueSettings(repository="", model="m", source="", sink="", state_dir=str(tmp_path))
        a: Any = kinds.sources[there.scheme](there, settings)
        b: Any = kinds.sinks[to.scheme](to)
        assert promise(a.traits, b.traits).word == told[source, sink]
    assert {source for source, _ in told} == set(SOURCES)
    assert {sink for _, sink in told} == set(SINKS)


def test_a_micro_batch_takes_about_as_long_as_it_may():
    pace = Pace(1000, 1.0)
    assert pace.rows == 64, "nothing is known yet"
    pace.took(64, 0.64)
    assert pace.rows == 100
    for _ in range(30):
        pace.took(pace.rows, pace.rows * 0.001)
    assert pace.rows > 990, "it got faster"
    pace.took(1, 0.05)
    assert pace.rows > 990, "what a micro-batch costs whatever its size is no row's time"
    pace.took(1, 2.0)
    assert pace.rows < 10, "one that took longer than it may is believed"
    for _ in range(30):
        pace.took(1, 5.0)
    assert pace.rows == 1
    pace.took(0, 9.0)
    assert pace.rows == 1


def test_small_micro_batches_say_nothing_of_a_rows_time():
    pace = Pace(1000, 1.0)
    pace.took(500, 0.5)
    for _ in range(50):
        pace.took(1, 0.0009)
    assert pace.rows == 1000
