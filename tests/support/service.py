"""`octoserve serve` as its clients see it: a child process, what its doors say, and its metrics.

`serving` is for tests that need a service of their own; it ends by SIGTERM and must exit 0. Whatever happens,
no process is left, and the service's output is shown when the test fails.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from support.supervised import Service, until

SHOWN = 8_000
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Answer(NamedTuple):
    """One HTTP response, read whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Served(Service):
    """A running service."""

    host = "127.0.0.1"

    @property
    def http(self) -> str:
        """host:port of the REST door."""
        return f"{self.host}:{self.ports['http']}"

    @property
    def grpc(self) -> str:
        """host:port of the gRPC door."""
        return f"{self.host}:{self.ports['grpc']}"

    def connect(self, timeout: float = 30.0) -> http.client.HTTPConnection:
        """A new connection to the REST door."""
        return http.client.HTTPConnection(self.host, self.ports["http"], timeout=timeout)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> Answer:
        """One request to the REST door; a body that is not bytes goes as JSON."""
        mine = connection or self.connect()
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            mine.request(method, path, data, headers or {})
            came = mine.getresponse()
            return Answer(came.status, {k.lower(): v for k, v in came.getheaders()}, came.read())
        finally:
            if connection is None:
                mine.close()

    def metrics(self) -> list[tuple[str, dict[str, str], float]]:
        """Every sample of the page: name, labels, value."""
        status, page = self.admin("GET", "/metrics")
        assert status == 200, page
        samples = []
        for line in page.splitlines():
            if line and not line.startswith("#"):
                found = _SAMPLE.match(line)
                assert found is not None, line
                samples.append((found[1], dict(_LABEL.findall(found[2] or "")), float(found[3])))
        return samples

    def total(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that have these labels."""
        return sum(value for n, have, value in self.metrics() if n == name and labels.items() <= have.items())

    def rss(self) -> int:
        """Bytes that supervisor and workers hold in memory."""
        return sum(psutil.Process(pid).memory_info().rss for pid in (self.process.pid, *self.worker_pids()))

    def worker_pids(self) -> list[int]:
        """Process ids of the workers, by index."""
        return [worker["pid"] for worker in sorted(self.workers(), key=lambda worker: worker["index"])]

    def all_serve(self, count: int | None = None) -> bool:
        """Whether every worker serves."""
        states = [worker["state"] for worker in self.workers()]
        return all(state == "serving" for state in states) and (count is None or len(states) == count)

    def index(self) -> dict[tuple[str, int], dict[str, str]]:
        """The repository index, by model and version."""
        entries = self.ask("POST", "/v2/repository/index").json()
        return {(entry["name"], int(entry["version"])): entry for entry in entries}

    def show(self) -> None:
        """The end of its output, for the report of a failed test."""
        print(f"--- output of octoserve serve ---\n{self.output()[-SHOWN:]}", file=sys.stderr)

    def finish(self, timeout: float = 20.0) -> None:
        """SIGTERM; it must exit 0 in time, and nothing may have gone wrong unseen."""
        if self.process.poll() is None:
            self.workers()
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout) == 0
        assert "Traceback" not in self.output()


@contextlib.contextmanager
def serving(
    repository: Path | str,
    folder: Path,
    *flags: str,
    workers: int = 1,
    finish: bool = True,
    patience: float = 30.0,
    **settings: object,
) -> Iterator[Served]:
    """A service for this block. `settings` are flags by their field's name: `max_queue=4`.

    finish:   whether it must end well; leave it out where the test kills the supervisor.
    patience: seconds until it must be ready; some model libraries take long to import on a busy machine
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in settings.items():
        flags = (*flags, f"--{name.replace('_', '-')}", str(value))
    service = Served(repository, folder / "state", *flags, workers=workers, wait=False)
    try:
        service.wait_ready(patience)
        yield service
        if finish:
            service.finish()
    except BaseException:
        service.show()
        raise
    finally:
        service.clean()


def repository_of(root: Path, models: Path, names: Sequence[str]) -> Path:
    """A repository of its own with these example models at version 1."""
    for name in names:
        shutil.copytree(models / name, root / name)
    return root


__all__ = ["Answer", "Served", "repository_of", "serving", "until"]
