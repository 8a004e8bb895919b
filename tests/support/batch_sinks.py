"""Every kind of sink as one: where to put a job's result, and what a reader who keeps to the rules sees of it."""

from __future__ import annotations

import abc
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self

import msgspec
import psycopg
import psycopg.rows
import pyarrow as pa

from octoserve.connectors import objects
from octoserve.connectors.objects import split_url
from octoserve.patterns.batch.places import sink_of
from octoserve.patterns.batch.workplace import INSIDE
from support import s3

Rows = list[dict[str, Any]]


class SinkCase(Protocol):
    """One kind."""

    name: str
    sink_format: str | msgspec.UnsetType
    """Of its jobs."""

    def new(self, name: str) -> str:
        """A sink that is not there yet."""
        ...

    def seen(self, sink: str) -> Rows | None:
        """What its readers see: rows by id, or nothing at all."""
        ...

    def bad(self, sink: str) -> Rows:
        """The bad rows, by id."""
        ...

    def contents(self, sink: str) -> Any:
        """What two results of one job are compared by."""
        ...


def by_id(table: pa.Table) -> Rows:
    return sorted(table.to_pylist(), key=lambda row: row["id"])


class Parts:
    """Sinks whose readers go by `_SUCCESS`."""

    sink_format: str | msgspec.UnsetType = msgspec.UNSET

    def written_as(self, name: str) -> Self:
        """Of files of another format."""
        self.sink_format = name
        return self

    @property
    def lost(self) -> str:
        """A part that may go."""
        return f"part-00001.{self.sink_format or 'parquet'}"

    def seen(self, sink: str) -> Rows | None:
        found = sink_of(sink)
        whole = found.committed()
        return None if whole is None else by_id(pa.concat_tables(found.tables(whole, False, None)))

    def bad(self, sink: str) -> Rows:
        found = sink_of(sink)
        whole = found.committed()
        assert whole is not None
        return by_id(pa.concat_tables(found.tables(whole, True, None)))


class Folder(Parts):
    """Renamed into place."""

    name = "folder"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def new(self, name: str) -> str:
        return str(self.folder / name)

    def seen(self, sink: str) -> Rows | None:
        assert not Path(sink).exists() or (Path(sink) / "_SUCCESS").exists(), "readers who list see it whole or not"
        return super().seen(sink)

    def lose(self, sink: str) -> None:
        (sink_of(sink).place.parts / self.lost).unlink()  # type: ignore[attr-defined]

    def stranger(self, sink: str) -> str:
        Path(sink).mkdir(parents=True, exist_ok=True)
        (Path(sink) / "diary.txt").write_text("mine")
        return "diary"

    def contents(self, sink: str) -> Any:
        return {str(p.relative_to(sink)): p.read_bytes() for p in sorted(Path(sink).rglob("*")) if p.is_file()}


class InPlace(Folder):
    """A folder that cannot be renamed to."""

    name = "in place"

    def new(self, name: str) -> str:
        (self.folder / name / INSIDE).mkdir(parents=True)
        return str(self.folder / name)

    def seen(self, sink: str) -> Rows | None:
        return Parts.seen(self, sink)


class Objects(Parts):
    """S3, or what stands in for it."""

    name = "s3"

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def new(self, name: str) -> str:
        return f"s3://{s3.BUCKET}/{self.prefix}/{name}"

    def lose(self, sink: str) -> None:
        bucket, key = split_url(sink)
        objects.bucket(bucket).put(f"{key}/{self.lost}", b"short")

    def stranger(self, sink: str) -> str:
        bucket, key = split_url(sink)
        objects.bucket(bucket).put(f"{key}/diary.txt", b"mine")
        return "diary"

    def contents(self, sink: str) -> Any:
        return s3.tree(sink.removeprefix(f"s3://{s3.BUCKET}/"))


