"""The one way to pyspark: a session of either kind (classic, Connect), and its errors in words.

pyspark is imported when a job asks for Spark. Executors import this module too, and find their files by it.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from octoserve.core.errors import OctoserveError, SettingsError

DataFrame = Any
Session = Any
"""pyspark's types are not those of strict checking; these names say what is meant."""

Task = Callable[[Iterator[Any]], Iterator[Any]]
"""What `mapInArrow` takes: record batches in, record batches out."""

_PORT, _PATIENCE = 15002, 10.0
"""Of a Connect server whose address names none; seconds that one may take to answer at all."""
_SET_UP = {"PYSPARK_GATEWAY_PORT", "SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED"}
"""Of which spark-submit and others set one, for a session that waits to be taken."""
TRY_AGAIN = "octoserve could not do its task"
"""How the message of what Spark shall try again begins."""


class SparkFailed(OctoserveError):
    """Spark gave up on the job; what is journaled stays."""

    reason = "spark"


class SparkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where Spark is. Neither: the session that this process has, or spark-submit's."""

    master: str = ""
    remote: str = ""


def pyspark(part: str = "") -> Any:
    """The library, or a part of it (`sql`, `sql.types`, ...). Raises SettingsError."""
    try:
        return importlib.import_module(f"pyspark.{part}" if part else "pyspark")
    except ImportError as error:
        wanted = "which is not installed" if error.name in ("pyspark", None) else f"and it needs {error.name}"
        raise SettingsError(f"the Spark engine needs pyspark, {wanted}: pip install 'octoserve[spark,batch]'") from None


class Spark:
    """A session, classic or of Spark Connect."""

    def __init__(self, session: Session, ours: bool = False) -> None:
        """ours: it ends with us."""
        self.session = session
        self.connect = type(session).__module__.startswith("pyspark.sql.connect")
        self._ours = ours

    @property
    def local(self) -> bool:
        """Whether tasks run on this machine with this Python, and so with this octoserve."""
        if self.connect:
            return False
        context = self.session.sparkContext
        local = context.master == "local" or context.master.startswith("local[")
        return bool(local and context.pythonExec == sys.executable)

    def slots(self) -> int:
        """How many tasks run at once, as far as it is known now: executors may come and go."""
        if self.connect:
            return max(1, int(self.session.conf.get("spark.default.parallelism", "1")))
        return max(1, int(self.session.sparkContext.defaultParallelism))

    def ship_archive(self, path: Path) -> None:
        """A zip file, unpacked on every executor; see `unpacked`."""
        if self.connect:
            self.session.addArtifacts(str(path), archive=True)
        else:
            self.session.sparkContext.addArchive(str(path))

    def ship_code(self, path: Path) -> None:
        """A zip file of Python modules, importable on every executor."""
        if self.connect:
            self.session.addArtifacts(str(path), pyfile=True)
        else:
            self.session.sparkContext.addPyFile(str(path))

    def run(self, count: int, task: Task, schema: str, tag: str) -> list[Any]:
        """A job of `count` partitions, each of one row with its number; the task's rows. Blocks; see `cancel`.

        Raises what `failure` tells apart.
        """
        if self.connect:
            self.session.addTag(tag)
        else:
            self.session.sparkContext.addJobTag(tag)
        frame = self.session.range(0, count, 1, count)
        return list(frame.mapInArrow(task, schema).collect())

    def cancel(self, tag: str) -> None:
        """End a job that another thread waits for."""
        if self.connect:
            self.session.interruptTag(tag)
        else:
            self.session.sparkContext.cancelJobsWithTag(tag)

    def close(self) -> None:
        """End the session, if it is ours."""
        if self._ours:
            self.session.stop()


def unpacked(archive: str) -> Path:
    """On an executor: where an archive's files are."""
    return Path(pyspark().SparkFiles.get(archive))


