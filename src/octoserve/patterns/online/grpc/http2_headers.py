"""Header blocks: from HPACK bytes (RFC 7541) to fields, and whether the fields make a request (RFC 9113, 8.3).

The `hpack` package is the authority here: its table, its Huffman code, and its decoder for everything
unusual. In front of it stands a short loop for what clients send ten thousand times a second: one-byte
indexes, and literals with short names and values. A whole block can be remembered while the dynamic table
stands still, but Java and Go clients put each call's `grpc-timeout` into the table, and Envoy each
request's id: no two blocks of theirs are alike. For these the loop, the words and the fields that were
seen before are what keeps a call cheap.
"""

from __future__ import annotations

import re
from typing import Final

from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.hpack import decode_huffman
from hpack.table import HeaderTable

from .http2_frames import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    PROTOCOL_ERROR,
    ConnectionFault,
    StreamFault,
)

Field = tuple[bytes, bytes]

_STATIC: Final[tuple[Field, ...]] = ((b"", b""), *HeaderTable.STATIC_TABLE)
_STATIC_END: Final = len(_STATIC)
_REMEMBERED: Final = 128
_REMEMBERED_FIELD_BYTES: Final = 256
_FIELD_OVERHEAD: Final = 32  # RFC 7541, 4.1: what a field counts for beside its bytes


class HeaderDecoder:
    """One connection's HPACK decoder. After a fault the connection is lost: the tables no longer agree."""

    def __init__(self, max_list_bytes: int) -> None:
        self._max_list_bytes = max_list_bytes
        self._hpack = Decoder(max_header_list_size=max_list_bytes)
        self._table = self._hpack.header_table
        self._words: dict[bytes, bytes] = {}
        self.changes = 0
        """How often the dynamic table changed: a block means the same only while this stands still."""

    def decode(self, block: bytes) -> list[Field]:
        """The fields, in order.

        Raises ConnectionFault where the block is broken or unpacks to more than the limit (HPACK bomb).
        """
        try:
            fields, position = self._decode_usual(block)
            if position < len(block):
                self._decode_rest(block[position:], fields)
        except OversizedHeaderListError:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "header list too large") from None
        except (HPACKError, IndexError, ValueError):
            raise ConnectionFault(COMPRESSION_ERROR, "broken header block") from None
        return fields

    def _decode_usual(self, block: bytes) -> tuple[list[Field], int]:
        """Read fields until something unusual comes; say where that is."""
        fields: list[Field] = []
        dynamic = self._table.dynamic_entries
        position, end, room = 0, len(block), self._max_list_bytes
        while position < end:
            first = block[position]
            if first & 0x80:  # 6.1: indexed
                index = first & 0x7F
                if index == 0x7F:
                    more = block[position + 1]
                    if more & 0x80:
                        break
                    index += more
                    position += 1
                elif not index:
                    break
                field = _STATIC[index] if index < _STATIC_END else dynamic[index - _STATIC_END]
                position += 1
            else:  # 6.2: literal
                literal = None if first & 0xE0 == 0x20 else self._literal(block, position, first)
                if literal is None:
                    break
                field, position = literal
            fields.append(field)
            room -= len(field[0]) + len(field[1]) + _FIELD_OVERHEAD
            if room < 0:
                raise OversizedHeaderListError
        return fields, position

    def _literal(self, block: bytes, position: int, first: int) -> tuple[Field, int] | None:
        """A literal field and where it ends; None where a length or index takes more than two bytes."""
        mask = 0x3F if first & 0x40 else 0x0F
        index = first & mask
        position += 1
        if index == mask:
            more = block[position]
            if more & 0x80:
                return None
            index += more
            position += 1
        if index:
            entries = self._table.dynamic_entries
            name = (_STATIC[index] if index < _STATIC_END else entries[index - _STATIC_END])[0]
        else:
            word = self._word(block, position)
            if word is None:
                return None
            name, position = word
        word = self._word(block, position)
        if word is None:
            return None
        value, position = word
        if first & 0x40:
            self._table.add(name, value)
            self.changes += 1
        return (name, value), position

    def _word(self, block: bytes, position: int) -> tuple[bytes, int] | None:
        """A string literal (5.2) and where it ends; None where its length takes more than two bytes."""
        length = block[position]
        start = position + 1
        end = start + (length & 0x7F)
        if length & 0x7F == 0x7F:
            more = block[start]
            if more & 0x80:
                return None
            start += 1
            end = start + 0x7F + more
        if end > len(block):
            return None  # the package knows long ones, and what to say of truncated ones
        word = block[start:end]
        return (self._unpacked(word) if length & 0x80 else word), end

    def _unpacked(self, packed: bytes) -> bytes:
        """Huffman decoding (5.2) goes bit by bit; the same paths come again and again."""
        word = self._words.get(packed)
        if word is None:
            word = bytes(decode_huffman(packed))
            if len(packed) <= _REMEMBERED_FIELD_BYTES:
                if len(self._words) >= _REMEMBERED:
                    self._words.clear()
                self._words[packed] = word
        return word

    def _decode_rest(self, rest: bytes, fields: list[Field]) -> None:
        """What the usual path does not read, by the package; the dynamic table is shared."""
        if fields and rest[0] & 0xE0 == 0x20:
            raise HPACKError("table size update not at the start of the block")  # 4.2
        used = sum(len(name) + len(value) + _FIELD_OVERHEAD for name, value in fields)
        self._hpack.max_header_list_size = self._max_list_bytes - used
        entries = self._table.dynamic_entries
        before = (len(entries), entries[0] if entries else None, self._table.maxsize)
        fields.extend((bytes(name), bytes(value)) for name, value in self._hpack.decode(rest, raw=True))
        newest = entries[0] if entries else None
        if len(entries) == before[0] and newest is before[1] and self._table.maxsize == before[2]:
            return
        self.changes += 1
        # The package keeps views, and each would hold its whole block in memory.
        for place, (name, value) in enumerate(entries):
            entries[place] = (bytes(name), bytes(value))


