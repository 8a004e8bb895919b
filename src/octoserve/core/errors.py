"""What can go wrong, by kind. Doors translate a kind to their protocol; nobody else knows a status code.

Each error carries a `reason`: a short, stable word that metrics are labelled with. The message is for
the person who made the request: what was wanted, what came, what to do.
"""

from __future__ import annotations


class OctoserveError(Exception):
    """The root of every error that octoserve raises on purpose."""

    reason = "internal"


class InvalidInput(OctoserveError):
    """The request can never succeed as it is."""

    reason = "invalid"


class TooLarge(InvalidInput):
    """A declared limit on size, depth or count was exceeded."""

    reason = "too_large"


class NotFound(OctoserveError):
    """No such model, version, label or route."""

    reason = "not_found"


class Unsupported(OctoserveError):
    """Understood, and not offered here."""

    reason = "unsupported"


class Conflict(OctoserveError):
    """It contradicts what is there already."""

    reason = "conflict"


class Unavailable(OctoserveError):
    """It exists and cannot answer now."""

    reason = "unavailable"


class Overloaded(OctoserveError):
    """Shed at the door. `retry_after` is in seconds, at least 1."""

    reason = "shed"

    def __init__(self, message: str, retry_after: int = 1, reason: str = "shed") -> None:
        super().__init__(message)
        self.retry_after = max(1, retry_after)
        self.reason = reason


class DeadlineExceeded(OctoserveError):
    """The caller's time ran out before an answer was there."""

    reason = "deadline"


class Cancelled(OctoserveError):
    """The caller went away."""

    reason = "cancelled"


class Internal(OctoserveError):
    """Our fault or the model's; the details are in the log, not in the answer."""

    reason = "internal"


class BrokenVersion(OctoserveError):
    """A model version that cannot be loaded, with the reason that the operator sees."""

    reason = "broken_version"


class SettingsError(OctoserveError):
    """The operator's settings cannot be used; the message names the field and the remedy."""

    reason = "settings"


CLIENTS_DOING = frozenset(
    {
        "invalid", "too_large", "not_found", "unsupported", "conflict", "cancelled",
        "tenant_rate", "tenant_concurrency",
    }
)  # fmt: skip
"""Reasons that are the client's doing: no error of a version, and nothing that breaks a promise. Any other is ours."""
