"""The API's Status as values, and the words and numbers that a terminal shows of it.

What the server leaves out has a default, what it adds is ignored: a client of another release shows what it knows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from octoserve.cli.admin_client import printable
from octoserve.control.analysis.verdict import Verdict
from octoserve.core.errors import InvalidInput
from octoserve.core.evidence import PairEvidence

ENDED = "ended"
GOOD_ENDS = ("promoted", "observed")

Read = TypeVar("Read")


class RouteView(msgspec.Struct, frozen=True):
    """A version's share (of 1) of the requests."""

    version: int = 0
    role: str = ""
    share: float = 0.0


class StepView(msgspec.Struct, frozen=True):
    """One step: shares of 1, seconds, and whether it is done, now or next."""

    weight: float = 0.0
    mirror: float = 0.0
    samples: int = 0
    pause: float = 0.0
    approval: bool = False
    state: str = ""


class ArmView(msgspec.Struct, frozen=True):
    """What one arm did in this step; latencies in seconds."""

    assigned: int = 0
    attempts: int = 0
    failures: int = 0
    p50: float | None = None
    p99: float | None = None


class Exposure(msgspec.Struct, frozen=True):
    """Samples that are there and that are wanted."""

    have: int = 0
    want: int = 0


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout as the API shows it; times are wall-clock seconds since 1970."""

    id: str = ""
    strategy: str = ""
    stable: int = 0
    candidate: int = 0
    phase: str = ""
    result: str = ""
    reason: str = ""
    paused: str = ""
    step: int = 0
    steps: tuple[StepView, ...] = ()
    started: float = 0.0
    entered: float = 0.0
    settled: float | None = None
    deadline: float | None = None
    now: float = 0.0
    waiting_for: str = ""
    samples: Exposure | None = None
    verdicts: tuple[Verdict, ...] = ()
    arms: Mapping[str, ArmView] = {}
    pairs: PairEvidence | None = None
    actions: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.phase == ENDED

    @property
    def current(self) -> StepView:
        """The current step."""
        return self.steps[self.step] if 0 <= self.step < len(self.steps) else StepView()


class ReplicaView(msgspec.Struct, frozen=True):
    """A service that shares the rollout store; seconds since it was last heard of."""

    id: str = ""
    leads: bool = False
    here: bool = False
    silent: float = 0.0
    counts: bool = False


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint."""

    endpoint: str = ""
    stable: int | None = None
    routes: tuple[RouteView, ...] = ()
    generation: int = 0
    acknowledged: bool = True
    refused: tuple[int, ...] = ()
    on_new_version: str = ""
    replicas: tuple[ReplicaView, ...] = ()
    rollout: RolloutView | None = None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout in the history."""

    id: str = ""
    strategy: str = ""
    stable: int = 0
    candidate: int = 0
    phase: str = ""
    result: str = ""
    reason: str = ""
    started: float = 0.0
    ended: float | None = None


def read_status(value: Any) -> Status:
    """The Status in the API's JSON. Raises InvalidInput where it is none."""
    return _read(value, Status)


def read_history(value: Any) -> list[Summary]:
    """The Summaries in the API's JSON."""
    return _read(value, list[Summary])


def _read(value: Any, kind: type[Read]) -> Read:
    try:
        return msgspec.convert(_clean(value), kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the answer is none that this octoserve understands: {error}; --json shows it") from None


def _clean(value: Any) -> Any:
    """Without escape sequences in any text: reasons and segments are what somebody typed or sent."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value


# --- words and numbers ----------------------------------------------------------------------------------


def percent(share: float) -> str:
    """0.1 -> 10 %; as few digits as it takes."""
    value = round(share * 100, 6)
    digits = 0 if value == round(value) else 1 if value == round(value, 1) or value >= 10 else 2
    return f"{value:.{digits}f} %"


def duration(seconds: float) -> str:
    """42 s, 3 min 20 s, 1 h 05 min, 2 d 3 h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600 and whole % 60 == 0:
        return f"{whole // 60} min"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def latency(seconds: float | None) -> str:
    """Milliseconds, three digits that count."""
    if seconds is None:
        return "–"
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def clock(when: float, day: bool = False) -> str:
    """Local time of day, with the day if asked for."""
    return time.strftime("%Y-%m-%d %H:%M" if day else "%H:%M:%S", time.localtime(when))


def effect(value: float | None, unit: str, bound: bool = False) -> str:
    """An effect in its unit: shares as percentage points with a sign, ratios with a ×. "" for none.

    bound: a margin, which has no sign, with its unit's name
    """
    if value is None:
        return ""
    if unit == "ratio":
        return f"×{value:.2f}"
    if unit == "share":
        points = value * 100
        digits = 2 if abs(points) < 10 else 1
        return f"{points:.{digits}f} pp" if bound else f"{points:+.{digits}f}"
    return f"{value:.4g} {unit}".rstrip() if bound else f"{value:+.3g}"


def standing(rollout: RolloutView) -> str:
    """Where it stands, in a few words."""
    if rollout.ended:
        return f"ended: {rollout.result or 'without a result'}"
    words = rollout.phase
    if rollout.phase == "running":
        words = f"step {rollout.step + 1} of {len(rollout.steps)}"
    return f"paused, {words}" if rollout.paused else words


def routes(status: Status) -> str:
    """`v2 10 %, v1 90 %`: each version's share, whatever its role."""
    shares: dict[int, float] = {}
    for route in status.routes:
        shares[route.version] = shares.get(route.version, 0.0) + route.share
    return ", ".join(f"v{version} {percent(share)}" for version, share in shares.items() if share > 0) or "nothing"
