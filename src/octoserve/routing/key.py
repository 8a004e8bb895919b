"""Key expressions: where the bytes come from that a split, or a segment, goes by.

`header:NAME`, `input:NAME` (also `column:NAME`), `parameter:NAME`, `message:key`, `caller:name`. How a value becomes
bytes is part of the split's specification (docs/decisions/0006-split.md), since other systems must get the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from octoserve.core.errors import InvalidInput, SettingsError

if TYPE_CHECKING:
    from octoserve.core.tensors import Array

HEADER, INPUT, PARAMETER, MESSAGE, CALLER = "header", "input", "parameter", "message", "caller"
_ONLY = {MESSAGE: "key", CALLER: "name"}
_SAME = {"column": INPUT}
_WANTED = "header:NAME, input:NAME, column:NAME, parameter:NAME, message:key or caller:name"


class KeySource(msgspec.Struct, frozen=True):
    """A parsed expression. `kind` is one of the words above; `name` a header's in lower case."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


def parse_key(text: str) -> KeySource:
    """The expression's parts. Raises SettingsError."""
    kind, _, name = text.partition(":")
    kind = _SAME.get(kind, kind)
    if not name or kind not in (HEADER, INPUT, PARAMETER, MESSAGE, CALLER) or _ONLY.get(kind, name) != name:
        raise SettingsError(f"key: {_WANTED} wanted, {text!r} came")
    return KeySource(kind, name.lower() if kind == HEADER else name)


def key_bytes(value: Any) -> bytes:
    """Text and bytes as they are, whole numbers in decimal, booleans as `true` and `false`.

    Raises InvalidInput for a float, which prints in more than one way, and for anything else.
    """
    if isinstance(value, bytes):
        return value
    if hasattr(value, "item"):  # a number of numpy's
        value = value.item()
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, int):
        return b"%d" % value
    raise InvalidInput(f"a key is text, bytes, a whole number or a boolean; {type(value).__name__} came")


def column_keys(values: Array) -> Iterable[bytes]:
    """`key_bytes` of each row's first element."""
    rows = values.reshape(len(values), -1)[:, 0].tolist() if values.ndim > 1 else values.tolist()
    return map(key_bytes, rows)