_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_BAD_VALUE: Final = re.compile(rb"[\0\r\n]|^[ \t]|[ \t]$").search
_OF_A_CONNECTION: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))


class FieldRules:
    """What fields may be (RFC 9113, 8.2 and 8.3). Remembers the good ones, since most come again.

    A malformed request must not reach a handler: some other hop may read it differently.
    """

    def __init__(self) -> None:
        self._good: set[Field] = set()

    def request(self, fields: list[Field]) -> dict[bytes, bytes]:
        """The pseudo-fields of a well-formed request. Raises StreamFault for a malformed one (8.1.1)."""
        pseudo: dict[bytes, bytes] = {}
        regular = False
        good = self._good
        for field in fields:
            name, value = field
            if name[:1] == b":":
                if regular or name in pseudo or name not in _PSEUDO:
                    raise StreamFault(PROTOCOL_ERROR, "bad pseudo-header")
                pseudo[name] = value
            else:
                regular = True
            if field not in good:
                self._check(field)
        if not (b":method" in pseudo and pseudo.get(b":scheme") and pseudo.get(b":path")):
            raise StreamFault(PROTOCOL_ERROR, "missing pseudo-header")
        return pseudo

    def trailers(self, fields: list[Field]) -> None:
        """Raises StreamFault where a request's trailers hold what trailers may not (8.1)."""
        for field in fields:
            if field[0][:1] == b":":
                raise StreamFault(PROTOCOL_ERROR, "pseudo-header in trailers")
            self._check(field)

    def _check(self, field: Field) -> None:
        """Lower-case tokens, clean values, and no fields that belong to one HTTP/1.1 connection."""
        name, value = field
        if name not in _PSEUDO and (name in _OF_A_CONNECTION or not _NAME(name)):
            raise StreamFault(PROTOCOL_ERROR, "bad header name")
        if name == b"te" and value != b"trailers":
            raise StreamFault(PROTOCOL_ERROR, "te other than trailers")
        if _BAD_VALUE(value):
            raise StreamFault(PROTOCOL_ERROR, "bad header value")
        if len(name) + len(value) <= _REMEMBERED_FIELD_BYTES:
            if len(self._good) >= _REMEMBERED:
                self._good.clear()
            self._good.add(field)


def declared_length(fields: list[Field]) -> int | None:
    """Content-length, which the DATA frames must add up to (RFC 9113, 8.1.1); None where not given."""
    lengths = {value for name, value in fields if name == b"content-length"}
    if not lengths:
        return None
    value = lengths.pop()
    if lengths or not value.isdigit() or len(value) > 18:
        raise StreamFault(PROTOCOL_ERROR, "bad content-length")
    return int(value)


def literal_field(name: bytes, value: bytes) -> bytes:
    """A field as a literal without indexing and without Huffman (RFC 7541, 6.2.2): needs no shared state."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(length: int) -> bytes:
    """An integer with a prefix of seven bits (RFC 7541, 5.1)."""
    if length < 0x7F:
        return bytes((length,))
    rest, out = length - 0x7F, bytearray((0x7F,))
    while rest >= 0x80:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)
