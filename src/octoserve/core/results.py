"""What a run gave: one `Ran` a batch, one `Result` a request in it.

Conversions are made once a batch, on first use, and sliced per request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from octoserve.core.signature import Signature
from octoserve.core.tensors import Array, Shape, Tensor, raw_from_array

_encode = msgspec.json.encode


class NoTextForm(ValueError):
    """The datatype has no form in text."""


class Ran:
    """Outputs of one run in signature order, and whose they are."""

    __slots__ = ("_raws", "_shapes", "_texts", "arrays", "memo", "model", "signature", "version")

    def __init__(self, model: str, version: int, signature: Signature, arrays: Sequence[Array]) -> None:
        self.model = model
        self.version = version
        self.signature = signature
        self.arrays = arrays
        self._shapes: dict[int | None, tuple[Shape, ...]] = {}
        self.memo: dict[object, Any] = {}
        """Kept by encoders: what their answers of so many rows have in common."""
        self._raws: list[tuple[bytes, int] | None] = [None] * len(arrays)
        self._texts: list[list[bytes] | None] = [None] * len(arrays)

    def shapes(self, rows: int | None) -> tuple[Shape, ...]:
        """Shapes of all outputs for a request of `rows` rows; None for the whole run."""
        shapes = self._shapes.get(rows)
        if shapes is None:
            shapes = tuple([a.shape if rows is None else (rows, *a.shape[1:]) for a in self.arrays])
            self._shapes[rows] = shapes
        return shapes

    def raws(self, index: int) -> tuple[bytes, int]:
        """An output of fixed-size elements in raw form, and the bytes of a row in it."""
        raws = self._raws[index]
        if raws is None:
            raw = raw_from_array(self.arrays[index])
            raws = self._raws[index] = (raw, len(raw) // (self.arrays[index].shape[0] or 1))
        return raws

    def texts(self, index: int) -> list[bytes]:
        """Each row of an output as JSON text: its elements in row-major order, with commas between; empty if
        there are no elements.

        Floats that JSON cannot carry are the words of protobuf's JSON mapping: "NaN", "Infinity",
        "-Infinity". Raises UnicodeDecodeError for bytes that are no text, NoTextForm for BF16.
        """
        texts = self._texts[index]
        if texts is None:
            texts = self._texts[index] = _texts(self.arrays[index], self.signature.outputs[index].datatype)
        return texts


def _texts(array: Array, datatype: str) -> list[bytes]:
    if datatype == "BF16":
        raise NoTextForm(datatype)
    rows = array.shape[0] if array.ndim else 1
    if not array.size:
        return []
    table = array.reshape(rows, -1).tolist()
    if datatype == "BYTES":
        return [_encode([v.decode() if isinstance(v, bytes) else v for v in row])[1:-1] for row in table]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        table = [[v if math.isfinite(v) else _word(v) for v in row] for row in table]
    return _encode(table)[2:-2].split(b"],[")


def _word(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


class Result:
    """One request's rows, start <= row < stop, of a batch; `rows` None for all of it."""

    __slots__ = ("ran", "rows", "start")

    def __init__(self, ran: Ran, start: int = 0, rows: int | None = None) -> None:
        self.ran = ran
        self.start = start
        self.rows = rows

    def shape(self, index: int) -> Shape:
        """Shape of output `index` for this request."""
        return self.ran.shapes(self.rows)[index]

    def array(self, index: int) -> Array:
        """Output `index`, a view."""
        array = self.ran.arrays[index]
        return array if self.rows is None else array[self.start : self.start + self.rows]

    def text(self, index: int) -> bytes:
        """Output `index` as JSON text; see `Ran.texts`."""
        texts = self.ran.texts(index)
        if self.rows == 1 and texts:
            return texts[self.start]
        return b",".join(texts if self.rows is None else texts[self.start : self.start + self.rows])

    def raw(self, index: int) -> bytes:
        """Output `index` in the protocol's raw form."""
        if self.rows is None or self.ran.signature.outputs[index].datatype == "BYTES":
            return raw_from_array(self.array(index))
        raw, width = self.ran.raws(index)
        return raw[self.start * width : (self.start + self.rows) * width]

    def tensors(self) -> list[Tensor]:
        """All outputs, for callers that want tensors rather than a wire form."""
        specs = self.ran.signature.outputs
        return [Tensor.of(s.name, self.array(i), s.datatype) for i, s in enumerate(specs)]
