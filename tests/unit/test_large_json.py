"""Big JSON bodies: the same answers as small ones, and cheap refusals of what is no tensor."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from octoserve.codecs.large_json import LARGE
from octoserve.codecs.open_inference_json import decode_request
from octoserve.core.errors import InvalidInput, OctoserveError
from support.scale import scale

MANY = 100_000
MOST = scale(200_000, 1_000_000)


def body(data: bytes, shape: str, datatype: str = "FP32", rest: bytes = b"") -> bytes:
    text = b'{"inputs":[{"name":"x","shape":%b,"datatype":"%b","data":%b}]%b}'
    whole = text % (shape.encode(), datatype.encode(), data, rest)
    assert len(whole) > LARGE
    return whole


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("datatype", "element", "value"),
    [
        ("FP32", b"1.5", 1.5),
        ("FP64", b"2", 2.0),
        ("FP64", b'"NaN"', np.nan),
        ("INT64", b"-7", -7),
        ("UINT8", b"200", 200),
        ("BOOL", b"true", True),
        ("BYTES", b'"a[{"', b"a[{"),
    ],
)
def test_data_is_read_as_in_small_bodies(datatype: str, element: bytes, value: object, nested: bool) -> None:
    row = b"[%b,%b]" % (element, element) if nested else b"%b,%b" % (element, element)
    request = decode_request(body(b"[" + b",".join([row] * MANY) + b"]", f"[{MANY},2]", datatype))
    [tensor] = request.tensors
    assert tensor.shape == (MANY, 2)
    array = tensor.array()
    assert array[0, 0] == value or array[0, 0] != array[0, 0]
    assert array.shape == (MANY, 2)


def test_the_rest_of_the_request_is_kept() -> None:
    rest = b',"id":"7","parameters":{"timeout":5,"binary_data_output":true},"outputs":[{"name":"y"}]'
    request = decode_request(body(b"[" + b"0.5," * MANY + b"1]", f"[{MANY + 1}]", rest=rest))
    assert request.id == "7"
    assert request.parameters == {"timeout": 5, "binary_data_output": True}
    assert request.outputs == [("y", True)]


@pytest.mark.parametrize(
    ("data", "shape", "datatype"),
    [
        (b"[" + b"[]," * MOST + b"[]]", "[2,3]", "FP32"),
        (b"[" + b"[]," * MOST + b"[]]", f"[{MOST + 1},0]", "FP32"),
        (b"[" + b"[[[]]]," * (MOST // 2) + b"1]", "[2,3]", "INT8"),
        (b"[" + b"{}," * MOST + b"1]", "[4]", "FP32"),
        (b"[" + b"null," * MOST + b"1]", "[4]", "FP32"),
        (b"[" + b"1," * MOST + b"true]", f"[{MOST + 1}]", "FP32"),
        (b"[" + b"1," * MOST + b'"x"]', f"[{MOST + 1}]", "INT32"),
        (b"[" + b"1.5," * MOST + b"1]", f"[{MOST + 1}]", "INT32"),
        (b"[" + b"300," * MOST + b"1]", f"[{MOST + 1}]", "UINT8"),
        (b"[" + b"1," * MOST + b"1]", "[4611686018427387904]", "FP32"),
        (b"[1]", "[" + "1," * MOST + "1]", "FP32"),
        (b'[[1],[2]]' + b" " * LARGE, "[2,2]", "FP32"),
    ],
)  # fmt: skip
def test_what_is_no_tensor_is_refused_at_little_cost(data: bytes, shape: str, datatype: str) -> None:
    whole = body(data, shape, datatype)
    tracemalloc.start()
    try:
        with pytest.raises(OctoserveError):
            decode_request(whole)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * len(whole)


def test_parameters_and_outputs_are_bounded() -> None:
    data = b"[" + b"0.5," * MANY + b"1]"
    for rest in (b',"parameters":{"a":[' + b"[]," * MANY + b"1]}", b',"outputs":[' + b'{"name":"y"},' * MANY + b"{}]"):
        with pytest.raises(InvalidInput, match="at most"):
            decode_request(body(data, f"[{MANY + 1}]", rest=rest))


def test_a_big_body_of_empty_lists_takes_no_longer_than_a_good_one() -> None:
    """Ten million empty lists took seconds; the bound is generous, for slow machines."""
    bad = body(b"[" + b"[]," * 10 * MANY + b"[]]", "[2,3]")
    good = body(b"[" + b"1.5," * 10 * MANY + b"1]", f"[{10 * MANY + 1}]")
    times = []
    for whole in (good, bad):
        start = time.perf_counter()
        try:
            decode_request(whole)
        except InvalidInput:
            pass
        times.append(time.perf_counter() - start)
    assert times[1] < 2 * times[0] + 0.5
