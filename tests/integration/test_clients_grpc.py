"""grpcio with stubs made from our own descriptors: the standard services, deadlines, limits, cancellation."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from octoserve.codecs.protos import message
from support.examples import INPUTS, idle
from support.graphs import spinning_model, versioned_model
from support.service import Served, serving
from support.supervised import publish, until
from support.wire import (
    SERVICE,
    UNLIMITED,
    Refused,
    Sent,
    grpc_infer,
    infer_request,
    inference,
    read_grpc,
    unary,
)

HEALTH = "/grpc.health.v1.Health/"
SPIN = [Sent("loops", "INT64", np.array([12_000]))]
X = [Sent("x", "FP32", np.zeros((1, 2), "<f4"))]


@pytest.fixture
def channel(examples: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(examples.grpc, options=UNLIMITED) as channel:
        yield channel


def infer_stub(channel: grpc.Channel) -> Any:
    return inference(channel, "ModelInfer")


def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code()


# --- health ----------------------------------------------------------------------------------------------


def health(channel: grpc.Channel, name: str) -> str:
    check = unary(channel, HEALTH + "Check", "grpc.health.v1.HealthCheckRequest", "grpc.health.v1.HealthCheckResponse")
    answer = check(message("grpc.health.v1.HealthCheckRequest")(service=name), timeout=10)
    return type(answer).ServingStatus.Name(answer.status)


@pytest.mark.parametrize("name", ["", "inference.GRPCInferenceService", "fraud"])
def test_health_check(channel: grpc.Channel, name: str) -> None:
    assert health(channel, name) == "SERVING"


def test_health_check_of_a_stranger(channel: grpc.Channel) -> None:
    assert code_of(lambda: health(channel, "nothing")) is grpc.StatusCode.NOT_FOUND


def test_health_watch_tells_of_changes(examples: Served, channel: grpc.Channel) -> None:
    response = message("grpc.health.v1.HealthCheckResponse")
    watch = channel.unary_stream(
        HEALTH + "Watch",
        request_serializer=lambda value: value.SerializeToString(),
        response_deserializer=response.FromString,
    )
    call = watch(message("grpc.health.v1.HealthCheckRequest")(service="coming_and_going"), timeout=30)
    assert next(call).status == response.SERVING
    assert examples.admin("POST", "/api/models/coming_and_going/unload")[0] == 200
    try:
        assert next(call).status == response.NOT_SERVING
        assert health(channel, "coming_and_going") == "NOT_SERVING"
    finally:
        assert examples.admin("POST", "/api/models/coming_and_going/load")[0] == 200
    assert next(call).status == response.SERVING
    call.cancel()
    stranger = watch(message("grpc.health.v1.HealthCheckRequest")(service="nothing"), timeout=30)
    assert next(stranger).status == response.SERVICE_UNKNOWN
    stranger.cancel()


# --- reflection ------------------------------------------------------------------------------------------


def reflect(channel: grpc.Channel, version: str, **asked: str) -> Any:
    package = f"grpc.reflection.{version}"
    call = channel.stream_stream(
        f"/{package}.ServerReflection/ServerReflectionInfo",
        request_serializer=lambda value: value.SerializeToString(),
        response_deserializer=message(f"{package}.ServerReflectionResponse").FromString,
    )
    request = message(f"{package}.ServerReflectionRequest")(**asked)
    (answer,) = call(iter([request]), timeout=10)
    assert answer.original_request == request
    return answer


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_is_enough_to_make_a_client(channel: grpc.Channel, version: str) -> None:
    """What grpcurl does: list the services, fetch the files, call a method with nothing else known."""
    listed = [s.name for s in reflect(channel, version, list_services="").list_services_response.service]
    assert {
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        f"grpc.reflection.{version}.ServerReflection",
    } <= set(listed)
    pool = descriptor_pool.DescriptorPool()
    for service in listed:
        answer = reflect(channel, version, file_containing_symbol=service)
        for content in answer.file_descriptor_response.file_descriptor_proto:
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(content))
        assert pool.FindServiceByName(service).full_name == service
    method = pool.FindMethodByName("inference.GRPCInferenceService.ServerMetadata")
    request = message_factory.GetMessageClass(method.input_type)
    response = message_factory.GetMessageClass(method.output_type)
    call = channel.unary_unary(SERVICE + "ServerMetadata", request.SerializeToString, response.FromString)
    assert call(request(), timeout=10).name == "octoserve"


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_by_file_and_of_strangers(channel: grpc.Channel, version: str) -> None:
    answer = reflect(channel, version, file_containing_symbol="inference.ModelInferRequest")
    (content,) = answer.file_descriptor_response.file_descriptor_proto
    name = descriptor_pb2.FileDescriptorProto.FromString(content).name
    by_name = reflect(channel, version, file_by_filename=name)
    assert list(by_name.file_descriptor_response.file_descriptor_proto) == [content]
    for asked in ({"file_by_filename": "nothing.proto"}, {"file_containing_symbol": "no.Such"}):
        assert reflect(channel, version, **asked).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


# --- time ------------------------------------------------------------------------------------------------


def test_deadline_is_kept_by_the_server_too(examples: Served, channel: grpc.Channel) -> None:
    idle(examples)

    def given_up() -> float:
        # The client's own clock may run out first: then the server hears of a cancellation.
        name = "octoserve_request_seconds_count"
        return sum(examples.total(name, model="spinning", outcome=outcome) for outcome in ("deadline", "cancelled"))

    before, began = given_up(), time.monotonic()
    call = infer_stub(channel)
    assert code_of(lambda: call(infer_request("spinning", SPIN), timeout=0.3)) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 2
    until(lambda: given_up() == before + 1, 5)


def test_time_enough(channel: grpc.Channel) -> None:
    answer = infer_stub(channel)(infer_request("versioned", X), timeout=20)
    assert read_grpc(answer)["plus"].array().tolist() == [[3.0, 3.0]]


# --- limits, cancellation --------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Served]:
    """One worker that takes three requests a model at a time, of a megabyte at most."""
    publish(tmp_path / "models", "spinning", 1, spinning_model())
    publish(tmp_path / "models", "versioned", 1, versioned_model(1))
    with serving(tmp_path / "models", tmp_path / "service", max_queue=3, max_body="1MB", grace="5s") as service:
        yield service


def pending(service: Served) -> float:
    return service.total("octoserve_pending_requests", model="spinning")


def test_full_queue_is_resource_exhausted_and_cancellation_frees_it(small: Served) -> None:
    with grpc.insecure_channel(small.grpc) as channel:
        stub = infer_stub(channel)
        running = [stub.future(infer_request("spinning", SPIN)) for _ in range(3)]
        until(lambda: pending(small) == 3)
        with pytest.raises(grpc.RpcError) as error:
            stub(infer_request("spinning", SPIN), timeout=10)
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "queue is full" in error.value.details()
        retry_after = dict(error.value.trailing_metadata())["retry-after"]
        assert 1 <= int(retry_after) <= 60
        # Another model is not touched.
        assert read_grpc(stub(infer_request("versioned", X), timeout=10))["plus"].array().tolist() == [[1.0, 1.0]]
        for call in running:
            assert call.cancel()
        until(lambda: pending(small) <= 1, 5, "what waited is gone; what runs ends by itself")
        until(lambda: pending(small) == 0, 60)
        assert small.total("octoserve_request_seconds_count", model="spinning", outcome="cancelled") == 3
        again = stub(infer_request("spinning", [Sent("loops", "INT64", np.array([1]))]), timeout=30)
        assert read_grpc(again)["done"].shape == (1,)


def test_message_too_large(small: Served) -> None:
    with grpc.insecure_channel(small.grpc, options=UNLIMITED) as channel:
        large = [Sent("x", "FP32", np.zeros((200_000, 2), "<f4"))]
        with pytest.raises(Refused, match="larger than max") as refused:
            grpc_infer(channel, "versioned", large)
        assert refused.value.status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert grpc_infer(channel, "versioned", X)["plus"].shape == (1, 2)


def test_compressed_message_that_grows_too_large(small: Served) -> None:
    with grpc.insecure_channel(small.grpc, options=UNLIMITED) as channel:
        large = infer_request("versioned", [Sent("x", "FP32", np.zeros((2_000_000, 2), "<f4"))])
        for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            with pytest.raises(grpc.RpcError) as error:
                infer_stub(channel)(large, timeout=20, compression=algorithm)
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert grpc_infer(channel, "versioned", X)["plus"].shape == (1, 2)
        assert small.rss() < 400e6


def test_large_tensors(channel: grpc.Channel) -> None:
    """20 MB in, 20 MB out, in both forms of raw data, and beside small ones on the same connection."""
    array = np.random.default_rng(0).random((5, 1_000_000), dtype=np.float32)
    sent = [Sent("input", "FP32", array)]
    assert array.nbytes == 20_000_000
    large = infer_stub(channel).future(infer_request("echo_fp32", sent), timeout=60)
    for _ in range(20):
        assert grpc_infer(channel, "versioned", X)["plus"].shape == (1, 2)
    assert read_grpc(large.result())["output"].raw == array.tobytes()


def test_many_threads_on_one_channel_do_not_mix(channel: grpc.Channel) -> None:
    stub = infer_stub(channel)
    wrong: list[object] = []

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(40):
            (sent,) = INPUTS["echo_int64"](int(random.integers(1, 6)), random)
            got = read_grpc(stub(infer_request("echo_int64", [sent]), timeout=20))["output"]
            if got.raw != sent.array.tobytes() or got.shape != sent.array.shape:
                wrong.append((sent, got))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- what is not there -----------------------------------------------------------------------------------


def test_unknown_method_and_garbage(channel: grpc.Channel) -> None:
    def call(path: str, body: bytes) -> grpc.StatusCode:
        return code_of(lambda: channel.unary_unary(path)(body, timeout=10))

    assert call("/inference.GRPCInferenceService/NoSuch", b"") is grpc.StatusCode.UNIMPLEMENTED
    assert call("/no.Service/ModelInfer", b"") is grpc.StatusCode.UNIMPLEMENTED
    for method in ("ModelInfer", "ModelMetadata", "ModelConfig", "RepositoryIndex", "RepositoryModelLoad"):
        assert call(SERVICE + method, b"\xff\xff\xff\xff") is grpc.StatusCode.INVALID_ARGUMENT
    assert call(HEALTH + "Check", b"\xff") is grpc.StatusCode.INVALID_ARGUMENT


def test_refusals_of_inference(channel: grpc.Channel) -> None:
    def refused(**more: Any) -> Refused:
        with pytest.raises(Refused) as error:
            grpc_infer(channel, "versioned", X, **more)
        return error.value

    assert refused(model_version="99").status is grpc.StatusCode.NOT_FOUND
    assert refused(outputs=[{"name": "nothing"}]).status is grpc.StatusCode.INVALID_ARGUMENT
    assert refused(parameters={"timeout": {"string_param": "1"}}).status is grpc.StatusCode.INVALID_ARGUMENT
    request = infer_request("versioned", X)
    request.raw_input_contents.append(b"more")
    assert code_of(lambda: infer_stub(channel)(request, timeout=10)) is grpc.StatusCode.INVALID_ARGUMENT
    request = infer_request("versioned", X, typed=True)
    request.raw_input_contents.append(b"\0" * 8)
    assert code_of(lambda: infer_stub(channel)(request, timeout=10)) is grpc.StatusCode.INVALID_ARGUMENT
    request = infer_request("versioned", X, typed=True)
    request.inputs[0].contents.int_contents.append(1)
    assert code_of(lambda: infer_stub(channel)(request, timeout=10)) is grpc.StatusCode.INVALID_ARGUMENT


def test_typed_values_that_do_not_fit_are_refused(channel: grpc.Channel) -> None:
    for datatype, value in (("INT8", 128), ("INT16", -32769), ("UINT8", 256), ("UINT16", 65536)):
        sent = [Sent("input", datatype, np.array([[value]], dtype=object))]
        with pytest.raises(Refused, match=f"does not fit {datatype}") as refused:
            grpc_infer(channel, f"echo_{datatype.lower()}", sent, typed=True)
        assert refused.value.status is grpc.StatusCode.INVALID_ARGUMENT
