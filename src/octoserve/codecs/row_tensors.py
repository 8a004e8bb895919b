"""Rows, as tuples of what their fields hold -> a model's inputs. The one place where a field's name meets an input.

An input is made of the fields that the version's model.yaml names as its `features`, in their order, or of the one
field of its own name: an element, or lists nested as its shape. Values are never cast: what does not fit is refused.
None is a missing value; of a number, the model may see NaN instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, get_args

import msgspec
import numpy as np

from octoserve.core.datatypes import DATATYPES, Datatype
from octoserve.core.errors import InvalidInput, SettingsError
from octoserve.core.packing import PACKED_AT_ONCE, pack
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array, Tensor

KINDS: dict[str, Any] = {"float": float, "int": int, "bool": bool, "bytes": str}
"""The Python type of a field's element, by its datatype's kind."""


class _Feed(msgspec.Struct, frozen=True):
    """How an input is made.

    places:  of its fields in a row
    stacked: one element a field
    flat:    its cells are elements, not lists
    """

    spec: TensorSpec
    kind: Datatype
    fields: tuple[str, ...]
    places: tuple[int, ...]
    stacked: bool
    flat: bool


class RowTensors:
    """The inputs of one signature, made of rows. fields: what a row is made of, in a tuple's order."""

    def __init__(
        self, signature: Signature, features: Mapping[str, Sequence[str]] | None = None, missing: str = "refuse"
    ) -> None:
        """features: input -> fields, "" for the only input. missing: of a number, refuse it or let the model see NaN.

        Raises SettingsError.
        """
        self._nan = missing == "nan"
        named = dict(features or {})
        if "" in named and len(signature.inputs) == 1:
            named = {signature.inputs[0].name: named[""]}
        unknown = sorted(named.keys() - {spec.name for spec in signature.inputs})
        if unknown:
            raise SettingsError(f"features: the model has no input {unknown[0]!r}")
        self.types: dict[str, Any] = {}
        """Field -> the type of what it holds, for a decoder."""
        self.specs: dict[str, TensorSpec] = {}
        """Field -> the input that it is, or is a part of."""
        feeds = []
        for spec in signature.inputs:
            fields = tuple(named.get(spec.name, ()))
            whole = not fields
            _refuse_misfit(spec, fields)
            fields = fields or (spec.name,)
            for field in fields:
                self.types[field] = _type(spec, whole)
                self.specs[field] = spec
            places = tuple(list(self.types).index(field) for field in fields)
            flat = not whole or spec.shape[1:] in ((), (1,))
            feeds.append(_Feed(spec, DATATYPES[spec.datatype], fields, places, not whole, flat))
        self._feeds = tuple(feeds)
        self.fields = tuple(self.types)

    def tensors(self, rows: Sequence[Sequence[Any]]) -> list[Tensor]:
        """The inputs of these rows. Raises InvalidInput, which speaks of one row only if it got only one."""
        return [self._tensor(feed, rows) for feed in self._feeds]

    def _tensor(self, feed: _Feed, rows: Sequence[Sequence[Any]]) -> Tensor:
        if feed.flat and len(rows) * len(feed.places) <= PACKED_AT_ONCE:
            tensor = self._packed(feed, rows)
            if tensor is not None:
                return tensor
        elif not feed.stacked and len(feed.spec.shape) == 2:
            tensor = _packed_lists(feed, [row[feed.places[0]] for row in rows])
            if tensor is not None:
                return tensor
        return self._column(feed, rows)

    def _packed(self, feed: _Feed, rows: Sequence[Sequence[Any]]) -> Tensor | None:
        """A small input in raw form, which costs less than an array; None where something is the matter."""
        places = feed.places
        if len(places) == 1:
            at = places[0]
            flat = [row[at] for row in rows]
        else:
            flat = [row[place] for row in rows for place in places]
        try:
            if feed.kind.kind == "bytes":
                flat = [value if type(value) is bytes else value.encode() for value in flat]
            raw = pack(flat, feed.kind, feed.spec.name)
        except (InvalidInput, AttributeError):
            if not (self._nan and feed.kind.kind == "float" and None in flat):
                return None
            try:
                raw = pack([math.nan if value is None else value for value in flat], feed.kind, feed.spec.name)
            except InvalidInput:
                return None
        shape = (len(rows),) if len(feed.spec.shape) == 1 else (len(rows), len(places))
        return Tensor(feed.spec.name, feed.spec.datatype, shape, raw)

    def _column(self, feed: _Feed, rows: Sequence[Sequence[Any]]) -> Tensor:
        """The input of these rows. Raises InvalidInput, which is told of one row only."""
        if feed.stacked:
            first, last = feed.places[0], feed.places[-1] + 1
            if feed.places == tuple(range(first, last)):
                cells: list[Any] = [row[first:last] for row in rows]
            else:
                cells = [[row[place] for place in feed.places] for row in rows]
            if len(feed.spec.shape) == 1:
                cells = [row[0] for row in cells]
        else:
            cells = [row[feed.places[0]] for row in rows]
            if not feed.flat and None in cells:
                _refuse_missing(feed, rows)
        kind = feed.kind.kind
        if kind != "float":
            _refuse_missing(feed, rows)
        array = _strings(cells) if kind == "bytes" else _numbers(feed, cells)
        if kind == "float":
            if not self._nan and np.isnan(array).any():  # what is None has become one; to look at each cell takes long
                _refuse_missing(feed, rows)
            array = _narrowed(feed, array)
        shape = (len(rows), *feed.spec.shape[1:])
        if not feed.stacked and feed.spec.shape[1:] == (1,):
            array = array.reshape(len(rows), 1)
        if not rows:
            array = array.reshape(tuple(max(size, 0) for size in shape))
        if array.ndim != len(shape) or any(
            want not in (-1, came) for want, came in zip(shape, array.shape, strict=True)
        ):
            wanted = list(feed.spec.shape[1:])
            raise InvalidInput(
                f"field {feed.fields[0]!r}: lists of shape {wanted} wanted, {list(array.shape[1:])} came"
            )
        return Tensor(feed.spec.name, feed.spec.datatype, array.shape, values=array)


