"""Reads a key from a call, by an expression of `routing.key`: what splits, segments and tenants go by."""

from __future__ import annotations

from collections.abc import Callable

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput
from octoserve.dataplane.call import Call
from octoserve.routing.key import CALLER, HEADER, INPUT, PARAMETER, KeySource, key_bytes

KeyReader = Callable[[Call], bytes | None]
"""The key's bytes; None where the call brings none. Raises InvalidInput for what cannot be one."""


def key_reader(source: KeySource) -> KeyReader:
    """What reads this key."""
    name = source.name
    if source.kind == HEADER:

        def header(call: Call) -> bytes | None:
            value = call.header(name)
            return None if value is None else value.encode("latin-1", "replace")

        return header
    if source.kind == PARAMETER:

        def parameter(call: Call) -> bytes | None:
            value = call.parameter(name)
            return None if value is None else key_bytes(value)

        return parameter
    if source.kind == INPUT:
        return lambda call: _first_element(call, name)
    if source.kind == CALLER:
        return lambda call: call.caller().encode() or None  # whom security knows; nobody where none has to say so
    return lambda call: call.key  # a message's key is given with the call


def _first_element(call: Call, name: str) -> bytes | None:
    for tensor in call.inputs:
        if tensor.name == name:
            if tensor.datatype not in DATATYPES or any(size < 0 for size in tensor.shape):
                raise InvalidInput(f"input {name!r} is a key, and no tensor: {tensor.datatype} {list(tensor.shape)}")
            values = tensor.array()  # nothing has checked it yet
            if not values.size:
                return None
            try:
                return key_bytes(values.ravel()[0])
            except InvalidInput as error:
                raise InvalidInput(f"input {name!r} is a key: {error}") from None
    return None
