"""A queue on a real Kafka under kill -9, pauses, restarts of the broker, rebalances: nothing lost, nothing doubled.

Into PostgreSQL results, positions and epochs are one transaction; into a topic results, retries and offsets are.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from octoserve.patterns.message_queue.settings import QueueSettings
from octoserve.patterns.message_queue.supervisor import Figures, Supervisor
from support import kafka
from support.queue_runs import (
    AFTER,
    BEFORE,
    HANGS,
    KILLS,
    RAISES,
    REFUSED,
    Trouble,
    dead,
    expected,
    rows,
    run,
    sent,
    settings_of,
    spawner,
)
from support.queues import in_thread
from support.scale import FULL, scale
from support.supervised import until

SESSION = 2.0
"""Seconds after which the partitions of who is silent go to others."""
SINKS = ("postgres", "kafka")


class Lines:
    """A topic of messages, and where their results go."""

    def __init__(self, address: str, repository: Path, folder: Path, sink: str, server: str, partitions: int) -> None:
        self.address = address
        self.folder = folder
        self._repository = repository
        self._server = server
        self.source = f"kafka://{address}/{kafka.topic('q')}?group=g&create={partitions}"
        self.results = kafka.topic("results") if sink == "kafka" else f"t_{uuid4().hex[:12]}"
        where = f"kafka://{address}/{self.results}?create=2" if sink == "kafka" else f"{server}?table={self.results}"
        self.sink = where
        self._is_kafka = sink == "kafka"

    def send(self, rows: list[dict[str, Any]]) -> None:
        sent(self.folder, rows, self.source)

    def settings(self, **others: Any) -> QueueSettings:
        chosen = {"source": self.source, "redeliver_after": SESSION, "max_attempts": 5, "until_idle": 1.0, **others}
        return settings_of(self._repository, self.folder, self.sink, **chosen)

    def stored(self) -> dict[str, float]:
        """message_id -> y; a topic is read as those read it who want committed messages, and holds none twice."""
        if not self._is_kafka:
            with psycopg.connect(self._server) as connection, contextlib.suppress(psycopg.errors.UndefinedTable):
                return dict(connection.execute(f"select message_id, y from {self.results}".encode()).fetchall())
            return {}
        found = [json.loads(each.value()) for each in kafka.read(self.address, self.results)]
        ids = [row["message_id"] for row in found]
        assert len(ids) == len(set(ids)), "a result was written twice"
        return {row["message_id"]: row["y"] for row in found}

    def dead(self) -> dict[str, Any]:
        return dead(self.folder, self.source)


@pytest.fixture(params=SINKS)
def lines(request: pytest.FixtureRequest, repository: Path, tmp_path: Path) -> Lines:
    server = request.getfixturevalue("server") if request.param == "postgres" else ""
    return Lines(kafka.shared(), repository, tmp_path, request.param, server, 3)


def test_poison_reaches_the_dead_letters_and_its_mates_succeed(lines: Lines):
    given = rows(100, {7: RAISES, 23: KILLS, 31: HANGS, 32: REFUSED})
    lines.send(given)
    figures, _ = run(lines.settings(max_attempts=3))
    assert lines.stored() == expected(given)
    letters = lines.dead()
    attempts = {id: letter.attempts for id, letter in letters.items()}
    assert attempts.pop("m32") in (1, 2), "refused at once; a second time if one that kills was beside it"
    assert attempts == {"m7": 3, "m23": 3, "m31": 3}
    assert len(letters["m7"].history) == 3, "what was tried under other positions is told too"
    assert letters["m7"].history[-1].error.endswith("no such thing")
    assert "SIGKILL" in letters["m23"].history[-1].error
    assert "ran longer than 1 s" in letters["m31"].history[-1].error
    assert figures.dead == 4


STEPS = ("poll", "bury", "retry", "settle", "history", "begin", "store", "claim")
POINTS = [(sink, step, when) for sink in SINKS for step in STEPS for when in (BEFORE, AFTER)]


def some() -> list[tuple[str, str, str]]:
    """All of them in a full run; else two of each sink, and those around what is stored."""
    if FULL:
        return POINTS
    picked = [point for sink in SINKS for point in random.Random(7).sample([p for p in POINTS if p[0] == sink], 2)]
    return sorted({*picked, ("kafka", "store", AFTER), ("postgres", "store", AFTER)})


@pytest.mark.parametrize(("lines", "step", "when"), some(), indirect=["lines"])
def test_killed_between_two_steps(step: str, when: str, lines: Lines):
    given = rows(120, {5: RAISES, 60: REFUSED})
    lines.send(given)
    trouble = Trouble(step, when, 2 if step in ("poll", "begin", "store", "settle") else 1, 2, str(lines.folder / "d"))
    run(lines.settings(), trouble)
    assert (lines.folder / "d").stat().st_size >= 1, "it was never killed there"
    assert lines.stored() == expected(given)
    assert set(lines.dead()) == {"m5", "m60"}


class Running:
    """A run in a thread, as its supervisor goes on; `last` is what it told last."""

    def __init__(self, settings: QueueSettings, workers: int = 1) -> None:
        self.last = Figures()
        self.trouble: list[BaseException] = []
        self.supervisor = Supervisor(settings, workers, spawner(), log_level="warning", on_figures=self._told)
        self._thread = in_thread(self._run)

    def _told(self, figures: Figures) -> None:
        self.last = figures

    def _run(self) -> None:
        try:
            self.supervisor.run()
        except BaseException as error:
            self.trouble.append(error)

    @property
    def workers(self) -> list[int]:
        """Process ids."""
        return [place.process.pid for place in self.supervisor._places if place.process is not None]

    def ended(self, seconds: float) -> None:
        """By itself, and well."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"it does not end: {self.last}"
        assert self.trouble == []

    def stop(self) -> None:
        self.supervisor.stop()
        self.ended(60)


