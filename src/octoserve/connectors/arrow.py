"""The one way to pyarrow: imported when a table is first touched, and its absence says what to install."""

from __future__ import annotations

import importlib
from typing import Any

from octoserve.core.errors import SettingsError

RecordBatch = Any
Schema = Any
DataType = Any
Array = Any
"""pyarrow ships no types that strict checking could use; these names say what is meant."""


def pyarrow(part: str = "") -> Any:
    """The library, or a part of it (`parquet`, `csv`, ...). Raises SettingsError."""
    try:
        return importlib.import_module(f"pyarrow.{part}" if part else "pyarrow")
    except ImportError:
        raise SettingsError("tables need pyarrow, which is not installed: pip install 'octoserve[batch]'") from None


def version() -> str:
    """Of the library: what it writes may differ from one to the next."""
    return str(pyarrow().__version__)


def width_of(type_: DataType) -> int:
    """Bytes of one value; 0 where values differ in size."""
    if pyarrow().types.is_fixed_size_list(type_):
        return int(type_.list_size) * width_of(type_.value_type)
    try:
        return max(1, int(type_.bit_width) // 8)
    except ValueError:
        return 0


def fixed_width(schema: Schema) -> int:
    """Bytes of a row, of the columns whose values are of one size."""
    return sum(width_of(field.type) for field in schema)


def plain_type(type_: DataType) -> DataType:
    """The same values without a dictionary, an extension's name or a view: what every reader understands."""
    pa = pyarrow()
    types = pa.types
    if isinstance(type_, pa.BaseExtensionType):
        return plain_type(type_.storage_type)
    if types.is_dictionary(type_):
        return plain_type(type_.value_type)
    if str(type_) in ("string_view", "binary_view"):
        return pa.string() if str(type_) == "string_view" else pa.binary()
    if types.is_fixed_size_list(type_):
        return pa.list_(type_.value_field.with_type(plain_type(type_.value_type)), type_.list_size)
    if types.is_list(type_) or types.is_large_list(type_):
        make = pa.list_ if types.is_list(type_) else pa.large_list
        return make(type_.value_field.with_type(plain_type(type_.value_type)))
    if types.is_struct(type_):
        return pa.struct([field.with_type(plain_type(field.type)) for field in type_])
    return type_


def plain_schema(schema: Schema) -> Schema:
    """Of every column; with the schema's own metadata."""
    return pyarrow().schema([f.with_type(plain_type(f.type)) for f in schema], metadata=schema.metadata)


def plain_columns(batch: RecordBatch, schema: Schema) -> list[Array]:
    """A batch's columns as `plain_schema` has them; no copy where they are so."""
    pairs = zip(batch.columns, schema, strict=True)
    return [column if column.type == field.type else column.cast(field.type) for column, field in pairs]
