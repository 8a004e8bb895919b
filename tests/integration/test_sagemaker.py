"""A container's entry point as SageMaker runs it: `serve`, /ping, /invocations, SIGTERM."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from support.service import Served
from support.supervised import ROOT, SERVE, until


@contextlib.contextmanager
def container(folder: Path, arguments: list[str], environ: dict[str, str], workers: int = 1) -> Iterator[str]:
    """A container's process, ready: its URL."""
    ports = folder / "ports.json"
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "SAGEMAKER_BIND_TO_PORT": "0",
        "OCTOSERVE_HOST": "127.0.0.1",
        "OCTOSERVE_STATE_DIR": str(folder / "state"),
        "OCTOSERVE_PORTS_FILE": str(ports),
        "OCTOSERVE_GRPC_PORT": "0",
        "OCTOSERVE_ADMIN_PORT": "0",
        "OCTOSERVE_WORKERS": str(workers),
        **environ,
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", SERVE, *arguments], env=environ, stdout=log, stderr=log)
    try:
        until(lambda: ports.exists() or process.poll() is not None, 60, "ready")
        assert process.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{json.loads(ports.read_text())['http']}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize("arguments", [["serve"], ["sagemaker", "serve"]])
def test_one_model_in_opt_ml_model(models: Path, tmp_path: Path, arguments: list[str]) -> None:
    names = [f"v{i}" for i in range(13)]
    shutil.copytree(models / "wine" / "1", tmp_path / "model")
    (tmp_path / "model" / "model.yaml").write_text(json.dumps({"features": names, "missing": "nan"}))
    with container(tmp_path, arguments, {"SM_MODEL_DIR": str(tmp_path / "model")}) as url:
        assert requests.get(f"{url}/ping", timeout=30).status_code == 200
        row = ",".join(["1.5"] * 13)
        csv = requests.post(
            f"{url}/invocations",
            f"{row}\n{row}\n",
            headers={"Content-Type": "text/csv", "Accept": "text/csv"},
            timeout=30,
        )
        assert csv.status_code == 200, csv.text
        assert len(csv.text.splitlines()) == 2
        said = requests.post(f"{url}/invocations", json={"instances": [[1.5] * 13]}, timeout=30).json()
        assert said["predictions"][0]["label"] == int(csv.text.split(",")[0])
        values = dict(zip(names, range(13), strict=True))
        by_name = requests.post(f"{url}/predict", json=dict(reversed(values.items())), timeout=30).json()
        by_place = requests.post(f"{url}/v1/models/model:predict", json={"instances": [list(range(13))]}, timeout=30)
        assert by_place.json()["predictions"] == [by_name]
        del values["v3"]
        assert requests.post(f"{url}/predict", json=values, timeout=30).status_code == 200  # v3 is NaN to the model


def test_a_multi_model_container(models: Path, tmp_path: Path) -> None:
    """The five calls of SageMaker's contract, as it makes them; two workers, which agree."""
    environ = {"SAGEMAKER_MULTI_MODEL": "true", "OCTOSERVE_MULTI_MODEL": str(tmp_path / "models")}
    for name in ("wine", "fraud"):
        shutil.copytree(models / name / "1", tmp_path / "models" / f"hash-{name}" / "model")
    (tmp_path / "models" / "hash-broken" / "model").mkdir(parents=True)
    (tmp_path / "models" / "hash-broken" / "model" / "model.onnx").write_bytes(b"no model")

    def urls(name: str) -> str:
        return str(tmp_path / "models" / f"hash-{name}" / "model")

    with container(tmp_path, ["serve"], environ, workers=2) as base:
        client = requests.Session()

        def load(name: str, url: str = "") -> requests.Response:
            return client.post(f"{base}/models", json={"model_name": name, "url": url or urls(name)}, timeout=60)

        assert client.get(f"{base}/ping", timeout=30).status_code == 200
        assert client.get(f"{base}/models", timeout=30).json() == {"models": []}
        assert load("wine").status_code == 200
        assert load("wine").status_code == 409
        assert load("fraud").status_code == 200
        said = [{"modelName": name, "modelUrl": urls(name)} for name in ("fraud", "wine")]
        assert client.get(f"{base}/models", timeout=30).json() == {"models": said}
        assert client.get(f"{base}/models?next_page_token=fraud", timeout=30).json() == {"models": said[1:]}
        assert client.get(f"{base}/models/wine", timeout=30).json() == said[1]

        def invoke(name: str) -> requests.Response:
            headers = {
                "Content-Type": "text/csv",
                "Accept": "text/csv",
                "X-Amzn-SageMaker-Target-Model": f"{name}.tar.gz",
            }
            return client.post(f"{base}/models/{name}/invoke", ",".join(["1.5"] * 13), headers=headers, timeout=60)

        for _ in range(4):  # by whichever worker takes the connection
            client.close()
            assert invoke("wine").status_code == 200
            assert client.get(f"{base}/models/fraud", timeout=30).status_code == 200
        broken = load("broken")
        assert broken.status_code == 400, broken.text
        assert "model.onnx" in broken.text
        assert load("away", "/etc").status_code == 400
        assert client.post(f"{base}/models", data=b"{}", timeout=30).status_code == 400
        assert client.delete(f"{base}/models/wine", timeout=60).status_code == 200
        assert client.delete(f"{base}/models/wine", timeout=60).status_code == 404
        assert client.get(f"{base}/models/wine", timeout=30).status_code == 404
        assert invoke("wine").status_code == 404
        assert client.get(f"{base}/models", timeout=30).json() == {"models": said[:1]}
        (Path(urls("wine")) / "model.onnx").unlink()
        shutil.copyfile(models / "mlp" / "1" / "model.onnx", Path(urls("wine")) / "model.onnx")
        assert load("wine").status_code == 200, "a name may come back with other files"
        assert client.put(f"{base}/models", timeout=30).status_code == 405


def test_models_are_not_loaded_by_clients_unless_sagemaker_is_there(examples: Served) -> None:
    for method, path in (
        ("POST", "/models"),
        ("GET", "/models"),
        ("DELETE", "/models/fraud"),
        ("GET", "/models/fraud"),
    ):
        assert examples.ask(method, path, {"model_name": "a", "url": "/opt"}).status == 404
