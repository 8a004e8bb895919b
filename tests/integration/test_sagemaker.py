"""A container's entry point as SageMaker runs it: `serve`, /ping, /invocations, SIGTERM."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from support.supervised import ROOT, SERVE, until


@pytest.mark.parametrize("arguments", [["serve"], ["sagemaker", "serve"]])
def test_one_model_in_opt_ml_model(models: Path, tmp_path: Path, arguments: list[str]) -> None:
    ports = tmp_path / "ports.json"
    names = [f"v{i}" for i in range(13)]
    shutil.copytree(models / "wine" / "1", tmp_path / "model")
    (tmp_path / "model" / "model.yaml").write_text(json.dumps({"features": names, "missing": "nan"}))
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "SM_MODEL_DIR": str(tmp_path / "model"),
        "SAGEMAKER_BIND_TO_PORT": "0",
        "OCTOSERVE_HOST": "127.0.0.1",
        "OCTOSERVE_STATE_DIR": str(tmp_path / "state"),
        "OCTOSERVE_PORTS_FILE": str(ports),
        "OCTOSERVE_GRPC_PORT": "0",
        "OCTOSERVE_ADMIN_PORT": "0",
        "OCTOSERVE_WORKERS": "1",
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", SERVE, *arguments], env=environ, stdout=log, stderr=log)
    try:
        until(lambda: ports.exists() or process.poll() is not None, 60, "ready")
        assert process.poll() is None, (tmp_path / "log").read_text()
        url = f"http://127.0.0.1:{json.loads(ports.read_text())['http']}"
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
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
