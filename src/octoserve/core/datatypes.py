"""The datatypes of the Open Inference Protocol (V2), and BF16, which Triton adds.

BYTES elements are `bytes` in memory. BF16 has no numpy dtype: it travels as uint16 bit patterns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Datatype:
    """`code` is the `struct` letter that packs one element and refuses what does not fit."""

    name: str
    dtype: np.dtype[np.generic]
    itemsize: int  # bytes; 0 for BYTES, whose elements vary
    code: str
    kind: str  # "bool" | "int" | "float" | "bytes"


def _make(name: str, numpy_name: str, code: str, kind: str) -> Datatype:
    dtype = np.dtype(numpy_name)
    return Datatype(name, dtype, 0 if kind == "bytes" else dtype.itemsize, code, kind)


DATATYPES: dict[str, Datatype] = {
    d.name: d
    for d in (
        _make("BOOL", "bool", "?", "bool"),
        _make("UINT8", "<u1", "B", "int"),
        _make("UINT16", "<u2", "H", "int"),
        _make("UINT32", "<u4", "I", "int"),
        _make("UINT64", "<u8", "Q", "int"),
        _make("INT8", "<i1", "b", "int"),
        _make("INT16", "<i2", "h", "int"),
        _make("INT32", "<i4", "i", "int"),
        _make("INT64", "<i8", "q", "int"),
        _make("FP16", "<f2", "e", "float"),
        _make("FP32", "<f4", "f", "float"),
        _make("FP64", "<f8", "d", "float"),
        _make("BF16", "<u2", "H", "float"),
        _make("BYTES", "object", "", "bytes"),
    )
}
