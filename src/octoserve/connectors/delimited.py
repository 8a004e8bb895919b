"""CSV and TSV: a header, quotes as in RFC 4180, UTF-8."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from octoserve.connectors import records
from octoserve.connectors.arrow import RecordBatch, Schema, pyarrow
from octoserve.connectors.opening import opened
from octoserve.connectors.source import Range, Rows, SourceFile
from octoserve.core.errors import InvalidInput

SAMPLE = 1000
"""Records that the columns' types are told from."""
MOSTLY_NUMBERS = b"octoserve.mostly_numbers"
"""In the metadata of a text column most of whose first values are numbers: a model may take them as such."""


class Delimited:
    """The format."""

    text = True

    def __init__(self, name: str, endings: Sequence[str], delimiter: str) -> None:
        self.name = name
        self.endings = tuple(endings)
        self._delimiter = delimiter

    def inspect(self, file: SourceFile) -> tuple[Schema, list[Range]]:
        """See `TableFormat.inspect`. Types are those of the first records."""
        names, start = self._header(file)
        found = records.ranges(file, start, True)
        sample = next(records.blocks(file, start, found[0].stop, True, SAMPLE), None) if found else None
        pa = pyarrow()
        if sample is None:
            return pa.schema([(name, pa.null()) for name in names]), found
        strings = pa.schema([(name, pa.string()) for name in names])
        words = records.parse(sample, names, strings, lambda data, wanted: self._parse(data, names, wanted, strings))
        fit = [i for i in range(words.batch.num_rows) if i not in words.unfit]
        if not fit:
            raise InvalidInput(f"{file.path} is no {self.name}: no record has the header's {len(names)} fields")
        begins = [0, *sample.ends.tolist()]
        kept = b"".join(sample.data[begins[i] : begins[i + 1]] for i in fit)
        looks = self._parse(kept, names, names, None).schema
        return pa.schema([_field(looks.field(name), words.batch.column(name).to_pylist()) for name in names]), found

    def read(
        self, file: SourceFile, start: int, stop: int, columns: Sequence[str], schema: Schema, rows: int
    ) -> Iterator[Rows]:
        """See `TableFormat.read`."""
        names, _ = self._header(file)

        def parse(data: bytes, wanted: Sequence[str]) -> RecordBatch:
            return self._parse(data, names, wanted, schema)

        for piece in records.blocks(file, start, stop, True, rows):
            yield records.parse(piece, columns, schema, parse)

    def _header(self, file: SourceFile) -> tuple[list[str], int]:
        """The columns' names, and the byte behind the header."""
        with opened(file) as raw:
            start = 3 if raw.read(3) == b"\xef\xbb\xbf" else 0
        first = next(records.pieces(file, start, None, True, 64 << 10), None)
        if first is None:
            raise InvalidInput(f"{file.path} is no {self.name}: it has no header")
        end = int(first.ends[0])
        try:
            (names,) = csv.reader([first.data[:end].decode().strip("\r\n")], delimiter=self._delimiter)
        except (UnicodeDecodeError, ValueError, csv.Error) as error:
            raise InvalidInput(f"{file.path} is no {self.name}: its header cannot be read: {error}") from None
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidInput(f"{file.path}: the column {twice[0]!r} is there twice")
        return names, first.at + end

    def _parse(self, data: bytes, names: Sequence[str], wanted: Sequence[str], schema: Schema | None) -> RecordBatch:
        pa, reader = pyarrow(), pyarrow("csv")
        types = {name: schema.field(name).type for name in wanted} if schema is not None else None
        table = reader.read_csv(
            pa.py_buffer(data),
            reader.ReadOptions(use_threads=False, column_names=list(names), block_size=len(data) + 1),
            reader.ParseOptions(delimiter=self._delimiter, newlines_in_values=b'"' in data),
            reader.ConvertOptions(column_types=types, include_columns=list(wanted), strings_can_be_null=False),
        )
        return _one_batch(table)


def _field(field: Any, words: Sequence[str | None]) -> Any:
    """The column's type. What has numbers with leading zeros is text, or they were lost."""
    pa = pyarrow()
    if pa.types.is_integer(field.type) and any(
        w and len(w.lstrip("-")) > 1 and w.lstrip("-")[0] in "0+" for w in words
    ):
        field = field.with_type(pa.string())
    if not pa.types.is_string(field.type):
        return field
    said = [word for word in words if word]
    numbers = sum(_is_number(word) for word in said)
    return field.with_metadata({MOSTLY_NUMBERS: b"yes"}) if said and 2 * numbers >= len(said) else field


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


class JsonLines:
    """JSON lines: an object a line."""

    name = "jsonl"
    endings = (".jsonl", ".ndjson")
    text = True

    def inspect(self, file: SourceFile) -> tuple[Schema, list[Range]]:
        """See `TableFormat.inspect`. Types are those of the first records."""
        pa = pyarrow()
        found = records.ranges(file, 0, False)
        sample = next(records.blocks(file, 0, found[0].stop, False, SAMPLE), None) if found else None
        if sample is None:
            raise InvalidInput(f"{file.path} has no records, so that nothing tells its columns")
        try:
            return _read_json(sample.data, None).schema, found
        except pa.ArrowInvalid:
            begins = [0, *sample.ends.tolist()]
            for begin, end in itertools.pairwise(begins):  # the first record that is one
                try:
                    return _read_json(sample.data[begin:end], None).schema, found
                except pa.ArrowInvalid:
                    continue
            raise InvalidInput(f"{file.path} is no JSON lines: an object a line is wanted") from None

    def read(
        self, file: SourceFile, start: int, stop: int, columns: Sequence[str], schema: Schema, rows: int
    ) -> Iterator[Rows]:
        """See `TableFormat.read`."""
        pa = pyarrow()

        def parse(data: bytes, wanted: Sequence[str]) -> RecordBatch:
            return _read_json(data, pa.schema([schema.field(name) for name in wanted]))

        for piece in records.blocks(file, start, stop, False, rows):
            yield records.parse(piece, columns, schema, parse)


def _read_json(data: bytes, schema: Schema | None) -> RecordBatch:
    pa, reader = pyarrow(), pyarrow("json")
    behavior = "infer" if schema is None else "ignore"
    table = reader.read_json(
        pa.py_buffer(data),
        reader.ReadOptions(use_threads=False, block_size=len(data) + 1),
        reader.ParseOptions(explicit_schema=schema, unexpected_field_behavior=behavior),
    )
    return _one_batch(table if schema is None else table.select(schema.names))


def _one_batch(table: Any) -> RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pyarrow().RecordBatch.from_pylist([], schema=table.schema)
