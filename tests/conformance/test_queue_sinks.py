"""What a queue relies on of every sink: the first stays, a stale epoch writes nothing, what cannot be held is refused.

A new sink joins by a `Backend` in `BACKENDS`. What only holds for sinks with a trait is asked of those alone.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
import pytest

from octoserve.app import queue_kinds
from octoserve.connectors.queues.address import parse
from octoserve.connectors.queues.protocol import Fenced, Move, QueueSink, Unwritable
from octoserve.core.errors import SettingsError
from octoserve.core.signature import TensorSpec
from support import postgres
from support.queues import OUTPUTS, in_thread, results

SOURCE = "memory:q"


class Sqlite:
    """A file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "x.db"
        self.address = f"sqlite:///{self._path}?table=t"

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run it; its rows, nested lists as Python's."""
        with closing(sqlite3.connect(self._path)) as db:
            rows = db.execute(statement).fetchall()
            db.commit()
            return rows


class Postgres:
    """A schema of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.schema = f"q{uuid4().hex}"
        self.sql(f"create schema {self.schema}")
        self.address = f"{url}?table={self.schema}.t"

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Run it; its rows."""
        with psycopg.connect(self._url, autocommit=True, options="-c search_path=" + self.schema) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


BACKENDS = ("sqlite", "postgres")
TRANSACTIONAL = ("sqlite", "postgres")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if reason := postgres.missing():
        pytest.skip(reason)
    with postgres.a_server() as url:
        yield url


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "sqlite":
        yield Sqlite(tmp_path)
        return
    made = Postgres(request.getfixturevalue("server"))
    yield made
    made.sql(f"drop schema {made.schema} cascade")


Open = Callable[..., QueueSink]


@pytest.fixture
def sink(backend: Any) -> Iterator[Open]:
    """Opens the sink, again and again."""
    opened: list[QueueSink] = []

    def open_(outputs: Any = OUTPUTS, more: str = "") -> QueueSink:
        made = unopened(backend, more)
        opened.append(made)
        made.open(SOURCE, outputs)
        return made

    yield open_
    for each in opened:
        each.close()


def unopened(backend: Any, more: str = "") -> QueueSink:
    address = parse(backend.address + more, "sink")
    return queue_kinds().sinks[address.scheme](address)


def stored(backend: Any) -> dict[str, tuple[Any, ...]]:
    """message_id -> label, scores, model, version."""
    rows = backend.sql("select message_id, label, scores, model, version from t order by message_id")
    return {row[0]: (row[1], json.loads(row[2]) if isinstance(row[2], str) else row[2], *row[3:]) for row in rows}


def test_each_id_is_stored_once_and_the_first_result_stays(backend, sink):
    first = sink()
    moves = [Move("a", first.claim(["a"], None)["a"].epoch)]
    assert first.store(results(["m1", "m2"]), moves).written == 2
    again = first.store(results(["m2", "m3", "m3"], label=2), moves)
    assert (again.written, again.repeated) == (1, 2)
    found = stored(backend)
    assert found == {
        "m1": (1, [0.5, 1.0], "m", 3),
        "m2": (1, [0.5, 1.0], "m", 3),
        "m3": (2, [0.5, 2.0], "m", 3),
    }


def test_an_id_may_be_any_text(backend, sink):
    ids = [
        "plain",
        'say "x"',
        '"',
        "back\\slash",
        "\\",
        "a,b",
        "{c}",
        "null",
        "NULL",
        "",
        " ",
        "tab\tline\n",
        "it's",
        "é€😀",
        "%s",
    ]
    made = sink()
    moves = [Move("a", made.claim(["a"], None)["a"].epoch)]
    assert made.store(results(ids), moves).written == len(ids)
    assert set(stored(backend)) == set(ids)
    assert made.store(results(["m1"]), moves).written == 1, "and plain ones go on"


def test_a_claim_raises_the_epoch_and_who_was_before_writes_nothing(backend, sink):
    old, new = sink(), sink()
    before = old.claim(["0", "1"], None)
    old.store(results(["m1"]), [Move("0", before["0"].epoch, 5)])
    now = new.claim(["0"], None)
    assert now["0"].epoch > before["0"].epoch
    assert now["0"].offset == 5
    with pytest.raises(Fenced):
        old.store(results(["m2"]), [Move("1", before["1"].epoch, 9), Move("0", before["0"].epoch, 6)])
    assert set(stored(backend)) == {"m1"}
    assert new.claim(["1"], None)["1"].offset is None, "the other lane must not have moved either"
    new.store(results(["m3"]), [Move("0", now["0"].epoch, 7)])
    assert new.claim(["0"], None)["0"].offset == 7
    assert set(stored(backend)) == {"m1", "m3"}


def test_a_claim_that_is_not_used_runs_out(backend, sink):
    zombie = sink()
    epoch = zombie.claim(["w1"], 0.5)["w1"].epoch
    zombie.store(results(["m1"]), [Move("w1", epoch)])
    for _ in range(3):  # used, it stays
        time.sleep(0.2)
        zombie.store(results([]), [Move("w1", epoch)])
    time.sleep(0.8)
    with pytest.raises(Fenced):
        zombie.store(results(["m2"]), [Move("w1", epoch)])
    with pytest.raises(Fenced):
        zombie.store(results([]), [Move("w1", epoch)])
    assert set(stored(backend)) == {"m1"}


