"""kserve's InferenceRESTClient and InferenceGRPCClient over V2, unmodified."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest

from support import kserve_calls
from support.examples import INPUTS, idle
from support.kserve_calls import Failed
from support.service import Served
from support.wire import DTYPES, Outputs, Sent, rest_binary

KSERVE = sorted(INPUTS.keys() - {"echo_bf16"})
"""kserve has no BF16."""
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Call]:
    """Runs a function of `kserve_calls` in a process that has not imported tritonclient."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result(timeout=90)


@pytest.fixture(params=["rest", "grpc"])
def infer(request: pytest.FixtureRequest, examples: Served, elsewhere: Call) -> Call:
    """`infer` of either client, against the examples."""
    if request.param == "rest":
        return lambda *args, **more: elsewhere(kserve_calls.rest_infer, f"http://{examples.http}", *args, **more)
    return lambda *args, **more: elsewhere(kserve_calls.grpc_infer, examples.grpc, *args, **more)


def tensors(inputs: list[Sent]) -> list[tuple[str, str, np.ndarray]]:
    return [(sent.name, sent.datatype, sent.array) for sent in inputs]


def same(answer: Any, expected: Outputs) -> None:
    assert not isinstance(answer, Failed), answer
    assert answer["outputs"].keys() == expected.keys()
    for name, got in expected.items():
        array = answer["outputs"][name]
        assert array.shape == got.shape
        if got.datatype == "BYTES":
            came = [item.encode() if isinstance(item, str) else item for item in array.ravel().tolist()]
            assert came == got.array().ravel().tolist()
        else:
            assert array.astype(DTYPES[got.datatype]).tobytes() == got.raw


def test_health(examples: Served, elsewhere: Call) -> None:
    assert elsewhere(kserve_calls.rest_health, f"http://{examples.http}", "fraud") == (True, True, True)
    assert elsewhere(kserve_calls.grpc_health, examples.grpc, "fraud") == (True, True, True)


def test_readiness_of_an_unknown_model(examples: Served, elsewhere: Call) -> None:
    assert elsewhere(kserve_calls.rest_health, f"http://{examples.http}", "nothing") == (True, True, False)
    assert elsewhere(kserve_calls.grpc_health, examples.grpc, "nothing") == (True, True, False)


@pytest.mark.parametrize("model", KSERVE)
def test_infer_in_binary(examples: Served, infer: Call, model: str) -> None:
    inputs = INPUTS[model](3, np.random.default_rng(0))
    same(infer(model, tensors(inputs)), rest_binary(examples, model, inputs))


@pytest.mark.parametrize("model", sorted(set(KSERVE) - {"echo_fp16"}))
def test_infer_in_text(examples: Served, infer: Call, model: str) -> None:
    """JSON over REST, typed contents over gRPC; neither has FP16 in kserve."""
    inputs = INPUTS[model](2, np.random.default_rng(1))
    same(infer(model, tensors(inputs), binary=False), rest_binary(examples, model, inputs))


def test_v1(examples: Served, elsewhere: Call) -> None:
    inputs = INPUTS["fraud"](3, np.random.default_rng(4))
    answer = elsewhere(
        kserve_calls.v1_infer, f"http://{examples.http}", "fraud", {"instances": inputs[0].array.tolist()}
    )
    assert not isinstance(answer, Failed), answer
    expected = rest_binary(examples, "fraud", inputs)
    for name, got in expected.items():
        array = np.array([row[name] for row in answer["predictions"]], DTYPES[got.datatype])
        assert (array.shape, array.tobytes()) == (got.shape, got.raw)


def test_v1_in_cloudevents(examples: Served) -> None:
    """Events as the CloudEvents SDK makes and reads them, in both modes."""
    import requests
    from cloudevents.conversion import to_binary, to_structured
    from cloudevents.http import CloudEvent, from_http

    inputs = INPUTS["fraud"](2, np.random.default_rng(5))
    event = CloudEvent({"type": "ask", "source": "/test"}, {"instances": inputs[0].array.tolist()})
    expected = rest_binary(examples, "fraud", inputs)["label"].array().tolist()
    for convert in (to_binary, to_structured):
        headers, body = convert(event)
        answer = requests.post(f"http://{examples.http}/v1/models/fraud:predict", body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        said = from_http(answer.headers, answer.content)
        assert said["type"] == "io.kserve.inference.response"
        assert [row["label"] for row in said.data["predictions"]] == expected


def test_v1_health_and_errors(examples: Served, elsewhere: Call) -> None:
    url = f"http://{examples.http}"
    assert elsewhere(kserve_calls.v1_health, url, "fraud") == (True, True)
    missing = elsewhere(kserve_calls.v1_health, url, "nothing")
    assert (missing.status, "model 'nothing' does not exist" in missing.text) == (404, True)
    bad = elsewhere(kserve_calls.v1_infer, url, "versioned", {"instances": [[1, 2, 3]]})
    assert (bad.status, "[-1, 2] wanted, [1, 3] came" in bad.text) == (400, True)


def test_id_comes_back(infer: Call) -> None:
    answer = infer("versioned", [("x", "FP32", np.zeros((1, 2), "<f4"))], request_id="mine")
    assert answer["id"] == "mine"
    assert answer["model"] == "versioned"
    assert answer["version"] in ("3", None)  # its REST client drops the version


def test_requested_outputs(examples: Served, infer: Call) -> None:
    inputs = INPUTS["passage_match"](2, np.random.default_rng(2))
    answer = infer("passage_match", tensors(inputs), outputs=["score", "best"])
    expected = rest_binary(examples, "passage_match", inputs)
    same(answer, {name: expected[name] for name in ("score", "best")})


def test_unknown_model(infer: Call) -> None:
    failed = infer("nothing", [("x", "FP32", np.zeros((1, 2), "<f4"))])
    assert failed.status in (404, "NOT_FOUND")
    assert "model 'nothing' does not exist" in failed.text


def test_bad_input(infer: Call) -> None:
    failed = infer("versioned", [("x", "FP32", np.zeros((1, 3), "<f4"))])
    assert failed.status in (400, "INVALID_ARGUMENT")
    assert "[-1, 2] wanted, [1, 3] came" in failed.text


def test_deadlines(examples: Served, elsewhere: Call) -> None:
    idle(examples)
    spinning = [("loops", "INT64", np.array([12_000]))]
    failed = elsewhere(kserve_calls.grpc_infer, examples.grpc, "spinning", spinning, timeout=0.3)
    assert failed.status == "DEADLINE_EXCEEDED"
    idle(examples)
    failed = elsewhere(
        kserve_calls.rest_infer,
        f"http://{examples.http}",
        "spinning",
        spinning,
        headers={"X-Request-Timeout": "0.3"},
    )
    assert failed.status == 504
    assert "deadline" in failed.text


def test_many_at_once_do_not_mix(examples: Served, elsewhere: Call) -> None:
    random = np.random.default_rng(3)
    requests = [INPUTS["fraud"](1 + i % 3, random) for i in range(48)]
    answers = elsewhere(kserve_calls.many_at_once, examples.grpc, "fraud", [tensors(inputs) for inputs in requests])
    assert not isinstance(answers, Failed), answers
    for inputs, answer in zip(requests, answers, strict=True):
        same(answer, rest_binary(examples, "fraud", inputs))
