"""The rollout machine, case by case: every phase with everything that may happen in it."""

from __future__ import annotations

import math

import msgspec
import pytest

from octoserve.control.analysis.verdict import Outcome, Verdict
from octoserve.control.rollout.machine import (
    SLACK,
    Event,
    Preview,
    View,
    allowed,
    deadline_of,
    decide,
    refusal,
    start,
    waiting_for,
    wish_of,
)
from octoserve.control.rollout.values import Command, Course, MetricCheck, Phase, RateCheck, Result, Rollout, Step
from octoserve.core.errors import SettingsError
from octoserve.core.evidence import BASELINE, CANDIDATE, STABLE
from octoserve.routing.plan import BUCKETS, Arm, MirrorTo

T = 1_000_000.0
DELAYED = MetricCheck(name="chargebacks", provider="db", queries={"rows": "select 1"}, delayed=True)
STEPS = (Step(weight=100, samples=10), Step(weight=2500, samples=10, pause=60, approval=True))
COURSE = Course(strategy="canary", steps=STEPS, checks=(RateCheck(),), retain=600, deadline=3600)


def verdict(outcome=Outcome.PASS, check="error_rate", **more):
    return Verdict(check=check, outcome=outcome, **more)


PASS, FAIL = (verdict(),), (verdict(Outcome.FAIL, estimate=0.021, margin=0.01, segment="country=DE"),)


def course(**more):
    return msgspec.structs.replace(COURSE, **more)


def at(phase, step=0, *, course=COURSE, settled=T, **more):
    """A record that entered `phase` at T."""
    rollout = start("fraud", 1, 2, course, "r1", T)
    if phase is Phase.WAITING or phase is Phase.PREPARING:
        settled = None
    return msgspec.structs.replace(rollout, phase=phase, step=step, settled=settled, version=7, **more)


def good(now=T + 1, **more):
    """Everything is as one would wish, and nobody asks for anything."""
    facts = {
        "now": now, "present": True, "ready": True, "stable_ready": True, "settled": True, "preview": Preview(True),
        "samples": 1000, "verdicts": PASS, **more,
    }  # fmt: skip
    return View(**facts)


def came(rollout, view):
    """(event, phase, result) of the transition, None if there is none."""
    transition = decide(rollout, view)
    if transition is None:
        return None
    assert transition.rollout.version == rollout.version + 1
    assert transition.reason
    assert (transition.rollout.id, transition.rollout.course) == (rollout.id, rollout.course)
    return transition.event, transition.rollout.phase, transition.rollout.result


ABORTED = (Event.ABORTING, Phase.ABORTING, Result.ABORTED)
ROLLED_BACK = (Event.ABORTING, Phase.ABORTING, Result.ROLLED_BACK)
SUPERSEDED = (Event.ABORTING, Phase.ABORTING, Result.SUPERSEDED)
LATER = T + 3600
W, P, R, PR, RE, A, E = Phase


def same(event, phase):
    return event, phase, Result.NONE


AHEAD = {
    W: same(Event.PREPARING, P),
    P: same(Event.RUNNING, R),
    R: same(Event.ADVANCED, R),
    PR: same(Event.RETAINING, RE),
    RE: None,  # `retain` has not passed
    A: (Event.ENDED, E, Result.ABORTED),
    E: None,
}
TABLE = {
    "nothing new": (good(), AHEAD),
    "abort": (good(command=Command.ABORT), {W: ABORTED, P: ABORTED, R: ABORTED, PR: ROLLED_BACK, RE: ROLLED_BACK}),
    "rollback": (
        good(command=Command.ROLLBACK),
        {W: ABORTED, P: ABORTED, R: ABORTED, PR: ROLLED_BACK, RE: ROLLED_BACK},
    ),
    "superseded": (good(superseded=True), {W: SUPERSEDED, P: SUPERSEDED, R: SUPERSEDED, PR: SUPERSEDED}),
    "cannot be loaded": (
        good(failed="no such operator"),
        {W: ABORTED, P: ABORTED, R: ABORTED, PR: ROLLED_BACK, RE: ROLLED_BACK},
    ),
    "breaker": (good(breaker="worker 0"), {R: ABORTED, PR: ROLLED_BACK, RE: ROLLED_BACK}),
    "FAIL": (good(verdicts=FAIL), {R: ABORTED, PR: ROLLED_BACK, RE: ROLLED_BACK}),
    "preview failed": (good(preview=Preview(False, "sample 3")), {P: ABORTED}),
    "deadline": (
        good(LATER),
        {W: ABORTED, P: ABORTED, R: ABORTED, PR: ROLLED_BACK, RE: (Event.ENDED, E, Result.PROMOTED)},
    ),
    "pause": (good(command=Command.PAUSE), {phase: same(Event.PAUSED, phase) for phase in (W, P, R, PR, RE)}),
    "resume": (good(command=Command.RESUME), {}),
    "approve": (good(command=Command.APPROVE), {}),
    "promote": (good(command=Command.PROMOTE), {R: same(Event.PROMOTING, PR)}),
}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("stimulus", TABLE)
def test_every_phase_with_everything(phase, stimulus):
    view, expected = TABLE[stimulus]
    rollout = at(phase, result=Result.ABORTED if phase in (A, E) else Result.NONE)
    assert came(rollout, view) == expected.get(phase, AHEAD[phase])


