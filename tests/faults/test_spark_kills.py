"""kill -9 of a Spark job's driver and of its executors: the sink is that of a local run that nobody disturbed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from octoserve.patterns.batch import status
from octoserve.patterns.batch.run import Wish, resume
from octoserve.patterns.batch.workplace import place_of
from support.batch import BORNE, put_model, put_table, score, tools, tree, wish
from support.scale import scale
from support.spark import a_connect_server, descendants, driver_dies, dying_tools, engine, environment, submit

BAD = (7, 120, 121, 777, 1499)
EXECUTOR_STEPS = [("rename", 1, False), ("fsync", 2, True), ("create", 1, False), ("fsync_folder", 1, True)]
"""After its first answer is there; before the second file is on the disk; ..."""
DRIVER_STEPS = [("rename", 6, True), ("rename", 6, False), ("rename", 5, True), ("write", 9, False)]
"""Around the publishing of a part, when others are journaled; ..."""


class Ground:
    """A job, what the local engine makes of it, and a Spark."""

    def __init__(self, folder: Path, remote: str) -> None:
        self.folder = folder
        self.remote = remote
        self.repository = folder / "models"
        put_model(self.repository)
        self.source = put_table(folder / "data", bad=BAD)
        score(self.wish(folder / "local"))
        self.expected = tree(folder / "local")

    def wish(self, sink: Path) -> Wish:
        return wish(self.repository, self.source, sink)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("spark")
    with a_connect_server(folder) as remote:
        yield Ground(folder, remote)


@pytest.mark.parametrize(("step", "number", "before"), EXECUTOR_STEPS[: scale(2, 4)])
def test_an_executor_dies_and_spark_does_its_task_again(
    ground: Ground, tmp_path: Path, step: str, number: int, before: bool
) -> None:
    marker = tmp_path / "died"
    score(ground.wish(tmp_path / "out"), engine=engine(ground.remote, dying_tools(marker, step, number, before)))
    assert marker.exists()
    assert tree(tmp_path / "out") == ground.expected
    assert not place_of(tmp_path / "out").work.exists(), "nothing is left beside the sink"


@pytest.mark.parametrize(("step", "number", "before"), DRIVER_STEPS[: scale(2, 4)])
def test_the_driver_dies_and_the_job_goes_on(
    ground: Ground, tmp_path: Path, step: str, number: int, before: bool
) -> None:
    """Its tasks go on for a while in the server, beside the new driver's; on either engine."""
    asked = ground.wish(tmp_path / "out")
    driver_dies(asked, ground.remote, step, number, before)
    assert not (tmp_path / "out").exists()
    stopped = status.look(asked.sink)
    assert stopped.state == status.STOPPED
    others = {"engine": engine(ground.remote)} if before else {}
    outcome = resume(asked.sink, BORNE, tools(**others))
    assert outcome.scored == 1500 - stopped.rows
    assert tree(tmp_path / "out") == ground.expected


def test_an_executor_s_jvm_dies_under_spark_submit(ground: Ground, tmp_path: Path) -> None:
    """Two executors, each a JVM of its own with Python workers that get Python, model and code from the driver."""
    source, sink = put_table(tmp_path / "data", files=6, each=1000, bad=BAD), tmp_path / "out"
    score(wish(ground.repository, source, tmp_path / "local"))
    (tmp_path / "job.py").write_text("from octoserve.cli.main import main\n\nmain()\n")
    flags = ["--repository", str(ground.repository), "--model", "flawed", "--source", source, "--keys", "id"]
    flags += ["--columns", "a,b", "--split-size", "3000", "--block-rows", "64", "--error-budget", "50%"]
    command = submit(
        "--master", "local-cluster[2,1,512]", "--archives", f"{an_environment(tmp_path)}#environment",
        str(tmp_path / "job.py"), "batch", "run", "--engine", "spark", *flags, "--sink", str(sink),
        **{"spark.executor.memory": "512m", "spark.pyspark.driver.python": sys.executable,
           "spark.pyspark.python": "./environment/bin/python3"},
    )  # fmt: skip
    outside = environment(tmp_path)
    del outside["PYSPARK_PYTHON"]
    work = Path(outside["SPARK_HOME"], "work")  # such a cluster knows no other place for its executors
    before = set(work.glob("app-*"))
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(command, env=outside, stdout=log, stderr=log, cwd=tmp_path)
        while process.poll() is None and not (place_of(sink).has_work() and status.look(sink).splits):
            time.sleep(0.05)
        executors = descendants(process.pid, "CoarseGrainedExecutorBackend")
        os.kill(executors[0], signal.SIGKILL)
        process.wait(600)
        for folder in set(work.glob("app-*")) - before:
            shutil.rmtree(folder)
        log.seek(0)
        assert process.returncode == 0, log.read()[-5000:]
    assert tree(sink) == tree(tmp_path / "local")


def an_environment(folder: Path) -> Path:
    """A Python for executors as an archive, as `deploy emr` has one: here a link to this one, with its libraries."""
    (folder / "environment" / "bin").mkdir(parents=True)
    python = folder / "environment" / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with tarfile.open(folder / "environment.tar.gz", "w:gz") as archive:
        archive.add(folder / "environment", ".")
    return folder / "environment.tar.gz"
