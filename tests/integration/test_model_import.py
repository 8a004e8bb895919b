"""`octoserve model import` and `init`: what others have written becomes a version that answers as it did."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import pytest
import skops.io
import xgboost
import yaml
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from typer.testing import CliRunner

from octoserve.app import runtimes
from octoserve.cli import model
from octoserve.core.errors import BrokenVersion, InvalidInput, SettingsError
from octoserve.lifecycle.loading import load
from octoserve.runtimes.importing.pbtxt import parse
from octoserve.runtimes.protocol import LoadedModel
from support.formats import NAMES, classes, made, rows, with_cities

TABLE = rows()
TARGET = classes(TABLE)


class Shop:
    """A folder with a repository in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / "models"

    def run(self, *arguments: str) -> str:
        """What it prints; raises what it raises."""
        done = CliRunner().invoke(model.app, [*arguments, "--repository", str(self.repository)])
        if done.exception is not None:
            raise done.exception
        return done.stdout

    def take(self, source: Path, *flags: str) -> str:
        return self.run("import", str(source), *flags)

    def load(self, name: str, version: int = 1, trust: tuple[str, ...] = ()) -> LoadedModel:
        folder = self.repository / name / str(version)
        known = runtimes(trust)
        said = yaml.safe_load((folder / "model.yaml").read_text()) if (folder / "model.yaml").is_file() else {}
        runtime = said.get("runtime") or next(
            r.name for r in known.values() if any((folder / file).is_file() for file in r.artifacts)
        )
        return load(known, runtime, folder)

    def files(self) -> list[str]:
        return sorted(str(p.relative_to(self.repository)) for p in self.repository.rglob("*") if p.is_file())


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def dumped(folder: Path, what: Any, name: str = "clf.pkl") -> Path:
    path = folder / name
    joblib.dump(what, path) if name.endswith("joblib") else path.write_bytes(pickle.dumps(what))
    return path


def forest() -> RandomForestClassifier:
    return RandomForestClassifier(3, random_state=0).fit(TABLE, TARGET)


@pytest.mark.parametrize("file", ["clf.pkl", "clf.joblib"])
def test_an_estimator_is_unpickled_once_and_with_leave_only(shop: Shop, file: str) -> None:
    trained = forest()
    path = dumped(shop.folder, trained, file)
    with pytest.raises(SettingsError, match=r"runs whatever it holds.*--unpickle"):
        shop.take(path)
    assert not shop.repository.exists()
    printed = shop.take(path, "--unpickle")
    assert "models/clf/1: sklearn, features FP64[-1, 3] -> label INT64[-1], probabilities FP64[-1, 2]" in printed
    assert shop.files() == ["clf/1/model.skops"]
    assert np.array_equal(shop.load("clf").run([TABLE])[1], trained.predict_proba(TABLE))


def test_boosters_in_their_scikit_learn_clothes(shop: Shop) -> None:
    one = xgboost.XGBClassifier(n_estimators=3, max_depth=2).fit(TABLE, TARGET)
    shop.take(dumped(shop.folder, one), "--unpickle", "--name", "one")
    assert np.allclose(shop.load("one").run([TABLE.astype(np.float32)])[0], one.predict_proba(TABLE)[:, 1])
    words = np.array(["legit", "fraud"])[TARGET]
    two = lightgbm.LGBMClassifier(n_estimators=3, min_child_samples=2, verbose=-1).fit(TABLE, words)
    shop.take(dumped(shop.folder, two), "--unpickle", "--name", "two")
    score, label = shop.load("two").run([TABLE])
    assert np.allclose(score, two.predict_proba(TABLE)[:, 1])
    assert label.tolist() == two.predict(TABLE).tolist()


def test_native_files_are_copied_and_numbered(shop: Shop) -> None:
    made("xgboost", shop.folder, "x")
    for number in (1, 2):
        shop.take(shop.folder / "x" / "1" / "model.ubj", "--name", "fraud")
        assert f"fraud/{number}/model.ubj" in shop.files()
    shutil.copy(shop.folder / "x" / "1" / "model.ubj", shop.folder / "old.bst")
    shop.take(shop.folder / "old.bst", "--name", "fraud", "--version", "7")
    assert "fraud/7/model.ubj" in shop.files()
    with pytest.raises(SettingsError, match="never changed; take another --version"):
        shop.take(shop.folder / "old.bst", "--name", "fraud", "--version", "7")


def test_fields_for_model_yaml_come_along(shop: Shop) -> None:
    made("xgboost", shop.folder, "x")
    (shop.folder / "more.yaml").write_text("labels: [legit, fraud]\n")
    shop.take(shop.folder / "x/1/model.ubj", "--name", "fraud", "--model-yaml", str(shop.folder / "more.yaml"))
    assert [spec.name for spec in shop.load("fraud").signature.outputs] == ["prediction", "label"]


