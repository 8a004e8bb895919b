"""An asyncio transport without a socket, and a strict reader of what a server wrote to it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any


class FakeTransport(asyncio.Transport):
    """Keeps what is written. `reads=False`: a client that reads nothing, so that writing is paused."""

    def __init__(self, protocol: asyncio.Protocol, high_water: int = 64 << 10) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = bytearray()
        self.closing = False
        self.aborted = False
        self.lost = False
        self.reading = True
        self.reads = True
        self.unsent = 0
        self.high_water = high_water
        self.writing_paused = False
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        assert not self.lost
        self.written += data
        if not self.reads:
            self.unsent += len(data)
            if self.unsent > self.high_water and not self.writing_paused:
                self.writing_paused = True
                self.protocol.pause_writing()

    def read_all(self) -> None:
        """The client reads what was waiting for it."""
        self.reads = True
        self.unsent = 0
        if self.writing_paused:
            self.writing_paused = False
            self.protocol.resume_writing()

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high_water = high if high is not None else 64 << 10

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True
        self.reading = False

    def abort(self) -> None:
        self.closing = self.aborted = True
        self.reading = False

    def pause_reading(self) -> None:
        assert self.reading or self.closing
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.closing
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def lose(self) -> None:
        """The connection is gone."""
        if not self.lost:
            self.closing = self.lost = True
            self.protocol.connection_lost(None)


@dataclass
class Response:
    """One answer as a client sees it."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes


def responses(written: bytes, methods: list[str] | None = None) -> list[Response]:
    """Every answer in `written`. Asserts that they are well formed, whole, and nothing is left over."""
    found: list[Response] = []
    at = 0
    while at < len(written):
        end = written.find(b"\r\n\r\n", at)
        assert end >= 0, f"no whole head in {written[at:]!r}"
        start, *lines = bytes(written[at:end]).decode("latin-1").split("\r\n")
        version, status, reason = start.split(" ", 2)
        assert version == "HTTP/1.1", start
        assert status.isdigit(), start
        assert len(status) == 3, start
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            assert colon, line
            assert name, line
            assert name == name.strip().lower(), line
            assert name not in headers, f"{name} twice"
            headers[name] = value.strip()
        at = end + 4
        size = 0
        if int(status) >= 200:
            assert "date" in headers
            size = int(headers["content-length"])
            if methods and methods[len(found)] == "HEAD":
                size = 0
        body = bytes(written[at : at + size])
        assert len(body) == size, "the body is cut short"
        at += size
        found.append(Response(int(status), reason, headers, body))
    return found
