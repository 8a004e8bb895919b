"""A queue whose database goes away for minutes, and whose worker is only paused: nothing lost, nothing doubled."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from octoserve.connectors.queues.nats_server import EmbeddedBroker
from support import postgres
from support.queue_runs import STOPS, Trouble, dead, expected, of, sent, settings_of, table
from support.queues import in_thread
from support.scale import scale
from support.supervised import until


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    broker = EmbeddedBroker(tmp_path / "state")
    broker.join()
    yield tmp_path / "state"
    broker.leave()


@pytest.fixture
def server() -> Iterator[postgres.Postgres]:
    if not postgres.binaries():
        pytest.skip("no PostgreSQL to stop and start: Debian's package postgresql")
    made = postgres.Postgres()
    yield made
    made.close()


def rows(start: int, count: int) -> list[dict[str, Any]]:
    return [{"id": f"m{i}", "x": float(i), "about": "x" * 500} for i in range(start, start + count)]


def counted(supervisor: Any, name: str) -> float:
    return sum(s.total for family in supervisor.families() if family.name == name for s in family.samples)


def memory_of(pid: int) -> int:
    """Bytes that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_database_that_is_away_for_long(repository: Path, state_dir: Path, server: postgres.Postgres):
    away = scale(6, 300)
    sink = f"{server.url}?table=t"
    settings = settings_of(repository, state_dir, sink, until_idle=None, redeliver_after=4.0)
    supervisor = of(settings)
    thread = in_thread(supervisor.run)

    def stored() -> dict[str, float]:
        with contextlib.suppress(psycopg.Error), psycopg.connect(server.url, connect_timeout=5) as connection:
            return dict(connection.execute("select message_id, y from t").fetchall())
        return {}

    sent(state_dir, rows(0, 50))
    until(lambda: len(stored()) == 50, 60)
    (place,) = supervisor._places
    assert place.process is not None
    worker = place.process.pid
    server.kill()
    sent(state_dir, rows(50, 6_000))
    time.sleep(2)
    before = memory_of(worker)
    time.sleep(away)
    assert place.process is not None
    assert place.process.pid == worker, "it waits, and does not die of it"
    assert memory_of(worker) < before + (30 << 20)
    assert counted(supervisor, "octoserve_queue_sink_retries_total") <= away + 4
    server.start()
    given = rows(0, 6_050)
    until(lambda: len(stored()) == len(given), 120)
    assert stored() == expected(given)
    assert dead(state_dir) == {}
    supervisor.stop()
    thread.join(60)
    assert not thread.is_alive()


def test_a_worker_that_was_only_paused_writes_nothing(
    repository: Path, state_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    given = rows(0, 200)
    sent(state_dir, given)
    settings = settings_of(
        repository, state_dir, f"sqlite:///{tmp_path}/x.db?table=t", batch_rows=20, redeliver_after=2.0
    )
    paused = tmp_path / "paused"
    supervisor = of(settings, Trouble("store", STOPS, 1, 1, str(paused)), workers=2)
    with caplog.at_level(logging.WARNING):
        thread = in_thread(supervisor.run)
        until(lambda: paused.exists() and paused.read_text() != "", 60)
        until(lambda: (tmp_path / "x.db").exists() and table(tmp_path / "x.db") == expected(given), 90)
        before = Path(f"/proc/{paused.read_text()}/status").read_text()
        assert "T (stopped)" in before
        os.kill(int(paused.read_text()), signal.SIGCONT)
        thread.join(90)
    assert not thread.is_alive()
    assert "no longer ours" in caplog.text
    assert table(tmp_path / "x.db") == expected(given)
    assert counted(supervisor, "octoserve_queue_messages_total") >= 200
    assert dead(state_dir) == {}
