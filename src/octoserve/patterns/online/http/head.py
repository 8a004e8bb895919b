"""HTTP/1.1 message syntax: a head from its bytes, a chunked body from its chunks.

llhttp (httptools) parses, strictly. What remains ambiguous between servers, and is how requests are
smuggled, is refused here (RFC 9112, sections 6 and 11.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httptools

if TYPE_CHECKING:
    from octoserve.patterns.online.http.connection import Connection
    from octoserve.security.access import Access
    from octoserve.security.caller import Caller

MAX_HEAD = 64 << 10
MAX_HEADERS = 100

Handler = Callable[["Connection", "Head", bytes], None]


class BadRequest(Exception):
    """The connection answers `status` and closes."""

    def __init__(self, status: int, message: str, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Head:
    """A parsed request head. Immutable once routed, since it is shared by all requests that repeat it."""

    __slots__ = (
        "access",
        "allowed",
        "binding",
        "caller",
        "chunked",
        "content_length",
        "expects_continue",
        "handler",
        "headers",
        "http10",
        "keep_alive",
        "method",
        "once",
        "path",
        "query",
    )

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.query = ""
        self.headers: dict[str, str] = {}
        self.content_length = 0
        self.chunked = False
        self.keep_alive = True
        self.http10 = False
        self.expects_continue = False
        self.once = False
        """Whether its like is not expected again, so that it is not kept: its path or a header names one request."""
        self.access: Access | None = None
        """Who may ask; None where nobody has to say who they are."""
        self.caller: Caller | None = None
        """Who asks; None where `access` is, and before `routes.allow`."""
        self.allowed = False
        """Whether its route has asked if it may be taken: see `routes.allow`."""
        self.handler: Handler
        self.binding: Any = None
        """What the application worked out from this head, once, when it was routed."""


_ABSOLUTE = re.compile(rb"^https?://[^/?]*", re.IGNORECASE)  # as a client sends to a proxy (RFC 9112, 3.2.2)


class _HeadParser:
    """Receives httptools' callbacks for one head."""

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


def parse_head(raw: bytes) -> Head:
    """A head from its bytes, the empty line included. Raises BadRequest.

    llhttp refuses what RFC 9112 forbids; what remains ambiguous between servers (repeated or joined lengths,
    a length beside a transfer coding, unknown codings, no or several hosts) is refused here.
    """
    received = _HeadParser()
    parser = httptools.HttpRequestParser(received)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        if parser.get_method() == b"CONNECT":
            raise BadRequest(400, "CONNECT is not offered", "malformed") from None
    except httptools.HttpParserError as error:
        raise BadRequest(400, f"malformed HTTP request: {error}", "malformed") from None
    if parser.get_http_version() not in ("1.0", "1.1"):
        raise BadRequest(400, f"HTTP/{parser.get_http_version()} is not offered here", "malformed")
    if not received.complete or len(received.fields) > MAX_HEADERS:
        raise BadRequest(400, f"malformed HTTP request head (at most {MAX_HEADERS} headers)", "malformed")
    head = Head()
    head.method = parser.get_method().decode("ascii")
    path, _, query = _ABSOLUTE.sub(b"", received.url).partition(b"?")
    head.path, head.query = path.decode("latin-1"), query.decode("latin-1")
    head.http10 = parser.get_http_version() == "1.0"
    _read_fields(head, received.fields, parser.get_http_version())
    return head


def _read_fields(head: Head, fields: list[tuple[bytes, bytes]], version: str) -> None:
    headers = head.headers
    hosts = 0
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip(" \t")
        hosts += name == "host"
        if name in headers:
            if name in ("content-length", "transfer-encoding", "host"):
                raise BadRequest(400, f"header {name} is given twice", "smuggling")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    if version == "1.1" and hosts != 1:
        raise BadRequest(400, "HTTP/1.1 needs exactly one Host header", "malformed")
    # Not llhttp's own word: it forgets the header at the end of a message that has no body.
    options = [option.strip() for option in headers.get("connection", "").lower().split(",")]
    head.keep_alive = "close" not in options and (version == "1.1" or "keep-alive" in options)
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if coding is not None:
        if length is not None or coding.lower() != "chunked" or version != "1.1":
            raise BadRequest(400, "Transfer-Encoding must be chunked, alone, without Content-Length", "smuggling")
        head.chunked = True
    if length is not None:
        if not (length.isascii() and length.isdigit() and len(length) < 16):
            raise BadRequest(400, "Content-Length is not a number", "smuggling")
        head.content_length = int(length)
    expect = headers.get("expect")
    if expect is not None:
        if expect.lower() != "100-continue":
            raise BadRequest(417, f"expectation {expect!r} is not offered", "malformed")
        head.expects_continue = version == "1.1"


# Stands for the head, which has been read and may hold what makes llhttp skip the body (Upgrade).
_CHUNKED_HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


class ChunkedBody:
    """A chunked body: llhttp decodes it, the limit bounds it."""

    def __init__(self, limit: int) -> None:
        self._data = bytearray()  # not a list: a chunk of two bytes would take twenty times as many
        self._limit = limit
        self._received = 0
        self.size = 0
        self.complete = False
        self.more = False
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(_CHUNKED_HEAD)

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises BadRequest."""
        if not data:
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self.complete:
                raise BadRequest(400, f"malformed chunked body: {error}", "malformed") from None
            self.more = True
        if self.size > self._limit:
            raise BadRequest(413, f"the body has more than {self._limit} bytes", "too_large")
        if not self.complete and self._received - self.size > max(self._limit, MAX_HEAD):
            raise BadRequest(413, "the body's chunk heads and trailers are longer than a body may be", "too_large")

    def on_body(self, data: bytes) -> None:
        if not self.complete:
            self.size += len(data)
            if self.size <= self._limit:
                self._data += data

    def on_message_begin(self) -> None:
        if self.complete:
            self.more = True

    def on_message_complete(self) -> None:
        self.complete = True

    def body(self) -> bytes:
        """The whole decoded body."""
        return bytes(self._data)

    def close(self) -> None:
        """Break the cycle between parser and callbacks."""
        self._data.clear()
        del self._parser
