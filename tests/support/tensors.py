"""Tensors of every datatype for hypothesis, and their raw form worked out another way than the package does."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

NUMERIC = [
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16",
]  # fmt: skip
CODES = dict(zip(NUMERIC, "?BHIQbhiqefdH", strict=True))
_BITS = {"UINT8": 8, "UINT16": 16, "UINT32": 32, "UINT64": 64, "INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64}
_WIDTHS = {"FP16": 16, "FP32": 32, "FP64": 64}

Case = tuple[str, tuple[int, ...], list[Any]]


def element_values(datatype: str) -> st.SearchStrategy[Any]:
    """Elements that fit: BYTES are `bytes` of UTF-8 text, BF16 its bit patterns."""
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BF16":
        return st.integers(0, 2**16 - 1)
    if datatype == "BYTES":
        return st.text(max_size=6).map(str.encode)
    if datatype in _WIDTHS:
        # One NaN: the word "NaN" does not say its sign.
        return st.floats(width=_WIDTHS[datatype]).map(lambda v: v if v == v else math.nan)  # type: ignore[arg-type]
    bits = _BITS[datatype]
    low, high = (0, 2**bits - 1) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return st.one_of(st.integers(low, high), st.sampled_from([low, high]))


def shapes(min_rank: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    """Small shapes, dimensions of 0 and 1 among them."""
    return st.lists(st.integers(0, 4), min_size=min_rank, max_size=3).map(tuple)


def tensors(datatypes: Sequence[str], min_rank: int = 0) -> st.SearchStrategy[Case]:
    """(datatype, shape, flat values)."""

    @st.composite
    def case(draw: st.DrawFn) -> Case:
        datatype = draw(st.sampled_from(datatypes))
        shape = draw(shapes(min_rank))
        count = math.prod(shape)
        return datatype, shape, draw(st.lists(element_values(datatype), min_size=count, max_size=count))

    return case()


def raw_of(values: Sequence[Any], datatype: str) -> bytes:
    """The protocol's raw form, element by element."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(v)) + v for v in values)
    return b"".join(struct.pack("<" + CODES[datatype], v) for v in values)
