"""Real systems for the queues, on the load generator's core: Kafka and PostgreSQL as the tests start them, Redis."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import environments
import processes
from servers import Cores, ServerFailed

_PATIENCE = 30.0


@dataclass(frozen=True)
class Systems:
    """kafka: host:port; postgres: a URL; redis: a URL, or None where it is not installed."""

    kafka: str
    postgres: str
    redis: str | None


def missing() -> str:
    """Why there is no Kafka or PostgreSQL here; empty if there are."""
    try:
        kafka, postgres = _support()
    except ImportError as error:
        return f"the tests' own packages ({error}): run it by `make bench ARGS=queue`"
    reason: str = kafka.missing() or postgres.missing()
    return reason


def _support() -> tuple[Any, Any]:
    folder = str(environments.CHECKOUT / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    from support import kafka, postgres

    return kafka, postgres


@contextlib.contextmanager
def running(cores: Cores) -> Iterator[Systems]:
    """All three, ended with this context."""
    kafka, postgres = _support()
    with contextlib.ExitStack() as stack:
        with on(cores):  # what is started here stays there
            broker = stack.enter_context(contextlib.closing(kafka.Kafka()))
            database = stack.enter_context(contextlib.closing(postgres.Postgres()))
            redis = stack.enter_context(_redis()) if shutil.which("redis-server") else None
        yield Systems(broker.address, database.url, redis)


@contextlib.contextmanager
def on(cores: Cores) -> Iterator[None]:
    """This process, and so what it starts, runs on these cores."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _redis() -> Iterator[str]:
    """In memory alone, which is how Celery's broker is mostly run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="octoserve-bench-") as folder:
        process = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
            preexec_fn=processes.pinned(None),
        )
        try:
            _until_it_listens(port, process)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait(_PATIENCE)


def _until_it_listens(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise ServerFailed("redis-server does not listen")


def database_of(url: str) -> Any:
    """A connection to it, in autocommit mode."""
    import psycopg

    return psycopg.connect(url, autocommit=True)


def table_of(url: str, table: str) -> None:
    """One for results, as octoserve would make it."""
    with contextlib.closing(database_of(url)) as connection:
        connection.execute(f'drop table if exists "{table}"')
        connection.execute(
            f'create table "{table}" (message_id text primary key, label bigint, probabilities jsonb, '
            "model text not null, version bigint not null, scored_at timestamptz not null)"
        )
