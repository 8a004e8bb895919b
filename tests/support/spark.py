"""A real Spark: a Connect server of the pyspark wheel, spark-submit, and executors' processes that die at a step."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from octoserve.app import batch_tools
from octoserve.connectors.files import LocalFiles
from octoserve.patterns.batch.run import Tools, Wish, run
from octoserve.patterns.batch.spark.engine import SparkEngine
from octoserve.patterns.batch.spark.session import SparkSettings
from support.batch import BORNE, tools

# Small and quick to start; on loopback, whatever the machine's name resolves to.
JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "512m",
    "spark.driver.extraJavaOptions": JAVA,
    "spark.executor.extraJavaOptions": JAVA,
}


def submit(*arguments: str, **settings: str) -> list[str]:
    """A command of spark-submit."""
    pairs = [f"{name}={value}" for name, value in {**SETTINGS, **settings}.items()]
    program = shutil.which("spark-submit", path=os.path.dirname(sys.executable))
    assert program is not None, "pyspark brings spark-submit"
    return [program, *(word for pair in pairs for word in ("--conf", pair)), *arguments]


def environment(folder: Path, **others: str) -> dict[str, str]:
    """Of a process that is or starts a JVM; SPARK_* and PYSPARK_* of the outside are not meant."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))}
    home = str(Path(importlib.util.find_spec("pyspark").origin).parent)  # spark-submit asks whatever `python3` is
    return {**outside, "SPARK_HOME": home, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_DIRS": str(folder), **others}


@contextlib.contextmanager
def a_connect_server(folder: Path, **variables: str) -> Iterator[str]:
    """`sc://...` of a server with two executor threads that try a task four times. variables: of its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = submit(
        "--master", "local[2,4]", "--class", "org.apache.spark.sql.connect.service.SparkConnectServer",
        **{"spark.connect.grpc.binding.address": "127.0.0.1", "spark.connect.grpc.binding.port": str(port)},
    )  # fmt: skip
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=environment(folder, **variables), start_new_session=True
        )
        try:
            _until_open(port, process, folder / "server.log")
            yield f"sc://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(2400):
        assert process.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise AssertionError(f"no server in four minutes: {log.read_text()[-3000:]}")


def engine(remote: str, tools: Callable[[], Tools] = batch_tools) -> SparkEngine:
    """Of a job on a server. tools: of the executors' processes."""
    return SparkEngine(SparkSettings(remote=remote), tools)


def dying_tools(marker: Path, step: str, number: int, before: bool) -> Callable[[], Tools]:
    """Of executors' processes, the first of which to come to the `number`th step of that name dies there.

    The function goes by value, as executors do not have the tests.
    """
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    told = str(marker)

    return lambda: batch_tools(files=Dying(told, step, number, before))


def failing_tools() -> Callable[[], Tools]:
    """Of executors whose disk is full."""
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return lambda: batch_tools(files=Full())


class Full(LocalFiles):
    """Takes nothing."""

    def write(self, descriptor: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Dying(LocalFiles):
    """The process is gone at a step, the first time that anybody comes there."""

    def __init__(self, marker: str, step: str, number: int, before: bool) -> None:
        self._marker, self._left = marker, number
        real = getattr(self, step)

        def dies(*args: Any) -> Any:
            self._left -= 1
            if self._left == 0 and before:
                self._die()
            done = real(*args)
            if self._left == 0:
                self._die()
            return done

        setattr(self, step, dies)

    def _die(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.kill(os.getpid(), signal.SIGKILL)


_forks = multiprocessing.get_context("forkserver")


def driver_dies(asked: Wish, remote: str, step: str, number: int, before: bool) -> None:
    """A driver that is gone at the `number`th step of that name."""
    process = _forks.Process(target=_drive, args=(asked, remote, step, number, before))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL, f"the driver ended with {process.exitcode}"


def _drive(asked: Wish, remote: str, step: str, number: int, before: bool) -> None:
    files = Dying(f"{asked.sink}.died", step, number, before)
    run(asked, BORNE, tools(files, engine=engine(remote)))


def descendants(pid: int, word: str) -> list[int]:
    """Processes below `pid` whose command line has the word."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry)] = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
    found = []
    for one in parents:
        above, line = one, parents
        while above in line and above != pid:
            above = line[above]
        if above == pid:
            with contextlib.suppress(OSError):
                if word in Path("/proc", str(one), "cmdline").read_text():
                    found.append(one)
    return found
