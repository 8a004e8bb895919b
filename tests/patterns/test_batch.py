"""The batch pattern as its users meet it: what lands in the sink, what is refused, what becomes of bad rows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

import octoserve
from octoserve.cli import main as cli
from octoserve.cli.batch_metrics import families
from octoserve.cli.metrics_page import MetricsServer
from octoserve.connectors.files import DiskTrouble
from octoserve.core.errors import InvalidInput, NotFound, SettingsError
from octoserve.patterns.batch import status
from octoserve.patterns.batch.job import BudgetSpent, Busy, Differs, Fenced, Interrupted, RunSettings
from octoserve.patterns.batch.lease import LEASE, Lease
from octoserve.patterns.batch.manifest import wanted
from octoserve.patterns.batch.run import resume
from octoserve.patterns.batch.verify import verify
from octoserve.patterns.batch.workplace import place_of
from support.batch import (
    BEFORE,
    BORNE,
    CountedFiles,
    Stopping,
    counting,
    dies,
    put_model,
    put_table,
    result,
    rows,
    score,
    tools,
    tree,
    wish,
)
from support.scale import scale


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    put_model(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def source(tmp_path: Path) -> str:
    return put_table(tmp_path / "data")


def half_done(asked, parts=2) -> None:
    """Leave a job that was stopped after so many parts or a few more."""
    files = Stopping(parts)
    with pytest.raises(Interrupted):
        score(asked, files=files, stop=files.stop)
    assert not Path(asked.sink).exists()


def test_predictions_beside_the_keys_in_order(repository: Path, source: str, tmp_path: Path) -> None:
    outcome = score(wish(repository, source, tmp_path / "out"))
    table = result(tmp_path / "out")
    assert table.column_names == ["id", "plus", "minus"]
    ids = np.arange(1500)
    assert np.array_equal(table.column("id"), ids)
    x = np.stack([(ids * 0.5), ids % 7], axis=1).astype(np.float32)
    assert np.array_equal(np.array(table.column("plus").to_pylist(), np.float32), x + 1)
    assert np.array_equal(np.array(table.column("minus").to_pylist(), np.float32), x - 1)
    assert (outcome.scored, outcome.manifest.rows, outcome.manifest.bad_rows) == (1500, 1500, 0)
    assert verify(tmp_path / "out").differences == ()


def test_every_file_says_who_made_it(repository: Path, source: str, tmp_path: Path) -> None:
    done = score(wish(repository, source, tmp_path / "out")).manifest
    for part in done.parts:
        said = pq.read_schema(tmp_path / "out" / part.name).metadata
        assert said[b"octoserve.model"] == b"flawed"
        assert said[b"octoserve.version"] == b"1"
        assert said[b"octoserve.run"].decode() == done.run
        assert said[b"octoserve.digest"].decode() == done.model.digest


def test_the_answers_are_those_of_bare_onnx_runtime(models: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3000, 30)).astype(np.float32)
    columns = {f"f{i}": x[:, i] for i in range(30)}
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"id": np.arange(3000), **columns}), tmp_path / "data" / "t.parquet", row_group_size=700)
    asked = wish(models, str(tmp_path / "data"), tmp_path / "out", columns=(), block_rows=None)
    score(msgspec.structs.replace(asked, model="fraud"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # on several, trees are summed in another order
    session = onnxruntime.InferenceSession(models / "fraud" / "1" / "model.onnx", options)
    label, probabilities = session.run(None, {"features": x})
    table = result(tmp_path / "out")
    assert np.array_equal(table.column("label"), label)
    assert np.array_equal(np.array(table.column("probabilities").to_pylist(), np.float32), probabilities)


def test_text_and_several_inputs(models: Path, build_models, tmp_path: Path) -> None:
    birds, species = build_models.penguin_rows()
    table = pa.Table.from_pylist(birds)
    measures = {name: pa.float32() for name in build_models.PENGUIN_MEASUREMENTS}
    table = table.cast(pa.schema([(name, measures.get(name, pa.string())) for name in table.column_names]))
    table = table.set_column(0, "island", table.column("island").dictionary_encode())
    pq.write_table(table, tmp_path / "birds.parquet")
    asked = wish(models, str(tmp_path / "birds.parquet"), tmp_path / "out", columns=(), keys=(), all_columns=True)
    score(msgspec.structs.replace(asked, model="penguins"))
    scored = result(tmp_path / "out")
    assert scored.column_names[:-2] == table.column_names
    assert np.mean(np.array(scored.column("label").to_pylist()) == np.array(species)) > 0.95


# Bad rows.


def test_bad_rows_go_to_the_sidecar(repository: Path, tmp_path: Path) -> None:
    bad = (0, 63, 64, 99, 777, 1499)
    source = put_table(tmp_path / "data", bad=bad)
    done = score(wish(repository, source, tmp_path / "out", keys=("id", "name"))).manifest
    assert (done.rows_in, done.rows, done.bad_rows) == (1500, 1494, 6)
    assert result(tmp_path / "out").column("id").to_pylist() == [i for i in range(1500) if i not in bad]
    found = pa.concat_tables([pq.read_table(tmp_path / "out" / part.name) for part in done.bad]).to_pylist()
    assert [row["id"] for row in found] == list(bad)
    assert [row["name"] for row in found] == [f"n{i}" for i in bad]
    assert [(Path(row["file"]).name, row["row"]) for row in found] == [(f"{i // 500}.parquet", i % 500) for i in bad]
    assert all("Gather" in row["reason"] for row in found), "the model's own words"


def test_missing_values_are_bad_rows_or_nan_as_the_model_says(repository: Path, tmp_path: Path) -> None:
    table = rows(0, 10).set_column(1, "a", pa.array([None if i == 3 else i for i in range(10)], pa.float32()))
    pq.write_table(table, tmp_path / "t.parquet")
    score(wish(repository, str(tmp_path / "t.parquet"), tmp_path / "refused"))
    (bad,) = wanted(tmp_path / "refused").bad
    (row,) = pq.read_table(tmp_path / "refused" / bad.name).to_pylist()
    assert (row["id"], row["reason"]) == (3, "missing value in column 'a'")
    score(wish(repository, str(tmp_path / "t.parquet"), tmp_path / "nan", missing="nan"))
    assert np.isnan(result(tmp_path / "nan").column("plus").to_pylist()[3][0])
    (repository / "flawed" / "1" / "model.yaml").write_text("missing: nan\nfeatures: [a, b]\n")
    score(wish(repository, str(tmp_path / "t.parquet"), tmp_path / "declared", columns=()))
    assert str(result(tmp_path / "declared").to_pylist()) == str(result(tmp_path / "nan").to_pylist())


@pytest.mark.parametrize(("budget", "ends_well"), [({"budget_rows": 5}, False), ({"budget_rows": 6}, True)])
def test_the_error_budget(repository: Path, tmp_path: Path, budget, ends_well) -> None:
    source = put_table(tmp_path / "data", bad=(0, 63, 64, 99, 777, 1499))
    asked = wish(repository, source, tmp_path / "out")
    settings = RunSettings(workers=1, **budget)
    if ends_well:
        assert score(asked, settings).manifest.bad_rows == 6
        return
    with pytest.raises(BudgetSpent, match="6 rows are bad so far, 5 of 1500"):
        score(asked, settings)
    assert not (tmp_path / "out").exists()
    with pytest.raises(BudgetSpent):
        resume(asked.sink, settings, tools())
    with pytest.raises(BudgetSpent, match="5 of 1500"):
        resume(asked.sink, RunSettings(budget_share=0.5, keep_budget=True), tools())
    assert resume(asked.sink, RunSettings(budget_share=0.004), tools()).manifest.bad_rows == 6


# A sink and its job.


def test_a_job_goes_on_where_it_was(repository: Path, source: str, tmp_path: Path) -> None:
    score(wish(repository, source, tmp_path / "undisturbed"))
    asked = wish(repository, source, tmp_path / "out")
    half_done(asked)
    stopped = status.look(asked.sink)
    assert stopped.state == status.STOPPED
    assert 0 < stopped.splits < stopped.total_splits
    outcome = score(asked)
    assert outcome.scored == 1500 - stopped.rows
    assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")
    assert status.look(asked.sink).state == status.COMMITTED


def test_the_same_job_again_is_done_already(repository: Path, source: str, tmp_path: Path) -> None:
    asked = wish(repository, source, tmp_path / "out")
    first = score(asked)
    again = score(asked)
    assert (again.scored, again.manifest) == (0, first.manifest)
    assert resume(asked.sink, BORNE, tools()).manifest == first.manifest


def test_another_job_is_refused(repository: Path, source: str, tmp_path: Path) -> None:
    asked = wish(repository, source, tmp_path / "out")
    half_done(asked)
    with pytest.raises(Differs, match="setting keys"):
        score(wish(repository, source, tmp_path / "out", keys=("name",)))
    put_model(repository, 2)
    with pytest.raises(Differs, match="flawed/2"):
        score(asked)
    assert resume(asked.sink, BORNE, tools()).manifest.model.version == 1, "resume goes on with what it began with"
    with pytest.raises(SettingsError, match="another job"):
        score(asked)


@pytest.mark.parametrize("change", ["touched", "longer", "gone", "new", "model"])
def test_what_changed_is_refused(repository: Path, source: str, tmp_path: Path, change: str) -> None:
    asked = wish(repository, source, tmp_path / "out")
    half_done(asked)
    before = tree(place_of(asked.sink).parts)
    victim = tmp_path / "data" / "1.parquet"
    if change == "touched":
        os.utime(victim, ns=(1, 1))
    elif change == "longer":
        pq.write_table(rows(0, 600), victim)
    elif change == "gone":
        victim.unlink()
    elif change == "new":
        pq.write_table(rows(0, 5), tmp_path / "data" / "7.parquet")
    else:
        (repository / "flawed" / "1" / "model.yaml").write_text("threads: 1\n")
    with pytest.raises(Differs) as caught:
        resume(asked.sink, BORNE, tools())
    (found,) = caught.value.differences
    assert ("flawed/1" if change == "model" else "data/") in found.what + found.wanted
    assert tree(place_of(asked.sink).parts) == before, "nothing was touched"


def test_an_input_that_changes_under_the_job(repository: Path, source: str, tmp_path: Path) -> None:
    victim = tmp_path / "data" / "2.parquet"

    def at(number, name, do, args):
        if name == "rename" and "part-00000" in str(args[1]):
            os.utime(victim, ns=(5, 5))
        return do()

    with pytest.raises(Differs, match="while the job runs"):
        score(wish(repository, source, tmp_path / "out"), RunSettings(workers=1), files=CountedFiles(at))
    assert not (tmp_path / "out").exists()


def test_a_model_that_changes_under_the_job(repository: Path, source: str, tmp_path: Path) -> None:
    def at(number, name, do, args):
        if name == "rename" and "part-00003" in str(args[1]):
            (repository / "flawed" / "1" / "model.yaml").write_text("threads: 1\n")
        return do()

    with pytest.raises(SettingsError, match="have changed while the job runs"):
        score(wish(repository, source, tmp_path / "out"), files=CountedFiles(at))
    assert not (tmp_path / "out").exists()


def test_a_sink_with_strangers_is_refused(repository: Path, source: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"diary\.txt"):
        score(wish(repository, source, tmp_path / "out"))
    (tmp_path / "out" / "diary.txt").unlink()
    score(wish(repository, source, tmp_path / "out"))
    assert result(tmp_path / "out").num_rows == 1500


def test_a_run_that_was_taken_over_writes_nothing_more(repository: Path, source: str, tmp_path: Path) -> None:
    """On a file system whose locks do not hold: the one with the lower token stops, the other's result stands."""
    asked = wish(repository, source, tmp_path / "out")

    def at(number, name, do, args):
        done = do()
        if name == "rename" and "part-00001" in str(args[1]):
            lease = place_of(asked.sink).work / LEASE
            lease.write_text(lease.read_text().replace('"token":1', '"token":2'))
        return done

    with pytest.raises(Fenced, match="taken over"):
        score(asked, RunSettings(workers=1), files=CountedFiles(at))
    assert not (tmp_path / "out").exists()
    score(asked)
    assert result(tmp_path / "out").num_rows == 1500


