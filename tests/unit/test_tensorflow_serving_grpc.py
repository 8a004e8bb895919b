"""TensorFlow Serving's gRPC codec: TensorProtos in both forms, hostile ones, examples, and what goes out."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.codecs import tensorflow_serving_grpc as codec
from octoserve.codecs.protos import message
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, OctoserveError, TooLarge
from octoserve.core.limits import MAX_RANK, MAX_TENSORS
from octoserve.core.results import Ran, Result
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Tensor
from support.tensors import Case, raw_of, tensors

TensorProto: Any = message("tensorflow.TensorProto")
PredictRequest: Any = message("tensorflow.serving.PredictRequest")
PredictResponse: Any = message("tensorflow.serving.PredictResponse")
DTYPES = {
    "BOOL": (10, "bool_val"), "UINT8": (4, "int_val"), "UINT16": (17, "int_val"), "UINT32": (22, "uint32_val"),
    "UINT64": (23, "uint64_val"), "INT8": (6, "int_val"), "INT16": (5, "int_val"), "INT32": (3, "int_val"),
    "INT64": (9, "int64_val"), "FP16": (19, "half_val"), "FP32": (1, "float_val"), "FP64": (2, "double_val"),
    "BF16": (14, "half_val"), "BYTES": (7, "string_val"),
}  # fmt: skip
"""TensorFlow's numbers and fields, as its documentation has them."""
MOST = 1 << 20


def proto(datatype: str, shape: Any, values: Any = (), **more: Any) -> Any:
    number, name = DTYPES[datatype]
    made = TensorProto(dtype=number, **more)
    made.tensor_shape.SetInParent()
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    if datatype == "FP16":
        values = np.array(values, "<f2").view("<u2").tolist()
    getattr(made, name).extend(values)
    return made


def content(raw: bytes, datatype: str, shape: Any) -> Any:
    return proto(datatype, shape, tensor_content=raw)


def taken(came: Any, most: int = MOST) -> Tensor:
    return codec.tensor_of("x", TensorProto.FromString(came.SerializeToString()), most)


def refusal(came: Any, kind: type[InvalidInput] = InvalidInput) -> str:
    with pytest.raises(kind) as caught:
        taken(came)
    return str(caught.value)


# --- tensors in ---------------------------------------------------------------------------------------------


@given(tensors(list(DTYPES)))
def test_both_forms_are_the_same_tensor(case: Case) -> None:
    datatype, shape, values = case
    typed = taken(proto(datatype, shape, values))
    assert (typed.datatype, typed.shape, bytes(typed.raw or b"")) == (datatype, shape, raw_of(values, datatype))
    if values:
        raw = varints([len(v) for v in values]) + b"".join(values) if datatype == "BYTES" else raw_of(values, datatype)
        whole = taken(content(raw, datatype, shape))
        assert (whole.datatype, whole.shape, whole.raw) == (datatype, shape, raw_of(values, datatype))


def varints(numbers: list[int]) -> bytes:
    made = bytearray()
    for number in numbers:
        while number > 127:
            made.append(number & 127 | 128)
            number >>= 7
        made.append(number)
    return bytes(made)


@given(tensors(list(DTYPES), min_rank=1).filter(lambda case: bool(case[2])), st.integers(1, 40))
def test_the_last_value_is_repeated(case: Case, more: int) -> None:
    datatype, _, values = case
    got = taken(proto(datatype, (len(values) + more,), values))
    assert got.raw == raw_of(values + values[-1:] * more, datatype)


def test_long_texts_in_tensor_content() -> None:
    texts = [b"a" * 200, b"", b"b" * 20_000]
    assert taken(content(varints([200, 0, 20_000]) + b"".join(texts), "BYTES", [3])).array().tolist() == texts


