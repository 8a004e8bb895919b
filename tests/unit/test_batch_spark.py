"""What of the Spark engine needs no Spark: reach and desk, answers, what is shipped, and what errors say."""

from __future__ import annotations

import importlib.util
import py_compile
import socket
import sys
import zipfile
import zipimport
from pathlib import Path
from types import ModuleType, SimpleNamespace

import msgspec
import pytest

from octoserve.connectors.files import LocalFiles
from octoserve.connectors.postgres import PostgresSource
from octoserve.core.errors import InvalidInput, NotFound, OctoserveError, SettingsError
from octoserve.patterns.batch.job import (
    BudgetSpent,
    Difference,
    Differs,
    Fenced,
    Job,
    JobSettings,
    ModelIdentity,
    RunSettings,
)
from octoserve.patterns.batch.journal import Began, Finished, Part
from octoserve.patterns.batch.local import LocalSink
from octoserve.patterns.batch.places import sink_of
from octoserve.patterns.batch.spark import mailbox, session, shipping
from octoserve.patterns.batch.spark.engine import SparkEngine
from octoserve.patterns.batch.spark.mailbox import Answer
from octoserve.patterns.batch.spark.reach import LocalDesk, written
from octoserve.patterns.batch.spark.session import SparkSettings, connect, failure


class Files:
    """As `Tools` has them."""

    files = LocalFiles()


def a_desk(sink: Path) -> LocalDesk:
    work = LocalSink(sink, LocalFiles()).enter(0.0)
    work.begin(Began(token=work.token, host="h", pid=1, at=0.0))
    return LocalDesk(work)


def leave(desk: LocalDesk, attempt: str, split: int = 0, data: bytes = b"part") -> Finished:
    """What an attempt leaves that has ended well."""
    folder = desk.reach.answers / attempt
    folder.mkdir()
    name = f"part-{split:05}.parquet"
    written(folder, name).write_bytes(data)
    line = Finished(split=split, token=desk.reach.token, part=Part(name=name, rows=1, bytes=len(data), sha256=""))
    desk.reach.post(Files(), Answer(split=split, attempt=attempt, host="h", line=line))
    return line


def test_answers_are_seen_once_and_published_by_the_driver(tmp_path: Path) -> None:
    desk = a_desk(tmp_path / "out")
    assert list(desk.look()) == []
    leave(desk, "00000-a", 0), leave(desk, "00003-b", 3)
    seen = list(desk.look())
    assert [answer.split for answer in seen] == [0, 3]
    assert list(desk.look()) == []
    assert not list(desk._work.place.parts.iterdir()), "nothing is published by being there"
    for answer in seen:
        desk.take(answer, answer.line)
    assert {path.name for path in desk._work.place.parts.iterdir()} == {"part-00000.parquet", "part-00003.parquet"}
    assert sorted(LocalSink(tmp_path / "out", LocalFiles()).state().finished) == [0, 3]


def test_a_zombie_of_a_run_before_finds_its_folder_gone(tmp_path: Path) -> None:
    first = a_desk(tmp_path / "out")
    leave(first, "00000-a")
    first._work.release()
    second = a_desk(tmp_path / "out")
    assert second.reach.token == first.reach.token + 1
    with pytest.raises(Fenced):
        first.reach.check()
    with pytest.raises(Fenced):
        first.reach.post(Files(), Answer(split=1, attempt="00001-b", host="h"))
    with pytest.raises(Fenced):
        first.reach.open(Files(), None, None, "00001-c")
    assert list(second.look()) == []
    folders = {path.name for path in second._work.place.work.glob("spark-*")}
    assert folders == {f"spark-{second.reach.token}"}, "the zombie made nothing anew"


def test_a_zombie_finds_its_folder_gone_on_either_engine_and_hinders_no_clearing(tmp_path: Path) -> None:
    first = a_desk(tmp_path / "out")
    leave(first, "00000-a")
    first._work.release()
    work = LocalSink(tmp_path / "out", LocalFiles()).enter(0.0)
    work.begin(Began(token=work.token, host="h", pid=1, at=0.0))
    with pytest.raises(Fenced):
        first.reach.open(Files(), None, None, "00001-c")
    assert not list(work.place.work.glob("spark-*"))
    work.clear()
    assert not work.place.work.exists()


def test_a_driver_that_has_lost_its_lease_takes_nothing(tmp_path: Path) -> None:
    desk = a_desk(tmp_path / "out")
    line = leave(desk, "00000-a")
    lease = desk._work.place.work / "lease.json"
    lease.write_bytes(lease.read_bytes().replace(b'"token":1', b'"token":2'))
    with pytest.raises(Fenced):
        desk.take(next(iter(desk.look())), line)
    assert not list(desk._work.place.parts.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        SettingsError("no job lies there"),
        NotFound("no model"),
        BudgetSpent("7 rows are bad"),
        Fenced("taken over"),
        InvalidInput("no Parquet file"),
        Differs("other than planned", [Difference("library pyarrow", "21", "19", "install pyarrow 21")]),
    ],
)
def test_a_refusal_is_the_error_that_it_was(error: OctoserveError) -> None:
    answer = mailbox.decode(mailbox.encode(mailbox.refusal(3, "00003-a", "worker-7", error)))
    back = mailbox.error_of(answer)
    wanted = OctoserveError if type(error) is InvalidInput else type(error)
    assert type(back) is wanted
    assert "worker-7" in str(back)
    assert str(error).splitlines()[0] in str(back)
    if isinstance(error, Differs):
        assert back.differences == error.differences


