"""JSON lines: an object a line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import msgspec
import numpy as np

from octoserve.connectors import records
from octoserve.connectors.arrow import Array, DataType, RecordBatch, Schema, plain_schema, pyarrow
from octoserve.connectors.files import OutFile
from octoserve.connectors.lines import LineWriter, is_single, is_text, joined, words
from octoserve.connectors.source import Range, Rows, SourceFile
from octoserve.core.errors import InvalidInput, SettingsError

_WORD = rb'"(?:NaN|-?Infinity)"'
_ESCAPED = r'["\\\x00-\x1f]'
"""What a text of JSON does not hold as it is."""


class JsonLines:
    """The format. NaN and the infinities, for which JSON has no number, are the words, read and written."""

    name = "jsonl"
    endings = (".jsonl", ".ndjson")
    text = True

    def inspect(self, file: SourceFile) -> tuple[Schema, list[Range]]:
        """See `TableFormat.inspect`. Types are those of the first records; without any there are no columns."""
        pa = pyarrow()
        found = records.ranges(file, 0, False)
        sample = next(records.blocks(file, 0, found[0].stop, False, records.SAMPLE), None) if found else None
        if sample is None:
            return pa.schema([]), []
        begins = [0, *sample.ends.tolist()]
        for data in itertools.chain(
            [sample.data, _without_words(sample.data)], (sample.data[a:b] for a, b in itertools.pairwise(begins))
        ):
            try:
                return _read(data, None).schema, found
            except pa.ArrowInvalid:
                continue  # else the first record that is one
        raise InvalidInput(f"{file.path} is no JSON lines: an object a line is wanted")

    def read(
        self, file: SourceFile, start: int, stop: int, columns: Sequence[str], schema: Schema, rows: int
    ) -> Iterator[Rows]:
        """See `TableFormat.read`."""
        pa = pyarrow()

        def parse(data: bytes, wanted: Sequence[str]) -> RecordBatch:
            return _read(data, pa.schema([schema.field(name) for name in wanted]))

        for piece in records.blocks(file, start, stop, False, rows):
            yield records.parse(piece, columns, schema, parse)

    def refuse(self, schema: Schema) -> None:
        """See `SinkFormat.refuse`."""
        for field in plain_schema(schema):
            if not _is_value(field.type):
                raise SettingsError(
                    f"column {field.name} of type {field.type} cannot be written as JSON lines, which hold no bytes "
                    "and no maps; leave it out, or write Parquet or Arrow: --sink-format parquet"
                )

    def writer(self, file: OutFile, schema: Schema, group_rows: int, dictionary: Sequence[str]) -> LineWriter:
        """See `SinkFormat.writer`."""
        names = schema.names

        def line(columns: Sequence[Array]) -> Array:
            return joined([_object(names, columns), "\n"], "null")

        return LineWriter(file, schema, b"", line)

    def written(self, schema: Schema) -> Schema:
        """See `SinkFormat.written`."""
        return plain_schema(schema).remove_metadata()

    def table(self, file: BinaryIO, schema: Schema | None, columns: Sequence[str] | None) -> Any:
        """See `SinkFormat.table`."""
        assert schema is not None
        pa = pyarrow()
        wanted = pa.schema([schema.field(name) for name in columns]) if columns is not None else schema
        data = file.read()
        if not data:
            return wanted.empty_table()
        read = _read(data, pa.schema([field.with_type(_readable(field.type)) for field in wanted]))
        arrays = [_parsed(column, field.type) for column, field in zip(read.columns, wanted, strict=True)]
        return pa.Table.from_arrays(arrays, schema=wanted)


def _read(data: bytes, schema: Schema | None) -> RecordBatch:
    pa, reader = pyarrow(), pyarrow("json")
    behavior = "infer"
    if schema is not None:
        behavior = "ignore"
        floats = [msgspec.json.encode(f.name) for f in schema if pa.types.is_floating(_innermost(f.type))]
        if floats:
            data = _as_numbers(data, b"|".join(re.escape(name[1:-1]) for name in floats))
    table = reader.read_json(
        pa.py_buffer(data),
        reader.ReadOptions(use_threads=False, block_size=min(len(data) + 1, records.MOST_BYTES)),
        reader.ParseOptions(explicit_schema=schema, unexpected_field_behavior=behavior),
    )
    return records.one_batch(table if schema is None else table.select(schema.names))


def _as_numbers(data: bytes, names: bytes) -> bytes:
    """Words among the numbers of columns as the parser takes them: without quotes. names: of these, an expression."""
    return _with_words(data, names, lambda value: value.replace(b'"', b""))


def _without_words(data: bytes) -> bytes:
    """For telling types: a word may be a number's or a text, and null is anything's."""
    return _with_words(data, rb'[^"\\]*', lambda value: re.sub(_WORD, b"null", value))


def _with_words(data: bytes, names: bytes, changed: Callable[[bytes], bytes]) -> bytes:
    if b'NaN"' not in data and b'Infinity"' not in data:
        return data
    numbers = rb'("(?:' + names + rb')"\s*:\s*)((?:[\[\]\d.eE+\-,\s]|null|' + _WORD + rb")+)"
    return re.sub(numbers, lambda found: found[1] + changed(found[2]), data)


def _innermost(type_: DataType) -> DataType:
    while _is_list(type_):
        type_ = type_.value_type
    return type_


def _is_list(type_: DataType) -> bool:
    types = pyarrow().types
    return bool(types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_))


def _is_value(type_: DataType, inside: bool = False) -> bool:
    """Of a plain type: whether JSON has it, and what it says is read again."""
    types = pyarrow().types
    if types.is_struct(type_):
        return all(_is_value(field.type, True) for field in type_)
    if _is_list(type_):
        return _is_value(type_.value_type, True)
    return is_single(type_) and not (inside and types.is_time(type_))


def _value(column: Array) -> Array:
    """A column as texts of JSON, null where it is null."""
    types = pyarrow().types
    type_ = column.type
    if types.is_struct(type_):
        return _where(column, _object([field.name for field in type_], column.flatten()))
    if _is_list(type_):
        return _where(column, _list(column))
    said = words(column)
    if is_text(type_):
        return _quoted(said)
    bare = types.is_integer(type_) or types.is_boolean(type_) or types.is_decimal(type_) or types.is_duration(type_)
    if bare or types.is_null(type_):
        return said
    compute = pyarrow("compute")
    if not types.is_floating(type_):  # times and dates
        return compute.binary_join_element_wise('"', said, '"', "")
    finite = compute.is_finite(column)
    if compute.all(finite).as_py() is not False:
        return said
    return compute.if_else(finite, said, compute.binary_join_element_wise('"', said, '"', ""))


def _where(column: Array, texts: Array) -> Array:
    return pyarrow("compute").if_else(column.is_valid(), texts, None) if column.null_count else texts


def _object(names: Sequence[str], columns: Sequence[Array]) -> Array:
    pieces: list[Any] = []
    for name, column in zip(names, columns, strict=True):
        pieces += [f"{',' if pieces else '{'}{msgspec.json.encode(name).decode()}:", _value(column)]
    return joined([*pieces, "}"], "null")


def _list(column: Array) -> Array:
    pa, compute = pyarrow(), pyarrow("compute")
    lengths = compute.fill_null(compute.list_value_length(column), 0).cast(pa.int64()).to_numpy(zero_copy_only=False)
    places = np.concatenate([[0], np.cumsum(lengths)])
    inside = compute.fill_null(_value(column.flatten()), "null")  # what lies under a null list is left out by it
    return joined(["[", compute.binary_join(pa.LargeListArray.from_arrays(places, inside), ","), "]"], "")


def _quoted(said: Array) -> Array:
    """Texts in quotes. Those that need no escapes, as most do, are not looked at one by one."""
    pa, compute = pyarrow(), pyarrow("compute")
    if compute.any(compute.match_substring_regex(said, _ESCAPED)).as_py():
        encode: Callable[[str], bytes] = msgspec.json.encode
        return pa.array([None if word is None else encode(word).decode() for word in said.to_pylist()], pa.string())
    return compute.binary_join_element_wise('"', said, '"', "")


def _parsed(column: Array, type_: DataType) -> Array:
    pa = pyarrow()
    if pa.types.is_time(type_):  # Arrow makes times of instants, and not of texts
        column = pyarrow("compute").binary_join_element_wise("1970-01-01 ", column, "").cast(pa.timestamp(type_.unit))
    return column.cast(type_)


def _readable(type_: DataType) -> DataType:
    """What the parser makes of a plain type's text; a cast does the rest."""
    pa = pyarrow()
    types = pa.types
    if types.is_struct(type_):
        return pa.struct([field.with_type(_readable(field.type)) for field in type_])
    if _is_list(type_):
        return pa.list_(pa.field("item", _readable(type_.value_type)))
    if types.is_float16(type_):
        return pa.float32()
    if types.is_date(type_) or types.is_time(type_):
        return pa.string()
    return pa.int64() if types.is_duration(type_) else type_
