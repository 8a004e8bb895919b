"""The admin API's server: uvicorn with a bound on connections and on the time that a request's head may take.

The supervisor's descriptors are what its workers are reached by; nobody may use them up by half a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from asyncio import constants
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 100
HEAD_TIMEOUT = 10.0
"""Seconds from a connection, or from a later request's first byte, to the end of its head."""


class GuardedProtocol(H11Protocol):
    """One connection. One too many is closed at once; one that is slow to ask is closed at `HEAD_TIMEOUT`."""

    _head: asyncio.TimerHandle | None = None
    _turned_away = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        if len(self.connections) >= MAX_CONNECTIONS:
            log.warning("admin API: more than %d connections; one is turned away", MAX_CONNECTIONS)
            self._turned_away = True
            transport.abort()
            return
        super().connection_made(transport)
        self._attend()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._turned_away:
            return
        super().data_received(data)
        self._attend()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        if self._head is not None:
            self._head.cancel()
        if not self._turned_away:
            super().connection_lost(exc)

    def _attend(self) -> None:
        """The clock runs while no request is being answered."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering and self._head is None:
            self._head = self.loop.call_later(HEAD_TIMEOUT, self._too_slow)
        elif answering and self._head is not None:
            self._head.cancel()
            self._head = None

    def _too_slow(self) -> None:
        self._head = None
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering:
            self.transport.abort()


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the supervisor has them."""

    def capture_signals(self) -> Any:
        """See uvicorn."""
        return contextlib.nullcontext()


async def serve_application(app: ASGIApp, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
    """Serve until cancelled."""
    config = uvicorn.Config(
        app,
        http=GuardedProtocol,
        limit_concurrency=MAX_CONNECTIONS + 1,
        backlog=128,
        log_config=None,
        access_log=False,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=1,
        server_header=False,
        ws="none",
        loop="none",
    )
    config.load()
    config.ssl = tls
    if tls is not None:  # uvicorn hands no time-out on: half a handshake is not to hold a descriptor for a minute
        setattr(constants, "SSL_HANDSHAKE_TIMEOUT", HEAD_TIMEOUT)  # noqa: B010 - typed as final
    await _Server(config).serve(sockets=[listener])
