"""Batch from and to tables of Delta and Iceberg: a version that is pinned, and one commit that is a job's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from octoserve.connectors import delta, iceberg, lake, sources
from octoserve.connectors.lake import Added
from octoserve.connectors.objects import StoreTrouble
from octoserve.core.errors import SettingsError
from octoserve.patterns.batch.job import BudgetSpent, Differs, RunSettings
from octoserve.patterns.batch.places import sink_of
from octoserve.patterns.batch.run import resume
from octoserve.patterns.batch.verify import verify
from support import s3
from support.batch import BORNE, CountedFiles, put_model, put_table, rows, score, tools, tree, wish
from support.batch_sinks import a_catalog

BAD = (900,)
STRICT = RunSettings(workers=1, budget_rows=0)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    put_model(folder)
    return folder


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from pyiceberg.catalog import load_catalog

    with a_catalog(tmp_path_factory.mktemp("iceberg")) as name:
        shelf = load_catalog(name)
        shelf.create_namespace("ns")
        yield shelf


def put_delta(where: str) -> str:
    for at in range(0, 1500, 500):
        write_deltalake(where, rows(at, 500, BAD), mode="append")
    return f"delta:{where}"


def put_iceberg(catalog: Any, name: str) -> str:
    table = catalog.create_table(f"ns.{name}", rows(0, 1).schema)
    for at in range(0, 1500, 500):
        table.append(rows(at, 500, BAD))
    return f"iceberg:shelf/ns.{name}"


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_a_job_goes_on_with_the_version_it_began_with(
    repository: Path, catalog: Any, tmp_path: Path, kind: str
) -> None:
    source = put_delta(str(tmp_path / "t")) if kind == "delta" else put_iceberg(catalog, "pinned")
    asked = wish(repository, source, tmp_path / "out", split_bytes=1)
    with pytest.raises(BudgetSpent):
        score(asked, STRICT)
    if kind == "delta":
        write_deltalake(str(tmp_path / "t"), rows(5000, 10), mode="append")
    else:
        catalog.load_table("ns.pinned").append(rows(5000, 10))
    with pytest.raises(Differs, match="no such file wanted"):
        score(asked)
    done = resume(asked.sink, BORNE, tools())
    assert done.manifest.rows == 1499
    assert max(done.table().column("id").to_pylist()) == 1499
    undisturbed = wish(repository, sink_of_version(source, tmp_path, catalog), tmp_path / "undisturbed", split_bytes=1)
    score(undisturbed)
    assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")


def sink_of_version(source: str, tmp_path: Path, catalog: Any) -> str:
    """The version before the last."""
    if source.startswith("delta:"):
        return f"{source}?version={DeltaTable(str(tmp_path / 't')).version() - 1}"
    snapshots = catalog.load_table("ns.pinned").snapshots()
    return f"{source}?snapshot={snapshots[-2].snapshot_id}"


def test_a_file_that_was_vacuumed(repository: Path, tmp_path: Path) -> None:
    source = put_delta(str(tmp_path / "t"))
    asked = wish(repository, source, tmp_path / "out", split_bytes=1)
    with pytest.raises(BudgetSpent):
        score(asked, STRICT)
    for path in (tmp_path / "t").glob("*.parquet"):
        path.unlink()
    with pytest.raises(SettingsError, match=r"t/.*parquet"):
        resume(asked.sink, BORNE, tools())


def test_columns_that_came_later_and_were_renamed(repository: Path, catalog: Any, tmp_path: Path) -> None:
    from pyiceberg.types import StringType

    table = catalog.create_table("ns.evolved", rows(0, 1).schema)
    table.append(rows(0, 100))
    with table.update_schema() as update:
        update.rename_column("a", "amount")
        update.add_column("city", StringType())
    table.append(
        rows(100, 100).rename_columns(["id", "amount", "b", "name"]).append_column("city", pa.array(["Bern"] * 100))
    )
    far = score(
        wish(repository, "iceberg:shelf/ns.evolved", tmp_path / "i", columns=("amount", "b"), keys=("id", "city"))
    ).table()
    cities = {row["id"]: row["city"] for row in far.to_pylist()}
    assert (cities[0], cities[150]) == (None, "Bern")
    assert sorted(plus[0] for plus in far.column("plus").to_pylist()) == [i * 0.5 + 1 for i in range(200)]

    write_deltalake(str(tmp_path / "t"), rows(0, 100))
    more = rows(100, 100).append_column("city", pa.array(["Bern"] * 100))
    write_deltalake(str(tmp_path / "t"), more, mode="append", schema_mode="merge")
    near = score(wish(repository, str(tmp_path / "t"), tmp_path / "d", keys=("id", "city"))).table()
    assert {row["id"]: row["city"] for row in near.to_pylist()} == cities


def test_a_job_appends_to_what_is_there(repository: Path, tmp_path: Path) -> None:
    """Night after night, and beside other writers."""
    table = tmp_path / "scores"
    for night, start in (("1", 0), ("2", 500)):
        source = put_table(tmp_path / night, files=1, each=300 + start)
        score(wish(repository, source, f"delta:{table}"))  # type: ignore[arg-type]
    found = DeltaTable(str(table))
    assert (found.version(), found.to_pyarrow_table().num_rows) == (1, 300 + 800)
    assert verify(f"delta:{table}").manifest.rows == 800
    assert verify(str(table)).differences == (), "known by its log too"
    write_deltalake(str(table), found.to_pyarrow_table().slice(0, 5), mode="overwrite")
    assert {d.came for d in verify(str(table)).differences} == {"a file that it has no longer"}


def test_a_commit_is_not_done_twice(repository: Path, tmp_path: Path) -> None:
    """Killed right after the table's commit: the next run finds it there."""
    source = put_table(tmp_path / "data")
    asked = wish(repository, source, f"delta:{tmp_path / 'scores'}")  # type: ignore[arg-type]

    def at(number: int, name: str, do: Any, args: tuple[Any, ...]) -> Any:
        if name == "remove_tree":
            raise OSError(5, "the end")
        return do()

    with pytest.raises(Exception, match="the end"):
        score(asked, files=CountedFiles(at))
    assert DeltaTable(str(tmp_path / "scores")).to_pyarrow_table().num_rows == 1500
    assert score(asked).scored == 0
    assert not sink_of(asked.sink).has_left_overs()
    found = DeltaTable(str(tmp_path / "scores"))
    assert (found.version(), found.to_pyarrow_table().num_rows) == (0, 1500)


