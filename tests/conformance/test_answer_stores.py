"""What door, consumers and keeper rely on of every store of answers.

A new store joins by an address in `address`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
import pytest

from octoserve.app import queue_kinds
from octoserve.connectors.queues.address import parse
from octoserve.connectors.queues.answers import ANSWER, Answer, Asked, SqlAnswers, digest_of
from octoserve.connectors.queues.protocol import DeadLetter, Failure, Move
from octoserve.core.errors import SettingsError, Unavailable
from support import postgres
from support.queues import message


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if reason := postgres.missing():
        pytest.skip(reason)
    with postgres.a_server() as url:
        yield url


@pytest.fixture(params=("sqlite", "postgres"))
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'x.db'}?table=answers"
        return
    url, schema = request.getfixturevalue("server"), f"a{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"create schema {schema}")
    yield f"{url}?table={schema}.answers"


@pytest.fixture
def store(address: str) -> Iterator[Any]:
    made = opened(address)
    yield made
    made.close()


def opened(address: str) -> Any:
    found = parse(address, "async.store")
    return queue_kinds().answers[found.scheme](found)


def asked(id: str, digest: str = "d", callback: str = "") -> Asked:
    return Asked(id=id, digest=digest, callback=callback)


def fail(store: SqlAnswers, id: str, at: float, error: str = "no such thing") -> None:
    history = (Failure(at=at, error="first"), Failure(at=at, error=error))
    store.fail([DeadLetter(id=id, source="s", origin="o", attempts=2, history=history, published=0.0, buried=at)])


def score(address: str, *ids: str, at: float = 1000.0) -> None:
    """By the sink, as a consumer does."""
    from octoserve.connectors.queues.protocol import Results

    found = parse(address, "sink")
    sink = queue_kinds().sinks[found.scheme](found)
    sink.open("q", [ANSWER])
    column = np.empty(len(ids), dtype=object)
    column[:] = [json.dumps({"id": id}).encode() for id in ids]
    epoch = sink.claim(["l"], None)["l"].epoch
    results = Results(
        model="m",
        outputs=(ANSWER,),
        messages=[message(n, id=id) for n, id in enumerate(ids)],
        ids=list(ids),
        columns=[column],
        versions=np.full(len(ids), 3, np.int64),
        scored_at=at,
    )
    sink.store(results, [Move("l", epoch)])
    sink.close()


def state(store: Any, id: str) -> str | None:
    found: Answer | None = store.look(id)
    return found.state if found is not None else None


def test_what_is_taken_is_not_yet_promised(store: Any):
    assert state(store, "m/a") is None
    taken = store.take(asked("m/a"), 1.0)
    assert (taken.state, taken.digest, taken.accepted) == ("pending", "d", None)
    assert state(store, "m/a") is None
    assert store.accept(asked("m/a"), 2.0).accepted == 2.0
    assert state(store, "m/a") == "pending"


def test_the_first_request_keeps_its_id(store: Any):
    store.take(asked("m/a", "first"), 1.0)
    assert store.take(asked("m/a", "second"), 2.0).digest == "first"
    assert store.accept(asked("m/a", "second"), 3.0).digest == "first"
    store.accept(asked("m/b", "first", "https://one.example/"), 1.0)
    assert store.accept(asked("m/b", "first", "https://two.example/"), 2.0).callback == "https://one.example/"


def test_done_outranks_failed_and_that_outranks_pending(store: Any, address: str):
    store.accept(asked("m/a"), 1.0)
    fail(store, "m/a", 2.0)
    found = store.look("m/a")
    assert (found.state, found.error, found.attempts) == ("failed", "no such thing", 2)
    score(address, "m/a")
    found = store.look("m/a")
    assert (found.state, json.loads(found.answer), found.error) == ("done", {"id": "m/a"}, "")
    fail(store, "m/a", 3.0)
    assert state(store, "m/a") == "done"


def test_what_came_around_the_door_is_found_too(store: Any, address: str):
    store.prepare()
    score(address, "b")
    fail(store, "c", 1.0)
    assert (state(store, "b"), state(store, "c")) == ("done", "failed")
    assert store.take(asked("c"), 2.0).state == "failed"


def test_callbacks_are_owed_once_there_is_something_to_tell(store: Any, address: str):
    for id in ("m/a", "m/b", "m/c"):
        store.accept(asked(id, callback=f"https://h.example/{id}"), 1.0)
    store.accept(asked("m/quiet"), 1.0)
    assert store.owed(5.0, 60.0, 10) == []
    score(address, "m/a", "m/quiet")
    fail(store, "m/b", 2.0)
    owed = {each.id: each for each in store.owed(5.0, 60.0, 10)}
    assert {id: each.state for id, each in owed.items()} == {"m/a": "done", "m/b": "failed"}
    assert owed["m/a"].callback == "https://h.example/m/a"
    assert store.owed(64.0, 60.0, 10) == [], "they are somebody's for a minute"
    store.told("m/a", None)
    store.told("m/b", 70.0)
    assert [(each.id, each.tries) for each in store.owed(70.0, 60.0, 10)] == [("m/b", 1)]
    assert store.owed(1e9, 60.0, 10)[0].id == "m/b"


def test_old_ones_are_forgotten_whole_and_what_is_pending_is_not(store: Any, address: str):
    for id in ("m/old", "m/new", "m/waits", "m/bad"):
        store.accept(asked(id), 1.0)
    store.take(asked("m/never"), 1.0)
    score(address, "m/old", at=100.0)
    score(address, "m/new", at=200.0)
    fail(store, "m/bad", 100.0)
    fail(store, "m/old", 50.0)
    assert store.forget(99.0) == 1, "the one that was never accepted"
    assert store.forget(150.0) == 2
    states = {id: state(store, f"m/{id}") for id in ("old", "new", "waits", "bad")}
    assert states == {"old": None, "new": "done", "waits": "pending", "bad": None}
    assert store.take(asked("m/old", "another"), 300.0).digest == "another", "the id is free again"


def test_ids_of_all_kinds(store: Any, address: str):
    ids = ["m/a'b", 'm/"q"', "m/é 水", "m/" + "x" * 200, "m/%s?", "m/a/b/c"]
    for id in ids:
        store.take(asked(id, id), 1.0)
        store.accept(asked(id, id), 1.0)
    score(address, *ids)
    assert [store.look(id).digest for id in ids] == ids
    assert {state(store, id) for id in ids} == {"done"}


def test_many_threads_and_two_stores_at_once(store: Any, address: str):
    other = opened(address)

    def one(number: int) -> str:
        mine = (store, other)[number % 2]
        taken = mine.take(asked("m/same", str(number)), 1.0)
        mine.accept(asked(f"m/{number}"), 1.0)
        assert taken.digest is not None
        return str(taken.digest)

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(one, range(40)))) == 1
    assert {state(store, f"m/{number}") for number in range(40)} == {"pending"}
    other.close()


def test_a_digest_tells_parts_apart():
    assert digest_of("ab", "c") != digest_of("a", "bc")
    assert digest_of("a", b"b") == digest_of(b"a", "b")


def test_a_place_that_cannot_be_used_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SettingsError, match="cannot write"):
        opened(f"sqlite:///{tmp_path / 'file' / 'x.db'}?table=t").prepare()
    with pytest.raises(SettingsError, match="table= is wanted"):
        opened(f"sqlite:///{tmp_path / 'x.db'}")
    with pytest.raises(Unavailable, match=r"cannot connect to postgresql://127\.0\.0\.1:9/db"):
        opened("postgresql://me:secret@127.0.0.1:9/db?table=t").look("m/a")
