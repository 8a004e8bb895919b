"""Every format through real HTTP, in batches and in queues: the numbers are those of the library itself."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skops.io
from sklearn.neighbors import KNeighborsClassifier
from typer.testing import CliRunner

import octoserve
from octoserve.cli import model
from support.formats import FORMATS, NAMES, Made, made, v2
from support.service import Served, serving, until

LABELLED = "labels: [legit, fraud]\nmissing: refuse\n"


class Place:
    """A service of every format at version 1, and what each should answer."""

    def __init__(self, service: Served, repository: Path, known: dict[str, Made]) -> None:
        self.service = service
        self.repository = repository
        self.made = known


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("formats")
    repository = folder / "models"
    known = {kind: made(kind, repository) for kind in FORMATS}
    known["labelled"] = made("xgboost", repository, "labelled", yaml=LABELLED)
    with serving(repository, folder / "service", patience=180, trust="code") as service:
        until(lambda: all(e["state"] == "READY" for e in service.index().values()), 180)
        yield Place(service, repository, known)


def outputs(answer: Any) -> dict[str, np.ndarray]:
    assert answer.status == 200, answer.body
    return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in answer.json()["outputs"]}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_answers_are_the_librarys_own(place: Place, kind: str) -> None:
    inputs, expected = place.made[kind]
    came = outputs(place.service.ask("POST", f"/v2/models/{kind}/infer", v2(inputs)))
    for name, wanted in expected.items():
        if wanted.dtype.kind == "f":
            assert np.allclose(came[name], wanted, rtol=1e-6, atol=1e-7), name
        else:
            assert came[name].tolist() == wanted.tolist()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_row_alone_and_a_row_among_many_are_answered_alike(place: Place, kind: str) -> None:
    inputs, _ = place.made[kind]
    one = {name: array[3:4] for name, array in inputs.items()}
    alone = outputs(place.service.ask("POST", f"/v2/models/{kind}/infer", v2(one)))
    many = outputs(place.service.ask("POST", f"/v2/models/{kind}/infer", v2(inputs)))
    for name, array in alone.items():
        assert array[0].tolist() == many[name][3].tolist()


def test_labels_are_an_output_more(place: Place) -> None:
    inputs, expected = place.made["labelled"]
    came = outputs(place.service.ask("POST", "/v2/models/labelled/infer", v2(inputs)))
    assert np.allclose(came["prediction"], expected["prediction"], atol=1e-7)
    assert came["label"].tolist() == ["fraud" if p >= 0.5 else "legit" for p in expected["prediction"]]
    assert set(came["label"].tolist()) == {"legit", "fraud"}


def test_a_missing_number_is_refused_where_the_version_says_so(place: Place) -> None:
    rows = place.made["labelled"].inputs["features"][:2].copy()
    rows[1, 2] = np.nan
    spec = {"name": "features", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": rows.nbytes}}
    head = encoded({"inputs": [spec]})
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = place.service.ask("POST", "/v2/models/labelled/infer", head + rows.tobytes(), headers)
    assert answer.status == 400
    assert "hour of row 1 is missing" in answer.json()["error"]
    answer = place.service.ask("POST", "/v2/models/xgboost/infer", head + rows.tobytes(), headers)
    assert answer.status == 200


def encoded(what: Any) -> bytes:
    return json.dumps(what).encode()


def test_a_text_that_the_model_was_not_trained_with_is_refused(place: Place) -> None:
    inputs = {name: array[:1] for name, array in place.made["lightgbm_cities"].inputs.items()}
    inputs["city"] = np.array([b"Atlantis"], dtype=object)
    answer = place.service.ask("POST", "/v2/models/lightgbm_cities/infer", v2(inputs))
    assert answer.status == 400
    assert "'Atlantis' is no category" in answer.json()["error"]
    assert "'Bern', 'Oslo', 'Rome'" in answer.json()["error"]


@pytest.mark.parametrize("kind", ["labelled", "lightgbm_cities", "steps"])
def test_a_batch_gives_the_same(place: Place, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns are found by the names that the artifact has, in whatever order the table has them."""
    monkeypatch.setenv("OCTOSERVE_TRUST", "code")
    inputs, expected = place.made[kind]
    columns = dict(inputs) if len(inputs) > 1 else dict(zip(NAMES, next(iter(inputs.values())).T, strict=True))
    scores = "out" if kind == "steps" else "prediction"
    table = {name: [v.decode() if isinstance(v, bytes) else v for v in column.tolist()]
             for name, column in reversed(columns.items())}  # fmt: skip
    count = len(expected[scores])
    kinds = {"float32": pa.float32(), "float64": pa.float64()}
    arrays = {name: pa.array(values, kinds.get(columns[name].dtype.name)) for name, values in table.items()}
    pq.write_table(pa.table({"id": range(count), **arrays}), tmp_path / "in.parquet")
    octoserve.batch(place.repository, kind, str(tmp_path / "in.parquet"), tmp_path / "out", keys=["id"], progress=False)
    came = pq.read_table(tmp_path / "out").sort_by("id")
    assert np.allclose(came[scores].to_numpy(), expected[scores], rtol=1e-6)
    if kind == "labelled":
        assert came["label"].to_pylist() == ["fraud" if p >= 0.5 else "legit" for p in expected["prediction"]]