def _packed_lists(feed: _Feed, lists: Sequence[Any]) -> Tensor | None:
    """An input whose rows are lists of elements, in raw form; None where something is the matter."""
    if not lists or None in lists or feed.kind.kind == "bytes":
        return None
    width = len(lists[0])
    if len(lists) * width > PACKED_AT_ONCE or feed.spec.shape[1] not in (-1, width):
        return None
    if any(len(row) != width for row in lists):
        return None
    try:
        raw = pack(lists[0] if len(lists) == 1 else list(chain.from_iterable(lists)), feed.kind, feed.spec.name)
    except InvalidInput:
        return None
    return Tensor(feed.spec.name, feed.spec.datatype, (len(lists), width), raw)


def _refuse_missing(feed: _Feed, rows: Sequence[Sequence[Any]]) -> None:
    for row in rows:
        for field, place in zip(feed.fields, feed.places, strict=True):
            if row[place] is None:
                raise InvalidInput(f"field {field!r} is missing; {feed.spec.datatype} is wanted")


def _which(feed: _Feed) -> str:
    return f"field {feed.fields[0]!r}" if len(feed.fields) == 1 else f"input {feed.spec.name!r}"


def _narrowed(feed: _Feed, array: Array) -> Array:
    dtype = feed.kind.dtype
    if dtype == array.dtype:
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    if not np.array_equal(np.isinf(narrow), np.isinf(array)):
        raise InvalidInput(f"a number does not fit {feed.spec.datatype}, which {_which(feed)} is of")
    return narrow


def _refuse_misfit(spec: TensorSpec, fields: Sequence[str]) -> None:
    if spec.datatype == "BF16":
        raise SettingsError(f"input {spec.name!r}: BF16 has no JSON form; send the Open Inference Protocol's binary")
    if not spec.shape or spec.shape[0] != -1:
        raise SettingsError(f"the model takes no rows: the first dimension of an input must vary; it takes {spec}")
    if not fields:
        return
    width = 1 if len(spec.shape) == 1 else spec.shape[1]
    if len(spec.shape) > 2 or width not in (-1, len(fields)) or len(set(fields)) != len(fields):
        raise SettingsError(f"features: input {spec} cannot be made of the {len(fields)} fields named, each once")


def _type(spec: TensorSpec, whole: bool) -> Any:
    element = KINDS[DATATYPES[spec.datatype].kind]
    inner = spec.shape[1:]
    if not whole or inner in ((), (1,)):
        return element
    return lists_of(element, len(inner))


def text_depth(type_: Any) -> int | None:
    """How deep in lists a field of this type holds text; None where it holds something else."""
    depth = 0
    while inner := get_args(type_):
        (type_,) = inner
        depth += 1
    return depth if type_ is str else None


def lists_of(kind: Any, depth: int) -> Any:
    """The type of lists nested so deep."""
    for _ in range(depth):
        kind = list.__class_getitem__(kind)
    return kind


def _strings(cells: Sequence[Any]) -> Array:
    """Text as an object array of bytes, nested as it came."""
    depth, inner = 1, cells[0] if cells else None
    while isinstance(inner, list | tuple):
        depth, inner = depth + 1, inner[0] if inner else None
    texts = np.array(cells, dtype=object)
    if texts.ndim != depth:
        raise InvalidInput("lists of unequal lengths came where a table of text is wanted")
    flat = np.empty(texts.size, dtype=object)
    flat[:] = [text if type(text) is bytes else text.encode() for text in texts.ravel().tolist()]
    return flat.reshape(texts.shape)


def _numbers(feed: _Feed, cells: Sequence[Any]) -> Array:
    dtype = np.dtype(np.float64) if feed.kind.kind == "float" else feed.kind.dtype
    try:
        return np.array(cells, dtype=dtype)
    except OverflowError:
        raise InvalidInput(f"a number does not fit {feed.spec.datatype}, which {_which(feed)} is of") from None
    except ValueError:
        raise InvalidInput(f"{_which(feed)}: lists of unequal lengths came, a table of numbers is wanted") from None
