"""What must survive the supervisor: digests, holds, retries of labels by repository; generation by service.

SQLite in WAL mode with synchronous FULL: a commit is on disk before the call returns, and the supervisor
commits before it pushes. Blocking, and bound to the thread that made it: the supervisor calls it from its
file thread only. Two services may share one file; SQLite's own lock orders them (busy: 5 s).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

import msgspec

from octoserve.control.snapshot import Aspired, Key
from octoserve.core.errors import SettingsError
from octoserve.core.sqlite import use_wal
from octoserve.routing.plan import RoutePlan

FILE = "octoserve.db"

_SCHEMA = """
create table if not exists digest (
  root text not null, model text not null, version integer not null, digest text not null,
  primary key (root, model, version)) without rowid;
create table if not exists hold (
  root text not null, model text not null, primary key (root, model)) without rowid;
create table if not exists label (
  root text not null, model text not null, label text not null, version integer not null,
  primary key (root, model, label)) without rowid;
create table if not exists service (
  name text not null primary key, generation integer not null, aspired blob not null) without rowid;
"""


def plans_in(state_dir: Path) -> tuple[RoutePlan, ...]:
    """What services with this state directory last decided; only reads. Raises SettingsError.

    Where several had the same endpoint, what the one with the highest generation says.
    """
    path = state_dir / FILE
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5.0)) as db:
            rows = db.execute("select aspired from service order by generation desc").fetchall()
        found = [plan for (blob,) in rows for plan in msgspec.msgpack.decode(blob, type=Aspired).plans]
    except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
        raise SettingsError(f"{path} is not the state of a service: {error}") from None
    return tuple({plan.endpoint: plan for plan in reversed(found)}.values())


class Store:
    """The durable state of one repository root and one service."""

    def __init__(self, state_dir: Path, root: Path, service: str = "serve") -> None:
        self._root = os.path.realpath(root)
        self._service = service
        self._path = state_dir / FILE
        self._db = self._connect()

    def _connect(self) -> sqlite3.Connection:
        path = self._path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            db = sqlite3.connect(path, timeout=5.0, isolation_level=None)
            use_wal(db)
            db.executescript(_SCHEMA)
            os.chmod(path, 0o600)
            self._inode = path.stat().st_ino
        except (sqlite3.Error, OSError) as error:
            raise SettingsError(
                f"state-dir: cannot keep state in {path}: {error}; name a writable folder with --state-dir"
            ) from None
        return db

    def close(self) -> None:
        """The last call."""
        self._db.close()

    def is_there(self) -> bool:
        """Whether the file still lies where it was opened; else what is written is lost with the next close."""
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    def make_again(
        self,
        digests: Mapping[Key, str],
        holds: Iterable[str],
        labels: Mapping[str, Mapping[str, int]],
        aspired: Aspired,
    ) -> None:
        """A new file with what is remembered, where the old one has been removed. Raises SettingsError."""
        self._db.close()  # first: closing removes the log that lies at its path, whosever it is
        self._db = self._connect()
        for key, digest in digests.items():
            self.record_digest(key, digest)
        for model in holds:
            self.hold(model)
        for model, named in labels.items():
            for label, version in named.items():
                self.set_label(model, label, version)
        self.commit(aspired)

    def digests(self) -> dict[Key, str]:
        """Recorded digests by model and version."""
        rows = self._db.execute("select model, version, digest from digest where root = ?", (self._root,))
        return {(model, version): digest for model, version, digest in rows}

    def record_digest(self, key: Key, digest: str, replace: bool = False) -> None:
        """Record the digest of a version that has loaded. The first one stays unless `replace`."""
        verb = "replace" if replace else "ignore"
        self._db.execute(f"insert or {verb} into digest values (?, ?, ?, ?)", (self._root, *key, digest))

    def holds(self) -> frozenset[str]:
        """Models that were unloaded by request."""
        rows = self._db.execute("select model from hold where root = ?", (self._root,))
        return frozenset(model for (model,) in rows)

    def hold(self, model: str) -> None:
        """Keep the model unloaded until `release`, over restarts and new versions."""
        self._db.execute("insert or ignore into hold values (?, ?)", (self._root, model))

    def release(self, model: str) -> None:
        """End a hold, if there is one."""
        self._db.execute("delete from hold where root = ? and model = ?", (self._root, model))

    def labels(self) -> dict[str, dict[str, int]]:
        """Labels that were set by API: model -> label -> version."""
        rows = self._db.execute("select model, label, version from label where root = ?", (self._root,))
        labels: dict[str, dict[str, int]] = {}
        for model, label, version in rows:
            labels.setdefault(model, {})[label] = version
        return labels

    def set_label(self, model: str, label: str, version: int) -> None:
        """Point a label to a version."""
        self._db.execute("insert or replace into label values (?, ?, ?, ?)", (self._root, model, label, version))

    def remove_label(self, model: str, label: str) -> None:
        """Forget a label that was set."""
        self._db.execute("delete from label where root = ? and model = ? and label = ?", (self._root, model, label))

    def aspired(self) -> Aspired:
        """The last committed desired state of this service.

        A service that is new here starts empty, above what any other one in this file has reached: with
        picked ports, a restart is a new name.
        """
        row = self._db.execute("select generation, aspired from service where name = ?", (self._service,)).fetchone()
        if row is None:
            (highest,) = self._db.execute("select max(generation) from service").fetchone()
            return Aspired(generation=highest or 0)
        try:
            return msgspec.msgpack.decode(row[1], type=Aspired)
        except msgspec.MsgspecError:
            return Aspired(generation=row[0])  # written by another release: the number is what must not go back

    def commit(self, aspired: Aspired) -> None:
        """Before a push. The generation never goes back, whoever writes."""
        self._db.execute(
            "insert into service values (?, ?, ?) on conflict (name) do update set "
            "generation = excluded.generation, aspired = excluded.aspired "
            "where excluded.generation >= service.generation",
            (self._service, aspired.generation, msgspec.msgpack.encode(aspired)),
        )
