"""A sink that is a table of PostgreSQL: there, whole, by one transaction; until then in a schema of octoserve's own.

See docs/decisions/0012-batch-on-object-stores.md. A split's rows and its journal's line are one transaction, which asks
for the fencing token with a lock on it: what is journaled is there, and a run that was taken over commits nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from octoserve.connectors.arrow import Schema
from octoserve.connectors.postgres import SESSION, Address, Database, Databases, address, quoted
from octoserve.connectors.postgres_table import columns_of, csv_of, tables_of
from octoserve.core.errors import NotFound, SettingsError, Unavailable
from octoserve.patterns.batch import journal, manifest
from octoserve.patterns.batch.job import Busy, Difference, Fenced, Job, Split
from octoserve.patterns.batch.journal import Began, DamagedJournal, Ended, Finished, Part, State
from octoserve.patterns.batch.lease import Holder, me
from octoserve.patterns.batch.manifest import Manifest
from octoserve.patterns.batch.outputs import Layout
from octoserve.patterns.batch.scoring import Scored
from octoserve.patterns.batch.workplace import DamagedJob

OURS = "octoserve_batch"
"""The schema of what is not finished, and of what is known of what is."""
_SETUP = f"""
select pg_advisory_xact_lock({0x6F63746F62});
create schema if not exists {OURS};
create table if not exists {OURS}.sinks (
  sink text primary key, token bigint not null, holder text not null, job text, manifest text, fingerprint text);
create table if not exists {OURS}.lines (
  sink text not null, name text not null, line text not null, primary key (sink, name));
