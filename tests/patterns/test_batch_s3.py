"""Batch over S3, against a server that speaks it and a proxy that fails as the real one does."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

from octoserve.connectors import objects
from octoserve.core.errors import SettingsError
from octoserve.patterns.batch import object_lease, status
from octoserve.patterns.batch.job import Busy, Differs, Fenced, RunSettings
from octoserve.patterns.batch.lease import LEASE, Holder, is_gone, me
from octoserve.patterns.batch.places import sink_of
from octoserve.patterns.batch.run import resume
from octoserve.patterns.batch.verify import verify
from support import s3
from support.batch import BORNE, put_model, put_table, rows, score, tools, wish
from support.s3 import BUCKET, CARELESS, CUT, S3, SLOW_DOWN, UNANSWERED, Proxy


@pytest.fixture(scope="module")
def store() -> Iterator[S3]:
    with s3.a_store() as found, s3.used(found.url):
        yield found


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    put_model(folder)
    return folder


@pytest.fixture
def here(store: S3, tmp_path: Path) -> str:
    """A place of this test, with `data` in it."""
    put_table(tmp_path / "data")
    s3.put_folder(tmp_path / "data", f"{tmp_path.name}/data")
    return f"s3://{BUCKET}/{tmp_path.name}"


def test_what_lies_in_s3_is_as_what_lies_on_a_disk(repository: Path, here: str, tmp_path: Path) -> None:
    """Same source and sink but for where they lie: same rows, same parts but for the run's id."""
    local = score(wish(repository, str(tmp_path / "data" / "*.parquet"), tmp_path / "out"))
    far = score(wish(repository, f"{here}/data/*.parquet", f"{here}/out"))  # type: ignore[arg-type]
    assert far.table().equals(local.table())
    assert [part.rows for part in far.manifest.parts] == [part.rows for part in local.manifest.parts]
    assert all(file.etag for file in far.manifest.inputs)


