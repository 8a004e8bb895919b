"""Content codings: gzip and deflate, undone within bounds and off the event loop where that takes long."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from octoserve.core.errors import Internal, InvalidInput, OctoserveError, TooLarge
from octoserve.patterns.online.http.connection import Connection
from octoserve.patterns.online.http.head import Head

log = logging.getLogger(__name__)

COMPRESS_FROM = 1024  # bytes; below, compression costs more than it saves
COMPRESS_TO = 1 << 20  # above, it would hold up every other request on the loop
_INFLATE_FROM = 64 << 10  # compressed bytes, from which a body is decompressed in a thread
_INFLATE_TO = 1 << 20  # and from which decompressed size, however little came
_INFLATE_THREADS = 2

Refusal = Callable[[Connection, Any, OctoserveError], None]
"""What answers a request that cannot be read; its second argument is the head's `InferHead`."""


class Inflater:
    """Undoes the coding of bodies, of all doors of a worker."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._threads = ThreadPoolExecutor(_INFLATE_THREADS, "inflate")

    def inflate(self, connection: Connection, head: Head, body: bytes, refuse: Refusal) -> None:
        """Hand the plain body to the `plain` of the head's binding, now or from a thread."""
        infer = head.binding
        limit = self._limit
        if len(body) < _INFLATE_FROM:
            try:
                plain = decompress(body, infer.encoding, min(limit, _INFLATE_TO))
            except OctoserveError as error:
                if not isinstance(error, TooLarge) or limit <= _INFLATE_TO:
                    refuse(connection, infer, error)
                    return
            else:
                infer.plain(connection, head, plain)
                return
        loop = asyncio.get_running_loop()
        inflated = loop.run_in_executor(self._threads, decompress, body, infer.encoding, limit)
        connection.call = inflated  # cancelled if the client goes away
        inflated.add_done_callback(lambda future: self._inflated(connection, head, future, refuse))

    def _inflated(self, connection: Connection, head: Head, inflated: asyncio.Future[bytes], refuse: Refusal) -> None:
        if inflated.cancelled() or connection.call is not inflated:
            return  # nobody waits any more
        connection.call = None
        try:
            head.binding.plain(connection, head, inflated.result())
        except OctoserveError as error:
            refuse(connection, head.binding, error)
        except Exception:
            log.exception("a compressed request failed")
            if connection.busy:
                refuse(connection, head.binding, Internal("internal error; the server's log has the reason"))


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo a Content-Encoding, at most `limit` bytes of it. Raises InvalidInput or TooLarge."""
    # 47: gzip or zlib by its header; -15 below: the raw deflate that some clients send as "deflate"
    for window in (47, -15) if encoding == "deflate" else (31,):
        inflate = zlib.decompressobj(window)
        try:
            data = inflate.decompress(body, limit + 1)
        except zlib.error:
            continue
        if len(data) > limit:
            raise TooLarge(f"the body has more than {limit} bytes when decompressed")
        if not inflate.eof or inflate.unused_data:
            raise InvalidInput(f"the {encoding} body is cut short or has something behind it")
        return data
    raise InvalidInput(f"the body is not {encoding}")


def compress(body: bytes, encoding: str) -> bytes:
    """`body` in the coding that the client accepts."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    return deflate.compress(body) + deflate.flush()
