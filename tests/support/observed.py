"""A model with features of every kind, and a service that records and watches it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from support.supervised import publish

YAML = """
features: {x: [amount, age, ssn]}
"""
ROWS = 400


def observed_graph(shift: float = 0.0) -> bytes:
    """x FP32[-1, 3] of amount, age, ssn; city BYTES[-1], vip BOOL[-1] -> score FP32[-1], seen BYTES[-1]."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weights"], ["summed"]),
            helper.make_node("Add", ["summed", "shift"], ["score"]),
            helper.make_node("Identity", ["city"], ["seen"]),
            helper.make_node("Identity", ["vip"], ["was_vip"]),
        ],
        "observed",
        [
            value("x", TensorProto.FLOAT, ["batch", 3]),
            value("city", TensorProto.STRING, ["batch"]),
            value("vip", TensorProto.BOOL, ["batch"]),
        ],
        [
            value("score", TensorProto.FLOAT, ["batch"]),
            value("seen", TensorProto.STRING, ["batch"]),
            value("was_vip", TensorProto.BOOL, ["batch"]),
        ],
        [
            numpy_helper.from_array(np.array([0.01, 0.5, 0.0], np.float32), "weights"),
            numpy_helper.from_array(np.array([shift], np.float32), "shift"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = made.SerializeToString()
    return content


def put(repository: Path, model: str = "loans", version: int = 1) -> Path:
    """The model in a repository."""
    (repository / model).mkdir(parents=True, exist_ok=True)
    folder = publish(repository, model, version, observed_graph(float(version)))
    (folder / "model.yaml").write_text(YAML)
    return folder


def rows(
    count: int, seed: int = 1, *, older: float = 0.0, cities: tuple[float, ...] = (0.5, 0.3, 0.2)
) -> dict[str, Any]:
    """A column a feature."""
    random = np.random.default_rng(seed)
    return {
        "amount": random.lognormal(3.0, 1.0, count).astype(np.float32),
        "age": (random.normal(40.0, 10.0, count) + older).astype(np.float32),
        "ssn": random.integers(1e5, 9e5, count).astype(np.float32),
        "city": random.choice(["Köln", "Bonn", "Ulm"], count, p=list(cities)),
        "vip": random.random(count) < 0.2,
    }


def request(columns: dict[str, Any], first: int, count: int, id_: str = "") -> dict[str, Any]:
    """`count` rows as an inference request."""
    part = slice(first, first + count)
    x = np.stack([columns[name][part] for name in ("amount", "age", "ssn")], axis=1)
    asked: dict[str, Any] = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [count, 3], "data": x.ravel().tolist()},
            {"name": "city", "datatype": "BYTES", "shape": [count], "data": columns["city"][part].tolist()},
            {"name": "vip", "datatype": "BOOL", "shape": [count], "data": columns["vip"][part].tolist()},
        ]
    }
    return asked | ({"id": id_} if id_ else {})
