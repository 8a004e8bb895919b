"""What a person types into curl first: `{"amount": 12.5, "country": "CH"}`, one row, or an array of such rows.

The answer has the same form: an object of the outputs by name, or an array of them.
"""

from __future__ import annotations

import msgspec

from octoserve.codecs.json_answers import AnswerStyle, objects, one_row, row_texts
from octoserve.codecs.json_values import decode_frame
from octoserve.codecs.value_reader import ValueReader
from octoserve.core.errors import InvalidInput
from octoserve.core.results import Result
from octoserve.core.tensors import Tensor

_STYLE = AnswerStyle(bare=False, single=True)
_raw = msgspec.json.Decoder(msgspec.Raw).decode


def decode_rows(body: bytes, reader: ValueReader) -> tuple[list[Tensor], bool]:
    """Tensors, and whether they are one row alone. Raises InvalidInput, TooLarge."""
    text = body
    if b"NaN" in body or b"Infinity" in body:  # perhaps bare
        text = bytes(decode_frame(body, _raw, "a row (an object) or an array of rows"))
    if not text.lstrip().startswith(b"{"):
        return reader.rows(text, "rows"), False
    tensors = reader.rows(b"[%b]" % text, "row")
    if tensors[0].shape[0] != 1:
        raise InvalidInput("one row, an object, or an array of rows is wanted; several rows came without brackets")
    return tensors, True


def encode_rows(result: Result, alone: bool) -> bytes:
    """An object, or an array of objects. Raises InvalidInput, Unsupported."""
    if alone or result.rows == 1:
        row = one_row(result, _STYLE, named=True)
        if row is not None:
            return row if alone else b"[%b]" % row
    columns = [row_texts(result, i, _STYLE) for i in range(len(result.ran.arrays))]
    if len(set(map(len, columns))) > 1:
        raise InvalidInput("the outputs differ in their number of rows; ask by the Open Inference Protocol")
    rows = objects(result, columns)
    return rows[0] if alone and len(rows) == 1 else b"[%b]" % b",".join(rows)
