"""A real `octoserve serve` in a child process, and a client that counts what goes wrong meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

ROOT = Path(__file__).parents[2]


def constant_model(value: float) -> bytes:
    """ONNX: x FP32[-1, 2] -> y = x * 0 + value: the answer tells which version gave it."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    add = helper.make_tensor("add", TensorProto.FLOAT, [1], [value])
    nodes = [helper.make_node("Mul", ["x", "zero"], ["z"]), helper.make_node("Add", ["z", "add"], ["y"])]
    graph = helper.make_graph(nodes, "constant", [x], [y], [zero, add])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


def publish(repository: Path, model: str, version: int, content: bytes | None = None) -> Path:
    """Put a version into the repository in one rename, as a careful publisher does."""
    folder = repository / model / str(version)
    ahead = repository / model / f".{version}.tmp"
    ahead.mkdir(parents=True)
    (ahead / "model.onnx").write_bytes(constant_model(float(version)) if content is None else content)
    ahead.rename(folder)
    return folder


SERVE = "from octoserve.cli.main import main; main()"


class Service:
    """`octoserve serve` on free ports. program: Python that runs the command line, where it is not to be just that."""

    def __init__(
        self,
        repository: Path | str,
        state_dir: Path,
        *flags: str,
        workers: int = 2,
        wait: bool = True,
        program: str = SERVE,
    ) -> None:
        self.repository, self.state_dir = repository, state_dir
        self.ports_file = state_dir.parent / "ports.json"
        command = [
            sys.executable, "-c", program, "serve",
            "--repository", str(repository), "--state-dir", str(state_dir), "--ports-file", str(self.ports_file),
            "--http-port", "0", "--grpc-port", "0", "--admin-port", "0", "--workers", str(workers),
            "--grace", "5s", *flags,
        ]  # fmt: skip
        environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"}
        self.ports_file.unlink(missing_ok=True)
        self.log = open(state_dir.parent / "serve.log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environ)
        self.pids: set[int] = set()
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout: float = 30.0) -> None:
        until(lambda: self.ports_file.exists() or self.process.poll() is not None, timeout, "ready")
        assert self.process.poll() is None, self.output()
        self.ports = json.loads(self.ports_file.read_text())
        self.pids |= {worker["pid"] for worker in self.admin("GET", "/api/workers")[1]}

    def output(self) -> str:
        return (self.state_dir.parent / "serve.log").read_text()

    def admin(self, method: str, path: str, body: object = None, headers: dict | None = None):
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["admin"], timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body), headers or {})
            answer = connection.getresponse()
            content = answer.read()
            kind = answer.getheader("content-type") or ""
            return answer.status, json.loads(content) if "json" in kind else content.decode()

    def workers(self) -> list[dict]:
        found = self.admin("GET", "/api/workers")[1]
        self.pids |= {worker["pid"] for worker in found}
        return found

    def state(self, model: str, version: int) -> dict:
        versions = self.admin("GET", "/api/models")[1].get(model, {"versions": []})["versions"]
        return next((v for v in versions if v["version"] == version), {"state": "absent", "reason": ""})

    def routes(self, model: str) -> list[int]:
        return [arm["version"] for arm in self.admin("GET", "/api/models")[1][model]["routes"]]

    def infer(self, model: str, connection: http.client.HTTPConnection | None = None) -> tuple[int, float | None]:
        """Status, and the number that the version answers with."""
        mine = connection or http.client.HTTPConnection("127.0.0.1", self.ports["http"], timeout=10)
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]})
        mine.request("POST", f"/v2/models/{model}/infer", body, {"content-type": "application/json"})
        answer = mine.getresponse()
        content = answer.read()
        if connection is None:
            mine.close()
        if answer.status != 200:
            return answer.status, None
        values = np.array(json.loads(content)["outputs"][0]["data"]).ravel()
        assert len(set(values.tolist())) == 1
        return 200, float(values[0])

    def kill(self) -> None:
        """SIGKILL to the supervisor alone."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout: float = 15.0) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def clean(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.process.poll() is None:
            with contextlib.suppress(Exception):
                self.workers()
            self.process.kill()
            self.process.wait()
        for record in self.state_dir.glob("serve-*.json"):
            self.pids |= {worker["pid"] for worker in json.loads(record.read_text())["workers"]}
        for pid in self.pids:
            with contextlib.suppress(OSError):
                if b"octoserve" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        self.log.close()


class Clients:
    """Threads that ask without a pause, on kept and on fresh connections, and count the answers."""

    def __init__(self, service: Service, model: str, threads: int = 4) -> None:
        self.service, self.model = service, model
        self.answers: Counter[object] = Counter()
        self.errors: list[str] = []
        self.closed = 0
        """Kept connections that the server closed between two requests, as HTTP lets it."""
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i % 2 == 0,)) for i in range(threads)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, keep: bool) -> None:
        port = self.service.ports["http"]
        kept = http.client.HTTPConnection("127.0.0.1", port, timeout=10) if keep else None
        while not self._stop.is_set():
            try:
                status, value = self.service.infer(self.model, kept)
            except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected) as error:
                if kept is None:
                    self.errors.append(f"{type(error).__name__}: {error}")
                else:
                    self.closed += 1
                    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                continue
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error} (kept: {keep})")
                kept = http.client.HTTPConnection("127.0.0.1", port, timeout=10) if keep else None
                continue
            self.answers[value if status == 200 else f"status {status}"] += 1
            if status != 200:
                self.errors.append(f"status {status}")
            time.sleep(0.001)


def until(what, timeout: float = 20.0, name: str = "") -> None:
    """Wait for a condition, looking often."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if what():
            return
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout} s: {name or what}")
