"""CSV and TSV: a header, quotes as in RFC 4180, UTF-8."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from octoserve.connectors import records
from octoserve.connectors.arrow import Array, RecordBatch, Schema, plain_schema, pyarrow
from octoserve.connectors.files import OutFile
from octoserve.connectors.lines import LineWriter, is_single, is_text, joined, words
from octoserve.connectors.opening import opened
from octoserve.connectors.source import Range, Rows, SourceFile
from octoserve.core.errors import InvalidInput, SettingsError

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
        sample = next(records.blocks(file, start, found[0].stop, True, records.SAMPLE), None) if found else None
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
        return records.one_batch(table)

    def refuse(self, schema: Schema) -> None:
        """See `SinkFormat.refuse`."""
        names: list[str] = []
        for field in plain_schema(schema):
            leaves = _leaves(field)
            if not leaves or not all(is_single(leaf.type) for leaf in leaves):
                raise SettingsError(
                    f"column {field.name} of type {field.type} cannot be written as {self.name}, whose fields hold "
                    "neither lists of varying length nor bytes; leave it out, or write another format: "
                    "--sink-format jsonl, arrow or parquet"
                )
            names += [leaf.name for leaf in leaves]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SettingsError(
                f"column {twice[0]!r} would be written twice: a list is spread over columns NAME_0, NAME_1, ...; give "
                "predictions a prefix, such as --prefix predicted_"
            )

    def writer(self, file: OutFile, schema: Schema, group_rows: int, dictionary: Sequence[str]) -> LineWriter:
        """See `SinkFormat.writer`."""
        delimiter, head = self._delimiter, io.StringIO()
        names = [leaf.name for field in plain_schema(schema) for leaf in _leaves(field)]
        csv.writer(head, delimiter=delimiter, lineterminator="\n").writerow(names)

        def line(columns: Sequence[Array]) -> Array:
            pieces: list[Any] = []
            for column in columns:
                for leaf in _spread(column):
                    pieces += [delimiter, _field_of(leaf)] if pieces else [_field_of(leaf)]
            return joined([*pieces, "\n"], "")

        return LineWriter(file, schema, head.getvalue().encode(), line)

    def written(self, schema: Schema) -> Schema:
        """See `SinkFormat.written`."""
        return plain_schema(schema).remove_metadata()

    def table(self, file: BinaryIO, schema: Schema | None, columns: Sequence[str] | None) -> Any:
        """See `SinkFormat.table`; what was spread is a list again."""
        assert schema is not None
        pa, reader = pyarrow(), pyarrow("csv")
        wanted = [schema.field(name) for name in (columns if columns is not None else schema.names)]
        leaves = [leaf for field in wanted for leaf in _leaves(field)]
        data = file.read()
        types = {leaf.name: pa.float32() if pa.types.is_float16(leaf.type) else leaf.type for leaf in leaves}
        found = reader.read_csv(
            pa.py_buffer(data),
            reader.ReadOptions(use_threads=False, block_size=min(len(data) + 1, records.MOST_BYTES)),
            reader.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
            reader.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=[""], strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )  # fmt: skip
        batch = records.one_batch(found)
        left = iter(batch.column(leaf.name).cast(leaf.type) for leaf in leaves)
        return pa.Table.from_arrays([_gathered(field.type, left) for field in wanted], schema=pa.schema(wanted))


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


def _leaves(field: Any) -> list[Any]:
    """The columns of text that a column is spread over, as fields."""
    if not pyarrow().types.is_fixed_size_list(field.type):
        return [field]
    item = field.type.value_field
    return [leaf for i in range(field.type.list_size) for leaf in _leaves(item.with_name(f"{field.name}_{i}"))]


def _spread(column: Array) -> list[Array]:
    """The same of its values."""
    if not pyarrow().types.is_fixed_size_list(column.type):
        return [column]
    element = pyarrow("compute").list_element
    return [leaf for i in range(column.type.list_size) for leaf in _spread(element(column, i))]


def _gathered(type_: Any, leaves: Iterator[Array]) -> Array:
    """And back: where all of a list is null, it is."""
    pa = pyarrow()
    if not pa.types.is_fixed_size_list(type_):
        return next(leaves)
    items = [_gathered(type_.value_type, leaves) for _ in range(type_.list_size)]
    rows = len(items[0])
    places = np.arange(rows * len(items)).reshape(len(items), rows).T.ravel()
    values = pa.concat_arrays(items).take(pa.array(places))
    missing = np.all([item.is_null().to_numpy(zero_copy_only=False) for item in items], axis=0)
    return pa.FixedSizeListArray.from_arrays(values, type=type_, mask=pa.array(missing) if missing.any() else None)


def _field_of(column: Array) -> Array:
    """Texts in quotes, always: an empty one is none that is missing, and "007" no number."""
    said = words(column)
    if not is_text(column.type):
        return said
    compute = pyarrow("compute")
    return compute.binary_join_element_wise('"', compute.replace_substring(said, '"', '""'), '"', "")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
