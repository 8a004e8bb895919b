"""A real schema registry for tests: Apicurio Registry 3.0.9, one Java process that keeps schemas in memory, asked
through the interface that Confluent's clients know (/apis/ccompat/v7).

Maven fetches it from Maven Central once (109 MB); its sum is pinned, and it is kept under .cache.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import http.client
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from octoserve.connectors.queues.schema_registry import SchemaRegistry
from support.kafka import ends_with_us
from support.supervised import until

_VERSION = "3.0.9"
_SUM = "2b28181501a20cbf6efcd77f9b7153908fc01f3d3a7c32024c0bd9e1b04c8a43"
_ARTIFACT = f"io.apicurio:apicurio-registry-app:{_VERSION}:tar.gz:all"
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:2.8:get"
"""A later one wants the parent of the artifact's POM, which Maven Central does not have."""
_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "registry"
_JAVA = ["-Xmx300m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
_LONGEST = 540
"""Seconds that Maven may take."""


def missing() -> str:
    """Why there is none to test with; empty if there is."""
    if not shutil.which("java"):
        return "no schema registry: no `java` (Debian's package openjdk-17-jre-headless)"
    if not _folder().is_dir() and not shutil.which("mvn"):
        return "no schema registry under .cache, and no `mvn` to fetch it with (Debian's package maven)"
    return ""


def _folder() -> Path:
    return _CACHE / _VERSION


def _unpacked() -> Path:
    """The folder, filled if it was not. Raises RuntimeError with what Maven said, or that the sum is wrong."""
    there = _folder()
    if there.is_dir():
        return there
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not there.is_dir():
            archive = _fetched()
            parts = _CACHE / "parts"
            shutil.rmtree(parts, ignore_errors=True)
            with tarfile.open(archive) as packed:
                packed.extractall(parts, filter="data")
            archive.unlink()
            parts.rename(there)
    return there


def _fetched() -> Path:
    archive = _CACHE / "archive.tar.gz"
    done = subprocess.run(
        ["mvn", "-B", "-q", _PLUGIN, f"-Dartifact={_ARTIFACT}", "-Dtransitive=false", f"-Ddest={archive}"],
        capture_output=True, text=True, timeout=_LONGEST, cwd=_CACHE,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"Maven could not fetch Apicurio Registry:\n{(done.stdout + done.stderr)[-2000:]}")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != _SUM:
        raise RuntimeError("Maven fetched something else than the pinned sum says")
    return archive


class Registry:
    """A registry of this test run, which may be stopped: `address` is its interface's, whether it runs or not."""

    def __init__(self) -> None:
        self._jars = _unpacked()
        self._folder = Path(tempfile.mkdtemp(prefix="octoserve-registry-"))
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/apis/ccompat/v7"
        self.client = SchemaRegistry(self.address, {})
        self.process: Any = subprocess.Popen(
            [
                "java", *_JAVA, "-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={self.port}",
                "-jar", str(self._jars / f"apicurio-registry-app-{_VERSION}-runner.jar"),
            ],
            cwd=self._folder, stdout=(self._folder / "said").open("ab"), stderr=subprocess.STDOUT,
            preexec_fn=ends_with_us,
        )  # fmt: skip
        until(self._answers, 240, "the schema registry")

    def _answers(self) -> bool:
        said = (self._folder / "said").read_text(errors="replace")[-3000:]
        assert self.process.poll() is None, f"the schema registry ended: {said}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/apis/ccompat/v7/subjects")
            return connection.getresponse().status == 200
        return False

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """It answers nobody."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ended, its data removed."""
        self.process.kill()
        self.process.wait(20)
        shutil.rmtree(self._folder, ignore_errors=True)


@cache
def shared() -> Registry:
    """The run's one registry; skips the test that asks where there is none."""
    if reason := missing():
        pytest.skip(reason)
    made = Registry()
    atexit.register(made.close)
    return made
