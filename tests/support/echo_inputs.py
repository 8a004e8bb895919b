"""Inputs of the echo models for hypothesis: any bits that an element of the datatype can be."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from support.wire import DTYPES, Sent

# Quiet NaNs without payload: text has one NaN, so only these can be the same in every form.
_NANS = {"FP16": b"\x00\x7e", "FP32": b"\x00\x00\xc0\x7f", "FP64": b"\x00\x00\x00\x00\x00\x00\xf8\x7f"}
_EDGES = {
    "FP16": (0.0, -0.0, np.inf, -np.inf, np.nan, 65504.0, 6e-8, -6e-8),
    "FP32": (0.0, -0.0, np.inf, -np.inf, np.nan, 3.4028235e38, 1e-45, 0.1),
    "FP64": (0.0, -0.0, np.inf, -np.inf, np.nan, 1.7976931348623157e308, 5e-324, 0.1),
}


def elements(datatype: str) -> st.SearchStrategy[bytes]:
    """The raw form of one element of a datatype of fixed size."""
    dtype = np.dtype(DTYPES[datatype])
    if datatype == "BOOL":
        return st.sampled_from([b"\0", b"\1"])
    bits = st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize)
    if datatype not in _NANS:
        return bits
    edges = st.sampled_from([np.array(value, dtype).tobytes() for value in _EDGES[datatype]])
    return st.one_of(edges, bits).map(lambda raw: _NANS[datatype] if np.isnan(np.frombuffer(raw, dtype)[0]) else raw)


@st.composite
def echo_inputs(draw: st.DrawFn, datatype: str) -> Sent:
    """An input of an echo model: a few rows and columns, possibly no columns."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(0, 5))
    size = rows * columns
    if datatype == "BYTES":
        texts = st.text(max_size=12).map(str.encode)
        array = np.empty(size, dtype=object)
        array[:] = draw(st.lists(texts, min_size=size, max_size=size))
    else:
        raw = b"".join(draw(st.lists(elements(datatype), min_size=size, max_size=size)))
        array = np.frombuffer(raw, DTYPES[datatype])
    return Sent("input", datatype, array.reshape(rows, columns))
