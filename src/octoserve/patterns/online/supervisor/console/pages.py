"""The page: from the admin API's plain values to HTML. Pure; shows what it is given and asks for nothing.

`page` is what a browser opens, `fragment` what it fetches each second: the same markup, so a page without scripts
and one with them show the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octoserve.control.catalog import AT_REST
from octoserve.control.rollout.replica_tables import SILENT
from octoserve.patterns.online.supervisor.console import words
from octoserve.patterns.online.supervisor.console.charts import (
    Line,
    Part,
    Series,
    clean,
    colours,
    line_chart,
    share_bar,
    smoothed,
)
from octoserve.patterns.online.supervisor.console.dialogs import dialogs
from octoserve.patterns.online.supervisor.console.icons import icon
from octoserve.patterns.online.supervisor.console.markup import Markup, el, hidden, join, slug
from octoserve.patterns.online.supervisor.console.rollout_panel import active, announcement, panel, stands, wants_person
from octoserve.patterns.online.supervisor.console.tables import Column, table
from octoserve.security.caller import ADMIN

_REFRESH = 5
"""Seconds between two looks of a page without scripts."""
_SHOWN = 6
"""Versions of an endpoint that are listed although they take no part in anything."""

_MEAN = 6.0
"""Seconds over which counts are averaged: a chart of single errors is a row of needles."""

Values = Mapping[str, Any]


def page(content: Markup | None) -> str:
    """The whole page; without `content` a shell that holds no data, for services with a token."""
    refresh = el("noscript", el("meta", http_equiv="refresh", content=_REFRESH)) if content is not None else None
    shell = el("p", "This service wants its admin token.", class_="quiet")
    noscript = el("noscript", el("p", "With a token set, this page needs scripts.", class_="notice"))
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("title", "octoserve console"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("link", rel="icon", href="/console/icon.svg", type="image/svg+xml"),
        el("link", rel="stylesheet", href="/console/console.css"),
        el("script", src="/console/console.js", defer=True),
        refresh,
    )
    live = content if content is not None else el("div", shell, noscript, id="live", data_locked="true")
    body = el(
        "body",
        el("a", "Skip to the endpoints", href="#main", class_="skip"),
        _header(),
        el("div", id="stale", hidden=True),
        el("main", live, id="main", tabindex=-1),
        el("footer", el("p", "octoserve console. Its figures come from the admin API of this service.")),
        el("p", id="said", aria_hidden="true"),
        el("p", id="announcer", class_="unseen", aria_live="polite", role="status"),
        dialogs(),
    )
    return "<!doctype html>" + el("html", head, body, lang="en", class_="plain")


def _header() -> Markup:
    buttons = (
        el("button", "Enter token", type="button", id="enter-token", hidden=True),
        el("button", "Forget token", type="button", id="forget-token", hidden=True),
    )
    pulse = el("span", "updates each second", id="pulse")
    return el("header", el("h1", "octoserve ", el("span", "console")), el("p", pulse, *buttons, class_="session"))


def fragment(rollouts: Values, models: Values, workers: Sequence[Values], live: Values, role: str = ADMIN) -> Markup:
    """Everything that changes. role: of who looks; what it may not ask for is shown and cannot be pressed."""
    names = sorted({*rollouts, *models})
    waiting = [f"{name} {wants}" for name in names if (wants := wants_person(_rollout(rollouts, name)))]
    series = live.get("endpoints") or {}
    step = words.number(live.get("step")) or 1.0
    cards = [
        endpoint(name, rollouts.get(name) or {}, models.get(name) or {}, series.get(name) or {}, step, role)
        for name in names
    ]
    none = el("p", "No model lies in the repository yet.", class_="quiet")
    title = f"({len(waiting)}) waiting for a person · octoserve console" if waiting else "octoserve console"
    return el("div", overview(names, rollouts, models, workers), *(cards or [none]), id="live", data_title=title)


def _rollout(rollouts: Values, name: str) -> Values | None:
    found: Values | None = (rollouts.get(name) or {}).get("rollout")
    return found


def overview(names: Sequence[str], rollouts: Values, models: Values, workers: Sequence[Values]) -> Markup:
    """One line for the service, then whatever wants a person."""
    serving = [worker for worker in workers if worker.get("state") == "serving"]
    behind = [name for name in names if (rollouts.get(name) or {}).get("acknowledged") is False]
    generation = max((int(worker.get("generation") or 0) for worker in serving), default=0)
    generation = max([generation, *(int(status.get("generation") or 0) for status in rollouts.values())])
    acknowledged = f"waits for workers at {', '.join(behind)}" if behind else "acknowledged by all"
    facts = [
        _fact(len(serving) == len(workers) > 0, f"{len(serving)} of {words.several(len(workers), 'worker')} serving"),
        _fact(not behind and bool(serving), f"generation {generation} {acknowledged}"),
    ]
    replicas: Sequence[Values] = next(
        (status["replicas"] for status in rollouts.values() if status.get("replicas")), []
    )
    if len(replicas) > 1:
        silent = [row["id"] for row in replicas if row["silent"] > SILENT]
        leader = next((f"{row['id']} leads" for row in replicas if row["leads"]), "nobody leads")
        told = f"{len(replicas)} replicas, {', '.join([leader, *(f'{name} is silent' for name in silent)])}"
        facts.append(_fact(not silent, told))
    wants = _wants(names, rollouts, models, workers)
    facts.append(
        _fact(not wants, words.several(len(wants), "thing") + " to look at" if wants else "nobody is waited for")
    )
    notes = el("ul", *wants, class_="wants", id="wants") if wants else None
    return el(
        "section",
        el("h2", "State of the service", class_="unseen"),
        el("ul", *facts, class_="state-line"),
        notes,
        id="overview",
        data_announce=". ".join(f"{name} {want}" for name in names if (want := wants_person(_rollout(rollouts, name)))),
    )


def _fact(good: bool, told: str) -> Markup:
    return el("li", icon("check" if good else "alert"), told, class_="fact good" if good else "fact look")


def _wants(names: Sequence[str], rollouts: Values, models: Values, workers: Sequence[Values]) -> list[Markup]:
    """First what stands still until somebody acts, then what is broken."""
    acts: list[Markup] = []
    broken: list[Markup] = []
    for name in names:
        link = el("a", name, href=f"#e-{slug(name)}")
        want = wants_person(_rollout(rollouts, name))
        if want:
            acts.append(el("li", icon("person"), el("span", link, f" {want}"), class_="notice person"))
        for row in (models.get(name) or {}).get("versions") or ():
            if _look(row) == "fail":
                told = f" version {row.get('version')} cannot be used: {_reason(row)}"
                broken.append(el("li", icon("alert"), el("span", link, told), class_="notice"))
    for worker in workers:
        if worker.get("state") != "serving":
            told = f"worker {worker.get('index')} is {worker.get('state')}, {_restarts(worker)}"
            broken.append(el("li", icon("alert"), el("span", told), class_="notice"))
    return acts + broken


def _restarts(worker: Values) -> str:
    return f"restarted {words.several(int(worker.get('restarts') or 0), 'time')}"


def endpoint(name: str, status: Values, model: Values, live: Values, step: float, role: str = ADMIN) -> Markup:
    """One card."""
    ident = f"e-{slug(name)}"
    rollout: Values | None = status.get("rollout")
    colour = colours(sorted(_versions(status, model, live)))
    routes = status.get("routes") or model.get("routes") or []
    line = stands(rollout) if rollout is not None and active(rollout) else _answers(routes)
    behind = status.get("acknowledged") is False
    follow = "not every worker follows yet" if behind else "every worker follows"
    parts = [f"generation {status['generation']}: {follow}"] if "generation" in status else []
    heading = el("h2", name, id=f"{ident}-name", tabindex=-1)
    return el(
        "section",
        el("header", heading, el("p", line, class_="stands"), el("p", *parts, class_="quiet") if parts else None),
        el("div", _traffic(routes, status, colour), panel(name, status, role), class_="column"),
        el("div", _charts(ident, live, colour, step), class_="column charts", id=f"{ident}-charts"),
        _version_list(name, status, model, colour),
        id=ident,
        class_="endpoint live" if active(rollout) else "endpoint",
        aria_labelledby=f"{ident}-name",
        data_announce=announcement(name, rollout),
    )


def _versions(status: Values, model: Values, live: Values) -> set[int]:
    rollout = status.get("rollout") or {}
    named = {row["version"] for row in (*(model.get("versions") or ()), *(status.get("routes") or ()))}
    named |= {rollout[role] for role in ("stable", "candidate") if rollout.get(role) is not None}
    return named | {int(version) for version in (live.get("versions") or {}) if str(version).isdecimal()}


def _answers(routes: Sequence[Values]) -> str:
    answering = [str(route["version"]) for route in routes if (words.number(route.get("share")) or 0) > 0]
    versions = sorted(set(answering), key=int)
    if not versions:
        return "No version answers."
    return (
        f"Version {versions[0]} answers all requests."
        if len(versions) == 1
        else f"Versions {', '.join(versions)} answer."
    )


def _traffic(routes: Sequence[Values], status: Values, colour: Mapping[int, str]) -> Markup:
    parts = [
        Part(
            f"v{route['version']}",
            colour[route["version"]],
            words.number(route.get("share")) or 0.0,
            route.get("role", ""),
        )
        for route in routes
    ]
    items = [
        el(
            "li",
            _swatch(part.colour, part.role),
            el("span", f"version {part.name[1:]}", f" {part.role}" if part.role else None),
            " ",
            el("b", words.percent(part.share)),
        )
        for part in parts
    ]
    rollout = status.get("rollout") or {}
    now: Values = next((step for step in rollout.get("steps") or () if step.get("state") == "now"), {})
    mirror = words.number(now.get("mirror")) or 0.0
    copies = None
    if mirror and rollout.get("phase") == "running":
        told = f"Copies of {words.percent(mirror)} of the answered requests go to version {rollout.get('candidate')}; "
        copies = el("p", told, "its answers reach nobody.", class_="quiet")
    bar = share_bar(parts) if parts else el("p", "Nothing is routed.", class_="quiet")
    listed = el("ul", *items, class_="shares")
    return el("section", el("h3", "Traffic"), bar, listed, copies, class_="traffic")


def _swatch(colour: str, role: str = "") -> Markup:
    square = el("rect", width=12, height=12, rx=2, class_=f"piece {role}".strip())
    return el("svg", square, class_=f"swatch {colour}", width=12, height=12, aria_hidden="true")


def _charts(ident: str, live: Values, colour: Mapping[int, str], step: float) -> Markup:
    versions = {int(key): value for key, value in (live.get("versions") or {}).items() if str(key).isdecimal()}
    shares = {int(key): value for key, value in (live.get("share") or {}).items() if str(key).isdecimal()}

    def lines(name: str) -> list[Line]:
        points = max(1, round(_MEAN / step)) if step > 0 else 1
        return [Line(f"v{v}", colour[v], smoothed(_series(versions[v], name), points)) for v in sorted(versions)]

    latency = [
        Line(f"v{v} {name}", colour[v], _series(versions[v], name), dashed=name == "p50")
        for v in sorted(versions)
        for name in ("p99", "p50")
    ]
    share = [Line(f"v{v}", colour.get(v, "v0"), clean(shares[v] or ())) for v in sorted(shares)]
    return join(
        el("h3", "Last five minutes, by version"),
        line_chart(f"{ident}-rate", f"Requests a second, mean of {_MEAN:g} s", lines("rate"), words.plain, step, 1.0),
        line_chart(f"{ident}-errors", f"Errors a second, mean of {_MEAN:g} s", lines("errors"), words.plain, step, 1.0),
        line_chart(f"{ident}-latency", "Latency", latency, words.seconds, step, 1e-6),
        line_chart(f"{ident}-share", "Share of traffic", share, words.percent, step, 1.0) if share else None,
    )


def _series(figures: Values, name: str) -> Series:
    return clean(figures.get(name) or ())


def _version_list(name: str, status: Values, model: Values, colour: Mapping[int, str]) -> Markup | None:
    rows = sorted(model.get("versions") or (), key=lambda row: -int(row["version"]))
    if not rows:
        return None
    rollout = status.get("rollout") or {}
    part = {route["version"] for route in status.get("routes") or model.get("routes") or ()}
    part |= {status.get("stable"), rollout.get("candidate"), rollout.get("stable")}
    shown = [row for index, row in enumerate(rows) if index < _SHOWN or row["version"] in part]
    columns = (
        Column("Version"),
        Column("Role"),
        Column("State"),
        Column("Workers"),
        Column("Labels"),
        Column("Reason"),
    )
    more = len(rows) - len(shown)
    return el(
        "section",
        el("h3", "Versions"),
        table(
            f"e-{slug(name)}-versions",
            hidden(f"Versions of {name}"),
            columns,
            [_version(r, status, colour) for r in shown],
        ),
        el(
            "p",
            f"{words.several(more, 'older version takes', 'older versions take')} no part, not listed.",
            class_="quiet",
        )
        if more > 0
        else None,
        el("p", "Held: loaded by hand, whatever the policy says.", class_="quiet") if model.get("held") else None,
        class_="versions",
    )


def _version(row: Values, status: Values, colour: Mapping[int, str]) -> Sequence[Markup | str]:
    version, look = row["version"], _look(row)
    mark = {"pass": "check", "fail": "cross"}.get(look, "clock")
    workers = row.get("workers") or {}
    ready = sum(report.get("state") == "ready" for report in workers.values())
    return (
        join(_swatch(colour[version]), el("b", version)),
        _role(version, status),
        el("span", icon(mark), str(row.get("state", "")).lower(), class_=f"outcome {look}"),
        f"{ready} of {len(workers)} ready" if workers else words.NONE,
        ", ".join(row.get("labels") or ()) or words.NONE,
        _reason(row) or words.NONE,
    )


def _look(row: Values) -> str:
    state = str(row.get("state", "")).upper()
    if state == "READY":
        return "pass"
    failed = any(report.get("state") == "failed" for report in (row.get("workers") or {}).values())
    wrong = state == "UNAVAILABLE" and _reason(row) and not str(row.get("reason") or "").startswith(AT_REST)
    return "fail" if failed or wrong else "no-data"


def _reason(row: Values) -> str:
    told = [str(row.get("reason") or "")]
    told += [str(report.get("reason") or "") for report in (row.get("workers") or {}).values()]
    return "; ".join(dict.fromkeys(one for one in told if one))


def _role(version: int, status: Values) -> str:
    rollout = status.get("rollout") or {}
    if version in (status.get("refused") or ()):
        return "refused"
    if version == status.get("stable"):
        return "stable"
    live = rollout.get("phase") not in (None, "ended")
    return "candidate" if live and version == rollout.get("candidate") else words.NONE
