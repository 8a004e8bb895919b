"""Tensors as JSON that people can read, by name: nested lists of the tensor's shape.

- FP16 and FP32 are written with as few digits as tell them apart (0.1, not 0.10000000149011612).
- NaN, "Infinity" and "-Infinity" are texts, since JSON has no such numbers.
- A BYTES element that is no UTF-8 is `{"base64": "..."}`.
- A tensor of over `TEXT_BYTES` is described: `{"datatype", "shape", "bytes", "sha256", "first": [...]}`.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from octoserve.core.datatypes import DATATYPES
from octoserve.core.tensors import Array, from_bf16
from octoserve.telemetry.pairs import RawTensor

TEXT_BYTES = 32 << 10
"""Bytes of the raw form above which a tensor is described instead of written out."""

FIRST = 64
"""Elements that a description shows."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def text_of(tensors: Sequence[RawTensor]) -> str:
    """JSON text: name -> elements, or a description."""
    return _encode({tensor.name: readable(tensor) for tensor in tensors}).decode()


def elements_of(text: str) -> dict[str, Any]:
    """What `text_of` wrote."""
    found: dict[str, Any] = _decode(text)
    return found


def readable(tensor: RawTensor) -> Any:
    """The elements of one tensor as lists, or its description."""
    if len(tensor.raw) <= TEXT_BYTES:
        return _lists(tensor.tensor().array(), tensor.datatype)
    array = tensor.tensor().array()
    return {
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "bytes": len(tensor.raw),
        "sha256": hashlib.sha256(tensor.raw).hexdigest(),
        "first": [_shortened(value) for value in _lists(array.ravel()[:FIRST], tensor.datatype)],
    }


def number_of(value: Any) -> float:
    """A float that was written as a number or as one of the three texts."""
    return float("nan") if value is None else float(value)


def flat(value: Any) -> list[Any]:
    """Elements of nested lists, in order; of a description, none, since it shows only the first."""
    if not isinstance(value, list):
        return [] if isinstance(value, dict) and "sha256" in value else [value]
    if value and isinstance(value[0], list):
        return [element for part in value for element in flat(part)]
    return value


def row_of(value: Any, row: int, rows: int) -> Any:
    """One row of a tensor that has `rows` of them; else all of it."""
    return [value[row]] if isinstance(value, list) and len(value) == rows and 0 <= row < rows else value


def _lists(array: Array, datatype: str) -> Any:
    kind = DATATYPES[datatype].kind
    if kind == "bytes":
        return _deep(array.tolist(), _text)
    if kind != "float":
        return array.tolist()
    if datatype == "BF16":
        array = from_bf16(array)
    if array.dtype.itemsize < 8:
        array = array.astype(np.str_).astype(np.float64)
    values = array.tolist()
    return values if np.isfinite(array).all() else _deep(values, _finite)


def _deep(value: Any, write: Any) -> Any:
    return [_deep(part, write) for part in value] if isinstance(value, list) else write(value)


def _finite(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _text(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > 256:
        return value[:256] + "..."
    if isinstance(value, dict) and len(value["base64"]) > 256:
        return {"base64": value["base64"][:256] + "..."}
    return value
