"""The rollout machine's invariants (docs/decisions/0007-rollouts.md), on random walks through random courses.

A walk starts a rollout and puts arbitrary facts before it, again and again; each property is asked of every record
that is met on the way. Good news is likely enough for walks to come to every phase, bad news to come in each.
"""

from __future__ import annotations

import functools
import random
from collections import Counter

import msgspec

from octoserve.control.analysis.verdict import Outcome, Verdict
from octoserve.control.rollout.machine import (
    Event,
    Preview,
    View,
    allowed,
    decide,
    endpoint_after,
    refusal,
    start,
    waiting_for,
    wish_of,
)
from octoserve.control.rollout.values import (
    Command,
    Course,
    Endpoint,
    MetricCheck,
    Phase,
    RateCheck,
    Result,
    Rollout,
    Step,
)
from octoserve.routing.plan import BUCKETS, RoutePlan
from support.scale import scale

S, C = 3, 4
WALKS = scale(1000, 20_000)
DELAYED = MetricCheck(name="late", provider="db", queries={"rows": "select 1"}, delayed=True)


def a_step(draw):
    return Step(
        weight=draw.choice([0, 1, 100, 2500, 5000, 8000, BUCKETS]),
        mirror=draw.choice([0, 1000]),
        samples=draw.choice([0, 10, 20]),
        pause=draw.choice([0.0, 30.0]),
        approval=draw.random() < 0.3,
        analysis=draw.random() < 0.7,
    )


def a_course(draw):
    steps = sorted((a_step(draw) for _ in range(draw.randint(1, 4))), key=lambda step: step.weight)
    return Course(
        strategy="canary",
        steps=tuple(steps),
        promotes=draw.random() < 0.8,
        checks=draw.choice([(RateCheck(),), (RateCheck(), DELAYED)]),
        baseline=draw.random() < 0.5,
        overrides=draw.choice([{}, {"ann": "candidate", "bob": S}]),
        golden=draw.random() < 0.5,
        replay=draw.choice([0, 5]),
        retain=draw.choice([0.0, 50.0]),
        deadline=draw.choice([0.0, 200.0]),
        on_deadline=draw.choice(["abort", "pause"]),
    )


def a_verdict(draw):
    outcome = draw.choice(list(Outcome)) if draw.random() < 0.3 else Outcome.PASS
    numbers = [None, 0.0, 0.01, float("nan"), float("inf")]
    return Verdict(
        check=draw.choice(["error_rate", "late"]),
        outcome=outcome,
        estimate=draw.choice(numbers),
        low=draw.choice(numbers),
    )


def arbitrary(draw, now):
    """Any facts at all. The worst news is rare, or nothing else would ever be met."""

    def rare(bad, usual):
        return bad if draw.random() < 0.08 else usual

    return View(
        now=now,
        present=draw.random() < 0.9,
        ready=draw.random() < 0.9,
        failed=rare("no such operator", ""),
        stable_ready=draw.random() < 0.9,
        settled=draw.random() < 0.8,
        preview=draw.choice([Preview(True), Preview(True), Preview(False, "sample 3"), None]),
        verdicts=tuple(a_verdict(draw) for _ in range(draw.randint(0, 2))),
        samples=draw.choice([0, 15, 40]),
        breaker=rare("10 of 20", ""),
        command=draw.choice([None] * 8 + list(Command)),
        superseded=rare(True, False),
        labels_complete=draw.random() < 0.5,
    )


GOOD = tuple(Verdict(check=check, outcome=Outcome.PASS) for check in ("error_rate", "late"))


def fair(rollout, now):
    """All is ready, every check passes, and people answer."""
    command = Command.RESUME if rollout.paused else None
    if not refusal(rollout, Command.APPROVE):
        command = command or Command.APPROVE
    return View(
        now=now, present=True, ready=True, stable_ready=True, settled=True, preview=Preview(True), verdicts=GOOD,
        samples=100, command=command, labels_complete=True,
    )  # fmt: skip


def a_walk(seed):
    """[(record, view, transition or None)], and the record at the end. Facts are mostly fair, or mostly arbitrary."""
    draw = random.Random(seed)
    now, steps = 10_000.0, []
    rollout = start("fraud", S, C, a_course(draw), "r1", now)
    fairness = draw.choice([0.0, 0.5, 0.9, 0.97])
    for _ in range(draw.randint(1, 40)):
        now += draw.uniform(0, 60) - draw.choice([0.0] * 20 + [1.0, 500.0])
        view = fair(rollout, now) if draw.random() < fairness else arbitrary(draw, now)
        steps.append((rollout, view, decide(rollout, view)))
        rollout = rollout if steps[-1][2] is None else steps[-1][2].rollout
    return steps, rollout


