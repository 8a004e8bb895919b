"""Replay: feed what a rollout's audit log holds to the same functions, and say where they answer otherwise.

An entry is replayed against the record before it, which is that of the entry before of the same rollout:

- evidence (and readings) -> `judge` -> the entry's verdicts
- the facts (`view`) -> `decide` -> the entry's record; the same record where the entry is only a look

What holds no facts (a person's request, a note) must not have changed the record. A first entry is what a rollout
starts from, or where a log begins whose head was cut off: no record is before it, and it is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from octoserve.control.analysis.reading import Reading
from octoserve.control.analysis.verdict import Verdict
from octoserve.control.rollout.audit import AuditEntry, canonical
from octoserve.control.rollout.machine import Event, View, decide
from octoserve.control.rollout.values import Rollout
from octoserve.core.evidence import Stratum

_EVENTS = {event.value for event in Event}

Judge = Callable[[Rollout, Stratum | None, Mapping[str, Reading]], tuple[Verdict, ...]]


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that came out otherwise than it was recorded.

    seq:      of the entry
    what:     "verdicts", "facts", "record" or "event"
    recorded, replayed: both, as text for people
    """

    rollout: str
    seq: int
    what: str
    recorded: str
    replayed: str

    def __str__(self) -> str:
        return f"{self.rollout} entry {self.seq}: {self.what}: recorded {self.recorded}, replayed {self.replayed}"


def replay(entries: Iterable[AuditEntry], judge: Judge | None = None) -> list[Divergence]:
    """Divergences of these entries, in their order; of one rollout or of several, each from its start.

    judge: `control.analysis.judge.judge`, unless another one is to be tried on the same evidence
    """
    if judge is None:
        from octoserve.control.analysis.judge import judge as judge_now

        judge = judge_now
    found: list[Divergence] = []
    before: dict[str, Rollout] = {}
    for entry in entries:
        last = before.get(entry.rollout)
        if last is not None:
            found += _judged(entry, last, judge)
            found += _decided(entry, last)
        if entry.record is not None:
            before[entry.rollout] = entry.record
    return found


def _judged(entry: AuditEntry, last: Rollout, judge: Judge) -> list[Divergence]:
    if entry.evidence is None and not entry.readings and not entry.verdicts:
        return []
    verdicts = judge(last, entry.evidence, entry.readings)
    if canonical(verdicts) == canonical(entry.verdicts):  # as it was stored: NaN equals NaN there
        return []
    return [_divergence(entry, "verdicts", _said(entry.verdicts), _said(verdicts))]


def _decided(entry: AuditEntry, last: Rollout) -> list[Divergence]:
    record = last if entry.record is None else entry.record
    if not entry.view:
        changed = canonical(record) != canonical(last)
        return (
            [_divergence(entry, "record", _stands(record), f"{_stands(last)}: nothing decided it")] if changed else []
        )
    view = msgspec.convert(entry.view, View, strict=False)
    found = []
    if canonical(view.verdicts) != canonical(entry.verdicts):
        found.append(_divergence(entry, "facts", _said(entry.verdicts), _said(view.verdicts)))
    transition = decide(last, view)
    replayed = last if transition is None else transition.rollout
    if canonical(replayed) != canonical(record):
        found.append(_divergence(entry, "record", _differing(record, replayed), _differing(replayed, record)))
    elif transition is not None and entry.event in _EVENTS and entry.event != transition.event.value:
        found.append(_divergence(entry, "event", entry.event, transition.event.value))
    return found


def _divergence(entry: AuditEntry, what: str, recorded: str, replayed: str) -> Divergence:
    return Divergence(rollout=entry.rollout, seq=entry.seq, what=what, recorded=recorded, replayed=replayed)


def _said(verdicts: tuple[Verdict, ...]) -> str:
    return ", ".join(f"{v.check} {v.segment} {v.outcome}".replace("  ", " ") for v in verdicts) or "none"


def _stands(record: Rollout) -> str:
    return f"{record.phase} step {record.step + 1} (version {record.version})"


def _differing(this: Rollout, other: Rollout) -> str:
    """Where it stands, and the fields in which it differs from the other."""
    mine, others = _plain(this), _plain(other)
    fields = [f"{name}={mine[name]!r}" for name in mine if mine[name] != others.get(name)]
    return f"{_stands(this)} with {', '.join(fields)}"


def _plain(record: Rollout) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.json.decode(canonical(record))
    return plain
