"""Builds the model repository that the demo, the tests and the benchmark serve.

    python examples/models/build.py OUT_DIR [--only NAME ...] [--version N] [--worse]

writes `OUT_DIR/<model>/<version>/model.onnx`. The models are trained on real data that ships inside
Python packages (nothing is downloaded), with fixed seeds, so the same packages give the same bytes.
README.md beside this file says what each model takes and gives.

Each builder imports what it needs itself: an echo model needs only `onnx`, not scikit-learn.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

Builder = Callable[[int], bytes]
"""Takes the version, a positive integer that also moves the seed; gives the ONNX file's bytes."""

# What every onnxruntime since 1.20 loads; the onnx package's own newest would be ahead of it.
_IR_VERSION = 10
_OPSET = 21
_ML_OPSET = 3

ECHO_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "fp16": "FLOAT16",
    "fp32": "FLOAT",
    "fp64": "DOUBLE",
    "bf16": "BFLOAT16",
    "bytes": "STRING",
}
"""Datatype of the Open Inference Protocol, in lower case -> ONNX's name for it."""


# --- models trained on real data -----------------------------------------------------------------


def fraud_rows() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The rows behind `fraud`: FP32[569, 30] and INT64[569], 1 = benign."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    return data.data.astype(np.float32), data.target.astype(np.int64)


def _misjoined(labels: NDArray[np.int64], version: int) -> NDArray[np.int64]:
    """The same labels beside other rows, as a join on the wrong column leaves them."""
    return np.random.default_rng(version).permutation(labels)


def _fraud(version: int, worse: bool = False) -> bytes:
    """A gradient-boosted classifier over 30 numbers: the shape and cost of a card-fraud model."""
    from sklearn.ensemble import GradientBoostingClassifier

    rows, labels = fraud_rows()
    labels = _misjoined(labels, version) if worse else labels
    # Later versions learn from fewer rows with shallower trees, so their answers can be told apart.
    chosen = np.random.default_rng(version).permutation(len(rows))[: len(rows) if version == 1 else 300]
    classifier = GradientBoostingClassifier(max_depth=3 if version == 1 else 2, random_state=version)
    return _from_sklearn("fraud", classifier.fit(rows[chosen], labels[chosen]), [("features", "float", 30)])


def mlp_rows() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The rows behind `mlp`: handwritten digits at 16x16, FP32[1797, 256] in 0..1, and the digit."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    data = load_digits()
    images = zoom(data.images, (1, 2, 2), order=1) / 16.0
    return images.reshape(len(images), 256).astype(np.float32), data.target.astype(np.int64)


def _mlp(version: int) -> bytes:
    """256-1024-640-10: 0.93 million parameters."""
    from sklearn.neural_network import MLPClassifier

    rows, labels = mlp_rows()
    network = MLPClassifier((1024, 640), max_iter=4, batch_size=128, random_state=version)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # four passes get 95 % right, enough here; it asks for more
        network.fit(rows, labels)
    return _from_sklearn("mlp", network, [("features", "float", 256)])


