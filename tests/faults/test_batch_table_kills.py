"""kill -9 of jobs whose sink is a table of PostgreSQL or of Delta: in the end there is the undisturbed result."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from deltalake import DeltaTable

from octoserve.patterns.batch import postgres_sink
from octoserve.patterns.batch.places import sink_of
from octoserve.patterns.batch.run import Wish, resume, run
from octoserve.patterns.batch.verify import verify
from support import postgres
from support.batch import AFTER, BEFORE, BORNE, HALF, counting, dies, forks, put_model, put_table, score, tools, wish
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
        points = [(step, when, number) for step in STEPS for when in (BEFORE, AFTER) for number in (1, 2)]
        for step, when, number in points if FULL else random.Random(5).sample(points, 6):
            table = f"k_{step}_{when}_{number}".replace("__", "_")
            asked = wish(*ground, f"{url}?table={table}")  # type: ignore[arg-type]
            process = forks.Process(target=_child, args=(asked, step, when, number))
            process.start()
            process.join(120)
            assert process.exitcode in (0, -signal.SIGKILL)
            there = connection.execute(f"select to_regclass('{table}')").fetchone()
            if there != (None,):
                assert rows(table) == expected, "everything, or nothing"
            go_on(asked)
            assert rows(table) == expected, f"killed {when} {step} {number}"
            assert rows(f"{table}_bad") == bad
            assert verify(asked.sink).differences == ()
        left = connection.execute("select count(*) from octoserve_batch.lines").fetchone()
        assert left == (0,)


# Delta.


def test_killed_at_a_step_of_delta(ground: tuple[Path, str], tmp_path: Path) -> None:
    files = counting()
    score(wish(*ground, f"delta:{tmp_path / 'undisturbed'}"), files=files)  # type: ignore[arg-type]
    expected = _delta(tmp_path / "undisturbed")
    assert expected is not None
    assert len(expected) == 497
    points = [(step, when) for step in range(1, files.steps + 1) for when in (BEFORE, HALF, AFTER)]
    last = [(step, when) for step, when in points if step > files.steps - 6]  # about the commit
    died = 0
    for step, when in (
        points if FULL else [*random.Random(files.steps).sample(points, 2), *random.Random(1).sample(last, 3)]
    ):
        root = tmp_path / f"{step}-{when}"
        asked = wish(*ground, f"delta:{root}")  # type: ignore[arg-type]
        died += dies(asked, step, when)
        assert _delta(root) in (None, expected), "everything, or nothing"
        go_on(asked)
        assert _delta(root) == expected, f"killed {when} step {step}"
        assert DeltaTable(str(root)).version() == 0, "one commit"
        assert not (root / "_octoserve").exists()
        assert verify(asked.sink).differences == ()
    assert died >= 4


def _delta(root: Path) -> list[dict[str, Any]] | None:
    if not DeltaTable.is_deltatable(str(root)):
        return None
    return sorted(DeltaTable(str(root)).to_pyarrow_table().to_pylist(), key=lambda row: row["id"])
