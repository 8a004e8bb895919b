"""Rows by feature name, one a message: JSON, `{"id": "m1", "amount": 12.5, "country": "CH"}`, or a record of a schema.

How fields become inputs is for `row_tensors` to say. What does not fit is refused for that row alone; fields that the
model does not know are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from octoserve.codecs.row_tensors import RowTensors, text_depth
from octoserve.core.errors import InvalidInput
from octoserve.core.signature import Signature
from octoserve.core.tensors import Shape, Tensor

ID = "id"

Read = Callable[[bytes], Mapping[str, Any]]
"""A record's fields, of a payload. Raises InvalidInput."""


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


class JsonRows:
    """A decoder for one signature."""

    def __init__(
        self,
        signature: Signature,
        features: Mapping[str, Sequence[str]] | None = None,
        missing: str = "refuse",
        read: Read | None = None,
    ) -> None:
        """See `RowTensors`. read: where payloads are not JSON. Raises SettingsError."""
        self._what = "no JSON row" if read is None else "no row"
        self._tensors = RowTensors(signature, features, missing)
        types = self._tensors.types
        names_id = ID not in types or types[ID] in (int, str)
        self._id_at = (self.fields.index(ID) if ID in types else len(types)) if names_id else None
        """Of the message's id in a row; None where `id` is a feature that cannot be one."""
        deep = {name: text_depth(type_) for name, type_ in types.items()} if read is not None else {}
        texts = {name: depth for name, depth in deep.items() if depth is not None}
        struct = msgspec.defstruct(
            "Row",
            [(f"f{i}", Any if name in texts else type_ | None, None) for i, (name, type_) in enumerate(types.items())]
            + ([] if ID in types else [("own_id", Any, None)]),
            rename={**{f"f{i}": field for i, field in enumerate(types)}, "own_id": ID},
        )
        if read is None:
            self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(struct).decode
        else:
            self._decode = _of_records(read, struct, texts)

    @property
    def fields(self) -> tuple[str, ...]:
        """What a row is made of."""
        return self._tensors.fields

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Never raises for what a payload holds."""
        try:
            decode, as_tuple = self._decode, msgspec.structs.astuple
            rows = [as_tuple(decode(payload)) for payload in payloads]
            ids = self._ids(rows)
            columns = self._tensors.tensors(rows)
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
                shapes = tuple(tensor.shape for tensor in self._tensors.tensors([row]))
            except msgspec.MsgspecError as error:
                unfit[place] = f"{self._what}: {error}"
            except UnicodeDecodeError:
                unfit[place] = f"{self._what}: it is not UTF-8"
            except RecursionError:
                unfit[place] = f"{self._what}: it is nested too deep"
            except (ValueError, OverflowError, TypeError, InvalidInput) as error:
                unfit[place] = str(error)
            else:
                fit.setdefault(shapes, {})[place] = row
        groups = [Group(self._tensors.tensors(list(rows.values())), list(rows)) for rows in fit.values()]
        return Decoded(groups, ids, unfit)

    def _ids(self, rows: Sequence[tuple[Any, ...]]) -> list[str | None]:
        at = self._id_at
        if at is None:
            return [None] * len(rows)
        own = [row[at] for row in rows]
        return own if set(map(type, own)) == {str} and all(own) else [message_id(value) for value in own]

    def _id(self, row: tuple[Any, ...]) -> str | None:
        return None if self._id_at is None else message_id(row[self._id_at])


def _of_records(read: Read, struct: type[Any], texts: Mapping[str, int]) -> Callable[[bytes], Any]:
    """Rows of records. texts: fields that may hold bytes too, which are not text in a record, and how deep in lists."""

    def decode(payload: bytes) -> Any:
        record = read(payload)
        for name, depth in texts.items():
            value = record.get(name)
            if value is not None:
                _refuse_no_text(name, value, depth)
        return msgspec.convert(record, struct)

    return decode


def _refuse_no_text(name: str, value: Any, depth: int) -> None:
    if not isinstance(value, list if depth else str | bytes):
        wanted = "a list is" if depth else "text or bytes are"
        raise InvalidInput(f"field {name!r}: {wanted} wanted, {type(value).__name__} came")
    if depth:
        for each in value:
            _refuse_no_text(name, each, depth - 1)


def message_id(value: Any) -> str | None:
    """The id that a payload gives itself. Raises InvalidInput if it cannot be one."""
    if value is None or type(value) is str:
        return value or None
    if type(value) is int:
        return str(value)
    raise InvalidInput(f"field 'id': text or a whole number is wanted, {msgspec.json.encode(value).decode()[:80]} came")
