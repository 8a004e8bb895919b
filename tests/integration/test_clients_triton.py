"""tritonclient, HTTP and gRPC, unmodified and with its defaults."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from support.examples import ECHOES, INPUTS, idle
from support.service import Served
from support.supervised import until
from support.wire import DTYPES, Sent, binary_request, raw_of, rest_binary

LONG = 12_000
"""Loops of `spinning` that take a second or more."""


@pytest.fixture(scope="module")
def http(examples: Served) -> Iterator[Any]:
    with triton_http.InferenceServerClient(examples.http, concurrency=4) as client:
        yield client


@pytest.fixture(scope="module")
def grpc(examples: Served) -> Iterator[Any]:
    with triton_grpc.InferenceServerClient(examples.grpc) as client:
        yield client


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def library(client: Any) -> Any:
    """The module that the client is of."""
    return triton_http if isinstance(client, triton_http.InferenceServerClient) else triton_grpc


def inputs_for(client: Any, inputs: list[Sent], **how: Any) -> list[Any]:
    made = []
    for sent in inputs:
        tensor = library(client).InferInput(sent.name, list(sent.array.shape), sent.datatype)
        array = sent.array.view(ml_dtypes.bfloat16) if sent.datatype == "BF16" else sent.array
        made.append(tensor.set_data_from_numpy(array, **how))
    return made


def versioned(client: Any) -> list[Any]:
    return inputs_for(client, [Sent("x", "FP32", np.zeros((1, 2), "<f4"))])


def spinning(client: Any, loops: int = LONG) -> list[Any]:
    return inputs_for(client, [Sent("loops", "INT64", np.array([loops]))])


def fields(message: Any) -> Any:
    """The REST client gives dictionaries, the gRPC one messages."""
    if isinstance(message, dict | list):
        return message
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


# --- health, metadata -------------------------------------------------------------------------------------


def test_health(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fraud")
    assert client.is_model_ready("versioned", "2")


@pytest.mark.parametrize(("model", "version"), [("nothing", ""), ("versioned", "99"), ("versioned", "no-label")])
def test_what_is_not_there_is_not_ready(client: Any, model: str, version: str) -> None:
    """No error, so that a client can ask until a model has come; Triton's own tests want it so."""
    assert client.is_model_ready(model, version) is False


def test_server_metadata(client: Any) -> None:
    metadata = fields(client.get_server_metadata())
    assert metadata["name"] == "octoserve"
    assert metadata["version"]
    assert {"binary_tensor_data", "model_configuration", "model_repository", "statistics"} <= {
        name.partition("(")[0] for name in metadata["extensions"]
    }


def test_model_metadata(client: Any) -> None:
    metadata = fields(client.get_model_metadata("passage_match"))
    assert metadata["name"] == "passage_match"
    assert metadata["versions"] == ["1"]
    assert metadata["platform"] == "onnx_onnxruntime"
    inputs = {tensor["name"]: (tensor["datatype"], [int(d) for d in tensor["shape"]]) for tensor in metadata["inputs"]}
    assert inputs == {"query": ("FP32", [-1, -1, 16]), "passage": ("FP32", [-1, -1, 16]),
                      "passage_mask": ("BOOL", [-1, -1])}  # fmt: skip
    assert [tensor["name"] for tensor in metadata["outputs"]] == ["score", "best", "matched", "similarity"]


def test_model_metadata_of_versions(client: Any) -> None:
    assert fields(client.get_model_metadata("versioned"))["versions"] == ["1", "2", "3"]
    assert fields(client.get_model_metadata("versioned", "2"))["versions"] == ["2"]
    with pytest.raises(InferenceServerException, match="versioned"):
        client.get_model_metadata("versioned", "9")


