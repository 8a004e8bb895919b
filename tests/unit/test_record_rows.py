"""Records of a schema as rows: every kind of field becomes what a JSON row would hold; what is no record is said."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.codecs.avro import AvroSchema
from octoserve.codecs.framed import body, framed, message_path, schema_number
from octoserve.codecs.json_rows import JsonRows
from octoserve.codecs.protobuf import ProtobufSchema
from octoserve.core.errors import InvalidInput
from octoserve.core.signature import Signature, TensorSpec

SPECS = (
    TensorSpec("price", "FP64", (-1,)), TensorSpec("count", "INT64", (-1,)), TensorSpec("kind", "BYTES", (-1,)),
    TensorSpec("blob", "BYTES", (-1,)), TensorSpec("words", "BYTES", (-1, -1)), TensorSpec("sizes", "FP32", (-1, 2)),
    TensorSpec("ok", "BOOL", (-1,)), TensorSpec("weight", "FP32", (-1,)),
)  # fmt: skip
AVRO = {
    "type": "record", "name": "Order", "namespace": "shop",
    "fields": [
        {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": 2}},
        {"name": "count", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["SMALL", "LARGE"]}},
        {"name": "blob", "type": "bytes"},
        {"name": "words", "type": {"type": "array", "items": "string"}},
        {"name": "sizes", "type": {"type": "array", "items": "float"}},
        {"name": "ok", "type": "boolean"},
        {"name": "weight", "type": ["null", "double", "string"], "default": None},
        {"name": "more", "type": {"type": "map", "values": "int"}, "default": {}},
    ],
}  # fmt: skip
ROW: dict[str, Any] = {
    "id": UUID(int=7), "price": Decimal("12.50"), "count": datetime(2026, 1, 1, tzinfo=UTC), "kind": "LARGE",
    "blob": b"\xff\0", "words": ["a", "b"], "sizes": [1.5, 2], "ok": True, "weight": 2.5,
}  # fmt: skip
PROTO = """
syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
message Other { string s = 1; message Inner { int64 count = 1; } }
message Order {
  string id = 1; double price = 2; int64 count = 3; Kind kind = 4; bytes blob = 5; repeated string words = 6;
  repeated float sizes = 7; bool ok = 8; google.protobuf.FloatValue weight = 9; optional double unset = 10;
  google.protobuf.Timestamp at = 11; map<string, int32> more = 12; Other other = 13;
}
enum Kind { SMALL = 0; LARGE = 1; }
"""


def written(row: Mapping[str, Any], schema: Mapping[str, Any] = AVRO) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, dict(schema), row)
    return out.getvalue()


def rows_of(read: Any, *specs: TensorSpec, missing: str = "refuse") -> JsonRows:
    return JsonRows(Signature(specs, [], batchable=True), None, missing, read)


def arrays(found: Any) -> dict[str, list[Any]]:
    assert found.unfit == {}
    return {tensor.name: tensor.array().tolist() for tensor in found.groups[0].columns}


WANTED = {
    "price": [12.5], "count": [1767225600000], "kind": [b"LARGE"], "blob": [b"\xff\0"], "words": [[b"a", b"b"]],
    "sizes": [[1.5, 2.0]], "ok": [True], "weight": [2.5],
}  # fmt: skip


def test_each_kind_of_avro_field_becomes_an_input():
    schema = AvroSchema(json.dumps(AVRO))
    found = rows_of(schema.read, *SPECS).decode([written(ROW)])
    assert arrays(found) == WANTED
    assert found.ids == [str(UUID(int=7))]


def test_each_kind_of_protobuf_field_becomes_an_input():
    schema = ProtobufSchema(PROTO)
    message = {
        "id": "b1", "price": 12.5, "count": 1767225600000, "kind": "LARGE", "blob": "/wA=", "words": ["a", "b"],
        "sizes": [1.5, 2], "ok": True, "weight": 2.5, "at": "2026-01-01T00:00:00Z", "more": {"a": 1},
    }  # fmt: skip
    assert message_path(schema.write({"s": "x"})) == ((0,), b"\n\x01x")
    second = schema.read(b"\x02\x02" + schema._kind((1,)).make(id="b1").SerializeToString())
    assert second["id"] == "b1"
    assert second["unset"] is None
    assert second["weight"] is None
    assert (second["price"], second["kind"], second["ok"]) == (0.0, "SMALL", False)
    own = ProtobufSchema(PROTO.replace("message Other { string s = 1; message Inner { int64 count = 1; } }\n", "")
                         .replace(" Other other = 13;", ""))  # fmt: skip
    found = rows_of(own.read, *SPECS, TensorSpec("at", "BYTES", (-1,))).decode([own.write(message)])
    assert arrays(found) == {**WANTED, "at": [b"2026-01-01T00:00:00Z"]}
    assert found.ids == ["b1"]
    assert schema.read(b"\x04\x00\x00\x08\x05") == {"count": 5}


def test_a_protobuf_time_that_no_calendar_has_is_the_messages_fault():
    schema = ProtobufSchema('syntax = "proto3"; import "google/protobuf/timestamp.proto";\n'
                            "message M { google.protobuf.Timestamp at = 1; }")  # fmt: skip
    made = schema._kind((0,)).make()
    made.at.seconds = 1 << 60
    with pytest.raises(InvalidInput, match="the bytes are no M"):
        schema.read(b"\x00" + made.SerializeToString())


def test_what_is_missing_goes_by_the_policy():
    schema = AvroSchema(json.dumps(AVRO))
    payload = written({**ROW, "weight": None})
    assert rows_of(schema.read, *SPECS).decode([payload]).unfit == {0: "field 'weight' is missing; FP32 is wanted"}
    (weight,) = rows_of(schema.read, SPECS[-1], missing="nan").decode([payload]).groups[0].columns
    assert np.isnan(weight.array()).all()


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (TensorSpec("kind", "FP32", (-1,)), "Expected `float | null`, got `str` - at `$.kind`"),
        (TensorSpec("more", "FP32", (-1,)), "Expected `float | null`, got `object` - at `$.more`"),
        (TensorSpec("price", "BYTES", (-1,)), "field 'price': text or bytes are wanted, float came"),
        (TensorSpec("words", "BYTES", (-1,)), "field 'words': text or bytes are wanted, list came"),
        (TensorSpec("kind", "BYTES", (-1, -1)), "field 'kind': a list is wanted, str came"),
        (TensorSpec("sizes", "FP32", (-1, 3)), "field 'sizes': lists of shape [3] wanted, [2] came"),
        (TensorSpec("absent", "FP32", (-1,)), "field 'absent' is missing; FP32 is wanted"),
    ],
)
def test_values_are_never_cast(spec: TensorSpec, why: str):
    schema = AvroSchema(json.dumps(AVRO))
    found = rows_of(schema.read, spec).decode([written(ROW), written(ROW)])
    assert sorted(found.unfit) == [0, 1]
    assert why in found.unfit[0]


@given(st.binary(max_size=60))
def test_any_bytes_are_a_record_or_refused(content: bytes):
    for schema in (_AVRO, _PROTO):
        found = rows_of(schema.read, *SPECS).decode([content])
        assert len(found.unfit) + sum(len(group.rows) for group in found.groups) == 1


_AVRO, _PROTO = AvroSchema(json.dumps(AVRO)), ProtobufSchema(PROTO)


@given(st.integers(0, 2**32 - 1), st.binary(max_size=20))
def test_a_frame_comes_back(number: int, record: bytes):
    payload = framed(number, record)
    assert (schema_number(payload), body(payload)) == (number, record)


@pytest.mark.parametrize("payload", [b"", b"\0\0\0\1", b"{}xxxxxx"])
def test_what_has_no_number_is_said(payload: bytes):
    with pytest.raises(InvalidInput, match="a byte 0 and four bytes of the schema's number are wanted first"):
        schema_number(payload)


@pytest.mark.parametrize("content", [b"", b"\xff", struct.pack(">B", 0x81), b"\x80" * 12, b"\x7e\x01", b"\x02"])
def test_a_way_to_a_message_that_is_none(content: bytes):
    with pytest.raises(InvalidInput):
        message_path(content)


@pytest.mark.parametrize(
    "text", ["{", '"string"', '{"type": "record"}', '{"type": "enum", "name": "A", "symbols": []}']
)
def test_what_is_no_schema_of_avro_records(text: str):
    with pytest.raises(InvalidInput, match="Avro schema"):
        AvroSchema(text)


def test_what_is_no_protobuf_schema_is_said_with_its_line():
    with pytest.raises(InvalidInput, match=r"no Protobuf schema: line 2:\d+: .*Strin"):
        ProtobufSchema('syntax = "proto3";\nmessage A { Strin s = 1; }')
    with pytest.raises(InvalidInput, match="no name of an import"):
        ProtobufSchema(PROTO, {"../x.proto": ""})
    with pytest.raises(InvalidInput, match=r"has no message 9\.1"):
        _PROTO.read(b"\x04\x12\x02")


def test_schemas_rest_on_others():
    size = {"type": "record", "name": "Size", "namespace": "shop", "fields": [{"name": "mm", "type": "int"}]}
    outer = {
        "type": "record",
        "name": "Box",
        "fields": [{"name": "x", "type": "float"}, {"name": "s", "type": "shop.Size"}],
    }
    schema = AvroSchema(json.dumps(outer), {"shop.Size": json.dumps(size)})
    assert schema.read(schema.write({"x": 1.5, "s": {"mm": 3}})) == {"x": 1.5, "s": {"mm": 3}}
    whole = (
        'syntax = "proto3"; import "shop/size.proto"; message Box { float x = 1; shop.Size s = 2; shop.Unit u = 3; }'
    )
    below = 'syntax = "proto3"; package shop; message Size { int32 mm = 1; } enum Unit { MM = 0; }'
    proto = ProtobufSchema(whole, {"shop/size.proto": below})
    assert proto.read(proto.write({"x": 1.5})) == {"x": 1.5, "s": None, "u": "MM"}
