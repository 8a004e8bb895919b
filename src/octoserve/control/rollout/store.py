"""What must survive the controller: rollouts, endpoints' stable versions, the audit log, and what people asked for.

One transaction is one decision. `commit` writes, in this order:

1. the fence: the caller's token is still the highest, else `Fenced`; from here to the end nobody else leads
2. the record, whose version is one more than the stored one, else `Conflict`
3. the endpoint's stable and refused versions, where the decision changes them
4. the audit entries, each chained to the endpoint's last
5. the commands that the decision answers are removed

A crash (of the process, the host, the database) before the end of the transaction leaves the state before it: nothing
was decided, the commands are still there, and the next controller decides again. After it all five are on disk
before `commit` returns, and nothing has been done yet: effects follow from the record, so whoever comes next derives
them again. Where a connection breaks while the transaction is being committed, `Unavailable` says that the outcome
is unknown: read the record again. Committing it once more is safe, and a `Conflict` if it had been written.

Blocking; a store belongs to the thread that made it. Any number of processes may share one: whoever `lead`s last
is the only one that can commit, and everybody may read and `ask`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from octoserve.control.rollout import audit
from octoserve.control.rollout.audit import AuditEntry
from octoserve.control.rollout.replica_tables import (
    REPLICA_TABLES,
    Asked,
    Execute,
    ReplicaTables,
    asked_of,
    read_record,
)
from octoserve.control.rollout.retention import Retention
from octoserve.control.rollout.values import Command, Endpoint, Phase, Rollout
from octoserve.core.errors import OctoserveError, Overloaded, SettingsError, Unavailable
from octoserve.core.sqlite import use_wal

FILE = "rollouts.db"

FORMAT = 1
"""Of the tables. A store of a higher one was written by a later release, and is left alone."""

MOST_ASKED = 100
"""Commands of one kind that may wait for one endpoint's controller; so no flood of them keeps an abort out."""

TABLES = """
create table if not exists leader (
  one integer primary key check (one = 1), format integer not null, token bigint not null, holder text not null);
create table if not exists rollout (
  id text primary key, endpoint text not null, version bigint not null, ended integer not null,
  started double precision not null, record text not null);
create unique index if not exists one_live_rollout on rollout (endpoint) where ended = 0;
create index if not exists rollouts_of on rollout (endpoint, started);
create table if not exists endpoint (name text primary key, record text not null);
create table if not exists audit (
  endpoint text not null, seq bigint not null, rollout text not null, digest text not null, line text not null,
  primary key (endpoint, seq));
create index if not exists audit_of on audit (rollout, seq);
"""
"""What SQLite and PostgreSQL both understand; each makes the table `asked` in its own words."""

_ASKED = """
create table if not exists asked (
  seq integer primary key autoincrement, endpoint text not null, command text not null, who text not null,
  reason text not null, fence text not null, time double precision not null);
"""


class Fenced(OctoserveError):
    """Another controller has taken over: whoever gets this must stop deciding."""

    reason = "fenced"


class Conflict(OctoserveError):
    """The record is not the next one of what is stored, or the endpoint has another live rollout."""

    reason = "conflict"


