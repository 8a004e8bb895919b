"""Requests that differ only in the bytes at their end: what stands before them is decoded once.

A client asks the same model again and again for as many values, and a serialized request of one tensor ends with the
tensor's bytes. Its beginning, which ends with their number, is then the same to the byte: it is looked up, and nothing
is parsed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError

from octoserve.core.errors import OctoserveError

Said = TypeVar("Said")

_FEWEST, _MOST = 8, 64 << 10
"""Bytes of a tensor that is worth it: fewer could be there by chance, and beside more the parsing is nothing."""
_LONGEST = 1024
"""Bytes of a beginning."""
_REMEMBERED = 256
_SMALL = bytes(byte & 0x3F for byte in range(256))
"""Random bytes become ones that are finite numbers in every float."""


class Alike(Generic[Said]):
    """What beginnings say. Bounded; when it is full it begins anew."""

    def __init__(self, ending: Callable[[bytes], bytes | None]) -> None:
        """ending: the tensor's bytes in a whole message; None where it has not one tensor. Raises as parsing does."""
        self._ending = ending
        self._starts: dict[int, int] = {}
        self._known: dict[bytes, tuple[int, Said]] = {}

    def find(self, data: bytes) -> tuple[Said, bytes] | None:
        """What the message says beside its tensor's bytes, and these; None where that is not known."""
        size = len(data)
        start = self._starts.get(size)
        if start is None:
            return None
        known = self._known.get(data[:start])
        if known is None or known[0] != size:  # of another size: something stands behind the tensor
            return None
        return known[1], data[start:]

    def learn(self, data: bytes, said: Said, ending: bytes) -> None:
        """The message says this, and its tensor has these bytes. Remembered only if they really are its end: other
        bytes in their place have to come out as the tensor."""
        start = len(data) - len(ending)
        if not _FEWEST <= len(ending) <= _MOST or start > _LONGEST or not data.endswith(ending):
            return
        others = os.urandom(len(ending)).translate(_SMALL)
        try:
            if self._ending(data[:start] + others) != others:
                return
        except (DecodeError, OctoserveError):
            return
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
            self._starts.clear()
        self._starts[len(data)] = start
        self._known[data[:start]] = len(data), said