@functools.cache
def all_walks():
    return [a_walk(seed) for seed in range(WALKS)]


def on_every_walk(check):
    """A test that asks `check` of every walk and names the seed of one that breaks it."""

    def test():
        for seed, walk in enumerate(all_walks()):
            try:
                check(walk)
            except AssertionError as error:
                raise AssertionError(f"a_walk({seed}): {error}") from error

    test.__doc__, test.__name__ = check.__doc__, check.__name__
    return test


def records(walk):
    return [rollout for rollout, _, _ in walk[0]] + [walk[1]]


def transitions(walk):
    return [(before, view, t) for before, view, t in walk[0] if t is not None]


def proven(rollout, view):
    """Nothing but PASS: of every verdict that is not awaited later, with numbers, of enough samples."""
    counted = [v for v in view.verdicts if v.check != "late" or DELAYED not in rollout.course.checks]
    numbers = [x for v in counted for x in (v.estimate, v.low) if x is not None]
    passes = bool(counted) and all(v.outcome is Outcome.PASS for v in counted)
    return passes and all(abs(x) < 1e9 for x in numbers) and view.samples >= rollout.now.samples


def exposes(wish):
    """Whether any request may reach the candidate."""
    armed = any(arm.version == C and arm.hi > arm.lo for arm in wish.arms)
    return armed or bool(wish.mirrors) or C in wish.overrides.values()


@on_every_walk
def test_1_weight_grows_by_proof_or_by_a_person(walk):
    for before, view, t in transitions(walk):
        if t.rollout.weight <= before.weight:
            continue
        if before.phase is Phase.PREPARING:
            wanted = before.course.golden or before.course.replay
            assert (view.preview is not None and view.preview.ok) or not wanted
            continue
        assert before.phase is Phase.RUNNING
        assert before.settled is not None
        asked = view.command is Command.PROMOTE and t.rollout.forced
        assert asked or not before.now.analysis or proven(before, view)
        assert asked or view.samples >= before.now.samples
        assert asked or not before.now.approval or before.approved
        assert asked or not before.paused
        assert not any(v.outcome is Outcome.FAIL for v in view.verdicts)


@on_every_walk
def test_2_abort_is_legal_everywhere_and_wins(walk):
    for rollout, view, _ in walk[0]:
        if rollout.phase is Phase.ENDED:
            continue
        assert Command.ABORT in allowed(rollout)
        asked = msgspec.structs.replace(view, command=Command.ABORT)
        transition = decide(rollout, asked)
        after = rollout if transition is None else transition.rollout
        assert after.phase in (Phase.ABORTING, Phase.ENDED)
        assert not exposes(wish_of(after))
        assert after.result in (Result.ABORTED, Result.ROLLED_BACK) or rollout.phase is Phase.ABORTING


@on_every_walk
def test_3_the_stable_version_stays_loaded_until_the_end(walk):
    for rollout in records(walk):
        keep = wish_of(rollout).keep
        if rollout.phase is not Phase.ENDED:
            assert keep == {S, C}
        else:
            assert keep == {C if rollout.result is Result.PROMOTED else S}


@on_every_walk
def test_5_a_weight_changes_only_after_settled_but_for_an_abort(walk):
    for before, view, t in transitions(walk):
        grown = t.rollout.weight != before.weight and t.event not in (Event.ABORTING, Event.ENDED)
        if grown:
            assert view.settled
            assert before.phase is not Phase.RUNNING or before.settled is not None
        if t.rollout.phase is not before.phase or t.rollout.step != before.step:
            assert t.rollout.entered == t.rollout.since == view.now
            assert not t.rollout.approved


@on_every_walk
def test_6_ended_is_final_and_says_who_is_stable(walk):
    steps, rollout = walk
    if rollout.phase is not Phase.ENDED:
        return
    assert all(decide(rollout, view) is None for _, view, _ in steps)
    assert allowed(rollout) == ()
    assert rollout.result is not Result.NONE
    after = endpoint_after(Endpoint(name="fraud", stable=S, refused=(1,)), rollout)
    promoted = rollout.result is Result.PROMOTED
    assert after.stable == (C if promoted else S)
    assert after.refused == ((1,) if promoted else (1, C))