class RolloutStore(Protocol):
    """The durable state. Every method raises Unavailable where the store cannot be reached."""

    def lead(self, holder: str) -> int:
        """Take over: a fencing token higher than any before. Every lower one is worth nothing from here on."""

    def leader(self) -> tuple[int, str]:
        """The highest token and who holds it; (0, "") before the first."""

    def live(self) -> list[Rollout]:
        """Rollouts that have not ended, oldest first."""

    def rollout(self, id: str) -> Rollout | None:
        """One rollout, live or ended; None where there is none of this id."""

    def history(self, endpoint: str, limit: int = 100) -> list[Rollout]:
        """An endpoint's rollouts, newest first."""

    def endpoints(self) -> dict[str, Endpoint]:
        """Endpoints' records, by name."""

    def commit(
        self,
        token: int,
        rollout: Rollout,
        entries: Sequence[AuditEntry],
        endpoint: Endpoint | None = None,
        commands_done: Sequence[int] = (),
    ) -> None:
        """One decision, in one transaction; the module says in which order. Raises Fenced, Conflict."""

    def note(self, token: int, entries: Sequence[AuditEntry], commands_done: Sequence[int] = ()) -> None:
        """Audit entries without a change of state, and commands that were answered by not following them."""

    def record(self, entry: AuditEntry) -> None:
        """An audit entry of what is no decision of a controller, such as a load by hand. From any replica, unfenced."""

    def set_endpoint(self, token: int, endpoint: Endpoint, entries: Sequence[AuditEntry] = ()) -> None:
        """Record an endpoint's stable and refused versions. Raises Fenced."""

    def audit(self, rollout_id: str) -> list[AuditEntry]:
        """A rollout's entries, in order."""

    def lines(self, endpoint: str, after: int = 0, limit: int = 1000, rollout_id: str = "") -> list[bytes]:
        """An endpoint's audit lines as they were written, those after number `after`: what `verify_lines` takes.

        rollout_id: of this rollout alone; "" for all
        """

    def verify(self, endpoint: str) -> int | None:
        """The number of the first line that is not one with the chain, or that is missing; None if all is well."""

    def prune(self, token: int, endpoint: str, before: float) -> int:
        """Forget rollouts that ended before this moment: see `control.rollout.retention`. Raises Fenced."""

    def ask(self, endpoint: str, command: Command, who: str, reason: str = "", fence: str = "") -> int:
        """Leave a command for whoever leads; its number. On disk before this returns. From any replica, unfenced."""

    def asked(self) -> list[Asked]:
        """Commands that no commit has answered yet, oldest first."""

    def close(self) -> None:
        """The last call."""


