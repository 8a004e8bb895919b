"""Bodies that are small, and would cost much to read."""

from __future__ import annotations

import pytest

from octoserve.codecs.mlflow import MAX_CSV, decode_csv, decode_lines
from octoserve.codecs.tensorflow_serving import decode_examples, decode_predict
from octoserve.codecs.value_reader import ValueReader
from octoserve.core.errors import InvalidInput, TooLarge
from octoserve.core.signature import Signature, TensorSpec

READER = ValueReader(Signature([TensorSpec("x", "FP32", (-1, 2))], [TensorSpec("y", "FP32", (-1,))], batchable=True))


def test_a_text_that_is_not_closed_is_looked_at_once() -> None:
    body = b'{"instances": ["' + b'\\"' * 200_000  # a search from each of its quotes takes many minutes
    with pytest.raises(InvalidInput, match="truncated"):
        decode_predict(body, READER)


def test_a_bare_word_is_taken_and_one_in_a_text_is_none() -> None:
    tensors, _ = decode_predict(rb'{"signature_name": "", "a \" NaN": "NaN", "instances": [[NaN, -Infinity]]}', READER)
    assert str(tensors[0].array().tolist()) == "[[nan, -inf]]"


@pytest.mark.parametrize("value", [b"1", b'"' + b"v" * 100_000 + b'"'])
def test_a_context_is_not_multiplied_without_end(value: bytes) -> None:
    context = b",".join(b'"a%d":%b' % (i, value) for i in range(1 if len(value) > 1 else 5000))
    body = b'{"context":{%b},"examples":[%b]}' % (context, b",".join([b'{"x":[1,2]}'] * 5000))
    assert len(body) < 200_000
    with pytest.raises(TooLarge, match="with the context in each"):
        decode_examples(body, READER)


def test_a_small_context_is_added_to_each_example() -> None:
    tensors = decode_examples(b'{"context":{"x":[1,2]},"examples":[{},{"x":[3,4]}]}', READER)
    assert tensors[0].array().tolist() == [[1, 2], [3, 4]]


def test_csv_is_taken_up_to_a_size() -> None:
    line = b"1,2\n"
    [tensor] = decode_csv(line * 50_000, READER, header=False)
    assert tensor.shape == (50_000, 2)
    with pytest.raises(TooLarge, match="send fewer rows"):
        decode_csv(line * (MAX_CSV // len(line) + 1), READER, header=False)


@pytest.mark.parametrize("cell", [b"1_0", b"x", b"--1"])
def test_a_cell_that_is_no_number_is_told_with_its_row(cell: bytes) -> None:
    named = ValueReader(READER.signature, {"x": ("a", "b")})
    for reader in (READER, named):
        with pytest.raises(InvalidInput, match=f"row 2: .*: a number is wanted, '{cell.decode()}' came"):
            decode_csv(b"1,2\n1,%b\n" % cell, reader, header=False)
        assert decode_csv(b"1, 2.5\nnan,-inf\n", reader, header=False)[0].array()[0].tolist() == [1, 2.5]


def test_lines_that_are_empty_are_passed_over() -> None:
    body = b"\n" * 100_001 + b"[1, 2]\r\n\r\n  \n\n\n[3, 4]\n\n"
    assert decode_lines(body, READER)[0].array().tolist() == [[1, 2], [3, 4]]


def test_bare_words_are_looked_for_in_what_is_not_too_large() -> None:
    row = b"[NaN, 1],"
    many = b'{"instances":[' + row * 500_000
    with pytest.raises(TooLarge, match="quote them"):
        decode_predict(many + b"[1, 2]]}", READER)
    [tensor], _ = decode_predict(many.replace(b"NaN", b'"NaN"') + b"[1, 2]]}", READER)
    assert tensor.shape == (500_001, 2)
