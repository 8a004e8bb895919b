"""What a worker makes of `security`: its guard, its metrics, and what its ports are opened with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from octoserve.core.clock import Clock, monotonic
from octoserve.security.guard import Guard
from octoserve.security.settings import Security
from octoserve.telemetry.metrics import Registry

MISSED_SECONDS = 5.0
"""Whoever sends tokens that nobody signed is not to have the provider asked more often."""


def guard_of(security: Security, registry: Registry, missed: Callable[[], None]) -> Guard | None:
    """None where neither certificates nor callers are asked for. See `Guard`."""
    if not security.on:
        return None
    reloads = registry.counter(
        "octoserve_security_reloads_total", "Files of security that were read anew.", ("what", "outcome")
    )
    guard = Guard(
        security,
        missed=Rarely(missed),
        told=lambda what, good: reloads.counter(what, "ok" if good else "refused").add(),
    )
    registry.gauge(
        "octoserve_security_stale", "1 where the files, as they are, cannot be used.", ("what",), guard.stale
    )
    return guard


def tls_options(guard: Guard | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the HTTP and the gRPC port are opened with beside their sockets; the guard is ready."""
    if guard is None or guard.certificates is None:
        return {}, {}
    from octoserve.security.certificates import HANDSHAKE_SECONDS, HTTP1, HTTP2

    http, grpc = (guard.certificates.context(alpn) for alpn in (HTTP1, HTTP2))
    patience = {"ssl_handshake_timeout": HANDSHAKE_SECONDS}
    return {"ssl": http, **patience}, {"ssl": grpc, **patience}


class Rarely:
    """Calls at most once in `MISSED_SECONDS`."""

    def __init__(self, what: Callable[[], None], clock: Clock = monotonic) -> None:
        self._what, self._clock = what, clock
        self._next = 0.0

    def __call__(self) -> None:
        now = self._clock()
        if now >= self._next:
            self._next = now + MISSED_SECONDS
            self._what()