"""
_FINGERPRINT = "select count(*) || '-' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) from {} t"
_ASKED = ("42", "22", "23", "28", "3F", "3D", "25")
"""Classes of SQLSTATE that a person has to mend: names, rights, values that the database does not take."""


class PostgresSink:
    """See `sinks.Sink`."""

    def __init__(self, url: str, databases: Databases) -> None:
        said: Address = address(url)
        table = said.parameters.get("table", "")
        if not table or table.count(".") > 1 or not all(table.split(".")):
            raise SettingsError(
                f"sink: postgresql://user@host/db?table=name, or schema.name, wanted, {said.shown!r} came"
            )
        self.name = said.url({"table": table})
        self.database: Database = databases(said.base)
        schema, _, self.table = table.rpartition(".")
        with self.connected() as connection:
            self.schema = schema or str(_value(connection, "select current_schema()") or "public")
        self.key = f"{self.schema}.{self.table}"
        digest = hashlib.sha256(self.key.encode()).digest()
        self.lock = int.from_bytes(digest[:8], "big", signed=True)
        self.staging = f"{OURS}.s_{digest.hex()[:16]}"
        self.bad_staging = f"{OURS}.b_{digest.hex()[:16]}"

    @property
    def target(self) -> str:
        """The table, as SQL has it."""
        return quoted(self.key)

    @property
    def bad_target(self) -> str:
        """And that of the bad rows."""
        return quoted(f"{self.key}_bad")

    @contextlib.contextmanager
    def connected(self) -> Iterator[Any]:
        """A connection, and errors in our words."""
        connection = self.database.connect(**SESSION)
        try:
            with self.said():
                yield connection
        finally:
            connection.close()

    @contextlib.contextmanager
    def said(self) -> Iterator[None]:
        """Raises SettingsError, Unavailable."""
        try:
            yield
        except self.database.error as error:
            text = f"sink: {self.database.label}: {self.database.text_of(error)}"
            if str(getattr(error, "sqlstate", None) or "")[:2] in _ASKED:
                raise SettingsError(text) from None
            raise Unavailable(f"{text}; what is finished stays, resume it") from None

    def bad(self, run: str) -> str:
        """See `Sink.bad`."""
        return f"table {self.key}_bad"

    def committed(self, run: str = "") -> Manifest | None:
        """See `Sink.committed`. A table that was dropped is not."""
        said = self._said_of("manifest")
        if said is None:
            return None
        with self.connected() as connection:
            if _value(connection, "select to_regclass(%s)", self.target) is None:
                return None
        return manifest.decode(said.encode(), self.name)

    def has_job(self) -> bool:
        """See `Sink.has_job`."""
        return self._said_of("job") is not None

    def job(self) -> Job:
        """See `Sink.job`."""
        said = self._said_of("job")
        if said is None:
            raise NotFound(f"{self.name} is the sink of no unfinished batch job")
        try:
            return msgspec.json.decode(said, type=Job)
        except msgspec.DecodeError as error:
            raise DamagedJob(f"{OURS}.sinks: {self.key} is not a job of octoserve: {error}") from None

    def state(self) -> State:
        """See `Sink.state`."""
        with self.connected() as connection:
            if not _is_set_up(connection):
                return State({}, ())
            rows = connection.execute(f"select line from {OURS}.lines where sink = %s", (self.key,)).fetchall()
        lines = [_line(row[0]) for row in rows]
        runs = sorted((line for line in lines if isinstance(line, Began)), key=lambda line: line.token)
        last = runs[-1].token if runs else 0
        ended = next((line for line in lines if isinstance(line, Ended) and line.token == last), None)
        return State({line.split: line for line in lines if isinstance(line, Finished)}, tuple(runs), ended)

    def holder(self) -> Holder | None:
        """See `Sink.holder`."""
        said = self._said_of("holder")
        return None if said is None else msgspec.json.decode(said, type=Holder)

    def is_held(self) -> bool:
        """See `Sink.is_held`."""
        high, low = (self.lock >> 32) & 0xFFFFFFFF, self.lock & 0xFFFFFFFF
        with self.connected() as connection:
            sql = (
                "select 1 from pg_locks where locktype = 'advisory' and granted and objsubid = 1 and classid = %s::oid "
                "and objid = %s::oid and database = (select oid from pg_database where datname = current_database())"
            )
            return _value(connection, sql, str(high), str(low)) is not None

    def has_left_overs(self) -> bool:
        """Nothing is: the commit removes what it does not need."""
        return False

    def enter(self, now: float) -> PostgresWork:
        """See `Sink.enter`."""
        return PostgresWork(self, now)

    def tables(self, whole: Manifest, bad: bool, columns: Sequence[str] | None) -> Iterator[Any]:
        """See `Sink.tables`; in no order, as tables have none."""
        with self.connected() as connection:
            yield from tables_of(connection, self.bad_target if bad else self.target, columns)

    def differences(self, whole: Manifest, seen: Callable[[Part], None]) -> Iterator[Difference]:
        """See `Sink.differences`: rows, and a fingerprint of all of them."""
        wanted = self._said_of("fingerprint") or ""
        with self.connected() as connection:
            came = _fingerprints(connection, self, whole.bad_rows > 0)
        for part in (*whole.parts, *whole.bad):
            seen(part)
        for name, before, after in zip((self.target, self.bad_target), wanted.split(), came.split(), strict=False):
            if before != after:
                yield Difference(f"table {name}", f"rows {before}", after, "restore it, or score the table again")

    def _said_of(self, column: str) -> str | None:
        with self.connected() as connection:
            if not _is_set_up(connection):
                return None
            return _value(connection, f"select {column} from {OURS}.sinks where sink = %s", self.key)  # type: ignore[no-any-return]


def _value(connection: Any, sql: str, *values: Any) -> Any:
    row = connection.execute(sql, values).fetchone()
    return None if row is None else row[0]


def _is_set_up(connection: Any) -> bool:
    return _value(connection, "select to_regclass(%s)", f"{OURS}.lines") is not None


def _line(text: str) -> journal.Line:
    lines, size = journal.parse(text.encode())
    if len(lines) != 1 or size != len(text.encode()):
        raise DamagedJournal(f"{OURS}.lines holds what is no line of octoserve's journal")
    return lines[0]


def _fingerprints(connection: Any, sink: PostgresSink, bad: bool, staged: bool = False) -> str:
    """Of the table, and of that of bad rows."""
    good, other = (sink.staging, sink.bad_staging) if staged else (sink.target, sink.bad_target)
    names = [good, other] if bad else [good]
    found = []
    for name in names:
        there = _value(connection, "select to_regclass(%s)", name) is not None
        found.append(str(_value(connection, _FINGERPRINT.format(name))) if there else "none")
    return " ".join(found)


class PostgresWork:
    """See `sinks.Work`. The lock is a session's: it is gone when the process, its machine or its network is."""

    def __init__(self, sink: PostgresSink, now: float) -> None:
        """Raises Busy, SettingsError."""
        self.sink = sink
        self._lock = threading.Lock()
        self._made = False
        self._session = sink.database.connect(**SESSION)
        try:
            with sink.said():
                self._enter(now)
        except BaseException:
            self._session.close()
            raise

    def _enter(self, now: float) -> None:
        sink, session = self.sink, self._session
        with session.transaction():
            if not _is_set_up(session):
                session.execute(_SETUP)
        if not _value(session, "select pg_try_advisory_lock(%s)", sink.lock):
            raise Busy(f"another run works on this sink: {sink.holder() or 'it has just begun'}")
        last = session.execute(
            f"select token, job is not null, manifest is not null from {OURS}.sinks where sink = %s", (sink.key,)
        ).fetchone()
        there = _value(session, "select to_regclass(%s)", sink.target) is not None
        bad = _value(session, "select to_regclass(%s)", sink.bad_target) is not None
        begun, done = (last[1], last[2] and there) if last else (False, False)
        if not begun and not done and (there or bad):
            raise SettingsError(
                f"sink: a new table wanted, {sink.key if there else sink.key + '_bad'} exists; name another"
            )
        self._me = me((last[0] if last else 0) + 1, now)
        forget = "" if done else ", manifest = null"
        session.execute(
            f"insert into {OURS}.sinks (sink, token, holder) values (%s, %s, %s) "
            f"on conflict (sink) do update set token = excluded.token, holder = excluded.holder{forget}",
            (sink.key, self._me.token, msgspec.json.encode(self._me).decode()),
        )

    @property
    def token(self) -> int:
        """See `Work.token`."""
        return self._me.token

    def write_job(self, job: Job) -> None:
        """See `Work.write_job`. What a table that was dropped has left goes."""
        with self._lock, self.sink.said(), self._session.transaction():
            self._session.execute(f"drop table if exists {self.sink.staging}, {self.sink.bad_staging}")
            self._session.execute(f"delete from {OURS}.lines where sink = %s", (self.sink.key,))
            self._session.execute(
                f"update {OURS}.sinks set job = %s where sink = %s", (msgspec.json.encode(job).decode(), self.sink.key)
            )

    def begin(self, line: Began) -> tuple[State, dict[int, Finished]]:
        """See `Work.begin`. What is journaled is there: it was one transaction."""
        past = self.sink.state()
        with self._lock, self.sink.said():
            write_line(self._session, self.sink, f"run {line.token}", line)
        return past, dict(past.finished)

    def end(self, line: Ended) -> None:
        """See `Work.end`."""
        with self._lock, self.sink.said():
            write_line(self._session, self.sink, f"end {line.token}", line)

    def open(self, split: Split, shape: Layout) -> SplitRows:
        """See `Work.open`."""
        with self._lock:
            if not self._made:
                self._make(self.sink.staging, shape.schema)
                self._make(self.sink.bad_staging, shape.bad_schema)
                self._made = True
        return SplitRows(self, split)

    def _make(self, name: str, schema: Schema) -> None:
        with self.sink.said():
            self._session.execute(f"create table if not exists {name} ({columns_of(schema)})")

    def check(self) -> None:
        """See `Work.check`."""
        with self._lock, self.sink.said():
            self.fence(self._session)

    def fence(self, connection: Any) -> None:
        """In a transaction: nobody takes the job over before its end. Raises Fenced."""
        row = connection.execute(
            f"select token, holder from {OURS}.sinks where sink = %s for share", (self.sink.key,)
        ).fetchone()
        if row is None or row[0] != self.token:
            who = f"by {msgspec.json.decode(row[1], type=Holder)}" if row is not None else "with its row"
            raise Fenced(f"this run has lost its lease: it was taken over {who}; nothing more is written")

    def commit(self, whole: Manifest) -> None:
        """One transaction. Crash before its end: readers see no table; after it: all of it."""
        sink = self.sink
        with self._lock, sink.said(), self._session.transaction():
            session = self._session
            self.fence(session)
            prints = _fingerprints(session, sink, whole.bad_rows > 0, staged=True)
            self._move(sink.staging, sink.table)
            if whole.bad_rows:
                self._move(sink.bad_staging, f"{sink.table}_bad")
            else:
                session.execute(f"drop table {sink.bad_staging}")
            session.execute(f"delete from {OURS}.lines where sink = %s", (sink.key,))
            session.execute(
                f"update {OURS}.sinks set job = null, manifest = %s, fingerprint = %s where sink = %s",
                (manifest.encode(whole).decode(), prints, sink.key),
            )

    def _move(self, staging: str, name: str) -> None:
        """Renamed first: the staging table's name cannot be there twice."""
        self._session.execute(f"alter table {staging} set schema {quoted(self.sink.schema)}")
        moved = f"{quoted(self.sink.schema)}.{staging.rpartition('.')[2]}"
        self._session.execute(f"alter table {moved} rename to {quoted_name(name)}")

    def clear(self) -> None:
        """Nothing is left."""

    def release(self) -> None:
        """See `Work.release`."""
        self._session.close()


