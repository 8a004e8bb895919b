"""What a rollout does, what it waits for, the evidence, and what a person may ask of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from octoserve.patterns.online.supervisor.admin_guards import needed_role
from octoserve.patterns.online.supervisor.console import words
from octoserve.patterns.online.supervisor.console.charts import interval, outcome_class
from octoserve.patterns.online.supervisor.console.icons import icon, outcome_icon, outcome_word
from octoserve.patterns.online.supervisor.console.markup import Markup, el, hidden, join, slug
from octoserve.patterns.online.supervisor.console.tables import Column, table
from octoserve.security.caller import ADMIN, ROLES

_ORDER = ("FAIL", "SRM", "PROVIDER_ERROR", "NO_DATA", "HOLD")
_COMMANDS = (
    ("approve", "Approve", "good"),
    ("resume", "Resume", ""),
    ("pause", "Pause", ""),
    ("promote", "Promote", ""),
    ("rollback", "Roll back", "bad"),
    ("abort", "Abort", "bad"),
)
_STATES = {"done": ("check", "done"), "now": ("now", "now"), "next": ("empty", "next")}
_URGENT = 300.0


def overall(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """The outcome of all checks together, as the controller puts them together."""
    came = {str(verdict.get("outcome")) for verdict in verdicts}
    return next((outcome for outcome in _ORDER if outcome in came), "PASS" if came else "NO_DATA")


def wants_person(rollout: Mapping[str, Any] | None) -> str:
    """What a person is waited for, "" for nothing."""
    if rollout is None or not active(rollout):
        return ""
    match rollout.get("person"):
        case "resume":
            return f"is paused until somebody resumes it: {rollout.get('paused')}"
        case "approve":
            return f"wants your approval {_onwards(rollout)}"
        case "decide":
            return f"wants your decision: {rollout.get('waiting_for')}"
    return ""


def offered(rollout: Mapping[str, Any]) -> list[str]:
    """The commands that get a button: the legal ones, less one of abort and rollback where both are.

    They do the same to the traffic. While it is on its way back there is nothing left to ask for.
    """
    legal = set(rollout.get("actions") or ())
    phase = rollout.get("phase")
    if phase == "aborting":
        legal -= {"abort", "rollback"}
    elif {"abort", "rollback"} <= legal:
        legal.discard("abort" if phase in ("promoting", "retaining") else "rollback")
    return [command for command, _, _ in _COMMANDS if command in legal]


def active(rollout: Mapping[str, Any] | None) -> bool:
    """Whether there is one and it has not ended."""
    return bool(rollout) and rollout is not None and rollout.get("phase") != "ended"


def stands(rollout: Mapping[str, Any]) -> str:
    """One line: where it stands."""
    head = f"{_named(rollout)} {rollout['candidate']} against version {rollout['stable']}"
    if rollout.get("phase") == "ended":
        return f"{head}: {rollout.get('result') or 'ended'}"
    if rollout.get("phase") == "running":
        return f"{head}: running, {_step_name(rollout)}"
    return f"{head}: {rollout.get('phase')}"


def announcement(endpoint: str, rollout: Mapping[str, Any] | None) -> str:
    """What a screen reader is told when it changes, and only then."""
    if not rollout:
        return ""
    parts = [f"{endpoint}: {stands(rollout)}"]
    if rollout.get("verdicts") and rollout.get("phase") == "running":
        parts.append(f"checks: {outcome_word(overall(rollout['verdicts']))}")
    person = wants_person(rollout)
    return ". ".join([*parts, f"It {person}" if person else ""]).strip(". ")


def panel(endpoint: str, status: Mapping[str, Any], role: str = ADMIN, level: str = "h3") -> Markup:
    """The rollout of an endpoint: the live one, else the last one. role: of who looks"""
    rollout = status.get("rollout")
    ident = f"e-{slug(endpoint)}"
    if not rollout:
        body = el("p", "No rollout has run here.", class_="quiet")
        return el("section", el(level, "Rollout"), body, class_="rollout", id=f"{ident}-rollout")
    ended = rollout.get("phase") == "ended"
    return el(
        "section",
        el(level, "Last rollout" if ended else "Rollout"),
        _lead(rollout, ended),
        _actions(endpoint, ident, rollout, role),
        None if ended else _waiting(rollout),
        _steps(rollout),
        _evidence(ident, rollout, ended),
        _arms(ident, rollout),
        _pairs(endpoint, rollout),
        _links(endpoint, rollout),
        class_="rollout",
        id=f"{ident}-rollout",
    )


def _named(rollout: Mapping[str, Any]) -> str:
    name = str(rollout.get("strategy") or "rollout")
    return f"{name[:1].upper()}{name[1:]} of version"


def _onwards(rollout: Mapping[str, Any]) -> str:
    """What an approval of this step lets happen next."""
    if int(rollout.get("step") or 0) + 1 < len(rollout.get("steps") or ()):
        return f"to go beyond {_step_name(rollout)}"
    if rollout.get("strategy") == "shadow":
        return f"to end after {_step_name(rollout)}"
    return f"to give version {rollout.get('candidate')} all traffic after {_step_name(rollout)}"


def _step_name(rollout: Mapping[str, Any]) -> str:
    return f"step {int(rollout.get('step') or 0) + 1} of {len(rollout.get('steps') or ())}"


def _lead(rollout: Mapping[str, Any], ended: bool) -> Markup:
    result = str(rollout.get("result") or "")
    kind = {"promoted": "pass", "observed": "pass", "aborted": "fail", "rolled back": "fail"}.get(result, "no-data")
    if ended:
        mark = {"pass": "check", "fail": "cross"}.get(kind, "empty")
        shown = el("b", icon(mark), result or "ended", class_=f"outcome {kind}")
        reason = f": {rollout['reason']}" if rollout.get("reason") else "."
        ago = words.span(_since(rollout, "entered"))
        return el("p", f"{_named(rollout)} {rollout['candidate']} ", shown, f" {ago} ago{reason}", class_="lead")
    phrase = words.PHASES.get(str(rollout.get("phase")), str(rollout.get("phase")))
    told = phrase.format(candidate=rollout["candidate"], stable=rollout["stable"])
    why = f" {rollout['reason']}" if rollout.get("reason") else ""
    return el("p", told, why, class_="lead")


def _actions(endpoint: str, ident: str, rollout: Mapping[str, Any], role: str) -> Markup | None:
    shown = offered(rollout)
    if not shown:
        return None
    barred = {command: needed for command in shown if ROLES.index(needed := _role_for(command)) > ROLES.index(role)}
    buttons = [
        el(
            "button",
            label,
            type="button",
            id=f"{ident}-{command}",
            class_=f"command {kind}".strip(),
            data_command=command,
            data_endpoint=endpoint,
            data_rollout=_meant(command, rollout),
            data_title=f"{label}: {endpoint}, version {rollout['candidate']}",
            data_label=label,
            data_consequence=words.consequence(command, rollout),
            aria_label=f"{label} the rollout of {endpoint}",
            aria_haspopup="dialog",
            disabled=command in barred,
            title=f"Wants the role {barred[command]}; yours is {role}." if command in barred else None,
        )
        for command, label, kind in _COMMANDS
        if command in shown
    ]
    hint = el("p", "Without scripts: ", el("code", f"octoserve rollout {shown[0]} {endpoint}"), class_="without-script")
    group = el("div", *buttons, class_="commands", role="group", aria_label=f"Commands for {endpoint}")
    labels = {command: label for command, label, _ in _COMMANDS}
    wanted = ", ".join(f"{labels[command]} wants the role {needed}" for command, needed in barred.items())
    return join(group, el("p", f"{wanted}; yours is {role}.", class_="quiet") if barred else None, hint)


def _role_for(command: str) -> str:
    return needed_role("POST", f"/api/rollouts/-/{command}")


def _meant(command: str, rollout: Mapping[str, Any]) -> str:
    """What the command is of, as the API's `id` has it: an approval is of one step."""
    ident = str(rollout.get("id") or "")
    return f"{ident}/{rollout['step']}" if command == "approve" and ident and "step" in rollout else ident


