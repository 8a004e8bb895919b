"""Replay: an untouched log gives what was recorded; what was changed in it is named."""

from __future__ import annotations

import msgspec
import pytest

from octoserve.control.analysis.judge import judge
from octoserve.control.rollout.audit import AuditEntry, chain, decode, encode
from octoserve.control.rollout.machine import Command, Preview, View, decide, start
from octoserve.control.rollout.replay import replay
from octoserve.control.rollout.values import Course, MetricCheck, Phase, RateCheck, Result, Step
from octoserve.core.evidence import BASELINE, CANDIDATE, STABLE, ArmEvidence, Stratum

DELAYED = MetricCheck(name="late", provider="db", queries={"rows": "select 1"}, delayed=True)
COURSE = Course(
    strategy="canary",
    steps=(Step(weight=1000, samples=500), Step(weight=2500, samples=500, approval=True)),
    checks=(RateCheck(margin=0.05), DELAYED),
    retain=30,
)


def evidence(rollout, n, failures):
    def arm(n, k):
        return {"": ArmEvidence(assigned=n, attempts=n, failures=k)}

    share = rollout.weight / 10_000
    rest = round(n / share * (1 - 2 * share)) if share else 0
    arms = {CANDIDATE: arm(n, failures), BASELINE: arm(n, 0), STABLE: arm(rest, 0)}
    return Stratum(endpoint="fraud", name=rollout.stratum, arms=arms)


def record(failing=False):
    """A rollout driven as a controller drives it, and the lines of its audit log."""
    now, n, entries = 1000.0, 0, []

    def write(**fields):
        entries.append(chain(entries[-1] if entries else None, AuditEntry(rollout="r1", endpoint="fraud", **fields)))

    rollout = start("fraud", 1, 2, COURSE, "r1", now)
    write(time=now, who="ann", event="started", record=rollout)
    while rollout.phase is not Phase.ENDED:
        now, n = now + 10, n + 200
        seen = evidence(rollout, n, n // 3 if failing and rollout.step == 1 else 0) if rollout.stratum else None
        verdicts = judge(rollout, seen, {})
        command = Command.APPROVE if rollout.step == 1 and rollout.settled and not rollout.approved else None
        if rollout.phase is Phase.RETAINING and now > rollout.entered + 60:
            command = Command.PROMOTE  # nobody reads the delayed labels here
        if command:
            write(time=now, who="ann", event=command.value, record=rollout)
        view = View(
            now=now, present=True, ready=True, stable_ready=True, settled=True, preview=Preview(True),
            verdicts=verdicts, samples=n, command=command,
        )  # fmt: skip
        transition = decide(rollout, view)
        after = rollout if transition is None else transition.rollout
        write(
            time=now, who="controller", event="look" if transition is None else transition.event.value, record=after,
            evidence=seen, verdicts=verdicts, view=msgspec.to_builtins(view),
        )  # fmt: skip
        n = 0 if after.stratum != rollout.stratum else n
        rollout = after
        assert len(entries) < 200
    return rollout, [encode(entry) for entry in entries]


@pytest.mark.parametrize(("failing", "result"), [(False, Result.PROMOTED), (True, Result.ABORTED)])
def test_an_untouched_log_replays_to_itself(failing, result):
    rollout, lines = record(failing)
    assert rollout.result is result
    entries = [decode(line) for line in lines]
    assert replay(entries) == []
    assert replay(entries[5:]) == [], "also where the head of the log is cut off"


def index_of(entries, event):
    return next(i for i, entry in enumerate(entries) if entry.event == event)


def touched(entries, event, /, **fields):
    at = index_of(entries, event)
    return [*entries[:at], msgspec.structs.replace(entries[at], **fields), *entries[at + 1 :]]


def test_other_evidence_gives_other_verdicts():
    entries = [decode(line) for line in record()[1]]
    before = entries[index_of(entries, "advanced") - 1].record
    (found,) = replay(touched(entries, "advanced", evidence=evidence(before, 1000, 400)))
    assert (found.what, found.seq) == ("verdicts", entries[index_of(entries, "advanced")].seq)
    assert "error_rate PASS" in found.recorded
    assert "error_rate FAIL" in found.replayed


def test_other_facts_decide_otherwise():
    entries = [decode(line) for line in record()[1]]
    view = dict(entries[index_of(entries, "advanced")].view)
    found = replay(touched(entries, "advanced", view={**view, "samples": 3}))
    assert [divergence.what for divergence in found] == ["record"]
    assert "step=1" in found[0].recorded
    assert "step=0" in found[0].replayed
    found = replay(touched(entries, "advanced", view={**view, "verdicts": []}))
    assert [divergence.what for divergence in found] == ["facts", "record"]


def test_a_record_that_nothing_decided():
    entries = [decode(line) for line in record()[1]]
    forged = msgspec.structs.replace(entries[-1].record, result=Result.PROMOTED, version=99)
    added = AuditEntry(rollout="r1", endpoint="fraud", time=1.0, who="mallory", event="note", record=forged)
    (found,) = replay([*entries, added])
    assert found.what == "record"
    assert "nothing decided it" in str(found)
    (found,) = replay(touched(entries, "retaining", event="promoting"))
    assert (found.what, found.recorded, found.replayed) == ("event", "promoting", "retaining")


def test_another_judge_may_be_tried_on_the_same_evidence():
    entries = [decode(line) for line in record()[1]]
    found = replay(entries, judge=lambda rollout, stratum, readings: ())
    assert found
    assert {divergence.what for divergence in found} == {"verdicts"}
