"""The rollout machine: record and facts in, at most one transition out. Pure: no clock, no I/O, no state.

States, their order and what may never happen are in docs/decisions/0007-rollouts.md; `_RULES` is its order of priority.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec

from octoserve.control.analysis.verdict import Outcome
from octoserve.control.rollout.conditions import (
    allowed,
    deadline_of,
    delayed_of,
    is_settled,
    obstacle,
    person_wanted,
    previews,
    refusal,
    retained,
    said_of,
    waiting_for,
)
from octoserve.control.rollout.values import Command, Course, Endpoint, Phase, Result, Rollout
from octoserve.control.rollout.view import Preview, View
from octoserve.control.rollout.wish import EXPOSED, Wish, trusted_of, wish_of
from octoserve.core.errors import SettingsError

__all__ = [
    "Event",
    "Preview",
    "Transition",
    "View",
    "Wish",
    "allowed",
    "deadline_of",
    "decide",
    "endpoint_after",
    "person_wanted",
    "refusal",
    "start",
    "waiting_for",
    "wish_of",
]

SLACK = 60.0
"""Seconds that the wall clock may be behind a record before its times are set anew; below, one waits for it."""


class Event(StrEnum):
    """What happened; why is the transition's reason."""

    PREPARING = "preparing"
    RUNNING = "running"
    SETTLED = "settled"
    ADVANCED = "advanced"
    PROMOTING = "promoting"
    RETAINING = "retaining"
    ABORTING = "aborting"
    ENDED = "ended"
    PAUSED = "paused"
    RESUMED = "resumed"
    APPROVED = "approved"
    CLOCK = "clock"
    """The wall clock went back: the record's times were set to it."""


class Transition(msgspec.Struct, frozen=True):
    """One committed change: the record after it, whose version is one more."""

    rollout: Rollout
    event: Event
    reason: str


def start(endpoint: str, stable: int, candidate: int, course: Course, id: str, now: float) -> Rollout:
    """The first record. Raises SettingsError for a course that could not be walked."""
    problem = ""
    weights = [step.weight for step in course.steps]
    named = {to for to in course.overrides.values() if to not in ("stable", "candidate", stable, candidate)}
    if candidate == stable:
        problem = f"version {candidate} is the stable version already; name another candidate"
    elif not weights:
        problem = "a course has one step at least"
    elif weights != sorted(weights):
        problem = "weights may not shrink from step to step: who has seen the candidate keeps seeing it"
    elif named:
        wrong = ", ".join(map(str, sorted(named, key=str)))
        problem = f"overrides: {stable}, {candidate}, stable or candidate wanted, {wrong} came; others are not loaded"
    if problem:
        raise SettingsError(f"rollout of {endpoint!r}: {problem}")
    return Rollout(
        id=id, endpoint=endpoint, stable=stable, candidate=candidate, course=course, started=now, entered=now, since=now
    )


def decide(rollout: Rollout, view: View) -> Transition | None:
    """The transition that these facts call for, if any. Commit it before anything else is done."""
    for rule in _RULES:
        transition = rule(rollout, view)
        if transition is not None:
            return transition
    return None


def endpoint_after(endpoint: Endpoint, rollout: Rollout) -> Endpoint:
    """What outlives an ended rollout, for the transaction that ends it: who is stable, and who must not come back.

    A candidate that has not become stable does not come back by itself, however it ended: nothing has said that it is
    good. Nor does the newer version that an older one was put in the place of.
    """
    stable = trusted_of(rollout)
    left = rollout.candidate if stable != rollout.candidate else max(rollout.candidate, rollout.stable)
    return Endpoint(name=endpoint.name, stable=stable, refused=tuple(sorted({*endpoint.refused, left} - {stable})))


# The rules, most urgent first.


def _end_of_abort(rollout: Rollout, view: View) -> Transition | None:
    """Aborting is left by acknowledgement alone, and needs every rule below no more."""
    if rollout.phase is Phase.ABORTING and view.settled:
        return _enter(rollout, view, Phase.ENDED, Event.ENDED, str(rollout.result), settled=view.now)
    return None