def _waiting(rollout: Mapping[str, Any]) -> Markup:
    facts: list[Markup] = []
    person = wants_person(rollout)
    if person:
        facts.append(el("p", icon("person"), f"The rollout {person}.", class_="notice person"))
    elif rollout.get("waiting_for"):
        facts.append(el("p", icon("clock"), "Waiting for ", el("b", rollout["waiting_for"]), class_="wait"))
    samples = rollout.get("samples") or {}
    want, have = words.number(samples.get("want")), words.number(samples.get("have")) or 0.0
    if want:
        told = f"{words.count(have)} of {words.count(want)} samples"
        if have >= want:
            told = f"{words.count(have)} samples, {words.count(want)} are enough"
        facts.append(el("p", el("progress", value=min(have, want), max=want, aria_label=told), told, class_="samples"))
    return el("div", *facts, _clocks(rollout), class_="waiting")


def _since(rollout: Mapping[str, Any], name: str) -> float | None:
    now, then = words.number(rollout.get("now")), words.number(rollout.get(name))
    return None if now is None or then is None else now - then


def _clocks(rollout: Mapping[str, Any]) -> Markup:
    left = _since(rollout, "deadline")
    rows = [("Started", f"{words.span(_since(rollout, 'started'))} ago", "")]
    stage = "In this step" if rollout.get("phase") == "running" else "In this phase"
    rows.append((stage, f"for {words.span(_since(rollout, 'entered'))}", ""))
    settled = _since(rollout, "settled")
    rows.append(("Every worker follows", "not yet" if settled is None else f"for {words.span(settled)}", ""))
    if left is not None:
        rows.append(
            ("Deadline", "passed" if left >= 0 else f"in {words.span(-left)}", "urgent" if left > -_URGENT else "")
        )
    cells = (el("div", el("dt", name), el("dd", value), class_=kind or None) for name, value, kind in rows)
    return el("dl", *cells, class_="facts")