def test_a_lease_has_one_holder_and_a_token_that_grows(tmp_path: Path) -> None:
    first = Lease(counting(), tmp_path, 1.0)
    with pytest.raises(Busy, match=f"process {os.getpid()} on"):
        Lease(counting(), tmp_path, 2.0)
    first.check()
    first.release()
    second = Lease(counting(), tmp_path, 3.0)
    assert second.token == first.token + 1
    with pytest.raises(Fenced):
        first.check()
    second.release()


def test_a_part_that_was_lost_is_made_again(repository: Path, source: str, tmp_path: Path) -> None:
    score(wish(repository, source, tmp_path / "undisturbed"))
    asked = wish(repository, source, tmp_path / "out")
    half_done(asked, 3)
    parts = place_of(asked.sink).parts
    (parts / "part-00000.parquet").unlink()
    (parts / "part-00001.parquet").write_bytes(b"short")
    (parts / "part-99999.parquet").write_bytes(b"an orphan")
    score(asked)
    assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")


def test_verify_finds_what_is_not_as_committed(repository: Path, source: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    score(wish(repository, source, out))
    data = bytearray((out / "part-00001.parquet").read_bytes())
    data[100] ^= 1
    (out / "part-00001.parquet").write_bytes(data)
    (out / "part-00002.parquet").unlink()
    (out / "more.parquet").write_bytes(b"")
    found = {d.what for d in verify(out).differences}
    assert found == {"part-00001.parquet", "part-00002.parquet", "more.parquet"}
    with pytest.raises(NotFound):
        verify(tmp_path / "nowhere")


@pytest.mark.parametrize("how", ["budget", "interrupted", "source", "disk", "killed"])
def test_status_says_why_a_job_stopped(repository: Path, tmp_path: Path, octo, how: str) -> None:
    source = put_table(tmp_path / "data", bad=(700, 701))
    asked = wish(repository, source, tmp_path / "out")
    if how == "budget":
        with pytest.raises(BudgetSpent):
            score(asked, RunSettings(workers=1, budget_rows=1))
    elif how == "interrupted":
        half_done(asked)
    elif how == "killed":
        assert dies(asked, 40, BEFORE)
    else:

        def at(number, name, do, args):
            if name == "rename" and "part-00001" in str(args[1]):
                if how == "disk":
                    raise OSError(28, "No space left on device", "part")
                os.utime(tmp_path / "data" / "0.parquet", ns=(5, 5))
            return do()

        with pytest.raises((Differs, DiskTrouble)):
            score(asked, RunSettings(workers=1, budget_share=0.5), files=CountedFiles(at))
    said = {
        "budget": "2 rows are bad so far, 1 of 1500 are borne",
        "interrupted": "interrupted",
        "source": "the source has changed while the job runs",
        "disk": "No space left on device",
        "killed": "killed, or its machine went down: process",
    }
    found = status.look(asked.sink)
    assert said[how] in found.why
    assert (found.changed != ()) == (how == "source")
    code, out, _ = octo("status", "out")
    assert (code, f"stopped  {found.why}".splitlines()[0] in out, "changed  " in out) == (0, True, how == "source")
    if how != "source":
        assert score(asked).manifest.rows == 1498
        assert status.look(asked.sink).why == ""


# Tables of all sorts.


def test_a_table_without_rows(repository: Path, tmp_path: Path) -> None:
    pq.write_table(rows(0, 0), tmp_path / "t.parquet")
    done = score(wish(repository, str(tmp_path / "t.parquet"), tmp_path / "out")).manifest
    assert (done.rows, len(done.parts)) == (0, 1)
    assert result(tmp_path / "out").column_names == ["id", "plus", "minus"]


def test_hive_partitions_are_columns(repository: Path, tmp_path: Path) -> None:
    for day, start in (("2026-01-01", 0), ("2026-01-02", 100), ("__HIVE_DEFAULT_PARTITION__", 200)):
        folder = tmp_path / "data" / f"day={day}" / f"hour={start}"
        folder.mkdir(parents=True)
        pq.write_table(rows(start, 100), folder / "t.parquet")
    (tmp_path / "data" / "_temporary").mkdir()
    (tmp_path / "data" / "_temporary" / "x.parquet").write_bytes(b"not to be read")
    score(wish(repository, str(tmp_path / "data"), tmp_path / "out", keys=("day", "hour", "id")))
    table = result(tmp_path / "out")
    theirs = pads.dataset(tmp_path / "data", partitioning="hive").schema
    assert [table.schema.field(name).type for name in ("day", "hour")] == [pa.string(), pa.int32()]
    assert [theirs.field(name).type for name in ("day", "hour")] == [pa.string(), pa.int32()]
    first = {row["id"] // 100: (row["day"], row["hour"]) for row in table.to_pylist()}
    assert first == {0: ("2026-01-01", 0), 1: ("2026-01-02", 100), 2: (None, 200)}


def test_files_that_are_not_alike_are_refused_before_the_first_row(repository: Path, tmp_path: Path) -> None:
    put_table(tmp_path / "data", files=1)
    other = rows(0, 10)
    pq.write_table(other.set_column(1, "a", other.column("a").cast(pa.float64())), tmp_path / "data" / "9.parquet")
    with pytest.raises(Differs, match=r"column a of .*9\.parquet"):
        score(wish(repository, str(tmp_path / "data"), tmp_path / "out"))
    assert not place_of(tmp_path / "out").work.exists()


def test_a_file_that_is_no_table(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 but nothing else")
    with pytest.raises(InvalidInput, match=r"t\.parquet"):
        score(wish(repository, str(tmp_path / "t.parquet"), tmp_path / "out"))
    with pytest.raises(SettingsError, match="matches none"):
        score(wish(repository, str(tmp_path / "*.pq"), tmp_path / "out"))


def test_a_damaged_page_ends_the_job_with_the_files_name(repository: Path, tmp_path: Path) -> None:
    put_table(tmp_path / "data", files=1)
    path = tmp_path / "data" / "0.parquet"
    data = bytearray(path.read_bytes())
    data[40:400] = os.urandom(360)
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match=r"0\.parquet cannot be read"):
        score(wish(repository, str(path), tmp_path / "out"))


def test_columns_that_nobody_could_write_or_tell_apart(repository: Path, tmp_path: Path) -> None:
    table = rows(0, 10).append_column("odd", pa.nulls(10, pa.month_day_nano_interval()))
    with pa.ipc.new_file(str(tmp_path / "odd.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(SettingsError, match="column odd"):
        score(wish(repository, str(tmp_path / "odd.arrow"), tmp_path / "out", all_columns=True))
    assert not place_of(tmp_path / "out").work.exists()
    pq.write_table(rows(0, 10).append_column("a", pa.array([1] * 10)), tmp_path / "twice.parquet")
    with pytest.raises(InvalidInput, match="'a' is there twice"):
        score(wish(repository, str(tmp_path / "twice.parquet"), tmp_path / "out"))


def test_a_model_that_takes_no_rows_or_has_effects_is_refused(models: Path, repository: Path, tmp_path: Path) -> None:
    source = put_table(tmp_path / "data", files=1)
    with pytest.raises(SettingsError, match="takes no tables"):
        score(msgspec.structs.replace(wish(models, source, tmp_path / "out"), model="fixed"))
    (repository / "flawed" / "1" / "model.yaml").write_text("effects: external\n")
    with pytest.raises(SettingsError, match="effects"):
        score(wish(repository, source, tmp_path / "out"))
    with pytest.raises(NotFound, match="no version 9"):
        score(wish(repository, source, tmp_path / "out", version=9))


# Trouble.

CHILD = """
import resource, sys
sys.path.insert(0, "tests")
from pathlib import Path
from support.batch import score, tools, wish
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    score(wish(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), split_bytes=1 << 20, all_columns=True, keys=()))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_disk_that_takes_no_more(repository: Path, tmp_path: Path) -> None:
    """A limit on a file's size fails as a full disk does: at a write, in the middle of a part."""
    source = put_table(tmp_path / "data", files=2, each=20_000)
    child = [sys.executable, "-c", CHILD, str(repository), source, str(tmp_path / "out"), "60000"]
    ended = subprocess.run(child, capture_output=True, text=True, timeout=120)
    assert ended.stdout.startswith("DiskTrouble cannot write"), ended.stdout + ended.stderr
    assert not (tmp_path / "out").exists()
    assert list(place_of(tmp_path / "out").temp.iterdir()) == []
    resume(tmp_path / "out", BORNE, tools())
    assert result(tmp_path / "out").num_rows == 40_000


def test_memory_does_not_grow_with_the_table(repository: Path, tmp_path: Path) -> None:
    """And it is done with little: the second time under a limit on the process's addresses."""
    used = []
    for files in (1, scale(10, 100)):
        source = put_wide(tmp_path / f"data{files}", files)
        flags = ["--repository", str(repository), "--model", "flawed", "--source", source, "--columns", "a,b"]
        flags += ["--sink", str(tmp_path / f"out{files}"), "--state-dir", str(tmp_path), "--bytes-in-flight", "8MB"]
        limit = f'ulimit -v {800 << 10 if files > 1 else "unlimited"}; exec "$@"'
        command = [sys.executable, "-m", "octoserve", "batch", "run", *flags, "--workers", "2"]
        used.append(peak_memory(["bash", "-c", limit, "bash", *command]))
    assert used[1] < used[0] + 60, f"{used} MB: a table ten times as large takes no more"
    assert used[1] < 4 * 8 + 300


@pytest.mark.full
@pytest.mark.parametrize("name", ["parquet", "csv"])
def test_twenty_gigabytes_under_a_limit_of_one(tmp_path: Path, name: str) -> None:
    """20 million rows of 256 numbers; by the program that is there to measure it."""
    program = Path(__file__).parents[2] / "bench" / "batch_scale.py"
    asked = ["20", "--width", "256", "--limit", "1GB", "--sink-format", name, "--folder", str(tmp_path)]
    told = subprocess.run([sys.executable, str(program), *asked], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert "20 million rows   20.64 GB" in told


def peak_memory(command: list[str]) -> float:
    """MB that the command had resident at most.

    A process's peak counts what its parent had when it was forked, and this one may have a GB by now: a small
    process forks it and reads the figure.
    """
    read = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
    read += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    told = subprocess.run([sys.executable, "-c", read, *command], check=True, stdout=subprocess.PIPE, text=True)
    return int(told.stdout.splitlines()[-1]) / 1024


def put_wide(folder: Path, files: int) -> str:
    """One row group of 200,000 rows a file: half of what is in flight by default here."""
    folder.mkdir()
    table = pa.table(
        {
            "id": np.arange(200_000),
            "a": np.zeros(200_000, np.float32),
            "b": np.ones(200_000, np.float32),
        }
    )
    for number in range(files):
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=200_000)
    return str(folder / "*.parquet")


# Text and Arrow.


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "arrow"])
def test_other_formats_give_what_parquet_gives(repository: Path, tmp_path: Path, ending: str) -> None:
    table = rows(0, 3000, bad=(1234,))
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / f"t.{ending}"
    if ending == "arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        pacsv.write_csv(table, path, pacsv.WriteOptions(delimiter="\t" if ending == "tsv" else ","))
    pq.write_table(table, tmp_path / "t.parquet")
    score(wish(repository, str(tmp_path / "t.parquet"), tmp_path / "expected"))
    done = score(wish(repository, str(tmp_path / "data"), tmp_path / "out")).manifest
    assert (done.rows, done.bad_rows) == (2999, 1)
    assert result(tmp_path / "out").equals(result(tmp_path / "expected"))


def test_bad_records_of_a_text_go_to_the_sidecar(repository: Path, tmp_path: Path) -> None:
    lines = [f"{i},{i / 2},{i % 7}" for i in range(500)]
    lines[0], lines[77], lines[499] = "0,?,1", "77,1", "499,3,"
    (tmp_path / "t.csv").write_text("id,a,b\n" + "\n".join(lines) + "\n")
    done = score(wish(repository, str(tmp_path / "t.csv"), tmp_path / "out")).manifest
    assert (done.rows_in, done.bad_rows) == (500, 3)
    found = pq.read_table(tmp_path / "out" / done.bad[0].name).to_pylist()
    assert [(row["row"], row["id"]) for row in found] == [(0, 0), (77, None), (499, 499)]
    assert [
        word in row["reason"] for word, row in zip(("'a'", "'id'", "missing value in column 'b'"), found, strict=True)
    ]
    assert "?" in found[0]["reason"]


def test_a_number_too_large_for_the_models_integers_is_a_bad_row(models: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("input\n7\n300\n-129\n-128\n")
    asked = wish(models, str(tmp_path / "t.csv"), tmp_path / "out", keys=(), columns=("input",), prefix="p_")
    done = score(msgspec.structs.replace(asked, model="echo_int8")).manifest
    assert [value for row in result(tmp_path / "out").to_pylist() for value in row["p_output"]] == [7, -128]
    assert done.bad_rows == 2


# Sinks of other formats than Parquet.


@pytest.mark.parametrize("name", ["csv", "jsonl", "arrow"])
def test_a_sink_of_another_format_says_what_parquet_says(repository: Path, tmp_path: Path, name: str) -> None:
    """The same rows, types and bad rows; and who made them, in every file or beside it."""
    source = put_table(tmp_path / "data", bad=(7, 900))
    asked = {"keys": ("id", "name"), "columns": ("a", "b")}
    one = score(wish(repository, source, tmp_path / "parquet", **asked))
    other = score(wish(repository, source, tmp_path / "out", **asked, sink_format=name))
    assert other.table().cast(one.table().schema).equals(one.table())
    assert other.table(["plus"]).column_names == ["plus"]
    assert other.bad_rows().cast(one.bad_rows().schema).equals(one.bad_rows())
    assert other.manifest.run != one.manifest.run
    assert msgspec.UNSET not in (other.manifest.settings.sink_format, one.manifest.settings.split_bytes)
    assert {Path(part.name).suffix for part in (*other.manifest.parts, *other.manifest.bad)} == {f".{name}"}
    assert verify(tmp_path / "out").differences == ()
    told = json.loads((tmp_path / "out" / "_SUCCESS").read_text())
    assert (told["model"]["version"], told["run"]) == (1, other.manifest.run)
    if name == "arrow":
        part = pa.ipc.open_file(str(tmp_path / "out" / "part-00000.arrow"))
        assert part.schema.metadata[b"octoserve.run"].decode() == other.manifest.run
        assert part.schema.metadata[b"octoserve.version"] == b"1"
    (tmp_path / "out" / f"part-00001.{name}").write_bytes(b"x")
    assert [d.what for d in verify(tmp_path / "out").differences] == [f"part-00001.{name}"]


def test_a_csv_sink_is_the_next_jobs_source(repository: Path, source: str, tmp_path: Path) -> None:
    first = score(wish(repository, source, tmp_path / "first", keys=("id", "a", "b"), sink_format="csv"))
    assert (
        (tmp_path / "first" / "part-00000.csv").read_text().startswith("id,a,b,plus_0,plus_1,minus_0,minus_1\n0,0.0,")
    )
    score(wish(repository, str(tmp_path / "first"), tmp_path / "second", keys=("id",)))
    assert result(tmp_path / "second").equals(first.table(["id", "plus", "minus"]))


def test_parts_without_a_row_are_no_hindrance(repository: Path, tmp_path: Path) -> None:
    """All rows of the first split were bad; a JSON lines file of no lines does not even tell its columns."""
    source = put_table(tmp_path / "data", bad=tuple(range(200)))
    for name in ("jsonl", "csv", "arrow"):
        sink = tmp_path / name
        first = score(wish(repository, source, sink, keys=("id", "a", "b"), sink_format=name))
        assert first.table().num_rows == 1300
        assert first.manifest.parts[0].rows == 0
        score(wish(repository, str(sink), tmp_path / f"{name}-2", keys=("id",)))
        assert result(tmp_path / f"{name}-2").column("id").to_pylist() == list(range(200, 1500))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "t.jsonl").touch()
    with pytest.raises(InvalidInput, match="has no records"):
        score(wish(repository, str(tmp_path / "none"), tmp_path / "out"))


def test_formats_that_are_refused_before_the_first_row(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = rows(0, 10).append_column("raw", pa.array([b"x"] * 10)).append_column("many", pa.array([[1]] * 10))
    pq.write_table(table, tmp_path / "data" / "t.parquet")
    asked = wish(repository, str(tmp_path / "data"), tmp_path / "out")

    def with_settings(**settings):
        return msgspec.structs.replace(asked, settings=msgspec.structs.replace(asked.settings, **settings))

    with pytest.raises(SettingsError, match=r"column many of type list.* cannot be written as csv"):
        score(with_settings(sink_format="csv", keys=("id", "many")))
    with pytest.raises(SettingsError, match=r"column raw of type binary cannot be written as JSON lines"):
        score(with_settings(sink_format="jsonl", all_columns=True))
    with pytest.raises(SettingsError, match=r"--sink-format: for a folder.* is a table"):
        score(msgspec.structs.replace(with_settings(sink_format="csv"), sink=f"delta:{tmp_path / 'd'}"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "models"]
    half_done(msgspec.structs.replace(with_settings(sink_format="csv"), source=(put_table(tmp_path / "more"),)))
    with pytest.raises(Differs, match="setting sink_format: csv wanted, parquet came"):
        score(msgspec.structs.replace(asked, source=(str(tmp_path / "more" / "*.parquet"),)))


# From Python, and from the command line.


def test_from_python(repository: Path, source: str, tmp_path: Path) -> None:
    asked = {"keys": ["id"], "columns": ["a", "b"]}
    seen = []
    done = octoserve.batch(
        repository, "flawed", source, tmp_path / "out", **asked, on_begin=lambda job, *_: seen.append(job.rows)
    )
    assert done.table(["id"]).column("id").to_pylist() == list(range(1500))
    assert (done.bad_rows(), seen) == (None, [1500])
    assert octoserve.batch(repository, "flawed", source, tmp_path / "out", **asked).scored == 0
    with pytest.raises(SettingsError, match="error_budget"):
        octoserve.batch(repository, "flawed", source, tmp_path / "out", error_budget="much")
    with pytest.raises(SettingsError, match="did you mean 'keys'"):
        octoserve.batch(repository, "flawed", source, tmp_path / "out", key=["id"])


def test_what_a_notebook_shows(repository: Path, source: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """A cell has a bar that is replaced, the answer is a small table, and a data frame is a call away."""
    shown = []

    class Display:
        def __call__(self, what, display_id):
            self.update(what)
            return self

        def update(self, what):
            shown.append(what._repr_html_())

    ipython = SimpleNamespace(
        get_ipython=lambda: SimpleNamespace(kernel=object()), display=SimpleNamespace(display=Display())
    )
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    done = octoserve.batch(repository, "flawed", source, tmp_path / "out", keys=["id"], columns=["a", "b"])
    assert shown[-1].startswith('<progress max="1500" value="1500"></progress> 1,500 of 1,500 rows (100.0%)')
    assert "<th>rows</th><td>1,500</td>" in done._repr_html_()
    assert repr(done).startswith(
        f"<Outcome sink {tmp_path / 'out'}, model flawed version 1, rows 1,500, bad rows 0, run"
    )
    assert len(repr(done)) < 300
    frame = done.to_pandas(["id", "plus"])
    assert list(frame.columns) == ["id", "plus"]
    assert frame["plus"][3].tolist() == [2.5, 4.0]
    with pytest.raises(SettingsError, match="--shadow"):
        done.report()
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_nothing_is_shown_unless_somebody_looks(repository: Path, source: str, tmp_path: Path, capsys) -> None:
    octoserve.batch(repository, "flawed", source, tmp_path / "out", columns=["a", "b"])
    assert capsys.readouterr().err == ""


@pytest.fixture
def octo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run `octoserve batch ...` here: exit code, what it printed, what it complained of."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["octoserve", "batch", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


FLAGS = ("run", "--repository", "models", "--model", "flawed", "--columns", "a,b", "--keys", "id")


def test_the_command_line(octo, repository: Path, tmp_path: Path) -> None:
    put_table(tmp_path / "data", bad=(7, 8))
    code, out, err = octo(*FLAGS, "--source", "data/*.parquet", "--sink", "out")
    assert (code, "committed 1,498 rows" in out, "2 bad rows" in out) == (0, True, True), err
    assert "scoring 1,500 rows of 3 files with flawed version 1" in err
    code, out, _ = octo("status", "out")
    assert (code, "committed" in out, "1,500 of 1,500" in out) == (0, True, True)
    assert octo("verify", "out")[0] == 0
    code, out, _ = octo("list")
    assert str(tmp_path / "out") in out, "in one piece"
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    code, out, _ = octo("list")
    assert (code, out.splitlines()[1].split()[0]) == (0, "none")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_SUCCESS").write_text("{}")
    code, out, err = octo("list")
    assert (code, out.splitlines()[1].split()[0]) == (0, "unknown")
    assert "is not a manifest" in err
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "elsewhere").rename(tmp_path / "out")
    code, out, _ = octo("resume", "out", "--json")
    assert json.loads(out)["scored"] == 0
    (tmp_path / "out" / "part-00000.parquet").write_bytes(b"")
    code, _, err = octo("verify", "out")
    assert (code, "part-00000.parquet" in err) == (1, True)
    code, _, err = octo(*FLAGS, "--source", "data/*.parquet", "--sink", "lines", "--sink-format", "jsonl")
    assert code == 0, err
    assert json.loads((tmp_path / "lines" / "part-00000.jsonl").read_text().splitlines()[0])["plus"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--source", "data/*.parquet", "--error-budget", "1"), 3, "octoserve batch resume out"),
        (("--source", "data/*.parquet", "--error-budget", "x"), 2, "--error-budget: a number of rows"),
        (("--source", "nothing/*"), 2, "matches none"),
        (("--source", "data/*.parquet", "--columns", "a,name"), 2, "column name"),
        (("--source", "data/*.parquet", "--version", "3"), 2, "no version 3"),
        ((), 2, "source: wanted"),
        (("--source", "data/*.parquet", "--sink-format", "xml"), 2, "--sink-format: "),
        (("--source", "data/*.parquet", "--metrics-port", "-1"), 2, "--metrics-port"),
    ],
)
def test_exit_codes(octo, repository: Path, tmp_path: Path, flags, code, says) -> None:
    put_table(tmp_path / "data", bad=(7, 8))
    found, _, err = octo(*FLAGS, "--sink", "out", *flags)
    assert (found, says in err) == (code, True), err
    assert not (tmp_path / "out").exists()


def test_who_resumes_bears_no_more_bad_rows_than_before_unless_told(octo, repository: Path, tmp_path: Path) -> None:
    put_table(tmp_path / "data", bad=(7, 8, 9))
    flags = (*FLAGS, "--source", "data/*.parquet", "--sink", "out")
    assert octo(*flags, "--error-budget", "2")[0] == 3
    assert octo("resume", "out")[0] == 3, "1 % of 1,500 rows would be 15"
    (tmp_path / "octoserve.yaml").write_text(json.dumps({"repository": "models", "batch": {"error_budget": 100}}))
    code, _, err = octo("resume", "out", "--spec", "octoserve.yaml")
    assert (code, "2 of 1500" in err) == (3, True), "a file of settings is no word of now"
    assert octo("resume", "out", "--error-budget", "1%")[0] == 0


def test_the_spec(octo, repository: Path, source: str, tmp_path: Path) -> None:
    section = {"model": "flawed", "source": source, "sink": "out", "columns": ["a", "b"], "keys": "id"}
    (tmp_path / "octoserve.yaml").write_text(json.dumps({"repository": "models", "batch": section}))
    assert octo("run", "--spec", "octoserve.yaml", "--keys", "id,name")[0] == 0
    assert result(tmp_path / "out").column_names[:2] == ["id", "name"], "a flag wins"


def test_metrics_while_it_runs(repository: Path, source: str, tmp_path: Path) -> None:
    pages = []

    def look(job, matched, progress) -> None:
        server = MetricsServer("127.0.0.1", 0, lambda: families(job, progress))
        with urllib.request.urlopen(server.url) as answer:
            pages.append(answer.read().decode())
        server.close()

    asked = wish(repository, source, tmp_path / "out")
    half_done(asked, 3)
    before = status.look(asked.sink).rows
    assert before > 0
    score(asked, on_begin=look)
    values = dict(line.rsplit(" ", 1) for line in pages[0].splitlines() if not line.startswith("#"))
    (rows_done,) = [float(v) for k, v in values.items() if k.startswith("octoserve_batch_rows_total{")]
    assert rows_done == before, "what earlier runs did is counted"
    (left,) = [float(v) for k, v in values.items() if k.startswith("octoserve_batch_seconds_left{")]
    assert left > 0, "an estimate before the first row of this run"
