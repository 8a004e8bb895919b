"""A batch on a real Spark: the bytes of the local engine, from a Connect server and from spark-submit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

import octoserve
from octoserve.app import batch_tools
from octoserve.core.errors import SettingsError
from octoserve.patterns.batch import status
from octoserve.patterns.batch.job import BudgetSpent, Differs, RunSettings
from octoserve.patterns.batch.run import Wish, resume, run
from octoserve.patterns.batch.spark.session import SparkFailed
from octoserve.patterns.batch.verify import verify
from octoserve.patterns.batch.workplace import place_of
from support import s3
from support.batch import BORNE, put_model, put_table, result, rows, score, tools, tree, wish
from support.graphs import put_stepped
from support.spark import a_connect_server, engine, failing_tools

BAD = (7, 120, 121, 777, 1499)


class Ground:
    """A job, what the local engine makes of it, and a Spark."""

    def __init__(self, folder: Path, remote: str, store: s3.S3) -> None:
        self.folder = folder
        self.remote = remote
        self.store = store
        self.repository = folder / "models"
        put_model(self.repository)
        self.source = put_table(folder / "data", bad=BAD)
        score(self.wish(folder / "local"))
        self.expected = tree(folder / "local")

    def wish(self, sink: Path, **settings) -> Wish:
        return wish(self.repository, self.source, sink, **settings)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("spark")
    with s3.a_store() as store, a_connect_server(folder, **s3.variables(store.url)) as remote:
        yield Ground(folder, remote, store)


def test_the_same_bytes_over_connect(ground: Ground, tmp_path: Path) -> None:
    outcome = score(ground.wish(tmp_path / "out"), engine=engine(ground.remote))
    assert tree(tmp_path / "out") == ground.expected
    assert outcome.scored == 1500
    assert verify(tmp_path / "out").differences == ()
    assert not place_of(tmp_path / "out").work.exists(), "nothing is left beside the sink"


def test_a_job_is_begun_there_and_goes_on_here(ground: Ground, tmp_path: Path) -> None:
    """Bad rows beyond the budget end it after some splits; the local engine does the others."""
    asked = ground.wish(tmp_path / "out")
    few = RunSettings(budget_rows=2)
    with pytest.raises(BudgetSpent, match="rows are bad so far, 2 of 1500"):
        score(asked, few, engine=engine(ground.remote))
    stopped = status.look(asked.sink)
    assert stopped.state == status.STOPPED
    assert 0 < stopped.splits < stopped.total_splits
    outcome = resume(asked.sink, BORNE, tools())
    assert outcome.scored == 1500 - stopped.rows
    assert tree(tmp_path / "out") == ground.expected


def test_what_executors_do_not_see(ground: Ground, tmp_path: Path) -> None:
    """The driver sees a source, and by the time that a task comes to it it is another, or gone."""
    source = put_table(tmp_path / "data")
    asked = wish(ground.repository, source, tmp_path / "out")

    def gone(*_: object) -> None:
        (tmp_path / "data").rename(tmp_path / "elsewhere")

    with pytest.raises(SettingsError, match=r"executor on .*cannot read.*under the same path on the driver and on all"):
        score(asked, engine=engine(ground.remote), on_begin=gone)
    (tmp_path / "elsewhere").rename(tmp_path / "data")

    def other(*_: object) -> None:
        put_table(tmp_path / "data", each=501)

    with pytest.raises(Differs, match="executor on"):
        score(asked, engine=engine(ground.remote), on_begin=other)
    assert not (tmp_path / "out").exists()


def test_a_frame_with_predictions(ground: Ground, tmp_path: Path) -> None:
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.remote(ground.remote).create()
    frame = spark.read.parquet(f"{ground.folder}/data")
    with pytest.raises(SettingsError, match="bad_rows: refuse or keep"):
        octoserve.score(frame, ground.repository, "flawed", columns=["a", "b"], bad_rows="drop")
    with pytest.raises(Differs, match="column c"):
        octoserve.score(frame, ground.repository, "flawed", columns=["a", "c"])
    kept = octoserve.score(
        frame, ground.repository, "flawed", keys=["id"], columns=["a", "b"], prefix="p_", bad_rows="keep"
    )
    assert [(field.name, field.dataType.simpleString()) for field in kept.schema] == [
        ("id", "bigint"), ("p_plus", "array<float>"), ("p_minus", "array<float>"), ("p_error", "string"),
    ]  # fmt: skip
    rows = sorted(kept.collect())
    assert [row.id for row in rows] == list(range(1500))
    assert {row.id for row in rows if row.p_error is not None} == set(BAD)
    assert all(row.p_plus is None for row in rows if row.p_error is not None)
    good = [row for row in rows if row.p_error is None]
    x = np.array([(row.id * 0.5, row.id % 7) for row in good], np.float32)
    assert np.array_equal(np.array([row.p_plus for row in good], np.float32), x + 1)
    with pytest.raises(Exception, match=r"rows of a block are bad, the first one \(id \d+\).*bad_rows='keep'"):
        octoserve.score(frame, ground.repository, "flawed", keys=["id"], columns=["a", "b"]).collect()
    spark.stop()


def test_what_stands_before_and_after_the_model_goes_to_the_executors_too(ground: Ground, tmp_path: Path) -> None:
    put_stepped(tmp_path / "models" / "flawed" / "1")
    trusting = partial(batch_tools, trust=("code",))

    def asked(sink: str) -> Wish:
        return wish(tmp_path / "models", ground.source, tmp_path / sink)

    run(asked("local"), BORNE, trusting())
    run(asked("spark"), BORNE, trusting(engine=engine(ground.remote, trusting)))
    assert tree(tmp_path / "spark") == tree(tmp_path / "local")
    table = result(tmp_path / "local").to_pydict()
    assert table["id"] == list(range(1500))
    told = rows(0, 1500, BAD).to_pydict()
    assert table["total"] == [2 * a + 2 * b + 2 for a, b in zip(told["a"], told["b"], strict=True)]


def test_a_sink_in_an_object_store(ground: Ground, tmp_path: Path) -> None:
    """Executors put parts and journal lines; the driver commits."""
    with s3.used(ground.store.url):
        asked = ground.wish(tmp_path / "out")
        asked = msgspec.structs.replace(asked, sink=f"s3://{s3.BUCKET}/out")
        outcome = score(asked, engine=engine(ground.remote))
        assert outcome.scored == 1500
        assert s3.tree("out") == ground.expected, "nothing else is left"
        lines = ground.wish(tmp_path / "lines", sink_format="jsonl")
        score(lines)
        score(msgspec.structs.replace(lines, sink=f"s3://{s3.BUCKET}/lines"), engine=engine(ground.remote))
        assert s3.tree("lines") == tree(tmp_path / "lines")


def test_hive_partitions_into_csv(ground: Ground, tmp_path: Path) -> None:
    """Columns of the path come through, and the bytes of another format are the local engine's too."""
    for day, start in (("2026-01-01", 0), ("2026-01-02", 500)):
        (tmp_path / "data" / f"day={day}").mkdir(parents=True)
        pq.write_table(rows(start, 500, BAD), tmp_path / "data" / f"day={day}" / "t.parquet", row_group_size=100)
    asked = wish(ground.repository, str(tmp_path / "data"), tmp_path / "local", keys=("day", "id"), sink_format="csv")
    score(asked)
    there = score(msgspec.structs.replace(asked, sink=str(tmp_path / "out")), engine=engine(ground.remote))
    assert tree(tmp_path / "out") == tree(tmp_path / "local")
    days = {row["id"] // 500: row["day"] for row in there.table(["id", "day"]).to_pylist()}
    assert days == {0: "2026-01-01", 1: "2026-01-02"}


def test_from_a_table_of_delta_to_another(ground: Ground, tmp_path: Path) -> None:
    """Executors read the version that the driver has pinned; its commit of the table is the job's."""
    for at in (0, 500):
        write_deltalake(str(tmp_path / "in"), rows(at, 500, BAD), mode="append")
    asked = wish(ground.repository, f"delta:{tmp_path / 'in'}", tmp_path / "local")
    here = score(msgspec.structs.replace(asked, sink=f"delta:{tmp_path / 'local'}"))
    there = score(msgspec.structs.replace(asked, sink=f"delta:{tmp_path / 'out'}"), engine=engine(ground.remote))
    assert there.manifest == here.manifest, "hashes of all parts included"
    table = DeltaTable(tmp_path / "out")
    assert len(table.file_uris()) == len(there.manifest.parts)
    assert sorted(table.to_pyarrow_table().column("id").to_pylist()) == [i for i in range(1000) if i not in BAD]


def test_a_spark_that_gives_up_says_why_in_a_line(ground: Ground, tmp_path: Path) -> None:
    """A full disk fails the task four times; what is there stays, and the job can be resumed."""
    source = put_table(tmp_path / "data", files=1, each=10)
    asked = wish(ground.repository, source, tmp_path / "out")
    with pytest.raises(SparkFailed, match=r"could not do its task on .* No space left on device") as caught:
        score(asked, engine=engine(ground.remote, failing_tools()))
    assert "\n" not in str(caught.value)
    assert resume(asked.sink, BORNE, tools()).manifest.rows == 10
