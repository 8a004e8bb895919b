"""Tensors: raw bytes and arrays say the same, and malformed bytes are refused."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput
from octoserve.core.tensors import Tensor, array_from_raw, datatype_of, raw_from_array, split_bytes
from support.tensors import CODES, raw_of, shapes, tensors

Case = tuple[str, tuple[int, ...], list[Any]]


def test_the_datatypes_are_the_protocols() -> None:
    assert set(DATATYPES) == {*CODES, "BYTES"}
    for name, kind in DATATYPES.items():
        assert kind.name == name
        assert kind.code == CODES.get(name, "")
        assert kind.itemsize == (struct.calcsize(kind.code) if kind.code else 0)


@given(tensors(list(DATATYPES)))
def test_raw_to_array_and_back(case: Case) -> None:
    datatype, shape, values = case
    raw = raw_of(values, datatype)
    for held in (raw, bytearray(raw), memoryview(raw)):
        tensor = Tensor("x", datatype, shape, held)
        assert tensor.array().shape == shape
        assert tensor.array().dtype == DATATYPES[datatype].dtype
        assert raw_from_array(tensor.array()) == raw
        assert tensor.nbytes() == len(raw)
    again = Tensor.of("x", tensor.array(), datatype)
    assert again.bytes() == raw
    assert again.shape == shape


@given(tensors(list(DATATYPES)), st.integers(-9, 9).filter(bool))
def test_a_wrong_number_of_bytes_is_refused(case: Case, more: int) -> None:
    datatype, shape, values = case
    raw = raw_of(values, datatype)
    raw = raw + bytes(more) if more > 0 else raw[:more]
    if len(raw) == len(raw_of(values, datatype)):
        return
    with pytest.raises(InvalidInput, match="'x'"):
        array_from_raw(raw, datatype, shape, "x")


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_split_or_are_refused(raw: bytes, count: int) -> None:
    try:
        elements = split_bytes(raw, "x", count)
    except InvalidInput:
        return
    assert len(elements) == count
    assert raw_of(elements, "BYTES") == raw


@pytest.mark.parametrize("raw", [b"\x01\0\0\0", b"\xff\xff\xff\xffa", b"\x01\0\0", b"\0\0\0\0\0", b"\x01\0\0\0ab"])
def test_bytes_that_overrun_or_leave_over(raw: bytes) -> None:
    with pytest.raises(InvalidInput, match="'x'"):
        split_bytes(raw, "x", 1)


@pytest.mark.parametrize("byte", [2, 3, 128, 255])
def test_a_bool_is_0_or_1(byte: int) -> None:
    with pytest.raises(InvalidInput, match="BOOL"):
        array_from_raw(bytes([0, byte, 1]), "BOOL", (3,), "x")


@given(shapes())
def test_text_is_utf8(shape: tuple[int, ...]) -> None:
    array = np.full(shape, "é", dtype=object)
    assert raw_from_array(array) == raw_of(["é".encode()] * array.size, "BYTES")
    assert raw_from_array(array.astype("U1")) == raw_of(["é".encode()] * array.size, "BYTES")


def test_big_endian_and_strided_arrays_go_out_row_major_little_endian() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3)
    assert raw_from_array(array) == struct.pack("<6i", *range(6))
    assert raw_from_array(array.T) == struct.pack("<6i", 0, 3, 1, 4, 2, 5)
    assert raw_from_array(array[:, ::2]) == struct.pack("<4i", 0, 2, 3, 5)


@pytest.mark.parametrize("name", [name for name in DATATYPES if name not in ("BF16", "BYTES")])
def test_the_datatype_of_an_array(name: str) -> None:
    dtype = DATATYPES[name].dtype
    assert datatype_of(np.zeros(1, dtype)) == name
    assert datatype_of(np.zeros(1, dtype.newbyteorder(">"))) == name


def test_arrays_without_a_datatype() -> None:
    assert datatype_of(np.array(["a"])) == datatype_of(np.array([b"a"])) == datatype_of(np.array([None])) == "BYTES"
    for array in (np.zeros(1, complex), np.zeros(1, "datetime64[s]"), np.zeros(1, np.longdouble)):
        with pytest.raises(InvalidInput):
            datatype_of(array)


def test_numbers_are_not_copied() -> None:
    raw = struct.pack("<4f", 1, 2, 3, 4)
    assert np.shares_memory(array_from_raw(raw, "FP32", (2, 2)), np.frombuffer(raw, np.uint8))
