"""A real MLflow server, and models that MLflow has saved, by its own Python in an environment apart."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from support.apart import python_of
from support.supervised import constant_model, until

_SERVES = """
import sys
from mlflow.server import app
from werkzeug.serving import run_simple
run_simple(sys.argv[1], int(sys.argv[2]), app, threaded=True)
"""
"""What `mlflow server` starts workers of, without the processes that it starts beside them for jobs."""
_SAVES = """
import sys, logging
logging.disable()
import numpy, mlflow.sklearn
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression
import pandas
rows = pandas.DataFrame(numpy.random.default_rng(0).normal(size=(80, 3)), columns=["a", "b", "c"])
model = LogisticRegression().fit(rows, (rows.a > 0).astype(int))
for kind in ("skops", "cloudpickle"):
    mlflow.sklearn.save_model(model, f"{sys.argv[1]}/{kind}", serialization_format=kind, pip_requirements=[],
                              signature=infer_signature(rows, model.predict(rows)))
"""


class Registry:
    """A server of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.host = "127.0.0.1"
        self._python = python_of("mlflow")
        self._saving: subprocess.Popen[bytes] | None = None
        self.start()
        self._save()

    @property
    def url(self) -> str:
        """As `repository` takes it."""
        return f"mlflow+http://{self.host}:{self.port}"

    def start(self) -> None:
        """Again with what it had."""
        command = [str(self._python), "-c", _SERVES, self.host, str(self.port)]
        environ = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONPATH": "",
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{self.folder}/mlflow.db",
            "_MLFLOW_SERVER_REGISTRY_STORE": f"sqlite:///{self.folder}/mlflow.db",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(self.folder / "artifacts"),
        }
        log = open(self.folder / "server.log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environ, stdout=log, stderr=log, start_new_session=True
        )
        log.close()

    def wait(self) -> None:
        """Until it answers."""

        def answers() -> bool:
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self._request("GET", "/health")[0] == 200
            return False

        until(answers, 240, "MLflow")

    def stop(self) -> None:
        """The server and its own workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 15)
        self.process.wait(30)
        if self._saving is not None:
            self._saving.kill()
            self._saving.wait(30)

    def saved(self, kind: str) -> Path:
        """A scikit-learn model that MLflow has saved as `skops` or `cloudpickle`."""
        if self._saving is not None:
            assert self._saving.wait(300) == 0
            self._saving = None
            with contextlib.suppress(OSError):  # another was first
                (self.folder / "saved").rename(self._saved)
        return self._saved / kind

    def _save(self) -> None:
        """Once for these packages, and while the server starts: importing them takes longest."""
        self._saved = self._python.parents[1] / f"saved-{hashlib.sha256(_SAVES.encode()).hexdigest()[:12]}"
        if not self._saved.exists():
            environ = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": ""}
            command = [str(self._python), "-c", _SAVES, str(self.folder / "saved")]
            self._saving = subprocess.Popen(command, cwd=self.folder, env=environ, stderr=subprocess.DEVNULL)

    def onnx(self, value: int) -> Path:
        """A model that answers this number, as MLflow lays it out."""
        folder = self.folder / f"onnx-{value}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "model.onnx").write_bytes(constant_model(value))
        (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"onnx": {"data": "model.onnx"}}}))
        return folder

    def publish(self, model: str, folder: Path) -> int:
        """Another version of it, with these files; its number."""
        self.wait()
        run = self.api("POST", "runs/create", experiment_id="0", start_time=1)["run"]["info"]
        source = f"{run['artifact_uri']}/model"
        place = source.removeprefix("mlflow-artifacts:/")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                where = f"/api/2.0/mlflow-artifacts/artifacts/{place}/{path.relative_to(folder)}"
                assert self._request("PUT", where, path.read_bytes())[0] == 200
        self.api("POST", "registered-models/create", name=model, allow=(200, 400))
        made = self.api("POST", "model-versions/create", name=model, source=source, run_id=run["run_id"])
        return int(made["model_version"]["version"])

    def remove(self, model: str, version: int) -> None:
        """Take a version away."""
        self.api("DELETE", "model-versions/delete", name=model, version=str(version))

    def alias(self, model: str, name: str, version: int) -> None:
        """What the version is called from now on."""
        self.api("POST", "registered-models/alias", name=model, alias=name, version=str(version))

    def api(self, method: str, path: str, allow: tuple[int, ...] = (200,), **fields: Any) -> Any:
        """One call of the REST API."""
        where = f"/api/2.0/mlflow/{path}"
        if method == "GET":
            status, body = self._request(method, f"{where}?{urlencode(fields)}")
        else:
            status, body = self._request(method, where, json.dumps(fields).encode())
        assert status in allow, (path, status, body)
        return json.loads(body)

    def _request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()


@contextlib.contextmanager
def a_registry(folder: Path) -> Iterator[Registry]:
    """For this block."""
    registry = Registry(folder)
    try:
        yield registry
    finally:
        registry.stop()
