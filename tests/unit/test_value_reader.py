"""Values that the signature explains: every form becomes the same tensors, or is refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from octoserve.codecs.value_reader import ValueReader
from octoserve.core.errors import InvalidInput, TooLarge, Unsupported
from octoserve.core.signature import Signature, TensorSpec

PAIR = Signature([TensorSpec("x", "FP32", (-1, 2))], [], True)
MIXED = Signature(
    [
        TensorSpec("island", "BYTES", (-1, 1)),
        TensorSpec("mass", "FP32", (-1, 1)),
        TensorSpec("grid", "INT64", (-1, 2, -1)),
    ],
    [],
    True,
)
MIXED_ROW = {"island": [["Zürich".encode()]], "mass": [[2.5]], "grid": [[[1], [2]]]}


def text(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def arrays(tensors: Any) -> dict[str, Any]:
    return {tensor.name: tensor.array().tolist() for tensor in tensors}


def named(missing: str = "refuse") -> ValueReader:
    return ValueReader(PAIR, {"": ("a", "b")}, missing)


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 2], [3, 4]],
        [{"x": [1, 2]}, {"x": [3, 4]}],
        [{"p": 1, "q": 2}, {"q": 4, "p": 3}],
    ],
)
def test_rows_of_a_table_without_names(rows: Any) -> None:
    (x,) = ValueReader(PAIR).rows(text(rows), "instances")
    assert (x.name, x.datatype, x.shape, x.array().tolist()) == ("x", "FP32", (2, 2), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 2], [3, 4]],
        [{"x": [1, 2]}, {"x": [3, 4]}],
        [{"b": 2, "a": 1, "c": "?"}, {"a": 3, "b": 4}],
        [{"a": [1], "b": 2}, {"a": 3, "b": 4}],
    ],
)
def test_rows_of_named_features(rows: Any) -> None:
    assert arrays(named().rows(text(rows), "instances")) == {"x": [[1, 2], [3, 4]]}


@pytest.mark.parametrize(
    "row",
    [
        {"island": "Zürich", "mass": 2.5, "grid": [[1], [2]]},
        {"island": ["Zürich"], "mass": [2.5], "grid": [[1], [2]]},
        {"island": {"b64": "WsO8cmljaA=="}, "mass": 2.5, "grid": [[1], [2]]},
        ["Zürich", 2.5, [[1], [2]]],
    ],
)
def test_rows_of_several_inputs(row: Any) -> None:
    assert arrays(ValueReader(MIXED).rows(text([row]), "instances")) == MIXED_ROW
    twice = arrays(ValueReader(MIXED).rows(text([row, row]), "instances"))
    assert twice == {name: value * 2 for name, value in MIXED_ROW.items()}


def test_words_for_what_json_numbers_cannot_say() -> None:
    for rows in ([["NaN", "-Infinity"]], [{"x": ["NaN", "-Infinity"]}], [{"a": "NaN", "b": "-Infinity"}]):
        (x,) = (named() if "a" in rows[0] else ValueReader(PAIR)).rows(text(rows), "instances")
        np.testing.assert_array_equal(x.array(), [[np.nan, -np.inf]])
    words = ValueReader(Signature([TensorSpec("t", "BYTES", (-1,))], [], True)).rows(text(["NaN"]), "instances")
    assert arrays(words) == {"t": [b"NaN"]}


def test_a_missing_number_is_what_the_version_says() -> None:
    for rows in ([{"a": 1}], [{"a": 1, "b": None}], [[1, None]]):
        with pytest.raises(InvalidInput, match="field 'b' is missing"):
            named().rows(text(rows), "instances")
        np.testing.assert_array_equal(named("nan").rows(text(rows), "instances")[0].array(), [[1, np.nan]])


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (3, "an array of rows is wanted, 3 came"),
        ([[1, True]], "got `bool`"),
        ([1, 2], "Expected `array`"),
        ([[1], [1, 2]], "unequal lengths"),
        ([[1, 1e39]], "does not fit FP32"),
        ([[1, "one"]], "got `str`"),
        ([{"p": 1, "q": 2}, {"p": 3}], "rows with the same names"),
        ([{"x": [1, 2]}, {}], "field 'x' is missing"),
    ],
)
def test_rows_that_do_not_fit(rows: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        PAIR.check(ValueReader(PAIR).rows(text(rows), "instances"))


def test_names_that_mean_nothing_are_refused_even_where_all_may_be_missing() -> None:
    with pytest.raises(InvalidInput, match="none of the fields a, b"):
        named("nan").rows(text([{"A": 1, "B": 2}]), "instances")


def test_a_table_goes_by_its_columns() -> None:
    assert arrays(named().table(["b", "z", "a"], text([[2, "?", 1], [4, None, 3]]), "data")) == {"x": [[1, 2], [3, 4]]}
    assert arrays(ValueReader(PAIR).table(["p", "q"], text([[1, 2]]), "data")) == {"x": [[1, 2]]}
    with pytest.raises(InvalidInput, match="columns a, b are wanted, p, q came"):
        named().table(["p", "q"], text([[1, 2]]), "data")
    with pytest.raises(InvalidInput, match="`array` of length 2"):
        named().table(["a", "b"], text([[1]]), "data")


@pytest.mark.parametrize(
    "columns",
    [[[1, 2], [3, 4]], {"x": [[1, 2], [3, 4]]}, {"a": [1, 3], "b": [2, 4]}, {"b": [2, "Infinity"], "a": [1, 3]}],
)
def test_columns(columns: Any) -> None:
    (x,) = named().columns(text(columns), "inputs")
    wanted = [[1, 2], [3, np.inf if "Infinity" in str(columns) else 4]]
    assert x.array().tolist() == wanted


def test_columns_that_do_not_fit() -> None:
    with pytest.raises(InvalidInput, match="'b' has 1 values, another has 2"):
        named().columns(text({"a": [1, 2], "b": [3]}), "inputs")
    with pytest.raises(InvalidInput, match=r"input mass FP32\[-1, 1\] is missing"):
        ValueReader(MIXED).columns(text({"island": [["a"]]}), "inputs")
    with pytest.raises(InvalidInput, match="an object of island, mass, grid is wanted"):
        ValueReader(MIXED).columns(text([1]), "inputs")


def test_no_rows_are_no_rows() -> None:
    for reader in (ValueReader(PAIR), named()):
        assert reader.rows(b"[]", "instances")[0].shape == (0, 2)


def test_a_model_without_rows_takes_its_inputs_whole() -> None:
    fixed = ValueReader(Signature([TensorSpec("f", "FP32", (3,))], []))
    assert arrays(fixed.columns(text({"f": [1, 2, 3]}), "inputs")) == {"f": [1, 2, 3]}
    assert arrays(fixed.rows(text([1, 2, 3]), "instances")) == {"f": [1, 2, 3]}
    with pytest.raises(InvalidInput, match="takes no rows"):
        fixed.rows(text([{"f": 1}]), "instances")


def test_bf16_has_no_json_form() -> None:
    bits = ValueReader(Signature([TensorSpec("h", "BF16", (-1, 2))], [], True))
    for ask in (lambda: bits.rows(text([[1, 2]]), "i"), lambda: bits.columns(text({"h": [[1, 2]]}), "i")):
        with pytest.raises(Unsupported, match="BF16 has no JSON form"):
            ask()


def test_text_cells_are_parsed_and_never_cast() -> None:
    assert arrays(named().texts(["b", "a"], [["2", "1"], ["4e0", " 3 "]])) == {"x": [[1, 2], [3, 4]]}
    assert arrays(named().texts(None, [["1", "2"]])) == {"x": [[1, 2]]}
    assert arrays(ValueReader(PAIR).texts(None, [["1", "nan"]]))["x"][0][0] == 1
    np.testing.assert_array_equal(named("nan").texts(None, [["1", ""]])[0].array(), [[1, np.nan]])
    ints = ValueReader(Signature([TensorSpec("n", "INT8", (-1,)), TensorSpec("t", "BOOL", (-1,))], [], True))
    assert arrays(ints.texts(["t", "n"], [["True", "-3"], ["false", "4"]])) == {"n": [-3, 4], "t": [True, False]}
    for cells, why in (
        (["1.0", "true"], "a whole number"),
        (["1_0", "true"], "a whole number"),
        (["1", "1"], "true or f"),
    ):
        with pytest.raises(InvalidInput, match=f"row 1: .*{why}"):
            ints.texts(None, [cells])
    with pytest.raises(InvalidInput, match="row 2: 2 values are wanted"):
        named().texts(None, [["1", "2"], ["1"]])


def test_a_large_body_of_nothing_is_refused() -> None:
    with pytest.raises(TooLarge, match="empty lists"):
        ValueReader(PAIR).rows(b"[" + b"[]," * 100_000 + b"[]]", "instances")
    with pytest.raises(TooLarge, match="more rows"):
        ValueReader(PAIR).rows(b"[" + b"{}," * 100_000 + b"{}]", "instances")
    with pytest.raises(TooLarge, match="send arrays"):
        ValueReader(PAIR).rows(b"[" + b'{"p":1,"q":2},' * 400_000 + b"{}]", "instances")
    wide = ValueReader(Signature([TensorSpec("x", "FP32", (-1, 8))], [], True), {"": tuple("abcdefgh")}, "nan")
    with pytest.raises(TooLarge, match="more rows"):
        wide.rows(b"[" + b"{}," * 100_000 + b"{}]", "instances")
