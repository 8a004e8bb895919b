"""Listening ports that several processes share by SO_REUSEPORT, held by the supervisor so that they stay ours.

The supervisor binds and never listens: the kernel sends it no connection, and nobody else gets the port
while workers come and go.
"""

from __future__ import annotations

import errno
import socket

from octoserve.core.errors import SettingsError


class ReservedPort:
    """One port on every address of `host`."""

    def __init__(self, port: int, sockets: list[socket.socket]) -> None:
        self.port = port
        self._sockets = sockets

    def close(self) -> None:
        """Let go of it."""
        for held in self._sockets:
            held.close()


def reserve(host: str, port: int, field: str, ours: bool = False) -> ReservedPort:
    """Bind `port`, or a free one for 0.

    ours: workers of this service may be listening there already; else somebody who listens is a stranger,
    even if the kernel would let us share. Raises SettingsError that names the field and the remedy.
    """
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SettingsError(f"host: {host!r} is no address of this machine ({error})") from None
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in addresses:
            target = (address[0], port, *address[2:])
            if port and not ours:
                _probe(family, kind, protocol, target)
            held = socket.socket(family, kind, protocol)
            sockets.append(held)
            if family == socket.AF_INET6:
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(target)
            port = port or held.getsockname()[1]
    except OSError as error:
        for held in sockets:
            held.close()
        raise _refusal(error, host, port, field) from None
    return ReservedPort(port, sockets)


def _probe(family: int, kind: int, protocol: int, target: tuple[object, ...]) -> None:
    """Raise OSError if anybody listens there; connections of the past do not matter."""
    with socket.socket(family, kind, protocol) as probe:
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(target)


def _refusal(error: OSError, host: str, port: int, field: str) -> SettingsError:
    flag = "--" + field.replace("_", "-")
    if error.errno == errno.EADDRINUSE:
        return SettingsError(
            f"{field}: port {port} on {host} is in use by another program; stop that one, or choose another "
            f"with {flag} (0 picks a free one)"
        )
    if error.errno == errno.EACCES:
        return SettingsError(f"{field}: port {port} needs privileges; choose one above 1023 with {flag}")
    return SettingsError(f"{field}: cannot bind port {port} on {host}: {error}; choose another with {flag}")