def _urgent(rollout: Rollout, view: View) -> Transition | None:
    if rollout.phase in _LEAVING:
        return None
    if view.command in (Command.ABORT, Command.ROLLBACK):
        said = f": {view.command_reason}" if view.command_reason else ""
        return _abort(rollout, view, f"{view.command} by a person{said}")
    if view.superseded and rollout.phase is not Phase.RETAINING:
        return _abort(rollout, view, "a newer candidate takes its place", Result.SUPERSEDED)
    return None


def _bad_news(rollout: Rollout, view: View) -> Transition | None:
    """The candidate cannot be loaded, failed its preview, was cut off by a worker, or is worse beyond its margin."""
    phase = rollout.phase
    if phase in _LEAVING:
        return None
    if view.failed:
        return _abort(rollout, view, f"version {rollout.candidate} cannot be loaded: {view.failed}")
    if phase is Phase.PREPARING and previews(rollout.course) and view.preview is not None and not view.preview.ok:
        return _abort(rollout, view, f"preview: {view.preview.reason or 'failed'}")
    if view.breaker and phase in EXPOSED:
        return _abort(rollout, view, f"breaker: {view.breaker}")
    counts = phase in (Phase.PROMOTING, Phase.RETAINING) or is_settled(rollout)
    failed = next((verdict for verdict in view.verdicts if verdict.outcome is Outcome.FAIL), None)
    return _abort(rollout, view, said_of(failed)) if failed is not None and counts else None


def _clock(rollout: Rollout, view: View) -> Transition | None:
    """A clock that went back far is taken as it is now, or a pause would last until it has caught up."""
    latest = max(rollout.entered, rollout.since, rollout.settled or 0.0)
    if rollout.phase in _LEAVING or view.now >= latest - SLACK:
        return None
    settled = None if rollout.settled is None else view.now
    reason = f"the clock went back by {latest - view.now:.0f} s: pauses and deadlines count from now"
    return _change(rollout, Event.CLOCK, reason, entered=view.now, since=view.now, settled=settled)


def _deadline(rollout: Rollout, view: View) -> Transition | None:
    deadline = deadline_of(rollout)
    if deadline is None or view.now < deadline:
        return None
    where = f"step {rollout.step + 1}" if rollout.phase is Phase.RUNNING else str(rollout.phase)
    reason = f"{where} did not end within {rollout.course.deadline:g} s: {waiting_for(rollout, view)}"
    if rollout.phase is Phase.WAITING or rollout.course.on_deadline == "abort":
        return _abort(rollout, view, reason)
    return None if rollout.paused else _change(rollout, Event.PAUSED, reason, paused=reason)


def _settle(rollout: Rollout, view: View) -> Transition | None:
    if rollout.phase is Phase.RUNNING and rollout.settled is None and view.settled:
        return _change(rollout, Event.SETTLED, "every worker follows", settled=view.now)
    return None


def _commanded(rollout: Rollout, view: View) -> Transition | None:
    """What a person asked for. What is not legal, or not yet possible, changes nothing."""
    if view.command is None or refusal(rollout, view.command):
        return None
    said = view.command_reason or "by a person"
    match view.command:
        case Command.PROMOTE:
            return _promoted(rollout, view, said)
        case Command.PAUSE:
            return _change(rollout, Event.PAUSED, said, paused=said)
        case Command.RESUME:
            return _change(rollout, Event.RESUMED, said, paused="", since=view.now)
        case Command.APPROVE:
            return _change(rollout, Event.APPROVED, said, approved=True)
    return None


def _promoted(rollout: Rollout, view: View, said: str) -> Transition | None:
    if rollout.phase is Phase.RETAINING:
        return _accept(rollout, view, said) if retained(rollout, view) else None
    if not (is_settled(rollout) and view.settled and view.ready):
        return None
    by = "promote by a person" + (f": {view.command_reason}" if view.command_reason else "")
    fields: dict[str, Any] = {"forced": True, "paused": "", "verdicts": view.verdicts, "reason": by}
    return _enter(rollout, view, Phase.PROMOTING, Event.PROMOTING, said, **fields)