def connect(settings: SparkSettings) -> Spark:
    """The session that is meant; a new one if there is none. Raises SettingsError."""
    if settings.master and settings.remote:
        raise SettingsError("spark_master: not beside spark_remote; a session is of one or of the other")
    if not (settings.master or settings.remote or _SET_UP & os.environ.keys() or "pyspark.sql" in sys.modules):
        raise _nowhere()
    try:
        if settings.remote:
            _knock(settings.remote)
        builder = pyspark("sql").SparkSession.builder
        if settings.remote:
            return Spark(builder.remote(settings.remote).getOrCreate(), ours=True)
        if settings.master:
            return _classic(builder, settings.master)
        active = pyspark("sql").SparkSession.getActiveSession()
        if active is not None:
            return Spark(active)
        if _SET_UP & os.environ.keys():
            return Spark(builder.getOrCreate(), ours=True)
    except OctoserveError:
        raise
    except Exception as error:
        where = settings.remote or settings.master or "the session that was set up"
        raise SettingsError(f"Spark: cannot start with {where}: {_reason(error)}") from None
    raise _nowhere()


def _nowhere() -> SettingsError:
    return SettingsError(
        "engine: spark needs to know where: --spark-master local[2], spark://host:7077, yarn, ...; --spark-remote "
        "sc://host for Spark Connect; or run under spark-submit, which says it"
    )


def _knock(remote: str) -> None:
    """pyspark goes on trying for many minutes. Raises OSError, SettingsError if nobody is there."""
    where = urlsplit(remote)
    if where.scheme != "sc":
        raise SettingsError(f"spark_remote: sc://host:15002 wanted, {remote!r} came")
    socket.create_connection((where.hostname or "", where.port or _PORT), _PATIENCE).close()


def _classic(builder: Any, master: str) -> Spark:
    if "PYSPARK_GATEWAY_PORT" not in os.environ:
        java = Path(os.environ.get("JAVA_HOME", ""), "bin", "java")
        if not shutil.which(str(java) if "JAVA_HOME" in os.environ else "java"):
            where = f"in JAVA_HOME={os.environ['JAVA_HOME']}" if "JAVA_HOME" in os.environ else "on the PATH"
            raise SettingsError(f"Spark needs Java 17 or later, none is {where}; install one, or set JAVA_HOME")
    if master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else whatever `python3` is
    builder = builder.master(master).appName("octoserve batch").config("spark.ui.showConsoleProgress", "false")
    session = builder.getOrCreate()
    if "SPARK_CONF_DIR" not in os.environ:  # what ends a job we say in a line, not in two languages' stacks
        session.sparkContext.setLogLevel("FATAL")
    return Spark(session, ours=True)


_PYTHONS = re.compile(r"different (?:minor )?version[^\n]*?(\d+\.\d+)[^\n]*?(\d+\.\d+)", re.DOTALL)
_LACKS = re.compile(r"No module named '([\w.]+)'")
_SAID = re.compile(re.escape(TRY_AGAIN) + r"[^\n]*")


def failure(error: Exception) -> OctoserveError:
    """What ended a job, in words: a setting that is wrong on the executors, or SparkFailed."""
    text = str(error)
    if "PYTHON_VERSION_MISMATCH" in text or _PYTHONS.search(text):
        found = _PYTHONS.search(text)
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        others = sorted({version for version in found.groups() if version != here}) if found else []
        there = f"Python {others[0]}" if others else "another Python"
        return SettingsError(
            f"the executors run {there}, the driver Python {here}; give both the same: PYSPARK_PYTHON, or "
            "spark.pyspark.python, names the executors'"
        )
    if "PACKAGE_NOT_INSTALLED" in text:
        return SettingsError(f"Spark: {_reason(error)} It comes with pip install 'octoserve[spark,batch]'")
    lacks = _LACKS.search(text)
    if lacks is not None:
        return SettingsError(
            f"the executors' Python has no {lacks[1]}; install octoserve[spark,batch] there, or ship an environment "
            "with the job (docs/batch.md, Spark)"
        )
    return SparkFailed(f"Spark gave up: {_reason(error)}")


def _reason(error: Exception) -> str:
    """The line that says it, of an error that may be pages of two languages' stacks."""
    text = str(error)
    said = _SAID.search(text)
    if said is not None:
        return said[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("at ", "File ", "Traceback", "SQLSTATE", "^", "~", "..."))]
    return told[0][:500] if told else type(error).__name__