def test_what_could_not_be_served_is_not_put_in_place(shop: Shop) -> None:
    (shop.folder / "bad.txt").write_text("no trees")
    with pytest.raises(BrokenVersion, match=r"bad was not imported, since it could not be served: model.txt"):
        shop.take(shop.folder / "bad.txt")
    neighbours = KNeighborsClassifier(algorithm="kd_tree").fit(TABLE, TARGET)
    skops.io.dump(neighbours, shop.folder / "near.skops")
    with pytest.raises(BrokenVersion, match=r"KDTree.*OCTOSERVE_TRUST"):
        shop.take(shop.folder / "near.skops")
    with pytest.raises(SettingsError, match=r"holds a builtins.dict"):
        shop.take(dumped(shop.folder, {"no": "model"}), "--unpickle")
    (shop.folder / "weights.pt").touch()
    with pytest.raises(SettingsError, match=r"a file that ends in \.onnx"):
        shop.take(shop.folder / "weights.pt")
    (shop.folder / "torn.pkl").write_bytes(b"\x80\x04")
    with pytest.raises(BrokenVersion, match="cannot be unpickled here"):
        shop.take(shop.folder / "torn.pkl", "--unpickle")
    with pytest.raises(InvalidInput, match="--name"):
        shop.take(shop.folder / "bad.txt", "--name", "a/b")
    assert not shop.repository.exists() or shop.files() == []


def test_an_import_done_again_has_the_same_bytes(shop: Shop) -> None:
    joblib.dump(forest(), shop.folder / "p.joblib")
    for name in ("one", "two"):
        shop.take(shop.folder / "p.joblib", "--unpickle", "--name", name)
    one, two = ((shop.repository / name / "1" / "model.skops").read_bytes() for name in ("one", "two"))
    assert one == two


def mlflow(folder: Path, flavors: dict[str, Any], columns: list[tuple[str, str]]) -> Path:
    signature = {"inputs": json.dumps([{"type": kind, "name": name, "required": True} for name, kind in columns])}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors, "signature": signature}))
    return folder


PYFUNC = {"loader_module": "mlflow.sklearn", "python_version": "3.11"}


def test_an_mlflow_model_of_numbers(shop: Shop) -> None:
    saved = shop.folder / "saved"
    saved.mkdir()
    trained = forest()
    dumped(saved, trained, "model.pkl")
    mlflow(
        saved, {"python_function": PYFUNC, "sklearn": {"pickled_model": "model.pkl"}}, [(n, "double") for n in NAMES]
    )
    with pytest.raises(SettingsError, match="--unpickle"):
        shop.take(saved)
    shop.take(saved, "--unpickle", "--name", "fraud")
    loaded = shop.load("fraud")
    assert loaded.signature.features == {"features": NAMES}
    assert np.array_equal(loaded.run([TABLE])[1], trained.predict_proba(TABLE))


def test_an_mlflow_model_with_a_column_of_text(shop: Shop) -> None:
    saved = shop.folder / "saved"
    saved.mkdir()
    frame = with_cities().astype({"city": object})
    columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["city"]), ("passthrough", list(NAMES)))
    trained = make_pipeline(columns, Ridge()).fit(frame, frame["amount"])
    dumped(saved, trained, "model.pkl")
    kinds = [(name, "double") for name in NAMES] + [("city", "string")]
    shop.take(mlflow(saved, {"sklearn": {"pickled_model": "model.pkl"}}, kinds), "--unpickle")
    inputs = [frame[name].to_numpy() for name in NAMES]
    given = shop.load("saved").run([*inputs, np.array([c.encode() for c in frame["city"]], dtype=object)])
    assert np.allclose(given[0], trained.predict(frame))


def test_mlflow_models_of_other_flavours(shop: Shop) -> None:
    made("lightgbm", shop.folder, "l")
    (shop.folder / "l" / "1" / "model.txt").rename(shop.folder / "l" / "1" / "model.lgb")
    names = [(name, "double") for name in NAMES]
    flavor = {"lightgbm": {"data": "model.lgb", "model_class": "lightgbm.basic.Booster"}}
    assert "lightgbm, features FP64[-1, 3]" in shop.take(mlflow(shop.folder / "l" / "1", flavor, names), "--name", "l")
    swapped = [names[1], names[0], names[2]]
    with pytest.raises(BrokenVersion, match="column 0 is 'age'"):
        shop.take(mlflow(shop.folder / "l" / "1", flavor, swapped), "--name", "s")
    with pytest.raises(SettingsError, match=r"python_function is code"):
        shop.take(mlflow(shop.folder / "l" / "1", {"python_function": PYFUNC}, names))
    with pytest.raises(SettingsError, match="no such file in the folder"):
        shop.take(mlflow(shop.folder / "l" / "1", {"onnx": {"data": "../../other/model.onnx"}}, names))


