"""A table's columns against a model's inputs: what converts, what is refused, and what the refusal says."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import SettingsError
from octoserve.core.signature import Signature, TensorSpec
from octoserve.patterns.batch.job import Differs, JobSettings
from octoserve.patterns.batch.matching import Matched, check_file, converts, datatype_of, match

ARROW = {
    "BOOL": pa.bool_(), "INT8": pa.int8(), "INT16": pa.int16(), "INT32": pa.int32(), "INT64": pa.int64(),
    "UINT8": pa.uint8(), "UINT16": pa.uint16(), "UINT32": pa.uint32(), "UINT64": pa.uint64(),
    "FP16": pa.float16(), "FP32": pa.float32(), "FP64": pa.float64(),
}  # fmt: skip


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs, [TensorSpec("y", "FP32", (-1,))], batchable=True)


def matched(model: Signature, table: dict[str, pa.DataType], features=None, **settings) -> Matched:
    return match(model, pa.schema(list(table.items())), JobSettings(**settings), features or {}, "m version 1")


@given(st.sampled_from(sorted(ARROW)), st.sampled_from(sorted(ARROW)))
def test_what_converts_loses_nothing(came: str, wanted: str) -> None:
    """Checked with the extremes of the type, and with the values next to them."""
    if not converts(ARROW[came], wanted):
        return
    dtype, target = DATATYPES[came].dtype, DATATYPES[wanted].dtype
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        values = np.array([limits.max, limits.min, limits.smallest_subnormal, 1 + limits.eps, -0.0], dtype)
    elif dtype.kind == "b":
        values = np.array([True, False])
    else:
        limits = np.iinfo(dtype)
        values = np.array([limits.max, limits.max - 1, limits.min, limits.min + 1, 1, 0], dtype)
    assert np.array_equal(values.astype(target).astype(dtype), values)


@pytest.mark.parametrize(
    ("came", "wanted", "may"),
    [
        (pa.int32(), "INT64", True), (pa.int16(), "FP32", True), (pa.int32(), "FP32", False),
        (pa.int64(), "FP64", False), (pa.float64(), "FP32", False), (pa.float32(), "FP64", True),
        (pa.uint32(), "INT32", False), (pa.uint32(), "INT64", True), (pa.int8(), "UINT8", False),
        (pa.bool_(), "FP32", True), (pa.int8(), "BOOL", False), (pa.string(), "BYTES", True),
        (pa.string(), "FP32", False), (pa.dictionary(pa.int8(), pa.string()), "BYTES", True),
        (pa.timestamp("us"), "INT64", False), (pa.decimal128(5, 2), "FP64", False), (pa.float32(), "BF16", False),
    ],
)  # fmt: skip
def test_conversions(came: pa.DataType, wanted: str, may: bool) -> None:
    assert converts(came, wanted) is may


def test_rounding_is_for_floats_only() -> None:
    assert converts(pa.float64(), "FP32", True)
    assert converts(pa.int64(), "FP32", True)
    assert not converts(pa.int64(), "INT32", True)
    assert not converts(pa.float64(), "INT64", True)
    assert datatype_of(pa.date32()) is None


def test_inputs_by_their_names() -> None:
    model = signature(TensorSpec("age", "FP32", (-1, 1)), TensorSpec("city", "BYTES", (-1,)))
    found = matched(model, {"city": pa.string(), "id": pa.int64(), "age": pa.int16()}, keys=("id",))
    assert [(feed.columns, feed.shape) for feed in found.feeds] == [(("age",), (1,)), (("city",), ())]
    assert found.read == ("id", "age", "city")
    assert found.passed == ("id",)


def test_features_side_by_side() -> None:
    model = signature(TensorSpec("x", "FP32", (-1, 3)))
    columns = {name: pa.float32() for name in "cbaz"}
    for found in (
        matched(model, columns, columns=("a", "b", "c")),
        matched(model, columns, features={"": ("a", "b", "c")}),
        matched(model, columns, features={"x": ("a", "b", "c")}),
        matched(model, columns, features={"x": ("z", "b", "c")}, columns=("a", "b", "c")),
    ):
        assert found.feeds[0].columns == ("a", "b", "c")
        assert found.feeds[0].stacked
        assert not found.by_position


def test_by_position_only_if_there_is_no_doubt() -> None:
    model = signature(TensorSpec("x", "FP32", (-1, 2)))
    found = matched(model, {"id": pa.string(), "a": pa.float32(), "b": pa.int8()}, keys=("id",))
    assert (found.feeds[0].columns, found.by_position) == (("a", "b"), True)
    with pytest.raises(Differs, match="--columns"):
        matched(model, {"id": pa.int64(), "a": pa.float32(), "b": pa.int8()})
    with pytest.raises(Differs, match="--columns"):
        matched(model, {"a": pa.float32(), "b": pa.string()})


def test_lists() -> None:
    model = signature(TensorSpec("x", "FP32", (-1, 3)))
    for type_ in (pa.list_(pa.float32(), 3), pa.list_(pa.float32()), pa.large_list(pa.int8())):
        assert matched(model, {"x": type_}).feeds[0].shape == (3,)
    assert matched(model, {"v": pa.list_(pa.float32(), 3)}, columns=("v",)).feeds[0].columns == ("v",)
    with pytest.raises(Differs, match="lists of 3"):
        matched(model, {"x": pa.list_(pa.float32(), 4)})
    with pytest.raises(Differs, match="lists of FP32"):
        matched(model, {"x": pa.list_(pa.float64(), 3)})
    free = signature(TensorSpec("x", "FP32", (-1, -1)))
    assert matched(free, {"x": pa.list_(pa.float32(), 7)}).feeds[0].shape == (7,)
    with pytest.raises(Differs, match="fixed-size"):
        matched(free, {"x": pa.list_(pa.float32())})
    deep = signature(TensorSpec("x", "FP32", (-1, 2, 3)))
    assert matched(deep, {"x": pa.list_(pa.list_(pa.float32()), 2)}).feeds[0].shape == (2, 3)


def test_the_refusal_is_a_table_of_everything_that_differs() -> None:
    model = signature(TensorSpec("x", "FP32", (-1, 3)))
    table = {"a": pa.float64(), "b": pa.string()}
    with pytest.raises(Differs) as caught:
        matched(model, table, columns=("a", "b", "c"), keys=("id",))
    told = {d.what: d for d in caught.value.differences}
    assert set(told) == {"key id", "column a", "column b", "column c"}
    assert (told["column a"].wanted, told["column a"].came) == ("FP32", "double")
    assert "--convert round" in told["column a"].remedy
    assert told["column c"].came == "no such column"
    assert all(line in str(caught.value) for line in ("key id", "column a", "column b", "column c"))


def test_other_refusals() -> None:
    two = signature(TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,)))
    with pytest.raises(SettingsError, match="several"):
        matched(two, {"a": pa.float32()}, columns=("a", "b"))
    with pytest.raises(SettingsError, match="no input 'z'"):
        matched(two, {"a": pa.float32()}, features={"z": ("a",)})
    with pytest.raises(Differs, match="2 named"):
        matched(signature(TensorSpec("x", "FP32", (-1, 3))), {"a": pa.float32(), "b": pa.float32()}, columns=("a", "b"))
    with pytest.raises(Differs, match="twice"):
        matched(signature(TensorSpec("x", "FP32", (-1, 2))), {"a": pa.float32()}, columns=("a", "a"))
    with pytest.raises(SettingsError, match="takes no rows"):
        matched(signature(TensorSpec("x", "FP32", (3,))), {"x": pa.float32()})
    one = signature(TensorSpec("x", "FP32", (-1,)))
    with pytest.raises(SettingsError, match="prefix"):
        matched(one, {"x": pa.float32(), "y": pa.int64()}, keys=("y",))
    assert matched(one, {"x": pa.float32(), "y": pa.int64()}, keys=("y",), prefix="p_").passed == ("y",)


def test_files_that_are_not_alike() -> None:
    first = pa.schema([("a", pa.float32()), ("b", pa.int8())])
    assert (
        check_file("f", pa.schema([("b", pa.int8()), ("a", pa.float32()), ("c", pa.int8())]), first, ("a", "b")) == []
    )
    found = check_file("f", pa.schema([("a", pa.float64())]), first, ("a", "b"))
    assert [d.came for d in found] == ["double", "no such column"]
