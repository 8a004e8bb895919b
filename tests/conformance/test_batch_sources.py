"""What every kind of source holds to: the same rows in the same order, split alike whenever planned, and pinned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq
import pytest

from octoserve.connectors import postgres as connector
from octoserve.connectors import records, sources
from octoserve.connectors.source import Source
from octoserve.patterns.batch import databases
from octoserve.patterns.batch.plan import plan_splits
from octoserve.patterns.batch.table import Table
from support import postgres, s3
from support.batch import rows
from support.batch_sinks import a_catalog

COUNT = 1500
COLUMNS = ("name", "id", "a", "b")
KINDS = (
    "parquet", "csv", "tsv", "jsonl", "arrow", "hive", "s3 parquet", "s3 csv", "s3 arrow", "postgresql", "delta",
    "delta in s3", "delta with partitions", "iceberg", "iceberg with partitions",
)  # fmt: skip


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3.a_store() as store, s3.used(store.url), a_catalog(tmp_path_factory.mktemp("iceberg")) as catalog:
        yield {"catalog": catalog, "s3": store.url}


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    if postgres.missing():
        pytest.skip(postgres.missing())
    with postgres.a_server() as url, pytest.MonkeyPatch.context() as patched:
        patched.setenv("PGPASSWORD", postgres.PASSWORD)
        yield url


def put(kind: str, folder: Path, table: pa.Table, services: dict[str, str]) -> str:
    """The table as a source of that kind; what names it."""
    far, _, form = kind.rpartition(" ")
    if kind.startswith("delta"):
        return _put_delta(kind, folder, table)
    if kind.startswith("iceberg"):
        return _put_iceberg(kind, folder, table, services["catalog"])
    if kind == "hive":
        for day in (1, 2, 3):
            (folder / f"day={day}").mkdir()
            pq.write_table(table.slice((day - 1) * 500, 500), folder / f"day={day}" / "t.parquet", row_group_size=100)
        return str(folder)
    _WRITERS[form](table, folder)
    if not far:
        return str(folder / f"*.{form}")
    s3.put_folder(folder, folder.name)
    return f"s3://{s3.BUCKET}/{folder.name}/*.{form}"


def _put_delta(kind: str, folder: Path, table: pa.Table) -> str:
    from deltalake import write_deltalake

    where, options = str(folder / "t"), None
    if "s3" in kind:
        where = f"s3://{s3.BUCKET}/{folder.name}/t"
        options = {**s3.variables(_endpoint()), "AWS_ALLOW_HTTP": "true", "aws_conditional_put": "etag"}
    if "partitions" in kind:
        parts = pa.array([str(i // 500) for i in range(table.num_rows)])
        whole = table.append_column("day", parts)
        write_deltalake(where, whole, partition_by=["day"], storage_options=options)
        return f"delta:{where}"
    for at in range(0, table.num_rows, 500):
        write_deltalake(where, table.slice(at, 500), mode="append", storage_options=options)
    return f"delta:{where}"


def _endpoint() -> str:
    import os

    return os.environ["AWS_ENDPOINT_URL"]


def _put_iceberg(kind: str, folder: Path, table: pa.Table, catalog: str) -> str:
    from pyiceberg.catalog import load_catalog
    from pyiceberg.transforms import IdentityTransform

    shelf = load_catalog(catalog)
    space = folder.name.replace("-", "_")
    shelf.create_namespace(space)
    if "partitions" in kind:
        table = table.append_column("day", pa.array([f"d{i // 500}" for i in range(table.num_rows)]))
    made = shelf.create_table(f"{space}.t", table.schema)
    if "partitions" in kind:
        with made.update_spec() as update:
            update.add_field("day", IdentityTransform(), "day")
        made.append(table)
    else:
        for at in range(0, table.num_rows, 500):
            made.append(table.slice(at, 500))
    return f"iceberg:{catalog}/{space}.t"


def _jsonl(table: pa.Table, folder: Path) -> None:
    import json

    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    assert pajson.read_json(folder / "t.jsonl").num_rows == table.num_rows


def _arrow(table: pa.Table, folder: Path) -> None:
    with pa.ipc.new_file(str(folder / "t.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


_WRITERS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "parquet": lambda table, folder: pq.write_table(table, folder / "t.parquet", row_group_size=100),
    "csv": lambda table, folder: pacsv.write_csv(table, folder / "t.csv"),
    "tsv": lambda table, folder: pacsv.write_csv(table, folder / "t.tsv", pacsv.WriteOptions(delimiter="\t")),
    "jsonl": _jsonl,
    "arrow": _arrow,
}


@pytest.fixture(params=KINDS)
def named(
    request: pytest.FixtureRequest, services: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """What names a source of 1500 rows."""
    monkeypatch.setattr(records, "RANGE", 3_000)
    monkeypatch.setattr(connector, "RANGE", 3_000)
    if request.param == "postgresql":
        return _put_postgres(request.getfixturevalue("database"))
    return put(request.param, tmp_path, rows(0, COUNT), services)


def _put_postgres(url: str) -> str:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop table if exists t")
        connection.execute("create table t (id bigint primary key, a real, b real, name text)")
        connection.execute("insert into t select i, i * 0.5, i % 7, 'n' || i from generate_series(0, 1499) i")
    return f"{url}?table=t"


def find(named: str) -> Source:
    return sources.find([named], "", databases.of("source"))


def read(source: Source, columns: tuple[str, ...] = COLUMNS, split: int = 3_000, each: int = 64) -> pa.Table:
    table = Table(source)
    if table.is_text:
        table.read_as({"id": "INT64", "a": "FP32", "b": "FP32"})
    splits = plan_splits(table.ranges(columns, 2), split)
    batches = []
    for one in splits:
        came = list(table.read(one, columns, each))
        assert sum(block.batch.num_rows for block in came) == one.rows, "as planned"
        assert all(not block.unfit for block in came)
        assert all(block.batch.num_rows <= each for block in came)
        batches += [block.batch for block in came]
    return pa.Table.from_batches(batches)


def test_all_rows_once_with_the_columns_that_were_asked_for(named: str) -> None:
    source = find(named)
    table = read(source)
    assert table.column_names == list(COLUMNS)
    assert sorted(table.to_pylist(), key=lambda row: row["id"]) == [
        {"name": f"n{i}", "id": i, "a": i * 0.5, "b": float(i % 7)} for i in range(COUNT)
    ]
    source.close()


def test_the_order_is_the_same_whatever_the_splits_and_blocks(named: str) -> None:
    source = find(named)
    first = read(source)
    assert read(source, split=1 << 30, each=1000).column("id").to_pylist() == first.column("id").to_pylist()
    source.close()


def test_planned_again_it_is_the_same(named: str) -> None:
    """Found by its pinned name, as a resumed job does: same files, same ranges."""
    source = find(named)
    (pinned,) = source.pinned
    again = find(pinned)
    assert again.pinned == source.pinned
    assert again.format == source.format
    assert [file for file in again.files if file not in source.files] == []
    assert [again.inspect(file) for file in again.files] == [source.inspect(file) for file in source.files]
    assert all(source.identify(file) == file for file in source.files)
    source.close()
    again.close()


def test_a_single_column(named: str) -> None:
    source = find(named)
    assert sorted(read(source, ("id",)).column("id").to_pylist()) == list(range(COUNT))
    source.close()
