"""kill -9 between each pair of steps of a queue, messages that raise, hang or kill: nothing lost, nothing doubled."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from octoserve.connectors.queues.nats_server import EmbeddedBroker
from support.queue_runs import (
    AFTER,
    BEFORE,
    HANGS,
    KILLS,
    RAISES,
    REFUSED,
    STEPS,
    Trouble,
    dead,
    expected,
    rows,
    run,
    sent,
    settings_of,
    table,
)
from support.scale import FULL, scale


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One broker for all tests here; each has a queue of its own."""
    folder = tmp_path_factory.mktemp("state")
    broker = EmbeddedBroker(folder)
    broker.join()
    yield folder
    broker.leave()


def test_poison_reaches_the_dead_letters_and_its_mates_succeed(repository: Path, state_dir: Path, tmp_path: Path):
    poison = {7: RAISES, 23: KILLS, 31: HANGS, 32: REFUSED}
    given = rows(100, poison)
    sent(state_dir, given, "embedded:poison")
    settings = settings_of(
        repository, state_dir, f"sqlite:///{tmp_path}/x.db?table=t", source="embedded:poison", run_timeout=3.0
    )
    figures, supervisor = run(settings)
    assert table(tmp_path / "x.db") == expected(given)
    letters = dead(state_dir, "embedded:poison")
    attempts = {id: letter.attempts for id, letter in letters.items()}
    assert attempts == {"m7": 3, "m23": 3, "m31": 3, "m32": attempts["m32"]}
    assert attempts["m32"] <= 3, "its mates took theirs"
    last = {id: letter.history[-1].error for id, letter in letters.items()}
    assert "no such thing" in last["m7"]
    assert "SIGKILL" in last["m23"]
    assert "ran longer than 3 s" in last["m31"]
    assert last["m32"] == "x is refused"
    assert figures.dead == 4
    assert supervisor.restarts >= 4


POINTS = [
    (step, when, number)
    for step in STEPS
    for when in (BEFORE, AFTER)
    for number in (1, 2)
    if (step, number) != ("claim", 2)  # a life claims its lane once
    if step != "history"  # of logs
]


def some() -> list[tuple[str, str, int]]:
    """All of them in a full run; else six, which ones goes by how many there are."""
    return POINTS if FULL else random.Random(len(POINTS)).sample(POINTS, 6)


@pytest.mark.parametrize(("step", "when", "number"), some())
def test_killed_between_two_steps(step: str, when: str, number: int, repository: Path, state_dir: Path, tmp_path: Path):
    source = f"embedded:{step}-{when}-{number}"
    given = rows(120, {5: RAISES, 60: REFUSED})
    sent(state_dir, given, source)
    settings = settings_of(
        repository, state_dir, f"sqlite:///{tmp_path}/x.db?table=t", source=source, redeliver_after=1.0, max_attempts=5
    )
    trouble = Trouble(step, when, number, 2, str(tmp_path / "deaths"))
    run(settings, trouble)
    assert (tmp_path / "deaths").stat().st_size >= 1, "it was never killed there"
    assert table(tmp_path / "x.db") == expected(given)
    assert set(dead(state_dir, source)) == {"m5", "m60"}


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_workers_that_share_a_queue_are_killed_again_and_again(
    kind: str, repository: Path, state_dir: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    given = rows(scale(1_000, 100_000), {11: REFUSED})
    source = f"embedded:shared-{kind}"
    sent(state_dir, given, source)
    sink = f"sqlite:///{tmp_path}/x.db?table=t" if kind == "sqlite" else f"{request.getfixturevalue('server')}?table=t"
    settings = settings_of(
        repository, state_dir, sink, source=source, batch_rows=scale(20, 100), redeliver_after=1.5, max_attempts=20
    )
    trouble = Trouble("store", AFTER, 7, scale(4, 60), str(tmp_path / "deaths"))
    run(settings, trouble, workers=2)
    assert (tmp_path / "deaths").stat().st_size >= scale(4, 60)
    assert (table(tmp_path / "x.db") if kind == "sqlite" else postgres_table(sink)) == expected(given)
    assert set(dead(state_dir, source)) == {"m11"}


def postgres_table(sink: str) -> dict[str, float]:
    with psycopg.connect(sink.partition("?")[0]) as connection:
        rows = connection.execute("select message_id, y from t").fetchall()
    assert len(dict(rows)) == len(rows)
    return dict(rows)
