"""`octoserve bench --verify-slo`: loads, one after the other, and what they say about a promise."""

from __future__ import annotations

import json
import math
import re
import ssl
from collections.abc import Callable
from pathlib import Path

import msgspec
import typer
from rich.console import Console

from octoserve.cli.admin_client import DEFAULT_URL, AdminClient, read_token
from octoserve.cli.load import Load, Outcome
from octoserve.cli.verify_slo import (
    HEADROOM,
    KEPT,
    NOT_KNOWN,
    Found,
    Part,
    Replicas,
    Step,
    replicas_for,
    requests_wanted,
    search,
    step_of,
)
from octoserve.core.errors import SettingsError
from octoserve.core.slo import LATENCY, Slo

_LONGEST = 60.0
"""Seconds of one step at most, however few requests a second there are."""
_CONNECTIONS = 256
"""Of one step at most; what finds none free waits, and its wait counts."""
_FIRST = 100.0
"""Requests a second that a search begins with, where no load is given."""
_COLORS = {"KEPT": "green", "BROKEN": "red", "NOT KNOWN": "yellow"}

RunLoad = Callable[[Load, float, float], Outcome]
"""Load for so many seconds after so many of warming up."""


class Verify(msgspec.Struct, kw_only=True):
    """What to verify, where. `rate`: requests a second of the whole service; None where only the limit is asked for."""

    url: str
    host: str
    port: int
    request: bytes
    slo: Slo
    connections: int
    duration: float
    warm_up: float
    rate: float | None
    find: bool
    as_json: bool
    tls: ssl.SSLContext | None = None


def promised(model: str, latency: str, availability: str, admin_url: str, token_file: Path | None) -> Slo:
    """What the flags say, else what the running service promises for this model. Raises SettingsError."""
    if latency or availability:
        from pydantic import ValidationError

        from octoserve.spec import SloSection

        given = {"latency_p99": latency, "availability": availability}
        try:
            return SloSection.model_validate({name: text for name, text in given.items() if text}).promise()
        except ValidationError as error:
            detail = error.errors()[0]
            flag = "--" + str(detail["loc"][0]).replace("_", "-")
            problem = detail.get("ctx", {}).get("error", detail["msg"])
            raise SettingsError(f"{flag}: {problem} wanted, {detail['input']!r} came") from None
    view = AdminClient(admin_url or DEFAULT_URL, read_token(token_file)).slo()
    told = view.get("models", {}).get(model)
    if told is None:
        raise SettingsError(
            f"the service at {admin_url or DEFAULT_URL} promises nothing for {model!r}; write `slo` into its spec, "
            "or say what to verify: --latency-p99 20ms --availability 99.9%"
        )
    return Slo(latency=told["latency_p99"], availability=told["availability"], window=told["window"])


def model_of(path: str) -> str:
    """The model in .../v2/models/NAME/..."""
    found = re.search(r"/models/([^/]+)", path)
    return found[1] if found else ""


def verify(wanted: Verify, run_load: RunLoad) -> None:
    """Measure, print, and leave: exit code 0 where the promise is shown to be kept, else 1."""
    console = Console(highlight=False, quiet=wanted.as_json, soft_wrap=True)
    console.print(f"[bold]{wanted.url}[/]\npromised   {_words(wanted.slo)}")
    console.print("           below: the share that was bad (what it may be, at 95 % confidence) of what is allowed")

    def measure(rate: float, least: int) -> Step:
        seconds = min(max(wanted.duration * (2 if least else 1), least / rate), max(_LONGEST, 2 * wanted.duration))
        in_flight = rate * 2 * (wanted.slo.latency or 0.05)
        connections = min(_CONNECTIONS, max(wanted.connections, math.ceil(in_flight)))
        load = Load(wanted.host, wanted.port, wanted.request, connections, rate, wanted.tls)
        return step_of(run_load(load, seconds, wanted.warm_up), rate, wanted.slo)

    at: Step | None = None
    if wanted.rate is not None:
        at = measure(wanted.rate, requests_wanted(wanted.slo))
        _show(console, "at", at, wanted.slo)
        if at.verdict == NOT_KNOWN:
            enough = requests_wanted(wanted.slo)
            console.print(
                f"           too close to call, or too few requests: {enough:,} decide where it is "
                f"broken half as often as may be; try -d {math.ceil(2 * max(enough / wanted.rate, at.seconds))}",
            )
    found: Found | None = None
    if wanted.find:
        start = wanted.rate or _FIRST
        found = search(measure, wanted.slo, start, lambda step: _show(console, "tried", step, wanted.slo))
        if at is not None:
            found = found.beside(at)
    replicas = _conclude(console, wanted, found)
    if wanted.as_json:
        typer.echo(json.dumps(_plain(wanted.slo, at, found, replicas)))
    good = at.verdict == KEPT if at is not None else found is not None and found.highest is not None
    if not good:
        raise typer.Exit(1)


