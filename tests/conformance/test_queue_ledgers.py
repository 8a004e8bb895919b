"""Attempts over every ledger: one that was running when its process ended has one more, once, whoever comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.connectors.queues.protocol import Failure, Position
from octoserve.control.postgres import Server
from octoserve.core.errors import Unavailable
from octoserve.patterns.message_queue.ledger import ENDED, Attempts, Ledger, SqliteLedger, pack, unpack
from octoserve.patterns.message_queue.postgres_ledger import PostgresLedger
from support import postgres
from support.queues import in_thread

Open = Callable[..., Ledger]
A, B, C, D = (Position("", i) for i in (1, 2, 3, 7))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if reason := postgres.missing():
        pytest.skip(reason)
    with postgres.a_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same ledger for an owner."""
    made: list[Ledger] = []

    def open_(owner: str, source: str = "s", **others: Any) -> Ledger:
        if request.param == "sqlite":
            made.append(SqliteLedger(tmp_path, source, owner, wall=lambda: 5.0, **others))
        else:
            made.append(PostgresLedger(Server(url, "sink"), source, owner, wall=lambda: 5.0, **others))
        return made[-1]

    if request.param == "postgres":
        base = request.getfixturevalue("server")
        schema = f"l{uuid4().hex}"
        with psycopg.connect(base, autocommit=True) as connection:
            connection.execute(f"create schema {schema}".encode())
        url = f"{base}?options=-csearch_path%3D{schema}"
    yield open_
    for ledger in made:
        ledger.close()


def counts(found: Any) -> dict[Position, int]:
    return {position: attempts.count for position, attempts in found.items()}


def test_what_was_running_has_an_attempt_more_once(opened: Open):
    dead, next_ = opened("n/1/a"), opened("n/2/b", ends={"n/1": "it was struck"})
    dead.begin([A, B, C])
    dead.close()
    assert counts(next_.suspects([A, D])) == {A: 1}
    assert counts(next_.suspects([A, B])) == {A: 1, B: 1}
    assert next_.suspects([A])[A].history == (Failure(at=5.0, error="it was struck with 2 others"),)
    third = opened("n/3/c")
    assert counts(third.suspects([A, B, C, D])) == {A: 1, B: 1, C: 1}
    assert third.suspects([C])[C].history[0].error.startswith(ENDED)


def test_all_of_a_partition_that_has_just_come(opened: Open):
    ours, others = [Position("p", i) for i in range(3)], [Position("q", 0)]
    dead, next_ = opened("n/1/a"), opened("n/2/b")
    dead.failed({ours[2]: Attempts(2)})
    dead.begin([*ours[:2], *others])
    assert dead.history("p") == {ours[2]: Attempts(2)}, "what we run ourselves is no suspect"
    assert counts(next_.history("p")) == {ours[0]: 1, ours[1]: 1, ours[2]: 2}
    assert counts(next_.history("p")) == {ours[0]: 1, ours[1]: 1, ours[2]: 2}, "once"
    assert next_.history("none") == {}
    assert counts(opened("n/3/c").history("q")) == {others[0]: 1}


def test_what_is_begun_anew_has_ended(opened: Open):
    one, other = opened("a"), opened("b")
    one.begin([A])
    one.begin([B])
    assert counts(other.suspects([A, B])) == {B: 1}
    one.begin([C])
    one.end()
    one.end()
    assert counts(other.suspects([C])) == {}


def test_ones_own_run_is_no_suspect(opened: Open):
    one = opened("a")
    one.begin([A])
    assert one.suspects([A]) == {}


def test_failures_are_kept_whole_and_forgotten(opened: Open):
    one = opened("a")
    first = Attempts().failed(Failure(at=1.0, error="no", by="m version 1"))
    one.failed({A: first, B: first.failed(Failure(at=2.0, error="no again"))})
    one.failed({A: first.failed(Failure(at=3.0, error="third"))})
    found = opened("b").suspects([A, B, C])
    assert counts(found) == {A: 2, B: 2}
    assert [f.error for f in found[A].history] == ["no", "third"]
    one.forget([A, C])
    assert counts(one.suspects([A, B])) == {B: 2}


def test_a_history_is_bounded(opened: Open):
    attempts = Attempts()
    for i in range(50):
        attempts = attempts.failed(Failure(at=float(i), error="no"))
    one = opened("a")
    one.failed({A: attempts})
    found = one.suspects([A])[A]
    assert found.count == 50
    assert [f.at for f in found.history] == [float(i) for i in range(30, 50)]


def test_what_a_log_has_passed_is_forgotten(opened: Open):
    one, other = opened("a"), opened("b")
    p = [Position("0", i) for i in range(6)] + [Position("1", 0)]
    one.begin(p)
    other.failed({p[1]: Attempts(1), p[4]: Attempts(1)})
    other.forget_before("0", 3)
    assert counts(other.suspects(p)) == {p[3]: 1, p[4]: 2, p[5]: 1, p[6]: 1}


def test_sources_are_apart(opened: Open):
    opened("a", "one").begin([A])
    assert opened("b", "two").suspects([A]) == {}


def test_two_that_come_at_once_count_once(opened: Open):
    dead = opened("x")
    positions = [Position("", i) for i in range(50)]
    dead.begin(positions)
    found: list[Any] = []
    threads = []
    for i in range(4):
        ledger = opened(f"y{i}")
        if isinstance(ledger, SqliteLedger):
            continue  # its connection is one thread's
        threads.append(in_thread(lambda ledger=ledger: found.append(counts(ledger.suspects(positions)))))  # type: ignore[misc]
    for thread in threads:
        thread.join(30)
    found.append(counts(opened("z").suspects(positions)))
    assert all(each == dict.fromkeys(positions, 1) for each in found)


@given(st.sets(st.tuples(st.sampled_from(["", "0", "1"]), st.integers(0, 50))))
def test_positions_are_packed_without_loss(chosen: set[tuple[str, int]]):
    positions = {Position(*each) for each in chosen}
    assert unpack(pack(positions)) == positions


def test_a_run_of_positions_packs_small():
    assert len(pack([Position("12", 10**9 + i) for i in range(10_000)])) < 40


def test_what_could_not_be_written_leaves_the_ledger_as_it_was_and_usable(tmp_path: Path):
    """A disk that is full for a while, as the file's own limit plays it."""
    with closing(SqliteLedger(tmp_path, "s", "a")) as ledger:
        ledger.failed({A: Attempts().failed(Failure(at=1.0, error="once"))})
        pages = ledger._db.execute("pragma page_count").fetchone()[0]
        ledger._db.execute(f"pragma max_page_count = {pages}")
        large = {Position("", i): Attempts().failed(Failure(at=1.0, error="x" * 1000)) for i in range(100, 200)}
        for write in (lambda: ledger.failed(large), lambda: ledger.failed(large)):
            with pytest.raises(Unavailable, match="full"):
                write()
        ledger._db.execute(f"pragma max_page_count = {pages + 1000}")
        assert set(ledger.suspects([A, *large])) == {A}
        ledger.failed(large)
        ledger.forget_before("", 150)
        assert set(ledger.suspects([A, *large])) == {Position("", i) for i in range(150, 200)}


def test_a_closed_ledger_is_opened_again(opened: Open):
    with closing(opened("a")) as one:
        one.failed({A: Attempts(2)})
    assert counts(opened("b").suspects([A])) == {A: 2}
