"""JSON rows: what fits becomes the model's inputs exactly, what does not is refused for its row alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.codecs.json_rows import JsonRows
from octoserve.core.errors import SettingsError
from octoserve.core.signature import Signature, TensorSpec


def codec(*specs: TensorSpec, **settings: Any) -> JsonRows:
    return JsonRows(Signature(specs, [], batchable=True), **settings)


def rows(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


PAIR = TensorSpec("x", "FP32", (-1, 2))


def test_named_features_are_taken_in_the_models_order():
    found = codec(PAIR, features={"": ("b", "a")}).decode(
        rows({"id": "m1", "a": 1, "b": 2.5, "other": [1]}, {"b": 3, "a": 4})
    )
    (x,) = found.groups[0].columns
    assert (x.name, x.datatype, x.array().tolist()) == ("x", "FP32", [[2.5, 1.0], [3.0, 4.0]])
    assert x.array().dtype == np.float32
    assert found.ids == ["m1", None]
    assert found.unfit == {}


def test_an_input_without_features_is_the_field_of_its_name():
    specs = (
        TensorSpec("island", "BYTES", (-1, 1)), TensorSpec("mass", "FP32", (-1, 1)), TensorSpec("n", "INT32", (-1,)),
        TensorSpec("grid", "INT64", (-1, 2, -1)), TensorSpec("words", "BYTES", (-1, -1)),
        TensorSpec("ok", "BOOL", (-1,)),
    )  # fmt: skip
    row = {"island": "Zürich", "mass": 2, "n": -3, "grid": [[1, 2, 3], [4, 5, 6]], "words": ["a", ""], "ok": True}
    found = codec(*specs).decode(rows(row, row))
    assert found.unfit == {}
    arrays = {tensor.name: tensor.array() for tensor in found.groups[0].columns}
    assert arrays["island"].tolist() == [["Zürich".encode()]] * 2
    assert arrays["mass"].tolist() == [[2.0]] * 2
    assert arrays["n"].tolist() == [-3, -3]
    assert arrays["grid"].shape == (2, 2, 3)
    assert arrays["words"].tolist() == [[b"a", b""]] * 2
    assert arrays["ok"].tolist() == [True, True]
    assert arrays["ok"].dtype == np.bool_
    for tensor, spec in zip(found.groups[0].columns, specs, strict=True):
        assert tensor.datatype == spec.datatype


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "no JSON row"),
        (b"{", "no JSON row"),
        (b"[1, 2]", "no JSON row"),
        (b'"x"', "no JSON row"),
        (b'{"a": "one", "b": 2}', "got `str` - at `$.a`"),
        (b'{"a": true, "b": 2}', "got `bool`"),
        (b'{"a": 1}', "field 'b' is missing; FP32 is wanted"),
        (b'{"a": 1, "b": null}', "field 'b' is missing"),
        (b'{"a": 1e39, "b": 2}', "does not fit FP32"),
        (b'{"a": 1, "b": 2, "id": 1.5}', "field 'id'"),
        (b'{"a": 1, "b": 2} {"a": 1, "b": 2}', "no JSON row"),
        (b'{"a": 1, "b": 2}, {"a": 1, "b": 2}', "no JSON row"),
        (b'{"a": 1, "b": 2, "id": "\xff"}', "no JSON row"),
        (b'{"a": 1, "b": ' + b"[" * 100_000, "no JSON row"),
    ],
)
def test_what_does_not_fit_is_refused_alone(payload: bytes, why: str):
    found = codec(PAIR, features={"x": ("a", "b")}).decode(
        [*rows({"a": 1, "b": 2}), payload, *rows({"a": 3, "b": 4, "id": 7})]
    )
    assert list(found.unfit) == [1]
    assert why in found.unfit[1]
    assert found.groups[0].rows == [0, 2]
    assert found.groups[0].columns[0].array().tolist() == [[1, 2], [3, 4]]
    assert found.ids[2] == "7"


def test_whole_numbers_are_not_cast():
    ints = codec(TensorSpec("n", "INT8", (-1,)))
    found = ints.decode(rows({"n": 127}, {"n": 128}, {"n": 1.5}, {"n": None}, {"n": -128}, {"n": 2**70}))
    assert found.groups[0].rows == [0, 4]
    assert found.groups[0].columns[0].array().tolist() == [127, -128]
    assert found.groups[0].columns[0].array().dtype == np.int8
    assert "does not fit INT8" in found.unfit[1]


def test_a_missing_number_may_be_nan():
    found = codec(PAIR, features={"": ("a", "b")}, missing="nan").decode(rows({"a": 1}, {"a": None, "b": 2}))
    assert found.unfit == {}
    np.testing.assert_array_equal(found.groups[0].columns[0].array(), [[1, np.nan], [np.nan, 2]])
    text = codec(TensorSpec("t", "BYTES", (-1,)), missing="nan").decode(rows({}))
    assert "field 't' is missing" in text.unfit[0]


def test_lists_of_unequal_lengths_are_refused_where_they_would_be_mixed():
    x = codec(TensorSpec("x", "FP32", (-1, 3)))
    found = x.decode(rows({"x": [1, 2, 3]}, {"x": [1, 2]}, {"x": [[1, 2, 3]]}, {"x": [1, None, 3]}))
    assert found.groups[0].rows == [0]
    assert "lists of shape [3] wanted, [2] came" in found.unfit[1]


def test_all_unfit_gives_no_rows():
    found = codec(PAIR, features={"": ("a", "b")}).decode([b"x", b"y"])
    assert (found.groups, found.ids) == ([], [None, None])


@pytest.mark.parametrize(
    ("spec", "features"),
    [
        (PAIR, {"": ("a",)}),
        (PAIR, {"": ("a", "a")}),
        (PAIR, {"z": ("a", "b")}),
        (TensorSpec("x", "FP32", (-1, 2, 2)), {"": ("a", "b")}),
        (TensorSpec("x", "FP32", (3,)), {}),
        (TensorSpec("x", "BF16", (-1,)), {}),
    ],
)
def test_features_that_cannot_make_an_input_are_said(spec: TensorSpec, features: dict[str, Any]):
    with pytest.raises(SettingsError):
        codec(spec, features=features)


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2), min_size=1)
)
def test_every_float32_comes_back_as_it_was(values: list[list[float]]):
    found = codec(PAIR, features={"": ("a", "b")}).decode(rows(*[{"a": a, "b": b} for a, b in values]))
    assert found.unfit == {}
    assert found.groups[0].columns[0].array().tolist() == values


def test_rows_of_unequal_sizes_are_grouped_and_none_is_refused():
    x = codec(TensorSpec("x", "FP32", (-1, -1)), TensorSpec("n", "INT64", (-1,)))
    found = x.decode(rows({"x": [1, 2], "n": 1}, {"x": [3], "n": 2}, {"x": [4, 5], "n": 3}, {"x": "no", "n": 4}))
    assert [(g.rows, g.columns[0].array().tolist(), g.columns[1].array().tolist()) for g in found.groups] == [
        ([0, 2], [[1, 2], [4, 5]], [1, 3]),
        ([1], [[3]], [2]),
    ]
    assert list(found.unfit) == [3]


def test_a_feature_called_id_is_no_message_id_unless_it_can_be():
    number = codec(TensorSpec("id", "FP32", (-1,))).decode(rows({"id": 1.5}))
    assert (number.ids, number.groups[0].columns[0].array().tolist()) == ([None], [1.5])
    whole = codec(TensorSpec("id", "INT64", (-1,))).decode(rows({"id": 7}))
    assert whole.ids == ["7"]