def test_lanes_of_another_source_are_others(sink, backend):
    mine, other = sink(), unopened(backend)
    other.open("memory:other", OUTPUTS)
    epoch = mine.claim(["0"], None)["0"].epoch
    other.claim(["0"], None)
    mine.store(results(["m1"]), [Move("0", epoch, 1)])
    assert other.claim(["0"], None)["0"].offset is None
    other.close()


def test_what_it_can_never_hold_is_refused_whole(backend, sink):
    text = (TensorSpec("word", "BYTES", (-1,)),)
    opened = sink(text)
    moves = [Move("a", opened.claim(["a"], None)["a"].epoch, 4)]
    words = np.array([b"well", b"\xff\xfe"], dtype=object)
    with pytest.raises(Unwritable, match="UTF-8"):
        opened.store(results(["m1", "m2"], outputs=text, word=words), moves)
    assert backend.sql("select * from t") == []
    assert opened.store(results(["m1"], outputs=text, word=words[:1]), moves).written == 1
    assert opened.claim(["a"], None)["a"].offset == 4


def test_a_constraint_of_the_users_table_is_refused_whole(backend, sink):
    backend.sql(
        "create table t (message_id varchar(40) primary key, label bigint check (label < 5), scores text, model text, "
        "version int, scored_at timestamp)"
        if isinstance(backend, Sqlite)
        else f"create table {backend.schema}.t (message_id varchar(40) primary key, label bigint check (label < 5), "
        "scores jsonb, model text, version int, scored_at timestamptz)"
    )
    opened = sink()
    moves = [Move("a", opened.claim(["a"], None)["a"].epoch)]
    with pytest.raises(Unwritable):
        opened.store(results(["m1", "m2"], label=7), moves)
    opened.store(results(["m3"], label=2), moves)
    assert set(stored(backend)) == {"m3"}


def test_a_table_that_cannot_hold_results_is_said_at_once(backend, sink):
    where = "t" if isinstance(backend, Sqlite) else f"{backend.schema}.t"
    backend.sql(f"create table {where} (message_id varchar(40), label int)")
    with pytest.raises(SettingsError, match="message_id"):
        sink()


def test_a_table_of_another_name_with_a_prefix(backend, sink):
    more = "&prefix=p_"
    opened = sink((TensorSpec("model", "INT64", (-1,)),), more)
    moves = [Move("a", opened.claim(["a"], None)["a"].epoch)]
    given = results(["m1"], outputs=(TensorSpec("model", "INT64", (-1,)),), model=np.array([4]))
    opened.store(given, moves)
    assert backend.sql("select message_id, p_model, model from t") == [("m1", 4, "m")]
    with pytest.raises(SettingsError, match="prefix"):
        unopened(backend).open(SOURCE, (TensorSpec("version", "INT64", (-1,)),))


EXTREMES = {
    "BOOL": [True, False],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "UINT8": [0, 255],
    "UINT16": [0, 2**16 - 1],
    "UINT32": [0, 2**32 - 1],
    "FP16": [0.5, -65504.0],
    "FP32": [0.25, float(np.finfo(np.float32).max)],
    "FP64": [1e-300, 1.7e308],
    "BYTES": ["", "Zürich 'quoted'; drop table t; --"],
}


def test_every_datatype_comes_back_as_it_was(backend, sink):
    from octoserve.core.datatypes import DATATYPES

    specs = tuple(TensorSpec(f"o_{name.lower()}", name, (-1, 1)) for name in EXTREMES)
    arrays = {}
    for spec in specs:
        values = EXTREMES[spec.datatype]
        if spec.datatype == "BYTES":
            array = np.array([v.encode() for v in values], dtype=object)  # type: ignore[attr-defined]
        else:
            array = np.array(values, dtype=DATATYPES[spec.datatype].dtype)
        arrays[spec.name] = array.reshape(2, 1)
    opened = sink(specs)
    moves = [Move("a", opened.claim(["a"], None)["a"].epoch)]
    opened.store(results(["m1", "m2"], outputs=specs, **arrays), moves)
    names = ", ".join(spec.name for spec in specs)
    rows = backend.sql(f"select {names} from t order by message_id")
    for place, spec in enumerate(specs):
        came = [row[place] for row in rows]
        if spec.datatype in ("FP32", "FP16"):
            came = [float(np.float32(value)) for value in came]
        assert came == EXTREMES[spec.datatype], spec


def test_several_begin_at_once(backend):
    trouble: list[Exception] = []

    def begin() -> None:
        try:
            with closing(unopened(backend)) as one:
                one.open(SOURCE, OUTPUTS)
                lane = uuid4().hex
                moves = [Move(lane, one.claim([lane], 30.0)[lane].epoch)]
                for i in range(5):
                    one.store(results([f"m{i}"]), moves)
        except Exception as error:
            trouble.append(error)

    threads = [in_thread(begin) for _ in range(4)]
    for thread in threads:
        thread.join(60)
    assert trouble == []
    assert set(stored(backend)) == {f"m{i}" for i in range(5)}