def test_model_config(client: Any) -> None:
    config = fields(client.get_model_config("penguins"))
    config = config.get("config", config)
    assert config["name"] == "penguins"
    assert config["max_batch_size"] == 64
    inputs = {tensor["name"]: (tensor["data_type"], [int(d) for d in tensor["dims"]]) for tensor in config["input"]}
    assert inputs["island"] == ("TYPE_STRING", [1])
    assert inputs["body_mass_g"] == ("TYPE_FP32", [1])
    alone = fields(client.get_model_config("fixed"))
    alone = alone.get("config", alone)
    assert int(alone.get("max_batch_size", 0)) == 0
    assert [int(d) for d in alone["input"][0]["dims"]] == [3]


# --- inference -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", sorted(INPUTS))
def test_infer_with_defaults(examples: Served, client: Any, model: str) -> None:
    inputs = INPUTS[model](3, np.random.default_rng(0))
    result = client.infer(model, inputs_for(client, inputs))
    expected = rest_binary(examples, model, inputs)
    for name, got in expected.items():
        array = result.as_numpy(name)
        if got.datatype == "BF16":
            assert array.astype(ml_dtypes.bfloat16).tobytes() == got.raw
        elif got.datatype == "BYTES":
            assert array.tolist() == got.array().tolist()
        else:
            assert array.dtype == np.dtype(DTYPES[got.datatype])
            assert array.tobytes() == got.raw
        assert array.shape == got.shape


@pytest.mark.parametrize("model", sorted(ECHOES.keys() - {"echo_bf16"}))
def test_json_both_ways(http: Any, model: str) -> None:
    """binary_data=False, which tritonclient has for every datatype but BF16 (and FP16, which it cannot put in JSON)."""
    (sent,) = INPUTS[model](2, np.random.default_rng(1))
    binary = sent.datatype == "FP16"
    inputs = inputs_for(http, [sent], binary_data=binary)
    outputs = [triton_http.InferRequestedOutput("output", binary_data=False)]
    array = http.infer(model, inputs, outputs=outputs).as_numpy("output")
    if sent.datatype == "BYTES":
        assert [
            item.encode() if isinstance(item, str) else item for item in array.ravel()
        ] == sent.array.ravel().tolist()
    else:
        assert array.tobytes() == raw_of(sent.datatype, sent.array)


def test_json_in_binary_out_and_binary_in_json_out(http: Any) -> None:
    (sent,) = INPUTS["fraud"](4, np.random.default_rng(2))
    answers = []
    for binary_in in (False, True):
        for binary_out in (False, True):
            inputs = inputs_for(http, [sent], binary_data=binary_in)
            outputs = [triton_http.InferRequestedOutput(n, binary_data=binary_out) for n in ("label", "probabilities")]
            result = http.infer("fraud", inputs, outputs=outputs)
            answers.append((result.as_numpy("label").tobytes(), result.as_numpy("probabilities").tobytes()))
    assert len(set(answers)) == 1


def test_requested_outputs(client: Any) -> None:
    inputs = inputs_for(client, INPUTS["passage_match"](2, np.random.default_rng(3)))
    wanted = [library(client).InferRequestedOutput(name) for name in ("best", "score")]
    result = client.infer("passage_match", inputs, outputs=wanted)
    assert result.as_numpy("best") is not None
    assert result.as_numpy("score") is not None
    assert result.as_numpy("similarity") is None
    assert [tensor["name"] for tensor in fields(result.get_response())["outputs"]] == ["best", "score"]


def test_request_id_comes_back(client: Any) -> None:
    for id in ("42", 'ü / "quoted"', "x" * 1000):
        result = client.infer("versioned", versioned(client), request_id=id)
        assert fields(result.get_response())["id"] == id


def test_versions(client: Any) -> None:
    for version in ("1", "2", "3"):
        result = client.infer("versioned", versioned(client), model_version=version)
        assert result.as_numpy("plus").tolist() == [[float(version)] * 2]
        assert fields(result.get_response())["model_version"] == version
    newest = client.infer("versioned", versioned(client))
    assert fields(newest.get_response())["model_version"] == "3"


