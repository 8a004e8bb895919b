"""Record batches into a table of PostgreSQL, by COPY of text; and a whole table back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from octoserve.connectors.arrow import DataType, RecordBatch, Schema, pyarrow
from octoserve.connectors.postgres import blocks, described
from octoserve.core.errors import SettingsError

ROWS = 50_000
"""Of a table that is read back, at a time."""


def columns_of(schema: Schema) -> str:
    """What `create table` takes. Raises SettingsError for a column that PostgreSQL has no type for here."""
    parts = []
    for field in schema:
        sql = _sql_type(field.type)
        if not sql:
            raise SettingsError(
                f"sink: column {field.name} of type {field.type} cannot be written to PostgreSQL; leave it out, or "
                "write Parquet"
            )
        parts.append(f"{quoted_column(field.name)} {sql}{'' if field.nullable else ' not null'}")
    return ", ".join(parts)


def quoted_column(name: str) -> str:
    """A column's name as SQL has it; a dot in it is its own."""
    return '"' + name.replace('"', '""') + '"'


def _sql_type(type_: DataType) -> str:
    types = pyarrow().types
    if types.is_dictionary(type_):
        return _sql_type(type_.value_type)
    if types.is_list(type_) or types.is_fixed_size_list(type_) or types.is_large_list(type_):
        inner = type_.value_type
        plain = types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner)
        return f"{_sql_type(inner)}[]" if plain else ""
    if types.is_decimal(type_):
        return f"numeric({type_.precision}, {type_.scale})"
    if types.is_timestamp(type_):
        return "timestamptz" if type_.tz else "timestamp"
    names = {
        "bool": "boolean", "int8": "smallint", "uint8": "smallint", "int16": "smallint", "uint16": "integer",
        "int32": "integer", "uint32": "bigint", "int64": "bigint", "uint64": "numeric(20)", "halffloat": "real",
        "float": "real", "double": "double precision", "string": "text", "large_string": "text", "date32[day]": "date",
    }  # fmt: skip
    return names.get(str(type_), "")


def csv_of(batch: RecordBatch) -> bytes:
    """As `copy ... from stdin (format csv)` takes it: nulls are empty, empty texts are quoted."""
    pa, writer = pyarrow(), pyarrow("csv")
    plain = pa.table([_plain(column) for column in batch.columns], names=[f"c{i}" for i in range(batch.num_columns)])
    out = pa.BufferOutputStream()
    writer.write_csv(plain, out, writer.WriteOptions(include_header=False))
    return bytes(out.getvalue())


def _plain(column: Any) -> Any:
    """Lists as PostgreSQL's text of arrays, and what CSV has no text for."""
    pa, compute = pyarrow(), pyarrow("compute")
    type_ = column.type
    if pa.types.is_dictionary(type_):
        return _plain(column.dictionary_decode())
    if pa.types.is_float16(type_):
        return column.cast(pa.float32())
    if not (pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_) or pa.types.is_large_list(type_)):
        return column
    inner = type_.value_type
    if pa.types.is_float16(inner):
        column = column.cast(pa.list_(pa.float32()))
    words = column.cast(pa.list_(pa.string()))
    inside = compute.binary_join(
        pa.ListArray.from_arrays(words.offsets, compute.fill_null(words.values, "NULL"), mask=words.is_null())
        if words.null_count
        else pa.ListArray.from_arrays(words.offsets, compute.fill_null(words.values, "NULL")),
        ",",
    )
    return compute.binary_join_element_wise("{", compute.binary_join_element_wise(inside, "}", ""), "")


def tables_of(connection: Any, name: str, names: Sequence[str] | None) -> Iterator[Any]:
    """A whole table, or some of its columns, as pyarrow Tables, in no order. name: as SQL has it."""
    pa = pyarrow()
    wanted = ", ".join(quoted_column(column) for column in names) if names else "*"
    source = f"select {wanted} from {name}"
    columns = described(connection, source)
    chosen = ", ".join(f"{column.sql} as {quoted_column(column.name)}" for column in columns)
    yield pa.schema([(column.name, column.final) for column in columns]).empty_table()
    with connection.cursor().copy(f"copy (select {chosen} from ({source}) q) to stdout (format csv)") as stream:
        for block in blocks(stream, columns, ROWS):
            yield pa.Table.from_batches([block.batch])