@pytest.mark.parametrize("phase", [W, P, R, PR, RE])
def test_paused_stands_still_but_not_against_bad_news(phase):
    paused = at(phase, paused="lunch")
    assert decide(paused, good()) is None
    assert "lunch" in waiting_for(paused, good())
    for stimulus in ("abort", "rollback", "cannot be loaded"):
        view, expected = TABLE[stimulus]
        assert came(paused, view) == expected[phase]
    after = decide(paused, good(command=Command.RESUME))
    assert (after.event, after.rollout.phase, after.rollout.paused) == (Event.RESUMED, phase, "")


def test_the_whole_course():
    rollout = start("fraud", 1, 2, course(steps=(*STEPS, Step(weight=5000, analysis=False))), "r1", T)
    seen, now = [], T
    while rollout.phase is not E:
        now += 1000
        command = Command.APPROVE if not refusal(rollout, Command.APPROVE) else None
        transition = decide(rollout, good(now, command=command))
        rollout = transition.rollout
        seen.append((transition.event.value, rollout.weight, rollout.step))
    assert seen == [
        ("preparing", 0, 0),
        ("running", 100, 0),
        ("settled", 100, 0),
        ("advanced", 2500, 1),
        ("settled", 2500, 1),
        ("approved", 2500, 1),
        ("advanced", 5000, 2),
        ("settled", 5000, 2),
        ("promoting", BUCKETS, 2),
        ("retaining", BUCKETS, 2),
        ("ended", 0, 2),
    ]
    assert rollout.result is Result.PROMOTED
    assert wish_of(rollout).arms == (Arm(2, 0, BUCKETS),)
    assert rollout.version == len(seen)


@pytest.mark.parametrize("more", [{"present": False}, {"ready": False}, {"stable_ready": False}])
@pytest.mark.parametrize("phase", [W, P, R])
def test_nothing_goes_on_unready(phase, more):
    assert decide(at(phase), good(**more)) is None
    assert "repository" in waiting_for(at(phase), good(**more)) or "ready" in waiting_for(at(phase), good(**more))


@pytest.mark.parametrize("phase", [P, R, PR, A])
def test_nothing_goes_on_before_every_worker_follows(phase):
    assert decide(at(phase), good(settled=False)) is None
    assert waiting_for(at(phase), good(settled=False)) == "every worker to follow"


def test_evidence_counts_only_from_settled_on():
    fresh = at(R, settled=None)
    assert decide(fresh, good(verdicts=FAIL, settled=False)) is None
    settled = decide(fresh, good(T + 5, verdicts=FAIL))
    assert (settled.event, settled.rollout.settled) == (Event.SETTLED, T + 5)
    assert came(settled.rollout, good(T + 6, verdicts=FAIL)) == ABORTED
    assert came(fresh, good(settled=False, breaker="10 of 20 failed")) == ABORTED, "a breaker is no matter of evidence"