def test_labels_are_versions(examples: Served, client: Any) -> None:
    assert examples.admin("PUT", "/api/models/versioned/labels/trusted", {"version": 2})[0] == 200
    result = client.infer("versioned", versioned(client), model_version="trusted")
    assert result.as_numpy("plus").tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize("response", [None, "gzip", "deflate"])
@pytest.mark.parametrize("request_", [None, "gzip", "deflate"])
def test_compression_over_http(http: Any, request_: str | None, response: str | None) -> None:
    (sent,) = INPUTS["mlp"](16, np.random.default_rng(4))
    result = http.infer(
        "mlp",
        inputs_for(http, [sent]),
        request_compression_algorithm=request_,
        response_compression_algorithm=response,
    )
    plain = http.infer("mlp", inputs_for(http, [sent]))
    assert result.as_numpy("probabilities").tobytes() == plain.as_numpy("probabilities").tobytes()


def test_a_large_answer_is_really_compressed(examples: Served) -> None:
    body, headers = binary_request([Sent("input", "FP32", np.zeros((1, 100_000), "<f4"))])
    for coding in ("gzip", "deflate"):
        answer = examples.ask("POST", "/v2/models/echo_fp32/infer", body, {**headers, "Accept-Encoding": coding})
        assert answer.status == 200
        assert answer.headers["content-encoding"] == coding
        assert len(answer.body) < len(body) / 50


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_over_grpc(grpc: Any, algorithm: str) -> None:
    (sent,) = INPUTS["mlp"](16, np.random.default_rng(4))
    result = grpc.infer("mlp", inputs_for(grpc, [sent]), compression_algorithm=algorithm)
    plain = grpc.infer("mlp", inputs_for(grpc, [sent]))
    assert result.as_numpy("probabilities").tobytes() == plain.as_numpy("probabilities").tobytes()


def test_async_infer_over_http(http: Any) -> None:
    rows = [INPUTS["fraud"](1, np.random.default_rng(seed)) for seed in range(20)]
    pending = [http.async_infer("fraud", inputs_for(http, row), request_id=str(i)) for i, row in enumerate(rows)]
    for i, (row, request) in enumerate(zip(rows, pending, strict=True)):
        result = request.get_result()
        assert result.get_response()["id"] == str(i)
        alone = http.infer("fraud", inputs_for(http, row))
        assert result.as_numpy("probabilities").tobytes() == alone.as_numpy("probabilities").tobytes()


def test_async_infer_over_grpc(grpc: Any) -> None:
    rows = [INPUTS["fraud"](1, np.random.default_rng(seed)) for seed in range(40)]
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for i, row in enumerate(rows):
        grpc.async_infer(
            "fraud",
            inputs_for(grpc, row),
            callback=lambda result, error: answers.put((result, error)),
            request_id=str(i),
        )
    seen = set()
    for _ in rows:
        result, error = answers.get(timeout=20)
        assert error is None
        i = int(result.get_response().id)
        seen.add(i)
        alone = grpc.infer("fraud", inputs_for(grpc, rows[i]))
        assert result.as_numpy("probabilities").tobytes() == alone.as_numpy("probabilities").tobytes()
    assert seen == set(range(len(rows)))


# --- streams ---------------------------------------------------------------------------------------------


