"""Rows of an outside system -> a reading. What is not a number, and what is of no arm, is an error: never a zero."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal

from octoserve.control.analysis.reading import ArmSums, Reading
from octoserve.control.providers.protocol import Window
from octoserve.core.evidence import BASELINE, CANDIDATE, STABLE

AHEAD = 300.0
"""Seconds that an outside system's clock may be ahead of ours. More is no clock but a wrong unit."""

_SUMS = ("n", "total", "squares")


class Unreadable(Exception):
    """What the outside system answered is no reading; the message is for who wrote the query."""


def role_of(arm: object, version: object, window: Window) -> str:
    """The role that a row is of; "" for none of this rollout. `version` counts where there is no `arm`."""
    if arm is not None:
        return arm if isinstance(arm, str) and arm in (CANDIDATE, BASELINE, STABLE) else ""
    text = str(version).strip()
    return {str(window.stable): STABLE, str(window.candidate): CANDIDATE}.get(text, "")


def number(value: object, name: str) -> float:
    """A number as it came, NaN and the infinities too; an empty sum (NULL) is NaN. Raises Unreadable for all else."""
    if value is None:
        return math.nan
    if isinstance(value, int | float | Decimal):
        try:
            return float(value)
        except (OverflowError, ValueError):
            return math.nan
    raise Unreadable(f"{name} is no number but {type(value).__name__}")


def moment(value: object) -> float:
    """Wall clock seconds of a time stamp: a number, a date with time, or ISO 8601 text; without a zone it is UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise Unreadable("newest is text but no ISO 8601 time") from None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return number(value, "newest")


class Gathering:
    """Sums by role, row by row. Rows of one role add up."""

    def __init__(self, window: Window, sums: Iterable[str], dated: bool) -> None:
        """`sums`: which of n, total and squares an arm must have. `dated`: whether its newest time was asked for."""
        self._window, self._dated = window, dated
        self._names = [name for name in _SUMS if name in set(sums)]
        self._sums: dict[str, dict[str, float]] = {}
        self._newest: dict[str, float] = {}
        self._stranger = ""

    def add(self, values: Mapping[str, object]) -> None:
        """One row: arm or version, and the sums; `newest` if it brings one. Raises Unreadable."""
        role = role_of(values.get("arm"), values.get("version"), self._window)
        if not role:
            self._stranger = f"{values['arm'] if 'arm' in values else values.get('version')!s:.50}"
            return
        row = {name: number(values[name], name) for name in self._names if name in values}
        if row.get("n") == 0 or (row.keys() >= {"n"} and values["n"] is None):
            row = {name: 0.0 if values[name] is None else value for name, value in row.items()}  # sum() of no rows
        for name, value in row.items():
            sums = self._sums.setdefault(role, {})
            sums[name] = sums.get(name, 0.0) + value
        if values.get("newest") is not None:
            self._newest[role] = max(self._newest.get(role, -math.inf), moment(values["newest"]))

    def reading(self) -> Reading:
        """What there is of the candidate and of what it is compared with. Raises Unreadable.

        The baseline where rows name one, else the stable version.
        """
        if self._stranger and not self._sums:
            raise Unreadable(
                f"no row is of this rollout: arms are candidate, baseline and stable, or versions "
                f"{self._window.candidate} and {self._window.stable}; one is of {self._stranger!r}"
            )
        base = BASELINE if BASELINE in self._sums else STABLE
        return Reading(candidate=self._arm(CANDIDATE), baseline=self._arm(base), age=self._age((CANDIDATE, base)))

    def _arm(self, role: str) -> ArmSums | None:
        sums = self._sums.get(role)
        if sums is None:
            return None
        missing = [name for name in self._names if name not in sums]
        if missing:
            raise Unreadable(f"{role} has {', '.join(sums)} and no {', '.join(missing)}: an absent sum is not zero")
        return ArmSums(**sums)

    def _age(self, roles: tuple[str, str]) -> float | None:
        """Of the arm that is behind: one that has stopped reporting is stale, however fresh the other one is.

        Infinite for one with observations of which none has a time.
        """
        observed = [role for role in roles if self._dated and self._sums.get(role, {}).get("n", 0.0) != 0.0]
        ages = [self._window.until - self._newest.get(role, -math.inf) for role in observed]
        if any(age < -AHEAD for age in ages):
            raise Unreadable("newest lies in the future: it is a time, or seconds since 1970")
        return max(0.0, *ages) if ages else None
