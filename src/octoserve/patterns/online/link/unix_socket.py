"""The unix socket between supervisor and workers: where it is, who may speak, how frames are cut.

The socket has mode 0600 in a folder of mode 0700, and a peer of another user is hung up on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

MAX_FRAME = 64 << 20
_LENGTH = struct.Struct(">I")
_CREDENTIALS = struct.Struct("3i")
_SUN_PATH = 100
"""Unix socket addresses hold 108 bytes on Linux, 104 elsewhere."""

encode_message: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
T = TypeVar("T")


def frame(message: Any) -> bytes:
    """A message as it goes over the socket: 4-byte big-endian length, MessagePack."""
    body = encode_message(message)
    return _LENGTH.pack(len(body)) + body


async def messages(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[T]) -> AsyncIterator[T]:
    """Messages until the peer goes away. Raises msgspec.MsgspecError or ValueError for what is none."""
    while True:
        try:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            if length > MAX_FRAME:
                raise ValueError(f"a control frame of {length} bytes; at most {MAX_FRAME} are allowed")
            body = await reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        yield decoder.decode(body)


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """`path`, or another name for it that fits into a socket address."""
    if len(os.fsencode(path)) <= _SUN_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}" if sys.platform == "linux" else str(path)
    finally:
        os.close(folder)


def listen(path: Path) -> socket.socket:
    """Listen at `path`, replacing a socket that a dead process left. The caller holds the service's lock."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o177)
        try:
            with _short(path) as name:
                listener.bind(name)
        finally:
            os.umask(mask)
        listener.listen(128)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def inside_path(beginning: str, index: int) -> Path:
    """The socket by which the service asks one of its workers for predictions."""
    return Path(f"{beginning}.{index}.sock")


async def connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the supervisor. Raises OSError while there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        with _short(path) as name:
            await asyncio.get_running_loop().sock_connect(connection, name)
        return await asyncio.open_unix_connection(sock=connection)
    except BaseException:
        connection.close()
        raise


def dial(path: Path, timeout: float) -> socket.socket:
    """The same, blocking. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        with _short(path) as name:
            connection.connect(name)
    except BaseException:
        connection.close()
        raise
    return connection


def peer_of(connection: Any) -> tuple[int, int] | None:
    """The peer's (pid, uid) as the kernel says, or None where it does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid
