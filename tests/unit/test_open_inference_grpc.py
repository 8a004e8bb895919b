"""The V2 gRPC codec: read and written by the protocol's own generated classes on the other side."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from octoserve.codecs import protos
from octoserve.codecs.open_inference_grpc import Request, decode_request, encode_response
from octoserve.codecs.protos import compile as protos_compile
from octoserve.codecs.protos.wire import field
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, OctoserveError, TooLarge, Unsupported
from octoserve.core.limits import MAX_RANK, MAX_TENSORS
from octoserve.core.results import Ran, Result
from octoserve.core.signature import Signature, TensorSpec
from support.tensors import raw_of, tensors

CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(["INT8", "INT16", "INT32"], "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(["UINT8", "UINT16", "UINT32"], "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
TYPED = list(CONTENTS)
RAW_ONLY = ["FP16", "BF16"]

Case = tuple[str, tuple[int, ...], list[Any]]


def request(**more: Any) -> Any:
    return pb.ModelInferRequest(model_name="m", **more)


def add(
    message: Any, values: list[Any], datatype: str, shape: Any = None, name: str = "x", contents: str | None = None
) -> Any:
    item = message.inputs.add(name=name, datatype=datatype, shape=[len(values)] if shape is None else shape)
    getattr(item.contents, contents or CONTENTS[datatype]).extend(values)
    return item


def decode(message: Any) -> Request:
    return decode_request(message.SerializeToString())


def refusal(message: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        decode(message)
    return str(caught.value)


# --- requests ---------------------------------------------------------------------------------------------


@given(st.lists(tensors(TYPED), max_size=4))
def test_typed_contents_become_the_raw_form(cases: list[Case]) -> None:
    message = request()
    for i, (datatype, shape, values) in enumerate(cases):
        add(message, values, datatype, shape, str(i))
    got = decode(message)
    assert not got.raw
    assert [(t.name, t.datatype, t.shape) for t in got.tensors] == [
        (str(i), datatype, shape) for i, (datatype, shape, _) in enumerate(cases)
    ]
    assert [bytes(t.raw or b"") for t in got.tensors] == [raw_of(values, datatype) for datatype, _, values in cases]


@pytest.mark.parametrize("datatype", TYPED)
@pytest.mark.parametrize("count", [1024, 1025, 5000])
def test_many_elements_are_treated_as_few(datatype: str, count: int) -> None:
    values = {"bool": [True, False], "bytes": [b"a\0", b""]}.get(DATATYPES[datatype].kind, [0, 1, 100])
    values = (values * count)[:count]
    [got] = decode(add_to(values, datatype)).tensors
    assert got.raw == raw_of(values, datatype)


def add_to(values: list[Any], datatype: str, **more: Any) -> Any:
    message = request()
    add(message, values, datatype, **more)
    return message


@given(st.lists(tensors(list(DATATYPES)), min_size=1, max_size=4))
def test_raw_contents_are_taken_as_they_are(cases: list[Case]) -> None:
    message = request(model_version="3", id="i")
    for i, (datatype, shape, values) in enumerate(cases):
        message.inputs.add(name=str(i), datatype=datatype, shape=shape)
        message.raw_input_contents.append(raw_of(values, datatype))
    got = decode(message)
    assert (got.model, got.version, got.id, got.raw) == ("m", "3", "i", True)
    for tensor, (datatype, shape, values) in zip(got.tensors, cases, strict=True):
        assert (tensor.datatype, tensor.shape) == (datatype, shape)
        assert tensor.array().shape == shape
        assert tensor.raw == raw_of(values, datatype)


@pytest.mark.parametrize("count", [1, 2000])
@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("INT8", 128), ("INT8", -129), ("INT16", 1 << 15), ("INT16", -(1 << 15) - 1), ("UINT8", 256),
        ("UINT16", 1 << 16),
    ],
)  # fmt: skip
def test_values_that_do_not_fit(datatype: str, value: int, count: int) -> None:
    text = refusal(add_to([0] * (count - 1) + [value], datatype))
    assert text == f"input 'x': {value} does not fit {datatype}"


def test_malformed_requests() -> None:
    assert "FP16" in refusal(add_to([1.0], "FP16", contents="fp32_contents"))
    assert "'INT9'" in refusal(add_to([1], "INT9", contents="int_contents"))
    assert "int_contents" in refusal(add_to([1], "INT32", contents="int64_contents"))
    assert "does not have 1" in refusal(add_to([1], "INT32", shape=[2]))
    assert "'x'" in refusal(add_to([1], "INT32", shape=[-1]))
    assert "'x'" in refusal(add_to([1, 1], "INT32", shape=[-1, -2]))
    assert "'x'" in refusal(add_to([1], "INT32", shape=[1 << 62, 1 << 62]))
    message = add_to([1], "INT32")
    message.raw_input_contents.append(b"abcd")
    assert "give one" in refusal(message)
    message = request()
    message.inputs.add(name="x", datatype="INT32", shape=[1])
    message.raw_input_contents.extend([b"abcd", b"efgh"])
    assert "2 came" in refusal(message)
    assert "'x'" in refusal(add_to([], "INT32", shape=[1]))


def test_two_kinds_of_contents() -> None:
    message = add_to([1], "INT32")
    message.inputs[0].contents.bool_contents.append(True)
    assert "bool_contents" in refusal(message)


def test_too_many_dimensions_and_tensors() -> None:
    assert decode(add_to([1], "INT32", shape=[1] * MAX_RANK))
    with pytest.raises(TooLarge):
        decode(add_to([1], "INT32", shape=[1 << 62] * 100_000))
    message = request()
    for i in range(MAX_TENSORS + 1):
        message.inputs.add(name=str(i), datatype="FP32", shape=[0])
    with pytest.raises(TooLarge):
        decode(message)


def test_too_many_dimensions_in_raw_form() -> None:
    message = request()
    message.inputs.add(name="x", datatype="INT32", shape=[1] * MAX_RANK)
    message.raw_input_contents.append(b"abcd")
    assert decode(message).tensors[0].shape == (1,) * MAX_RANK
    message.inputs[0].shape.extend([1] * 1_000_000)
    with pytest.raises(TooLarge, match="1000064 dimensions") as refused:
        decode(message)
    assert len(str(refused.value)) < 200


def test_too_many_wanted_outputs() -> None:
    message = add_to([1], "INT32")
    for i in range(MAX_TENSORS + 1):
        message.outputs.add(name=str(i))
    with pytest.raises(TooLarge):
        decode(message)


def test_wanted_outputs_and_timeout() -> None:
    message = request()
    assert decode(message).outputs is None
    message.outputs.add(name="b")
    message.outputs.add(name="a")
    assert decode(message).outputs == ["b", "a"]
    assert decode(message).timeout is None
    message.parameters["timeout"].int64_param = 250_000
    assert decode(message).timeout == 0.25
    message.parameters["timeout"].int64_param = 0
    assert decode(message).timeout is None
    message.parameters["timeout"].uint64_param = 1_000_000
    assert decode(message).timeout == 1.0
    for name, value in {"int64_param": -1, "string_param": "1", "bool_param": True, "double_param": 1.0}.items():
        setattr(message.parameters["timeout"], name, value)
        assert "timeout" in refusal(message)


# --- answers ----------------------------------------------------------------------------------------------


def asked(raw: bool, outputs: list[str] | None = None, id: str = "") -> Request:
    made = Request("m", "", id, raw)
    made.outputs = outputs
    return made


def ran(cases: list[Case]) -> Ran:
    specs = [TensorSpec(f"y{i}", datatype, (-1,) * len(shape)) for i, (datatype, shape, _) in enumerate(cases)]
    arrays = []
    for datatype, shape, values in cases:
        array = np.empty(len(values), DATATYPES[datatype].dtype)
        array[:] = values
        arrays.append(array.reshape(shape))
    return Ran("m", 7, Signature([], specs, True), arrays)


@given(st.lists(tensors(list(DATATYPES), min_rank=1), min_size=1, max_size=4), st.text(max_size=200), st.data())
def test_raw_answers(cases: list[Case], id: str, data: st.DataObject) -> None:
    order = data.draw(st.one_of(st.none(), st.permutations(range(len(cases)))))
    outputs = None if order is None else [f"y{i}" for i in order]
    answer = pb.ModelInferResponse.FromString(encode_response(Result(ran(cases)), asked(True, outputs, id)))
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "7", id)
    wanted = [(i, *cases[i]) for i in (order or range(len(cases)))]
    assert [(o.name, o.datatype, tuple(o.shape)) for o in answer.outputs] == [
        (f"y{i}", datatype, shape) for i, datatype, shape, _ in wanted
    ]
    assert list(answer.raw_output_contents) == [raw_of(values, datatype) for _, datatype, _, values in wanted]
    assert not any(o.HasField("contents") for o in answer.outputs)


@given(st.lists(tensors(TYPED, min_rank=1), min_size=1, max_size=4), st.text(max_size=5))
def test_typed_answers(cases: list[Case], id: str) -> None:
    answer = pb.ModelInferResponse.FromString(encode_response(Result(ran(cases)), asked(False, id=id)))
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "7", id)
    assert not answer.raw_output_contents
    for output, (datatype, shape, values) in zip(answer.outputs, cases, strict=True):
        assert (output.datatype, tuple(output.shape)) == (datatype, shape)
        assert raw_of(list(getattr(output.contents, CONTENTS[datatype])), datatype) == raw_of(values, datatype)


@pytest.mark.parametrize("datatype", RAW_ONLY)
def test_what_has_no_typed_form_makes_the_whole_answer_raw(datatype: str) -> None:
    cases: list[Case] = [("FP32", (1,), [1.0]), (datatype, (2,), [0, 1])]
    answer = pb.ModelInferResponse.FromString(encode_response(Result(ran(cases)), asked(False)))
    assert [len(raw) for raw in answer.raw_output_contents] == [4, 4]
    only = pb.ModelInferResponse.FromString(encode_response(Result(ran(cases)), asked(False, ["y0"])))
    assert list(only.outputs[0].contents.fp32_contents) == [1.0]


@given(tensors(list(DATATYPES), min_rank=1), st.lists(st.integers(0, 3), min_size=1, max_size=4), st.booleans())
def test_slices_of_a_batch_are_the_slices(case: Case, sizes: list[int], raw: bool) -> None:
    datatype, shape, values = case
    rows, width = sum(sizes), math.prod(shape[1:])
    assume(values or not rows * width)
    batch = ran([(datatype, (rows, *shape[1:]), (values * (rows + 1))[: rows * width])])
    at = 0
    for size in sizes:
        answer = pb.ModelInferResponse.FromString(encode_response(Result(batch, at, size), asked(raw)))
        mine = batch.arrays[0][at : at + size]
        [output] = answer.outputs
        assert tuple(output.shape) == mine.shape
        want = raw_of(mine.ravel().tolist(), datatype)
        if raw or datatype in RAW_ONLY:
            assert answer.raw_output_contents[0] == want
        else:
            assert raw_of(list(getattr(output.contents, CONTENTS[datatype])), datatype) == want
        at += size


def test_what_the_model_gave_and_typed_contents_cannot_carry() -> None:
    result = Result(Ran("m", 1, Signature([], [TensorSpec("y", "INT32", (-1,))], True), [np.array([1.5])]))
    with pytest.raises(Unsupported, match="'y'"):
        encode_response(result, asked(False))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 16383, 16384, 1 << 21, (1 << 21) - 1])
def test_a_field_is_what_protobuf_writes(size: int) -> None:
    assert field(3, b"a" * size) == pb.ModelInferResponse(id="a" * size).SerializeToString() or size == 0
    assert pb.ModelInferResponse.FromString(field(3, b"a" * size)).id == "a" * size


# --- descriptors --------------------------------------------------------------------------------------------


def test_the_compiled_descriptors_are_those_of_the_proto_files() -> None:
    compiled = protos_compile.compiled()
    assert (protos_compile.HERE / "descriptors.bin").read_bytes() == compiled, "run `make protos`"


def test_files_by_symbol() -> None:
    assert protos.file_of_symbol("inference.GRPCInferenceService.ModelInfer") == "open_inference.proto"
    assert protos.file_of_symbol("nobody.Knows") is None


_TYPES = {"double", "float", "int64", "uint64", "int32", "bool", "string", "message", "bytes", "uint32", "enum"}


@pytest.mark.parametrize(
    "name",
    [
        "ModelInferRequest", "ModelInferResponse", "ModelStreamInferResponse", "InferTensorContents", "InferParameter",
        "ModelMetadataResponse", "ServerMetadataResponse", "RepositoryIndexRequest", "RepositoryIndexResponse",
        "RepositoryModelLoadRequest", "RepositoryModelUnloadRequest", "ModelStatisticsResponse", "ModelConfigResponse",
        "ModelReadyRequest", "ModelReadyResponse", "ServerLiveResponse", "ServerReadyResponse", "ModelConfigRequest",
        "ModelStatisticsRequest", "ModelMetadataRequest",
    ],
)  # fmt: skip
def test_every_field_has_tritons_number_and_type(name: str) -> None:
    ours, theirs = protos.message(f"inference.{name}").DESCRIPTOR, getattr(pb, name).DESCRIPTOR
    seen: set[str] = set()

    def compare(ours: Any, theirs: Any) -> None:
        if ours.full_name in seen:
            return
        seen.add(ours.full_name)
        for mine in ours.fields:
            other = theirs.fields_by_name.get(mine.name)
            if other is None:
                other = _field(theirs.full_name, mine.name)
            assert (mine.number, mine.type) == (other.number, other.type), mine.full_name
            if mine.message_type is not None:
                compare(mine.message_type, other.message_type)

    compare(ours, theirs)


def _field(message: str, name: str) -> Any:
    raise AssertionError(f"Triton's {message} has no field {name}")


# --- fuzz -----------------------------------------------------------------------------------------------------


def decodes_or_is_refused(data: bytes) -> None:
    try:
        got = decode_request(data)
    except OctoserveError as error:
        assert str(error).encode()  # noqa: PT017
        return
    for tensor in got.tensors:
        if tensor.datatype in DATATYPES and not got.raw:
            tensor.array()


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    decodes_or_is_refused(data)


@given(tensors(TYPED), tensors(list(DATATYPES)), st.booleans(), st.data())
def test_mutated_requests_decode_or_are_refused(case: Case, other: Case, raw: bool, data: st.DataObject) -> None:
    message = request(id="i")
    if raw:
        for datatype, shape, values in (case, other):
            message.inputs.add(name="x", datatype=datatype, shape=shape)
            message.raw_input_contents.append(raw_of(values, datatype))
    else:
        add(message, case[2], case[0], case[1])
    message.parameters["timeout"].int64_param = 5
    changed = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    decodes_or_is_refused(bytes(changed))
