"""SQLite and PostgreSQL as answers are kept in them: `sqlite:///path.db?table=t`, `postgresql://user@host/db?table=t`."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from octoserve.connectors.queues.address import Address
from octoserve.connectors.queues.answers import ANSWER, Run, SqlAnswers
from octoserve.connectors.queues.postgres import SESSION, Database, PostgresSink
from octoserve.connectors.queues.sqlite import SqliteSink
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.core.sqlite import use_wal

_BUSY = 10.0
"""Seconds that another writer is waited for."""
_LOCK = 0x6F63746F
"""The one that the sink takes when it makes its tables."""


def sqlite_answers(address: Address) -> SqlAnswers:
    """Raises SettingsError."""
    address.only(("table",))
    table = address.wanted("table", "'sqlite:///async.db?table=answers'")
    path = address.path.removeprefix("/")
    if address.host or not path:
        raise SettingsError(f"{address.setting}: a SQLite address is sqlite:///path.db?table=t, with three slashes")
    return SqlAnswers(_Sqlite(Path(path), table), table)


def postgres_answers(address: Address, database: Database) -> SqlAnswers:
    """Raises SettingsError."""
    table = address.wanted("table", "'postgresql://user@host/db?table=answers'")
    return SqlAnswers(_Postgres(database, table), table)


class _Sqlite:
    mark = "?"
    lock = ""

    def __init__(self, path: Path, table: str) -> None:
        self._path = path
        self._sink = SqliteSink(path, table)
        self._db: sqlite3.Connection | None = None

    def prepare(self) -> None:
        self._sink.open("", [ANSWER])
        self._sink.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Run]:
        try:
            if self._db is None:
                # By one thread at a time: the store has a lock.
                self._db = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
                use_wal(self._db)
            db = self._db
            writes = False

            def run(text: str, values: Sequence[Any]) -> Sequence[Sequence[Any]]:
                nonlocal writes
                if not writes and not text.startswith("select"):
                    db.execute("begin immediate")
                    writes = True
                return db.execute(text, values).fetchall()

            try:
                yield run
                if writes:
                    db.execute("commit")
            except BaseException:
                if db.in_transaction:
                    db.execute("rollback")
                raise
        except sqlite3.Error as error:
            self.close()
            raise Unavailable(f"sqlite:///{self._path}: {error}") from None

    def moment(self, at: float) -> str:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


class _Postgres:
    mark = "%s"
    lock = f"select pg_advisory_xact_lock({_LOCK})"

    def __init__(self, database: Database, table: str) -> None:
        self._database = database
        self._sink = PostgresSink(database, table)
        self._connection: Any = None

    def prepare(self) -> None:
        self._sink.open("", [ANSWER])
        self._sink.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Run]:
        try:
            if self._connection is None:
                self._connection = self._database.connect(**SESSION)
            connection = self._connection

            def run(text: str, values: Sequence[Any]) -> Sequence[Sequence[Any]]:
                cursor = connection.execute(text, values)
                found: Sequence[Sequence[Any]] = cursor.fetchall() if cursor.description else []
                return found

            with connection.transaction():
                yield run
        except self._database.error as error:
            text = self._database.text_of(error)
            self.close()
            raise Unavailable(f"{self._database.label}: {text}") from None

    def moment(self, at: float) -> datetime:
        return datetime.fromtimestamp(at, UTC)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
