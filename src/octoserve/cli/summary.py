"""What `octoserve serve` prints once it is ready: where it listens, what it serves, what to type next."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octoserve.patterns.online.supervisor.supervisor import Supervisor

_SHOWN = 12
_LONG = 60
_PLACES = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


def print_summary(supervisor: Supervisor) -> None:
    """To standard output; in colour where that is a terminal."""
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print("\n".join(lines(supervisor, color)), flush=True)


def lines(supervisor: Supervisor, color: bool = False) -> list[str]:
    """The summary, a line each."""
    settings, current = supervisor.settings, supervisor.room.current
    place = _PLACES.get(settings.host, f"[{settings.host}]" if ":" in settings.host else settings.host)
    admin = _PLACES.get(settings.admin_host, settings.admin_host)
    scheme = "https" if settings.security.tls is not None else "http"
    http = f"{scheme}://{place}:{supervisor.http_port}"

    def paint(code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if color else text

    workers = len(supervisor.fleet.slots)
    out = [
        "",
        f"  {paint('1', 'octoserve')} is ready "
        + paint("2", f"({workers} worker{'s' if workers > 1 else ''}, pid {os.getpid()})"),
        "",
        f"  {paint('2', 'HTTP ')}  {paint('36', http)}",
        f"  {paint('2', 'gRPC ')}  {paint('36', f'{place}:{supervisor.grpc_port}')}",
        *(
            f"  {paint('2', front['name'])}  {paint('36', 'http://' + front['address'])}"
            + paint("2", "  rollouts split what comes in here")
            for front in supervisor.room.fronts.view()
            if front["address"]
        ),
        f"  {paint('2', 'admin')}  {paint('36', f'{scheme}://{admin}:{supervisor.admin_port}')}"
        + paint("2", "  /console  /metrics  /api/models"),
        "",
    ]
    marks = {"READY": paint("32", "●"), "LOADING": paint("33", "◌"), "UNAVAILABLE": paint("31", "✗")}
    plans = {plan.endpoint: plan.arms[0].version for plan in current.plans}
    listed = [e for e in current.catalog if e.state != "UNAVAILABLE" or not e.reason.startswith("not selected")]
    width = max((len(entry.model) for entry in listed), default=0)
    for entry in listed[:_SHOWN]:
        note = _short(entry.reason) if entry.state == "UNAVAILABLE" else entry.state.lower()
        if plans.get(entry.model) == entry.version:
            note = "answers"
        out.append(f"  {marks[entry.state]} {entry.model:<{width}}  v{entry.version}  {paint('2', note)}")
    if len(listed) > _SHOWN:
        out.append(paint("2", f"  ... and {len(listed) - _SHOWN} more: octoserve model list"))
    if not listed:
        out.append(f"  No model in {settings.repository} yet; put one at <model>/1/model.onnx and it is served.")
    if plans:
        name = sorted(plans)[0]
        out += ["", f"  {paint('2', 'try')}    curl {http}/v2/models/{name}"]
    return [*out, ""]


def _short(reason: str) -> str:
    return reason if len(reason) <= _LONG else f"{reason[:_LONG]}... (octoserve model inspect says it all)"
