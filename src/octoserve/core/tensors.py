"""A tensor at a door: its header and its elements, as bytes or as an array, whichever came.

The bytes are the protocol's own raw form: row-major, little-endian; a BYTES element is a 4-byte
length and its bytes. Keeping what came lets a batch of a hundred one-row requests become one
`b"".join` and one array instead of a hundred arrays.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput

Array = NDArray[Any]
Buffer = bytes | bytearray | memoryview
Shape = tuple[int, ...]

_LENGTH = struct.Struct("<I")


class Tensor:
    """One named input or output.

    name:     the tensor's name in the signature
    datatype: a key of `DATATYPES`
    shape:    every dimension known
    raw:      elements in raw form, or None when `values` holds them
    values:   elements as an array of `shape` (BYTES: object array of `bytes`), or None
    """

    __slots__ = ("datatype", "name", "raw", "shape", "values")

    def __init__(
        self, name: str, datatype: str, shape: Shape, raw: Buffer | None = None, values: Array | None = None
    ) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.raw = raw
        self.values = values

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.datatype}, {list(self.shape)})"

    @classmethod
    def of(cls, name: str, values: Array, datatype: str | None = None) -> Tensor:
        """A tensor that holds `values`; the datatype is told by the dtype unless given (BF16)."""
        return cls(name, datatype or datatype_of(values), values.shape, values=values)

    def array(self) -> Array:
        """The elements as an array of `shape`. Raises InvalidInput if the raw form is malformed."""
        if self.values is None:
            self.values = array_from_raw(self.raw or b"", self.datatype, self.shape, self.name)
        return self.values

    def bytes(self) -> Buffer:
        """The elements in raw form."""
        if self.raw is None:
            assert self.values is not None
            self.raw = raw_from_array(self.values)
        return self.raw

    def nbytes(self) -> int:
        """Bytes of the elements as held; BYTES arrays are counted by their elements."""
        if self.raw is not None:
            return len(self.raw)
        assert self.values is not None
        return int(self.values.nbytes)


def datatype_of(values: Array) -> str:
    """The protocol's name of a numpy dtype; strings and objects are BYTES."""
    if values.dtype.kind in "OSU":
        return "BYTES"
    name = _NAMES.get(values.dtype.newbyteorder("<").str)
    if name is None:
        raise InvalidInput(f"numpy dtype {values.dtype} has no Open Inference Protocol datatype")
    return name


_NAMES = {d.dtype.str: d.name for d in DATATYPES.values() if d.name not in ("BF16", "BYTES")}


def raw_from_array(values: Array) -> bytes:
    """Raw form of an array; object elements may be bytes or str (taken as UTF-8)."""
    if values.dtype.kind in "OSU":
        parts: list[bytes] = []
        for item in values.ravel().tolist():
            element = item if isinstance(item, bytes) else str(item).encode()
            parts.append(_LENGTH.pack(len(element)))
            parts.append(element)
        return b"".join(parts)
    if values.dtype.byteorder == ">":
        values = values.astype(values.dtype.newbyteorder("<"))
    return values.tobytes()


def from_bf16(bits: Array) -> NDArray[np.float32]:
    """BF16 is the upper half of an IEEE 754 single."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def array_from_raw(raw: Buffer, datatype: str, shape: Shape, name: str = "") -> Array:
    """Array of `shape` from its raw form (numeric datatypes: a read-only view, no copy).

    Raises InvalidInput when the number of bytes or of elements does not match the shape, when a
    BYTES element runs past the end, and when a BOOL byte is neither 0 nor 1.
    """
    kind = DATATYPES[datatype]
    count = math.prod(shape)
    if kind.kind == "bytes":
        elements = split_bytes(raw, name, count)
        values = np.empty(count, dtype=object)
        values[:] = elements
        return values.reshape(shape)
    if len(raw) != count * kind.itemsize:
        raise InvalidInput(
            f"input {name!r}: {datatype} of shape {list(shape)} takes {count * kind.itemsize} bytes, {len(raw)} came"
        )
    values = np.frombuffer(raw, dtype=kind.dtype)
    if kind.kind == "bool" and count and np.frombuffer(raw, dtype=np.uint8).max() > 1:
        raise InvalidInput(f"input {name!r}: a BOOL byte must be 0 or 1")
    return values.reshape(shape)


def split_bytes(raw: Buffer, name: str, count: int) -> list[bytes]:
    """The elements of a raw BYTES tensor; raises InvalidInput unless there are exactly `count`."""
    view = memoryview(raw)
    elements: list[bytes] = []
    at, end = 0, len(view)
    while at < end:
        if end - at < 4 or len(elements) == count:
            break
        (length,) = _LENGTH.unpack_from(view, at)
        at += 4
        if length > end - at:
            raise InvalidInput(
                f"input {name!r}: BYTES element {len(elements)} says {length} bytes, {end - at} are left"
            )
        elements.append(bytes(view[at : at + length]))
        at += length
    if len(elements) != count or at != end:
        raise InvalidInput(
            f"input {name!r}: {count} BYTES elements wanted by the shape; "
            f"{len(elements)} were read with {end - at} bytes left over"
        )
    return elements
