"""What an endpoint or a queue promises: how fast, how surely, over how long; and how fast it may break that before it
matters.

The look-back windows, the shares of a budget and the two windows an alert are those of "The Site Reliability Workbook",
chapter 5, "Multiwindow, Multi-Burn-Rate Alerts", which has them for 30 days.
"""

from __future__ import annotations

import msgspec

DAY = 86400.0
QUANTILE = 0.99
"""Share of answers that a latency objective is about."""
DEADLINE_FACTOR = 2.0
"""Default deadline of an endpoint, in latency targets; see docs/slo.md#the-deadline."""
LATENCY, AVAILABILITY, FRESHNESS = "latency", "availability", "freshness"
GOOD, BAD = "octoserve_slo_good_total", "octoserve_slo_bad_total"
"""Metrics."""
WINDOWS = {"5m": 300.0, "30m": 1800.0, "1h": 3600.0, "6h": 21600.0, "3d": 259200.0}
"""Over which burn rates are kept, in seconds."""


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """The promise of an endpoint or a queue; an objective that is None is not made. Times in seconds."""

    latency: float | None = None
    """99 % of the answers take no longer."""
    availability: float | None = None
    """Share of the requests that are answered, of those that could be."""
    freshness: float | None = None
    """Of a queue: 99 % of the messages have their result so soon after their publication."""
    window: float = 30 * DAY

    def objectives(self) -> dict[str, float]:
        """Objective -> share of its requests that must be good."""
        made = {}
        if self.latency is not None:
            made[LATENCY] = QUANTILE
        if self.availability is not None:
            made[AVAILABILITY] = self.availability
        if self.freshness is not None:
            made[FRESHNESS] = QUANTILE
        return made

    def deadline(self) -> float | None:
        """Seconds for requests that bring no deadline, where nobody has set another; None without a latency target."""
        return None if self.latency is None else DEADLINE_FACTOR * self.latency


class Slos(msgspec.Struct, frozen=True, kw_only=True):
    """Of a whole service. A model that is mapped to None promises nothing, whatever the others do."""

    default: Slo | None = None
    models: dict[str, Slo | None] = {}

    def of(self, model: str) -> Slo | None:
        """What this model promises."""
        return self.models.get(model, self.default)

    def any(self) -> bool:
        """Whether anything is promised at all."""
        return self.default is not None or any(slo is not None for slo in self.models.values())


class BurnAlert(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody is told when the budget burns `factor` times too fast in both windows: long enough, and still."""

    name: str
    severity: str  # page | ticket
    long: str
    short: str
    share: float
    """Of the budget that is gone when `long` has passed at this rate."""
    factor: float


_ALERTS = (
    ("fast", "page", "1h", "5m", 0.02),
    ("slow", "page", "6h", "30m", 0.05),
    ("creeping", "ticket", "3d", "6h", 0.1),
)
_MOST = 0.5
"""Share of failures that always alerts: of a large budget, many times too fast would be more than all requests."""


def alerts(window: float, target: float) -> list[BurnAlert]:
    """When to tell somebody, for an objective of `target` over `window` seconds; the fastest first.

    A factor is never below 1, at which a budget lasts exactly its window.
    """
    made = []
    for name, severity, long, short, share in _ALERTS:
        factor = min(max(1.0, share * window / WINDOWS[long]), _MOST / (1 - target))
        factor = round(factor, 4)
        made.append(BurnAlert(name=name, severity=severity, long=long, short=short, share=share, factor=factor))
    return made


def burn(good: float, bad: float, target: float) -> float:
    """How many times too fast the budget went: 1 uses it up at the end of the window. No requests burn nothing."""
    total = good + bad
    return bad / total / (1 - target) if total > 0 else 0.0
