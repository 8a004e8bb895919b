"""The same rows in V2's and TensorFlow Serving's tensors, in every form, give the same bytes of prediction."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.echo_inputs import echo_inputs
from support.examples import ECHOES, INPUTS
from support.scale import scale
from support.service import Served
from support.wire import (
    CONTENTS,
    DTYPES,
    UNLIMITED,
    Outputs,
    Refused,
    Sent,
    grpc_infer,
    raw_of,
    rest_binary,
    rest_json,
    tensorflow_predict,
)

SOME = settings(max_examples=scale(40, 500))


@pytest.fixture(scope="module")
def channel(examples: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(examples.grpc, options=UNLIMITED) as channel:
        yield channel


def every_way(service: Served, channel: grpc.Channel, model: str, inputs: list[Sent]) -> dict[str, Outputs]:
    """The answers by the form they came in; a form that the datatypes have not is left out."""
    ways = {
        "REST binary": rest_binary(service, model, inputs),
        "gRPC raw": grpc_infer(channel, model, inputs),
        "TensorFlow typed": tensorflow_predict(channel, model, inputs),
        "TensorFlow whole": tensorflow_predict(channel, model, inputs, whole=True),
    }
    if all(sent.datatype != "BF16" for sent in inputs):
        ways["REST JSON"] = rest_json(service, model, inputs)
    if all(sent.datatype in CONTENTS for sent in inputs):
        ways["gRPC typed"] = grpc_infer(channel, model, inputs, typed=True)
    return ways


def agreed(ways: dict[str, Outputs]) -> Outputs:
    first = ways["gRPC raw"]
    for way, outputs in ways.items():
        assert outputs == first, f"{way} differs from gRPC raw"
    return first


@pytest.mark.parametrize("model", sorted(ECHOES))
def test_echo_is_bit_for_bit_the_same_every_way(examples: Served, channel: grpc.Channel, model: str) -> None:
    @SOME
    @given(echo_inputs(ECHOES[model]))
    def check(sent: Sent) -> None:
        got = agreed(every_way(examples, channel, model, [sent]))["output"]
        assert got.shape == sent.array.shape
        assert got.raw == raw_of(sent.datatype, sent.array)

    check()


@pytest.mark.parametrize("model", sorted(INPUTS.keys() - ECHOES.keys()))
def test_models_answer_the_same_every_way(examples: Served, channel: grpc.Channel, model: str) -> None:
    @settings(max_examples=scale(5, 60))
    @given(st.integers(1, 6), st.integers(0, 2**32))
    def check(rows: int, seed: int) -> None:
        inputs = INPUTS[model](rows, np.random.default_rng(seed))
        answer = agreed(every_way(examples, channel, model, inputs))
        if model != "fixed":
            assert {got.shape[0] for got in answer.values()} == {rows}

    check()


def test_every_way_was_tried(examples: Served, channel: grpc.Channel) -> None:
    """What the other tests compare is not left out without a word."""
    random = np.random.default_rng(0)
    tried = {model: len(every_way(examples, channel, model, maker(2, random))) for model, maker in INPUTS.items()}
    assert {model for model, ways in tried.items() if ways < 6} == {"echo_fp16", "echo_bf16"}


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
def test_payloads_of_nans_survive_in_raw_forms(examples: Served, channel: grpc.Channel, datatype: str) -> None:
    size = np.dtype(DTYPES[datatype]).itemsize
    quiet = {"FP16": "7e01 fe02", "FP32": "7fc00001 ffc01234", "FP64": "7ff8000000000001 fff80000deadbeef",
             "BF16": "7fc1 ffc2"}[datatype]  # fmt: skip
    raw = b"".join(bytes.fromhex(word)[::-1] for word in quiet.split())
    sent = Sent("input", datatype, np.frombuffer(raw, DTYPES[datatype]).reshape(1, len(raw) // size))
    model = f"echo_{datatype.lower()}"
    assert rest_binary(examples, model, [sent])["output"].raw == raw
    assert grpc_infer(channel, model, [sent])["output"].raw == raw
    if datatype != "FP32":  # no pair of conversions to and from Python's float keeps its payload
        assert tensorflow_predict(channel, model, [sent], whole=True)["output"].raw == raw


@pytest.mark.parametrize("model", ["fraud", "wine", "penguins", "passage_match"])
def test_requested_outputs_are_the_same_tensors(examples: Served, channel: grpc.Channel, model: str) -> None:
    inputs = INPUTS[model](3, np.random.default_rng(1))
    whole = agreed(every_way(examples, channel, model, inputs))
    for name in whole:
        wanted = {name: whole[name]}
        assert rest_json(examples, model, inputs, outputs=[{"name": name}]) == wanted
        assert rest_binary(examples, model, inputs, outputs=[{"name": name}]) == wanted
        assert grpc_infer(channel, model, inputs, outputs=[{"name": name}]) == wanted
        assert grpc_infer(channel, model, inputs, typed=True, outputs=[{"name": name}]) == wanted
        assert tensorflow_predict(channel, model, inputs, output_filter=[name]) == wanted
    backwards = [{"name": name} for name in reversed(whole)]
    assert list(rest_json(examples, model, inputs, outputs=backwards)) == [o["name"] for o in backwards]
    assert list(grpc_infer(channel, model, inputs, outputs=backwards)) == [o["name"] for o in backwards]


def test_rows_of_one_request_are_those_of_many(examples: Served, channel: grpc.Channel) -> None:
    """How rows are split over requests changes nothing."""
    inputs = INPUTS["fraud"](8, np.random.default_rng(2))
    together = grpc_infer(channel, "fraud", inputs)
    alone = [rest_json(examples, "fraud", [Sent("features", "FP32", inputs[0].array[i : i + 1])]) for i in range(8)]
    for name, got in together.items():
        assert b"".join(one[name].raw for one in alone) == got.raw


MISFITS = [
    ("echo_fp32", Sent("inputs", "FP32", np.zeros((1, 1))), "input"),
    ("echo_fp32", Sent("input", "FP64", np.zeros((1, 1))), "FP32"),
    ("echo_fp32", Sent("input", "FP32", np.zeros((1, 1, 1))), "shape"),
    ("fraud", Sent("features", "FP32", np.zeros((1, 29))), "30"),
    ("fixed", Sent("input", "FP32", np.zeros(4)), "3"),
]


@pytest.mark.parametrize(("model", "sent", "word"), MISFITS)
def test_refusals_are_the_same_every_way(
    examples: Served, channel: grpc.Channel, model: str, sent: Sent, word: str
) -> None:
    texts = set()
    for way in (
        lambda: rest_json(examples, model, [sent]),
        lambda: rest_binary(examples, model, [sent]),
        lambda: grpc_infer(channel, model, [sent]),
        lambda: grpc_infer(channel, model, [sent], typed=True),
        lambda: tensorflow_predict(channel, model, [sent]),
        lambda: tensorflow_predict(channel, model, [sent], whole=True),
    ):
        with pytest.raises(Refused) as refusal:
            way()
        assert refusal.value.status in (400, grpc.StatusCode.INVALID_ARGUMENT)
        texts.add(refusal.value.text)
    assert len(texts) == 1, texts
    assert word in texts.pop()


@pytest.mark.parametrize("model", sorted(ECHOES))
def test_a_tensor_without_elements_comes_back(examples: Served, channel: grpc.Channel, model: str) -> None:
    dtype = "O" if ECHOES[model] == "BYTES" else DTYPES[ECHOES[model]]
    for shape in ((0, 3), (2, 0)):
        got = agreed(every_way(examples, channel, model, [Sent("input", ECHOES[model], np.empty(shape, dtype))]))
        assert got["output"].shape == shape
        assert got["output"].raw == b""


def test_bytes_that_are_no_text_are_refused_by_a_model_of_text(examples: Served, channel: grpc.Channel) -> None:
    """ONNX strings are UTF-8: the same refusal at both doors, and no 500."""
    sent = Sent("input", "BYTES", np.array([[b"\xff\xfe"]], dtype=object))
    with pytest.raises(Refused) as rest:
        rest_binary(examples, "echo_bytes", [sent])
    with pytest.raises(Refused) as raw:
        grpc_infer(channel, "echo_bytes", [sent])
    assert rest.value.status == 400
    assert raw.value.status is grpc.StatusCode.INVALID_ARGUMENT
    assert rest.value.text == raw.value.text


def test_numbers_that_do_not_fit_are_refused_and_never_wrapped(examples: Served) -> None:
    for datatype, value in (
        ("UINT8", 256), ("UINT8", -1), ("INT8", 128), ("INT16", -32769), ("UINT32", 2**32), ("INT32", 2**31),
        ("UINT64", 2**64), ("INT64", -(2**63) - 1), ("INT32", 1.5), ("INT32", True), ("FP16", 1e5), ("FP32", 1e39),
        ("BOOL", 1), ("FP32", "1"), ("BYTES", 1),
    ):  # fmt: skip
        body = {"inputs": [{"name": "input", "datatype": datatype, "shape": [1, 1], "data": [value]}]}
        answer = examples.ask("POST", f"/v2/models/echo_{datatype.lower()}/infer", body)
        assert answer.status == 400, (datatype, value, answer.body)
        assert "'input'" in answer.json()["error"]


def test_one_answer_may_mix_json_and_binary(examples: Served) -> None:
    inputs = INPUTS["passage_match"](2, np.random.default_rng(3))
    whole = rest_binary(examples, "passage_match", inputs)
    outputs = [
        {"name": "score", "parameters": {"binary_data": True}},
        {"name": "best"},
        {"name": "similarity", "parameters": {"binary_data": True}},
        {"name": "matched", "parameters": {"binary_data": False}},
    ]
    assert rest_json(examples, "passage_match", inputs, outputs=outputs) == whole


def test_raw_body_without_json(examples: Served) -> None:
    rows = INPUTS["fraud"](4, np.random.default_rng(4))
    answer = examples.ask(
        "POST", "/v2/models/fraud/infer", rows[0].array.tobytes(), {"Inference-Header-Content-Length": "0"}
    )
    assert answer.status == 200, answer.body
    at = int(answer.headers["inference-header-content-length"])
    probabilities = json.loads(answer.body[:at])["outputs"][1]
    assert probabilities["shape"] == [4, 2]
    expected = rest_binary(examples, "fraud", rows)["probabilities"]
    assert answer.body[-len(expected.raw) :] == expected.raw
    assert struct.unpack_from("<f", expected.raw)[0] >= 0
