"""Signatures: what fits, and what the answer to a misfit names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.errors import InvalidInput
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Tensor

PAIR = [TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT8", (-1, -1))]


def a(*shape: int, size: int | None = None) -> Tensor:
    return _tensor("a", "FP32", shape, 4, size)


def b(*shape: int, size: int | None = None) -> Tensor:
    return _tensor("b", "INT8", shape, 1, size)


def _tensor(name: str, datatype: str, shape: tuple[int, ...], itemsize: int, size: int | None) -> Tensor:
    count = itemsize
    for dimension in shape:
        count *= max(dimension, 0)
    return Tensor(name, datatype, shape, bytes(count if size is None else size))


def refusal(signature: Signature, *tensors: Tensor) -> str:
    texts = set()
    for _ in range(2):  # what was said once is said again
        with pytest.raises(InvalidInput) as caught:
            signature.check(tensors)
        texts.add(str(caught.value))
    assert len(texts) == 1
    return texts.pop()


def test_order_rows_and_group() -> None:
    signature = Signature(PAIR, [], batchable=True)
    layout = signature.check([b(3, 5), a(3, 2)])
    assert (layout.order, layout.rows, layout.group) == ((1, 0), 3, ((2,), (5,)))
    assert signature.check([a(3, 2), b(3, 5)]).group == layout.group
    assert signature.check([a(4, 2), b(4, 5)]).group == layout.group
    assert signature.check([a(3, 2), b(3, 4)]).group != layout.group


def test_without_a_batch_dimension_only_equal_shapes_are_a_group() -> None:
    signature = Signature(PAIR, [])
    assert signature.check([a(3, 2), b(7, 5)]).rows == 1
    assert signature.check([a(3, 2), b(3, 5)]).group != signature.check([a(4, 2), b(4, 5)]).group


def test_messages_name_the_input_the_wish_and_the_fact() -> None:
    signature = Signature(PAIR, [], batchable=True)
    assert refusal(signature, a(1, 2)) == "input 'b' is missing; wanted: a FP32[-1, 2], b INT8[-1, -1]; came: ['a']"
    assert "'c'" in refusal(signature, a(1, 2), b(1, 1), Tensor("c", "FP32", (1,), b""))
    assert "twice" in refusal(signature, a(1, 2), a(1, 2))
    assert "twice" in refusal(signature, a(1, 2), b(1, 1), b(1, 1))
    assert refusal(signature, a(1, 3), b(1, 1)) == "input 'a': shape [-1, 2] wanted, [1, 3] came"
    assert "shape" in refusal(signature, a(2), b(1, 1))
    assert "shape" in refusal(signature, a(1, 2), b(-1, 1))
    wrong = Tensor("a", "FP64", (1, 2), bytes(16))
    assert refusal(signature, wrong, b(1, 1)) == "input 'a': datatype FP32 wanted, FP64 came"
    assert refusal(signature, a(2, 2), b(3, 1)).endswith("a [2, 2], b [3, 1]")


def test_lengths_are_checked_whether_the_header_is_new_or_known() -> None:
    for known in (False, True):
        signature = Signature(PAIR, [], batchable=True)
        if known:
            signature.check([a(2, 2), b(2, 3)])
        assert "takes 16 bytes, 15 came" in refusal(signature, a(2, 2, size=15), b(2, 3))
        assert "takes 6 bytes, 7 came" in refusal(signature, a(2, 2), b(2, 3, size=7))
        assert "'b'" in refusal(signature, b(2, 3, size=0), a(2, 2))


def test_shapes_without_elements_are_bounded() -> None:
    signature = Signature([TensorSpec("b", "INT8", (-1, -1))], [], batchable=True)
    assert signature.check([b(0, 3)]).rows == 0
    assert signature.check([b(1000, 0)]).rows == 1000
    for shape in ((2**62, 0), (0, 2**62), (2**40, 0)):
        assert "no elements" in refusal(signature, b(*shape, size=0))


def test_what_is_remembered_is_bounded() -> None:
    signature = Signature([TensorSpec("b", "INT8", (-1, -1))], [], batchable=True)
    for i in range(5000):
        assert signature.check([b(i, 1)]).rows == i
    assert len(signature._layouts) <= 1024


def test_a_signature_without_inputs() -> None:
    signature = Signature([], [])
    assert signature.check([]).rows == 1
    assert "unknown" in refusal(signature, a(1, 2))


@given(st.lists(st.integers(-2, 4), max_size=4), st.lists(st.integers(-1, 4), max_size=4))
def test_a_shape_fits_or_is_refused(came: list[int], wanted: list[int]) -> None:
    signature = Signature([TensorSpec("b", "INT8", tuple(wanted))], [])
    fits = len(came) == len(wanted) and all(w in (-1, c) and c >= 0 for w, c in zip(wanted, came, strict=True))
    if fits:
        assert signature.check([b(*came)]).group == (tuple(came),)
    else:
        refusal(signature, b(*came))


def test_dimensions_of_one_name_have_one_size() -> None:
    names = {"a": ["", "tokens", "16"], "mask": ["", "tokens"]}
    pair = [TensorSpec("a", "FP32", (-1, -1, 2)), TensorSpec("mask", "BOOL", (-1, -1))]
    signature = Signature(pair, [], batchable=True, dimensions=names)
    a = Tensor.of("a", np.zeros((1, 5, 2), np.float32))
    assert signature.check([a, Tensor.of("mask", np.zeros((1, 5), bool))]).rows == 1
    with pytest.raises(InvalidInput, match=r"'tokens' is 5 in input 'a' .* and 4 in 'mask'"):
        signature.check([a, Tensor.of("mask", np.zeros((1, 4), bool))])
