"""JSON rows by feature name: `{"id": "m1", "amount": 12.5, "country": "CH"}`, one a message.

An input is made of the fields that the version's model.yaml names as its `features`, in their order, or of the one
field of its own name: an element, or lists nested as its shape. Values are never cast: what does not fit is refused,
for that row alone. Fields that the model does not know are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, SettingsError
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array, Shape, Tensor

ID = "id"
_KINDS: dict[str, Any] = {"float": float, "int": int, "bool": bool, "bytes": str}


class Group(msgspec.Struct, frozen=True):
    """Rows whose inputs have equal shapes, and so may share a run. rows: which payload each of them is."""

    columns: list[Tensor]
    rows: list[int]


class Decoded(msgspec.Struct, frozen=True):
    """Rows that fit, and why the others do not.

    groups: mostly one; several where sizes of an input vary from row to row
    ids:    of every payload, None where it has none or cannot be read
    unfit:  payload -> what is wrong with it
    """

    groups: list[Group]
    ids: list[str | None]
    unfit: dict[int, str]


class _Feed(msgspec.Struct, frozen=True):
    """How an input is made. places: of its fields in a row; shape: of a row; stacked: one element a field."""

    spec: TensorSpec
    fields: tuple[str, ...]
    places: tuple[int, ...]
    stacked: bool


class JsonRows:
    """A decoder for one signature."""

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
        types: dict[str, Any] = {}
        feeds = []
        for spec in signature.inputs:
            fields = tuple(named.get(spec.name, ()))
            whole = not fields
            _refuse_misfit(spec, fields)
            fields = fields or (spec.name,)
            for field in fields:
                types[field] = _type(spec, whole)
            places = tuple(list(types).index(field) for field in fields)
            feeds.append(_Feed(spec, fields, places, not whole))
        self._feeds = tuple(feeds)
        self._fields = tuple(types)
        names_id = ID not in types or types[ID] in (int, str)
        self._id_at = (self._fields.index(ID) if ID in types else len(types)) if names_id else None
        """Of the message's id in a row; None where `id` is a feature that cannot be one."""
        struct = msgspec.defstruct(
            "Row",
            [(f"f{i}", type_ | None, None) for i, type_ in enumerate(types.values())]
            + ([] if ID in types else [("own_id", Any, None)]),
            rename={**{f"f{i}": field for i, field in enumerate(types)}, "own_id": ID},
        )
        self._decode = msgspec.json.Decoder(struct).decode

    @property
    def fields(self) -> tuple[str, ...]:
        """What a row is made of."""
        return self._fields

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Never raises for what a payload holds."""
        try:
            rows = [msgspec.structs.astuple(self._decode(payload)) for payload in payloads]
            ids = [self._id(row) for row in rows]
            columns = [self._column(feed, rows) for feed in self._feeds]
            return Decoded([Group(columns, list(range(len(rows))))], ids, {})
        except (ValueError, OverflowError, TypeError, msgspec.MsgspecError, RecursionError, InvalidInput):
            return self._one_by_one(payloads)

    def _one_by_one(self, payloads: Sequence[bytes]) -> Decoded:
        fit: dict[tuple[Shape, ...], dict[int, tuple[Any, ...]]] = {}
        ids: list[str | None] = []
        unfit: dict[int, str] = {}
        for place, payload in enumerate(payloads):
            ids.append(None)
            try:
                row = msgspec.structs.astuple(self._decode(payload))
                ids[-1] = self._id(row)
                shapes = tuple(self._column(feed, [row]).shape for feed in self._feeds)
            except msgspec.MsgspecError as error:
                unfit[place] = f"no JSON row: {error}"
            except UnicodeDecodeError:
                unfit[place] = "no JSON row: it is not UTF-8"
            except RecursionError:
                unfit[place] = "no JSON row: it is nested too deep"
            except (ValueError, OverflowError, TypeError, InvalidInput) as error:
                unfit[place] = str(error)
            else:
                fit.setdefault(shapes, {})[place] = row
        groups = [
            Group([self._column(feed, list(rows.values())) for feed in self._feeds], list(rows))
            for rows in fit.values()
        ]
        return Decoded(groups, ids, unfit)

    def _id(self, row: tuple[Any, ...]) -> str | None:
        return None if self._id_at is None else message_id(row[self._id_at])

    def _column(self, feed: _Feed, rows: Sequence[tuple[Any, ...]]) -> Tensor:
        """The input of these rows. Raises InvalidInput, which is told of one row only."""
        kind = DATATYPES[feed.spec.datatype]
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
        if kind.kind != "float":
            self._refuse_missing(feed, cells)
        array = _strings(cells) if kind.kind == "bytes" else _numbers(feed, cells, kind.kind)
        if kind.kind == "float":
            array = self._floats(feed, array, rows)
        shape = (len(rows), *feed.spec.shape[1:])
        if not feed.stacked and feed.spec.shape[1:] == (1,):
            array = array.reshape(len(rows), 1)
        if array.ndim != len(shape) or any(
            want not in (-1, came) for want, came in zip(shape, array.shape, strict=True)
        ):
            wanted = list(feed.spec.shape[1:])
            raise InvalidInput(
                f"field {feed.fields[0]!r}: lists of shape {wanted} wanted, {list(array.shape[1:])} came"
            )
        return Tensor(feed.spec.name, feed.spec.datatype, array.shape, values=array)

    def _floats(self, feed: _Feed, array: Array, rows: Sequence[tuple[Any, ...]]) -> Array:
        if not self._nan and np.isnan(array).any():  # JSON has no NaN: it was a null, or was not there
            for row in rows:
                self._refuse_missing(feed, [[row[place] for place in feed.places]])
            raise InvalidInput(f"field {feed.fields[0]!r}: a number is missing in its list")
        dtype = DATATYPES[feed.spec.datatype].dtype
        if dtype == array.dtype:
            return array
        with np.errstate(over="ignore"):
            narrow = array.astype(dtype)
        if not np.array_equal(np.isinf(narrow), np.isinf(array)):
            raise InvalidInput(f"a number does not fit {feed.spec.datatype}, which {_which(feed)} is of")
        return narrow

    def _refuse_missing(self, feed: _Feed, cells: Sequence[Any]) -> None:
        for cell in cells:
            values = cell if isinstance(cell, list | tuple) and feed.stacked else [cell]
            for field, value in zip(feed.fields, values, strict=True):
                if value is None:
                    raise InvalidInput(f"field {field!r} is missing; {feed.spec.datatype} is wanted")


def _which(feed: _Feed) -> str:
    return f"field {feed.fields[0]!r}" if len(feed.fields) == 1 else f"input {feed.spec.name!r}"


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
    element = _KINDS[DATATYPES[spec.datatype].kind]
    inner = spec.shape[1:]
    if not whole or inner in ((), (1,)):
        return element
    for _ in inner:
        element = list.__class_getitem__(element)
    return element


def _strings(cells: Sequence[Any]) -> Array:
    """Text as an object array of bytes, nested as it came."""
    depth, inner = 1, cells[0] if cells else None
    while isinstance(inner, list | tuple):
        depth, inner = depth + 1, inner[0] if inner else None
    texts = np.array(cells, dtype=object)
    if texts.ndim != depth:
        raise InvalidInput("lists of unequal lengths came where a table of text is wanted")
    flat = np.empty(texts.size, dtype=object)
    flat[:] = [text.encode() for text in texts.ravel().tolist()]
    return flat.reshape(texts.shape)


def _numbers(feed: _Feed, cells: Sequence[Any], kind: str) -> Array:
    dtype = np.dtype(np.float64) if kind == "float" else DATATYPES[feed.spec.datatype].dtype
    try:
        return np.array(cells, dtype=dtype)
    except OverflowError:
        raise InvalidInput(f"a number does not fit {feed.spec.datatype}, which {_which(feed)} is of") from None
    except ValueError:
        raise InvalidInput(f"{_which(feed)}: lists of unequal lengths came, a table of numbers is wanted") from None


def message_id(value: Any) -> str | None:
    """The id that a payload gives itself. Raises InvalidInput if it cannot be one."""
    if value is None or type(value) is str:
        return value or None
    if type(value) is int:
        return str(value)
    raise InvalidInput(f"field 'id': text or a whole number is wanted, {msgspec.json.encode(value).decode()[:80]} came")
