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