def test_what_a_repeated_value_may_take_is_bounded() -> None:
    assert taken(proto("FP32", [MOST // 4], [1.0])).array().sum() == MOST // 4
    assert "more than the" in refusal(proto("FP32", [MOST // 4 + 2], [1.0]), TooLarge)
    assert "more than the" in refusal(proto("BYTES", [MOST // 64], [b"ab"]), TooLarge)
    assert "more than the" in refusal(proto("FP32", [1 << 62, 1 << 62], [1.0]), TooLarge)
    request = PredictRequest()
    request.model_spec.name = "m"
    for name in ("a", "b"):
        request.inputs[name].CopyFrom(proto("FP32", [MOST // 8], [1.0]))
    assert len(codec.decode_predict(request.SerializeToString(), MOST)[1]) == 2
    request.inputs["c"].CopyFrom(proto("FP32", [MOST // 8], [1.0]))
    with pytest.raises(TooLarge):
        codec.decode_predict(request.SerializeToString(), MOST)


def test_malformed_tensors() -> None:
    assert "negative" in refusal(proto("FP32", [-1], [1.0]))
    assert "negative" in refusal(proto("FP32", [-1, -2], [1.0, 2.0]))
    assert "unknown rank" in refusal(TensorProto(dtype=1, tensor_shape={"unknown_rank": True}, float_val=[1.0]))
    assert "it has 3" in refusal(proto("BYTES", [2], [b"a", b"b", b"c"]))
    assert "it has 0" in refusal(proto("FP32", [2]))
    assert "it has 1" in refusal(proto("FP32", [0], [1.0]))
    assert "DT_DOUBLE" in refusal(TensorProto(dtype=8, tensor_content=b"12345678"))  # complex64
    assert "dtype 0" in refusal(TensorProto(float_val=[1.0]))
    assert "dtype 99" in refusal(TensorProto(dtype=99))
    assert "float_val, it has 0, double_val came" in refusal(proto("FP32", [1], [], double_val=[1.0]))
    assert "give one" in refusal(proto("FP32", [1], [1.0], tensor_content=b"\0\0\0\0"))
    assert "300 does not fit UINT8" in refusal(proto("UINT8", [1], [300]))
    assert "does not fit INT8" in refusal(proto("INT8", [2000], [1] * 1999 + [128]))
    assert "does not fit" in refusal(proto("BF16", [1], [1 << 16]))
    assert "2 lengths" in refusal(content(b"\x01", "BYTES", [2]))
    assert "lengths" in refusal(content(b"\xff" * 9, "BYTES", [1]))
    assert "says 5 bytes, 1 came" in refusal(content(b"\x05a", "BYTES", [1]))
    assert "lengths" in refusal(content(b"\x05a", "BYTES", [1 << 62]))
    dims = proto("FP32", [1] * MAX_RANK, [1.0])
    assert taken(dims).shape == (1,) * MAX_RANK
    dims.tensor_shape.dim.extend([dims.tensor_shape.dim[0]] * 100_000)
    assert len(refusal(dims, TooLarge)) < 200


def test_tensor_content_of_a_wrong_length_is_refused_by_the_signature() -> None:
    signature = Signature([TensorSpec("x", "FP32", (-1,))], [], True)
    for size in (1, 4, 12):
        with pytest.raises(InvalidInput, match="takes 8 bytes"):
            signature.check([taken(content(b"\0" * size, "FP32", [2]))])


@given(
    st.builds(
        lambda dtype, dims, unknown, raw, **values: TensorProto(
            dtype=dtype,
            tensor_shape={"dim": [{"size": d} for d in dims], "unknown_rank": unknown},
            tensor_content=raw,
            **{name: list(v) for name, v in values.items()},
        ),
        st.one_of(st.sampled_from([n for n, _ in DTYPES.values()]), st.integers(-1, 200)),
        st.lists(st.one_of(st.integers(-2, 4), st.integers(-(2**63), 2**63 - 1)), max_size=4),
        st.sampled_from([False] * 9 + [True]),
        st.one_of(st.just(b""), st.binary(max_size=40)),
        float_val=st.lists(st.floats(width=32), max_size=3),
        int_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        half_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        string_val=st.lists(st.binary(max_size=5), max_size=3),
        bool_val=st.lists(st.booleans(), max_size=3),
    ),
    st.binary(max_size=60),
)
def test_no_tensor_does_harm(came: Any, noise: bytes) -> None:
    """What is taken is whole and within bounds; all else is refused."""
    request = PredictRequest()
    request.model_spec.name = "m"
    request.inputs["x"].CopyFrom(came)
    data = request.SerializeToString()
    for sent in (data, data[: len(noise)] + noise, noise, data + noise):
        with contextlib.suppress(OctoserveError):
            for tensor in codec.decode_predict(sent, MOST)[1]:
                assert len(tensor.raw or b"") <= MOST
                spec = TensorSpec(tensor.name, tensor.datatype, tensor.shape)
                Signature([spec], [], False).check([tensor])
                assert tensor.array().shape == tensor.shape


# --- requests -----------------------------------------------------------------------------------------------


def predict(**spec: Any) -> Any:
    return PredictRequest(model_spec={"name": "m", **spec})


def asked(request: Any) -> Any:
    return codec.decode_predict(request.SerializeToString(), MOST)


def test_versions_labels_signatures_and_filters() -> None:
    assert (asked(predict())[0].version, asked(predict())[2]) == ("", None)
    assert asked(predict(version={"value": 3}))[0].version == "3"
    labelled = asked(predict(version_label="stable"))[0]
    assert (labelled.version, labelled.labelled) == ("stable", True)
    assert asked(predict(signature_name="serving_default"))[0].model == "m"
    filtered = predict()
    filtered.output_filter.extend(["b", "a", "b"])
    assert asked(filtered)[2] == ["b", "a"]
    for wrong, text in ((predict(version_label="7"), "'7' came"), (PredictRequest(), "model_spec.name")):
        with pytest.raises(InvalidInput, match=text):
            asked(wrong)
    with pytest.raises(codec.UnknownSignature):
        asked(predict(signature_name="other"))
    with pytest.raises(InvalidInput, match="PredictRequest"):
        codec.decode_predict(b"\xff", MOST)
    filtered.output_filter.extend(["c"] * MAX_TENSORS)
    with pytest.raises(TooLarge):
        asked(filtered)


# --- answers ------------------------------------------------------------------------------------------------


def ran(cases: list[Case]) -> Ran:
    specs = [TensorSpec(f"y{i}", datatype, (-1,) * len(shape)) for i, (datatype, shape, _) in enumerate(cases)]
    arrays = []
    for datatype, shape, values in cases:
        array = np.empty(len(values), DATATYPES[datatype].dtype)
        array[:] = values
        arrays.append(array.reshape(shape))
    return Ran("m", 7, Signature([], specs, True), arrays)


@given(st.lists(tensors(list(DTYPES), min_rank=1), min_size=1, max_size=4), st.data())
def test_answers_are_typed_and_whole(cases: list[Case], data: st.DataObject) -> None:
    some = data.draw(st.one_of(st.none(), st.permutations([f"y{i}" for i in range(len(cases))]).map(lambda o: o[:2])))
    answer = PredictResponse.FromString(codec.encode_predict(Result(ran(cases)), some))
    spec = answer.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 7, "serving_default")
    assert answer.outputs.keys() == set(some or [f"y{i}" for i in range(len(cases))])
    for name, output in answer.outputs.items():
        datatype, shape, values = cases[int(name[1:])]
        number, typed = DTYPES[datatype]
        assert (output.dtype, tuple(d.size for d in output.tensor_shape.dim)) == (number, shape)
        assert not output.tensor_content
        came = list(getattr(output, typed))
        if datatype == "FP16":
            came = np.array(came, "<u2").view("<f2").tolist()
        assert raw_of(came, datatype) == raw_of(values, datatype)
        if math.prod(shape):
            assert taken(output).raw == raw_of(values, datatype)  # what goes out could come in


def test_a_slice_of_a_batch() -> None:
    batch = ran([("FP32", (5, 2), [float(i) for i in range(10)]), ("INT64", (5,), [0, 1, 2, 3, 4])])
    answer = PredictResponse.FromString(codec.encode_predict(Result(batch, 1, 2), None))
    assert list(answer.outputs["y0"].float_val) == [2.0, 3.0, 4.0, 5.0]
    assert list(answer.outputs["y1"].int64_val) == [1, 2]


# --- examples -----------------------------------------------------------------------------------------------

Classification: Any = message("tensorflow.serving.ClassificationRequest")
PEOPLE = Signature(
    [TensorSpec("age", "FP32", (-1, 1)), TensorSpec("country", "BYTES", (-1,)), TensorSpec("codes", "INT64", (-1, 3))],
    [TensorSpec("label", "INT64", (-1,)), TensorSpec("scores", "FP32", (-1, 2)), TensorSpec("sum", "FP32", (-1, 1))],
    True,
)


def feature(value: Any) -> dict[str, Any]:
    kind = {float: "float_list", int: "int64_list", bytes: "bytes_list"}[type(value[0])]
    return {kind: {"value": value}}


def example(**features: Any) -> dict[str, Any]:
    return {"features": {"feature": {name: feature(value) for name, value in features.items()}}}


ADA = example(age=[36.0], country=[b"uk"], codes=[1, 2, 3], more=[1.0])


def made(examples: list[Any], context: Any = None, signature: Signature = PEOPLE) -> list[Tensor]:
    kind = {"example_list": {"examples": examples}}
    if context is not None:
        kind = {"example_list_with_context": {"examples": examples, "context": context}}
    request = Classification(model_spec={"name": "m"}, input=kind)
    _, came = codec.decode_examples("ClassificationRequest", request.SerializeToString())
    return codec.example_tensors(came, signature)


def test_examples_become_rows() -> None:
    age, country, codes = made([ADA, example(age=[1.5], country=[b""], codes=[4, 5, 6])])
    assert age.array().tolist() == [[36.0], [1.5]]
    assert country.array().tolist() == [b"uk", b""]
    assert codes.array().tolist() == [[1, 2, 3], [4, 5, 6]]
    age, country, _ = made([example(age=[1.0], codes=[1, 2, 3])], example(country=[b"fr"], age=[2.0]))
    assert (age.array().tolist(), country.array().tolist()) == ([[1.0]], [b"fr"])


def test_features_in_order() -> None:
    table = Signature([TensorSpec("x", "FP32", (-1, 2))], [], True, features={"x": ("b", "a")}, missing="nan")
    [x] = made([example(a=[1.0], b=[2.0]), example(b=[3.0])], signature=table)
    assert np.array_equal(x.array(), [[2.0, 1.0], [3.0, math.nan]], equal_nan=True)


def test_malformed_examples() -> None:
    def refused(*args: Any, **more: Any) -> str:
        with pytest.raises(InvalidInput) as caught:
            made(*args, **more)
        return str(caught.value)

    assert "at least one" in refused([])
    assert "none of the features age, country, codes" in refused([example(other=[1.0])])
    assert "float_list is wanted for FP32, int64_list came" in refused([example(age=[1])])
    assert "one value is wanted, 2 came" in refused([example(age=[1.0, 2.0])])
    assert "[3] wanted" in refused([example(age=[1.0], country=[b""], codes=[1, 2])])
    assert "'country' is missing" in refused([example(age=[1.0], codes=[1, 2, 3])])
    flags = Signature([TensorSpec("x", "BOOL", (-1, 1))], [], True)
    assert "no BOOL" in refused([example(x=[1])], signature=flags)
    assert "no list of values" in refused(
        [example(x=[1.0])], signature=Signature([TensorSpec("x", "FP32", (-1, 2, 2))], [], True)
    )
    assert "takes no rows" in refused([ADA], signature=Signature([TensorSpec("x", "FP32", (3,))], [], False))
    with pytest.raises(TooLarge):
        made([{}] * 300, example(age=[1.0] * 10_000))


def test_classify_and_regress() -> None:
    arrays = [np.array([1, 0]), np.array([[0.25, 0.75], [1.0, 0.0]], "f4"), np.array([[3.0], [4.5]], "f4")]
    result = Result(Ran("m", 2, PEOPLE, arrays), 0, 2)
    classified = message("tensorflow.serving.ClassificationResponse").FromString(codec.encode_classify(result))
    assert [[(c.label, c.score) for c in row.classes] for row in classified.result.classifications] == [
        [("0", 0.25), ("1", 0.75)],
        [("0", 1.0), ("1", 0.0)],
    ]
    regressed = message("tensorflow.serving.RegressionResponse").FromString(codec.encode_regress(result))
    assert [one.value for one in regressed.result.regressions] == [3.0, 4.5]
    with pytest.raises(InvalidInput, match="ask it to predict"):
        codec.encode_classify(Result(Ran("m", 2, Signature([], [PEOPLE.outputs[0]], True), arrays[:1])))
