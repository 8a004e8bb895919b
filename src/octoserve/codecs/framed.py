"""A record behind the number of its schema, as programs that use a schema registry send it.

A byte 0, the number in four bytes (big-endian), the record. Of Protobuf, where a schema has many messages, the way to
the one that it is stands between: how many steps, and each, as zigzag varints; the single byte 0 is the first message.
Source: Confluent's documentation, "Wire format".
"""

from __future__ import annotations

import struct

from octoserve.core.errors import InvalidInput

MAGIC = 0
_HEAD = struct.Struct(">bI")
_DEEPEST = 32


def schema_number(payload: bytes) -> int:
    """Raises InvalidInput for what has none."""
    if len(payload) < _HEAD.size or payload[0] != MAGIC:
        raise InvalidInput(
            "no record of a schema registry: a byte 0 and four bytes of the schema's number are wanted first, "
            f"{payload[:5].hex(' ') or 'nothing'} came"
        )
    number: int = _HEAD.unpack_from(payload)[1]
    return number


def body(payload: bytes) -> bytes:
    """What lies behind the number."""
    return payload[_HEAD.size :]


def framed(number: int, record: bytes) -> bytes:
    """A payload."""
    return _HEAD.pack(MAGIC, number) + record


def message_path(content: bytes) -> tuple[tuple[int, ...], bytes]:
    """Which message of its schema a Protobuf record is, and the record. Raises InvalidInput."""
    count, at = _varint(content, 0)
    if count == 0:
        return (0,), content[at:]
    if not 0 < count <= _DEEPEST:
        raise InvalidInput(f"no Protobuf record: a way of {count} steps to its message came")
    steps = []
    for _ in range(count):
        step, at = _varint(content, at)
        steps.append(step)
    return tuple(steps), content[at:]


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint, and where it ends."""
    value = shift = 0
    while at < len(content) and shift < 64:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
    raise InvalidInput("no Protobuf record: it ends before its message is named")
