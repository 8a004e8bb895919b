"""tensorflow-serving-api's own stubs, unmodified."""

from __future__ import annotations

import json
import subprocess
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octoserve.codecs.protos import files, message
from support import apart, tensorflow_stubs
from support.examples import INPUTS
from support.service import Served
from support.wire import rest_binary

Call = tuple[str, str, dict[str, Any]]
PREDICT = "PredictionService", "Predict"


def run(*arguments: str, calls: list[Call] | None = None) -> Any:
    command = [str(apart.python_of("tensorflow-serving")), str(Path(tensorflow_stubs.__file__)), *arguments]
    done = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def ask(examples: Served) -> Callable[..., list[Any]]:
    """Makes calls one after the other."""
    return lambda *calls: run(examples.grpc, calls=list(calls))


def test_our_messages_are_theirs() -> None:
    """Every field of ours has number, type and repetition of theirs; what we leave out is passed over."""
    theirs = run()
    mine: list[Any] = [
        message(kind.lstrip("."))
        for service in files()["tensorflow_serving.proto"].service
        for method in service.method
        for kind in (method.input_type, method.output_type)
    ]
    waiting = [kind.DESCRIPTOR for kind in mine] + [message("tensorflow.serving.SignatureDefMap").DESCRIPTOR]
    seen = set()
    while waiting:
        kind = waiting.pop()
        if kind.full_name in seen:
            continue
        seen.add(kind.full_name)
        for field in kind.fields:
            number, type_, repeated = theirs[kind.full_name][field.name]
            enum = field.full_name == "tensorflow.serving.StatusProto.error_code"  # an int32 here: the same on the wire
            assert (field.number, field.is_repeated) == (number, repeated), field.full_name
            assert enum or field.type == type_, field.full_name
            waiting += [field.message_type] if field.message_type is not None else []
    assert "tensorflow.TensorProto" in seen


def shape_of(array: np.ndarray) -> dict[str, Any]:
    return {"dim": [{"size": str(n)} for n in array.shape]}


def numbers_of(tensor: dict[str, Any]) -> np.ndarray:
    (name,) = tensor.keys() - {"dtype", "tensor_shape"}
    kinds = {"float_val": "<f4", "int64_val": "<i8", "double_val": "<f8", "int_val": "<i4"}
    return np.array(tensor[name], kinds[name]).reshape([int(dim["size"]) for dim in tensor["tensor_shape"]["dim"]])


def test_predict_in_both_forms(examples: Served, ask: Callable[..., list[Any]]) -> None:
    [sent] = INPUTS["fraud"](3, np.random.default_rng(0))
    head = {"dtype": "DT_FLOAT", "tensor_shape": shape_of(sent.array)}
    typed = {**head, "float_val": sent.array.ravel().tolist()}
    whole = {**head, "tensor_content": b64encode(sent.array.tobytes()).decode()}
    spec = {"name": "fraud", "version": "1", "signature_name": "serving_default"}
    first, second, one = ask(
        (*PREDICT, {"model_spec": spec, "inputs": {"features": typed}}),
        (*PREDICT, {"model_spec": {"name": "fraud"}, "inputs": {"features": whole}}),
        (*PREDICT, {"model_spec": spec, "inputs": {"features": whole}, "output_filter": ["label"]}),
    )
    assert first == second
    assert first["model_spec"] == spec
    expected = rest_binary(examples, "fraud", [sent])
    assert first["outputs"].keys() == expected.keys()
    for name, got in expected.items():
        array = numbers_of(first["outputs"][name])
        assert (array.shape, array.tobytes()) == (got.shape, got.raw)
    assert one["outputs"] == {"label": first["outputs"]["label"]}


def test_text_and_one_value_for_all_rows(examples: Served, ask: Callable[..., list[Any]]) -> None:
    sent = INPUTS["penguins"](2, np.random.default_rng(0))
    inputs: dict[str, Any] = {}
    for one in sent:
        field = "string_val" if one.datatype == "BYTES" else "float_val"
        values = [b64encode(v).decode() for v in one.array.ravel()] if one.datatype == "BYTES" else one.array.ravel()
        dtype = "DT_STRING" if one.datatype == "BYTES" else "DT_FLOAT"
        inputs[one.name] = {"dtype": dtype, "tensor_shape": shape_of(one.array), field: list(map(_plain, values))[:1]}
    [answer] = ask((*PREDICT, {"model_spec": {"name": "penguins"}, "inputs": inputs}))
    same = [one._replace(array=np.repeat(one.array[:1], 2, axis=0)) for one in sent]
    expected = rest_binary(examples, "penguins", same)
    assert numbers_of(answer["outputs"]["probabilities"]).tobytes() == expected["probabilities"].raw
    labels = [b64encode(v).decode() for v in expected["label"].array().ravel()]
    assert answer["outputs"]["label"]["string_val"] == labels


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else float(value)


def test_the_rest_of_the_services(examples: Served, ask: Callable[..., list[Any]]) -> None:
    fraud = {"model_spec": {"name": "fraud"}}
    row = {"features": {"float_list": {"value": [1.0] * 30}}}
    listed = {"example_list": {"examples": [{"features": {"feature": row}}]}}
    x = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "1"}, {"size": "2"}]}, "float_val": [1, 2]}
    classified, regressed, metadata, status, missing, label, signature, reload, many = ask(
        ("PredictionService", "Classify", {**fraud, "input": listed}),
        ("PredictionService", "Regress", {**fraud, "input": listed}),
        ("PredictionService", "GetModelMetadata", {**fraud, "metadata_field": ["signature_def"]}),
        ("ModelService", "GetModelStatus", {"model_spec": {"name": "versioned"}}),
        (*PREDICT, {"model_spec": {"name": "nothing"}}),
        (*PREDICT, {"model_spec": {"name": "versioned", "version_label": "none"}, "inputs": {"x": x}}),
        (*PREDICT, {"model_spec": {"name": "versioned", "signature_name": "none"}, "inputs": {"x": x}}),
        ("ModelService", "HandleReloadConfigRequest", {"config": {"model_config_list": {"config": [{"name": "m"}]}}}),
        ("PredictionService", "MultiInference", {"tasks": [{"model_spec": {"name": "fraud"}}]}),
    )
    body = {"examples": [{"features": [1.0] * 30}]}
    [scores] = examples.ask("POST", "/v1/models/fraud:classify", body).json()["result"]
    [classes] = classified["result"]["classifications"]
    assert [[one["label"], np.float32(one["score"])] for one in classes["classes"]] == [
        [str(label), np.float32(score)] for label, score in scores
    ]
    assert regressed[0] == "INVALID_ARGUMENT"
    said = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert said["inputs"]["features"]["dtype"] == "DT_FLOAT"
    assert [(one["version"], one["state"]) for one in status["model_version_status"]] == [
        ("3", "AVAILABLE"), ("2", "AVAILABLE"), ("1", "AVAILABLE"),
    ]  # fmt: skip
    assert missing[0] == "NOT_FOUND"
    assert label[0] == "INVALID_ARGUMENT"
    assert signature[0] == "FAILED_PRECONDITION"
    assert (reload[0], "octoserve.yaml" in reload[1]) == ("UNIMPLEMENTED", True)
    assert many[0] == "UNIMPLEMENTED"