class Ledger(ReplicaTables, Retention, RolloutStore):
    """The rules above in SQL. What differs from one database to the next is how a transaction is made."""

    shared = False
    """Whether replicas on other hosts may use it too, so that they have to be told from each other and waited for."""

    lock = ""
    """What makes a `select` keep its row until the transaction ends, where the transaction alone does not."""

    _now: Callable[[], float]

    @abstractmethod
    def reading(self) -> AbstractContextManager[Execute]:
        """A transaction that sees one state and changes nothing."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[Execute]:
        """A transaction that is on disk when the block ends, and has changed nothing if it raises."""

    def check_format(self, execute: Execute) -> None:
        """The first row, and that this release may write here. Raises SettingsError."""
        execute("insert into leader values (1, ?, 0, '') on conflict (one) do nothing", FORMAT)
        ((found,),) = execute("select format from leader")
        if found > FORMAT:
            raise SettingsError(
                f"rollouts: the store has format {found}, written by a later release; this one knows {FORMAT}"
            )

    def lead(self, holder: str) -> int:
        with self.writing() as execute:
            ((token,),) = execute(
                "update leader set token = token + 1, holder = ? where one = 1 returning token", holder
            )
        return int(token)

    def leader(self) -> tuple[int, str]:
        with self.reading() as execute:
            ((token, holder),) = execute("select token, holder from leader")
        return int(token), holder

    def live(self) -> list[Rollout]:
        with self.reading() as execute:
            rows = execute("select record from rollout where ended = 0 order by started, id")
        return [read_record(record, Rollout) for (record,) in rows]

    def rollout(self, id: str) -> Rollout | None:
        with self.reading() as execute:
            rows = execute("select record from rollout where id = ?", id)
        return read_record(rows[0][0], Rollout) if rows else None

    def history(self, endpoint: str, limit: int = 100) -> list[Rollout]:
        with self.reading() as execute:
            rows = execute(
                "select record from rollout where endpoint = ? order by started desc, id desc limit ?", endpoint, limit
            )
        return [read_record(record, Rollout) for (record,) in rows]

    def endpoints(self) -> dict[str, Endpoint]:
        with self.reading() as execute:
            rows = execute("select name, record from endpoint order by name")
        return {name: read_record(record, Endpoint) for name, record in rows}

    def commit(
        self,
        token: int,
        rollout: Rollout,
        entries: Sequence[AuditEntry],
        endpoint: Endpoint | None = None,
        commands_done: Sequence[int] = (),
    ) -> None:
        with self.writing() as execute:
            self._fence(execute, token)
            self._put_rollout(execute, rollout)
            if endpoint is not None:
                self._put_endpoint(execute, endpoint)
            self._append(execute, entries)
            _answered(execute, commands_done)

    def note(self, token: int, entries: Sequence[AuditEntry], commands_done: Sequence[int] = ()) -> None:
        with self.writing() as execute:
            self._fence(execute, token)
            self._append(execute, entries)
            _answered(execute, commands_done)

    def record(self, entry: AuditEntry) -> None:
        with self.writing() as execute:
            execute("select token from leader where one = 1" + self.lock)  # one writer of a chain at a time
            self._append(execute, [entry])

    def set_endpoint(self, token: int, endpoint: Endpoint, entries: Sequence[AuditEntry] = ()) -> None:
        with self.writing() as execute:
            self._fence(execute, token)
            self._put_endpoint(execute, endpoint)
            self._append(execute, entries)

    def audit(self, rollout_id: str) -> list[AuditEntry]:
        with self.reading() as execute:
            rows = execute("select line from audit where rollout = ? order by endpoint, seq", rollout_id)
        return [audit.decode(line) for (line,) in rows]

    def lines(self, endpoint: str, after: int = 0, limit: int = 1000, rollout_id: str = "") -> list[bytes]:
        of_one, values = (" and rollout = ?", (rollout_id,)) if rollout_id else ("", ())
        select = f"select line from audit where endpoint = ? and seq > ?{of_one} order by seq limit ?"
        with self.reading() as execute:
            rows = execute(select, endpoint, after, *values, limit)
        return [_bytes(line) for (line,) in rows]

    def verify(self, endpoint: str) -> int | None:
        return audit.verify_chain(self._all_lines(endpoint))

    def _all_lines(self, endpoint: str) -> Iterator[bytes]:
        after = 0
        while True:
            with self.reading() as execute:
                rows = execute(
                    "select seq, line from audit where endpoint = ? and seq > ? order by seq limit 500", endpoint, after
                )
            if not rows:
                return
            yield from (_bytes(line) for _, line in rows)
            after = rows[-1][0]

    def ask(self, endpoint: str, command: Command, who: str, reason: str = "", fence: str = "") -> int:
        values = (endpoint, command.value, who, reason, fence)
        with self.writing() as execute:
            same = "select count(*) from asked where endpoint = ? and command = ?"
            ((waiting,),) = execute(same, endpoint, command.value)
            if waiting >= MOST_ASKED:
                raise Overloaded(f"{endpoint}: {waiting} times {command} waits already; no controller answers", 10)
            ((seq,),) = execute(
                "insert into asked (endpoint, command, who, reason, fence, time) "
                "values (?, ?, ?, ?, ?, ?) returning seq",
                *map(_storable, values), self._now(),
            )  # fmt: skip
        return int(seq)

    def asked(self) -> list[Asked]:
        with self.reading() as execute:
            rows = execute("select seq, endpoint, command, who, reason, fence, time from asked order by seq")
        return [asked_of(row) for row in rows]

    def _fence(self, execute: Execute, token: int) -> None:
        ((highest, holder),) = execute("select token, holder from leader where one = 1" + self.lock)
        if token != highest or token == 0:
            raise Fenced(f"token {token} is not the highest: {holder or 'nobody'} leads with {highest}")

    def _put_rollout(self, execute: Execute, rollout: Rollout) -> None:
        known = execute("select version, ended, endpoint from rollout where id = ?", rollout.id)
        version, ended, endpoint = known[0] if known else (-1, 0, rollout.endpoint)
        if ended or endpoint != rollout.endpoint or rollout.version != version + 1:
            was = f"version {version} of {endpoint!r}{' and has ended' if ended else ''}" if known else "not there"
            raise Conflict(f"rollout {rollout.id}: version {rollout.version} does not follow: what is stored is {was}")
        ends, record = int(rollout.phase is Phase.ENDED), audit.canonical(rollout).decode()
        if known:
            execute("update rollout set version = ?, ended = ?, record = ? where id = ?",
                    rollout.version, ends, record, rollout.id)  # fmt: skip
            return
        live = execute("select id from rollout where endpoint = ? and ended = 0", rollout.endpoint)
        if live and not ends:
            raise Conflict(f"rollout {rollout.id}: {live[0][0]} of endpoint {rollout.endpoint!r} has not ended")
        execute("insert into rollout values (?, ?, ?, ?, ?, ?)",
                rollout.id, rollout.endpoint, rollout.version, ends, rollout.started, record)  # fmt: skip
        execute("delete from proposed where id = ?", rollout.id)

    def _put_endpoint(self, execute: Execute, endpoint: Endpoint) -> None:
        execute(
            "insert into endpoint values (?, ?) on conflict (name) do update set record = excluded.record",
            endpoint.name, audit.canonical(endpoint).decode(),
        )  # fmt: skip

    def _append(self, execute: Execute, entries: Sequence[AuditEntry]) -> None:
        ends: dict[str, tuple[int, str]] = {}
        for entry in entries:
            if entry.endpoint not in ends:
                last = execute(
                    "select seq, digest from audit where endpoint = ? order by seq desc limit 1", entry.endpoint
                )
                ends[entry.endpoint] = last[0] if last else (0, audit.GENESIS)
            entry = audit.follow(*ends[entry.endpoint], entry)
            ends[entry.endpoint] = entry.seq, entry.digest
            execute("insert into audit values (?, ?, ?, ?, ?)",
                    entry.endpoint, entry.seq, entry.rollout, entry.digest, audit.encode(entry).decode())  # fmt: skip


def _answered(execute: Execute, commands: Sequence[int]) -> None:
    for seq in commands:
        execute("delete from asked where seq = ?", seq)


def _bytes(line: str | bytes) -> bytes:
    return line.encode() if isinstance(line, str) else bytes(line)


def _storable(text: str) -> str:
    """PostgreSQL's text has no NUL, and nobody's reason needs one; half a surrogate pair has no bytes."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


