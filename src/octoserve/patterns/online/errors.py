"""What an error is called on the wire: one table for both doors."""

from __future__ import annotations

from octoserve.core.errors import (
    BrokenVersion,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    NotFound,
    OctoserveError,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unsupported,
)

_NAMES: tuple[tuple[type[OctoserveError], int, int], ...] = (
    # kind, HTTP status, google.rpc.Code
    (TooLarge, 413, 8),
    (InvalidInput, 400, 3),
    (BrokenVersion, 400, 9),
    (Unauthenticated, 401, 16),
    (Forbidden, 403, 7),
    (NotFound, 404, 5),
    (Conflict, 409, 6),
    (Unsupported, 501, 12),
    (Unavailable, 503, 14),
    (Overloaded, 429, 8),
    (DeadlineExceeded, 504, 4),
    (Cancelled, 499, 1),
)
_OUR_FAULT = (500, 13)


def headers_of(error: OctoserveError) -> str:
    """Header lines that belong to an error's status: when to come back, how to say who one is (RFC 6750)."""
    if isinstance(error, Overloaded):
        return f"retry-after: {error.retry_after}"
    if isinstance(error, Unauthenticated):
        return 'www-authenticate: Bearer realm="octoserve"' + (', error="invalid_token"' if error.given else "")
    return ""


def status_of(error: OctoserveError) -> int:
    """The HTTP status of an error; 500 for what is our fault."""
    return _named(error)[0]


def code_of(error: OctoserveError) -> int:
    """The gRPC status code of an error; INTERNAL for what is our fault."""
    return _named(error)[1]


def _named(error: OctoserveError) -> tuple[int, int]:
    for kind, status, code in _NAMES:
        if isinstance(error, kind):
            return status, code
    return _OUR_FAULT
