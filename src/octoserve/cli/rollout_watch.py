"""Following a rollout: a live screen on a terminal, lines of changes elsewhere, JSON for programs.

The service may go away and come back meanwhile: what was last seen stays on the screen, with how long there has been no
answer. Only the first request must succeed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.text import Text

from octoserve.cli.admin_client import NoAnswer
from octoserve.cli.rollout_screen import overview_lines, printed, status_lines
from octoserve.cli.rollout_status import RolloutView, Status, clock, effect, read_status, routes, standing
from octoserve.cli.rollout_verdicts import drawn
from octoserve.control.analysis.verdict import Verdict
from octoserve.core.errors import OctoserveError, SettingsError

_NUMBER = re.compile(r"\d[\d.,]*")


class Look(NamedTuple):
    """What one request brought: `raw` by endpoint, the last good answer; `silence`: seconds since then, 0 for now."""

    raw: dict[str, Any]
    silence: float = 0.0
    why: str = ""

    @property
    def statuses(self) -> list[Status]:
        """The same, read."""
        return [read_status(status) for status in self.raw.values()]


Ask = Callable[[], dict[str, Any]]
Done = Callable[[list[Status]], bool]


def looks(ask: Ask, interval: float, now: Callable[[], float], sleep: Callable[[float], None]) -> Iterator[Look]:
    """Ask for ever. The first answer must come (else: what `ask` raises); later only a refused token ends it."""
    raw, answered = ask(), now()
    yield Look(raw)
    while True:
        sleep(interval)
        try:
            raw, answered, why = ask(), now(), ""
        except SettingsError:
            raise
        except OctoserveError as error:
            why = error.why if isinstance(error, NoAnswer) else str(error)
        yield Look(raw, now() - answered if why else 0.0, why)


def follow(ask: Ask, url: str, interval: float, as_json: bool, done: Done | None = None) -> bool:
    """Show what `ask` brings until `done` says so (True) or until Ctrl-C or SIGTERM (False).

    as_json: a line for each change; with `done`, only what is there at the end
    """
    show: Callable[[Iterator[Look], str, Done], None] = _lines
    if as_json:
        show = _json if done is None else _json_at_the_end
    elif sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown"):
        show = _screen
    try:
        with _terminable():
            show(looks(ask, interval, time.monotonic, time.sleep), url, done or (lambda _: False))
    except KeyboardInterrupt:
        return False
    return True


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM is a Ctrl-C: the terminal is left as it was found."""

    def stop(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- on a terminal --------------------------------------------------------------------------------------


def _screen(came: Iterator[Look], url: str, done: Done) -> None:
    console = Console(highlight=False)
    last: list[Status] = []
    first = next(came)
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            look = first
            while True:
                last = look.statuses
                live.update(printed(console, screen_lines(look, url, *console.size)), refresh=True)
                if not look.why and done(last):
                    break
                look = next(came)
    finally:
        console.print(printed(console, _body(last, console.width, None)))


def screen_lines(look: Look, url: str, width: int, height: int) -> list[Text]:
    """The whole screen: what is, padded to the height, and a last line that says how fresh it is."""
    body = _body(look.statuses, width, height - 1)
    foot = Text(f"{clock(time.time())}  {url}  Ctrl-C leaves, the rollout goes on", "dim")
    if look.why:
        foot = Text.assemble(
            (f"no answer for {look.silence:.0f} s", "bold red"), f" from {url} ({look.why}); asking on"
        )
    lines = [*body, *[Text()] * (height - 1 - len(body)), foot]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _body(statuses: Sequence[Status], width: int, height: int | None) -> list[Text]:
    if len(statuses) == 1:
        return status_lines(statuses[0], width, height)
    lines = overview_lines(statuses, width)
    return lines if height is None else lines[:height]


# --- without one ----------------------------------------------------------------------------------------


def _lines(came: Iterator[Look], url: str, done: Done) -> None:
    changes = Changes(url)
    for look in came:
        for line in changes.of(look):
            print(line, flush=True)
        if not look.why and done(look.statuses):
            return


def _json(came: Iterator[Look], _: str, done: Done) -> None:
    """A line of JSON a change; every endpoint's that changed."""
    before: Any = None
    for look in came:
        still = {name: _without_now(status) for name, status in look.raw.items()}
        if still != before and not look.why:
            for name, status in look.raw.items():
                if before is None or still[name] != before.get(name):
                    print(json.dumps(status), flush=True)
            before = still
        if not look.why and done(look.statuses):
            return


def _json_at_the_end(came: Iterator[Look], _: str, done: Done) -> None:
    """One JSON value, when it is done."""
    for look in came:
        if not look.why and done(look.statuses):
            print("\n".join(json.dumps(status) for status in look.raw.values()))
            return


def _without_now(status: Any) -> Any:
    """A status without its clock, which differs every time."""
    rollout = status.get("rollout") if isinstance(status, dict) else None
    return {**status, "rollout": {**rollout, "now": 0}} if isinstance(rollout, dict) else status


class Changes:
    """Lines that say what is new: where rollouts stand, verdicts that differ, silence and its end."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._seen: dict[Any, Any] = {}
        self._silence = 0.0
        self._said = 0.0

    def of(self, look: Look) -> list[str]:
        """What is new in this look."""
        if look.why:
            return self._silent(look)
        lines = []
        if self._silence:
            lines.append(f"{clock(time.time())}  {self._url} answers again, after {self._silence:.0f} s")
            self._silence = self._said = 0.0
        for status in look.statuses:
            lines += self._stands(status) + self._judged(status)
        return lines

    def _silent(self, look: Look) -> list[str]:
        """At once, and whenever it has lasted twice as long."""
        self._silence = look.silence
        if self._said and look.silence < 2 * self._said:
            return []
        self._said = max(look.silence, 1.0)
        return [f"{clock(time.time())}  no answer for {look.silence:.0f} s from {self._url} ({look.why})"]

    def _new(self, key: Any, value: Any) -> bool:
        """Whether this differs from what was said last; said now."""
        differs = key not in self._seen or self._seen[key] != value
        self._seen[key] = value
        return differs

    def _stands(self, status: Status) -> list[str]:
        rollout = status.rollout
        if rollout is None:
            if self._new(status.endpoint, (routes(status),)):
                return [f"{clock(time.time())}  {status.endpoint}  {routes(status)}  no rollout yet"]
            return []
        state = (rollout.id, standing(rollout), rollout.paused, rollout.reason, routes(status))
        if not self._new(status.endpoint, (*state, _NUMBER.sub("#", rollout.waiting_for), _tenth(rollout))):
            return []
        words = f"{rollout.strategy} v{rollout.stable} → v{rollout.candidate}, {standing(rollout)}"
        why = rollout.paused or rollout.reason
        if why:
            words += f": {why}"
        if rollout.waiting_for and not rollout.ended:
            words += f"; waiting for {rollout.waiting_for}"
        return [f"{clock(rollout.now or time.time())}  {status.endpoint}  {routes(status)}  {words}"]

    def _judged(self, status: Status) -> list[str]:
        rollout = status.rollout
        lines = []
        for verdict in rollout.verdicts if rollout is not None else ():
            key = (status.endpoint, verdict.check, verdict.segment)
            if rollout is not None and self._new(key, (rollout.id, rollout.step, verdict.outcome)):
                lines.append(f"{clock(rollout.now or time.time())}  {status.endpoint}  {verdict_line(verdict)}")
        return lines


def _tenth(rollout: RolloutView) -> int:
    """How many tenths of the wanted samples are there."""
    samples = rollout.samples
    return 10 if samples is None or samples.want <= 0 else min(10, 10 * samples.have // samples.want)


def verdict_line(verdict: Verdict) -> str:
    """A verdict in one line, its interval against its margin."""
    words = f"{verdict.check} {verdict.segment}".rstrip() + f"  {verdict.outcome.replace('_', ' ')}"
    chart = drawn(verdict, 24)
    if chart:
        low, high = effect(verdict.low, verdict.unit), effect(verdict.high, verdict.unit)
        words += f"  {low} {chart.strip()} {high} | {effect(verdict.margin, verdict.unit, bound=True)}"
    return words + (f"  {verdict.note}" if verdict.note else "")
