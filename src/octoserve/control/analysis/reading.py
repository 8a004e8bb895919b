"""What a metrics provider read: sums by arm, and how old they are."""

from __future__ import annotations

import msgspec


class ArmSums(msgspec.Struct, frozen=True, kw_only=True):
    """n observations, their sum, and the sum of their squares. For a rate `total` is the number of successes."""

    n: float = 0.0
    total: float = 0.0
    squares: float = 0.0


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One metric, read once.

    candidate, baseline: None where the provider has nothing of that arm
    age:   seconds since the newest observation, None where the provider does not tell
    error: why nothing could be read; "" if something was
    """

    candidate: ArmSums | None = None
    baseline: ArmSums | None = None
    age: float | None = None
    error: str = ""