@pytest.fixture
def stream(examples: Served) -> Iterator[tuple[Any, Callable[[], tuple[Any, Any]]]]:
    """A client with an open stream, and what takes its next answer."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton_grpc.InferenceServerClient(examples.grpc) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        yield client, lambda: answers.get(timeout=20)
        client.stop_stream()


def test_stream_answers_in_order(stream: Any) -> None:
    client, answer = stream
    random = np.random.default_rng(5)
    # Models of very different cost: the answers must not overtake each other.
    for i in range(200):
        model = ("mlp", "fixed", "versioned")[i % 3]
        inputs = versioned(client) if model == "versioned" else inputs_for(client, INPUTS[model](1, random))
        client.async_stream_infer(model, inputs, request_id=str(i))
    for i in range(200):
        result, error = answer()
        assert error is None
        assert result.get_response().id == str(i)
        assert result.get_response().model_name == ("mlp", "fixed", "versioned")[i % 3]


def test_error_in_the_middle_does_not_end_a_stream(stream: Any) -> None:
    client, answer = stream
    client.async_stream_infer("versioned", versioned(client), request_id="1")
    client.async_stream_infer("nothing", versioned(client), request_id="2")
    client.async_stream_infer("fraud", versioned(client), request_id="3")
    client.async_stream_infer("versioned", versioned(client), request_id="4", model_version="77")
    client.async_stream_infer("versioned", versioned(client), request_id="5")
    outcomes = [answer() for _ in range(5)]
    assert [result.get_response().id for result, _ in (outcomes[0], outcomes[4])] == ["1", "5"]
    for (result, error), word in zip(outcomes[1:4], ("nothing", "features", "77"), strict=True):
        assert result is None
        assert word in error.message()


def test_stream_stopped_with_requests_in_flight_frees_them(examples: Served) -> None:
    with triton_grpc.InferenceServerClient(examples.grpc) as client:
        client.start_stream(callback=lambda result, error: None)
        client.async_stream_infer("spinning", spinning(client))
        client.async_stream_infer("spinning", spinning(client))
        until(lambda: examples.total("octoserve_pending_requests", model="spinning") == 2)
        client.stop_stream(cancel_requests=True)
        until(lambda: examples.total("octoserve_pending_requests", model="spinning") <= 1, 5)


# --- repository, statistics ------------------------------------------------------------------------------


def test_repository_index(client: Any) -> None:
    entries = fields(client.get_model_repository_index())
    entries = entries["models"] if isinstance(entries, dict) else entries
    states = {(entry["name"], entry["version"]): entry["state"] for entry in entries}
    assert states[("versioned", "1")] == "READY"
    assert states[("versioned", "3")] == "READY"
    assert INPUTS.keys() <= {name for name, _ in states}


def test_unload_and_load(examples: Served, client: Any) -> None:
    model = "coming_and_going"
    client.unload_model(model)
    try:
        with pytest.raises(InferenceServerException, match="coming_and_going"):
            client.infer(model, versioned(client))
        assert not client.is_model_ready(model)
        entry = examples.index()[(model, 1)]
        assert entry["state"] == "UNAVAILABLE"
        assert "unloaded by request" in entry["reason"]
    finally:
        client.load_model(model)
    assert client.is_model_ready(model)
    assert client.infer(model, versioned(client)).as_numpy("plus").tolist() == [[1.0, 1.0]]


def test_load_of_what_is_not_there(client: Any) -> None:
    for operation in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="nothing"):
            operation("nothing")


def test_files_and_configurations_are_not_taken(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="config"):
        client.load_model("fraud", config='{"backend": "onnxruntime"}')
    assert client.is_model_ready("fraud")


def test_statistics(client: Any) -> None:
    def counts() -> tuple[int, int, int, int]:
        (entry,) = fields(client.get_inference_statistics("versioned", "2"))["model_stats"]
        assert (entry["name"], entry["version"]) == ("versioned", "2")
        stats = entry["inference_stats"]
        return (
            int(entry.get("inference_count", 0)),
            int(entry.get("execution_count", 0)),
            int(stats["success"].get("count", 0)),
            int(stats["fail"].get("count", 0)),
        )

    before = counts()
    for _ in range(3):
        client.infer("versioned", versioned(client), model_version="2")
    two_rows = inputs_for(client, [Sent("x", "FP32", np.zeros((2, 2), "<f4"))])
    client.infer("versioned", two_rows, model_version="2")
    with pytest.raises(InferenceServerException):
        client.infer("versioned", spinning(client), model_version="2")
    rows, runs, ok, failed = (after - then for after, then in zip(counts(), before, strict=True))
    assert (rows, runs, ok, failed) == (5, 4, 4, 1)
    every = fields(client.get_inference_statistics())["model_stats"]
    assert {("versioned", "1"), ("versioned", "2"), ("fraud", "1")} <= {(e["name"], e["version"]) for e in every}


# --- errors, time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "version", "words"),
    [("nothing", "", "nothing"), ("versioned", "99", "version 99"), ("versioned", "no-label", "no-label")],
)
def test_unknown_names(client: Any, model: str, version: str, words: str) -> None:
    with pytest.raises(InferenceServerException, match=words) as error:
        client.infer(model, versioned(client), model_version=version)
    assert error.value.status() in ("404", "StatusCode.NOT_FOUND")


def test_bad_inputs(client: Any) -> None:
    wrong = [
        (Sent("y", "FP32", np.zeros((1, 2), "<f4")), "'x' is missing"),
        (Sent("x", "FP64", np.zeros((1, 2), "<f8")), "FP32 wanted, FP64 came"),
        (Sent("x", "FP32", np.zeros((1, 3), "<f4")), r"\[-1, 2\] wanted, \[1, 3\] came"),
    ]
    for sent, words in wrong:
        with pytest.raises(InferenceServerException, match=words) as error:
            client.infer("versioned", inputs_for(client, [sent]))
        assert error.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_unknown_output(client: Any) -> None:
    outputs = [library(client).InferRequestedOutput("nothing")]
    with pytest.raises(InferenceServerException, match=r"unknown output 'nothing'.*plus, minus"):
        client.infer("versioned", versioned(client), outputs=outputs)


def test_classification_is_refused_by_name(client: Any) -> None:
    outputs = [library(client).InferRequestedOutput("probabilities", class_count=2)]
    with pytest.raises(InferenceServerException, match="classification"):
        client.infer("fraud", inputs_for(client, INPUTS["fraud"](1, np.random.default_rng(0))), outputs=outputs)


def test_timeout_parameter(examples: Served, client: Any) -> None:
    """Microseconds, in the request itself."""
    idle(examples)
    began = time.monotonic()
    with pytest.raises(InferenceServerException, match="deadline") as error:
        client.infer("spinning", spinning(client), timeout=300_000)
    assert error.value.status() in ("504", "StatusCode.DEADLINE_EXCEEDED")
    assert time.monotonic() - began < 2


def test_deadline_that_cannot_be_met_is_refused_at_once(examples: Served, client: Any) -> None:
    """With a long queue ahead nobody waits in vain."""
    idle(examples)
    with triton_grpc.InferenceServerClient(examples.grpc) as other:
        first = other.async_infer("spinning", spinning(other), callback=lambda result, error: None)
        until(lambda: examples.total("octoserve_pending_requests", model="spinning") == 1)
        began = time.monotonic()
        with pytest.raises(InferenceServerException, match="queue") as error:
            client.infer("spinning", spinning(client), timeout=10_000)
        assert error.value.status() in ("429", "StatusCode.RESOURCE_EXHAUSTED")
        assert time.monotonic() - began < 1
        first.cancel()


def test_time_enough(client: Any) -> None:
    result = client.infer("versioned", versioned(client), timeout=20_000_000)
    assert result.as_numpy("plus").tolist() == [[3.0, 3.0]]


def test_client_timeout_over_grpc(examples: Served, grpc: Any) -> None:
    idle(examples)
    # In the client's words, or in the server's, who keeps the same deadline: whose comes first is a matter of chance.
    with pytest.raises(InferenceServerException, match=r"(?i)deadline") as error:
        grpc.infer("spinning", spinning(grpc), client_timeout=0.3)
    assert error.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_settings_that_are_not_offered_say_so(client: Any) -> None:
    for operation in (client.get_trace_settings, client.get_log_settings, client.get_system_shared_memory_status):
        with pytest.raises(InferenceServerException) as error:
            operation()
        assert error.value.status() in ("404", "501", "StatusCode.UNIMPLEMENTED")
