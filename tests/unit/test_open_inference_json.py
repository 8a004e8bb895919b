"""The V2 REST codec: what goes in comes out, and what does not fit is refused by name."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from octoserve.codecs.open_inference_json import (
    MAX_RANK,
    MAX_TENSORS,
    Request,
    decode_request,
    encode_response,
    raw_request,
)
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, OctoserveError, TooLarge, Unsupported
from octoserve.core.results import Ran, Result
from octoserve.core.signature import Signature, TensorSpec
from support.tensors import NUMERIC, element_values, raw_of, shapes, tensors

JSON_DATATYPES = [name for name in DATATYPES if name != "BF16"]
INTEGERS = [name for name, kind in DATATYPES.items() if kind.kind == "int"]
FLOATS = ["FP16", "FP32", "FP64"]


def tensor(data: Any, datatype: str = "FP32", shape: list[int] | None = None, name: str = "x", **more: Any) -> Any:
    item = {"name": name, "shape": [len(data)] if shape is None else shape, "datatype": datatype, "data": data, **more}
    return {key: value for key, value in item.items() if value is not None}


def body_of(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def decode_one(data: Any, datatype: str = "FP32", shape: list[int] | None = None) -> bytes:
    [got] = decode_request(body_of(tensor(data, datatype, shape))).tensors
    assert (got.name, got.datatype) == ("x", datatype)
    assert got.raw is not None
    return bytes(got.raw)


def refusal(data: Any, datatype: str = "FP32", shape: list[int] | None = None) -> str:
    with pytest.raises(InvalidInput) as caught:
        decode_request(body_of(tensor(data, datatype, shape)))
    return str(caught.value)


def nest(flat: list[Any], shape: tuple[int, ...]) -> list[Any]:
    if len(shape) <= 1:
        return flat
    step = math.prod(shape[1:])
    return [nest(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


# --- what fits comes through ---------------------------------------------------------------------------


@given(tensors(JSON_DATATYPES), st.booleans())
def test_json_data_flat_or_nested_becomes_the_raw_form(
    case: tuple[str, tuple[int, ...], list[Any]], nested: bool
) -> None:
    datatype, shape, values = case
    assume(not (nested and 0 in shape))  # [[], []] does not say more than its own nesting
    flat = [v.decode() if isinstance(v, bytes) else v for v in values]
    words = [_word(v) for v in flat]
    got = decode_one(nest(words, shape) if nested else words, datatype, list(shape))
    assert got == raw_of(values, datatype)


def _word(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


@pytest.mark.parametrize("datatype", JSON_DATATYPES)
@pytest.mark.parametrize("count", [1024, 1025, 3000])
def test_many_elements_are_treated_as_few(datatype: str, count: int) -> None:
    values = {"bool": [True, False], "bytes": ["a", "é"]}.get(DATATYPES[datatype].kind, [0, 1, 100])
    values = (values * count)[:count]
    got = decode_one(values, datatype)
    assert got == raw_of([v.encode() if isinstance(v, str) else v for v in values], datatype)


@pytest.mark.parametrize("datatype", FLOATS)
@pytest.mark.parametrize("count", [4, 2000])
def test_words_for_what_json_numbers_cannot_say(datatype: str, count: int) -> None:
    raw = decode_one((["NaN", "Infinity", "-Infinity", 1] * count)[:count], datatype)
    values = np.frombuffer(raw, DATATYPES[datatype].dtype)[:4]
    assert math.isnan(values[0])
    assert values[1:].tolist() == [math.inf, -math.inf, 1.0]


def test_words_beside_booleans() -> None:
    """The body's text has `true` in it, so that the elements' types are looked at."""
    x, flags = tensor(["NaN", 1]), tensor([True], "BOOL", name="flags")
    for items in ([x, flags], [flags, x]):
        assert {t.name: t.raw for t in decode_request(body_of(*items)).tensors} == {
            "x": struct.pack("<2f", math.nan, 1),
            "flags": b"\1",
        }
    with pytest.raises(InvalidInput, match="true"):
        decode_request(body_of(tensor(["NaN", True])))


@pytest.mark.parametrize("datatype", FLOATS)
def test_negative_zero_and_subnormals_are_kept(datatype: str) -> None:
    tiny = float(np.finfo(DATATYPES[datatype].dtype).smallest_subnormal)
    values = np.frombuffer(decode_one([-0.0, tiny, -tiny, tiny / 4], datatype), DATATYPES[datatype].dtype)
    assert np.signbit(values[0])
    assert values[0] == 0
    assert values[1:3].tolist() == [tiny, -tiny]
    assert values[3] == 0


def test_integers_are_taken_for_floats_and_the_largest_for_uint64() -> None:
    assert decode_one([1, -2], "FP64") == struct.pack("<2d", 1, -2)
    assert decode_one([2**64 - 1, 0], "UINT64") == struct.pack("<2Q", 2**64 - 1, 0)
    assert decode_one([-(2**63), 2**63 - 1], "INT64") == struct.pack("<2q", -(2**63), 2**63 - 1)


def test_a_scalar_and_no_elements() -> None:
    assert decode_one([1.5], "FP32", []) == struct.pack("<f", 1.5)
    assert decode_one([], "FP32", [0, 3]) == b""
    assert decode_one([], "BYTES", [0]) == b""
    assert decode_one([[], []], "FP32", [2, 0]) == b""


def test_odd_spacing_is_valid_json() -> None:
    spaces = b" \n\t\r" * 2000
    data = b"[" + spaces + b"[" + spaces + b"1" + spaces + b",2],[3,4]]"
    body = b'{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":' + spaces + data + b"}]}"
    assert decode_request(body).tensors[0].raw == struct.pack("<4f", 1, 2, 3, 4)


def test_brackets_in_text_are_text() -> None:
    assert decode_one(["[", "[[a", '"]', "true"], "BYTES") == raw_of([b"[", b"[[a", b'"]', b"true"], "BYTES")


def test_the_envelope() -> None:
    request = decode_request(body_of(tensor([1.0]), tensor([2.0], name="y"), id="i1", parameters={"a": 1}))
    assert (request.id, request.parameters, request.outputs, request.binary) == ("i1", {"a": 1}, None, False)
    assert [t.name for t in request.tensors] == ["x", "y"]
    assert decode_request(body_of()).tensors == []
    assert decode_request(body_of(tensor([1.0]), outputs=[])).outputs is None
    assert decode_request(body_of(tensor([1.0]), id=None)).id == ""


def test_fields_nobody_knows_are_ignored() -> None:
    assert decode_request(body_of(tensor([1.0], future=1), newer={"x": [1]})).tensors[0].raw == struct.pack("<f", 1)


# --- what does not fit is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 1500])
@pytest.mark.parametrize("datatype", INTEGERS)
def test_integers_out_of_bounds(datatype: str, count: int) -> None:
    bounds = np.iinfo(DATATYPES[datatype].dtype)
    for value in (int(bounds.min) - 1, int(bounds.max) + 1, 2**64, -(2**63) - 1, 2**100, 10**300):
        text = refusal([0] * (count - 1) + [value], datatype)
        assert "'x'" in text
        assert datatype in text
        assert len(text) < 300
        if abs(value) < 2**100:
            assert str(value) in text
    for value in (bounds.min, bounds.max):
        raw = decode_one([0] * (count - 1) + [int(value)], datatype)
        assert np.frombuffer(raw, DATATYPES[datatype].dtype)[-1] == value


@pytest.mark.parametrize("count", [1, 1500])
@pytest.mark.parametrize(
    ("datatype", "largest", "over"),
    [("FP16", 65504.0, 65520.0), ("FP32", 3.4028234663852886e38, 3.4028235677973366e38)],
)
def test_floats_that_overflow(datatype: str, largest: float, over: float, count: int) -> None:
    for value in (over, -over, 1e300, int(over) * 10):
        assert datatype in refusal([0.5] * (count - 1) + [value], datatype)
    raw = decode_one([0.5] * (count - 1) + [largest], datatype)
    assert np.frombuffer(raw, DATATYPES[datatype].dtype)[-1] == largest


def test_numbers_past_float64_are_refused() -> None:
    for text in (b"1e400", b"-1e400", b"1" + b"0" * 400, b"1" * 5000):
        body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP64","data":[%b]}]}' % text
        with pytest.raises(InvalidInput):
            decode_request(body)


WRONG = {
    "BOOL": [0, 1, 2, 0.0, "true", None, {}],
    **{name: [True, False, 1.0, 1.5, 1e3, "1", "NaN", None, {}] for name in INTEGERS},
    **{name: [True, False, "1", "1.5", "nan", "inf", "", "infinity", "+Infinity", None, {}] for name in FLOATS},
    "BYTES": [1, 1.5, True, None, {}],
}


@pytest.mark.parametrize("count", [1, 3, 1500])
@pytest.mark.parametrize(("datatype", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_values_of_another_kind_are_never_cast(datatype: str, value: Any, count: int) -> None:
    good = {"bool": True, "bytes": "a"}.get(DATATYPES[datatype].kind, 1)
    for at in {0, count // 2, count - 1}:
        text = refusal([value if i == at else good for i in range(count)], datatype)
        assert "'x'" in text
        assert datatype in text


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_bare_words_are_no_json(word: str) -> None:
    with pytest.raises(InvalidInput):
        decode_request(b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[%b]}]}' % word.encode())


def test_bf16_has_no_json_form() -> None:
    with pytest.raises(Unsupported, match="binary"):
        decode_request(body_of(tensor([1.0], "BF16")))


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([2, 2], [[1, 2], [3]]),
        ([2, 2], [[1, 2], [3, 4, 5]]),
        ([2, 2], [[1, 2]]),
        ([2, 2], [[1, 2], [3, 4], [5, 6]]),
        ([2, 2], [[1, 2], 3]),
        ([2, 2], [1, [2, 3], 4]),
        ([4], [[1, 2], [3, 4]]),
        ([4], [[1, 2, 3, 4]]),
        ([1], [[1]]),
        ([], [[1]]),
        ([1, 1, 1], [[1]]),
        ([2, 2], [[[1], [2]], [[3], [4]]]),
        ([2, 1, 2], [[1, 2], [3, 4]]),
        ([2, 2], [[1, 2], [3, [4]]]),
        ([3], [1, 2]),
        ([2], [1, 2, 3]),
        ([0], [1]),
        ([1], []),
        ([2**40], [1]),
        ([2**62, 2**62, 2**62], [1]),
        ([2, 2], []),
        ([2, 2], [[], []]),
    ],
)
@pytest.mark.parametrize("datatype", ["FP32", "INT8", "BYTES", "BOOL"])
def test_data_that_is_not_of_its_shape(shape: list[int], data: Any, datatype: str) -> None:
    def typed(value: Any) -> Any:
        if isinstance(value, list):
            return [typed(v) for v in value]
        return {"BYTES": str(value), "BOOL": True}.get(datatype, value)

    assert "'x'" in refusal(typed(data), datatype, shape)


@pytest.mark.parametrize(
    "broken",
    [
        {"name": "x", "shape": [1], "datatype": "FP32"},
        {"name": "x", "shape": [1], "data": [1]},
        {"name": "x", "datatype": "FP32", "data": [1]},
        {"shape": [1], "datatype": "FP32", "data": [1]},
        tensor([1], "FP31"),
        tensor([1], "fp32"),
        tensor([1], ""),
        tensor([1], shape=[-1]),
        tensor([1], shape=[1.5]),
        tensor([1], shape=["1"]),
        tensor([1], shape=[True]),
        tensor([1], shape=[2**63]),
        {**tensor([1]), "shape": 1},
        {**tensor([1]), "shape": None},
        {**tensor([1]), "data": 1},
        {**tensor([1]), "data": None},
        {**tensor([1]), "data": {"0": 1}},
        {**tensor([1]), "data": "1"},
        {**tensor([1]), "name": 1},
        {**tensor([1]), "name": None},
        {**tensor([1]), "parameters": []},
        None,
        1,
        [],
    ],
)
def test_malformed_inputs(broken: Any) -> None:
    with pytest.raises(InvalidInput):
        decode_request(body_of(broken))


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"null", b"1", b"[]", b"{}", b'"inputs"', b'{"inputs":null}', b'{"inputs":{}}', b'{"inputs":[',
        b'{"inputs":[]}}', b'{"inputs":[],}', b"\xff\xfe", b'{"inputs":[],"id":1}', b'{"inputs":[],"outputs":{}}',
        b'{"inputs":[],"outputs":[{}]}', b'{"inputs":[],"outputs":["y"]}', b'{"inputs":[],"parameters":[]}',
        b"\xef\xbb\xbf{}", b'{"inputs":[]}\0', b"{'inputs':[]}",
    ],
)  # fmt: skip
def test_malformed_bodies(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_request(body)


@pytest.mark.parametrize("text", [b'"\\ud800"', b'"\xff"', b'"\\x"', b'"a\x00b"', b'"\\udc00\\ud800"'])
def test_text_that_is_not_unicode(text: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_request(b'{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":[%b]}]}' % text)
    with pytest.raises(InvalidInput):
        decode_request(b'{"inputs":[{"name":%b,"shape":[1],"datatype":"BYTES","data":["a"]}]}' % text)


def test_messages_say_what_was_wanted_and_what_came() -> None:
    assert refusal([300], "UINT8") == "input 'x': 300 does not fit UINT8"
    assert "shape [2, 2] takes 4 elements, 3 came" in refusal([1, 2, 3], "FP32", [2, 2])
    assert "'INT9'" in refusal([1], "INT9")
    assert "INT32" in refusal([1], "INT9")  # what there is
    assert '"five"' in refusal([1, "five"], "FP32")
    assert len(refusal(["x" * 100_000], "FP32")) < 300


# --- bombs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [17, 65, 1000, 100_000, 1_000_000])
def test_depth_bombs(depth: int) -> None:
    for data in (b"[" * depth + b"1" + b"]" * depth, b"[" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        for place in (
            b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":%b}]}',
            b'{"inputs":[],"parameters":%b}',
            b'{"inputs":%b}',
            b"%b",
            b'{"inputs":[],"z":%b}',
        ):
            try:
                request = decode_request(place % data)
            except InvalidInput:
                continue
            assert not request.tensors  # deep, and nobody looks at it


def test_too_many_dimensions_and_tensors() -> None:
    assert decode_one([1], "FP32", [1] * MAX_RANK)
    with pytest.raises(TooLarge):
        decode_request(body_of(tensor([1], "FP32", [1] * (MAX_RANK + 1))))
    with pytest.raises(TooLarge):
        decode_request(body_of(tensor([1], "FP32", [2**62] * 100_000)))
    with pytest.raises(TooLarge):
        decode_request(body_of(*[tensor([1.0], name=str(i)) for i in range(MAX_TENSORS + 1)]))


# --- binary extension ---------------------------------------------------------------------------------------


def with_binary(parts: list[tuple[Any, bytes]], **more: Any) -> tuple[bytes, int]:
    head = body_of(*(item for item, _ in parts), **more)
    return head + b"".join(data for _, data in parts), len(head)


def announced(data: bytes, datatype: str = "FP32", shape: list[int] | None = None, name: str = "x") -> Any:
    size = DATATYPES[datatype].itemsize or 1
    shape = [len(data) // size] if shape is None else shape
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(data)}}


@given(st.lists(st.tuples(tensors(list(DATATYPES)), st.booleans()), max_size=4))
def test_binary_and_json_tensors_side_by_side(cases: list[tuple[tuple[str, tuple[int, ...], list[Any]], bool]]) -> None:
    parts: list[tuple[Any, bytes]] = []
    wanted: list[bytes] = []
    for i, ((datatype, shape, values), binary) in enumerate(cases):
        wanted.append(raw_of(values, datatype))
        if binary or datatype == "BF16":
            parts.append((announced(wanted[-1], datatype, list(shape), str(i)), wanted[-1]))
        else:
            flat = [_word(v.decode() if isinstance(v, bytes) else v) for v in values]
            parts.append((tensor(flat, datatype, list(shape), str(i)), b""))
    body, length = with_binary(parts)
    got = decode_request(body, length).tensors
    assert [bytes(t.raw or b"") for t in got] == wanted
    assert [t.shape for t in got] == [shape for (_, shape, _), _ in cases]


@pytest.mark.parametrize("size", [-1, 5, 1 << 60, "4", 4.0, True, None, [4]])
def test_binary_sizes_that_are_none(size: Any) -> None:
    item = announced(b"abcd")
    item["parameters"]["binary_data_size"] = size
    body, length = with_binary([(item, b"abcd")])
    with pytest.raises(InvalidInput, match="'x'"):
        decode_request(body, length)


def test_binary_data_must_be_there_and_all_of_it_announced() -> None:
    body, length = with_binary([(announced(b"abcd"), b"abcd"), (announced(b"efgh", name="y"), b"efgh")])
    assert decode_request(body, length)
    for changed in (body[:-1], body + b"x", body[:length], body[: length + 4]):
        with pytest.raises(InvalidInput):
            decode_request(changed, length)
    for wrong in (length - 1, length + 1, 0, len(body), len(body) + 1, 1 << 60):
        with pytest.raises(InvalidInput):
            decode_request(body, wrong)
    with pytest.raises(InvalidInput):
        decode_request(body)


def test_data_and_binary_data_exclude_each_other() -> None:
    item = {**announced(b"abcd"), "data": [1.0]}
    body, length = with_binary([(item, b"abcd")])
    with pytest.raises(InvalidInput, match="not both"):
        decode_request(body, length)


def test_a_header_length_without_binary_tensors() -> None:
    body = body_of(tensor([1.0]))
    assert decode_request(body, len(body)).tensors[0].raw == struct.pack("<f", 1)


# --- raw bodies -----------------------------------------------------------------------------------------------


@given(st.sampled_from(NUMERIC), st.integers(0, 20), st.integers(1, 5))
def test_a_raw_body_finds_its_one_variable_dimension(datatype: str, rows: int, columns: int) -> None:
    kind = DATATYPES[datatype]
    body = bytes(rows * columns * kind.itemsize)
    request = raw_request(body, "x", datatype, (-1, columns))
    assert request.tensors[0].shape == (rows, columns)
    assert request.tensors[0].raw == body
    assert request.binary


def test_a_raw_body_of_bytes_is_one_element() -> None:
    request = raw_request(b"a\0b", "x", "BYTES", (-1, 1))
    assert request.tensors[0].shape == (1, 1)
    assert request.tensors[0].array().tolist() == [[b"a\0b"]]


def test_a_raw_body_cannot_tell_two_dimensions() -> None:
    with pytest.raises(InvalidInput, match="variable"):
        raw_request(b"", "x", "FP32", (-1, -1))


@pytest.mark.parametrize("size", [1, 11, 13, 23])
def test_a_raw_body_that_is_not_whole_rows_is_refused_by_the_signature(size: int) -> None:
    signature = Signature([TensorSpec("x", "FP32", (-1, 3))], [], True)
    with pytest.raises(InvalidInput, match="'x'"):
        signature.check(raw_request(bytes(size), "x", "FP32", (-1, 3)).tensors)


# --- answers ----------------------------------------------------------------------------------------------------


def ran(arrays: list[tuple[str, str, Any]], model: str = "m", version: int = 3) -> Ran:
    specs = [TensorSpec(name, datatype, (-1,) * array.ndim) for name, datatype, array in arrays]
    return Ran(model, version, Signature([], specs, True), [array for _, _, array in arrays])


def asked(*outputs: tuple[str, bool], id: str = "", binary: bool = False) -> Request:
    request = Request([], id, binary)
    request.outputs = list(outputs) or None
    return request


def array_of(values: list[Any], datatype: str, shape: tuple[int, ...]) -> Any:
    array = np.empty(len(values), DATATYPES[datatype].dtype)
    array[:] = values
    return array.reshape(shape)


@given(tensors(JSON_DATATYPES, min_rank=1), st.text(max_size=5), st.text(min_size=1, max_size=5))
def test_json_answers_parse_to_what_the_model_gave(
    case: tuple[str, tuple[int, ...], list[Any]], id: str, name: str
) -> None:
    datatype, shape, values = case
    array = array_of(values, datatype, shape)
    body, header = encode_response(Result(ran([(name, datatype, array)], model=name)), asked(id=id))
    assert header is None
    answer = json.loads(body)
    assert answer.get("id", "") == id
    assert (answer["model_name"], answer["model_version"]) == (name, "3")
    [output] = answer["outputs"]
    assert (output["name"], output["datatype"], tuple(output["shape"])) == (name, datatype, shape)
    wanted = [v.decode() if isinstance(v, bytes) else _word(v) for v in array.ravel().tolist()]
    assert len(output["data"]) == len(wanted)
    assert repr(output["data"]) == repr(wanted)  # also -0.0


@given(tensors(JSON_DATATYPES, min_rank=1), st.lists(st.integers(0, 4), min_size=1, max_size=5), st.booleans())
def test_slices_of_a_batch_are_the_slices(
    case: tuple[str, tuple[int, ...], list[Any]], sizes: list[int], chosen: bool
) -> None:
    datatype, shape, values = case
    rows = sum(sizes)
    width = math.prod(shape[1:])
    assume(values or not width or not rows)
    array = array_of((values * (rows + 1))[: rows * width], datatype, (rows, *shape[1:]))
    batch = ran([("y", datatype, array)])
    at = 0
    for size in sizes:
        result = Result(batch, at, size)
        mine = array[at : at + size]
        body, _ = encode_response(result, asked(("y", False)) if chosen else asked())
        [output] = json.loads(body)["outputs"]
        assert output["shape"] == list(mine.shape)
        assert repr(output["data"]) == repr(
            [v.decode() if isinstance(v, bytes) else _word(v) for v in mine.ravel().tolist()]
        )
        body, header = encode_response(result, asked(("y", True)))
        assert body[header:] == raw_of(mine.ravel().tolist(), datatype)
        at += size


@given(st.lists(tensors(list(DATATYPES), min_rank=1), min_size=1, max_size=4), st.data())
def test_binary_answers_follow_the_json_in_order(
    cases: list[tuple[str, tuple[int, ...], list[Any]]], data: st.DataObject
) -> None:
    arrays = [
        (f"y{i}", datatype, array_of(values, datatype, shape)) for i, (datatype, shape, values) in enumerate(cases)
    ]
    order = data.draw(st.permutations(range(len(arrays))))
    wants = [(arrays[i][0], arrays[i][1] == "BF16" or data.draw(st.booleans())) for i in order]
    body, header = encode_response(Result(ran(arrays)), asked(*wants))
    answer = json.loads(body[:header])
    assert [o["name"] for o in answer["outputs"]] == [name for name, _ in wants]
    at = len(body) if header is None else header
    for output, (_, binary), i in zip(answer["outputs"], wants, order, strict=True):
        assert ("data" in output) is not binary
        if binary:
            size = output["parameters"]["binary_data_size"]
            assert body[at : at + size] == raw_of(cases[i][2], cases[i][0])
            at += size
    assert at == len(body)


def test_answers_take_the_names_as_they_are() -> None:
    result = Result(ran([('a"%s%b\\', "FP32", np.ones((1,), np.float32))], model="%d%%\n"))
    for request in (asked(), asked(('a"%s%b\\', False)), asked(id="%b %s")):
        answer = json.loads(encode_response(result, request)[0])
        assert answer["model_name"] == "%d%%\n"
        assert answer["outputs"][0]["name"] == 'a"%s%b\\'
        assert answer.get("id", "") == request.id


def test_what_json_cannot_carry_is_unsupported() -> None:
    text = array_of([b"\xff"], "BYTES", (1,))
    bits = np.zeros((1,), np.uint16)
    for array, datatype in ((text, "BYTES"), (bits, "BF16")):
        result = Result(ran([("y", datatype, array)]))
        with pytest.raises(Unsupported, match=r"'y'.*binary"):
            encode_response(result, asked())
        assert encode_response(result, asked(("y", True)))[1] is not None


@pytest.mark.parametrize(
    ("parameters", "output", "binary"),
    [
        (None, None, False),
        ({"binary_data_output": True}, None, True),
        ({"binary_data_output": False}, None, False),
        (None, {"binary_data": True}, True),
        ({"binary_data_output": True}, {"binary_data": False}, False),
        ({"binary_data_output": True}, {"other": 1}, True),
        ({"binary_data_output": False}, {"binary_data": True}, True),
    ],
)
def test_which_outputs_are_binary(parameters: Any, output: Any, binary: bool) -> None:
    wanted: dict[str, Any] = {"name": "y"}
    if output is not None:
        wanted["parameters"] = output
    body = body_of(tensor([1.0]), outputs=[wanted], **({} if parameters is None else {"parameters": parameters}))
    assert decode_request(body).outputs == [("y", binary)]


def test_without_outputs_all_go_as_the_request_says() -> None:
    body = body_of(tensor([1.0]), parameters={"binary_data_output": True})
    request = decode_request(body)
    assert request.outputs is None
    assert request.binary
    result = Result(ran([("y", "FP32", np.ones((1,), np.float32))]))
    assert encode_response(result, request)[1] is not None


def test_classification_is_not_offered() -> None:
    body = body_of(tensor([1.0]), outputs=[{"name": "y", "parameters": {"classification": 3}}])
    with pytest.raises(Unsupported):
        decode_request(body)


# --- fuzz ---------------------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), element_values("FP32")),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


def decodes_or_is_refused(body: bytes, length: int | None = None) -> None:
    try:
        request = decode_request(body, length)
    except OctoserveError as error:
        assert str(error).encode()  # noqa: PT017
        return
    for item in request.tensors:
        try:
            item.array()
        except InvalidInput:  # binary: the signature looks at lengths
            assert item.raw is not None


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 300)))
def test_any_bytes_decode_or_are_refused(body: bytes, length: int | None) -> None:
    decodes_or_is_refused(body, length)


@given(_JSON, st.sampled_from([*DATATYPES, "X"]), _JSON)
@example([2**70], "BOOL", [1])
@example([2**70], "BYTES", [1])
def test_any_json_decodes_or_is_refused(data: Any, datatype: str, other: Any) -> None:
    size = len(data) if isinstance(data, list) else 1
    for item in (
        {"name": "x", "shape": [size], "datatype": datatype, "data": data},
        {"name": "x", "shape": other, "datatype": datatype, "data": data},
        {"name": "x", "shape": [size], "datatype": datatype, "data": data, "parameters": other},
        {"name": "x", "shape": [size], "datatype": datatype, "parameters": {"binary_data_size": other}},
        data,
    ):
        decodes_or_is_refused(json.dumps({"inputs": [item], "outputs": other}).encode())
        decodes_or_is_refused(json.dumps({"inputs": [item], "parameters": other, "id": data}).encode(), 30)
        decodes_or_is_refused(json.dumps({"inputs": [item]}).encode())


@given(tensors(list(DATATYPES)), st.data())
def test_mutated_requests_decode_or_are_refused(
    case: tuple[str, tuple[int, ...], list[Any]], data: st.DataObject
) -> None:
    datatype, shape, values = case
    raw = raw_of(values, datatype)
    body, length = with_binary([(announced(raw, datatype, list(shape)), raw), (tensor([1, 2.5]), b"")])
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    decodes_or_is_refused(bytes(changed), length)
    decodes_or_is_refused(bytes(changed))


@given(st.binary(max_size=40), st.sampled_from(list(DATATYPES)), shapes())
def test_any_raw_body_decodes_or_is_refused(body: bytes, datatype: str, shape: tuple[int, ...]) -> None:
    try:
        raw_request(body, "x", datatype, (-1, *shape)).tensors[0].array()
    except InvalidInput:
        pass