def _forward(rollout: Rollout, view: View) -> Transition | None:
    if rollout.paused or obstacle(rollout, view):
        return None
    match rollout.phase:
        case Phase.WAITING:
            reason = f"version {rollout.candidate} is ready in every worker"
            return _enter(rollout, view, Phase.PREPARING, Event.PREPARING, reason)
        case Phase.PREPARING:
            told = view.preview.reason if view.preview is not None else ""
            reason = (told or "the preview passed") if previews(rollout.course) else "nothing to preview"
            return _enter(rollout, view, Phase.RUNNING, Event.RUNNING, reason, step=0)
        case Phase.RUNNING:
            return _after_step(rollout, view)
        case Phase.PROMOTING:
            reason = "every worker sends everything to the candidate"
            return _enter(rollout, view, Phase.RETAINING, Event.RETAINING, reason, settled=view.now)
        case Phase.RETAINING:
            late = " and the delayed checks are complete" if delayed_of(rollout.course) else ""
            return _accept(rollout, view, f"{rollout.course.retain:g} s have passed{late}")
    return None


def _after_step(rollout: Rollout, view: View) -> Transition:
    exposed = rollout.now.weight or rollout.now.mirror
    reason = "the step asks for no analysis" if exposed else "it is ready in every worker"
    reason = "every check passes" if rollout.now.analysis else reason
    if rollout.now.approval:
        reason += ", and it is approved"
    if rollout.step + 1 < len(rollout.course.steps):
        step = rollout.step + 1
        return _enter(rollout, view, Phase.RUNNING, Event.ADVANCED, reason, step=step, verdicts=view.verdicts)
    if rollout.course.promotes:
        fields: dict[str, Any] = {"verdicts": view.verdicts, "reason": reason}
        return _enter(rollout, view, Phase.PROMOTING, Event.PROMOTING, reason, **fields)
    end: dict[str, Any] = {"result": Result.OBSERVED, "verdicts": view.verdicts, "settled": view.now, "reason": reason}
    return _enter(rollout, view, Phase.ENDED, Event.ENDED, f"{reason}; it was only to be observed", **end)


_LEAVING = (Phase.ABORTING, Phase.ENDED)
_RULES: tuple[Callable[[Rollout, View], Transition | None], ...] = (
    _end_of_abort,
    _urgent,
    _bad_news,
    _clock,
    _deadline,
    _settle,
    _commanded,
    _forward,
)


# Changes.


def _change(rollout: Rollout, event: Event, said: str, /, **fields: Any) -> Transition:
    """The same phase and step, with other fields."""
    return Transition(msgspec.structs.replace(rollout, version=rollout.version + 1, **fields), event, said)


def _enter(rollout: Rollout, view: View, phase: Phase, event: Event, said: str, /, **fields: Any) -> Transition:
    """Another phase or step: its clock starts, and nothing of the last one's approval or settling is left."""
    fields = {"settled": None, "approved": False, **fields}
    return _change(rollout, event, said, phase=phase, entered=view.now, since=view.now, **fields)


def _accept(rollout: Rollout, view: View, said: str) -> Transition:
    """The reason and the verdicts are those it was promoted for, unless delayed checks have said more since."""
    verdicts = view.verdicts or rollout.verdicts
    fields: dict[str, Any] = {"result": Result.PROMOTED, "settled": view.now, "paused": "", "verdicts": verdicts}
    return _enter(rollout, view, Phase.ENDED, Event.ENDED, f"promoted: {said}", **fields)


def _abort(rollout: Rollout, view: View, reason: str, result: Result | None = None) -> Transition:
    """Weight 0 at the next plan. What had everything already is rolled back, what had not is aborted."""
    if result is None:
        had_all = rollout.phase in (Phase.PROMOTING, Phase.RETAINING)
        result = Result.ROLLED_BACK if had_all else Result.ABORTED
    fields: dict[str, Any] = {"result": result, "reason": reason, "paused": "", "verdicts": view.verdicts}
    return _enter(rollout, view, Phase.ABORTING, Event.ABORTING, reason, **fields)