def test_a_job_is_known_though_its_snapshot_has_expired(repository: Path, catalog: Any, tmp_path: Path) -> None:
    lists = pa.list_(pa.float32())
    catalog.create_table("ns.old", pa.schema([("id", pa.int64()), ("plus", lists), ("minus", lists)]))
    first, second = (
        wish(repository, put_table(tmp_path / night, files=1, each=each), "iceberg:shelf/ns.old")  # type: ignore[arg-type]
        for night, each in (("1", 300), ("2", 200))
    )
    score(first)
    (snapshot,) = catalog.load_table("ns.old").snapshots()
    score(second)
    catalog.load_table("ns.old").maintenance.expire_snapshots().by_id(snapshot.snapshot_id).commit()
    assert len(catalog.load_table("ns.old").snapshots()) == 1
    assert score(first).scored == 0, "its rows are there, and are not scored and added again"
    assert catalog.load_table("ns.old").scan().to_arrow().num_rows == 500
    assert not sink_of(first.sink).has_left_overs()


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_two_that_commit_one_run(catalog: Any, tmp_path: Path, kind: str, repository: Path) -> None:
    """Past all leases: the table itself takes one of them."""
    source = put_table(tmp_path / "data", files=1)
    schema = pa.schema([("id", pa.int64()), ("plus", pa.list_(pa.float32())), ("minus", pa.list_(pa.float32()))])
    if kind == "iceberg":
        catalog.create_table("ns.twice", schema)
    where = f"delta:{tmp_path / 'twice'}" if kind == "delta" else "iceberg:shelf/ns.twice"
    done = score(wish(repository, source, where))  # type: ignore[arg-type]
    table: lake.LakeTable = delta.DeltaSink(where) if kind == "delta" else iceberg.IcebergSink(where)
    folder = f"{table.root}/octoserve-{done.manifest.run}"
    added = [Added(f"{folder}/{part.name}", part.rows, part.bytes) for part in done.manifest.parts]
    table.append(added, schema, done.manifest.run)
    assert len(table.live()) == len(added)
    rows_ = (
        DeltaTable(table.root).to_pyarrow_table()
        if kind == "delta"
        else catalog.load_table("ns.twice").scan().to_arrow()
    )
    assert rows_.num_rows == 500


