"""Where in its source a queue went over from one version, or one set of shares, to another: a position per partition.

Written down before the first micro-batch by the new route is scored, in the state directory beside the attempts. In a
log the position is exact: a micro-batch is done whole before the next, so everything below it was scored by what was
there before, and what comes again after a crash is stored with its first result. Of messages that are acknowledged one
by one it is the lowest that was new in the first micro-batch; some in hand elsewhere may lie on either side.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from octoserve.connectors.queues.protocol import Message
from octoserve.core.clock import Clock
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.core.sqlite import use_wal
from octoserve.patterns.message_queue.ledger import FILE

KEPT = 100
"""Of a partition; older ones are forgotten."""
_SCHEMA = """
create table if not exists cutover (
  id integer primary key, source text not null, partition text not null, "offset" integer not null, who text not null,
  at real not null);
create index if not exists cutover_of on cutover (source, partition, id);
"""


class Cutover(msgspec.Struct, frozen=True, kw_only=True):
    """From `offset` on messages are scored by `by`, since `at` (Unix seconds)."""

    partition: str
    offset: int
    by: str
    at: float


class Cutovers:
    """Of one source, as one worker writes them."""

    def __init__(self, state_dir: Path, source: str, wall: Clock = time.time) -> None:
        """Raises SettingsError."""
        self._source = source
        self._wall = wall
        self._noted: dict[str, str] = {}
        """By partition: what was noted last."""
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = _opened(state_dir / FILE)
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise SettingsError(f"state-dir: cannot keep positions in {state_dir / FILE}: {error}") from None

    def note(self, messages: Sequence[Message], by: str) -> None:
        """These are about to be scored by `by`; on disk on return, if that is something new. Raises Unavailable."""
        first: dict[str, int] = {}
        for message in messages:
            partition, offset = message.position
            if self._noted.get(partition) != by and message.deliveries == 1:
                first[partition] = min(first.get(partition, offset), offset)
        if first:
            try:
                self._write(first, by)
            except sqlite3.Error as error:
                raise Unavailable(f"the positions of cut-overs cannot be written: {error}") from None
            self._noted.update(dict.fromkeys(first, by))

    def _write(self, first: dict[str, int], by: str) -> None:
        db = self._db
        db.execute("begin immediate")
        try:
            for partition, offset in first.items():
                last = db.execute(
                    "select id, who from cutover where source = ? and partition = ? order by id desc limit 1",
                    (self._source, partition),
                ).fetchone()
                if last is not None and last[1] == by:  # another worker has gone over, or this one has started again
                    db.execute('update cutover set "offset" = min("offset", ?) where id = ?', (offset, last[0]))
                    continue
                db.execute(
                    'insert into cutover (source, partition, "offset", who, at) values (?, ?, ?, ?, ?)',
                    (self._source, partition, offset, by, self._wall()),
                )
                db.execute(
                    "delete from cutover where source = ? and partition = ? and id not in "
                    "(select id from cutover where source = ? and partition = ? order by id desc limit ?)",
                    (self._source, partition, self._source, partition, KEPT),
                )
            db.execute("commit")
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            raise

    def close(self) -> None:
        """The last call."""
        self._db.close()


def cutovers(state_dir: Path, source: str) -> list[Cutover]:
    """What was noted of this source, partition by partition, the oldest first. Raises Unavailable."""
    path = state_dir / FILE
    if not path.exists():
        return []
    try:
        with closing(_opened(path)) as db:
            db.executescript(_SCHEMA)
            rows = db.execute(
                'select partition, "offset", who, at from cutover where source = ? order by partition, id', (source,)
            ).fetchall()
    except sqlite3.Error as error:
        raise Unavailable(f"{path}: {error}") from None
    return [Cutover(partition=partition, offset=offset, by=by, at=at) for partition, offset, by, at in rows]


def _opened(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=10.0, isolation_level=None)
    try:
        use_wal(db)
    except sqlite3.Error:
        db.close()
        raise
    return db
