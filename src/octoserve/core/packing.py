"""Python values -> a tensor's raw form. What does not fit its datatype is refused, never cast or wrapped."""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from octoserve.core.datatypes import Datatype
from octoserve.core.errors import InvalidInput
from octoserve.core.tensors import raw_from_array

PACKED_AT_ONCE = 1024
"""Above it numpy is faster than `struct`; it needs elements of the right Python type, which `struct` checks itself."""


@functools.lru_cache(maxsize=4096)
def _packer(code: str, count: int) -> struct.Struct:
    return struct.Struct(f"<{count}{code}")


def pack(flat: Sequence[Any], kind: Datatype, name: str) -> bytes:
    """Raw form of `flat`, whose elements are of the Python type of the datatype's kind.

    Raises InvalidInput that names the input and the value that does not fit.
    """
    if kind.kind == "bytes":
        array = np.empty(len(flat), dtype=object)
        array[:] = flat
        return raw_from_array(array)
    try:
        if len(flat) <= PACKED_AT_ONCE:
            return _packer(kind.code, len(flat)).pack(*flat)
        return _pack_many(flat, kind)
    except (OverflowError, struct.error):
        raise InvalidInput(f"input {name!r}: {_misfit(flat, kind)} does not fit {kind.name}") from None


def _pack_many(flat: Sequence[Any], kind: Datatype) -> bytes:
    if kind.kind != "float":
        return np.array(flat, dtype=kind.dtype).tobytes()
    wide = np.array(flat, dtype=np.float64)
    with np.errstate(over="ignore"):
        array = wide.astype(kind.dtype)
    if (np.isinf(array) & np.isfinite(wide)).any():
        raise OverflowError
    return array.tobytes()


def _misfit(flat: Sequence[Any], kind: Datatype) -> str:
    for value in flat:
        try:
            struct.pack(f"<{kind.code}", value)
        except (OverflowError, struct.error):
            return repr(value)[:80] if type(value) is not int or value.bit_length() < 256 else "a huge number"
    return "a value"