@on_every_walk
def test_promoted_only_through_everything(walk):
    phases = [t.rollout.phase for _, _, t in transitions(walk)]
    order = [phase for i, phase in enumerate(phases) if i == 0 or phase is not phases[i - 1]]
    straight = [Phase.PREPARING, Phase.RUNNING, Phase.PROMOTING, Phase.RETAINING, Phase.ENDED]
    if walk[1].result is Result.PROMOTED:
        assert [phase for phase in order if phase is not Phase.WAITING] == straight
    else:
        known = (Phase.WAITING, Phase.ABORTING)
        assert [phase for phase in order if phase not in known][:4] == [p for p in straight if p in order][:4]


@on_every_walk
def test_bad_news_never_stays(walk):
    """FAIL on settled evidence, a breaker or a failed load: this very look ends the exposure."""
    for before, view, t in walk[0]:
        fails = any(v.outcome is Outcome.FAIL for v in view.verdicts) and before.settled is not None
        exposed = before.phase in (Phase.RUNNING, Phase.PROMOTING, Phase.RETAINING)
        if exposed and (fails or view.breaker or view.failed):
            assert t is not None
            assert t.rollout.phase is Phase.ABORTING


@on_every_walk
def test_one_transition_at_a_time(walk):
    for before, view, t in walk[0]:
        assert decide(before, view) == t, "the same facts, the same decision"
        assert waiting_for(before, view) or before.phase is Phase.ENDED
        if t is not None:
            assert t.rollout.version == before.version + 1
            assert t.reason
            assert abs(t.rollout.step - before.step) <= 1
            assert (t.rollout.id, t.rollout.course, t.rollout.stable, t.rollout.candidate) == (
                "r1",
                before.course,
                S,
                C,
            )


@on_every_walk
def test_a_commanded_change_is_never_one_that_was_refused(walk):
    for before, view, t in transitions(walk):
        if view.command is not None and refusal(before, view.command):
            without = decide(before, msgspec.structs.replace(view, command=None))
            assert without == t


@on_every_walk
def test_facts_that_stay_the_same_come_to_rest(walk):
    for before, view, _ in walk[0][-3:]:
        rollout, moves = before, 0
        while (t := decide(rollout, view)) is not None:
            rollout, moves = t.rollout, moves + 1
            assert moves <= 3 * len(before.course.steps) + 8


@on_every_walk
def test_what_the_data_plane_does_follows_from_the_record_as_stored(walk):
    """A crash between commit and effect: the stored record gives the same plan, a plan without gap, candidate first."""
    for rollout in records(walk):
        stored = msgspec.json.decode(msgspec.json.encode(rollout), type=Rollout)
        wish = wish_of(stored)
        assert wish == wish_of(rollout)
        plan = RoutePlan("fraud", 1, wish.arms, wish.seed, wish.key, wish.mirrors, wish.overrides, wish.segments)
        assert plan.versions() <= wish.keep
        shown = sum(arm.hi - arm.lo for arm in wish.arms if arm.version == C)
        winner = rollout.phase is Phase.ENDED and rollout.result is Result.PROMOTED
        assert shown == (BUCKETS if winner else rollout.weight)
        assert exposes(wish) is False or winner or rollout.phase in (Phase.RUNNING, Phase.PROMOTING, Phase.RETAINING)


def test_walks_come_everywhere():
    """Or the properties above would say little."""
    met = Counter((before.phase, t.rollout.phase) for walk in all_walks() for before, _, t in transitions(walk))
    ends = Counter(walk[1].result for walk in all_walks())
    assert min(ends[result] for result in Result) > 5, ends
    for phase in (Phase.WAITING, Phase.PREPARING, Phase.RUNNING, Phase.PROMOTING, Phase.RETAINING):
        assert met[phase, Phase.ABORTING] > 5, met
        assert met[phase, phase] > 5, met


@on_every_walk
def test_a_fair_world_ends_it(walk):
    """From wherever a walk has come to: all is ready, every check passes, people answer; it ends, and soon."""
    rollout = walk[1]
    now = max([rollout.entered] + [view.now for _, view, _ in walk[0]])
    moves = 0
    while rollout.phase is not Phase.ENDED:
        transition = decide(rollout, fair(rollout, now))
        rollout = rollout if transition is None else transition.rollout
        now, moves = now + 31, moves + 1
        assert moves < 8 * len(rollout.course.steps) + 60
    assert rollout.result is not Result.NONE