def wine_rows() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The rows behind `wine`: 13 chemical measurements, FP32[178, 13], and the cultivar 0..2."""
    from sklearn.datasets import load_wine

    data = load_wine()
    return data.data.astype(np.float32), data.target.astype(np.int64)


def _wine(version: int, worse: bool = False) -> bytes:
    """LightGBM, three classes."""
    import lightgbm
    from onnxmltools.convert import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    rows, labels = wine_rows()
    labels = _misjoined(labels, version) if worse else labels
    classifier = lightgbm.LGBMClassifier(
        n_estimators=40,
        learning_rate=0.1 / version,
        min_child_samples=5,
        random_state=version,
        n_jobs=1,
        deterministic=True,
        verbose=-1,
    )
    classifier.fit(rows, labels)
    model = convert_lightgbm(
        classifier,
        name="wine",
        initial_types=[("features", FloatTensorType([None, rows.shape[1]]))],
        target_opset=15,
        zipmap=False,
    )
    # The converter declares the label's shape as [1]; it gives one label a row.
    model.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    return _finish(model)


PENGUIN_MEASUREMENTS = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g")


def penguin_rows() -> tuple[list[dict[str, Any]], list[str]]:
    """The rows behind `penguins`: for each bird its columns by name, and its species."""
    from importlib.util import find_spec

    spec = find_spec("palmerpenguins")  # the package itself would import pandas
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the model `penguins` needs its data set: pip install palmerpenguins")
    with (Path(spec.origin).parent / "data" / "penguins.csv").open(newline="") as file:
        birds = [row for row in csv.DictReader(file) if row["body_mass_g"] not in ("", "NA")]
    rows: list[dict[str, Any]] = [
        {
            "island": bird["island"],
            "sex": bird["sex"] if bird["sex"] in ("female", "male") else "unknown",
            **{name: float(bird[name]) for name in PENGUIN_MEASUREMENTS},
        }
        for bird in birds
    ]
    return rows, [bird["species"] for bird in birds]


def _penguins(version: int) -> bytes:
    """Two string columns and four numbers in, the species' name out."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rows, species = penguin_rows()
    table = np.array([list(row.values()) for row in rows], dtype=object)
    columns = ColumnTransformer(
        [
            ("words", OneHotEncoder(handle_unknown="ignore"), [0, 1]),
            ("numbers", StandardScaler(), [2, 3, 4, 5]),
        ]
    )
    pipeline = make_pipeline(columns, LogisticRegression(C=1.0 / version, max_iter=500))
    pipeline.fit(table, np.array(species))
    inputs = [("island", "string", 1), ("sex", "string", 1), *((n, "float", 1) for n in PENGUIN_MEASUREMENTS)]
    return _from_sklearn("penguins", pipeline, inputs)


def _from_sklearn(name: str, estimator: Any, inputs: Sequence[tuple[str, str, int]]) -> bytes:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    types = {"float": FloatTensorType, "string": StringTensorType}
    model = convert_sklearn(
        estimator,
        name,
        initial_types=[(column, types[kind]([None, width])) for column, kind, width in inputs],
        target_opset={"": 18, "ai.onnx.ml": _ML_OPSET},
        options={"zipmap": False},
    )
    return _finish(model)


# --- a model that nobody here made -----------------------------------------------------------------


def _content_type(version: int) -> bytes:
    """Magika's own ONNX file, byte for byte. `content_type.py` makes its input from a file."""
    from importlib.util import find_spec

    spec = find_spec("magika")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the model `content_type` is Magika's: pip install magika")
    files = sorted((Path(spec.origin).parent / "models").glob("*/model.onnx"))
    if not files:
        raise FileNotFoundError(f"no models/*/model.onnx in the magika package at {spec.origin}")
    return files[-1].read_bytes()


# --- graphs written by hand --------------------------------------------------------------------------


def _passage_match(version: int) -> bytes:
    """Late interaction: how well a passage's token embeddings answer a query's, and where.

    Three inputs with two datatypes, four outputs with three, and three dimensions that vary on their own.
    """
    from onnx import TensorProto, helper, numpy_helper

    def value(name: str, datatype: int, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, datatype, list(shape))

    def constant(name: str, array: NDArray[Any]) -> onnx.TensorProto:
        return numpy_helper.from_array(array, name)

    node = helper.make_node
    nodes = [
        node("Transpose", ["passage"], ["columns"], perm=[0, 2, 1]),
        node("MatMul", ["query", "columns"], ["similarity"]),
        node("Unsqueeze", ["passage_mask", "one"], ["mask"]),
        node("Where", ["mask", "similarity", "nowhere"], ["masked"]),
        node("ArgMax", ["masked"], ["best"], axis=2, keepdims=0),
        node("ReduceMax", ["masked", "two"], ["strength"], keepdims=0),
        node("Greater", ["strength", "threshold"], ["matched"]),
        node("ReduceSum", ["strength", "one"], ["score"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "passage_match",
        [
            value("query", TensorProto.FLOAT, "batch", "query_tokens", 16),
            value("passage", TensorProto.FLOAT, "batch", "passage_tokens", 16),
            value("passage_mask", TensorProto.BOOL, "batch", "passage_tokens"),
        ],
        [
            value("score", TensorProto.FLOAT, "batch"),
            value("best", TensorProto.INT64, "batch", "query_tokens"),
            value("matched", TensorProto.BOOL, "batch", "query_tokens"),
            value("similarity", TensorProto.FLOAT, "batch", "query_tokens", "passage_tokens"),
        ],
        [
            constant("one", np.array([1], np.int64)),
            constant("two", np.array([2], np.int64)),
            constant("nowhere", np.array(-1e9, np.float32)),
            constant("threshold", np.array(0.5, np.float32)),
        ],
    )
    return _finish(_plain_model(graph))


def _identity(name: str, onnx_type: str, shape: Sequence[str | int]) -> bytes:
    from onnx import TensorProto, helper

    datatype = getattr(TensorProto, onnx_type)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["output"])],
        name,
        [helper.make_tensor_value_info("input", datatype, list(shape))],
        [helper.make_tensor_value_info("output", datatype, list(shape))],
    )
    return _finish(_plain_model(graph))


