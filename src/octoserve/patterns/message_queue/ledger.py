"""Attempts, persisted before they are made: a message that kills the process never reaches an `except`.

One record a micro-batch says what is about to run. A message that comes again while its record is there is a suspect:
it was running when its process ended. What was noted survives any death of the process; a power cut may forget the last
notes, and a message then gets a try more.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from octoserve.connectors.queues.protocol import Failure, Position
from octoserve.core.clock import Clock
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.core.sqlite import use_wal

FILE = "queue.db"
ENDED = "the process ended while it ran"


class Attempts(msgspec.Struct, frozen=True):
    """What is known of a message that did not succeed yet."""

    count: int = 0
    history: tuple[Failure, ...] = ()

    def failed(self, failure: Failure) -> Attempts:
        """After one more."""
        return Attempts(self.count + 1, (*self.history, failure)[-20:])


class Ledger(Protocol):
    """Where attempts are kept, of one source. All methods block; each returns when what it noted is kept."""

    def begin(self, positions: Sequence[Position]) -> None:
        """These are about to run; what was begun before has ended, one way or the other."""
        ...

    def suspects(self, positions: Sequence[Position]) -> Mapping[Position, Attempts]:
        """Which of these have a history. One that was running when its process ended gets an attempt for it, once."""
        ...

    def history(self, partition: str) -> Mapping[Position, Attempts]:
        """The same for all of a partition that has just become ours: nobody else adds to it while it is."""
        ...

    def failed(self, attempts: Mapping[Position, Attempts]) -> None:
        """Note these, whole."""
        ...

    def forget(self, positions: Iterable[Position]) -> None:
        """They are done."""
        ...

    def forget_before(self, partition: str, offset: int) -> None:
        """All below have been done, by whomever. For logs, where they never come again."""
        ...

    def end(self) -> None:
        """What was begun has ended."""
        ...

    def close(self) -> None:
        """The last call."""
        ...


def pack(positions: Iterable[Position]) -> bytes:
    """Positions as ranges: a micro-batch is mostly one."""
    offsets: dict[str, list[int]] = {}
    for partition, offset in positions:
        offsets.setdefault(partition, []).append(offset)
    ranges: list[tuple[str, int, int]] = []
    for partition, found in offsets.items():
        found.sort()
        first = last = found[0]
        for offset in found:
            if offset > last + 1:
                ranges.append((partition, first, last))
                first = offset
            last = offset
        ranges.append((partition, first, last))
    return msgspec.msgpack.encode(ranges)


def unpack(packed: bytes) -> set[Position]:
    """Those positions."""
    ranges = msgspec.msgpack.decode(packed, type=list[tuple[str, int, int]])
    return {Position(partition, offset) for partition, first, last in ranges for offset in range(first, last + 1)}


def in_partition(positions: set[Position], partition: str) -> set[Position]:
    """Those of it."""
    return {position for position in positions if position.partition == partition}


def attempts_of(packed: bytes) -> Attempts:
    """As they were written."""
    return msgspec.msgpack.decode(packed, type=Attempts)


def how_ended(owner: str, ends: Mapping[str, str]) -> str:
    """How the process of this owner did. ends: by the owner's name without its last part."""
    return ends.get(owner.rpartition("/")[0], ENDED)


def convict(
    caught: Iterable[Position], ran: int, known: Mapping[Position, Attempts], how: str, now: float
) -> dict[Position, Attempts]:
    """One attempt more for each of `caught`, which were among `ran` messages when their process ended."""
    mates = f" with {ran - 1} others" if ran > 1 else ", alone"
    failure = Failure(at=now, error=how + mates)
    return {position: known.get(position, Attempts()).failed(failure) for position in caught}


_SCHEMA = """
create table if not exists running (
  source text not null, owner text not null, positions blob not null, primary key (source, owner)) without rowid;
create table if not exists attempt (
  source text not null, partition text not null, "offset" integer not null, attempts blob not null,
  primary key (source, partition, "offset")) without rowid;
"""


