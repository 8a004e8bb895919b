"""A trained version of each format, small and quick to make: its folder, rows for it, and what its library predicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from onnx import TensorProto, helper

from octoserve.core.tensors import Array

NAMES = ("amount", "age", "hour")
CITIES = ("Bern", "Oslo", "Rome")


class Made(NamedTuple):
    """inputs: name -> rows. expected: output -> what the library itself gives for them."""

    inputs: dict[str, Array]
    expected: dict[str, Array]


def rows(count: int = 40) -> Array:
    """FP64 rows of the features `NAMES`."""
    random = np.random.default_rng(7)
    return np.round(random.uniform(0, 10, (count, len(NAMES))), 2)


def classes(table: Array, count: int = 2) -> Array:
    """What is to be learned: 0 to count - 1."""
    return np.clip((table.sum(axis=1) / 30 * count).astype(int), 0, count - 1)


def with_cities(count: int = 60) -> pd.DataFrame:
    """The same features, and a column of text that matters."""
    frame = pd.DataFrame(rows(count), columns=list(NAMES))
    frame["city"] = pd.Categorical([CITIES[i % 3] for i in range(count)], categories=CITIES)
    return frame


def columns_of(frame: pd.DataFrame, datatype: type) -> dict[str, Array]:
    """One array a column, text as bytes."""
    found: dict[str, Array] = {name: frame[name].to_numpy(datatype) for name in NAMES}
    found["city"] = np.array([str(city).encode() for city in frame["city"]], dtype=object)
    return found


def xgboost_model(folder: Path, file: str = "model.ubj") -> Made:
    """Of two classes."""
    import xgboost

    table = rows()
    told = xgboost.DMatrix(table, label=classes(table), feature_names=list(NAMES))
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3, "nthread": 1}, told, 5)
    booster.save_model(folder / file)
    return Made({"features": table.astype(np.float32)}, {"prediction": booster.predict(told)})


def xgboost_cities(folder: Path) -> Made:
    """With a column of text."""
    import xgboost

    frame = with_cities()
    target = frame["amount"] + 3 * (frame["city"] == "Oslo")
    told = xgboost.DMatrix(frame, label=target, enable_categorical=True)
    booster = xgboost.train({"max_depth": 4, "nthread": 1, "max_cat_to_onehot": 1}, told, 8)
    booster.save_model(folder / "model.json")
    return Made(columns_of(frame, np.float32), {"prediction": booster.predict(told)})


def lightgbm_model(folder: Path) -> Made:
    """Of three classes."""
    import lightgbm

    table = rows(80)
    told = lightgbm.Dataset(table, label=classes(table, 3), feature_name=list(NAMES))
    settings = {"objective": "multiclass", "num_class": 3, "min_data_in_leaf": 2, "verbose": -1, "num_threads": 1}
    booster = lightgbm.train(settings, told, 4)
    booster.save_model(folder / "model.txt")
    return Made({"features": table}, {"prediction": booster.predict(table)})


def lightgbm_cities(folder: Path) -> Made:
    """With a column of text."""
    import lightgbm

    frame = with_cities(200)
    target = frame["amount"] + 3 * (frame["city"] == "Oslo")
    settings = {"min_data_in_leaf": 2, "min_data_per_group": 2, "verbose": -1, "num_threads": 1}
    booster = lightgbm.train(settings, lightgbm.Dataset(frame, label=target), 8)
    booster.save_model(folder / "model.txt")
    return Made(columns_of(frame, np.float64), {"prediction": booster.predict(frame)})


def sklearn_model(folder: Path) -> Made:
    """A forest behind a scaler; its classes are texts."""
    import skops.io
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    table = rows()
    target = np.array(["legit", "fraud"])[classes(table)]
    model = make_pipeline(StandardScaler(), RandomForestClassifier(4, random_state=0, n_jobs=2)).fit(table, target)
    skops.io.dump(model, folder / "model.skops")
    return Made({"features": table}, {"label": model.predict(table), "probabilities": model.predict_proba(table)})


SKLEARN_CITIES = """
inputs:
  - {name: amount, datatype: FP64}
  - {name: age, datatype: FP64}
  - {name: hour, datatype: FP64}
  - {name: city, datatype: BYTES}
categories: {city: [Bern, Oslo, Rome]}
"""


def sklearn_cities(folder: Path) -> Made:
    """A pipeline that picks its columns by name."""
    import skops.io
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    frame = with_cities().astype({"city": object})
    target = frame["amount"] + 3 * (frame["city"] == "Oslo")
    columns = make_column_transformer((OneHotEncoder(), ["city"]), ("passthrough", list(NAMES)))
    model = make_pipeline(columns, Ridge()).fit(frame, target)
    skops.io.dump(model, folder / "model.skops")
    (folder / "model.yaml").write_text(SKLEARN_CITIES)
    return Made(columns_of(frame, np.float64), {"prediction": model.predict(frame)})


PYTHON = """
import numpy as np
from . import factors