def _echo(datatype: str) -> Builder:
    return lambda version: _identity(f"echo_{datatype}", ECHO_DATATYPES[datatype], ["batch", "columns"])


def _fixed(version: int) -> bytes:
    """No batch dimension: exactly three numbers, doubled, so a request must be run on its own."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Add", ["input", "input"], ["output"])],
        "fixed",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [3])],
    )
    return _finish(_plain_model(graph))


def _plain_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    from onnx import helper

    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])


def _finish(model: onnx.ModelProto) -> bytes:
    import onnx

    model.ir_version = min(model.ir_version or _IR_VERSION, _IR_VERSION)
    opsets = sorted(model.opset_import, key=lambda opset: opset.domain)  # converters keep them in a set
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


# --- the repository ----------------------------------------------------------------------------------

BUILDERS: dict[str, Builder] = {
    "fraud": _fraud,
    "mlp": _mlp,
    "wine": _wine,
    "penguins": _penguins,
    "content_type": _content_type,
    "passage_match": _passage_match,
    "fixed": _fixed,
    **{f"echo_{datatype}": _echo(datatype) for datatype in ECHO_DATATYPES},
}
"""Model name -> how to build it."""

WORSE: dict[str, Builder] = {
    "fraud": lambda version: _fraud(version, worse=True),
    "wine": lambda version: _wine(version, worse=True),
}
"""Model name -> how to build a version that learnt from labels beside the wrong rows: fast, free of errors, wrong."""


def build(out: Path, names: Sequence[str] | None = None, version: int = 1, worse: bool = False) -> list[Path]:
    """Writes the named models (all by default) under `out` and returns their version folders.

    A version folder appears whole, by one rename, so it may be written into a repository that is
    being served. A version that is there already is left alone when its bytes are the same.

    Raises:
        ValueError: an unknown name, or a version below 1.
        FileExistsError: the version is there with other bytes; versions are immutable.
    """
    builders = WORSE if worse else BUILDERS
    names = list(builders) if names is None else list(names)
    unknown = [name for name in names if name not in builders]
    if unknown:
        what = "model that can be made worse is" if worse else "model is"
        raise ValueError(f"no {what} called {', '.join(unknown)}; there are {', '.join(builders)}")
    if version < 1:
        raise ValueError(f"a version is a positive integer, not {version}")
    return [_publish(out / name / str(version), builders[name](version)) for name in names]


def _publish(folder: Path, data: bytes) -> Path:
    artifact = folder / "model.onnx"
    if artifact.exists():
        if artifact.read_bytes() != data:
            raise FileExistsError(f"{folder} holds another model; versions are immutable: choose a new one")
        return folder
    staging = folder.parent / f".{folder.name}.{os.getpid()}"
    staging.mkdir(parents=True, exist_ok=True)
    (staging / artifact.name).write_bytes(data)
    staging.rename(folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the example model repository.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(BUILDERS))
    parser.add_argument("--version", type=int, default=1, metavar="N", help="2 and up differ from 1")
    parser.add_argument("--worse", action="store_true", help=f"learn from mixed-up labels ({', '.join(WORSE)})")
    options = parser.parse_args(arguments)
    for name in options.only or (WORSE if options.worse else BUILDERS):
        began = time.perf_counter()
        try:
            [folder] = build(options.out, [name], options.version, options.worse)
        except (ValueError, FileExistsError, ModuleNotFoundError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        size = (folder / "model.onnx").stat().st_size
        print(f"{folder}  {size / 1000:.0f} kB  {time.perf_counter() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
