"""Names for a model's numbers, whatever form the numbers have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octoserve.core.errors import BrokenVersion, Internal
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array
from octoserve.lifecycle.labels import labelled
from octoserve.repository.layout import Labels
from support.models import FakeModel

OUTPUTS = {
    "scores": TensorSpec("scores", "FP32", (-1, 3)),
    "score": TensorSpec("score", "FP64", (-1,)),
    "score_column": TensorSpec("score", "FP32", (-1, 1)),
    "number": TensorSpec("number", "INT64", (-1,)),
    "flag": TensorSpec("flag", "BOOL", (-1,)),
    "text": TensorSpec("label", "BYTES", (-1,)),
}
VALUES: dict[str, Array] = {
    "scores": np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]], np.float32),
    "score": np.array([0.4, 0.6]),
    "score_column": np.array([[0.4], [0.6]], np.float32),
    "number": np.array([1, 0]),
    "flag": np.array([False, True]),
    "text": np.array([b"a", b"b"], dtype=object),
}


def fake(*outputs: str) -> FakeModel:
    signature = Signature([TensorSpec("x", "FP32", (-1, 1))], [OUTPUTS[name] for name in outputs], batchable=True)
    return FakeModel(signature, lambda x: [VALUES[name] for name in outputs])


def label(names: str, *outputs: str, **more: Any) -> list[Any]:
    loaded = labelled(fake(*outputs), Labels(tuple(names.split()), **more))
    assert loaded.signature.outputs[-1] == TensorSpec("label", "BYTES", (-1,))
    assert loaded.signature.batchable
    answers = loaded.run([np.zeros((2, 1), np.float32)])
    assert len(answers) == len(outputs) + 1
    return answers[-1].tolist()


@pytest.mark.parametrize(
    ("names", "outputs", "wanted"),
    [
        ("a b c", ["scores"], ["b", "a"]),
        ("a b", ["score"], ["a", "b"]),
        ("a b", ["score_column"], ["a", "b"]),
        ("a b", ["number"], ["b", "a"]),
        ("a b c", ["number", "scores"], ["b", "a"]),
        ("a b c", ["number", "score"], ["b", "a"]),
        ("no yes", ["flag"], ["no", "yes"]),
    ],
)
def test_the_output_that_fits_is_found(names: str, outputs: list[str], wanted: list[str]) -> None:
    assert label(names, *outputs) == wanted


def test_it_may_be_said() -> None:
    assert label("a b", "number", "score", of="number") == ["b", "a"]
    assert label("a b", "score", threshold=0.3) == ["b", "b"]
    assert label("a b", "score", threshold=0.6) == ["a", "b"]  # reached is enough


@pytest.mark.parametrize(
    ("names", "outputs", "of", "reason"),
    [
        ("a b c", ["score"], "", "cannot be told"),
        ("a b", ["score", "score_column"], "", "cannot be told"),
        ("a b", ["score"], "scores", r"no output 'scores'; there are score FP64\[-1\]"),
        ("a b", ["scores"], "scores", "no score for each of the 2 names"),
        ("a b", ["text", "score"], "", "an output 'label' already"),
        ("a b", ["text"], "", "cannot be told"),
    ],
)
def test_what_cannot_be_labelled_is_a_broken_version(names: str, outputs: list[str], of: str, reason: str) -> None:
    with pytest.raises(BrokenVersion, match=reason):
        labelled(fake(*outputs), Labels(tuple(names.split()), of))


def test_a_class_without_a_name_is_no_other_ones() -> None:
    loaded = labelled(fake("number"), Labels(("only",)))
    with pytest.raises(Internal, match="1 names are declared, and the model gave class 1"):
        loaded.run([np.zeros((2, 1), np.float32)])


def test_closing_closes_the_model() -> None:
    inner = fake("score")
    labelled(inner, Labels(("a", "b"))).close()
    assert inner.closed
