"""What the operator says about who is let in, and what is kept: the values that the spec hands to the data plane."""

from __future__ import annotations

import math

import msgspec

from octoserve.core.slo import Slos

HIGH, NORMAL, LOW = 0, 1, 2
LEVELS = ("high", "normal", "low")
"""Names by place; a client's number is one more, since its 0 stands for the default."""


class Priorities(msgspec.Struct, frozen=True):
    """Levels of a queue; see docs/decisions/0026-priorities-and-tenants.md.

    default: of a request that names none
    shares:  by level, how much of the queue may be taken when it is let in; none is larger than the one before
    turn:    each so many-th run that would overtake somebody begins with who has waited longest
    """

    default: int = NORMAL
    shares: tuple[float, float, float] = (1.0, 0.9, 0.5)
    turn: int = 8


class TenantLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one tenant may ask; None for no limit.

    concurrency: requests in flight
    rate:        requests a second
    burst:       requests at once after a pause; None for one second's worth
    priority:    the highest level that its requests get
    """

    concurrency: int | None = None
    rate: float | None = None
    burst: int | None = None
    priority: int = HIGH

    def share(self, workers: int) -> TenantLimits:
        """Of each of so many workers; what is counted one by one is rounded up."""
        burst = self.burst
        if self.rate is not None:
            burst = max(1, math.ceil((self.rate if burst is None else burst) / workers))
        return TenantLimits(
            concurrency=None if self.concurrency is None else math.ceil(self.concurrency / workers),
            rate=None if self.rate is None else self.rate / workers,
            burst=burst,
            priority=self.priority,
        )


class TenantRules(msgspec.Struct, frozen=True):
    """Limits by tenant. key: an expression, see `routing.key`; per: instead of `default`, as a whole."""

    key: str
    default: TenantLimits = TenantLimits()
    per: dict[str, TenantLimits] = {}

    def share(self, workers: int) -> TenantRules:
        """Of each of so many workers."""
        return TenantRules(
            self.key, self.default.share(workers), {name: limits.share(workers) for name, limits in self.per.items()}
        )


class CacheLimits(msgspec.Struct, frozen=True):
    """How much one worker keeps of a model's answers, in bytes, and for how long, in seconds."""

    bytes: int = 64 << 20
    ttl: float = 60.0


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """Who is let in to the data plane of one process, and what it keeps."""

    max_queue: int = 1024
    """Requests waiting or running; one more is shed."""
    default_deadline: float | None = None
    """Seconds, for requests that bring none; None lets them wait as long as their connection lives."""
    deadlines: dict[str, float | None] = {}
    """By model, in place of `default_deadline`; None lets it wait."""
    slos: Slos = Slos()
    """What the endpoints promise: counted against, request by request."""
    max_batch_bytes: int = 16 << 20
    """Of inputs that one run may merge."""
    max_pending_bytes: int = 512 << 20
    """Of inputs that wait or run, over all models."""
    priorities: Priorities | None = None
    tenants: TenantRules | None = None
    """This worker's share of their limits."""
    caches: dict[str, CacheLimits] = {}
    """Models whose answers are kept."""
