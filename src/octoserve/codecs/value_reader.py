"""Requests whose values the version's signature explains, in the forms that protocols have for them.

*Rows*: an array of what one row is: an object by field or by input name, the values of all fields in order, or the bare
value of the only input. *A table*: column names, and an array of arrays. *Columns*: each input (or field) whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octoserve.codecs.json_values import (
    LENIENT,
    InputReader,
    Pair,
    carefully,
    element,
    parsed_all,
    shown,
    struct_of,
    unwrapped,
)
from octoserve.codecs.large_json import LARGE
from octoserve.codecs.row_tensors import KINDS, RowTensors, lists_of
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, SettingsError, TooLarge
from octoserve.core.signature import Signature
from octoserve.core.tensors import Buffer, Tensor

_FIRST = re.compile(rb"\s*\[\s*(.)", re.DOTALL)
_B64 = re.compile(rb'[\s\[]*\{\s*"b64"\s*:')
_MAX_COLUMN_SETS = 64
_MAX_RECORDS = 4 << 20
"""Bytes of rows whose names mean nothing: each becomes a dict, which takes many times its text."""

Row = tuple[Any, ...]


class ValueReader:
    """A reader for one signature. A form's decoders are made when it first comes."""

    def __init__(
        self, signature: Signature, features: Mapping[str, Sequence[str]] | None = None, missing: str = "refuse"
    ) -> None:
        """features, missing: see `RowTensors`."""
        self.signature = signature
        self._features = dict(features or {})
        self._missing = missing
        self._inputs = [InputReader(spec) for spec in signature.inputs]
        self._by_field: _Fields | None = None
        self._by_input: _Fields | None = None
        self._whole: Pair | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """What a row is made of. Raises InvalidInput where the model takes no rows."""
        return self._rows_by_field().names

    @property
    def nameless(self) -> bool:
        """Whether the only input is a table whose columns the model has no names for."""
        specs = self.signature.inputs
        return not self._features and len(specs) == 1 and len(specs[0].shape) <= 2

    def _rows_by_field(self) -> _Fields:
        if self._by_field is None:
            self._by_field = self._fields_of(self._features)
        return self._by_field

    def _fields_of(self, features: Mapping[str, Sequence[str]]) -> _Fields:
        try:
            return _Fields(RowTensors(self.signature, features, self._missing))
        except SettingsError as error:
            raise InvalidInput(f"{error}; send its inputs whole, or the Open Inference Protocol") from None

    def _is_bytes(self, text: Buffer) -> bool:
        """Whether an object is the only input's element in Base64."""
        return len(self._inputs) == 1 and self._inputs[0].kind == "bytes" and _B64.match(text) is not None

    # --- rows -------------------------------------------------------------------------------------------

    def rows(self, text: Buffer, what: str) -> list[Tensor]:
        """An array of rows. Raises InvalidInput, TooLarge. what: the array's name, for errors."""
        return carefully(self._rows, text, what)

    def _rows(self, text: Buffer, what: str) -> list[Tensor]:
        first = _FIRST.match(text)
        if first is None:
            raise InvalidInput(f"{what}: an array of rows is wanted, {shown(text)} came")
        if first[1] == b"{" and not self._is_bytes(text):
            return self._objects(text, what)
        if len(self._inputs) == 1 and not self._features:
            return [self._inputs[0].read(text, what)]
        fields = self._rows_by_field()
        return fields.tensors(fields.tuples(fields.names, text, what))

    def _objects(self, text: Buffer, what: str) -> list[Tensor]:
        fields = self._rows_by_field()
        rows = fields.objects(text, what)
        if _nothing(rows[0]):  # names that are not the fields'
            if self._features:
                self._by_input = self._by_input or self._fields_of({})
                came = self._by_input.objects(text, what)
                if not _nothing(came[0]):
                    return self._by_input.tensors(came)
            elif self.nameless:
                return [self._records(text, what)]
            raise InvalidInput(f"{what}: the first row has none of the fields {', '.join(fields.names)}")
        return fields.tensors(rows)

    def _records(self, text: Buffer, what: str) -> Tensor:
        """Objects whose names mean nothing to the model: their values are its columns, as they stand."""
        if len(text) > _MAX_RECORDS:
            raise TooLarge(f"{what}: {len(text)} bytes of named rows for a model without names; send arrays")
        only = self._inputs[0]
        of_dicts = [lists_of(dict.__class_getitem__((str, kinds[only.kind])), 1) for kinds in (KINDS, LENIENT)]
        pair = Pair(*of_dicts)
        records, _ = pair.decode(text, what)
        names = list(records[0])
        if any(record.keys() != records[0].keys() for record in records):
            raise InvalidInput(f"{what}: rows with the same names are wanted; the first has {', '.join(names)}")
        return only.tensor(only.plain([[record[name] for name in names] for record in records]))

    def table(self, columns: Sequence[str], text: Buffer, what: str) -> list[Tensor]:
        """An array of arrays, whose columns have these names. Raises InvalidInput, TooLarge."""
        if _FIRST.match(text) is None:
            raise InvalidInput(f"{what}: an array of rows is wanted, {shown(text)} came")
        return carefully(lambda text, what: self._table(columns, text, what), text, what)

    def _table(self, columns: Sequence[str], text: Buffer, what: str) -> list[Tensor]:
        if self.nameless and self.signature.inputs[0].name not in columns:
            return [self._inputs[0].read(text, what)]
        fields = self._rows_by_field()
        return fields.tensors(fields.ordered(columns, fields.tuples(tuple(columns), text, what), what))

    def texts(self, columns: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> list[Tensor]:
        """Rows of text, as CSV has them; without columns they are the fields in order. Raises InvalidInput."""
        if self.nameless and (columns is None or self.signature.inputs[0].name not in columns):
            only = self._inputs[0]
            values = [parsed_all(row, only.kind, only.spec.name, i) for i, row in enumerate(rows, 1)]
            if any(None in row for row in values):
                raise InvalidInput(f"input {only.spec}: a value is missing")
            return [only.tensor(values if len(only.spec.shape) == 2 else only.plain(values))]
        fields = self._rows_by_field()
        columns = tuple(columns or fields.names)
        _once(fields.names, columns)
        for i, row in enumerate(rows, 1):
            if len(row) != len(columns):
                raise InvalidInput(f"row {i}: {len(columns)} values are wanted ({', '.join(columns)}), {len(row)} came")
        places = [columns.index(name) if name in columns else -1 for name in fields.names]
        if max(places) < 0:
            raise InvalidInput(f"columns {', '.join(fields.names)} are wanted, {', '.join(columns)} came")
        cells = list(zip(*rows, strict=True)) or [()] * len(columns)
        parsed = [
            [None] * len(rows) if place < 0 else parsed_all(cells[place], kind, name)
            for place, kind, name in zip(places, fields.kinds, fields.names, strict=True)
        ]
        return fields.tensors(list(zip(*parsed, strict=True)))

    # --- columns ----------------------------------------------------------------------------------------

    def columns(self, text: Buffer, what: str) -> list[Tensor]:
        """The value of the only input, or an object of inputs, or of fields with their columns.

        Raises InvalidInput, TooLarge.
        """
        if bytes(text[:64]).lstrip()[:1] == b"{" and not self._is_bytes(text):
            return carefully(self._named_columns, text, what)
        if len(self._inputs) == 1:
            return carefully(lambda text, what: [self._inputs[0].read(text, what)], text, what)
        wanted = ", ".join(spec.name for spec in self.signature.inputs)
        raise InvalidInput(f"{what}: an object of {wanted} is wanted, {shown(text)} came")

    def _named_columns(self, text: Buffer, what: str) -> list[Tensor]:
        if self._whole is None:
            names = [spec.name for spec in self.signature.inputs]
            self._whole = Pair(*(struct_of(names, [one.types[i] for one in self._inputs]) for i in (0, 1)))
        came, lenient = self._whole.decode(text, what)
        values = msgspec.structs.astuple(came)
        if _nothing(values) and self._features:
            fields = self._rows_by_field()
            return fields.tensors(fields.transposed(text, what))
        for spec, value in zip(self.signature.inputs, values, strict=True):
            if value is None:
                raise InvalidInput(f"{what}: input {spec} is missing")
        return [
            one.tensor(one.plain(value) if lenient else value) for one, value in zip(self._inputs, values, strict=True)
        ]


class _Fields:
    """Rows by field name."""

    def __init__(self, rows: RowTensors) -> None:
        self.tensors = rows.tensors
        self.names = rows.fields
        self._elements = [kind in KINDS.values() for kind in rows.types.values()]
        self._strict = [_or_list(kind, rows, name) for name, kind in rows.types.items()]
        self._lists = any(kind is not own for kind, own in zip(self._strict, rows.types.values(), strict=True))
        """Whether a value may come as `[v]`: as it does where a client follows an input's shape."""
        self.kinds = [DATATYPES[rows.specs[name].datatype].kind for name in self.names]
        self._lenient = [self._loosened(i, rows.specs[name].shape) for i, name in enumerate(self.names)]
        row = [struct_of(self.names, types) for types in (self._strict, self._lenient)]
        self._objects = Pair(lists_of(row[0], 1), lists_of(row[1], 1))
        self._tables: dict[tuple[str, ...], Pair] = {}

    def _loosened(self, at: int, shape: Sequence[int]) -> Any:
        loose = LENIENT[self.kinds[at]]
        if self._elements[at]:
            return loose | lists_of(loose, 1)
        return lists_of(loose, len(shape) - 1)

    def objects(self, text: Buffer, what: str) -> list[Row]:
        """An array of objects, at least one."""
        if len(text) > LARGE and bytes(text).count(b"{") * (len(self.names) + 4) > len(text):
            raise TooLarge(f"{what}: more rows than this many bytes can fill; send fewer at a time")
        came, lenient = self._objects.decode(text, what)
        rows = list(map(msgspec.structs.astuple, came))
        if lenient or (self._lists and list in map(type, rows[0])):
            return [self._plain(row) for row in rows]
        return rows

    def tuples(self, columns: tuple[str, ...], text: Buffer, what: str) -> list[Row]:
        """An array of arrays, an element a column; columns that are no fields may hold anything."""
        pair = self._tables.get(columns)
        if pair is None:
            if len(self._tables) >= _MAX_COLUMN_SETS:
                self._tables.clear()
            pair = self._tables[columns] = Pair(*(self._table(columns, t) for t in (self._strict, self._lenient)))
        came, lenient = pair.decode(text, what)
        if not lenient and not self._lists:
            return came  # type: ignore[no-any-return]
        places = [self.names.index(name) if name in self.names else -1 for name in columns]
        return [
            tuple([self._plain_value(value, at) if at >= 0 else value for value, at in zip(row, places, strict=True)])
            for row in came
        ]

    def _table(self, columns: Sequence[str], types: Sequence[Any]) -> Any:
        by_name = dict(zip(self.names, types, strict=True))
        cells = tuple(by_name[name] | None if name in by_name else Any for name in columns)
        return lists_of(tuple.__class_getitem__(cells), 1)

    def ordered(self, columns: Sequence[str], rows: list[Row], what: str) -> list[Row]:
        """Rows with the columns in the fields' order, None where there is none of a field's name."""
        if tuple(columns) == self.names:
            return rows
        _once(self.names, columns)
        places = [columns.index(name) if name in columns else -1 for name in self.names]
        if max(places) < 0:
            raise InvalidInput(f"{what}: columns {', '.join(self.names)} are wanted, {', '.join(columns)} came")
        return [tuple([None if place < 0 else row[place] for place in places]) for row in rows]

    def transposed(self, text: Buffer, what: str) -> list[Row]:
        """An object of columns, each an array, as rows."""
        columns = (
            struct_of(self.names, [lists_of(kind | None, 1) for kind in t]) for t in (self._strict, self._lenient)
        )
        came, lenient = Pair(*columns).decode(text, what)
        values = msgspec.structs.astuple(came)
        rows = max((len(column) for column in values if column is not None), default=0)
        for name, column in zip(self.names, values, strict=True):
            if column is not None and len(column) != rows:
                raise InvalidInput(f"{what}: field {name!r} has {len(column)} values, another has {rows}")
        table = list(zip(*([None] * rows if column is None else column for column in values), strict=True))
        return [self._plain(row) for row in table] if lenient or self._lists else table

    def _plain(self, row: Row) -> Row:
        return tuple([self._plain_value(value, at) for at, value in enumerate(row)])

    def _plain_value(self, value: Any, at: int) -> Any:
        if value is None or self._elements[at]:
            return unwrapped(value, self.kinds[at], self.names[at])
        return _deep(value, self.kinds[at])


def _or_list(kind: Any, rows: RowTensors, name: str) -> Any:
    """The type of a field, with `[v]` for v where its input is named by it and has the shape [rows, 1]."""
    spec = rows.specs[name]
    return kind | lists_of(kind, 1) if name == spec.name and spec.shape[1:] == (1,) else kind


def _once(fields: Sequence[str], columns: Sequence[str]) -> None:
    """Raises InvalidInput for two columns of one field's name: which is meant cannot be known."""
    if len(set(columns)) < len(columns):
        twice = [name for name in fields if columns.count(name) > 1]
        if twice:
            raise InvalidInput(f"column {twice[0]!r} came twice")


def _deep(value: Any, kind: str) -> Any:
    return [_deep(item, kind) for item in value] if type(value) is list else element(value, kind)


def _nothing(row: Sequence[Any]) -> bool:
    return all(value is None for value in row)
