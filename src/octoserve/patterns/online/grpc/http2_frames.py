"""HTTP/2 frames as bytes: their layout (RFC 9113 section 4 and 6), and nothing that remembers anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
INTERNAL_ERROR: Final = 0x2
FLOW_CONTROL_ERROR: Final = 0x3
STREAM_CLOSED: Final = 0x5
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
ENHANCE_YOUR_CALM: Final = 0xB

FRAME_HEAD_BYTES: Final = 9
DEFAULT_WINDOW: Final = 65_535
DEFAULT_TABLE_BYTES: Final = 4_096
MIN_FRAME_SIZE: Final = 16_384
MAX_FRAME_SIZE_LIMIT: Final = 2**24 - 1
MAX_WINDOW: Final = 2**31 - 1
MAX_STREAM_ID: Final = 2**31 - 1

FRAME_HEAD: Final = Struct(">HBBBI")
"""Length's high 16 bits, its low 8, type, flags, stream id with the reserved bit: 9 bytes, one unpack."""

_SETTING = Struct(">HI")
_U32 = Struct(">I")


class ConnectionFault(Exception):
    """The peer broke a rule that spoils the whole connection (RFC 9113 section 5.4.1)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class StreamFault(Exception):
    """The peer broke a rule that spoils one stream only (RFC 9113 section 5.4.2)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def frame_head(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The nine bytes before a payload (section 4.1)."""
    return FRAME_HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id)


def settings_frame(settings: Iterable[tuple[int, int]]) -> bytes:
    """Our SETTINGS (section 6.5)."""
    payload = b"".join(_SETTING.pack(name, value) for name, value in settings)
    return frame_head(len(payload), SETTINGS, 0, 0) + payload


SETTINGS_ACK: Final = frame_head(0, SETTINGS, ACK, 0)


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """The settings of a payload whose length is a multiple of six."""
    yield from _SETTING.iter_unpack(payload)


def read_u32(data: bytes, start: int) -> int:
    """Four bytes, big-endian."""
    return int(_U32.unpack_from(data, start)[0])


def ping_frame(payload: bytes, flags: int = 0) -> bytes:
    """A PING with its eight opaque bytes (section 6.7)."""
    return frame_head(8, PING, flags, 0) + payload


def goaway_frame(last_stream_id: int, code: int, reason: str = "") -> bytes:
    """A GOAWAY with a reason that a person can read (section 6.8)."""
    debug = reason.encode("ascii", "replace")[:200]
    return frame_head(8 + len(debug), GOAWAY, 0, 0) + _U32.pack(last_stream_id) + _U32.pack(code) + debug


def rst_stream_frame(stream_id: int, code: int) -> bytes:
    """A RST_STREAM (section 6.4)."""
    return frame_head(4, RST_STREAM, 0, stream_id) + _U32.pack(code)


def window_update_frame(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE (section 6.9); stream 0 is the connection."""
    return frame_head(4, WINDOW_UPDATE, 0, stream_id) + _U32.pack(increment)


def header_frames(stream_id: int, block: bytes, end_stream: bool, max_frame: int) -> bytes:
    """HEADERS, and CONTINUATION where the block is longer than the peer's frames may be (section 6.10)."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= max_frame:
        return frame_head(len(block), HEADERS, flags | END_HEADERS, stream_id) + block
    parts = [frame_head(max_frame, HEADERS, flags, stream_id), block[:max_frame]]
    for start in range(max_frame, len(block), max_frame):
        piece = block[start : start + max_frame]
        last = END_HEADERS if start + max_frame >= len(block) else 0
        parts += (frame_head(len(piece), CONTINUATION, last, stream_id), piece)
    return b"".join(parts)


def unpad(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Where the content of a PADDED payload lies (section 6.1).

    Raises ConnectionFault where the padding is as long as the payload or longer.
    """
    if start == end:
        raise ConnectionFault(FRAME_SIZE_ERROR, "a padded frame without its pad length")
    content_end = end - data[start]
    if content_end <= start:
        raise ConnectionFault(PROTOCOL_ERROR, "padding longer than its frame")
    return start + 1, content_end
