"""What model.yaml says of a model: typed, closed, and wrong only with a reason that names the field."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import yaml

from octoserve.core.signature import TensorSpec
from octoserve.repository.layout import Labels, ModelSettings, Refused
from octoserve.repository.model_yaml import parse


def read(text: str) -> ModelSettings:
    return parse(yaml.safe_load(text))


def test_everything_that_may_be_said() -> None:
    said = read(
        """
runtime: xgboost
inputs: [{name: rows, datatype: FP32, shape: [-1, 3]}, {name: city, datatype: BYTES}]
outputs: [{name: y, datatype: FP64, shape: []}]
categories: {city: [Bern, "12"]}
labels: [no, yes]
options: {lanes: 3}
""".replace("[no, yes]", '["no", "yes"]')
    )
    assert said.inputs == (TensorSpec("rows", "FP32", (-1, 3)), TensorSpec("city", "BYTES", (-1,)))
    assert said.outputs == (TensorSpec("y", "FP64", ()),)
    assert said.categories == {"city": ("Bern", "12")}
    assert said.labels == Labels(("no", "yes"))
    assert said.options == {"lanes": 3}


def test_nothing_said_is_nothing_known() -> None:
    assert parse({}) == ModelSettings()


def test_labels_at_length() -> None:
    said = read("labels: {names: [a, b], of: score, threshold: 1, output: verdict}")
    assert said.labels == Labels(("a", "b"), "score", 1.0, "verdict")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("inputs: {name: x}", r"inputs: a list of \{name, datatype, shape\} is wanted"),
        ("inputs: []", r"inputs: a list"),
        ("inputs: [x]", r"inputs: a mapping of name, datatype, shape is wanted, 'x' came"),
        ("inputs: [{name: x, datatype: float}]", r"inputs: x: datatype: one of BOOL, .* wanted, 'float' came"),
        ("inputs: [{datatype: FP32}]", r"a name is wanted for each"),
        ("inputs: [{name: x, datatype: FP32, shape: [0]}]", r"x: shape: a list of sizes is wanted"),
        ("inputs: [{name: x, datatype: FP32, shape: 3}]", r"x: shape: a list of sizes is wanted"),
        ("inputs: [{name: x, datatype: FP32, dtype: 3}]", r"unknown field 'dtype'; did you mean 'datatype'\?"),
        ("outputs: [{name: x, datatype: FP32}, {name: x, datatype: FP32}]", r"outputs: a name comes twice"),
        ("categories: [a]", r"categories: \{feature: \[texts\]\} is wanted"),
        ("categories: {city: [1, 2]}", r"categories: city: a list of texts is wanted, \[1, 2\] came; put numbers"),
        ("categories: {city: [a, a]}", r"categories: city: each text once is wanted"),
        (
            "labels: [yes, no]",
            r"labels: a list of texts is wanted, \[True, False\] came; put numbers and yes/no in quotes",
        ),
        ("labels: {of: y}", r"labels: a list of texts is wanted, None came"),
        ("labels: {names: [a, b], threshold: high}", r"labels: threshold: a number wanted, 'high' came"),
        ("labels: {names: [a, b, c], threshold: 0.5}", r"threshold: only between two names, 3 came"),
        ("options: [1]", r"options: a mapping is wanted, \[1\] came"),
    ],
)
def test_what_is_wrong_is_named(text: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        read(text)


@pytest.mark.parametrize("value", [None, 3, "text", [1], {"a": {"b": {}}}])
@pytest.mark.parametrize("field", ["inputs", "outputs", "categories", "labels", "options", "features"])
def test_no_value_is_a_crash(field: str, value: Any) -> None:
    with contextlib.suppress(Refused):
        parse({field: value})
