"""Requests whose beginning was seen before are decoded as if it had not been."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.codecs import open_inference_grpc, tensorflow_serving_grpc
from octoserve.codecs.protos import message
from octoserve.codecs.protos.alike import Alike
from octoserve.codecs.protos.wire import field
from octoserve.core.errors import OctoserveError

Infer: Any = message("inference.ModelInferRequest")
Predict: Any = message("tensorflow.serving.PredictRequest")


def infer(raw: bytes, model: str = "m", **others: Any) -> bytes:
    made = Infer(model_name=model, raw_input_contents=[raw], **others)
    made.inputs.add(name="x", datatype="FP32", shape=[len(raw) // 4])
    return bytes(made.SerializeToString())


def outcome_of_infer(decode: Any, data: bytes) -> Any:
    try:
        came = decode(data)
    except OctoserveError as error:
        return type(error), str(error)
    tensors = [(t.name, t.datatype, t.shape, bytes(t.raw or b"")) for t in came.tensors]
    return came.model, came.version, came.id, came.raw, came.outputs, came.timeout, tensors


RAW = st.binary(min_size=0, max_size=40)
AROUND = st.sampled_from(
    [
        lambda data, raw: data,
        lambda data, raw: data + field(3, b"an id"),
        lambda data, raw: data + field(7, raw),
        lambda data, raw: data + b"\0",
        lambda data, raw: data[:-1],
        lambda data, raw: field(7, raw) + field(1, b"m") + field(3, field(7, raw)),
        lambda data, raw: field(7, raw) + field(1, b"m") + field(7, raw),
        lambda data, raw: field(1, b"n") + data,
        lambda data, raw: data + field(15, field(7, raw)),
        lambda data, raw: data[: -len(raw) - 2] + field(7, raw + raw),
    ]
)


@given(st.lists(st.tuples(RAW, AROUND), min_size=1, max_size=12), st.sampled_from([{}, {"id": "7"}, {"model": "n"}]))
def test_infer_requests_in_any_order_mean_what_they_mean_alone(came: list[Any], others: dict[str, Any]) -> None:
    for raw, around in came:
        data = around(infer(raw, **others), raw)
        alone = outcome_of_infer(open_inference_grpc._decoded, data)
        assert outcome_of_infer(open_inference_grpc.decode_request, data) == alone
        assert outcome_of_infer(open_inference_grpc.decode_request, data) == alone


def predict(values: Any, typed: bool, **spec: Any) -> bytes:
    made = Predict()
    made.model_spec.name = "m"
    tensor = made.inputs["x"]
    tensor.dtype = 1
    tensor.tensor_shape.dim.add(size=len(values))
    if typed:
        tensor.float_val.extend(values)
    else:
        tensor.tensor_content = np.array(values, np.float32).tobytes()
    made.output_filter.extend(spec.get("wanted", []))
    return bytes(made.SerializeToString())


def outcome_of_predict(decode: Any, data: bytes) -> Any:
    try:
        asked, tensors, wanted = decode(data, 1 << 20)
    except OctoserveError as error:
        return type(error), str(error)
    return asked.model, asked.version, [(t.name, t.datatype, t.shape, bytes(t.raw or b"")) for t in tensors], wanted


VALUES = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=8)


@given(st.lists(st.tuples(VALUES, st.booleans(), st.sampled_from([[], ["y"]])), min_size=1, max_size=8))
def test_predict_requests_in_any_order_mean_what_they_mean_alone(came: list[Any]) -> None:
    for values, typed, wanted in came:
        data = predict(values, typed, wanted=wanted)
        for each in (data, data + field(3, b"y"), data + field(2, b""), data[:-1], data):
            alone = outcome_of_predict(tensorflow_serving_grpc._decoded, each)
            assert outcome_of_predict(tensorflow_serving_grpc.decode_predict, each) == alone


@pytest.mark.parametrize("dtype", [6, 4, 10], ids=["int8", "uint8", "bool"])
def test_small_numbers_that_look_like_bytes_are_read_one_by_one(dtype: int) -> None:
    def request(*values: int) -> bytes:
        made = Predict()
        made.model_spec.name = "m"
        tensor = made.inputs["x"]
        tensor.dtype = dtype
        tensor.tensor_shape.dim.add(size=10)
        (tensor.bool_val if dtype == 10 else tensor.int_val).extend(values)
        return bytes(made.SerializeToString())

    ones = request(*[1] * 10)
    for data in (ones, request(-1) if dtype == 6 else request(*[1] * 9), ones[:-1] + b"\x81", ones):
        alone = outcome_of_predict(tensorflow_serving_grpc._decoded, data)
        assert outcome_of_predict(tensorflow_serving_grpc.decode_predict, data) == alone


def test_a_beginning_that_was_seen_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (np.arange(i, i + 4, dtype=np.float32).tobytes() for i in (0, 9))
    open_inference_grpc.decode_request(infer(first))
    tensorflow_serving_grpc.decode_predict(predict([1, 2, 3, 4], typed=True), 1 << 20)
    monkeypatch.setattr(open_inference_grpc, "_parse", None)
    monkeypatch.setattr(tensorflow_serving_grpc, "_PredictRequest", None)
    assert open_inference_grpc.decode_request(infer(second)).tensors[0].raw == second
    _, (only,), _ = tensorflow_serving_grpc.decode_predict(predict([9, 10, 11, 12], typed=True), 1 << 20)
    assert only.raw == second


def test_what_is_remembered_is_bounded_and_true() -> None:
    whole: Alike[int] = Alike(lambda data: data[4:])
    for number in range(1000):
        data = number.to_bytes(4, "big") + b"content!"
        whole.learn(data, number, b"content!")
        assert whole.find(data[:4] + b"another!") == (number, b"another!")
    assert len(whole._known) <= 256
    short, other = b"headabc", b"headcontent!"
    whole.learn(short, 1, b"abc")
    assert whole.find(short) is None, "so few bytes may be there by chance"
    elsewhere: Alike[int] = Alike(lambda data: b"content!")
    elsewhere.learn(other, 1, b"content!")
    assert elsewhere.find(other) is None, "other bytes at the end did not come out"
