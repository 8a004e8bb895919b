"""Clients whose packages do not go together with ours, unmodified, in environments of their own: mlserver's command
line, MLflow's scoring client, and schemathesis on /openapi.json.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from octoserve import __version__
from support import apart, mlflow_calls
from support.examples import INPUTS
from support.scale import FULL
from support.service import Served, repository_of, serving
from support.wire import rest_binary

PATIENCE = 900


@pytest.fixture(scope="module")
def small(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two models; `wine` is the default."""
    folder = tmp_path_factory.mktemp("apart")
    repository = repository_of(folder / "models", models, ["wine", "penguins"])
    with serving(repository, folder / "service", default_model="wine", patience=120) as service:
        yield service


def test_mlserver_infer(small: Served, tmp_path: Path) -> None:
    """A file of V2 requests, one a line, which it sends two at a time."""
    inputs = [INPUTS["wine"](1, np.random.default_rng(seed)) for seed in range(5)]
    lines = [
        {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 13], "data": sent.array.ravel().tolist()}]}
        for [sent] in inputs
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = [rest_binary(small, "wine", sent)["probabilities"].array().ravel().tolist() for sent in inputs]
    command = [
        str(apart.python_of("clients").with_name("mlserver")), "infer", "-u", small.http, "-m", "wine", "-s", "2",
        "-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "-w", "2",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    answers.sort(key=lambda answer: answer["parameters"]["batch_index"])
    came = [next(o["data"] for o in answer["outputs"] if o["name"] == "probabilities") for answer in answers]
    assert np.array_equal(np.array(came, "<f4"), np.array(expected, "<f4"))


def test_mlflow_s_scoring_client(small: Served) -> None:
    """DataFrames and arrays; the paths of a scoring server name no model."""
    [sent] = INPUTS["wine"](3, np.random.default_rng(0))
    columns = ",".join(f"column {i}" for i in range(13))
    command = [str(apart.python_of("mlflow")), mlflow_calls.__file__, str(small.ports["http"]), columns]
    done = subprocess.run(
        command, input=json.dumps(sent.array.tolist()), capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    expected = rest_binary(small, "wine", [sent])
    for rows in said["predictions"]:
        assert [row["label"] for row in rows] == expected["label"].array().tolist()
        scores = np.array([row["probabilities"] for row in rows], "<f4")
        assert scores.tobytes() == expected["probabilities"].raw
    assert said["version"] == __version__
    assert "BAD_REQUEST" in said["refusal"]


def test_schemathesis_finds_nothing(small: Served, tmp_path: Path) -> None:
    """Every operation by its edges, the same each time; a full run tries examples and fuzzes too. What a model takes
    depends on the model, so that a body of the right outline may well be refused: that check is left out."""
    phases = "examples,coverage,fuzzing" if FULL else "coverage"
    command = [
        str(apart.python_of("clients").with_name("schemathesis")), "run", f"http://{small.http}/openapi.json",
        "--phases", phases, "--max-examples", "20", "--generation-deterministic", "--no-shrink",
        "--exclude-checks", "positive_data_acceptance", "--max-failures", "5", "--no-color", "--warnings", "off",
        "--request-timeout", "60", "--suppress-health-check", "all",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert small.all_serve()