@pytest.mark.parametrize("kind", ["delta", "iceberg"])
def test_a_commit_that_fails_can_be_resumed(
    repository: Path, catalog: Any, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = put_table(tmp_path / "data", files=1)
    if kind == "iceberg":
        lists = pa.list_(pa.float32())
        catalog.create_table("ns.failing", pa.schema([("id", pa.int64()), ("plus", lists), ("minus", lists)]))
    where = f"delta:{tmp_path / 'failing'}" if kind == "delta" else "iceberg:shelf/ns.failing"
    asked = wish(repository, source, where)  # type: ignore[arg-type]
    with monkeypatch.context() as patched:
        for table in (delta.DeltaSink, iceberg.IcebergSink):

            def fails(*_: Any) -> None:
                raise StoreTrouble("the catalog is away")

            patched.setattr(table, "append", fails)
        with pytest.raises(StoreTrouble, match="away"):
            score(asked)
    assert sink_of(where).committed() is None
    outcome = resume(where, BORNE, tools())
    assert (outcome.scored, outcome.manifest.rows) == (0, 500)
    assert verify(where).differences == ()


def test_delta_in_s3(repository: Path, tmp_path: Path) -> None:
    with s3.a_store_apart() as url, s3.used(url):
        source = put_table(tmp_path / "data")
        where = f"delta:s3://{s3.BUCKET}/scores"
        score(wish(repository, source, where))  # type: ignore[arg-type]
        assert verify(where).differences == ()
        source_ = sources.find([where])
        assert sum(r.rows for file in source_.files for r in source_.inspect(file)[1]) == 1500
        assert not sink_of(where).has_left_overs()


def test_tables_that_a_job_cannot_append_to(repository: Path, catalog: Any, tmp_path: Path) -> None:
    source = put_table(tmp_path / "data", files=1)
    write_deltalake(str(tmp_path / "other"), pa.table({"id": ["text"], "plus": [1.0]}))
    lists = pa.array([[1.0]], pa.list_(pa.float32()))
    parted = pa.table({"id": [1], "plus": lists, "minus": lists, "day": ["x"]})
    write_deltalake(str(tmp_path / "parted"), parted, partition_by=["day"])
    for name, said in (("other", "takes other rows: column id"), ("parted", "has partitions")):
        with pytest.raises(SettingsError, match=said):
            score(wish(repository, source, f"delta:{tmp_path / name}"))  # type: ignore[arg-type]
        assert DeltaTable(str(tmp_path / name)).version() == 0
    catalog.create_table("ns.strange", pa.schema([("id", pa.int64()), ("plus", pa.string())]))
    with pytest.raises(SettingsError, match="takes other rows: column plus"):
        score(wish(repository, source, "iceberg:shelf/ns.strange"))  # type: ignore[arg-type]


def test_delete_files_are_refused() -> None:
    task = SimpleNamespace(delete_files={"d"}, file=None)
    table = SimpleNamespace(name=lambda: ("ns", "t"))
    with pytest.raises(SettingsError, match="delete files"):
        list(iceberg._files(table, SimpleNamespace(plan_files=lambda: [task]), pa.schema([]), {}))


def test_mapped_columns_are_refused(tmp_path: Path) -> None:
    table = SimpleNamespace(metadata=lambda: SimpleNamespace(configuration={"delta.columnMapping.mode": "name"}))
    with pytest.raises(SettingsError, match="maps its columns"):
        delta._refuse_strange(table, str(tmp_path))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("delta:{}/none", "a table of Delta wanted"),
        ("delta:{}/none?when=now", "delta:PATH"),
        ("iceberg:shelf", "iceberg:CATALOG/namespace.table"),
        ("iceberg:shelf/ns.none", "no table ns.none"),
        ("iceberg:nobody/ns.t", "PYICEBERG_CATALOG__NOBODY__URI"),
        ("iceberg:shelf/ns.t?snapshot=latest", "snapshot=ID"),
    ],
)
def test_what_is_no_table_is_said(repository: Path, catalog: Any, tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        score(wish(repository, source.format(tmp_path), tmp_path / "out"))
    with pytest.raises(SettingsError, match="one table wanted"):
        sources.find([f"delta:{tmp_path}", "y"])