class Model:
    def __init__(self, options):
        self.plus = options["plus"]

    {word} predict(self, inputs):
        rows = inputs["rows"] * factors.FACTOR + self.plus
        {wait}
        return {{"rows": rows, "kind": ["big" if row.sum() > 30 else "small" for row in rows]}}
"""
PYTHON_YAML = """
inputs: [{name: rows, datatype: FP32, shape: [-1, 3]}]
outputs: [{name: rows, datatype: FP32, shape: [-1, 3]}, {name: kind, datatype: BYTES}]
features: [amount, age, hour]
options: {plus: 1}
"""


def python_model(folder: Path, word: str = "def", wait: str = "pass") -> Made:
    """A class of two files."""
    (folder / "model.py").write_text(PYTHON.format(word=word, wait=wait))
    (folder / "factors.py").write_text("FACTOR = 2")
    (folder / "model.yaml").write_text(PYTHON_YAML)
    table = rows(8).astype(np.float32)
    wanted = table * np.float32(2) + np.float32(1)
    kinds = np.array(["big" if row.sum() > 30 else "small" for row in wanted])
    return Made({"rows": table}, {"rows": wanted, "kind": kinds})


def python_async(folder: Path) -> Made:
    """The same, awaited."""
    return python_model(folder, "async def", "import asyncio; await asyncio.sleep(0.01)")


ENSEMBLE = """
runtime: ensemble
options:
  steps:
    - part: scale
      inputs: {rows: raw}
      outputs: {rows: scaled}
    - part: score
      inputs: {features: scaled}
  outputs: [prediction, kind]
"""


def ensemble(folder: Path) -> Made:
    """A class doubles and adds one, a booster scores that."""
    for part in ("scale", "score"):
        (folder / part).mkdir()
    before = python_model(folder / "scale")
    xgboost_model(folder / "score")
    (folder / "model.yaml").write_text(ENSEMBLE)
    import xgboost

    booster = xgboost.Booster(model_file=folder / "score" / "model.ubj")
    scores = booster.predict(xgboost.DMatrix(before.expected["rows"], feature_names=list(NAMES)))
    return Made({"raw": before.inputs["rows"]}, {"prediction": scores, "kind": before.expected["kind"]})


STEPS = """
before:
  file: clean.py
  inputs: [{name: raw, datatype: FP32, shape: [-1, 3]}]
  features: [amount, age, hour]
  options: {plus: 1}
after: percent.onnx
"""
CLEAN = """
class Model:
    def __init__(self, options):
        self.plus = options["plus"]

    def predict(self, inputs):
        return inputs["raw"] * 2 + self.plus
"""


def percent(name: str) -> bytes:
    """ONNX: FP32[-1] under a name -> a hundred times that, under the same name."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Mul", [name, "hundred"], ["given"]), helper.make_node("Identity", ["given"], ["out"])]
    graph = helper.make_graph(
        nodes,
        "percent",
        [value(name, TensorProto.FLOAT, ["rows"])],
        [value("out", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor("hundred", TensorProto.FLOAT, [1], [100.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def with_steps(folder: Path) -> Made:
    """A class before a booster, a graph after it."""
    import xgboost

    xgboost_model(folder)
    (folder / "clean.py").write_text(CLEAN)
    (folder / "percent.onnx").write_bytes(percent("prediction"))
    (folder / "model.yaml").write_text(STEPS)
    table = rows().astype(np.float32)
    booster = xgboost.Booster(model_file=folder / "model.ubj")
    scores = booster.predict(xgboost.DMatrix(table * 2 + 1, feature_names=list(NAMES)))
    return Made({"raw": table}, {"out": scores * np.float32(100)})


FORMATS: dict[str, Callable[[Path], Made]] = {
    "xgboost": xgboost_model,
    "xgboost_cities": xgboost_cities,
    "lightgbm": lightgbm_model,
    "lightgbm_cities": lightgbm_cities,
    "sklearn": sklearn_model,
    "sklearn_cities": sklearn_cities,
    "python": python_model,
    "python_async": python_async,
    "ensemble": ensemble,
    "steps": with_steps,
}


def made(kind: str, repository: Path, name: str = "", version: int = 1, yaml: str = "") -> Made:
    """`<repository>/<name>/<version>` of this kind."""
    folder = repository / (name or kind) / str(version)
    folder.mkdir(parents=True)
    result = FORMATS[kind](folder)
    if yaml:
        (folder / "model.yaml").write_text(yaml)
    return result


def v2(inputs: dict[str, Array]) -> dict[str, Any]:
    """A request of the Open Inference Protocol, as JSON."""
    names = {"float32": "FP32", "float64": "FP64", "int64": "INT64", "object": "BYTES"}
    return {
        "inputs": [
            {
                "name": name,
                "datatype": names[array.dtype.name],
                "shape": list(array.shape),
                "data": [v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()],
            }
            for name, array in inputs.items()
        ]
    }
