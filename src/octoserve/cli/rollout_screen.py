"""What a terminal shows of rollouts: lines of rich text for a width, and for a height where the screen is live.

Everything is said in words or shapes too, never by colour alone: NO_COLOR, a pipe and a colour-blind person lose
nothing. 80 columns are enough.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich.console import Console, Group
from rich.text import Text

from octoserve.cli.rollout_status import (
    GOOD_ENDS,
    RolloutView,
    Status,
    Summary,
    clock,
    duration,
    latency,
    percent,
    routes,
    standing,
)
from octoserve.cli.rollout_verdicts import verdict_lines
from octoserve.control.rollout.replica_tables import SILENT
from octoserve.core.evidence import PairEvidence

_LABEL = 10
_FIRM = "\ue000"
"""Stands for a space at which no line may end (rich ends them at no-break spaces too) until lines are broken."""
_FILL = {"candidate": ("█", "green"), "baseline": ("▓", "yellow"), "stable": ("░", "blue")}
_STEP = {"done": ("✓", "green"), "now": ("▶", "bold"), "next": ("·", "dim")}
_ASCII = str.maketrans("█▓░✓▶·→●├┤─┃┊◂▸–×≥…", "#=.v>.>o[]-|:<>-x>~")


_WRAPPER = Console(file=io.StringIO(), width=80)
"""Text.wrap wants one; it asks it for its styles only."""


def indented(text: Text, indent: int, width: int) -> list[Text]:
    """The text in lines of this width, each behind an indent."""
    lines = []
    for part in text.wrap(_WRAPPER, max(20, width - indent)):
        part.rstrip()
        part.plain = part.plain.replace(_FIRM, " ")
        lines.append(Text(" " * indent).append_text(part))
    return lines


def labelled(label: str, body: Text | str, width: int, style: str = "") -> list[Text]:
    """`label     body`, the body wrapped to the width with a hanging indent."""
    text = body if isinstance(body, Text) else Text(body, style)
    lines = indented(text, _LABEL, width) or [Text(" " * _LABEL)]
    lines[0] = Text.assemble((f"{label:<{_LABEL}}", "dim"), lines[0][_LABEL:])
    return lines


def status_lines(status: Status, width: int, height: int | None = None) -> list[Text]:
    """One endpoint. With a height, what matters least is left out until it fits."""
    rollout = status.rollout
    lines = [_head(status, width), *_traffic(status, width), *_replicas(status, width)]
    if rollout is None:
        what = f"none yet; octoserve rollout start {status.endpoint} --candidate V"
        return [*lines, *_notes(status, width), *labelled("rollout", what, width)]
    if rollout.ended:
        return [*lines, *_ending(status, rollout, width), *_notes(status, width)]
    lines += [*_progress(status, rollout, width), *_notes(status, width)]
    pairs = _pairs(rollout.pairs, width)
    arms = _arms(rollout)
    actions = _actions(status, rollout, width)
    if height is None:
        return _joined(lines, verdict_lines(rollout.verdicts, width), arms, pairs, actions)
    verdicts = len(verdict_lines(rollout.verdicts, width))
    left = height - len(lines) - len(actions)
    if left < verdicts + len(arms) + len(pairs) + sum(bool(part) for part in (verdicts, arms, pairs)):
        left -= sum(bool(part) for part in (verdicts, pairs)) + len(pairs)
        arms = []
    else:
        left = verdicts
    return _joined(lines, verdict_lines(rollout.verdicts, width, max(2, left)), arms, pairs, actions)[:height]


def _joined(*sections: list[Text]) -> list[Text]:
    """Sections with an empty line before each but the first and the last."""
    lines = list(sections[0])
    for section in sections[1:-1]:
        lines += [Text(), *section] if section else []
    return lines + sections[-1]


def overview_lines(statuses: Iterable[Status], width: int) -> list[Text]:
    """Every endpoint, a line each, and what a live rollout waits for."""
    rows = []
    for status in statuses:
        rollout = status.rollout
        what = "no rollout yet"
        if rollout is not None:
            what = f"{rollout.strategy} v{rollout.stable} → v{rollout.candidate}, {standing(rollout)}"
        rows.append((status.endpoint, routes(status), what, _style(rollout), rollout))
    if not rows:
        return [Text("no endpoint yet")]
    name = max(len("ENDPOINT"), *(len(row[0]) for row in rows))
    share = max(len("TRAFFIC"), *(len(row[1]) for row in rows))
    lines = [Text(f"{'ENDPOINT':<{name}}  {'TRAFFIC':<{share}}  ROLLOUT", "bold")]
    for endpoint, traffic, what, style, rollout in rows:
        line = Text.assemble(f"{endpoint:<{name}}  {traffic:<{share}}  ", (what, style))
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
        if rollout is not None and not rollout.ended and rollout.waiting_for:
            more = Text(f"{'':<{name}}  waiting for {rollout.waiting_for}", "dim")
            more.truncate(width, overflow="ellipsis")
            lines.append(more)
    return lines


def history_lines(summaries: Sequence[Summary], width: int) -> list[Text]:
    """Rollouts, the newest first: a line each, and why they ended."""
    if not summaries:
        return [Text("no rollout yet")]
    lines = []
    for item in summaries:
        result = item.result or item.phase
        took = duration(item.ended - item.started) if item.ended else ""
        style = "green" if item.result in GOOD_ENDS else "yellow" if not item.result else "red"
        versions = f"v{item.stable} → v{item.candidate}"
        first = Text.assemble(
            (clock(item.started, day=True), "dim"), f"  {item.strategy:<10}  {versions:<9}  ", (f"{result:<11}", style)
        )
        lines.append(first.append(f"  {took:<12}"))
        indent = " " * 18
        if width - lines[-1].cell_len > len(item.id) + 1:
            lines[-1].append(f"  {item.id}", "dim")
        else:
            lines.append(Text(indent + item.id, "dim"))
        if item.reason:
            lines += indented(Text(item.reason), len(indent), width)
    for line in lines:
        line.rstrip()
    return lines


def printed(console: Console, lines: Sequence[Text]) -> Group:
    """The lines as one renderable that neither wraps nor highlights; in ASCII where the terminal has no more."""
    if not console.options.encoding.startswith("utf"):
        for line in lines:
            line.plain = line.plain.translate(_ASCII)
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(*lines)


# --- the parts of a status ------------------------------------------------------------------------------


def _style(rollout: RolloutView | None) -> str:
    if rollout is None:
        return "dim"
    if rollout.ended:
        return "green" if rollout.result in GOOD_ENDS else "red"
    return "red" if rollout.phase == "aborting" else "yellow" if rollout.paused else "cyan"


def _head(status: Status, width: int) -> Text:
    rollout = status.rollout
    line = Text(status.endpoint, "bold")
    if rollout is None:
        return line
    line.append(f"  {rollout.strategy} v{rollout.stable} → v{rollout.candidate}  ", "not bold")
    line.append(standing(rollout), f"not bold {_style(rollout)}")
    gap = width - line.cell_len - len(rollout.id)
    if gap >= 2:
        line.append(" " * gap + rollout.id, "not bold dim")
    return line


def _traffic(status: Status, width: int) -> list[Text]:
    """A bar of everything, and what its parts are."""
    shown = [route for route in status.routes if route.share > 0]
    if not shown:
        return labelled("traffic", "no version answers", width, "red")
    room = min(60, width - _LABEL)
    bar, legend, drawn, upto = Text(), Text(), 0, 0.0
    for route in shown:
        fill, style = _FILL.get(route.role, _FILL["stable"])
        upto += route.share
        end = room if route is shown[-1] else min(room, max(drawn + 1, round(upto * room)))
        bar.append(fill * (end - drawn), style)
        drawn = end
        legend.append("   " if legend else "").append(fill, style)
        what = f" v{route.version} {route.role}".rstrip() + f" {percent(route.share)}"
        legend.append(what.replace(" ", _FIRM))
    return [*labelled("traffic", bar, width), *labelled("", legend, width)]


def _replicas(status: Status, width: int) -> list[Text]:
    """Who shares the store; one alone is not worth a line."""
    if len(status.replicas) < 2:
        return []
    text = Text()
    for replica in status.replicas:
        what = [word for word, holds in (("leads", replica.leads), ("this one", replica.here)) if holds]
        if replica.silent > SILENT:
            what.append(f"silent for {duration(replica.silent)}" + ("" if replica.counts else ", not waited for"))
        text.append(" · " if text else "").append(replica.id)
        text.append(f"{_FIRM}({', '.join(what)})".replace(" ", _FIRM) if what else "", "dim")
    return labelled("replicas", text, width)


def _progress(status: Status, rollout: RolloutView, width: int) -> list[Text]:
    lines = labelled("steps", _steps(rollout), width)
    samples = rollout.samples
    if samples is not None and samples.want > 0 and rollout.phase == "running":
        room = min(30, width - _LABEL - 30)
        full = min(room, samples.have * room // samples.want)
        bar = Text("█" * full, "cyan").append("░" * (room - full), "dim")
        lines += labelled("exposure", bar.append(f"  {samples.have:,} of {samples.want:,}", "default not dim"), width)
    if rollout.paused:
        how = f"{rollout.paused}  (octoserve rollout resume {status.endpoint})"
        lines += labelled("paused", how, width, "bold yellow")
    if rollout.reason:
        lines += labelled("reason", rollout.reason, width, "red" if rollout.phase == "aborting" else "")
    lines += labelled("waiting", f"for {rollout.waiting_for}" if rollout.waiting_for else "for nothing", width)
    return lines + labelled("time", _time(rollout), width)


def _steps(rollout: RolloutView) -> Text:
    text = Text()
    for step in rollout.steps:
        mark, style = _STEP.get(step.state, _STEP["next"])
        what = f"mirror {percent(step.mirror)}" if step.mirror else "before the switch"
        what = percent(step.weight) if step.weight else what
        text.append("  " if text else "").append(f"{mark} {what}".replace(" ", _FIRM), style)
        if step.approval and step.state != "done":
            text.append(f"{_FIRM}(approval)", "dim")
    return text


def _time(rollout: RolloutView) -> str:
    running = rollout.phase == "running"
    text = f"{duration(rollout.now - rollout.entered)} in this {'step' if running else 'phase'}"
    pause = rollout.current.pause if running else 0.0
    if pause > 0:
        text += f" (≥ {duration(pause)})"
    if rollout.settled is None:
        text += ", not every worker follows yet"
    if rollout.deadline is not None:
        left = rollout.deadline - rollout.now
        when = f"in {duration(left)}" if left >= 0 else f"passed {duration(-left)} ago"
        text += f", deadline {when} ({clock(rollout.deadline)})"
    return text


def _ending(status: Status, rollout: RolloutView, width: int) -> list[Text]:
    lines = labelled("result", rollout.result or "none", width, f"bold {_style(rollout)}")
    if rollout.reason or rollout.result not in GOOD_ENDS:
        lines += labelled("reason", rollout.reason or "none given", width)
    when = f"{clock(rollout.started, day=True)} to {clock(rollout.entered, day=True)}"
    lines += labelled("time", f"{when}, {duration(rollout.entered - rollout.started)}", width)
    verdicts = verdict_lines(rollout.verdicts, width)
    if verdicts:
        lines += [Text(), *verdicts]
    pairs = _pairs(rollout.pairs, width)
    if pairs:
        lines += [Text(), *pairs]
    return lines + _actions(status, rollout, width)


def _notes(status: Status, width: int) -> list[Text]:
    lines = []
    if status.refused:
        which = ", ".join(f"v{version}" for version in status.refused)
        lines += labelled("held back", f"{which}: comes back only by `rollout start`", width)
    if not status.acknowledged:
        lines += labelled("workers", f"not all follow generation {status.generation} yet", width, "yellow")
    return lines


def _actions(status: Status, rollout: RolloutView, width: int) -> list[Text]:
    if not rollout.actions:
        return []
    return labelled("you can", f"octoserve rollout {' | '.join(rollout.actions)} {status.endpoint}", width, "dim")


def _arms(rollout: RolloutView) -> list[Text]:
    rows = [(role, arm) for role, arm in rollout.arms.items() if arm.assigned or arm.attempts]
    if not rows:
        return []
    lines = [Text(f"{'ARM':<{_LABEL}}{'REQUESTS':>12}{'FAILED':>10}{'':>10}{'P50':>11}{'P99':>11}", "dim")]
    for role, arm in rows:
        failed = f"({percent(arm.failures / arm.attempts)})" if arm.attempts else ""
        numbers = f"{arm.attempts:>12,}{arm.failures:>10,}{failed:>10}{latency(arm.p50):>11}{latency(arm.p99):>11}"
        lines.append(Text.assemble((f"{role:<{_LABEL}}", _FILL.get(role, _FILL["stable"])[1]), numbers))
    return lines


def _pairs(pairs: PairEvidence | None, width: int) -> list[Text]:
    """The account of mirrored requests, to the last one."""
    if pairs is None or not pairs.offered:
        return []
    why = ", ".join(f"{reason} {count:,}" for reason, count in sorted(pairs.dropped.items()) if count)
    dropped = f"{sum(pairs.dropped.values()):,}" + (f" ({why})" if why else "")
    lines = labelled("mirrored", f"{pairs.offered:,} = sent {pairs.sent:,} + dropped {dropped}", width)
    lines += labelled(
        "", f"sent {pairs.sent:,} = ok {pairs.ok:,} + error {pairs.error:,} + timeout {pairs.timeout:,}", width
    )
    text = f"{pairs.compared:,}, differ {_of(pairs.disagreed, pairs.compared)}"
    text += f"; noise floor {_of(pairs.noise_disagreed, pairs.noise_compared)} of {pairs.noise_compared:,}"
    lines += labelled("compared", text, width)
    worst = sorted((item for item in pairs.outputs.items() if item[1]), key=lambda item: -item[1])
    if worst:
        more = f", and {len(worst) - 4} more" if len(worst) > 4 else ""
        lines += labelled("outputs", ", ".join(f"{name} {count:,}" for name, count in worst[:4]) + more, width)
    return lines


def _of(part: int, whole: int) -> str:
    return f"{part:,} ({percent(part / whole)})" if whole else f"{part:,}"
