"""Results as nested JSON, by row or by output: what protocols without datatypes in their answers send back.

Numbers are those of the Open Inference Protocol's answers, digit for digit; what JSON numbers cannot say is NaN,
Infinity and -Infinity bare, as TensorFlow Serving and MLflow write them, or in quotes.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import msgspec
import numpy as np

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, Unsupported
from octoserve.core.results import NoTextForm, Result
from octoserve.core.tensors import Array

_encode = msgspec.json.encode
_OBJECT, _ROW = "objects of rows", "one row"
_MAX_TEMPLATES = 256


class AnswerStyle(msgspec.Struct, frozen=True):
    """What protocols differ in.

    bare:   NaN and its like without quotes
    base64: bytes that are no text go out as {"b64": ...}, and are an error otherwise
    single: an output of shape [rows, 1] is an element a row, not a list of one
    """

    bare: bool = True
    base64: bool = False
    single: bool = False


def row_texts(result: Result, index: int, style: AnswerStyle) -> list[bytes]:
    """Output `index` as one JSON value a row. Raises InvalidInput if it has no rows, Unsupported if it is no text."""
    shape = result.shape(index)
    spec = result.ran.signature.outputs[index]
    if not shape:
        raise InvalidInput(f"output {spec} has no rows; ask in a form that takes outputs whole")
    try:
        texts = _texts(result, index, len(shape))
    except UnicodeDecodeError:
        if not style.base64:
            raise Unsupported(
                f"output {spec.name!r} has bytes that are not UTF-8; ask by the Open Inference Protocol in binary"
            ) from None
        texts = [_encode(row) for row in _in_base64(result.array(index))]
    except NoTextForm:
        raise Unsupported(
            f"output {spec.name!r} is BF16, which has no JSON form; ask by the Open Inference Protocol in binary"
        ) from None
    if style.single and shape[1:] == (1,):
        texts = [text[1:-1] for text in texts]
    if style.bare and DATATYPES[spec.datatype].kind == "float":
        return [text.replace(b'"', b"") if b'"' in text else text for text in texts]
    return texts


def _texts(result: Result, index: int, rank: int) -> list[bytes]:
    texts = result.ran.texts(index)
    if rank <= 2 and texts:
        if result.rows is not None:
            texts = texts[result.start : result.start + result.rows]
        return texts if rank == 1 else [b"[%b]" % text for text in texts]
    return [_encode(row) for row in _nested(result.array(index))]


def _nested(array: Array) -> list[Any]:
    """Lists of what JSON has; words for what it has not."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        words = array.astype(object)
        words[np.isnan(array)] = "NaN"
        words[np.isposinf(array)] = "Infinity"
        words[np.isneginf(array)] = "-Infinity"
        array = words
    elif array.dtype == object:
        array = _mapped(array, lambda item: item.decode() if isinstance(item, bytes) else item)
    nested: list[Any] = array.tolist()
    return nested


def _in_base64(array: Array) -> list[Any]:
    def member(item: Any) -> dict[str, str]:
        raw = item if isinstance(item, bytes) else str(item).encode()
        return {"b64": b64encode(raw).decode()}

    nested: list[Any] = _mapped(array, member).tolist()
    return nested


def _mapped(array: Array, function: Any) -> Array:
    mapped = np.empty(array.size, dtype=object)
    mapped[:] = [function(item) for item in array.ravel().tolist()]
    return mapped.reshape(array.shape)


def by_row(result: Result, style: AnswerStyle) -> list[bytes]:
    """A JSON value a row: of the only output, or an object of all outputs. Raises InvalidInput, Unsupported."""
    if result.rows == 1:
        row = one_row(result, style, named=len(result.ran.arrays) > 1)
        if row is not None:
            return [row]
    columns = [row_texts(result, i, style) for i in range(len(result.ran.arrays))]
    if len(columns) == 1:
        return columns[0]
    if len(set(map(len, columns))) > 1:
        outputs = zip(result.ran.signature.outputs, columns, strict=True)
        counts = ", ".join(f"{spec.name} {len(column)}" for spec, column in outputs)
        raise InvalidInput(
            f"the outputs differ in their number of rows ({counts}); ask in a form that takes them whole"
        )
    return objects(result, columns)


def one_row(result: Result, style: AnswerStyle, named: bool, whole: bool = False) -> bytes | None:
    """The only row's JSON value, from a template: most requests. None where it takes a closer look.

    named: an object of the outputs by name
    whole: the outputs with their dimension of rows
    """
    ran = result.ran
    memo = ran.signature.memo
    key = (_ROW, style.single, named, whole, ran.shapes(1))
    template = memo.get(key)
    if template is None:
        if len(memo) >= _MAX_TEMPLATES:
            memo.clear()
        template = memo[key] = _row_template(result, style, named, whole)
    if not template:
        return None
    try:
        texts = [result.text(i) for i in range(len(ran.arrays))]
    except ValueError:
        return None
    if style.bare:
        for i, spec in enumerate(ran.signature.outputs):
            if b'"' in texts[i] and spec.datatype != "BYTES":
                texts[i] = texts[i].replace(b'"', b"")
    return template % tuple(texts)


def _row_template(result: Result, style: AnswerStyle, named: bool, whole: bool) -> bytes:
    """Empty where a row's outputs are more than an element or a list of elements."""
    members = []
    for spec, shape in zip(result.ran.signature.outputs, result.ran.shapes(1), strict=True):
        if len(shape) not in (1, 2):
            return b""
        value = b"%b" if len(shape) == 1 or (style.single and shape[1] == 1) else b"[%b]"
        value = b"[" + value + b"]" if whole else value
        members.append(_encode(spec.name).replace(b"%", b"%%") + b":" + value if named else value)
    return b"{%b}" % b",".join(members) if named else members[0]


def objects(result: Result, columns: list[list[bytes]]) -> list[bytes]:
    """An object a row, of the outputs' JSON values."""
    memo = result.ran.signature.memo
    template = memo.get(_OBJECT)
    if template is None:
        names = [_encode(spec.name).replace(b"%", b"%%") for spec in result.ran.signature.outputs]
        template = memo[_OBJECT] = b"{%b}" % b",".join([name + b":%b" for name in names])
    return [template % row for row in zip(*columns, strict=True)]


def whole(result: Result, index: int, style: AnswerStyle) -> bytes:
    """Output `index` as one JSON value. Raises Unsupported."""
    if result.shape(index):
        return b"[%b]" % b",".join(row_texts(result, index, style))
    spec = result.ran.signature.outputs[index]
    if spec.datatype == "BF16":
        raise Unsupported(f"output {spec.name!r} is BF16, which has no JSON form")
    text = _encode(_nested(result.array(index).reshape(1))[0])
    return text.strip(b'"') if style.bare and DATATYPES[spec.datatype].kind == "float" else text


def by_output(result: Result, style: AnswerStyle) -> bytes:
    """The only output whole, or an object of all outputs. Raises Unsupported."""
    if result.rows == 1:
        text = one_row(result, style, named=len(result.ran.arrays) > 1, whole=True)
        if text is not None:
            return text
    names = [spec.name for spec in result.ran.signature.outputs]
    if len(names) == 1:
        return whole(result, 0, style)
    members = [b"%b:%b" % (_encode(name), whole(result, i, style)) for i, name in enumerate(names)]
    return b"{%b}" % b",".join(members)
