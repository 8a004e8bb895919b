"""Record batches as tensors and tensors as columns: the same values, however a column is cut, chunked or null."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import Internal
from octoserve.core.signature import TensorSpec
from octoserve.patterns.batch.conversion import bits, numbers, tensors, unfit, words
from octoserve.patterns.batch.matching import Feed
from octoserve.patterns.batch.outputs import arrow_type, column_of


def cut(array: pa.Array, data: st.DataObject) -> tuple[pa.Array, int, int]:
    start = data.draw(st.integers(0, len(array)))
    stop = data.draw(st.integers(start, len(array)))
    return array.slice(start, stop - start), start, stop


@given(st.lists(st.one_of(st.none(), st.integers(-100, 100)), max_size=40), st.data())
def test_numbers_of_a_cut_column(values: list[int | None], data: st.DataObject) -> None:
    column, start, stop = cut(pa.array(values, pa.int16()), data)
    found = numbers(column, np.dtype(np.float32))
    assert [None if np.isnan(v) else int(v) for v in found.tolist()] == values[start:stop]


@given(st.lists(st.booleans(), max_size=40), st.data())
def test_bits_of_a_cut_column(values: list[bool], data: st.DataObject) -> None:
    column, start, stop = cut(pa.array(values, pa.bool_()), data)
    assert bits(column).tolist() == values[start:stop]
    assert numbers(column, np.dtype(np.float32)).tolist() == [float(v) for v in values[start:stop]]


def test_a_number_column_of_the_right_type_is_not_copied() -> None:
    values = np.arange(10, dtype=np.float32)
    found = numbers(pa.array(values), np.dtype(np.float32))
    assert np.shares_memory(found, values)


@given(st.data(), st.integers(1, 4), st.sampled_from([pa.float32(), pa.int8(), pa.bool_()]))
def test_columns_side_by_side(data: st.DataObject, width: int, type_: pa.DataType) -> None:
    table = np.array(data.draw(st.lists(st.lists(st.integers(0, 1), min_size=width, max_size=width), max_size=20)))
    table = table.reshape(-1, width)
    names = [f"c{i}" for i in range(width)]
    batch = pa.record_batch([pa.array(table[:, i].astype(np.int8)).cast(type_) for i in range(width)], names=names)
    start = data.draw(st.integers(0, len(table)))
    feed = Feed(TensorSpec("x", "FP32", (-1, width)), tuple(names), (width,), True)
    (found,) = tensors(batch.slice(start), [feed])
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.array_equal(found, table[start:].astype(np.float32).reshape(-1, width))


@given(
    st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=4)), max_size=30),
    st.data(),
    st.booleans(),
    st.booleans(),
)
def test_lists_of_the_wrong_length_or_with_gaps_are_told_apart(
    values: list[list[int | None] | None], data: st.DataObject, nan: bool, fixed: bool
) -> None:
    if fixed:
        values = [v if v is None or len(v) == 2 else [1, 2] for v in values]
    column, start, stop = cut(pa.array(values, pa.list_(pa.float32(), 2) if fixed else pa.list_(pa.float32())), data)
    mine = values[start:stop]
    batch = pa.record_batch([column], names=["x"])
    feed = Feed(TensorSpec("x", "FP32", (-1, 2)), ("x",), (2,), False)
    found = unfit(batch, [feed], nan)
    wrong = [i for i, v in enumerate(mine) if v is None or len(v) != 2 or (None in v and not nan)]
    assert sorted(found) == wrong
    fit = [i for i in range(len(mine)) if i not in found]
    (tensor,) = tensors(batch.take(pa.array(fit, pa.int64())), [feed])
    expected = [[np.nan if e is None else e for e in mine[i]] for i in fit]
    assert np.array_equal(tensor, np.array(expected, np.float32).reshape(-1, 2), equal_nan=True)


def test_missing_values_by_policy() -> None:
    batch = pa.record_batch({"a": pa.array([1.0, None, 3.0], pa.float32()), "w": pa.array(["x", "y", None])})
    number = Feed(TensorSpec("a", "FP32", (-1,)), ("a",), (), False)
    word = Feed(TensorSpec("w", "BYTES", (-1,)), ("w",), (), False)
    assert unfit(batch, [number], False) == {1: "missing value in column 'a'"}
    assert unfit(batch, [number], True) == {}
    assert unfit(batch, [number, word], True) == {2: "missing value in column 'w'"}, "a word has no NaN"
    (found,) = tensors(batch, [number])
    assert np.array_equal(found, np.array([1, np.nan, 3], np.float32), equal_nan=True)


@pytest.mark.parametrize(
    "column",
    [pa.array(["ä", "", "b"]), pa.array([b"\xff", b"", b"b"]), pa.array(["ä", "", "ä"]).dictionary_encode()],
)
def test_words_are_bytes(column: pa.Array) -> None:
    expected = [item.encode() if isinstance(item, str) else item for item in column.to_pylist()]
    assert words(column).tolist() == expected
    assert words(column.slice(1)).tolist() == expected[1:]


SHAPES = [(-1,), (-1, 1), (-1, 3), (-1, -1), (-1, 2, 3), (-1, -1, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {"BF16"}))
@pytest.mark.parametrize("rows", [0, 5])
def test_an_output_as_a_column(shape: tuple[int, ...], datatype: str, rows: int) -> None:
    spec = TensorSpec("y", datatype, shape)
    actual = (rows, *(4 if size < 0 else size for size in shape[1:]))
    numbers_ = np.arange(np.prod(actual)).reshape(actual) % 2
    if datatype == "BYTES":
        array = np.array([b"w%d" % n for n in numbers_.ravel()], dtype=object).reshape(actual)
    else:
        array = numbers_.astype(DATATYPES[datatype].dtype)
    column = column_of(array, spec, arrow_type(spec), rows)
    column.validate(full=True)
    flat = array.reshape(rows) if shape == (-1, 1) else array
    assert column.to_pylist() == [
        [w.decode() for w in row] if isinstance(row, list) and row and isinstance(row[0], bytes) else row
        for row in _decoded(flat.tolist())
    ]


def _decoded(value):
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def test_an_output_that_is_not_what_the_signature_says() -> None:
    spec = TensorSpec("y", "FP32", (-1, 3))
    for shape in ((4, 3), (5, 2), (5,), (5, 3, 1), ()):
        with pytest.raises(Internal, match="'y'"):
            column_of(np.zeros(shape, np.float32), spec, arrow_type(spec), 5)
    words_ = TensorSpec("y", "BYTES", (-1,))
    with pytest.raises(Internal, match="UTF-8"):
        column_of(np.array([b"\xff"], dtype=object), words_, arrow_type(words_), 1)