class Postgres:
    """A table of PostgreSQL."""

    name = "postgresql"
    sink_format = msgspec.UNSET

    def __init__(self, url: str, schema: str) -> None:
        self.url = url
        self.schema = schema
        self._execute(f"create schema {schema}")

    def _execute(self, sql: str) -> Rows:
        with psycopg.connect(self.url, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def new(self, name: str) -> str:
        return f"{self.url}?table={self.schema}.{name.replace('-', '_')}"

    def _table(self, sink: str) -> str:
        return sink.partition("table=")[2]

    def _rows(self, table: str) -> Rows | None:
        if self._execute(f"select to_regclass('{table}') as there")[0]["there"] is None:
            return None
        return self._execute(f"select * from {table} order by id")

    def seen(self, sink: str) -> Rows | None:
        return self._rows(self._table(sink))

    def bad(self, sink: str) -> Rows:
        return self._rows(f"{self._table(sink)}_bad") or []

    def stranger(self, sink: str) -> str:
        self._execute(f"create table {self._table(sink)} (x int)")
        return "exists; name another"

    def contents(self, sink: str) -> Any:
        left = self._execute("select sink from octoserve_batch.lines")
        return self.seen(sink), self.bad(sink), left


class Lake(abc.ABC):
    """A table that grows by a job: there are rows in it before, of which the reader sees no more and no less."""

    sink_format = msgspec.UNSET

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abc.abstractmethod
    def _root(self, sink: str) -> Path:
        """Its folder."""

    @abc.abstractmethod
    def all_rows(self, sink: str) -> Rows:
        """Those that were there before among them."""

    def seen(self, sink: str) -> Rows | None:
        rows = self.all_rows(sink)
        return rows or None

    def bad(self, sink: str) -> Rows:
        found = sink_of(sink)
        whole = found.committed()
        assert whole is not None
        return by_id(pa.concat_tables(found.tables(whole, True, None)))

    def lose(self, sink: str) -> None:
        (part,) = self._root(sink).glob("octoserve-*/part-00001.parquet")
        part.unlink()

    def contents(self, sink: str) -> Any:
        root = self._root(sink)
        files = {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.glob("octoserve-*/**/*.parquet"))}
        return self.all_rows(sink), files, (root / INSIDE).exists()


class Delta(Lake):
    """A table of Delta, which the job's commit makes."""

    name = "delta"

    def new(self, name: str) -> str:
        return f"delta:{self.folder / name}"

    def _root(self, sink: str) -> Path:
        return Path(sink.removeprefix("delta:"))

    def commits(self, sink: str) -> int:
        from deltalake import DeltaTable

        return DeltaTable(str(self._root(sink))).version() + 1

    def all_rows(self, sink: str) -> Rows:
        from deltalake import DeltaTable

        root = str(self._root(sink))
        return by_id(DeltaTable(root).to_pyarrow_table()) if DeltaTable.is_deltatable(root) else []


class Iceberg(Lake):
    """A table of Iceberg, made empty before; the catalog is SQLite's."""

    name = "iceberg"

    def __init__(self, folder: Path, catalog: str) -> None:
        from pyiceberg.catalog import load_catalog

        super().__init__(folder)
        self.catalog = load_catalog(catalog)
        self.space = folder.name.replace("-", "_")
        self.catalog.create_namespace(self.space)

    def new(self, name: str) -> str:
        name = name.replace("-", "_")
        values = pa.list_(pa.field("element", pa.float32(), nullable=False))
        schema = pa.schema([("id", pa.int64()), ("plus", values), ("minus", values)])
        self.catalog.create_table(f"{self.space}.{name}", schema)
        return f"iceberg:{self.catalog.name}/{self.space}.{name}"

    def _table(self, sink: str) -> Any:
        return self.catalog.load_table(sink.partition("/")[2])

    def _root(self, sink: str) -> Path:
        return Path(self._table(sink).location().removeprefix("file://"))

    def commits(self, sink: str) -> int:
        return len(self._table(sink).snapshots())

    def all_rows(self, sink: str) -> Rows:
        return by_id(self._table(sink).scan().to_arrow())


def catalog_variables() -> dict[str, str]:
    """What a process has to know of `a_catalog`, if it was not started by this one."""
    return {name: value for name, value in os.environ.items() if name.startswith("PYICEBERG_")}


@contextlib.contextmanager
def a_catalog(folder: Path) -> Iterator[str]:
    """Its name, as the settings of pyiceberg have it in this process and in those that it starts."""
    said = {
        "PYICEBERG_CATALOG__SHELF__TYPE": "sql",
        "PYICEBERG_CATALOG__SHELF__URI": f"sqlite:///{folder}/catalog.db",
        "PYICEBERG_CATALOG__SHELF__WAREHOUSE": f"file://{folder}/warehouse",
    }
    os.environ.update(said)
    from pyiceberg import catalog

    catalog._ENV_CONFIG = type(catalog._ENV_CONFIG)()  # read when it was imported
    try:
        yield "shelf"
    finally:
        for name in said:
            del os.environ[name]
