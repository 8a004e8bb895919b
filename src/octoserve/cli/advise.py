"""`octoserve advise`: five answers, by flag or asked for, and the pattern that fits them, with its reasons."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any, cast, get_args

import msgspec
import typer
from rich.console import Console

from octoserve.cli.advice import DAY, Advice, Choice, Connectivity, Needs, Risk
from octoserve.cli.advice import advise as advice_for
from octoserve.core.errors import SettingsError
from octoserve.spec.values import parse_duration

_VOLUME = re.compile(r"(\d+(?:\.\d+)?)\s*([kMG]?)\s*/\s*(s|sec|second|min|minute|m|h|hour|d|day)")
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
_QUESTIONS = {
    "latency": "How long may somebody wait for an answer? (50ms, 2s; none where nobody waits)",
    "volume": "How many predictions are there on average? (500/s, 2M/day)",
    "freshness": "How old may an answer be, counted from what it is about? (now, 10s, 1d)",
    "connectivity": "Is there a network where the answer is used? (always, sometimes, never)",
    "risk": "What does a wrong answer of a new version cost? (low, medium, high)",
}


def _latency(text: str) -> float | None:
    return None if text == "none" else _positive(parse_duration(text))


def _volume(text: str) -> float:
    found = _VOLUME.fullmatch(text)
    if found is None or float(found[1]) <= 0:
        raise ValueError("a rate such as 500/s, 20k/h or 2M/day")
    return float(found[1]) * _FACTORS[found[2]] / _SECONDS[found[3][0]]


def _freshness(text: str) -> float:
    return 0.0 if text == "now" else _positive(parse_duration(text))


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("a duration of more than 0, such as 20ms, 30s or 2m")
    return seconds


def _one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    def chosen(text: str) -> str:
        if text not in words:
            raise ValueError(", ".join(words[:-1]) + f" or {words[-1]}")
        return text

    return chosen


_READERS: dict[str, Callable[[str], Any]] = {
    "latency": _latency,
    "volume": _volume,
    "freshness": _freshness,
    "connectivity": _one_of(get_args(Connectivity)),
    "risk": _one_of(get_args(Risk)),
}


def advise(
    latency: Annotated[str, typer.Option(help="How long somebody waits: 50ms, 2s; none where nobody does")] = "",
    volume: Annotated[str, typer.Option(help="Predictions on average: 500/s, 2M/day")] = "",
    freshness: Annotated[str, typer.Option(help="How old an answer may be: now, 10s, 1d")] = "",
    connectivity: Annotated[str, typer.Option(help="A network where answers are used: always, sometimes, never")] = "",
    risk: Annotated[str, typer.Option(help="What a new version's wrong answer costs: low, medium, high")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Recommend a pattern, with reasons. What no flag says is asked for."""
    given = {
        "latency": latency, "volume": volume, "freshness": freshness, "connectivity": connectivity, "risk": risk,
    }  # fmt: skip
    missing = [name for name, text in given.items() if not text]
    if missing and not _terminal():
        flags = ", ".join(f"--{name}" for name in missing)
        raise SettingsError(f"{flags}: wanted, and there is no terminal to ask on; see `octoserve advise --help`")
    told = {name: _read(name, text) if text else _ask(name) for name, text in given.items()}
    needs = Needs(
        latency=cast("float | None", told["latency"]),
        volume=told["volume"],
        freshness=told["freshness"],
        connectivity=told["connectivity"],
        risk=told["risk"],
    )
    advice = advice_for(needs)
    if as_json:
        typer.echo(json.dumps({"needs": msgspec.to_builtins(needs), **msgspec.to_builtins(advice)}))
    else:
        _show(advice)


def _terminal() -> bool:
    return sys.stdin.isatty()


def _read(name: str, text: str) -> Any:
    try:
        return _READERS[name](text.strip())
    except ValueError as error:
        raise SettingsError(f"--{name}: {error} wanted, {text!r} came") from None


def _ask(name: str) -> Any:
    while True:
        text = typer.prompt(_QUESTIONS[name])
        try:
            return _READERS[name](text.strip())
        except ValueError as error:
            typer.echo(f"{error} wanted, {text!r} came")


def _show(advice: Advice) -> None:
    console = Console(highlight=False)
    _choice(console, "serve it", advice.serve)
    _choice(console, "change it", advice.change)
    for place, (name, reason) in enumerate(advice.rejected.items()):
        console.print(f"[bold]{'' if place else 'not':<10}[/] {name}: {reason}", soft_wrap=True)


def _choice(console: Console, head: str, choice: Choice) -> None:
    pattern = choice.pattern
    planned = "" if pattern.built else " [yellow](planned)[/]"
    console.print(f"[bold]{head:<10}[/] [bold green]{pattern.name}[/]{planned}", soft_wrap=True)
    for reason in choice.because:
        console.print(f"{'':<10} {reason}", soft_wrap=True, markup=False)
    if choice.instead:
        console.print(f"{'':<10} {choice.instead}", soft_wrap=True, markup=False)
    console.print(f"{'':<10} begin: {pattern.begin}", soft_wrap=True, markup=False)
    console.print(f"{'':<10} read:  docs/{pattern.page}", soft_wrap=True, markup=False)
