"""ONNX graphs for tests of the whole service: versions that can be told apart, and runs as long as wanted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper


def _bytes(graph: object) -> bytes:
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def versioned_model(version: int, ballast: int = 0) -> bytes:
    """x FP32[-1, 2] -> plus = x + version, minus = x - version: both outputs tell who answered.

    ballast: megabytes of weights that make the file big and its loading long
    """
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Add", ["x", "version"], ["plus"]),
        helper.make_node("Sub", ["x", "version"], ["minus"]),
    ]
    weights = [numpy_helper.from_array(np.array([version], np.float32), "version")]
    outputs = [value(name, TensorProto.FLOAT, ["batch", 2]) for name in ("plus", "minus")]
    if ballast:
        rows = np.random.default_rng(version).random((ballast, 1 << 18), dtype=np.float32)
        weights.append(numpy_helper.from_array(rows, "ballast"))
        weights.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
        # Gather keeps the weights in the graph: an output that depends on them cannot be folded away.
        nodes.append(helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64))
        nodes.append(helper.make_node("Mul", ["whole", "first"], ["at"]))
        nodes.append(helper.make_node("Gather", ["ballast", "at"], ["picked"]))
        nodes.append(helper.make_node("ReduceSum", ["picked"], ["weight"], keepdims=0))
        outputs.append(value("weight", TensorProto.FLOAT, []))
    return _bytes(
        helper.make_graph(nodes, "versioned", [value("x", TensorProto.FLOAT, ["batch", 2])], outputs, weights)
    )


def spinning_model(width: int = 192) -> bytes:
    """loops INT64[1] -> done FP32[1]: multiplies two matrices `loops` times, so a run takes as long as asked.

    It has no batch dimension: one request is one run.
    """
    value = helper.make_tensor_value_info
    matrix = [width, width]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["carried", "step"], ["multiplied"]),
            helper.make_node("Identity", ["going"], ["go_on"]),
        ],
        "body",
        [
            value("turn", TensorProto.INT64, []),
            value("going", TensorProto.BOOL, []),
            value("carried", TensorProto.FLOAT, matrix),
        ],
        [value("go_on", TensorProto.BOOL, []), value("multiplied", TensorProto.FLOAT, matrix)],
    )
    nodes = [
        helper.make_node("Squeeze", ["loops"], ["count"]),
        helper.make_node("Loop", ["count", "yes", "start"], ["end"], body=body),
        helper.make_node("ReduceMean", ["end"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "one"], ["done"]),
    ]
    weights = [
        numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.eye(width, dtype=np.float32), "start"),
        numpy_helper.from_array(np.eye(width, dtype=np.float32), "step"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    return _bytes(
        helper.make_graph(
            nodes,
            "spinning",
            [value("loops", TensorProto.INT64, [1])],
            [value("done", TensorProto.FLOAT, [1])],
            weights,
        )
    )


def flawed_model(version: int, above: float) -> bytes:
    """`versioned_model` that fails to run for a row whose first number is greater than `above`."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "axis"], ["first"]),
        helper.make_node("Greater", ["first", "limit"], ["over"]),
        helper.make_node("Cast", ["over"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["version", "place"], ["mine"]),  # there is nothing at place 1
        helper.make_node("Add", ["x", "mine"], ["plus"]),
        helper.make_node("Sub", ["x", "mine"], ["minus"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([version], np.float32), "version"),
        numpy_helper.from_array(np.array([above], np.float32), "limit"),
        *(numpy_helper.from_array(np.array([n], np.int64), name) for name, n in (("zero", 0), ("one", 1), ("axis", 1))),
    ]
    outputs = [value(name, TensorProto.FLOAT, ["batch", 2]) for name in ("plus", "minus")]
    return _bytes(helper.make_graph(nodes, "flawed", [value("x", TensorProto.FLOAT, ["batch", 2])], outputs, weights))


def noisy_model(version: int, noise: float) -> bytes:
    """`versioned_model` whose `plus` has normal noise on it, new in each run: it differs from itself."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["random"], mean=0.0, scale=noise),
        helper.make_node("Add", ["x", "version"], ["sum"]),
        helper.make_node("Add", ["sum", "random"], ["plus"]),
        helper.make_node("Sub", ["x", "version"], ["minus"]),
    ]
    weights = [numpy_helper.from_array(np.array([version], np.float32), "version")]
    outputs = [value(name, TensorProto.FLOAT, ["batch", 2]) for name in ("plus", "minus")]
    return _bytes(helper.make_graph(nodes, "noisy", [value("x", TensorProto.FLOAT, ["batch", 2])], outputs, weights))


def slow_model(version: int, turns: int, width: int = 192) -> bytes:
    """`versioned_model` that multiplies two matrices `turns` times before it answers.

    But not for numbers between -2 and 2, such as those that it is warmed up with: it is ready before anybody finds out.
    """
    value = helper.make_tensor_value_info
    matrix = [width, width]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["carried", "step"], ["multiplied"]),
            helper.make_node("Identity", ["going"], ["go_on"]),
        ],
        "body",
        [
            value("turn", TensorProto.INT64, []),
            value("going", TensorProto.BOOL, []),
            value("carried", TensorProto.FLOAT, matrix),
        ],
        [value("go_on", TensorProto.BOOL, []), value("multiplied", TensorProto.FLOAT, matrix)],
    )
    nodes = [
        # Nothing of the loop may be known before the run, or the graph would be folded when it is loaded.
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["start", "nothing"], ["begin"]),
        helper.make_node("Abs", ["x"], ["sizes"]),
        helper.make_node("ReduceMax", ["sizes"], ["size"], keepdims=0),
        helper.make_node("GreaterOrEqual", ["size", "two"], ["asked"]),
        helper.make_node("Cast", ["asked"], ["once"], to=TensorProto.INT64),
        helper.make_node("Mul", ["once", "turns"], ["count"]),
        helper.make_node("Loop", ["count", "yes", "begin"], ["end"], body=body),
        helper.make_node("ReduceMean", ["end"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["late"]),
        helper.make_node("Add", ["version", "late"], ["mine"]),
        helper.make_node("Add", ["x", "mine"], ["plus"]),
        helper.make_node("Sub", ["x", "mine"], ["minus"]),
    ]
    weights = [
        numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.array(turns, np.int64), "turns"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array(2, np.float32), "two"),
        numpy_helper.from_array(np.array([version], np.float32), "version"),
        numpy_helper.from_array(np.eye(width, dtype=np.float32), "start"),
        numpy_helper.from_array(np.eye(width, dtype=np.float32), "step"),
    ]
    outputs = [value(name, TensorProto.FLOAT, ["batch", 2]) for name in ("plus", "minus")]
    return _bytes(helper.make_graph(nodes, "slow", [value("x", TensorProto.FLOAT, ["batch", 2])], outputs, weights))


def doubling_graph(takes: str, gives: str) -> bytes:
    """FP32[-1, 2] -> twice that."""
    taken, given = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in (takes, gives))
    return _bytes(helper.make_graph([helper.make_node("Add", [takes, takes], [gives])], "twice", [taken], [given]))


SUM = """
class Model:
    def predict(self, inputs):
        return inputs["plus"].sum(axis=1)
"""


def put_stepped(folder: Path) -> None:
    """A version: raw FP32[-1, 2] is doubled by a graph, 1 is added, and code sums the row up: total FP32[-1]."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(versioned_model(1))
    (folder / "twice.onnx").write_bytes(doubling_graph("raw", "x"))
    (folder / "sum.py").write_text(SUM)
    after = {
        "file": "sum.py",
        "inputs": [{"name": "plus", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "total", "datatype": "FP32"}],
    }
    (folder / "model.yaml").write_text(json.dumps({"before": "twice.onnx", "after": after}))
