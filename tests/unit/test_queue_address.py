"""Addresses of sources and sinks: what they name, what of them may be seen, and what is missing is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from octoserve.app import queue_kinds
from octoserve.cli.queue_screen import without_secrets
from octoserve.cli.queue_settings import asked
from octoserve.connectors.queues import nats_server
from octoserve.connectors.queues.address import parse
from octoserve.connectors.queues.nats_wire import Where, Wire, where_of
from octoserve.connectors.queues.postgres import database_url
from octoserve.core.errors import SettingsError
from octoserve.patterns.message_queue import opening
from octoserve.patterns.message_queue.settings import QueueSettings


def test_an_embedded_queue_has_a_name():
    assert [parse(text, "source").path for text in ("embedded", "embedded:", "embedded:orders")] == [
        "default",
        "default",
        "orders",
    ]
    assert parse("embedded:orders?durable=d", "source").parameters == {"durable": "d"}


def test_secrets_are_in_no_label():
    address = parse("postgresql://me:hid%2Fden@db:5433/risk?table=s.t&sslmode=require", "sink")
    assert address.label == "postgresql://db:5433/risk"
    assert database_url(address) == "postgresql://me:hid%2Fden@db:5433/risk?sslmode=require"
    assert without_secrets("nats://me:hid@h:4222/s?durable=d") == "nats://h:4222/s?durable=d"
    assert without_secrets("embedded:orders") == "embedded:orders"
    assert without_secrets("postgresql://db/risk?table=t&password=hid") == "postgresql://db/risk?table=t&password=..."
    assert without_secrets("https://h/hook?token=hid") == "https://h/hook?token=..."


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "an address such as"),
        ("orders", "an address such as"),
        ("nats:/h/s", "an address such as"),
        ("nats://h:port/s", "cannot be read"),
        ("nats://h/s?durable=a&durable=b", "given twice"),
    ],
)
def test_what_is_no_address_is_said(text: str, why: str):
    with pytest.raises(SettingsError, match=f"source: .*{why}"):
        parse(text, "source")
    with pytest.raises(SettingsError, match=f"^async.store: .*{why}"):
        parse(text, "async.store")


def test_consumers_of_requests_may_read_what_the_service_allows(tmp_path: Path):
    file = tmp_path / "octoserve.yaml"
    file.write_text("repository: models\nasync: {inputs: [s3://b/in/], max_input: 1MB}\n")
    flags = {"model": "m", "source": "embedded:async-m", "sink": "sqlite:///x.db?table=t", "payload": "requests"}
    _, told = asked(flags, None, str(file))
    assert (told.inputs, told.max_input) == (("s3://b/in/",), 1 << 20)


@pytest.mark.parametrize("text", ["nats://h", "nats://h/a.b", "nats://h/s?durable=a b", "nats://h/s?stream=x"])
def test_what_names_no_stream_is_said(text: str, tmp_path: Path):
    with pytest.raises(SettingsError):
        where_of(parse(text, "source"), tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sqlite:///x.db", "table= is wanted"),
        ("sqlite://x.db?table=t", "three slashes"),
        ("parquet://x", "three slashes"),
        ("https:///p", "a webhook's address"),
        ("postgresql://h/d?table=a.b.c", "schema.name"),
        ("redis://h", "unknown kind 'redis'; known: sqlite"),
    ],
)
def test_what_names_no_sink_is_said(text: str, why: str):
    settings = QueueSettings(repository="", model="m", source="embedded", sink=text)
    with pytest.raises(SettingsError, match=why):
        opening.sink(queue_kinds(), settings)


def test_a_missing_client_names_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nats", None)
    with pytest.raises(SettingsError, match=r"octoserve\[nats\]"):
        Wire(Where(url=lambda: "nats://h", label="h", stream="s"))


def test_a_missing_server_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(nats_server.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match=r"octoserve\[nats\]"):
        nats_server.EmbeddedBroker(tmp_path).join()
    assert list(tmp_path.iterdir()) == []