def _steps(rollout: Mapping[str, Any]) -> Markup | None:
    steps = rollout.get("steps") or ()
    if not steps:
        return None
    return el("ol", *(_step(step) for step in steps), class_="steps", aria_label="Steps")


def _step(step: Mapping[str, Any]) -> Markup:
    state = str(step.get("state"))
    mark, word = _STATES.get(state, ("empty", state))
    weight, mirror = words.number(step.get("weight")) or 0.0, words.number(step.get("mirror")) or 0.0
    asks: list[str] = []
    if step.get("samples"):
        asks.append(f"{words.count(step['samples'])} samples")
    if step.get("pause"):
        asks.append(words.span(step["pause"]))
    if step.get("approval"):
        asks.append("approval")
    share = f"{words.percent(mirror)} copied" if mirror and not weight else words.percent(weight)
    return el(
        "li",
        el("span", icon(mark), word, class_="step-state"),
        el("b", share),
        el("span", ", ".join(asks) or "no condition", class_="step-asks"),
        class_=f"step {state if state in _STATES else 'next'}",
        aria_current="step" if state == "now" else None,
    )


def _evidence(ident: str, rollout: Mapping[str, Any], ended: bool) -> Markup | None:
    verdicts = rollout.get("verdicts") or ()
    if not verdicts:
        return None if ended else el("p", "No evidence has been judged yet.", class_="quiet")
    columns = (
        Column("Check"),
        Column("Outcome"),
        Column("Difference, interval"),
        Column("Better \N{LEFTWARDS ARROW} same | margin \N{RIGHTWARDS ARROW} worse", "drawn"),
        Column("Margin", "figure"),
        Column("Samples", "figure"),
    )
    together = overall(verdicts)
    caption = join(
        "Evidence: ",
        el("span", outcome_icon(together), outcome_word(together), class_=f"outcome {outcome_class(together)}"),
    )
    return table(f"{ident}-evidence", caption, columns, [_verdict(verdict) for verdict in verdicts])


def _verdict(verdict: Mapping[str, Any]) -> Sequence[Markup | str]:
    outcome, unit = str(verdict.get("outcome")), str(verdict.get("unit") or "")
    low, high, estimate, margin = (verdict.get(name) for name in ("low", "high", "estimate", "margin"))
    segment = el("span", verdict["segment"], class_="segment") if verdict.get("segment") else None
    note = el("span", verdict["note"], class_="note") if verdict.get("note") else None
    against = el("span", f"against {words.count(verdict['n_base'])}", class_="note") if verdict.get("n_base") else None
    return (
        join(el("b", verdict.get("check")), segment, note),
        el("span", outcome_icon(outcome), outcome_word(outcome), class_=f"outcome {outcome_class(outcome)}"),
        join(el("b", words.effect(estimate, unit)), el("span", words.reach(low, high, unit), class_="note")),
        join(interval(low, high, estimate, margin, unit, outcome), hidden(_drawn(low, high, margin, unit))),
        words.effect(margin, unit),
        join(words.count(verdict.get("n")), against),
    )


