"""Results in a SQLite table: `sqlite:///path.db?table=t`. Results, positions and epochs in one transaction.

`synchronous = FULL`: a commit is on disk before it returns. The file is on one machine, whose clock claims go by.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from octoserve.connectors.queues import columns
from octoserve.connectors.queues.address import Address
from octoserve.connectors.queues.protocol import Claim, Fenced, Move, Results, SinkTraits, Stored, Unwritable
from octoserve.core.clock import Clock
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.core.signature import TensorSpec
from octoserve.core.sqlite import use_wal

_BUSY = 10.0
"""Seconds that another writer is waited for."""
_FORGOTTEN = 86_400.0
"""Seconds after which a claim that ran out is removed."""


def sqlite_sink(address: Address) -> SqliteSink:
    """Of `sqlite:///path.db?table=t`, `sqlite:////absolute/path.db?table=t`. Raises SettingsError."""
    address.only(("table", "prefix"))
    table = address.wanted("table", "'sqlite:///results.db?table=results'")
    path = address.path.removeprefix("/")
    if address.host or not path:
        raise SettingsError("sink: a SQLite address is sqlite:///path.db?table=t, with three slashes")
    return SqliteSink(Path(path), table, address.parameters.get("prefix", ""))


class SqliteSink:
    """A table of results."""

    traits = SinkTraits(transactional=True, idempotent=True)

    def __init__(self, path: Path, table: str, prefix: str = "", wall: Clock = time.time) -> None:
        self._path = path
        self._table = table
        self._prefix = prefix
        self._wall = wall
        self._source = ""
        self._hold: float | None = None
        self._insert = ""
        self._outputs: tuple[TensorSpec, ...] = ()
        self._db: sqlite3.Connection | None = None

    @property
    def label(self) -> str:
        """See `QueueSink.label`."""
        return f"sqlite:///{self._path}?table={self._table}"

    def open(self, source: str, outputs: Sequence[TensorSpec]) -> None:
        """See `QueueSink.open`."""
        self._source, self._outputs = source, tuple(outputs)
        names = columns.names(outputs, self._prefix)
        made = [f"{columns.quoted(name)} {_type(spec)}" for name, spec in zip(names, outputs, strict=True)]
        table = columns.quoted(self._table)
        written = ", ".join(map(columns.quoted, ("message_id", *names, "model", "version", "scored_at")))
        marks = ", ".join("?" * (len(names) + 4))
        self._insert = f"insert into {table} ({written}) values ({marks}) on conflict (message_id) do nothing"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            db = self._connected()
            db.execute(
                f"create table if not exists {table} (message_id text not null primary key, "
                f"{''.join(column + ', ' for column in made)}model text not null, version integer not null, "
                "scored_at text not null)"
            )
            db.execute(
                f"create table if not exists {columns.LANES} (source text not null, lane text not null, "
                'epoch integer not null, "offset" integer, expires real, primary key (source, lane)) without rowid'
            )
            db.execute(f"explain {self._insert}", [None] * (len(names) + 4))
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise SettingsError(
                f"sink: cannot write to {self.label}: {error}; a table that is there already needs a unique column "
                f"message_id, and the columns {', '.join([*names, 'model', 'version', 'scored_at'])}"
            ) from None

    def _connected(self) -> sqlite3.Connection:
        if self._db is None:
            db = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None)
            try:
                use_wal(db)
            except sqlite3.Error:
                db.close()
                raise
            self._db = db
        return self._db

    def claim(self, lanes: Sequence[str], seconds: float | None) -> dict[str, Claim]:
        """See `QueueSink.claim`."""
        self._hold = seconds
        now = self._wall()
        expires = None if seconds is None else now + seconds
        found = {}
        try:
            db = self._connected()
            db.execute("begin immediate")
            try:
                db.execute(f"delete from {columns.LANES} where expires < ?", (now - _FORGOTTEN,))
                for lane in lanes:
                    row = db.execute(
                        f"insert into {columns.LANES} values (?, ?, 1, null, ?) "
                        "on conflict (source, lane) do update set "
                        'epoch = epoch + 1, expires = excluded.expires returning epoch, "offset"',
                        (self._source, lane, expires),
                    ).fetchone()
                    found[lane] = Claim(*row)
                db.execute("commit")
            except BaseException:
                db.execute("rollback")
                raise
        except sqlite3.Error as error:
            raise self._away(error) from None
        return found

    def store(self, results: Results, moves: Sequence[Move]) -> Stored:
        """See `QueueSink.store`."""
        rows = self._rows(results)
        try:
            db = self._connected()
            db.execute("begin immediate")
            try:
                self._move(db, moves)
                before = db.total_changes
                db.executemany(self._insert, rows)
                written = db.total_changes - before
                db.execute("commit")
            except BaseException:
                if db.in_transaction:
                    db.execute("rollback")
                raise
        except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, OverflowError) as error:
            raise Unwritable(f"{self.label}: {error}") from None
        except sqlite3.Error as error:
            raise self._away(error) from None
        return Stored(written, len(rows) - written)

    def _rows(self, results: Results) -> list[tuple[object, ...]]:
        cells = [columns.values(a, spec) for a, spec in zip(results.columns, results.outputs, strict=True)]
        at = datetime.fromtimestamp(results.scored_at, UTC).isoformat(timespec="milliseconds")
        versions = results.versions.tolist()
        return [
            (id, *row, results.model, version, at)
            for id, version, *row in zip(results.ids, versions, *cells, strict=True)
        ]

    def _move(self, db: sqlite3.Connection, moves: Sequence[Move]) -> None:
        now = self._wall()
        expires = None if self._hold is None else now + self._hold
        for move in moves:
            changed = db.execute(
                f'update {columns.LANES} set "offset" = coalesce(?, "offset"), expires = ? '
                "where source = ? and lane = ? and epoch = ? and (expires is null or expires > ?)",
                (move.offset, expires, self._source, move.lane, move.epoch, now),
            ).rowcount
            if not changed:
                raise Fenced(f"{self.label}: {move.lane} is no longer ours (epoch {move.epoch}); nothing was written")

    def _away(self, error: sqlite3.Error) -> Unavailable:
        self.close()
        return Unavailable(f"{self.label}: {error}")

    def close(self) -> None:
        """See `QueueSink.close`."""
        if self._db is not None:
            self._db.close()
            self._db = None


def _type(spec: TensorSpec) -> str:
    if not columns.is_scalar(spec):
        return "text"
    kinds = {"FP16": "real", "FP32": "real", "FP64": "real", "BF16": "real", "BYTES": "text"}
    return kinds.get(spec.datatype, "integer")