def test_a_queue_gives_the_same(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a class, which is trusted by the environment here, since nobody says so in a settings file."""
    monkeypatch.setenv("OCTOSERVE_TRUST", "code")
    inputs, expected = place.made["python"]
    lines = [encoded({"id": str(i), **dict(zip(NAMES, row.tolist(), strict=True))})
             for i, row in enumerate(inputs["rows"])]  # fmt: skip
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    octoserve_cli(tmp_path, "queue", "send", "embedded", str(tmp_path / "rows.jsonl"))
    octoserve_cli(
        tmp_path, "queue", "run", "--repository", str(place.repository), "--model", "python", "--source", "embedded",
        "--sink", "sqlite:///answers.db?table=t", "--until-idle", "1s",
    )  # fmt: skip
    with closing(sqlite3.connect(tmp_path / "answers.db")) as db:
        found = dict(db.execute("select message_id, kind from t").fetchall())
    assert [found[str(i)] for i in range(len(lines))] == expected["kind"].tolist()
    assert set(found.values()) == {"big", "small"}


def octoserve_cli(folder: Path, *arguments: str, code: int = 0) -> str:
    """What it prints, both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "octoserve", *arguments], cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_inspect_shows_what_the_artifact_says(place: Place) -> None:
    shown = CliRunner().invoke(model.app, ["inspect", "labelled", "--repository", str(place.repository)]).stdout
    assert "features  FP32 [-1, 3]" in shown
    assert "label  BYTES [-1]" in shown