def test_the_code_that_is_shipped_can_be_imported_from_its_zip_file(tmp_path: Path) -> None:
    archive = shipping.code_archive(tmp_path)
    assert archive == shipping.code_archive(tmp_path), "equal content, equal name"
    with zipfile.ZipFile(archive) as inside:
        names = set(inside.namelist())
    assert {"octoserve/__init__.py", "octoserve/patterns/batch/spark/task.py"} <= names
    assert not any("__pycache__" in name for name in names)
    finder = zipimport.zipimporter(str(archive))
    assert finder.is_package("octoserve")
    module = _run(zipimport.zipimporter(f"{archive}/octoserve/core"), "errors")
    assert module.__file__.startswith(str(archive))
    assert issubclass(module.SettingsError, module.OctoserveError)


def _run(importer: zipimport.zipimporter, name: str) -> ModuleType:
    spec = importer.find_spec(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_compiled_goes_along_while_it_is_that_of_the_source(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text("X = 42")
    assert shipping._compiled(module, module.read_bytes()) is None
    py_compile.compile(str(module))
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("m.pyc", shipping._compiled(module, module.read_bytes()))
    assert _run(zipimport.zipimporter(str(tmp_path / "m.zip")), "m").X == 42
    module.write_text("X = 4242")
    assert shipping._compiled(module, module.read_bytes()) is None


def test_a_model_is_shipped_as_the_repository_that_it_lies_in(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "m" / "2"
    (folder / "weights").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "weights" / "0").write_bytes(b"numbers")
    (tmp_path / "models" / "m" / "1").mkdir()
    model = ModelIdentity("m", 2, "sha256:ab")
    archive = shipping.model_archive(tmp_path / "models", [model], tmp_path)
    other = shipping.model_archive(tmp_path / "models", [msgspec.structs.replace(model, digest="sha256:cd")], tmp_path)
    assert archive.name != other.name
    with zipfile.ZipFile(archive) as inside:
        assert inside.namelist() == ["m/2/model.onnx", "m/2/weights/0"]
        assert inside.read("m/2/weights/0") == b"numbers"


# What errors say.


def test_without_pyspark_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(SettingsError, match=r"pip install 'octoserve\[spark,batch\]'"):
        connect(SparkSettings(master="local"))


def test_a_query_or_a_database_is_for_the_local_engine(tmp_path: Path) -> None:
    """Said before there is a session."""
    engine = SparkEngine(SparkSettings(), Files)
    query = Job(
        repository="", source=(), model=ModelIdentity("m", 1, ""), files=(), schema=(),
        settings=JobSettings(format=PostgresSource.format), software={}, block_rows=1, splits=(),
    )  # fmt: skip
    with pytest.raises(SettingsError, match=r"a query came; --engine local reads it, and octoserve\.score"):
        engine.begin(query, sink_of(str(tmp_path)), RunSettings())
    files = msgspec.structs.replace(query, settings=JobSettings(format="parquet"))
    with pytest.raises(SettingsError, match=r"postgresql://h/d.* is for --engine local"):
        engine.begin(files, SimpleNamespace(name="postgresql://h/d?table=t"), RunSettings())


def test_where_spark_is_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYSPARK_GATEWAY_PORT", "SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match="--spark-master local"):
        connect(SparkSettings())
    with pytest.raises(SettingsError, match="spark_remote"):
        connect(SparkSettings(master="local", remote="sc://h"))


def test_a_connect_server_that_is_not_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and listens not
        remote = f"sc://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SettingsError, match=f"cannot start with {remote}: .*refused"):
            connect(SparkSettings(remote=remote))
    with pytest.raises(SettingsError, match="sc://host:15002 wanted"):
        connect(SparkSettings(remote="http://h"))


@pytest.mark.parametrize(("home", "said"), [(None, "on the PATH"), ("/nowhere", "in JAVA_HOME=/nowhere")])
def test_without_java_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None, said: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    monkeypatch.setenv("JAVA_HOME", home) if home else monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(SettingsError, match=f"needs Java 17.*{said}"):
        connect(SparkSettings(master="local[2]"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[PYTHON_VERSION_MISMATCH] Python in worker has different version: 3.9 than that in driver: "
            f"{sys.version_info.major}.{sys.version_info.minor}, PySpark cannot run with different minor versions.",
            "the executors run Python 3.9, the driver",
        ),
        (
            "[PACKAGE_NOT_INSTALLED] Pandas >= 2.2.0 must be installed; however, it was not found.",
            "pip install 'octoserve[",
        ),
        ("Traceback ...\nModuleNotFoundError: No module named 'msgspec'\n SQLSTATE: 38000", "has no msgspec; install"),
        (f"Job aborted\n  File x\nRuntimeError: {session.TRY_AGAIN} on h1: OSError: disk full\n at org", "disk full"),
        ("\n  at org.apache.X\nPython worker exited unexpectedly (crashed)\n", "Python worker exited unexpectedly"),
    ],
)
def test_what_ends_a_spark_job_is_said_in_a_line(text: str, said: str) -> None:
    error = failure(RuntimeError(text))
    assert said in str(error)
    assert "\n" not in str(error)
    assert "org.apache" not in str(error)
