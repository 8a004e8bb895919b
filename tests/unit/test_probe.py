"""The batching probe: only a model whose rows do not notice their neighbours is batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from octoserve.core.errors import InvalidInput
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array
from octoserve.lifecycle.probe import settle_batching

X = TensorSpec("x", "FP32", (-1, 4))


class Model:
    """A LoadedModel around a function."""

    platform = "test"

    def __init__(self, run: Callable[[Array], Array], output: TensorSpec, inputs: Sequence[TensorSpec] = (X,)) -> None:
        self.signature = Signature(inputs, [output], batchable=True)
        self._run = run

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        return [self._run(inputs[0])]

    def close(self) -> None:
        """Nothing is held."""


def test_row_wise_model_is_batched() -> None:
    model = Model(lambda x: x.sum(axis=1), TensorSpec("y", "FP32", (-1,)))
    assert settle_batching(model) == ""
    assert model.signature.batchable


@pytest.mark.parametrize(
    "mixes",
    [
        lambda x: x - x.mean(axis=0),  # normalised over the batch
        lambda x: np.cumsum(x, axis=0),  # a sequence
        lambda x: np.sort(x, axis=0),
        lambda x: np.broadcast_to(x.sum(), (x.shape[0], 1)),
        lambda x: np.unique(x).reshape(-1, 1),  # rows in, something else out
        lambda x: x.sum().reshape(()),
    ],
)
def test_model_that_mixes_rows_is_not(mixes: Callable[[Array], Array]) -> None:
    model = Model(mixes, TensorSpec("y", "FP32", (-1, -1)))
    assert "unbatched" in settle_batching(model)
    assert not model.signature.batchable


def test_declared_one_that_means_a_row_is_corrected() -> None:
    """LightGBM's converter declares `label [1]` and returns a label a row."""
    model = Model(lambda x: (x.sum(axis=1) > 2).astype(np.int64), TensorSpec("label", "INT64", (1,)))
    assert settle_batching(model) == ""
    assert model.signature.batchable
    assert model.signature.outputs[0].shape == (-1,)


def test_declared_one_that_means_one_is_believed() -> None:
    model = Model(lambda x: x.sum(keepdims=True).reshape(1), TensorSpec("y", "FP32", (1,)))
    settle_batching(model)
    assert not model.signature.batchable
    assert model.signature.outputs[0].shape == (1,)


def test_rounding_that_differs_for_one_row_is_not_mixing() -> None:
    """A product of one row takes another kernel than one of many."""
    model = Model(lambda x: x * (1.01 if len(x) == 1 else 1.0), TensorSpec("y", "FP32", (-1, 4)))
    settle_batching(model)
    assert model.signature.batchable


@pytest.mark.parametrize(("declared", "batched"), [((-1,), True), ((1,), False)])
def test_model_that_refuses_made_up_rows_goes_by_its_shapes(declared: tuple[int, ...], batched: bool) -> None:
    def refuse(x: Array) -> Array:
        raise InvalidInput("no such word")

    model = Model(refuse, TensorSpec("y", "FP32", declared))
    assert "refused" in settle_batching(model)
    assert model.signature.batchable is batched


@pytest.mark.parametrize("datatype", ["BYTES", "BOOL", "INT64", "FP16", "BF16", "FP64", "UINT8"])
def test_rows_are_made_up_for_every_datatype(datatype: str) -> None:
    spec = TensorSpec("x", datatype, (-1, 2))
    model = Model(lambda x: x, TensorSpec("y", datatype, (-1, 2)), [spec])
    assert settle_batching(model) == ""
    assert model.signature.batchable


def test_unbatchable_model_is_not_asked() -> None:
    model = Model(lambda x: x, TensorSpec("y", "FP32", (3,)))
    model.signature.batchable = False
    model._run = lambda x: pytest.fail("was run")
    assert settle_batching(model) == ""
