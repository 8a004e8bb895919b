"""Small drawings that stand beside a word, never instead of one."""

from __future__ import annotations

from octoserve.patterns.online.supervisor.console.markup import Markup, el

_PATHS = {
    "check": "M3 8.5l3.2 3.2L13 4.8",
    "cross": "M4 4l8 8M12 4l-8 8",
    "straddle": "M2 8h12M8 3v10",
    "empty": "M8 2.8a5.2 5.2 0 1 0 0 10.4a5.2 5.2 0 1 0 0-10.4z",
    "alert": "M8 2.5L14 13.5H2zM8 6.5v3.2M8 11.6v.2",
    "uneven": "M3 6h10M3 10h10M10.5 3l-5 10",
    "now": "M5 3.5l7 4.5l-7 4.5z",
    "clock": "M8 2.8a5.2 5.2 0 1 0 0 10.4a5.2 5.2 0 1 0 0-10.4zM8 5v3.2l2.2 1.4",
    "person": "M8 2.6a2.6 2.6 0 1 0 0 5.2a2.6 2.6 0 1 0 0-5.2zM3 13.4c.6-2.6 2.4-3.8 5-3.8s4.4 1.2 5 3.8",
    "pause": "M5.5 3.5v9M10.5 3.5v9",
}

_OUTCOMES = {
    "PASS": ("check", "pass"),
    "HOLD": ("straddle", "hold"),
    "NO_DATA": ("empty", "no data"),
    "PROVIDER_ERROR": ("alert", "provider error"),
    "SRM": ("uneven", "sample mismatch"),
    "FAIL": ("cross", "fail"),
}


def icon(name: str) -> Markup:
    """A drawing in the colour of its text."""
    return el("svg", el("path", d=_PATHS[name]), viewBox="0 0 16 16", class_="icon", aria_hidden="true")


def outcome_icon(outcome: object) -> Markup:
    """The drawing of an outcome; one that is not known looks like no data."""
    return icon(_OUTCOMES.get(str(outcome), ("empty", ""))[0])


def outcome_word(outcome: object) -> str:
    """The word for an outcome."""
    return _OUTCOMES.get(str(outcome), ("", str(outcome)))[1]
