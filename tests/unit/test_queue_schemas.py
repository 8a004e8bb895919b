"""Schemas of messages: fetched once, before an attempt, a bounded number kept; a registry away is waited for."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from octoserve.codecs.framed import framed
from octoserve.connectors.queues.schema_registry import AUTH, Schema, SchemaRegistry
from octoserve.core.errors import InvalidInput, NotFound, OctoserveError, SettingsError, Unavailable
from octoserve.patterns.message_queue import schemas as module
from octoserve.patterns.message_queue.schemas import Schemas

TEXT = json.dumps({"type": "record", "name": "R", "fields": [{"name": "x", "type": "int"}]})


class Registry:
    """Of Avro schemas up to a number. `trouble`: what the next calls raise."""

    def __init__(self, known: int = 1000) -> None:
        self.known = known
        self.asked: list[int] = []
        self.trouble: list[Exception] = []
        self.kind = "AVRO"

    def schema(self, number: int) -> Schema:
        self.asked.append(number)
        if self.trouble:
            raise self.trouble.pop(0)
        if number > self.known:
            raise NotFound("registry knows no such schema")
        return Schema(kind=self.kind, text=TEXT)


def payload(number: int) -> bytes:
    return framed(number, b"\x06")


def test_a_schema_is_fetched_once_and_before_it_is_read_by():
    registry = Registry()
    schemas = Schemas("avro", registry)
    schemas.ready([payload(1), b"junk", payload(2), payload(1)])
    schemas.ready([payload(2)])
    assert registry.asked == [1, 2]
    assert schemas.read(payload(2)) == {"x": 3}
    with pytest.raises(InvalidInput, match="the schema's number"):
        schemas.read(b"junk")
    with pytest.raises(InvalidInput, match="not fetched"):
        schemas.read(payload(3))


def test_what_the_registry_does_not_know_is_asked_for_again_with_the_next_message():
    registry = Registry(known=1)
    schemas = Schemas("avro", registry)
    schemas.ready([payload(2)])
    with pytest.raises(InvalidInput, match="schema 2 is not in the registry: registry knows no such schema"):
        schemas.read(payload(2))
    registry.known = 2
    schemas.ready([payload(2)])
    assert schemas.read(payload(2)) == {"x": 3}


def test_another_kind_of_schema_is_said():
    registry = Registry()
    registry.kind = "JSON"
    schemas = Schemas("avro", registry)
    schemas.ready([payload(1)])
    with pytest.raises(InvalidInput, match="schema 1 is JSON, AVRO is wanted"):
        schemas.read(payload(1))


def test_a_registry_that_is_away_is_not_a_messages_fault():
    registry = Registry()
    registry.trouble = [Unavailable("away"), SettingsError("who are you")]
    schemas = Schemas("avro", registry)
    for expected in (Unavailable, SettingsError):
        with pytest.raises(expected):
            schemas.ready([payload(1)])
    schemas.ready([payload(1)])
    assert schemas.read(payload(1)) == {"x": 3}


def test_few_are_kept_but_those_in_hand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST", 3)
    registry = Registry()
    schemas = Schemas("avro", registry)
    schemas.ready([payload(n) for n in range(1, 6)])
    assert [schemas.read(payload(n)) for n in range(1, 6)] == [{"x": 3}] * 5
    schemas.ready([payload(1), payload(9)])
    assert len(schemas._known) == 3
    schemas.ready([payload(1), payload(9)])
    assert registry.asked == [1, 2, 3, 4, 5, 9]


# --- over HTTP: what a real registry does not do on demand --------------------------------------------------------


@pytest.fixture
def http() -> Iterator[Any]:
    """Answers with (status, body) of `answers`, by path; `heard`: authorization headers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.heard.append(self.headers["Authorization"])  # type: ignore[attr-defined]
            status, body = server.answers[self.path]  # type: ignore[attr-defined]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.heard, server.answers = [], {}  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (404, {"error_code": 40403, "message": "Schema not found"}, NotFound),
        (404, b"<html>no such page</html>", Unavailable),
        (404, {"message": "no route"}, Unavailable),
        (500, {"error_code": 50001, "message": "store"}, Unavailable),
        (503, b"", Unavailable),
        (429, b"", Unavailable),
        (401, b"", SettingsError),
        (403, b"", SettingsError),
        (200, b"welcome", Unavailable),
        (200, {}, Unavailable),
        (200, {"schema": 7}, Unavailable),
        (200, {"schema": "x", "references": [{}]}, Unavailable),
    ],
)
def test_only_a_registrys_own_word_says_that_there_is_no_schema(http: Any, status: int, body: Any, error: type):
    http.answers["/schemas/ids/7"] = status, body
    with pytest.raises(error):
        SchemaRegistry(f"http://127.0.0.1:{http.server_port}/", {}).schema(7)


def test_who_asks_is_said_and_never_shown(http: Any):
    http.answers["/p/schemas/ids/1"] = 200, {"schema": TEXT}
    where = f"127.0.0.1:{http.server_port}/p"
    assert SchemaRegistry(f"http://me:s%2Fcret@{where}", {}).schema(1) == Schema(kind="AVRO", text=TEXT)
    SchemaRegistry(f"http://{where}", {AUTH: "you:s/cret"}).schema(1)
    SchemaRegistry(f"http://{where}", {}).schema(1)
    pairs = [base64.b64decode(each.split()[1]).decode() if each else None for each in http.heard]
    assert pairs == ["me:s/cret", "you:s/cret", None]
    http.answers["/p/schemas/ids/1"] = 401, b""
    with pytest.raises(OctoserveError) as told:
        SchemaRegistry(f"http://me:s%2Fcret@{where}", {}).schema(1)
    assert "cret" not in str(told.value)
    assert AUTH in str(told.value)


@pytest.mark.parametrize("url", ["", "registry:8081", "ftp://h", "http://", "http://me:s3cret@h:port", "http://h/?a=b"])
def test_an_address_that_is_none_is_not_repeated(url: str):
    with pytest.raises(SettingsError, match="an address such as http://") as told:
        SchemaRegistry(url, {})
    assert "s3cret" not in str(told.value)
