"""Avro records by their writers' schemas, in plain values: what JSON rows are made of.

Dates and times are the whole numbers that the wire holds, in the unit of their schema; a decimal is the nearest float,
a UUID its text, an enum its symbol; bytes stay bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from octoserve.core.errors import InvalidInput, SettingsError

_KEPT = ("decimal", "uuid")
"""Logical types that are read as such."""


def library() -> Any:
    """fastavro. Raises SettingsError where it is missing."""
    try:
        import fastavro
    except ImportError:
        raise SettingsError(
            "payload: avro needs the package fastavro; install it with pip install 'octoserve[registry]'"
        ) from None
    return fastavro


class AvroSchema:
    """One schema, read and written by."""

    def __init__(self, text: str, references: Mapping[str, str] | None = None) -> None:
        """references: what it rests on, the deepest first. Raises InvalidInput for what is no schema of records."""
        fastavro = library()
        named: dict[str, Any] = {}
        self._plain = False
        try:
            for below in (references or {}).values():
                fastavro.parse_schema(self._stripped(_json(below)), named_schemas=named)
            parsed = fastavro.parse_schema(self._stripped(_json(text)), named_schemas=named)
        except Exception as error:  # of a type of its own for each thing that can be wrong
            raise InvalidInput(f"no Avro schema: {_why(error)}") from None
        if not isinstance(parsed, dict) or parsed.get("type") not in ("record", "error"):
            raise InvalidInput("the Avro schema is of no record")
        self._schema = parsed
        self._named = named
        self._read, self._write = fastavro.schemaless_reader, fastavro.schemaless_writer

    def _stripped(self, schema: Any) -> Any:
        """The schema with the logical types that are to be read."""
        if isinstance(schema, list):
            return [self._stripped(each) for each in schema]
        if not isinstance(schema, dict):
            return schema
        logical = schema.get("logicalType")
        self._plain |= logical in _KEPT
        return {
            name: value if name == "default" else self._stripped(value)
            for name, value in schema.items()
            if name != "logicalType" or logical in _KEPT
        }

    def read(self, content: bytes) -> Mapping[str, Any]:
        """The record's fields. Raises InvalidInput."""
        data = io.BytesIO(content)
        try:
            record: dict[str, Any] = self._read(data, self._schema)
        except Exception as error:  # whatever the bytes make a decoder stumble over
            raise InvalidInput(f"the bytes are no record of its Avro schema: {_why(error)}") from None
        left = len(content) - data.tell()
        if left:
            raise InvalidInput(f"the bytes are no record of its Avro schema: {left} are left behind it")
        return {name: _plain(value) for name, value in record.items()} if self._plain else record

    def write(self, record: Mapping[str, Any]) -> bytes:
        """A record's bytes. Raises InvalidInput."""
        out = io.BytesIO()
        try:
            self._write(out, self._schema, record, strict_allow_default=True)
        except Exception as error:
            raise InvalidInput(f"it does not fit the Avro schema: {_why(error)}") from None
        return out.getvalue()


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError:
        return text  # a type's name, in no quotes


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, UUID):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _why(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