@pytest.mark.parametrize("lines", ["postgres", "kafka"], indirect=True)
def test_a_zombie_writes_nothing(lines: Lines):
    lines.send(rows(20))
    zombie = Running(lines.settings(until_idle=None, batch_rows=1))
    until(lambda: len(lines.stored()) >= 5, 60, "some results")
    (pid,) = zombie.workers
    os.kill(pid, signal.SIGSTOP)
    try:
        lines.send([{"id": f"late{i}", "x": float(i)} for i in range(20)])
        run(lines.settings())  # waits out the other's session, and does the rest
        after = lines.stored()
        assert len(after) == 40
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: zombie.supervisor.restarts >= 1 or zombie.last.in_hand == 0, 60, "the zombie to wake")
    time.sleep(2 * SESSION)
    assert lines.stored() == after
    # It is fenced, or finds out by itself, and takes part again.
    lines.send([{"id": "last", "x": 1.0}])
    until(lambda: "last" in lines.stored(), 60, "the zombie to work on as one of the group")
    zombie.stop()
    assert len(lines.stored()) == 41


@pytest.mark.parametrize("sink", SINKS)
def test_the_broker_restarts(sink: str, repository: Path, tmp_path: Path, request: pytest.FixtureRequest):
    server = request.getfixturevalue("server") if sink == "postgres" else ""
    given = rows(scale(2_000, 50_000), {11: RAISES, 12: REFUSED})
    with kafka.own() as broker:
        lines = Lines(broker.address, repository, tmp_path, sink, server, 3)
        lines.send(given)
        running = Running(lines.settings(batch_rows=20, until_idle=2.0))
        for _ in range(scale(1, 4)):
            until(lambda: running.last.stored >= 100, 60, "some results")
            broker.kill()
            time.sleep(SESSION + 4)  # longer than it takes to lose the partitions, and to seem idle
            broker.start()
        running.ended(180)
        assert lines.stored() == expected(given)
        assert set(lines.dead()) == {"m11", "m12"}


@pytest.mark.parametrize(("lines", "protocol"), [("postgres", "classic"), ("kafka", "consumer")], indirect=["lines"])
def test_a_storm_of_rebalances(protocol: str, lines: Lines):
    lines.source += f"&protocol={protocol}"
    count, size = scale(1_500, 100_000), scale(10, 200)
    given = rows(count)
    over = threading.Event()

    def feed() -> None:
        each = 10 * size
        for start in range(0, count, each):
            lines.send(given[start : start + each])
            over.wait(0.1)

    feeding = in_thread(feed)
    steady = Running(lines.settings(until_idle=None, batch_rows=size))
    coming: list[Running] = []
    dice = random.Random(5)
    for turn in range(scale(4, 30)):
        coming.append(Running(lines.settings(until_idle=None, batch_rows=size)))
        time.sleep(dice.uniform(0.3, 2.0))
        if turn % 3 == 1:
            for pid in coming[-1].workers:  # one goes without a word
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if len(coming) > 2:
            coming.pop(0).stop()
    feeding.join(300)
    assert not feeding.is_alive(), "all is sent"
    for each in coming:
        each.stop()
    until(lambda: len(lines.stored()) == count, scale(120, 600), "all results")
    steady.stop()
    assert lines.stored() == expected(given)
