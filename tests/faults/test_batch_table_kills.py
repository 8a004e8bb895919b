"""kill -9 of jobs whose sink is a table of PostgreSQL, Delta or Iceberg: in the end there is the undisturbed result."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from octoserve.patterns.batch import postgres_sink
from octoserve.patterns.batch.places import sink_of
from octoserve.patterns.batch.run import Wish, resume, run
from octoserve.patterns.batch.verify import verify
from support import postgres
from support.batch import (
    AFTER,
    BEFORE,
    BORNE,
    HALF,
    counting,
    dies,
    ends_by_itself_or_killed,
    put_model,
    put_table,
    score,
    tools,
    wish,
)
from support.batch_sinks import Delta, Iceberg, a_catalog, catalog_variables
from support.scale import FULL

BAD = (7, 120, 499)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("ground")
    put_model(folder / "models")
    return folder / "models", put_table(folder / "data", files=1, bad=BAD)


def go_on(asked: Wish) -> None:
    if sink_of(asked.sink).has_job() or sink_of(asked.sink).committed() is not None:
        resume(asked.sink, BORNE, tools())
    else:
        score(asked)


# PostgreSQL.


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    if postgres.missing():
        pytest.skip(postgres.missing())
    with postgres.a_server() as found:
        yield found


STEPS = ("_enter", "write_job", "begin", "_make", "write", "write_line", "finish", "_move", "commit")
"""In the order in which a run comes by them first."""


def some_steps() -> list[tuple[str, str, int]]:
    points = [(step, when, number) for step in STEPS for when in (BEFORE, AFTER) for number in (1, 2)]
    return points if FULL else random.Random(5).sample(points, 6)


def _child(asked: Wish, step: str, when: str, number: int) -> None:
    """Dies at the `number`-th time that it comes by the step."""
    os.environ["PGPASSWORD"] = postgres.PASSWORD
    seen = 0

    def deadly(real: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == number and when == BEFORE:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args)
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    for place in (postgres_sink, postgres_sink.PostgresWork, postgres_sink.SplitRows):
        if hasattr(place, step):
            setattr(place, step, deadly(getattr(place, step)))
            break
    run(asked, BORNE, tools())


def test_killed_at_a_step_of_postgresql(ground: tuple[Path, str], url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", postgres.PASSWORD)
    score(wish(*ground, f"{url}?table=undisturbed"))  # type: ignore[arg-type]
    with psycopg.connect(url, autocommit=True) as connection:

        def rows(table: str) -> Any:
            return connection.execute(f"select * from {table} order by id").fetchall()

        expected, bad = rows("undisturbed"), rows("undisturbed_bad")
        assert (len(expected), len(bad)) == (497, 3)
        for step, when, number in some_steps():
            table = f"k_{step}_{when}_{number}".replace("__", "_")
            asked = wish(*ground, f"{url}?table={table}")  # type: ignore[arg-type]
            ends_by_itself_or_killed(_child, asked, step, when, number)
            there = connection.execute(f"select to_regclass('{table}')").fetchone()
            if there != (None,):
                assert rows(table) == expected, "everything, or nothing"
            go_on(asked)
            assert rows(table) == expected, f"killed {when} {step} {number}"
            assert rows(f"{table}_bad") == bad
            assert verify(asked.sink).differences == ()
        left = connection.execute("select count(*) from octoserve_batch.lines").fetchone()
        assert left == (0,)


# Delta and Iceberg.


def some_points(steps: int) -> list[tuple[int, str]]:
    """All of them in a full run, else few, most of them about the commit."""
    points = [(step, when) for step in range(1, steps + 1) for when in (BEFORE, HALF, AFTER)]
    last = [(step, when) for step, when in points if step > steps - 6]
    return points if FULL else [*random.Random(steps).sample(points, 1), *random.Random(1).sample(last, 3)]


@pytest.fixture
def delta(tmp_path: Path) -> Delta:
    return Delta(tmp_path)


@pytest.fixture
def iceberg(tmp_path: Path) -> Iterator[Iceberg]:
    with a_catalog(tmp_path) as catalog:
        yield Iceberg(tmp_path / "tables", catalog)


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_killed_at_a_step_of_a_lake(kind: str, ground: tuple[Path, str], request: pytest.FixtureRequest) -> None:
    case: Delta | Iceberg = request.getfixturevalue(kind)
    files = counting()
    undisturbed = wish(*ground, case.new("undisturbed"))  # type: ignore[arg-type]
    score(undisturbed, files=files)
    expected = case.contents(undisturbed.sink)
    assert len(expected[0]) == 497
    died = 0
    for step, when in some_points(files.steps):
        asked = wish(*ground, case.new(f"k-{step}-{when}"))  # type: ignore[arg-type]
        died += dies(asked, step, when, variables=catalog_variables())
        assert_resumed(case, asked, expected)
    assert died >= 3


def test_killed_at_the_commit_of_the_catalog(ground: tuple[Path, str], iceberg: Iceberg) -> None:
    """Its manifests lie there already; before it nobody reads them, after it a resumed run must not commit again."""
    undisturbed = wish(*ground, iceberg.new("undisturbed"))  # type: ignore[arg-type]
    score(undisturbed)
    expected = iceberg.contents(undisturbed.sink)
    for when in (BEFORE, AFTER):
        asked = wish(*ground, iceberg.new(f"commit-{when}"))  # type: ignore[arg-type]
        assert ends_by_itself_or_killed(_dies_at_the_commit, asked, when, catalog_variables()) != 0
        assert (iceberg.seen(asked.sink) is None) == (when == BEFORE)
        assert_resumed(iceberg, asked, expected)


def _dies_at_the_commit(asked: Wish, when: str, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    from pyiceberg.catalog.sql import SqlCatalog

    real = SqlCatalog.commit_table

    def deadly(*args: Any) -> Any:
        if when == AFTER:
            real(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    SqlCatalog.commit_table = deadly  # type: ignore[method-assign]
    run(asked, BORNE, tools())


def assert_resumed(case: Delta | Iceberg, asked: Wish, expected: Any) -> None:
    assert case.seen(asked.sink) in (None, expected[0]), "everything, or nothing"
    go_on(asked)
    assert case.contents(asked.sink) == expected, "rows, the files' bytes, and nothing else is left there"
    assert case.commits(asked.sink) == 1
    assert verify(asked.sink).differences == ()