class SqliteLedger:
    """In the state directory, for all processes of one machine."""

    def __init__(
        self,
        state_dir: Path,
        source: str,
        owner: str,
        ends: Mapping[str, str] | None = None,
        wall: Clock = time.time,
    ) -> None:
        """owner: of what is begun here; no two processes may have one. ends: how some have died, see `how_ended`.

        Raises SettingsError.
        """
        self._ends = ends or {}
        self._source = source
        self._owner = owner
        self._wall = wall
        self._begun = False
        path = state_dir / FILE
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=10.0, isolation_level=None)
            use_wal(self._db)
            self._db.execute("pragma synchronous = normal")  # no flush: it is a death of the process that it is for
            self._db.executescript(_SCHEMA)
            path.chmod(0o600)
        except (sqlite3.Error, OSError) as error:
            raise SettingsError(
                f"state-dir: cannot keep attempts in {path}: {error}; name a writable folder with --state-dir"
            ) from None

    def begin(self, positions: Sequence[Position]) -> None:
        """See `Ledger.begin`."""
        with self._writing() as db:
            db.execute("insert or replace into running values (?, ?, ?)", (self._source, self._owner, pack(positions)))
        self._begun = True

    def end(self) -> None:
        """See `Ledger.end`."""
        if self._begun:
            with self._writing() as db:
                db.execute("delete from running where source = ? and owner = ?", (self._source, self._owner))
            self._begun = False

    def suspects(self, positions: Sequence[Position]) -> Mapping[Position, Attempts]:
        """See `Ledger.suspects`."""
        wanted = set(positions)
        with self._writing():
            self._convict(wanted.intersection)
            return self._read(wanted)

    def history(self, partition: str) -> Mapping[Position, Attempts]:
        """See `Ledger.history`."""
        with self._writing() as db:
            self._convict(lambda ran: in_partition(ran, partition))
            rows = db.execute(
                'select "offset", attempts from attempt where source = ? and partition = ?', (self._source, partition)
            )
            return {Position(partition, offset): attempts_of(packed) for offset, packed in rows}

    def _convict(self, caught_of: Callable[[set[Position]], set[Position]]) -> None:
        others = self._db.execute(
            "select owner, positions from running where source = ? and owner <> ?", (self._source, self._owner)
        ).fetchall()
        for owner, packed in others:
            ran = unpack(packed)
            caught = caught_of(ran)
            if not caught:
                continue
            self._write(convict(caught, len(ran), self._read(caught), how_ended(owner, self._ends), self._wall()))
            self._keep(owner, ran - caught)

    def _keep(self, owner: str, left: set[Position]) -> None:
        if left:
            self._db.execute(
                "update running set positions = ? where source = ? and owner = ?", (pack(left), self._source, owner)
            )
        else:
            self._db.execute("delete from running where source = ? and owner = ?", (self._source, owner))

    def _read(self, wanted: set[Position]) -> dict[Position, Attempts]:
        found = {}
        for partition in {position.partition for position in wanted}:
            offsets = [position.offset for position in wanted if position.partition == partition]
            rows = self._db.execute(
                'select "offset", attempts from attempt '
                'where source = ? and partition = ? and "offset" between ? and ?',
                (self._source, partition, min(offsets), max(offsets)),
            )
            for offset, packed in rows:
                position = Position(partition, offset)
                if position in wanted:
                    found[position] = attempts_of(packed)
        return found

    def _write(self, attempts: Mapping[Position, Attempts]) -> None:
        self._db.executemany(
            "insert or replace into attempt values (?, ?, ?, ?)",
            [(self._source, *position, msgspec.msgpack.encode(known)) for position, known in attempts.items()],
        )

    def failed(self, attempts: Mapping[Position, Attempts]) -> None:
        """See `Ledger.failed`."""
        with self._writing():
            self._write(attempts)

    def forget(self, positions: Iterable[Position]) -> None:
        """See `Ledger.forget`."""
        with self._writing() as db:
            db.executemany(
                'delete from attempt where source = ? and partition = ? and "offset" = ?',
                [(self._source, *position) for position in positions],
            )

    def forget_before(self, partition: str, offset: int) -> None:
        """See `Ledger.forget_before`."""
        with self._writing() as db:
            db.execute(
                'delete from attempt where source = ? and partition = ? and "offset" < ?',
                (self._source, partition, offset),
            )
            rows = db.execute("select owner, positions from running where source = ?", (self._source,)).fetchall()
            for owner, packed in rows:
                ran = unpack(packed)
                left = {position for position in ran if position.partition != partition or position.offset >= offset}
                if left != ran:
                    self._keep(owner, left)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it or nothing, and none is open afterwards. Raises Unavailable."""
        try:
            self._db.execute("begin immediate")
            try:
                yield self._db
                self._db.execute("commit")
            except BaseException:
                if self._db.in_transaction:  # some errors have ended it
                    self._db.execute("rollback")
                raise
        except sqlite3.Error as error:
            raise Unavailable(f"the ledger of attempts cannot be written: {error}") from None

    def close(self) -> None:
        """See `Ledger.close`."""
        self._db.close()