def _conclude(console: Console, wanted: Verify, found: Found | None) -> Replicas | None:
    if found is None:
        return None
    if not found.steady():
        console.print(
            "[yellow]noise[/]      a load was kept above one that was broken: something else keeps this machine busy, "
            "so what follows is what it could do meanwhile"
        )
    if found.highest is None:
        console.print("[bold]highest[/]    none: no load that was tried keeps it")
        return None
    top = found.highest
    above = found.broken is not None and found.broken.rate > top.rate
    beyond = f"; at {found.broken.rate:,.0f}/s it is broken" if found.broken and above else "; nothing higher broke it"
    console.print(f"[bold]highest[/]    [green]{top.rate:,.0f}/s[/] on this machine as it is{beyond}")
    if wanted.rate is None:
        planned = HEADROOM * top.rate
        console.print(
            f"replicas   plan {planned:,.0f}/s for each ({HEADROOM:.0%} of that), and one more than that makes"
        )
        return None
    made = replicas_for(wanted.rate, top)
    console.print(
        f"[bold]replicas[/]   {made.total} like this one: {made.carry} for {wanted.rate:,.0f}/s at {HEADROOM:.0%} of "
        "what each can do at most, 1 that may fail or be replaced",
    )
    return made


def _words(slo: Slo) -> str:
    words = [f"99 % within {slo.latency * 1000:g} ms"] if slo.latency is not None else []
    words += [f"{slo.availability * 100:.6g} % answered"] if slo.availability is not None else []
    return ", ".join(words)


def _show(console: Console, what: str, step: Step, slo: Slo) -> None:
    color = _COLORS[step.verdict]
    p99 = f"p99 {step.p99 * 1000:.1f} ms" if step.p99 is not None else "no answers"
    told = ", ".join(_part(part, slo) for part in step.parts)
    if step.sender_late > (slo.latency or 0.05) / 4:
        told += f"; the load generator was {step.sender_late * 1000:.0f} ms late itself"
    requests = max((part.requests for part in step.parts), default=0)
    console.print(
        f"{what:<10} {step.rate:>8,.0f}/s  [{color}]{step.verdict:<9}[/]  "
        f"{requests:,} in {step.seconds:.1f} s, {p99}; {told}",
    )


def _part(part: Part, slo: Slo) -> str:
    name = f"over {slo.latency * 1000:g} ms" if part.objective == LATENCY and slo.latency else "not answered"
    share = f"{part.bad / part.requests:.2%}" if part.requests else "-"
    return f"{name} {share} ({part.low:.2%} to {part.high:.2%}) of {100 * part.allowed:.4g}%"


def _plain(slo: Slo, at: Step | None, found: Found | None, replicas: Replicas | None) -> dict[str, object]:
    return {
        "slo": {"latency": slo.latency, "availability": slo.availability, "window": slo.window},
        "at": _step(at),
        "steps": [_step(step) for step in found.steps] if found is not None else [],
        "highest": _step(found.highest) if found is not None else None,
        "steady": found.steady() if found is not None else None,
        "broken": _step(found.broken) if found is not None else None,
        "replicas": msgspec.to_builtins(replicas),
    }


def _step(step: Step | None) -> dict[str, object] | None:
    return None if step is None else {**msgspec.to_builtins(step), "verdict": step.verdict}