@pytest.mark.parametrize("outcome", [Outcome.HOLD, Outcome.NO_DATA, Outcome.PROVIDER_ERROR, Outcome.SRM])
def test_only_pass_advances(outcome):
    mixed = (*PASS, verdict(outcome, "latency_p99"))
    assert decide(at(R), good(verdicts=mixed)) is None
    assert str(outcome) in waiting_for(at(R), good(verdicts=mixed))
    assert came(at(R), good(LATER, verdicts=mixed)) == ABORTED
    paused = decide(at(R, course=course(on_deadline="pause")), good(LATER, verdicts=mixed)).rollout
    assert paused.phase is R
    assert paused.weight == 100
    assert str(outcome) in paused.paused


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["estimate", "low", "high"])
def test_a_pass_without_a_number_is_none(field, bad):
    assert decide(at(R), good(verdicts=(verdict(**{field: bad}),))) is None


def test_no_verdict_and_too_few_samples_wait():
    assert waiting_for(at(R), good(verdicts=())) == "a first verdict"
    assert decide(at(R), good(verdicts=())) is None
    assert waiting_for(at(R), good(samples=9)) == "9 of 10 candidate samples"
    assert decide(at(R), good(samples=9)) is None


def test_pause_counts_from_settled_and_approval_is_asked_of_people():
    second = at(R, 1, settled=T + 30)
    assert waiting_for(second, good(T + 80.5)) == "10 s of the step's pause"
    assert waiting_for(second, good(T + 90)) == "approval"
    assert waiting_for(second, good(T + 90, samples=3)) == "3 of 10 candidate samples, then approval"
    assert decide(second, good(T + 90)) is None
    approved = decide(second, good(T + 80, command=Command.APPROVE)).rollout
    assert decide(approved, good(T + 89.9)) is None
    assert came(approved, good(T + 90)) == same(Event.PROMOTING, PR)


def test_a_step_without_analysis_needs_no_verdict_but_heeds_a_fail():
    quiet = at(R, course=course(steps=(Step(weight=100, samples=5, analysis=False), STEPS[1])))
    assert decide(quiet, good(verdicts=(), samples=4)) is None
    assert came(quiet, good(verdicts=(), samples=5)) == same(Event.ADVANCED, R)
    assert came(quiet, good(verdicts=FAIL)) == ABORTED


def test_a_course_that_only_observes():
    shadow = at(R, course=course(steps=(Step(mirror=1000, noise=100, samples=10),), promotes=False))
    assert wish_of(shadow).mirrors == (MirrorTo(2, 1000, 100),)
    assert waiting_for(shadow, good(samples=9)) == "9 of 10 pairs"
    ended = decide(shadow, good())
    assert (ended.rollout.phase, ended.rollout.result) == (E, Result.OBSERVED)
    assert (wish_of(ended.rollout).stable, wish_of(ended.rollout).mirrors) == (1, ())
    assert came(shadow, good(command=Command.PROMOTE)) == same(Event.PROMOTING, PR), "unless a person wants more"


def test_preparing_without_anything_to_preview():
    assert came(at(P, course=course(golden=False)), good(preview=None)) == same(Event.RUNNING, R)
    assert decide(at(P), good(preview=None)) is None
    assert waiting_for(at(P), good(preview=None)) == "golden samples and replayed traffic"
    assert decide(at(P, course=course(golden=False, replay=5)), good(preview=None)) is None


def test_a_person_promotes_only_what_is_ready_and_settled():
    view = good(command=Command.PROMOTE, verdicts=(), samples=0)
    assert decide(at(R), msgspec.structs.replace(view, ready=False)) is None
    assert decide(at(R), msgspec.structs.replace(view, settled=False)) is None
    assert decide(at(R, settled=None), view).event is Event.SETTLED
    paused = decide(at(R, paused="lunch"), view).rollout
    assert (paused.phase, paused.forced, paused.paused) == (PR, True, "")
    assert came(at(R), msgspec.structs.replace(view, verdicts=FAIL)) == ABORTED, "FAIL outranks it"


