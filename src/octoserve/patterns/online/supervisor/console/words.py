"""Numbers, durations and consequences as a person on call reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NONE = "\N{EN DASH}"
"""Shown where there is no value."""
MINUS = "\N{MINUS SIGN}"
THIN = "\N{NO-BREAK SPACE}"

_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SPANS = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"))

PHASES: Mapping[str, str] = {
    "waiting": "Version {candidate} is not ready in every worker yet; version {stable} answers.",
    "preparing": "Version {candidate} is tried on its golden samples; version {stable} answers.",
    "running": "Version {candidate} is judged step by step.",
    "promoting": "All traffic goes to version {candidate}; not every worker follows yet.",
    "retaining": "Version {candidate} has all traffic; version {stable} is kept hot for a rollback.",
    "aborting": "All traffic goes to version {stable}; not every worker follows yet.",
    "ended": "The rollout is over.",
}


def number(value: object) -> float | None:
    """A finite number, or None for everything that is not one."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def plain(value: object, digits: int = 3) -> str:
    """`digits` significant ones, k for thousands and so on: 0.25, 12, 1.23 k, 4.5 M."""
    came = number(value)
    if came is None:
        return NONE
    size = abs(came)
    if size >= 1e15:
        return _signed(f"{came:.2g}")
    for scale, unit in _SCALES:
        if size >= scale * 0.9995:
            return _signed(_digits(came / scale, digits)) + THIN + unit
    return _signed(_digits(came, digits))


def _digits(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    shown = f"{value:.{min(places, 9)}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def _signed(shown: str) -> str:
    shown = "0" if shown in ("-0", "") else shown
    return MINUS + shown[1:] if shown.startswith("-") else shown


def count(value: object) -> str:
    """A whole number with thin groups: 1,234."""
    came = number(value)
    return NONE if came is None else _signed(f"{came:,.0f}") if abs(came) < 1e12 else plain(came)


def percent(share: object) -> str:
    """A share of 1: 0.125 is 12.5 %."""
    came = number(share)
    return NONE if came is None else plain(came * 100) + THIN + "%"


def seconds(value: object) -> str:
    """A latency: 800 us, 4 ms, 1.2 s."""
    came = number(value)
    if came is None:
        return NONE
    size = abs(came)
    if size < 0.9995e-3 and came:
        return plain(came * 1e6) + THIN + "µs"
    return plain(came * 1e3) + THIN + "ms" if size < 0.9995 else plain(came) + THIN + "s"


def span(value: object) -> str:
    """A duration in whole seconds, two units at most: 58 min 20 s."""
    came = number(value)
    if came is None:
        return NONE
    left = max(0, round(came))
    for size, unit, smaller, name in _SPANS:
        if left >= size:
            rest = left % size // smaller
            return f"{left // size}{THIN}{unit}" + (f" {rest}{THIN}{name}" if rest else "")
    return f"{left}{THIN}s"


def effect(value: object, unit: str) -> str:
    """A difference between candidate and comparison: +0.4 pts, +20 %, or in the metric's own unit."""
    came = number(value)
    if came is None:
        return NONE
    if unit == "share":
        return _plus(came * 100) + THIN + ("pt" if abs(came) == 0.01 else "pts")
    if unit == "ratio":
        return _plus((came - 1) * 100) + THIN + "%"
    return _plus(came) + (THIN + unit if unit else "")


def reach(low: object, high: object, unit: str) -> str:
    """An interval with its unit said once; an end that is not known is open."""
    if number(low) is None and number(high) is None:
        return "no interval yet"
    if number(low) is None or number(high) is None:
        return f"{_end(low, unit)} to {_end(high, unit)}"
    return (
        f"{effect(low, unit).partition(THIN)[0]} to {effect(high, unit)}"
        if unit in ("share", "ratio")
        else (f"{_plus(number(low) or 0.0)} to {effect(high, unit)}")
    )


def _end(value: object, unit: str) -> str:
    return "open" if number(value) is None else effect(value, unit)


def _plus(value: float) -> str:
    shown = plain(value)
    return shown if shown == NONE or shown.startswith(MINUS) or shown == "0" else f"+{shown}"


def several(n: int, one: str, more: str = "") -> str:
    """1 worker, 2 workers."""
    return f"{n} {one if n == 1 else more or one + 's'}"


def consequence(command: str, rollout: Mapping[str, Any]) -> str:
    """What a command does, in one sentence that a person reads before they confirm it."""
    stable, candidate = rollout.get("stable"), rollout.get("candidate")
    steps = rollout.get("steps") or []
    at = int(rollout.get("step") or 0)
    if command == "approve":
        return _approval(rollout, steps, at)
    if command == "promote" and rollout.get("phase") == "retaining":
        return f"Version {candidate} is accepted for good, and version {stable} is no longer kept for a rollback."
    if command == "abort":
        weight = _weight(steps, at) if rollout.get("phase") == "running" else 0
        if rollout.get("phase") in ("promoting", "retaining") or weight:
            return (
                f"All traffic goes to version {stable} at once, and version {candidate} does not come back by itself."
            )
        return f"All traffic stays with version {stable}, and the rollout of version {candidate} ends."
    sentences = {
        "pause": f"The rollout stays where it is, {_place(rollout, steps, at)}, until somebody resumes it.",
        "resume": f"The rollout goes on by itself, {_place(rollout, steps, at)}.",
        "promote": f"All traffic goes to version {candidate} at once, without waiting for the remaining steps.",
        "rollback": f"All traffic goes back to version {stable} at once.",
    }
    return sentences.get(command, f"The rollout is asked to {command}.")


def _approval(rollout: Mapping[str, Any], steps: list[Mapping[str, Any]], at: int) -> str:
    candidate = rollout.get("candidate")
    if at + 1 >= len(steps):
        if rollout.get("strategy") == "shadow":
            return "The rollout may end as soon as the checks of this step have passed."
        return f"All traffic goes to version {candidate} as soon as the checks of this step have passed."
    share = _weight(steps, at + 1)
    if share:
        return f"Version {candidate} goes to {percent(share)} of the traffic as soon as the checks of this step pass."
    return f"Step {at + 2} of {len(steps)} begins as soon as the checks of this step have passed."


def _weight(steps: list[Mapping[str, Any]], at: int) -> float:
    return number(steps[at].get("weight")) or 0.0 if 0 <= at < len(steps) else 0.0


def _place(rollout: Mapping[str, Any], steps: list[Mapping[str, Any]], at: int) -> str:
    if rollout.get("phase") != "running" or not steps:
        return str(rollout.get("phase"))
    return f"at step {at + 1} of {len(steps)} ({percent(_weight(steps, at))} to version {rollout.get('candidate')})"
