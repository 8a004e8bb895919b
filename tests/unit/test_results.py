"""Results: each request's part of a batch, as arrays, text and bytes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.datatypes import DATATYPES
from octoserve.core.results import NoTextForm, Ran, Result
from octoserve.core.signature import Signature, TensorSpec
from support.tensors import raw_of, tensors

Case = tuple[str, tuple[int, ...], list[Any]]


def ran(array: Any, datatype: str) -> Ran:
    return Ran("m", 1, Signature([], [TensorSpec("y", datatype, (-1,) * array.ndim)], True), [array])


def array_of(case: Case) -> Any:
    datatype, shape, values = case
    array = np.empty(len(values), DATATYPES[datatype].dtype)
    array[:] = values
    return array.reshape(shape)


@given(tensors(list(DATATYPES), min_rank=1), st.data())
def test_a_part_is_a_slice_in_every_form(case: Case, data: st.DataObject) -> None:
    datatype, array = case[0], array_of(case)
    start = data.draw(st.integers(0, array.shape[0]))
    rows = data.draw(st.integers(0, array.shape[0] - start))
    part, mine = Result(ran(array, datatype), start, rows), array[start : start + rows]
    assert part.shape(0) == part.array(0).shape == mine.shape
    assert part.raw(0) == raw_of(mine.ravel().tolist(), datatype)
    [tensor] = part.tensors()
    assert (tensor.name, tensor.datatype, tensor.shape) == ("y", datatype, mine.shape)
    if datatype == "BF16":
        with pytest.raises(NoTextForm):
            part.text(0)
    else:
        assert len(json.loads(b"[%b]" % part.text(0))) == mine.size


@given(tensors(list(DATATYPES)))
def test_the_whole_run_has_any_shape(case: Case) -> None:
    array = array_of(case)
    whole = Result(ran(array, case[0]))
    assert whole.shape(0) == array.shape
    assert whole.raw(0) == raw_of(case[2], case[0])


def test_text_is_json() -> None:
    floats = np.array([[0.5, -0.0], [np.nan, np.inf], [-np.inf, 1e300]])
    assert Result(ran(floats, "FP64"), 1, 2).text(0) == b'"NaN","Infinity","-Infinity",1e300'
    assert Result(ran(floats, "FP64"), 0, 1).text(0) == b"0.5,-0.0"
    words = np.array(['a,"b', b"c,d", "é"], dtype=object)
    assert json.loads(b"[%b]" % Result(ran(words, "BYTES")).text(0)) == ['a,"b', "c,d", "é"]
    assert Result(ran(np.array([True, False]), "BOOL"), 1, 1).text(0) == b"false"
    assert Result(ran(np.array([2**64 - 1], np.uint64), "UINT64")).text(0) == b"18446744073709551615"
    with pytest.raises(UnicodeDecodeError):
        Result(ran(np.array([b"\xff"], dtype=object), "BYTES")).text(0)


def test_a_batch_without_rows() -> None:
    empty = np.empty((0, 3), np.float32)
    assert Result(ran(empty, "FP32"), 0, 0).text(0) == b""
    assert Result(ran(empty, "FP32"), 0, 0).shape(0) == (0, 3)