TRITON = {
    "echo": 'name: "echo"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 16\n',
    "again": 'backend: "onnxruntime"  # the same\ndefault_model_filename: "graph.onnx"\n',
    "trees": """
        backend: "fil"
        max_batch_size: 8
        parameters [{ key: "model_type" value: { string_value: "xgboost_json" } }]
    """,
    "plan": 'platform: "tensorrt_plan"\n',
    "both": """
        platform: "ensemble"
        output [ { name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] } ]
        ensemble_scheduling {
          step [
            { model_name: "echo" model_version: -1
              input_map { key: "input" value: "IN" } output_map { key: "output" value: "half" } },
            { model_name: "again" model_version: 1
              input_map { key: "input" value: "half" } output_map { key: "output" value: "OUT" } }
          ]
        }""",
}


@pytest.fixture
def triton(shop: Shop, models: Path) -> Path:
    root = shop.folder / "triton"
    for name, config in TRITON.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config)
    shutil.copy(models / "echo_fp32/1/model.onnx", root / "echo/1")
    shutil.copytree(root / "echo/1", root / "echo/3")
    shutil.copy(models / "echo_fp32/1/model.onnx", root / "again/1/graph.onnx")
    made("xgboost_cities", shop.folder, "x")
    shutil.copy(shop.folder / "x/1/model.json", root / "trees/1/xgboost.json")
    (root / "plan/1/model.plan").touch()
    return root


def test_a_triton_repository(shop: Shop, triton: Path) -> None:
    with pytest.raises(SettingsError, match=r"plan runs on tensorrt_plan, which has no runtime here.*--remote"):
        shop.take(triton, "--name", "plan")
    with pytest.raises(SettingsError, match=r"no model 'none'; it has again, both, echo, plan, trees"):
        shop.take(triton, "--name", "none")
    shutil.rmtree(triton / "plan")
    shop.take(triton)
    assert shop.files() == [
        "again/1/model.onnx",
        "both/1/again/model.onnx",
        "both/1/echo/model.onnx",
        "both/1/echo/model.yaml",
        "both/1/model.yaml",
        "echo/1/model.onnx",
        "echo/1/model.yaml",
        "echo/3/model.onnx",
        "echo/3/model.yaml",
        "trees/1/model.json",
        "trees/1/model.yaml",
    ]
    assert yaml.safe_load((shop.repository / "echo/1/model.yaml").read_text()) == {"batching": {"max_rows": 16}}
    numbers = np.ones((2, 3), np.float32)
    both = shop.load("both")
    assert [spec.name for spec in (*both.signature.inputs, *both.signature.outputs)] == ["IN", "OUT"]
    assert both.run([numbers])[0].tolist() == numbers.tolist()


def test_what_triton_keeps_may_stand_behind_a_remote(shop: Shop, triton: Path) -> None:
    with pytest.raises(BrokenVersion, match=r"http://127\.0\.0\.1:1 cannot be reached"):
        shop.take(triton / "plan", "--remote", "http://127.0.0.1:1")
    tensor = [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    (shop.folder / "more.yaml").write_text(yaml.safe_dump({"inputs": tensor, "outputs": tensor}))
    shop.take(triton / "plan", "--remote", "http://127.0.0.1:1", "--model-yaml", str(shop.folder / "more.yaml"))
    said = yaml.safe_load((shop.repository / "plan/1/model.yaml").read_text())
    assert said["runtime"] == "remote"
    assert said["options"] == {"url": "http://127.0.0.1:1", "model": "plan", "version": 1}


@pytest.mark.parametrize("text", ["a {", "a: }", "{ }", "a: [1, 2", "@", ": 1", "a: " + "{ a: " * 50])
def test_a_config_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^config"):
        parse(text, "config")


def test_a_config_is_read_as_triton_reads_it() -> None:
    text = 'a: 1, a: 2; b { c: "x \\"y\\"" } b: < c: TYPE_FP32 > # end\nd: [ -1, 3 ]'
    assert parse(text, "config") == {"a": ["1", "2"], "b": [{"c": ['x "y"']}, {"c": ["TYPE_FP32"]}], "d": ["-1", "3"]}


@pytest.mark.parametrize("kind", ["python", "table", "remote", "ensemble"])
def test_a_scaffold_is_passed_over_until_it_is_renamed(shop: Shop, kind: str) -> None:
    printed = shop.run("init", "mine", "--kind", kind)
    assert f"mv {shop.repository}/mine/1.tmp {shop.repository}/mine/1" in printed
    assert "no model" in shop.run("list")
    with pytest.raises(SettingsError, match="is there already"):
        shop.run("init", "mine", "--kind", kind)
    with pytest.raises(SettingsError, match="python, table, remote, ensemble wanted, 'rust' came"):
        shop.run("init", "other", "--kind", "rust")


def test_the_python_scaffold_runs_as_it_is(shop: Shop) -> None:
    shop.run("init", "mine")
    (shop.repository / "mine/1.tmp").rename(shop.repository / "mine/1")
    loaded = shop.load("mine", trust=("code",))
    assert loaded.run([np.ones((2, 3), np.float32)])[0].tolist() == [6, 6]
    assert loaded.signature.features == {"rows": ("a", "b", "c")}
    assert not list((shop.repository / "mine/1").rglob("*.pyc"))
