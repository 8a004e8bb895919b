"""`octoserve.load`: the same rows in every form give bare ONNX Runtime's numbers, and what does not fit is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import octoserve
from octoserve.core.errors import InvalidInput, NotFound, SettingsError

BIRDS = Path(__file__).parents[2] / "examples" / "queue" / "penguins.jsonl"
NUMBERS = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g")


def columns(count: int = 3) -> dict[str, list[object]]:
    rows = [json.loads(line) for line in BIRDS.read_text().splitlines()[:count]]
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.fixture(scope="module")
def penguins(models):
    with octoserve.load(models / "penguins") as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def fraud(models):
    with octoserve.load(models / "fraud" / "1") as endpoint:
        yield endpoint


def same(came, wanted):
    assert came.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(came[name], array)


def test_an_array_is_answered_as_by_bare_onnx_runtime(models, fraud, build_models):
    rows = build_models.fraud_rows()[0][:50]
    session = ort.InferenceSession(models / "fraud" / "1" / "model.onnx")
    wanted = dict(zip(("label", "probabilities"), session.run(None, {"features": rows}), strict=True))
    assert (fraud.model, fraud.version) == ("fraud", 1)
    same(fraud.predict(rows), wanted)
    same(fraud.predict(rows.tolist()), wanted)
    same(fraud.predict(rows.astype(np.float64)), wanted)
    same(fraud.predict(np.asfortranarray(rows)), wanted)
    same(fraud.predict({"features": rows}), wanted)


@pytest.mark.parametrize("form", [pa.table, pd.DataFrame, pl.DataFrame, lambda c: pa.table(c).to_batches()[0]])
def test_a_table_in_every_form_is_the_columns_by_name(penguins, form):
    wanted = penguins.predict(columns())
    assert [str(label) for label in wanted["label"]] == ["Adelie"] * 3
    same(penguins.predict(form(columns())), wanted)
    arrays = {spec.name: np.array(columns()[spec.name]).reshape(-1, 1) for spec in penguins.signature.inputs}
    same(penguins.predict(arrays), wanted)


def test_a_frame_without_the_arrow_protocol(penguins, monkeypatch):
    """pandas before 2.2."""
    monkeypatch.delattr(pd.DataFrame, "__arrow_c_stream__")
    same(penguins.predict(pd.DataFrame(columns())), penguins.predict(columns()))


def test_single_values_are_one_row(penguins):
    one = {name: values[0] for name, values in columns().items()}
    same(penguins.predict(one), penguins.predict(columns(1)))


def test_many_rows_come_back_in_their_order(fraud, build_models):
    rows = build_models.fraud_rows()[0]
    table = pa.table({f"f{i}": rows[:, i] for i in range(rows.shape[1])})
    rest = fraud.predict(pa.concat_tables([table] * (1 + 9000 // len(rows))))
    alone = fraud.predict(rows)
    for name, array in rest.items():
        np.testing.assert_array_equal(array[: len(rows)], alone[name])
        np.testing.assert_array_equal(array[-len(rows) :], alone[name])


def test_columns_are_named_where_the_model_names_none(models, build_models):
    rows = build_models.fraud_rows()[0][:4]
    names = [f"f{i}" for i in range(rows.shape[1])]
    backwards = {name: rows[:, i] for i, name in reversed(list(enumerate(names)))}
    with octoserve.load(models / "fraud", columns=names) as endpoint:
        same(endpoint.predict({**backwards, "customer": ["a", "b", "c", "d"]}), endpoint.predict(rows))


def test_a_model_of_several_inputs_and_other_dimensions(models):
    with octoserve.load(models / "passage_match") as endpoint:
        inputs = {
            "query": np.random.default_rng(0).random((2, 3, 16), dtype=np.float32),
            "passage": np.random.default_rng(1).random((2, 5, 16), dtype=np.float32),
            "passage_mask": np.ones((2, 5), dtype=np.bool_),
        }
        assert endpoint.predict(inputs)["similarity"].shape == (2, 3, 5)
        with pytest.raises(InvalidInput, match=r"several inputs.*passage FP32"):
            endpoint.predict(inputs["query"])
        with pytest.raises(InvalidInput, match="BOOL wanted, int64 came"):
            endpoint.predict({**inputs, "passage_mask": np.ones((2, 5), dtype=np.int64)})


def test_a_model_without_rows_takes_arrays_only(models):
    with octoserve.load(models / "fixed") as endpoint:
        assert endpoint.predict(np.zeros(3))["output"].shape == (3,)
        with pytest.raises(InvalidInput, match=r"takes no tables.*input FP32\[3\]"):
            endpoint.predict({"a": [1.0], "b": [2.0], "c": [3.0]})


@pytest.mark.parametrize(
    ("model", "values", "said"),
    [
        ("echo_fp32", [[1e300]], r"1e\+300 does not fit FP32"),
        ("echo_int64", [[1.5]], "INT64 wanted, float64 came"),
        ("echo_uint8", [[-1]], "-1 does not fit UINT8"),
        ("echo_int8", [[128]], "128 does not fit INT8"),
        ("echo_bytes", [[1]], "text or bytes wanted"),
        ("echo_bytes", [["a"], [None]], "text or bytes wanted, NoneType came"),
        ("echo_fp32", [["a"]], "FP32 wanted, <U1 came"),
        ("echo_fp32", [[1.0], [2.0, 3.0]], "no array"),
        ("echo_fp32", [1.0], "shape"),
    ],
)
def test_what_an_input_cannot_hold_is_refused(models, model, values, said):
    with octoserve.load(models / model) as endpoint, pytest.raises(InvalidInput, match=said):
        endpoint.predict(values)


@pytest.mark.parametrize(
    ("datatype", "values"),
    [("fp32", [[1, 2]]), ("fp64", [[1.5, float("nan")]]), ("int64", [[2**62]]), ("uint8", [[255]]), ("bool", [[True]])],
)
def test_what_it_can_hold_comes_through(models, datatype, values):
    with octoserve.load(models / f"echo_{datatype}") as endpoint:
        np.testing.assert_array_equal(endpoint.predict(values)["output"], values)


def test_text_and_bytes_are_one(models):
    with octoserve.load(models / "echo_bytes") as endpoint:
        for values in ([["é", "b"]], [["é".encode(), b"b"]], np.array([["é", "b"]])):
            came = endpoint.predict(values)["output"]
            assert [v if isinstance(v, bytes) else v.encode() for v in came.ravel()] == ["é".encode(), b"b"]


def test_rows_that_lack_a_value_are_named_and_none_is_answered(penguins):
    lacking = columns(6)
    lacking["sex"] = [None, "male", None, None, "male", None]
    with pytest.raises(InvalidInput, match=r"row 0: missing value in column 'sex'; row 2: .*; row 3: .*; 1 rows more"):
        penguins.predict(lacking)


def test_missing_numbers_as_asked(models):
    lacking = columns(2)
    lacking["body_mass_g"] = [None, 3800.0]
    with octoserve.load(models / "penguins", missing="nan") as endpoint:
        assert len(endpoint.predict(lacking)["label"]) == 2
    refuses = pytest.raises(InvalidInput, match="missing value in column 'body_mass_g'")
    with octoserve.load(models / "penguins", missing="refuse") as endpoint, refuses:
        endpoint.predict(lacking)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"island": ["Dream"]}, "does not fit model penguins version 1.*sex"),
        ({}, "without rows"),
        (pa.table({"island": pa.array([], pa.string())}), "without rows"),
        ({"island": ["Dream"], "sex": ["male", "female"]}, "make no table"),
        ({"island": "Dream", 3: 1.0}, "found by name"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_what_differs(penguins, rows, said):
    with pytest.raises(InvalidInput) as raised:
        penguins.predict(rows)
    assert re.search(said, str(raised.value), re.DOTALL)


def test_what_is_not_there_is_said(models):
    with pytest.raises(NotFound, match="no model 'nobody'"):
        octoserve.load(models / "nobody")
    with pytest.raises(NotFound, match="no version 7 of 'fraud'"):
        octoserve.load(models / "fraud", 7)
    with pytest.raises(SettingsError, match="nan or refuse wanted"):
        octoserve.load(models / "fraud", missing="zero")