def _drawn(low: object, high: object, margin: object, unit: str) -> str:
    limit, upper, lower = words.number(margin), words.number(high), words.number(low)
    if limit is None or (upper is None and lower is None):
        return "not drawn against a margin"
    neutral = 1.0 if unit == "ratio" else 0.0
    way = -1.0 if limit < neutral else 1.0
    ends = [end * way for end in (lower, upper) if end is not None]
    if len(ends) == 2 and max(ends) < limit * way:
        return "inside the margin"
    return "beyond the margin" if len(ends) == 2 and min(ends) > limit * way else "on both sides of the margin"


def _arms(ident: str, rollout: Mapping[str, Any]) -> Markup | None:
    arms = rollout.get("arms") or {}
    rows = [
        (
            el("b", role),
            words.count(arm.get("assigned")),
            words.count(arm.get("attempts")),
            words.count(arm.get("failures")),
            words.percent(_rate(arm)),
            words.seconds(arm.get("p50")),
            words.seconds(arm.get("p99")),
        )
        for role in ("candidate", "baseline", "stable")
        if (arm := arms.get(role))
    ]
    if not rows:
        return None
    names = ("Assigned", "Attempts", "Failed", "Failed, share", "p50", "p99")
    columns = (Column("Arm"), *(Column(name, "figure") for name in names))
    return table(f"{ident}-arms", "What each arm did in this step", columns, rows)


def _rate(arm: Mapping[str, Any]) -> float | None:
    attempts, failures = words.number(arm.get("attempts")), words.number(arm.get("failures"))
    return failures / attempts if attempts and failures is not None else None


def _pairs(endpoint: str, rollout: Mapping[str, Any]) -> Markup | None:
    pairs = rollout.get("pairs") or {}
    if not pairs.get("offered"):
        return None
    show = words.count
    dropped: Mapping[str, int] = pairs.get("dropped") or {}
    lost = sum(dropped.values())
    why = ", ".join(f"{reason} {show(n)}" for reason, n in sorted(dropped.items()))
    offered, sent = pairs["offered"], pairs.get("sent", 0)
    ok, error, timeout = (pairs.get(name, 0) for name in ("ok", "error", "timeout"))
    exact = offered == sent + lost and sent == ok + error + timeout
    outputs = ", ".join(f"{name} {show(n)}" for name, n in sorted((pairs.get("outputs") or {}).items()) if n)
    rows = [
        ("Offered", f"{show(offered)} = {show(sent)} sent + {show(lost)} dropped" + (f" ({why})" if why else "")),
        ("Sent", f"{show(sent)} = {show(ok)} ok + {show(error)} failed + {show(timeout)} timed out"),
        (
            "Disagree",
            _part(pairs.get("disagreed"), pairs.get("compared")) + (f"; by output: {outputs}" if outputs else ""),
        ),
        ("Noise floor", _part(pairs.get("noise_disagreed"), pairs.get("noise_compared"))),
    ]
    cells = (el("div", el("dt", name), el("dd", value)) for name, value in rows)
    wrong = el("p", icon("alert"), "These accounts do not add up.", class_="notice")
    return el(
        "div",
        el("h4", "Copied requests"),
        el("dl", *cells, class_="facts wide"),
        None if exact else wrong,
        class_="pairs",
    )


def _part(some: object, of: object) -> str:
    all_, few = words.number(of), words.number(some)
    if not all_ or few is None:
        return "nothing compared"
    return f"{words.count(few)} of {words.count(all_)} compared ({words.percent(few / all_)})"


def _compares(rollout: Mapping[str, Any]) -> bool:
    """Whether there are pairs to report on. Once it has ended nobody counts them any more, and people want to know."""
    if rollout.get("phase") != "ended":
        return bool((rollout.get("pairs") or {}).get("offered"))
    reached = (rollout.get("steps") or ())[: int(rollout.get("step") or 0) + 1]
    return bool(rollout.get("verdicts")) and any(words.number(step.get("mirror")) for step in reached)


def _links(endpoint: str, rollout: Mapping[str, Any]) -> Markup:
    base, ident = f"/api/rollouts/{quote(endpoint, safe='')}", quote(str(rollout.get("id")), safe="")
    links = [el("a", "History", href=f"{base}/history?limit=20", data_history=endpoint)]
    if _compares(rollout):
        links.append(
            el("a", "Report of the comparison", href=f"{base}/report?id={ident}&format=html", data_report=ident)
        )
    return el("p", *links, el("span", rollout.get("id"), class_="ident"), class_="links")
