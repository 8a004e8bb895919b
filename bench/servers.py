"""Starts the servers that are compared, waits until they are ready, and ends them whatever happens."""

from __future__ import annotations

import getpass
import http.client
import json
import os
import signal
import socket
import string
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import environments
import processes

PEERS = Path(__file__).with_name("peers")
LOGS = environments.CACHE / "logs"
_PATIENCE = 60.0  # seconds for a server to become ready; KServe's imports alone take several
_GRACE = 10.0  # seconds to end by itself after SIGTERM

Cores = set[int] | None


class ServerFailed(RuntimeError):
    """A server that did not start, or ended."""


@dataclass(frozen=True)
class Server:
    """A running server, 0 for a port that it has not."""

    pid: int
    http_port: int = 0
    grpc_port: int = 0
    admin_port: int = 0
    ready_after: float = 0.0  # seconds from its start; octoserve only


@contextmanager
def octoserve(
    command: Sequence[str],
    repository: Path,
    cores: Cores,
    workers: int = 1,
    models: Sequence[str] = ("fraud",),
    rollout: str = "",
    versions: str = "",
) -> Iterator[Server]:
    """`rollout`: the YAML of a spec's rollout section. `versions`: which are held, if not the newest alone."""
    with tempfile.TemporaryDirectory(prefix="octoserve-bench-") as folder:
        ports_file = Path(folder) / "ports.json"
        arguments = ["serve", "--repository", str(repository), "--host", "127.0.0.1"]
        arguments += ["--http-port", "0", "--grpc-port", "0", "--admin-port", "0"]
        arguments += ["--workers", str(workers), "--ports-file", str(ports_file)]
        arguments += ["--state-dir", str(Path(folder) / "state")]
        if versions:
            arguments += ["--version-policy", versions]
        if rollout:
            spec = Path(folder) / "octoserve.yaml"
            spec.write_text(f"rollout: {rollout}\n")
            arguments += ["--spec", str(spec)]
        ports: dict[str, int] = {}

        def ready() -> bool:
            if not ports:
                ports.update(_read_ports(ports_file))
            paths = ["/v2/health/ready", *(f"/v2/models/{model}/ready" for model in models)]
            return bool(ports) and all(_answers(ports["http"], path) for path in paths)

        began = time.perf_counter()
        with _running(f"octoserve-{workers}", [*command, *arguments], ready, cores) as pid:
            yield Server(pid, ports["http"], ports["grpc"], ports["admin"], time.perf_counter() - began)


@contextmanager
def fastapi(model: str, cores: Cores, name: str = "fraud") -> Iterator[Server]:
    """The hand-written service with the ONNX file `model`, which is `name`."""
    port = _free_port()
    command = _peer("fastapi_service", model, str(port))
    with _running(f"fastapi-{name}", command, lambda: _answers(port, "/v2/health/ready"), cores) as pid:
        yield Server(pid, port)


@contextmanager
def kserve(model: str, cores: Cores) -> Iterator[Server]:
    http_port, grpc_port = _free_port(), _free_port()
    command = _peer("kserve_service", model, "fraud", str(http_port), str(grpc_port))

    def ready() -> bool:
        return _answers(http_port, "/v2/health/ready") and _accepts(grpc_port)

    with _running("kserve", command, ready, cores) as pid:
        yield Server(pid, http_port, grpc_port)


@contextmanager
def grpcio(kind: str, answer: Path, cores: Cores) -> Iterator[Server]:
    """The bare handler; `kind` is `sync` or `aio`."""
    port = _free_port()
    command = _peer("grpcio_constant", kind, str(answer), str(port))
    with _running(f"grpcio-{kind}", command, lambda: _accepts(port), cores) as pid:
        yield Server(pid, grpc_port=port)


@contextmanager
def nginx(answer: Path, cores: Cores) -> Iterator[Server]:
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="octoserve-nginx-") as folder:
        Path(folder).chmod(0o755)
        static = Path(folder) / "static"
        static.mkdir()
        body = answer.read_text()
        (static / "answer.json").write_text(body)
        # Workers of a root nginx would be `nobody`; any other user's are that user.
        user = f"user {getpass.getuser()};" if os.getuid() == 0 else ""
        template = string.Template((PEERS / "nginx.conf.template").read_text())
        configuration = Path(folder) / "nginx.conf"
        configuration.write_text(template.substitute(prefix=folder, port=port, body=body, user_directive=user))
        command = ["nginx", "-e", "stderr", "-p", folder, "-c", str(configuration)]
        with _running("nginx", command, lambda: _answers(port, "/answer.json"), cores) as pid:
            yield Server(pid, port)


def _peer(name: str, *arguments: str) -> list[str]:
    return [str(environments.python_for(name)), str(PEERS / f"{name}.py"), *arguments]


@contextmanager
def _running(name: str, command: list[str], ready: Callable[[], bool], cores: Cores) -> Iterator[int]:
    """Starts `command` pinned to `cores` and yields its pid once it is ready; ends its whole tree."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=processes.pinned(cores),
        )
    try:
        _wait(process, ready, name, log)
        yield process.pid
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], name: str, log: Path) -> None:
    give_up = time.monotonic() + _PATIENCE
    while not ready():
        ended = process.poll()
        if ended is not None or time.monotonic() > give_up:
            what = f"ended with {ended}" if ended is not None else f"was not ready in {_PATIENCE:.0f} s"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise ServerFailed(f"{name} {what}; the end of {log}:\n{tail}")
        time.sleep(0.005)


def _end(process: subprocess.Popen[bytes]) -> None:
    family = {pid: processes.started(pid) for pid in processes.tree(process.pid)}
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        pass
    for pid, started in family.items():
        if started is not None and processes.started(pid) == started:
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _read_ports(file: Path) -> dict[str, int]:
    try:
        ports: dict[str, int] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return ports


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True