class SqliteStore(Ledger):
    """One file in the state directory: WAL, synchronous FULL. For one host; its processes may share it."""

    def __init__(self, state_dir: Path, now: Callable[[], float] = time.time) -> None:
        self._path = state_dir / FILE
        self._now = now
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(self._path, timeout=5.0, isolation_level=None)
            os.chmod(self._path, 0o600)
            use_wal(self._db)
            self._inode = self._path.stat().st_ino
            self._make_tables()
        except (sqlite3.Error, OSError, Unavailable) as error:
            raise SettingsError(
                f"state-dir: cannot keep rollouts in {self._path}: {error}; name a writable folder with --state-dir"
            ) from None

    def _make_tables(self) -> None:
        with self.writing() as execute:
            for statement in (TABLES + _ASKED + REPLICA_TABLES).split(";"):
                execute(statement)
            self.check_format(execute)

    def is_there(self) -> bool:
        """Whether the file still lies where it was opened; if not, nothing more is written to it."""
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    @contextmanager
    def reading(self) -> Iterator[Execute]:
        with self._transaction("begin") as execute:
            yield execute

    @contextmanager
    def writing(self) -> Iterator[Execute]:
        with self._transaction("begin immediate") as execute:
            if not self.is_there():
                raise Unavailable(f"{self._path} has been removed: what is written now would be lost; start again")
            yield execute

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Execute]:
        try:
            self._db.execute(begin)
            try:
                yield lambda sql, *values: self._db.execute(sql, values).fetchall()
                self._db.execute("commit")
            finally:
                if self._db.in_transaction:
                    self._db.execute("rollback")
        except sqlite3.IntegrityError as error:
            raise Conflict(f"{self._path} refused it: {error}") from None
        except sqlite3.Error as error:
            raise Unavailable(f"rollouts cannot be read from or written to {self._path}: {error}") from None

    def close(self) -> None:
        self._db.close()
