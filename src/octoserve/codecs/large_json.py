"""Big JSON requests, decoded so that what is wrong costs little before it is refused.

A decoder that takes any list builds tens of millions of empty ones out of a body of `[],[],[],...`: seconds of
the event loop and gigabytes of memory for what is no tensor. So a big body is read in two steps: first its
frame, with data left as text; then each tensor's text, by a decoder of exactly its datatype and rank, after
its brackets were counted against its shape.
"""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec

from octoserve.core.datatypes import DATATYPES, Datatype
from octoserve.core.errors import InvalidInput, TooLarge
from octoserve.core.limits import MAX_RANK, MAX_TENSORS
from octoserve.core.tensors import Buffer, Shape

LARGE = 256 << 10
"""Bytes of JSON from which on this is worth its second step."""
_MAX_PART = 64 << 10  # bytes of one shape, of parameters, of the list of outputs
_ELEMENTS: dict[str, Any] = {"bool": bool, "int": int, "float": int | float | str, "bytes": str}
_MAX_LISTS_OF_NOTHING = 4096
_Shape = tuple[Annotated[int, msgspec.Meta(ge=0, le=2**62)], ...]
_Parameters = dict[str, Any] | None


class _Tensor(msgspec.Struct):
    name: str
    shape: msgspec.Raw
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: msgspec.Raw = msgspec.Raw()


class _Frame(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | None = None
    outputs: msgspec.Raw = msgspec.Raw()
    parameters: msgspec.Raw = msgspec.Raw()


class LargeInput:
    """An input as the codec's own structs have it."""

    __slots__ = ("data", "datatype", "name", "parameters", "shape")

    def __init__(self, tensor: _Tensor) -> None:
        self.name = tensor.name
        self.datatype = tensor.datatype
        self.shape: Shape = _part(tensor.shape, _Shape, f"shape of input {tensor.name!r}")
        self.parameters: _Parameters = _part(tensor.parameters, _Parameters, "parameters")
        self.data: list[Any] | msgspec.UnsetType = msgspec.UNSET
        kind = DATATYPES.get(tensor.datatype)
        if len(tensor.data) and kind is not None and len(self.shape) <= MAX_RANK:
            self.data = _data(tensor, kind, self.shape)


class LargeEnvelope:
    """A request as the codec's own structs have it; `output_type` is the struct of a requested output."""

    __slots__ = ("id", "inputs", "outputs", "parameters")

    def __init__(self, frame: _Frame, output_type: type) -> None:
        self.id = frame.id
        self.parameters: _Parameters = _part(frame.parameters, _Parameters, "parameters")
        self.outputs: Any = _part(frame.outputs, list[output_type] | None, "outputs")  # type: ignore[valid-type]
        if len(frame.inputs) > MAX_TENSORS:
            raise TooLarge(f"{len(frame.inputs)} inputs came, at most {MAX_TENSORS} are taken")
        self.inputs = [LargeInput(tensor) for tensor in frame.inputs]


_decode_frame = msgspec.json.Decoder(_Frame).decode


def decode_large(text: Buffer, output_type: type) -> LargeEnvelope:
    """The envelope of a big request. Raises InvalidInput, TooLarge, or msgspec's own errors."""
    with no_collections():
        return LargeEnvelope(_decode_frame(text), output_type)


def _part(raw: msgspec.Raw, wanted: Any, what: str) -> Any:
    if not len(raw):
        return None
    if len(raw) > _MAX_PART:
        raise TooLarge(f"{what}: {len(raw)} bytes came, at most {_MAX_PART} are taken")
    return _small_decoder(wanted).decode(raw)


@functools.cache
def _small_decoder(wanted: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(wanted)


def _data(tensor: _Tensor, kind: Datatype, shape: Shape) -> list[Any]:
    text = memoryview(tensor.data)
    count = math.prod(shape)
    if 2 * count > len(text) + 1:  # an element and its comma
        raise InvalidInput(f"input {tensor.name!r}: shape {list(shape)} takes {count} elements, fewer came")
    flat = not b"".join(bytes(text[:4096]).split()).startswith(b"[[")
    if not flat:
        _check_lists(tensor, kind, shape)
    try:
        values: list[Any] = _decoder(kind.kind, 1 if flat else len(shape)).decode(text)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"input {tensor.name!r}: {kind.name} wanted: {error}") from None
    return values


def _check_lists(tensor: _Tensor, kind: Datatype, shape: Shape) -> None:
    """Nested data has as many lists as its shape says. (In BYTES a bracket may be text: there it is not counted.)"""
    lists = rows = 1
    for size in shape[:-1]:
        rows *= size
        lists += rows
    empty = 0 in shape
    if kind.kind == "bytes" and not empty:
        return
    if lists > _MAX_LISTS_OF_NOTHING and empty:
        raise InvalidInput(
            f"input {tensor.name!r}: shape {list(shape)} has no elements; nested data is too much for it"
        )
    if bytes(tensor.data).count(b"[") > lists:
        raise InvalidInput(f"input {tensor.name!r}: flat data, or data nested like shape {list(shape)}, is wanted")


@functools.cache
def _decoder(kind: str, depth: int) -> msgspec.json.Decoder[Any]:
    wanted = _ELEMENTS[kind]
    for _ in range(depth):
        wanted = list.__class_getitem__(wanted)
    return msgspec.json.Decoder(wanted)


@contextmanager
def no_collections() -> Iterator[None]:
    """A million lists in one go would have the collector walk them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
