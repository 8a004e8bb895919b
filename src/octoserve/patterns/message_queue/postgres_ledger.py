"""Attempts in the PostgreSQL that results go to, so that a message that kills its process is known on every machine.

`synchronous_commit = off`: what was noted outlives any death of the process and, but for the last moment, one of the
server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from octoserve.connectors.queues.protocol import Position
from octoserve.control.postgres import Server
from octoserve.core.clock import Clock
from octoserve.core.errors import Unavailable
from octoserve.patterns.message_queue.ledger import (
    Attempts,
    attempts_of,
    convict,
    how_ended,
    in_partition,
    pack,
    unpack,
)

_LOCK = 0x6F63746F
_SCHEMA = """
create table if not exists octoserve_running (
  source text, owner text, positions bytea not null, begun timestamptz not null default now(),
  primary key (source, owner));
create table if not exists octoserve_attempt (
  source text, partition text, "offset" bigint, attempts bytea not null, primary key (source, partition, "offset"));
"""


class PostgresLedger:
    """Of one source. See `ledger.Ledger`."""

    def __init__(
        self, server: Server, source: str, owner: str, ends: Mapping[str, str] | None = None, wall: Clock = time.time
    ) -> None:
        """Raises Unavailable."""
        self._server = server
        self._source = source
        self._owner = owner
        self._ends = ends or {}
        self._wall = wall
        self._begun = False
        self._connection: Any = None
        self._do(self._make)

    def _make(self, connection: Any) -> None:
        with connection.transaction():
            connection.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
            connection.execute(_SCHEMA)

    def _do(self, work: Any) -> Any:
        """Raises Unavailable; the next call connects anew."""
        try:
            if self._connection is None:
                self._connection = self._server.connect(
                    synchronous_commit="off", idle_in_transaction_session_timeout="10s", statement_timeout="60s"
                )
            return work(self._connection)
        except self._server.error as error:
            text = self._server.text_of(error)
            self.close()
            raise Unavailable(f"the ledger of attempts in {self._server.label}: {text}") from None

    def begin(self, positions: Sequence[Position]) -> None:
        """See `Ledger.begin`."""
        self._do(
            lambda c: c.execute(
                "insert into octoserve_running values (%s, %s, %s) on conflict (source, owner) do update set "
                "positions = excluded.positions, begun = now()",
                (self._source, self._owner, pack(positions)),
            )
        )
        self._begun = True

    def end(self) -> None:
        """See `Ledger.end`."""
        if self._begun:
            self._do(
                lambda c: c.execute(
                    "delete from octoserve_running where source = %s and owner = %s", (self._source, self._owner)
                )
            )
            self._begun = False

    def suspects(self, positions: Sequence[Position]) -> Mapping[Position, Attempts]:
        """See `Ledger.suspects`."""
        wanted = set(positions)

        def look(connection: Any) -> Mapping[Position, Attempts]:
            known, running = self._look(connection, wanted)
            if not any(unpack(packed) & wanted for packed in running):
                return known
            with connection.transaction():
                self._convict(connection, wanted.intersection)
                return self._look(connection, wanted)[0]

        found: Mapping[Position, Attempts] = self._do(look)
        return found

    def history(self, partition: str) -> Mapping[Position, Attempts]:
        """See `Ledger.history`."""

        def look(connection: Any) -> Mapping[Position, Attempts]:
            with connection.transaction():
                self._convict(connection, lambda ran: in_partition(ran, partition))
                rows = connection.execute(
                    'select "offset", attempts from octoserve_attempt where source = %s and partition = %s',
                    (self._source, partition),
                ).fetchall()
            return {Position(partition, offset): attempts_of(bytes(packed)) for offset, packed in rows}

        found: Mapping[Position, Attempts] = self._do(look)
        return found

    def _convict(self, connection: Any, caught_of: Callable[[set[Position]], set[Position]]) -> None:
        """Those that another has left running."""
        others = connection.execute(
            "select owner, positions from octoserve_running where source = %s and owner <> %s "
            "order by owner for update",
            (self._source, self._owner),
        ).fetchall()
        for owner, packed in others:
            ran = unpack(bytes(packed))
            caught = caught_of(ran)
            if caught:
                known, _ = self._look(connection, caught)
                self._write(connection, convict(caught, len(ran), known, how_ended(owner, self._ends), self._wall()))
                self._keep(connection, owner, ran - caught)

    def _keep(self, connection: Any, owner: str, left: set[Position]) -> None:
        if left:
            connection.execute(
                "update octoserve_running set positions = %s where source = %s and owner = %s",
                (pack(left), self._source, owner),
            )
        else:
            connection.execute("delete from octoserve_running where source = %s and owner = %s", (self._source, owner))

    def _look(self, connection: Any, wanted: set[Position]) -> tuple[dict[Position, Attempts], list[bytes]]:
        """What is known of these, and what runs elsewhere: one question, so that neither is older than the other."""
        offsets: dict[str, list[int]] = {}
        for partition, offset in wanted:
            offsets.setdefault(partition, []).append(offset)
        rows = connection.execute(
            'select a.partition, a."offset", a.attempts from octoserve_attempt a '
            "join unnest(%s::text[], %s::bigint[], %s::bigint[]) as w(partition, low, high) "
            'on a.partition = w.partition and a."offset" between w.low and w.high where a.source = %s '
            "union all select null, null, positions from octoserve_running where source = %s and owner <> %s",
            (
                list(offsets),
                [min(found) for found in offsets.values()],
                [max(found) for found in offsets.values()],
                self._source,
                self._source,
                self._owner,
            ),
        )
        known: dict[Position, Attempts] = {}
        running: list[bytes] = []
        for partition, offset, packed in rows:
            if partition is None:
                running.append(bytes(packed))
            elif (position := Position(partition, offset)) in wanted:
                known[position] = attempts_of(bytes(packed))
        return known, running

    def _write(self, connection: Any, attempts: Mapping[Position, Attempts]) -> None:
        with connection.cursor() as cursor:
            cursor.executemany(
                "insert into octoserve_attempt values (%s, %s, %s, %s) "
                'on conflict (source, partition, "offset") do update set attempts = excluded.attempts',
                [(self._source, *position, msgspec.msgpack.encode(known)) for position, known in attempts.items()],
            )

    def failed(self, attempts: Mapping[Position, Attempts]) -> None:
        """See `Ledger.failed`."""

        def write(connection: Any) -> None:
            with connection.transaction():
                self._write(connection, attempts)

        self._do(write)

    def forget(self, positions: Iterable[Position]) -> None:
        """See `Ledger.forget`."""
        rows = [(self._source, *position) for position in positions]

        def delete(connection: Any) -> None:
            with connection.cursor() as cursor:
                cursor.executemany(
                    'delete from octoserve_attempt where source = %s and partition = %s and "offset" = %s', rows
                )

        self._do(delete)

    def forget_before(self, partition: str, offset: int) -> None:
        """See `Ledger.forget_before`."""

        def delete(connection: Any) -> None:
            with connection.transaction():
                connection.execute(
                    'delete from octoserve_attempt where source = %s and partition = %s and "offset" < %s',
                    (self._source, partition, offset),
                )
                rows = connection.execute(
                    "select owner, positions from octoserve_running where source = %s order by owner for update",
                    (self._source,),
                ).fetchall()
                for owner, packed in rows:
                    ran = unpack(bytes(packed))
                    left = {p for p in ran if p.partition != partition or p.offset >= offset}
                    if left != ran:
                        self._keep(connection, owner, left)

        self._do(delete)

    def close(self) -> None:
        """See `Ledger.close`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
