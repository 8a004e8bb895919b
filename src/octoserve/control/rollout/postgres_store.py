"""`RolloutStore` over PostgreSQL, where several replicas share an endpoint.

Whoever writes holds the row of the table `leader` until its transaction ends: a take-over and a commit come one after
the other, never across each other. A writer that hangs while it holds the row is cut off by the server
after `_PATIENCE`, so a controller on a lost host cannot keep its successor out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from octoserve.control.postgres import Server
from octoserve.control.rollout.replica_tables import REPLICA_TABLES, Execute
from octoserve.control.rollout.store import TABLES, Conflict, Ledger
from octoserve.core.errors import SettingsError, Unavailable

if TYPE_CHECKING:
    from octoserve.control.postgres import Connection

_PATIENCE = "10s"

_SESSION = {
    "lock_timeout": _PATIENCE,
    "statement_timeout": _PATIENCE,
    "idle_in_transaction_session_timeout": _PATIENCE,
    "default_transaction_isolation": "read committed",
    "client_encoding": "UTF8",
}

_ASKED = """
create table if not exists asked (
  seq bigint generated always as identity primary key, endpoint text not null, command text not null,
  who text not null, reason text not null, fence text not null, time double precision not null);
"""

_LOCK = 0x6F63746F
"""Advisory lock while tables are made: `if not exists` alone fails when two replicas start at once."""


class PostgresStore(Ledger):
    """Tables in a schema of its own, made where they are missing.

    Does not connect before the first call, and connects again by itself: a database that is down makes a call raise
    Unavailable, and the next call tries again. Replicas that are to act as one name the same schema.
    """

    lock = " for update"
    shared = True

    def __init__(self, url: str, schema: str = "octoserve", now: Callable[[], float] = time.time) -> None:
        """Raises SettingsError for an address that cannot be one, and where psycopg is missing."""
        self._server = Server(url, "rollout_store")
        self._schema = f'"{schema}"'
        self._now = now
        self._connection: Connection[Any] | None = None
        if not re.fullmatch("[a-z_][a-z0-9_]{0,62}", schema):
            raise SettingsError(f"rollouts: a schema's name is small letters, digits and '_', not {schema!r}")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def reading(self) -> Iterator[Execute]:
        with self._transaction("begin isolation level repeatable read, read only") as execute:
            yield execute

    @contextmanager
    def writing(self) -> Iterator[Execute]:
        with self._transaction("begin") as execute:
            yield execute

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Execute]:
        connection = self._begun(begin)
        step = "nothing was changed"
        try:
            try:
                yield _executing(connection)
                step = "whether it was committed is unknown, read it again"
                connection.execute("commit")
            except BaseException:
                if not connection.closed:
                    connection.execute("rollback")
                raise
        except self._server.conflict as error:
            raise Conflict(f"{self._server.label} refused it: {self._server.text_of(error)}") from None
        except self._server.error as error:
            self.close()
            raise Unavailable(f"{self._server.label}: {self._server.text_of(error)}; {step}") from None

    def _begun(self, begin: str) -> Connection[Any]:
        """A connection with a transaction open. An old one may have died unnoticed: then once more, on a new one."""
        if self._connection is not None:
            try:
                self._connection.execute(begin.encode())
                return self._connection
            except self._server.error:
                self.close()
        connection = self._server.connect(**_SESSION)
        try:
            self._prepare(connection)
            connection.execute(begin.encode())
        except self._server.error as error:
            connection.close()
            raise Unavailable(f"{self._server.label}: {self._server.text_of(error)}; nothing was changed") from None
        except SettingsError:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _prepare(self, connection: Connection[Any]) -> None:
        """The session's schema and durability; and the tables, where they are missing."""
        execute = _executing(connection)
        execute("select set_config('search_path', ?, false)", self._schema)
        execute(
            "select set_config('synchronous_commit', 'on', false) where current_setting('synchronous_commit') = 'off'"
        )
        ((encoding,),) = execute("show server_encoding")
        if encoding != "UTF8":
            raise SettingsError(f"rollouts: {self._server.label} is encoded in {encoding}; UTF8 is needed")
        with connection.transaction():
            execute("select pg_advisory_xact_lock(?)", _LOCK)
            if execute("select to_regclass(?)", f"{self._schema}.replica") == [(None,)]:
                execute(f"create schema if not exists {self._schema}")
                for statement in (TABLES + _ASKED + REPLICA_TABLES).split(";"):
                    if statement.strip():
                        execute(statement)
            self.check_format(execute)


def _executing(connection: Connection[Any]) -> Execute:
    def execute(sql: str, *values: object) -> list[Any]:
        cursor = connection.execute(sql.replace("?", "%s").encode(), values)
        return cursor.fetchall() if cursor.description else []

    return execute
