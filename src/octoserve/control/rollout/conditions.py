"""What a rollout waits for, and which commands are legal: conditions of the machine, and their words for people.

One function says both, so that what is shown is what is decided.
"""

from __future__ import annotations

import math

from octoserve.control.analysis.verdict import Outcome, Verdict, overall
from octoserve.control.rollout.values import Command, Course, MetricCheck, Phase, Rollout
from octoserve.control.rollout.view import View

_APPROVAL = "approval"
_DECIDE = "; promote or rollback ends the wait"


def refusal(rollout: Rollout, command: Command) -> str:
    """Why a command is not legal now, for people; "" if it is."""
    phase = rollout.phase
    if phase is Phase.ENDED:
        return f"the rollout has ended: {rollout.result}"
    if phase is Phase.ABORTING:
        return "" if command in (Command.ABORT, Command.ROLLBACK) else "the rollout is being aborted"
    if command is Command.PAUSE and rollout.paused:
        return f"it is paused already: {rollout.paused}"
    if command is Command.RESUME and not rollout.paused:
        return "it is not paused"
    if command is Command.APPROVE:
        if phase is not Phase.RUNNING or not rollout.now.approval:
            return "nothing waits for approval"
        return "this step is approved already" if rollout.approved else ""
    if command is Command.PROMOTE:
        return _promote_refusal(rollout)
    return ""


def _promote_refusal(rollout: Rollout) -> str:
    if rollout.phase is Phase.RUNNING:
        return ""
    if rollout.phase in (Phase.WAITING, Phase.PREPARING):
        return "the candidate is not prepared yet; it can be promoted once its first step runs"
    if rollout.phase is Phase.RETAINING and delayed_of(rollout.course):
        return ""
    return f"it is promoted already; version {rollout.stable} is kept ready for a rollback meanwhile"


def allowed(rollout: Rollout) -> tuple[Command, ...]:
    """The commands that are legal now."""
    return tuple(command for command in Command if not refusal(rollout, command))


def deadline_of(rollout: Rollout) -> float | None:
    """Wall clock seconds at which the phase or step takes its deadline's outcome; None if it has none."""
    timed = rollout.phase in (Phase.WAITING, Phase.PREPARING, Phase.RUNNING, Phase.PROMOTING)
    return rollout.since + rollout.course.deadline if timed and rollout.course.deadline > 0 else None


def delayed_of(course: Course) -> frozenset[str]:
    """Names of the checks whose labels come late."""
    return frozenset(check.name for check in course.checks if isinstance(check, MetricCheck) and check.delayed)


def obstacle(rollout: Rollout, view: View) -> str:
    """What keeps an unpaused phase or step from ending well, for people; "" if nothing does."""
    match rollout.phase:
        case Phase.WAITING | Phase.PREPARING:
            return _unready(rollout, view) or _unprepared(rollout, view)
        case Phase.RUNNING:
            return _unready(rollout, view) or _unfinished(rollout, view)
        case Phase.ABORTING if not view.settled and not view.stable_ready:
            return f"version {rollout.stable} to be ready in every worker; if its files are gone, put them back"
        case Phase.PROMOTING | Phase.ABORTING:
            return "" if view.settled else _behind(view)
        case Phase.RETAINING:
            return _unretained(rollout, view)
    return ""


def _behind(view: View) -> str:
    return f"{view.behind} to follow"


def _unready(rollout: Rollout, view: View) -> str:
    if not view.present:
        return f"version {rollout.candidate} to lie in the repository"
    if not view.ready:
        return f"version {rollout.candidate} to be ready in every worker"
    return "" if view.stable_ready else f"version {rollout.stable} to be ready in every worker"


def _unprepared(rollout: Rollout, view: View) -> str:
    if rollout.phase is Phase.WAITING:
        return ""
    if not view.settled:
        return _behind(view)
    preview = view.preview
    return "golden samples and replayed traffic" if previews(rollout.course) and not (preview and preview.ok) else ""