class Shelf:
    """A service of versions that cannot be served, each for another reason, and of one that can."""

    def __init__(self, service: Served) -> None:
        self.service = service

    def reason(self, name: str) -> str:
        entry = self.service.index()[name, 1]
        assert entry["state"] == "UNAVAILABLE"
        return entry["reason"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    folder = tmp_path_factory.mktemp("shelf")
    repository = folder / "models"
    made("python", repository)
    made("xgboost", repository, "good")
    made("xgboost", repository, "both")
    (repository / "both" / "1" / "model.txt").write_text("tree")
    made("xgboost", repository, "swapped", yaml="features: [age, amount, hour]\n")
    made("xgboost", repository, "unlabelled", yaml="labels: [a, b, c]\n")
    made("xgboost", repository, "misspelt", yaml="lables: [a, b]\n")
    for name, yaml in {"nowhere": "runtime: remote\n", "unknown": "runtime: catboost\n"}.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.yaml").write_text(yaml)
    (repository / "foreign" / "1").mkdir(parents=True)
    skops.io.dump(KNeighborsClassifier(algorithm="kd_tree").fit([[0], [1], [2], [3], [4]], [0, 0, 1, 1, 1]),
                  repository / "foreign" / "1" / "model.skops")  # fmt: skip
    with serving(repository, folder / "service", patience=180) as service:
        until(lambda: all(e["state"] in ("READY", "UNAVAILABLE") for e in service.index().values()), 180)
        yield Shelf(service)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("python", r"model.py is code, and code of this repository is not trusted.*OCTOSERVE_TRUST=code"),
        ("foreign", r"not known to be harmless: .*sklearn.neighbors._kd_tree.KDTree.*OCTOSERVE_TRUST="),
        ("both", r"holds model.ubj \(xgboost\), model.txt \(lightgbm\); say which it is: `runtime:` in model.yaml"),
        ("swapped", r"column 0 is 'age', model.ubj was trained with 'amount' there"),
        ("unlabelled", r"which output the 3 names are of cannot be told"),
        ("misspelt", r"unknown field 'lables'; did you mean 'labels'\?"),
        ("nowhere", r"model.yaml: options: .*url"),
        ("unknown", r"runtime: one of .*'xgboost'.* wanted, 'catboost' came"),
    ],
)
def test_what_cannot_be_served_says_why(shelf: Shelf, name: str, reason: str) -> None:
    assert re.search(reason, shelf.reason(name)), shelf.reason(name)
    assert shelf.service.ask("GET", f"/v2/models/{name}/ready").status == 503


def test_a_broken_version_takes_nothing_from_a_good_one(shelf: Shelf) -> None:
    inputs, expected = made("xgboost", Path(tempfile.mkdtemp()))
    came = outputs(shelf.service.ask("POST", "/v2/models/good/infer", v2(inputs)))
    assert np.allclose(came["prediction"], expected["prediction"], atol=1e-7)
    folder = shelf.service.repository / "good" / "2"
    folder.mkdir()
    (folder / "model.ubj").write_bytes(b"{not a booster")
    until(lambda: shelf.service.index().get(("good", 2), {}).get("state") == "UNAVAILABLE", 60)
    assert "model.ubj: " in shelf.service.index()["good", 2]["reason"]
    assert shelf.service.ask("POST", "/v2/models/good/infer", v2(inputs)).status == 200


def test_a_remote_server_stands_behind_our_own_doors(place: Place, tmp_path: Path) -> None:
    """Here the server is octoserve too: the answers are those that it gives itself, and its refusals its own."""
    repository = tmp_path / "models"
    for kind in ("lightgbm_cities", "xgboost"):
        (repository / kind / "1").mkdir(parents=True)
        options = f"{{url: 'http://{place.service.http}', model: {kind}, version: 1}}"
        (repository / kind / "1" / "model.yaml").write_text(f"runtime: remote\noptions: {options}\n")
    with serving(repository, tmp_path / "service", patience=180) as front:
        until(lambda: all(e["state"] == "READY" for e in front.index().values()), 60)
        for kind in ("lightgbm_cities", "xgboost"):
            inputs, expected = place.made[kind]
            came = outputs(front.ask("POST", f"/v2/models/{kind}/infer", v2(inputs)))
            assert np.allclose(came["prediction"], expected["prediction"], rtol=1e-6)
            assert front.ask("GET", f"/v2/models/{kind}").json()["platform"] == "remote"
        inputs = {name: array[:1] for name, array in place.made["lightgbm_cities"].inputs.items()}
        answer = front.ask("POST", "/v2/models/lightgbm_cities/infer", v2({**inputs, "city": np.array(["?"], object)}))
        assert answer.status == 400
        assert "no category" in answer.json()["error"]


def test_an_async_class_answers_many_at_once(place: Place) -> None:
    """Each call sleeps; those that are there together sleep together."""
    inputs, expected = place.made["python_async"]
    with ThreadPoolExecutor(16) as pool:
        one = v2({"rows": inputs["rows"][:1]})
        answers = list(pool.map(lambda _: place.service.ask("POST", "/v2/models/python_async/infer", one), range(64)))
    for answer in answers:
        assert np.allclose(outputs(answer)["rows"], expected["rows"][:1])
