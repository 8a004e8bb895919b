"""Makes what the servers serve and the clients send. Runs in the `tools` environment.

python prepare.py OUT_DIR

OUT_DIR/models/{fraud,mlp}/1/model.onnx   the repository
OUT_DIR/small/fraud/1/model.onnx          a repository with one small model
OUT_DIR/rolling/fraud/{1,2}/model.onnx    the same model twice, for rollouts
OUT_DIR/{fraud,mlp}.json                  a V2 request of one row
OUT_DIR/fraud.grpc                        the same as a framed gRPC message with a raw tensor
OUT_DIR/answer.json, answer.pb            the right answer to it, for the servers of constants
OUT_DIR/expected.json                     rows and what bare ONNX Runtime says to them
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2

MODELS = ("fraud", "mlp")
ROWS = 8
BUILD = Path(__file__).parent.parent / "examples" / "models" / "build.py"


def main(out: Path) -> None:
    spec = importlib.util.spec_from_file_location("example_models", BUILD)
    assert spec is not None
    assert spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    models.build(out / "models", MODELS)
    models.build(out / "small", ["fraud"])
    for version in ("1", "2"):
        folder = out / "rolling" / "fraud" / version
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / "models" / "fraud" / "1" / "model.onnx", folder / "model.onnx")

    expected = {}
    for name in MODELS:
        rows = getattr(models, f"{name}_rows")()[0][:ROWS]
        session = ort.InferenceSession(out / "models" / name / "1" / "model.onnx")
        label, probabilities = session.run(None, {"features": rows})
        expected[name] = {
            "rows": [_shortest(row) for row in rows],
            "label": label.tolist(),
            "probabilities": probabilities.tolist(),
        }
        (out / f"{name}.json").write_text(json.dumps(_request(expected[name]["rows"][0])))
    (out / "expected.json").write_text(json.dumps(expected))
    _write_grpc(out, expected["fraud"])


def _shortest(row: np.ndarray[Any, np.dtype[np.float32]]) -> list[float]:
    """The shortest decimals that give the same float32: what a client's own numbers look like."""
    return [float(str(value)) for value in row]


def _request(row: list[float]) -> dict[str, Any]:
    return {"inputs": [{"name": "features", "shape": [1, len(row)], "datatype": "FP32", "data": row}]}


def _write_grpc(out: Path, fraud: dict[str, Any]) -> None:
    row = np.array([fraud["rows"][0]], dtype=np.float32)
    tensor = triton.InferInput("features", list(row.shape), "FP32")
    tensor.set_data_from_numpy(row)
    request = service_pb2.ModelInferRequest(model_name="fraud")
    request.inputs.append(tensor._get_tensor())
    request.raw_input_contents.append(row.tobytes())
    message = request.SerializeToString()
    (out / "fraud.grpc").write_bytes(struct.pack(">?I", False, len(message)) + message)

    answer = service_pb2.ModelInferResponse(model_name="fraud", model_version="1")
    label = np.array(fraud["label"][:1], dtype=np.int64)
    probabilities = np.array(fraud["probabilities"][:1], dtype=np.float32)
    outputs = []
    for name, datatype, array in (("label", "INT64", label), ("probabilities", "FP32", probabilities)):
        answer.outputs.add(name=name, datatype=datatype, shape=array.shape)
        answer.raw_output_contents.append(array.tobytes())
        data = array.ravel().tolist()
        outputs.append({"name": name, "shape": list(array.shape), "datatype": datatype, "data": data})
    (out / "answer.pb").write_bytes(answer.SerializeToString())
    document = {"model_name": "fraud", "model_version": "1", "outputs": outputs}
    (out / "answer.json").write_text(json.dumps(document, separators=(",", ":")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