def _unfinished(rollout: Rollout, view: View) -> str:
    """Of a step: what does not hold yet. Approval is named last, since it is to be given on evidence."""
    step = rollout.now
    if rollout.settled is None or not view.settled:
        return _behind(view)
    left = rollout.settled + step.pause - view.now
    if step.pause > 0 and left > 0:
        return f"{math.ceil(left)} s of the step's pause"
    approval = _APPROVAL if step.approval and not rollout.approved else ""
    missing = ""
    if view.samples < step.samples:
        missing = f"{view.samples} of {step.samples} {'candidate samples' if step.weight else 'pairs'}"
    elif step.analysis:
        missing = _unproven(rollout.course, view)
    return ", then ".join(part for part in (missing, approval) if part)


def _unproven(course: Course, view: View) -> str:
    """PASS and nothing else is proof. Checks whose labels come late are judged on after promotion."""
    late = delayed_of(course)
    verdicts = tuple(verdict for verdict in view.verdicts if verdict.check not in late)
    if not verdicts:
        return "a first verdict"
    worst = overall(verdicts)
    open_ = [verdict for verdict in verdicts if verdict.outcome is not Outcome.PASS or not _finite(verdict)]
    if worst is Outcome.PASS and not open_:
        return ""
    first = next((verdict for verdict in open_ if verdict.outcome is worst), open_[0])
    more = f" and {len(open_) - 1} more" if len(open_) > 1 else ""
    return f"{said_of(first)}{more}"


def _unretained(rollout: Rollout, view: View) -> str:
    if not retained(rollout, view):
        left = math.ceil(rollout.entered + rollout.course.retain - view.now)
        return f"{left} s in which version {rollout.stable} stays ready for a rollback"
    late = delayed_of(rollout.course)
    if late and not view.labels_complete:
        return "delayed labels"
    judged = {verdict.check for verdict in view.verdicts}
    unclear = [v for v in view.verdicts if v.check in late and v.outcome not in (Outcome.PASS, Outcome.HOLD)]
    if unclear or late - judged:
        what = said_of(unclear[0]) if unclear else f"a verdict on {min(late - judged)}"
        return f"{what}{_DECIDE}"
    return "" if view.ready else f"version {rollout.candidate} to be ready in every worker"


def retained(rollout: Rollout, view: View) -> bool:
    """Whether the old version has been kept for as long as the course says."""
    return view.now >= rollout.entered + rollout.course.retain


def is_settled(rollout: Rollout) -> bool:
    """Whether evidence counts: it is recorded that every worker follows this step."""
    return rollout.phase is Phase.RUNNING and rollout.settled is not None


def previews(course: Course) -> bool:
    """Whether the candidate has to pass something before its first step."""
    return course.golden or course.replay > 0


def _finite(verdict: Verdict) -> bool:
    return all(x is None or math.isfinite(x) for x in (verdict.estimate, verdict.low, verdict.high))


def said_of(verdict: Verdict) -> str:
    """A verdict in a few words: `error_rate of country=DE: FAIL (0.021, at most 0.01)`."""
    where = f" of {verdict.segment}" if verdict.segment else ""
    if verdict.note:
        return f"{verdict.check}{where}: {verdict.outcome}, {verdict.note}"
    if verdict.estimate is None:
        return f"{verdict.check}{where}: {verdict.outcome}"
    limit = "" if verdict.margin is None else f", accepted {verdict.margin:.4g}"
    return f"{verdict.check}{where}: {verdict.outcome} ({verdict.estimate:.4g}{limit})"


def person_wanted(rollout: Rollout, view: View) -> str:
    """What only a person can do now: resume, approve or decide; "" where it goes on, or waits, by itself."""
    if rollout.phase in (Phase.ABORTING, Phase.ENDED):
        return ""
    if rollout.paused:
        return "resume"
    open_ = obstacle(rollout, view)
    if open_ == _APPROVAL:
        return "approve"
    return "decide" if open_.endswith(_DECIDE) else ""


def waiting_for(rollout: Rollout, view: View) -> str:
    """One sentence for people: what has to come before the rollout goes on; "" once it has ended."""
    if rollout.phase is Phase.ENDED:
        return ""
    if rollout.paused:
        return f"somebody to resume it (paused: {rollout.paused})"
    return obstacle(rollout, view) or "the next look"