def test_hive_partitions_in_s3(repository: Path, store: S3, tmp_path: Path) -> None:
    for day, start in (("2026-01-01", 0), ("2026-01-02", 100)):
        (tmp_path / f"day={day}").mkdir()
        pq.write_table(rows(start, 100), tmp_path / f"day={day}" / "t.parquet")
    s3.put_folder(tmp_path, f"{tmp_path.name}/hive")
    place = f"s3://{BUCKET}/{tmp_path.name}"
    done = score(wish(repository, f"{place}/hive/", f"{place}/out", keys=("day", "id")))  # type: ignore[arg-type]
    days = {row["id"] // 100: row["day"] for row in done.table().to_pylist()}
    assert days == {0: "2026-01-01", 1: "2026-01-02"}


def test_text_and_arrow_from_s3(repository: Path, store: S3, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.csv as pacsv

    table = rows(0, 2000)
    pacsv.write_csv(table, tmp_path / "t.csv")
    with pa.ipc.new_file(str(tmp_path / "t.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    s3.put_folder(tmp_path, tmp_path.name)
    place = f"s3://{BUCKET}/{tmp_path.name}"
    for name in ("t.csv", "t.arrow"):
        far = score(wish(repository, f"{place}/{name}", f"{place}/out-{name}")).table()  # type: ignore[arg-type]
        assert far.equals(score(wish(repository, str(tmp_path / name), tmp_path / f"out-{name}")).table())


@pytest.mark.parametrize("fault", [SLOW_DOWN, UNANSWERED, CUT])
def test_a_store_that_fails_every_fifth_request_loses_nothing(
    repository: Path, here: str, store: S3, fault: str
) -> None:
    one = f"{here}/data/1.parquet"
    expected = score(wish(repository, one, f"{here}/calm")).table()  # type: ignore[arg-type]
    proxy = Proxy(store, lambda number, method, path: fault if number % 5 == 0 else None)
    try:
        with s3.used(proxy.url):
            done = score(wish(repository, one, f"{here}/storm"))  # type: ignore[arg-type]
    finally:
        proxy.close()
    assert proxy.counts[fault] >= 8
    with s3.used(store.url):
        assert verify(f"{here}/storm").differences == ()
        assert done.table().equals(expected)


def test_a_store_without_conditions_is_refused(repository: Path, here: str, store: S3) -> None:
    proxy = Proxy(store, lambda number, method, path: CARELESS)
    try:
        with s3.used(proxy.url), pytest.raises(SettingsError, match="takes no notice of If-None-Match"):
            score(wish(repository, f"{here}/data/", f"{here}/out"))  # type: ignore[arg-type]
    finally:
        proxy.close()


def test_a_source_that_changes_under_the_job(repository: Path, here: str, store: S3, tmp_path: Path) -> None:
    bucket = s3.client(store.url, kind=s3.CountedBucket)
    changed = threading.Event()

    def at(number, name, do, args):
        if name == "complete" and not changed.is_set():
            changed.set()
            objects.bucket(BUCKET).put(f"{tmp_path.name}/data/2.parquet", b"something else")
        return do()

    bucket.at = at
    asked = wish(repository, f"{here}/data/", f"{here}/out")  # type: ignore[arg-type]
    with pytest.raises(Differs, match="while the job runs"):
        score(asked, RunSettings(workers=1), buckets=lambda name: bucket)
    assert sink_of(asked.sink).committed() is None
    with pytest.raises(Differs, match=r"2\.parquet.*ETag"):
        resume(asked.sink, BORNE, tools())


def taken_over(bucket: objects.Bucket, sink: str) -> None:
    """As by a run of another machine, after the lease has ended."""
    key = f"{objects.split_url(sink)[1]}/_octoserve/{LEASE}"
    data, etag = bucket.get(key)
    lease = json.loads(data)
    other = {**lease, "token": lease["token"] + 1, "word": "other", "host": "elsewhere", "machine": "other"}
    bucket.replace(key, json.dumps(other).encode(), etag)


def test_a_run_that_was_taken_over_writes_nothing_more(repository: Path, here: str, store: S3) -> None:
    bucket = s3.client(store.url, kind=s3.CountedBucket)
    asked = wish(repository, f"{here}/data/", f"{here}/out")  # type: ignore[arg-type]
    published = []

    def at(number, name, do, args):
        done = do()
        if name == "complete":
            published.append(args[0])
            if len(published) == 2:
                taken_over(objects.bucket(BUCKET), asked.sink)
        return done

    bucket.at = at
    with pytest.raises(Fenced, match=r"taken over by process .* on elsewhere"):
        score(asked, RunSettings(workers=1), buckets=lambda name: bucket)
    assert len(published) == 2
    with pytest.raises(Busy, match=r"on elsewhere.*ends in"):
        score(asked)
    assert status.look(asked.sink).state == status.RUNNING


def test_a_lease_that_is_not_renewed_ends(here: str, store: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_lease, "LASTS", 2.0)
    monkeypatch.setattr(object_lease, "RENEWED", 0.2)
    first = sink_of(f"{here}/out").enter(1.0)
    taken_over(objects.bucket(BUCKET), f"{here}/out")
    with pytest.raises(Fenced):
        first.check()
    waited = threading.Event()
    for _ in range(100):
        try:
            second = sink_of(f"{here}/out").enter(2.0)
            break
        except Busy:
            waited.wait(0.1)
    assert second.token == 3, "one for each of the three"
    for _ in range(30):  # longer than it lasts: it is renewed
        second.check()
        waited.wait(0.1)
    with pytest.raises(Busy):
        sink_of(f"{here}/out").enter(3.0)
    second.release()
    first.release()


def test_a_process_that_is_gone_is_known_on_its_own_machine() -> None:
    child = subprocess.run(
        [
            sys.executable, "-c",
            "import msgspec; from octoserve.patterns.batch.lease import me; "
            "print(msgspec.json.encode(me(1, 0)).decode())",
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    dead = msgspec.json.decode(child.stdout, type=Holder)
    assert is_gone(dead)
    assert not is_gone(msgspec.structs.replace(dead, machine="another")), "of other machines nothing is known"
    assert not is_gone(me(1, 0.0))


def test_the_command_line_over_s3(repository: Path, here: str, tmp_path: Path) -> None:
    def command(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "octoserve", "batch", *words], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    flags = ["--repository", str(repository), "--model", "flawed", "--source", f"{here}/data/*.parquet"]
    flags += ["--columns", "a,b", "--keys", "id", "--sink", f"{here}/out"]
    assert f"committed 1,500 rows to {here}/out" in command("run", *flags)
    assert "committed" in command("status", f"{here}/out")
    assert "is whole" in command("verify", f"{here}/out")
    assert "committed" in command("list")
    objects.bucket(BUCKET).put(f"{tmp_path.name}/out/part-00000.parquet", b"other")
    assert "part-00000.parquet" in command("verify", f"{here}/out", code=1)