def test_deadlines():
    assert deadline_of(at(R)) == LATER
    assert deadline_of(at(RE)) is None
    assert deadline_of(at(R, course=course(deadline=0))) is None
    assert came(at(R, paused="lunch"), good(LATER)) == ABORTED, "a forgotten pause leaves nobody on the candidate"
    waits = course(on_deadline="pause")
    assert came(at(W, course=waits), good(LATER, ready=False)) == ABORTED
    paused = decide(at(R, course=waits), good(LATER)).rollout
    assert (paused.phase, paused.step) == (R, 0)
    assert decide(paused, good(LATER + 9999)) is None
    resumed = decide(paused, good(LATER + 10, command=Command.RESUME)).rollout
    assert deadline_of(resumed) == LATER + 10 + 3600, "or it would pause again at once"
    assert resumed.settled == T, "what has been seen still counts"
    assert came(resumed, good(LATER + 11)) == same(Event.ADVANCED, R)


def test_a_clock_that_goes_back_is_waited_for_or_taken():
    second = at(R, 1, settled=T + 30, since=T, approved=True)
    assert decide(second, good(T - SLACK + 31)) is None
    taken = decide(second, good(T - 5000))
    assert taken.event is Event.CLOCK
    assert (taken.rollout.entered, taken.rollout.settled) == (T - 5000, T - 5000)
    assert decide(taken.rollout, good(T - 5000)) is None
    assert came(taken.rollout, good(T - 4940)) == same(Event.PROMOTING, PR)
    assert came(second, good(T - 5000, command=Command.ABORT)) == ABORTED


def test_retaining_ends_after_its_time():
    assert decide(at(RE), good(T + 599)) is None
    assert waiting_for(at(RE), good(T + 598.5)) == "2 s in which version 1 stays ready for a rollback"
    assert came(at(RE), good(T + 600)) == (Event.ENDED, E, Result.PROMOTED)
    assert decide(at(RE), good(T + 600, ready=False)) is None
    assert decide(at(RE), good(T + 500, superseded=True)) is None, (
        "a newer candidate waits: nothing is rolled back for it"
    )
    assert came(at(RE), good(T + 600, superseded=True)) == (Event.ENDED, E, Result.PROMOTED)


def test_delayed_labels():
    late = course(checks=(RateCheck(), DELAYED))
    no_labels = (*PASS, verdict(Outcome.NO_DATA, "chargebacks"))
    assert came(at(R, course=late), good(verdicts=no_labels)) == same(Event.ADVANCED, R), "promotion is provisional"
    assert came(at(R, course=late), good(verdicts=(*PASS, verdict(Outcome.FAIL, "chargebacks")))) == ABORTED
    assert decide(at(R, course=late), good(verdicts=(verdict(check="chargebacks"),))) is None, (
        "others are still missing"
    )

    kept = at(RE, course=late)
    passed = (verdict(check="chargebacks"),)
    assert decide(kept, good(T + 700, verdicts=passed)) is None
    assert waiting_for(kept, good(T + 700, verdicts=passed)) == "delayed labels"
    done = {"labels_complete": True}
    assert came(kept, good(T + 700, verdicts=passed, **done)) == (Event.ENDED, E, Result.PROMOTED)
    for missing in (Outcome.NO_DATA, Outcome.PROVIDER_ERROR, Outcome.SRM):
        assert decide(kept, good(T + 700, verdicts=(verdict(missing, "chargebacks"),), **done)) is None
    assert decide(kept, good(T + 700, verdicts=(), **done)) is None
    assert came(kept, good(T + 700, verdicts=(verdict(Outcome.FAIL, "chargebacks"),))) == ROLLED_BACK
    accepted = good(T + 700, verdicts=(), command=Command.PROMOTE)
    assert came(kept, accepted) == (Event.ENDED, E, Result.PROMOTED)
    assert decide(kept, msgspec.structs.replace(accepted, now=T + 500)) is None, "but never before `retain` has passed"


def test_priority():
    everything = good(LATER, command=Command.ABORT, command_reason="page", superseded=True, failed="x", breaker="y")
    assert decide(at(R), everything).reason == "abort by a person: page"
    assert came(at(R), msgspec.structs.replace(everything, command=None)) == SUPERSEDED
    assert decide(at(R), msgspec.structs.replace(everything, command=None, superseded=False)).reason.endswith(
        "loaded: x"
    )
    failed = decide(at(R, course=course(on_deadline="pause")), good(LATER, verdicts=FAIL))
    assert failed.rollout.reason == "error_rate of country=DE: FAIL (0.021, accepted 0.01)"
    assert failed.rollout.verdicts == FAIL