def quoted_name(name: str) -> str:
    """A name without a schema."""
    return '"' + name.replace('"', '""') + '"'


def write_line(connection: Any, sink: PostgresSink, name: str, line: journal.Line) -> None:
    """Into the journal, over one of that name."""
    connection.execute(
        f"insert into {OURS}.lines (sink, name, line) values (%s, %s, %s) "
        "on conflict (sink, name) do update set line = excluded.line",
        (sink.key, name, journal.encode(line).decode()),
    )


class SplitRows:
    """See `sinks.SplitOut`: a transaction of its own connection, open from the first row to the journal's line."""

    def __init__(self, work: PostgresWork, split: Split) -> None:
        self._work = work
        self._split = split
        self._good = _Copied(work.sink.staging, split.name)
        self._bad = _Copied(work.sink.bad_staging, f"bad/{split.name}")
        self._connection = work.sink.database.connect(**SESSION)
        try:
            with work.sink.said():
                self._connection.execute("begin")
        except BaseException:
            self._connection.close()
            raise

    def write(self, scored: Scored) -> None:
        """See `SplitOut.write`. Raises Unavailable."""
        with self._work.sink.said():
            self._good.copy(self._connection, scored.good)
            if scored.bad is not None:
                self._bad.copy(self._connection, scored.bad)

    def finish(self, seconds: float, at: float) -> Finished:
        """See `SplitOut.finish`."""
        bad = self._bad.part() if self._bad.rows else None
        line = Finished(
            split=self._split.index, token=self._work.token, part=self._good.part(), bad=bad, seconds=seconds, at=at
        )
        with self._work.sink.said():
            self._work.fence(self._connection)
            write_line(self._connection, self._work.sink, f"split {self._split.index}", line)
            self._connection.execute("commit")
        self._connection.close()
        return line

    def abandon(self) -> None:
        """See `SplitOut.abandon`."""
        self._connection.close()


class _Copied:
    """What of a split goes into one table."""

    def __init__(self, table: str, name: str) -> None:
        self._table = table
        self._name = name
        self._hash = hashlib.sha256()
        self._bytes = 0
        self.rows = 0

    def copy(self, connection: Any, batch: Any) -> None:
        if not batch.num_rows:
            return
        data = csv_of(batch)
        with connection.cursor().copy(f"copy {self._table} from stdin (format csv)") as stream:
            stream.write(data)
        self._hash.update(data)
        self._bytes += len(data)
        self.rows += batch.num_rows

    def part(self) -> Part:
        return Part(name=self._name, rows=self.rows, bytes=self._bytes, sha256=self._hash.hexdigest())
