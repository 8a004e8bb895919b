"""Protobuf's wire form, for messages that are put together by hand around values that are bytes already."""

from __future__ import annotations


def opening(number: int, size: int) -> bytes:
    """Key and length of a length-delimited field whose `size` bytes follow. number: below 16."""
    if size < 128:
        return b"%c%c" % (number << 3 | 2, size)
    length = bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    length.append(size)
    return b"%c%b" % (number << 3 | 2, bytes(length))


def field(number: int, value: bytes) -> bytes:
    """A length-delimited field, whole."""
    return b"%b%b" % (opening(number, len(value)), value)
