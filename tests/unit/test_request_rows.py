"""Messages that are requests or raw bytes: one row each, grouped by shape, and what does not fit refused alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from octoserve.codecs.request_rows import OpenInferenceRows, RawRows
from octoserve.core.errors import SettingsError
from octoserve.core.signature import Signature, TensorSpec


def signature(*specs: TensorSpec) -> Signature:
    return Signature(specs, [], batchable=True)


def request(shape: list[int], data: Any, id: str = "", name: str = "x", datatype: str = "FP32") -> bytes:
    body = {"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}]}
    return json.dumps({**body, **({"id": id} if id else {})}).encode()


X = signature(TensorSpec("x", "FP32", (-1, -1)))


def test_requests_are_grouped_by_shape():
    found = OpenInferenceRows(X).decode(
        [request([1, 2], [1, 2], "a"), request([1, 1], [3]), request([1, 2], [[4, 5]], "c")]
    )
    assert found.unfit == {}
    assert found.ids == ["a", None, "c"]
    assert [(g.rows, g.columns[0].array().tolist()) for g in found.groups] == [
        ([0, 2], [[1, 2], [4, 5]]),
        ([1], [[3]]),
    ]


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"{", "not an inference request"),
        (request([2, 1], [1, 2]), "a message is one row, 2 came"),
        (request([1, 2], [1]), "takes 2 elements, 1 came"),
        (request([1, 1], [1], name="y"), "input 'x' is missing"),
        (request([1, 1], [1], datatype="FP64"), "datatype FP32 wanted"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_alone(payload: bytes, why: str):
    found = OpenInferenceRows(X).decode([request([1, 1], [1]), payload])
    assert why in found.unfit[1]
    assert [g.rows for g in found.groups] == [[0]]


def test_inputs_come_in_the_signatures_order():
    both = signature(TensorSpec("a", "BYTES", (-1, 1)), TensorSpec("b", "BOOL", (-1,)))
    inputs = [
        {"name": "b", "shape": [1], "datatype": "BOOL", "data": [True]},
        {"name": "a", "shape": [1, 1], "datatype": "BYTES", "data": ["word"]},
    ]
    found = OpenInferenceRows(both).decode([json.dumps({"inputs": inputs}).encode()] * 2)
    assert [t.name for t in found.groups[0].columns] == ["a", "b"]
    assert found.groups[0].columns[0].array().tolist() == [[b"word"], [b"word"]]


def test_raw_bytes_are_the_only_input():
    numbers = RawRows(signature(TensorSpec("x", "INT16", (-1, 3))))
    found = numbers.decode([np.array([1, -2, 3], "<i2").tobytes(), b"12345"])
    assert found.groups[0].columns[0].array().tolist() == [[1, -2, 3]]
    assert "takes 6 bytes, 5 came" in found.unfit[1]
    open_ended = RawRows(signature(TensorSpec("x", "UINT8", (-1, -1))))
    assert [g.columns[0].shape for g in open_ended.decode([b"abc", b"", b"xyz"]).groups] == [(2, 3), (1, 0)]
    text = RawRows(signature(TensorSpec("x", "BYTES", (-1, 1))))
    assert text.decode([b"\xff whatever", b""]).groups[0].columns[0].array().tolist() == [[b"\xff whatever"], [b""]]


@pytest.mark.parametrize(
    "specs",
    [
        (TensorSpec("x", "FP32", (-1,)), TensorSpec("y", "FP32", (-1,))),
        (TensorSpec("x", "FP32", (-1, -1, -1)),),
        (TensorSpec("x", "BYTES", (-1, 2)),),
    ],
)
def test_what_raw_bytes_cannot_say_is_said(specs: tuple[TensorSpec, ...]):
    with pytest.raises(SettingsError, match="raw"):
        RawRows(signature(*specs))