def test_commands_and_refusals():
    assert set(allowed(at(W))) == {Command.PAUSE, Command.ABORT, Command.ROLLBACK}
    assert set(allowed(at(R))) == {Command.PAUSE, Command.PROMOTE, Command.ABORT, Command.ROLLBACK}
    assert set(allowed(at(R, 1, paused="x"))) == set(Command) - {Command.PAUSE}
    assert set(allowed(at(RE))) == {Command.PAUSE, Command.ABORT, Command.ROLLBACK}
    assert set(allowed(at(A))) == {Command.ABORT, Command.ROLLBACK}
    assert allowed(at(E, result=Result.PROMOTED)) == ()
    assert refusal(at(E, result=Result.PROMOTED), Command.ROLLBACK) == "the rollout has ended: promoted"
    assert "approved already" in refusal(at(R, 1, approved=True), Command.APPROVE)


def test_wishes():
    waiting, running, retaining = wish_of(at(W)), wish_of(at(R)), wish_of(at(RE))
    assert waiting.arms == (Arm(2, 0, 0, CANDIDATE), Arm(1, 0, BUCKETS, STABLE))
    assert waiting.keep == retaining.keep == {1, 2}
    assert waiting.stratum == retaining.stratum == ""
    assert (running.stratum, running.seed) == ("r1/0", "r1")
    assert running.arms == (Arm(2, 0, 100, CANDIDATE), Arm(1, 100, 200, BASELINE), Arm(1, 200, BUCKETS, STABLE))
    assert retaining.arms == (Arm(2, 0, BUCKETS, CANDIDATE), Arm(1, BUCKETS, BUCKETS, STABLE))
    assert wish_of(at(A, result=Result.ABORTED)).arms == waiting.arms


def test_overrides_see_the_candidate_only_while_it_may_be_seen():
    testers = course(overrides={"ann": "candidate", "bob": "stable", "eve": 2})
    assert wish_of(at(R, course=testers)).overrides == {"ann": 2, "bob": 1, "eve": 2}
    for phase in (W, P, A, E):
        assert wish_of(at(phase, course=testers)).overrides == {}


@pytest.mark.parametrize(
    ("stable", "more", "says"),
    [
        (2, {}, "is the stable version already"),
        (1, {"steps": ()}, "one step at least"),
        (1, {"steps": (Step(weight=500), Step(weight=100))}, "may not shrink"),
        (1, {"overrides": {"ann": 9}}, "1, 2, stable or candidate wanted, 9 came"),
    ],
)
def test_courses_that_cannot_be_walked(stable, more, says):
    with pytest.raises(SettingsError, match=says):
        start("fraud", stable, 2, course(**more), "r1", T)


def test_records_and_views_survive_json():
    rollout, view = at(R, course=course(checks=(RateCheck(), DELAYED))), good(command=Command.PAUSE)
    assert msgspec.json.decode(msgspec.json.encode(rollout), type=Rollout) == rollout
    assert msgspec.convert(msgspec.to_builtins(view), View) == view


def test_the_record_says_why_it_ended_well():
    one = course(steps=STEPS[:1])
    promoting = decide(at(R, course=one), good()).rollout
    assert (promoting.phase, promoting.reason, promoting.verdicts) == (PR, "every check passes", PASS)
    retaining = decide(promoting, good()).rollout
    ended = decide(retaining, good(LATER, verdicts=())).rollout
    assert (ended.result, ended.reason, ended.verdicts) == (Result.PROMOTED, "every check passes", PASS)
    observed = decide(at(R, course=course(steps=STEPS[:1], promotes=False)), good()).rollout
    assert (observed.result, observed.reason) == (Result.OBSERVED, "every check passes")
    by_hand = decide(at(R), good(command=Command.PROMOTE, command_reason="the fair is today")).rollout
    assert by_hand.reason == "promote by a person: the fair is today"
    assert decide(at(P), good(preview=Preview(True, "golden samples right: 3"))).reason == "golden samples right: 3"
