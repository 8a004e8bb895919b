"""A real PostgreSQL for tests: Debian's, started on a free loopback port in a folder of its own, or the one named by
OCTOSERVE_TEST_POSTGRES (a URL whose role may make schemas)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import psycopg

from support.supervised import until

PASSWORD = "s3cr3t-Pa55/word"
"""With a character that has to be percent-encoded, so that tests see whether errors show it in either form."""


@cache
def binaries() -> Path | None:
    """The newest installed server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    return found[-1].parent if found else None


def missing() -> str:
    """Why there is no PostgreSQL to test with; empty if there is one."""
    if os.environ.get("OCTOSERVE_TEST_POSTGRES") or binaries():
        return ""
    return "no PostgreSQL: neither OCTOSERVE_TEST_POSTGRES nor Debian's package postgresql"


class Postgres:
    """A server of this test run. initdb refuses root, so root runs it as the user that the package made."""

    def __init__(self) -> None:
        self._bin = binaries()
        assert self._bin is not None
        self._folder = Path(tempfile.mkdtemp(prefix="octoserve-pg-"))
        self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        if self._as:
            shutil.chown(self._folder, "postgres", "postgres")
        password = self._folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)  # its folder is private
        self._run(
            "initdb", "-D", str(self._folder / "data"), "-U", "octoserve", "-A", "scram-sha-256", "-E", "UTF8",
            "--locale=C.UTF-8", "--no-sync", "--no-instructions", f"--pwfile={password}",
        )  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as, str(self._bin / program), *arguments], cwd=self._folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def url(self) -> str:
        return f"postgresql://octoserve:{PASSWORD.replace('/', '%2F')}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Until it answers."""
        self.process = subprocess.Popen(
            [
                *self._as, str(self._bin / "postgres"), "-D", str(self._folder / "data"), "-p", str(self.port),
                "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self._folder}",
                "-c", "shared_buffers=16MB", "-c", "max_connections=40",
            ],
            cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(self._answers, 30, "PostgreSQL")

    def _answers(self) -> bool:
        assert self.process.poll() is None, "PostgreSQL ended"
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url, connect_timeout=2):
            return True
        return False

    def kill(self) -> None:
        """Ended at once, connections cut, as by a crash that it recovers from at the next start."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(20)
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def a_server() -> Iterator[str]:
    """A PostgreSQL's URL."""
    given = os.environ.get("OCTOSERVE_TEST_POSTGRES")
    if given:
        yield given
        return
    server = Postgres()
    try:
        yield server.url
    finally:
        server.close()
