"""What is said of a table twice is compared, and every disagreement has a reason that names it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octoserve.core.errors import BrokenVersion, Internal, InvalidInput
from octoserve.core.signature import TensorSpec
from octoserve.core.tensors import Array
from octoserve.runtimes.protocol import RuntimeSettings
from octoserve.runtimes.tabular import Facts, TabularModel

NAMED = Facts("model.x", 2, "FP32", ("age", "city"))
UNNAMED = Facts("model.x", 2, "FP32")
TEXTS = {"city": ("Bern", "Oslo")}


def total(matrix: Array) -> dict[str, Array]:
    return {"sum": matrix.sum(axis=1)}


def model(facts: Facts, predict: Any = total, **settings: Any) -> TabularModel:
    return TabularModel("x", facts, RuntimeSettings(**settings), predict)


def spec(name: str, datatype: str = "FP32", *shape: int) -> TensorSpec:
    return TensorSpec(name, datatype, shape or (-1,))


@pytest.mark.parametrize(
    ("facts", "settings", "reason"),
    [
        (NAMED, {"features": {"": ("age",)}}, "1 names came, model.x was trained with 2 columns"),
        (NAMED, {"features": {"": ("city", "age")}}, "column 0 is 'city', model.x was trained with 'age' there"),
        (NAMED, {"features": {"a": ("x",), "b": ("y",)}}, "one list is wanted"),
        (NAMED, {"categories": {"town": ("a",)}}, "no feature 'town'; features: age, city"),
        (UNNAMED, {"categories": {"city": ("a",)}}, "none are named"),
        (
            Facts("model.x", 2, "FP32", ("age", "city"), TEXTS),
            {"categories": {"city": ("Oslo", "Bern")}},
            "declared as Oslo, Bern, model.x was trained with Bern, Oslo",
        ),
        (NAMED, {"inputs": (spec("m", "FP32", -1, 3),)}, r"numbers \[-1, 2\] are wanted"),
        (NAMED, {"inputs": (spec("m", "FP32", 4, 2),)}, r"rows first"),
        (NAMED, {"inputs": (spec("m", "BYTES", -1, 2),)}, r"numbers \[-1, 2\] are wanted"),
        (NAMED, {"inputs": (spec("city"), spec("age"))}, "one for each feature in their order is wanted"),
        (NAMED, {"inputs": (spec("age"), spec("city", "BYTES"))}, "BYTES where it has categories"),
    ],
)
def test_disagreements_are_named(facts: Facts, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(BrokenVersion, match=reason):
        model(facts, **settings)


def test_a_matrix_carries_its_columns_names() -> None:
    loaded = model(NAMED)
    assert loaded.signature.inputs == (spec("features", "FP32", -1, 2),)
    assert loaded.signature.outputs == (spec("sum"),)
    assert loaded.signature.features == {"features": ("age", "city")}
    assert model(UNNAMED, features={"": ("a", "b")}).signature.features == {"features": ("a", "b")}
    assert model(UNNAMED).signature.features == {}


def test_a_matrix_may_be_declared() -> None:
    loaded = model(UNNAMED, inputs=(spec("m", "FP64", -1, -1),))
    assert loaded.signature.inputs == (spec("m", "FP64", -1, 2),)
    assert loaded.run([np.ones((3, 2))])[0].dtype == np.float64


def test_columns_and_texts_become_codes() -> None:
    loaded = model(NAMED, categories=TEXTS)
    assert loaded.signature.inputs == (spec("age"), spec("city", "BYTES"))
    ages, cities = np.array([10, 20], np.float32), np.array([b"Oslo", "Bern"], dtype=object)
    assert loaded.run([ages, cities])[0].tolist() == [11, 20]
    with pytest.raises(InvalidInput, match=r"'Rome' is no category.*'Bern', 'Oslo'"):
        loaded.run([ages, np.array([b"Oslo", b"Rome"], dtype=object)])


def test_columns_may_be_declared_without_texts() -> None:
    loaded = model(NAMED, inputs=(spec("age", "FP64"), spec("city", "INT64", -1, 1)))
    assert loaded.run([np.array([1.5]), np.array([[2]])])[0].tolist() == [3.5]


def test_missing_numbers() -> None:
    rows = np.array([[1, 2], [3, np.nan]], np.float32)
    assert np.isnan(model(NAMED).run([rows])[0][1])
    with pytest.raises(InvalidInput, match=r"city of row 1 is missing"):
        model(NAMED, missing="refuse").run([rows])


def test_what_the_library_raises() -> None:
    def fails(matrix: Array) -> dict[str, Array]:
        if matrix.any():
            raise RuntimeError("a bug\nand its stack")
        return total(matrix)

    loaded = model(NAMED, fails)
    with pytest.raises(Internal, match=r"^a bug$"):
        loaded.run([np.ones((1, 2), np.float32)])
    with pytest.raises(BrokenVersion, match="row of zeros: no zeros, please"):
        model(NAMED, lambda matrix: (_ for _ in ()).throw(ValueError("no zeros, please")))
    with pytest.raises(BrokenVersion, match=r"output 'sum' is of shape \[\] for one row"):
        model(NAMED, lambda matrix: {"sum": np.float32(1) + np.zeros(())})
