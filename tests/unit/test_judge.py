"""judge(): which checks apply, what each compares, and which verdict comes of what."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octoserve.control.analysis.judge import MAX_SEGMENTS, SAMPLE_RATIO, alpha_of, judge
from octoserve.control.analysis.reading import ArmSums, Reading
from octoserve.control.analysis.verdict import Outcome, Verdict, overall
from octoserve.control.rollout.values import (
    Course,
    LatencyCheck,
    MetricCheck,
    Phase,
    PredictionCheck,
    RateCheck,
    Rollout,
    Step,
)
from octoserve.core.evidence import ALL, BASELINE, CANDIDATE, STABLE, ArmEvidence, PairEvidence, Stratum
from support.scale import scale

CANARY = Step(weight=1_000)
SHADOW = Step(mirror=2_000, noise=1_000)
METRIC = MetricCheck(name="conversion", provider="shop", queries={"rows": "select"}, margin=0.02)


def rollout(*checks, step=CANARY, phase=Phase.RUNNING, **course):
    made = Course(strategy="canary", steps=(step,), checks=checks, **course)
    return Rollout(id="r1", endpoint="m", stable=1, candidate=2, course=made, phase=phase, settled=0.0)


def arm(n, failures=0, latency=None, assigned=None):
    return ArmEvidence(
        assigned=n if assigned is None else assigned, attempts=n, failures=failures, latency=latency or {}
    )


def stratum(candidate=None, baseline=None, stable=None, pairs=None, segment=ALL, name="r1/0", keys=None):
    arms = {
        role: {segment: counts}
        for role, counts in ((CANDIDATE, candidate), (BASELINE, baseline), (STABLE, stable))
        if counts is not None
    }
    return Stratum(endpoint="m", name=name, arms=arms, pairs={segment: pairs} if pairs else {}, keys=keys)


def only(verdicts, check=None):
    found = [v for v in verdicts if (v.check != SAMPLE_RATIO if check is None else v.check == check)]
    assert len(found) == 1, verdicts
    return found[0]


HEALTHY = stratum(arm(3_000, 15), arm(3_000, 15), arm(24_000, 120))


def test_a_healthy_candidate_passes():
    verdicts = judge(rollout(RateCheck()), HEALTHY)
    verdict = only(verdicts)
    assert verdict.outcome is Outcome.PASS
    assert verdict.low < verdict.estimate < verdict.high < verdict.margin
    assert (verdict.n, verdict.n_base) == (3_000, 27_000)
    assert overall(verdicts) is Outcome.PASS


def test_a_failing_candidate_fails_in_words():
    verdict = only(judge(rollout(RateCheck()), stratum(arm(500, 24), arm(500, 2), arm(4_000, 20))))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.note == "candidate failed 4.8 % of 500, stable 0.49 % of 4,500"
    assert verdict.low > 0.01


def test_few_samples_are_no_data_and_may_still_fail():
    assert only(judge(rollout(RateCheck()), stratum(arm(20), arm(20), arm(160)))).outcome is Outcome.NO_DATA
    assert only(judge(rollout(RateCheck()), stratum(arm(20, 20), arm(20), arm(160)))).outcome is Outcome.FAIL


def test_a_step_holds_until_it_has_its_samples():
    verdict = only(judge(rollout(RateCheck(), step=Step(weight=1_000, samples=5_000)), HEALTHY))
    assert verdict.outcome is Outcome.HOLD
    assert verdict.note.endswith("waits for 2,000 more candidate samples")


def test_open_evidence_holds():
    assert only(judge(rollout(RateCheck()), stratum(arm(300, 3), arm(300, 2), arm(2_400, 15)))).outcome is Outcome.HOLD


def test_evidence_of_another_step_is_none():
    verdict = only(judge(rollout(RateCheck()), msgspec.structs.replace(HEALTHY, name="r1/1")))
    assert verdict.outcome is Outcome.NO_DATA
    assert verdict.n == 0


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase not in (Phase.RUNNING, Phase.RETAINING)])
def test_nothing_is_judged_while_no_step_runs(phase):
    assert judge(rollout(RateCheck(), phase=phase), HEALTHY) == ()


def test_a_course_without_checks_never_passes():
    assert judge(rollout(), HEALTHY) == ()
    assert overall(judge(rollout(), HEALTHY)) is Outcome.NO_DATA
    lost = stratum(arm(1_000), arm(3_000), arm(24_000))
    assert overall(judge(rollout(), lost)) is Outcome.SRM


# Latency.


def test_latency_is_compared_with_the_baseline_where_it_has_answered():
    fast, slow = {400: 5_000}, {450: 5_000}
    check = LatencyCheck(quantile=0.9)
    against_baseline = stratum(arm(5_000, 0, slow), arm(5_000, 0, slow), arm(5_000, 0, fast))
    assert only(judge(rollout(check), against_baseline)).outcome is Outcome.PASS
    against_stable = stratum(arm(5_000, 0, slow), None, arm(5_000, 0, fast))
    verdict = only(judge(rollout(check, baseline=False, step=Step(weight=5_000)), against_stable))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.margin == 1.25
    assert verdict.unit == "ratio"
    assert verdict.note == "candidate's p90 is 7.41 ms of 5,000, stable's 2.75 ms of 5,000"


def test_latency_without_answers_is_no_data_and_left_out_of_a_shadow():
    assert only(judge(rollout(LatencyCheck()), HEALTHY)).outcome is Outcome.NO_DATA
    assert judge(rollout(LatencyCheck(), step=SHADOW), stratum(pairs=PairEvidence())) == ()


# Predictions, and failures of copies.


def pairs(n, disagreed, noise=0, noise_disagreed=0, error=0, timeout=0):
    return PairEvidence(
        offered=n + error + timeout,
        sent=n + error + timeout,
        ok=n,
        error=error,
        timeout=timeout,
        compared=n,
        disagreed=disagreed,
        noise_compared=noise,
        noise_disagreed=noise_disagreed,
    )


def test_disagreement_is_judged_against_the_noise_floor():
    check, step = PredictionCheck(), SHADOW
    noisy = only(judge(rollout(check, step=step), stratum(pairs=pairs(20_000, 1_600, 20_000, 1_600))))
    assert noisy.outcome is Outcome.PASS
    assert noisy.note == "8 % of 20,000 pairs disagree, of stable with itself 8 % of 20,000"
    worse = only(judge(rollout(check, step=step), stratum(pairs=pairs(20_000, 3_000, 20_000, 1_600))))
    assert worse.outcome is Outcome.FAIL


def test_without_noise_samples_the_floor_is_zero_and_said_to_be():
    verdict = only(judge(rollout(PredictionCheck(), step=Step(mirror=1_000)), stratum(pairs=pairs(2_000, 200))))
    assert verdict.outcome is Outcome.FAIL
    assert "no noise floor is measured" in verdict.note
    # It is to be measured and has not been yet: nothing to judge by.
    early = only(judge(rollout(PredictionCheck(), step=SHADOW), stratum(pairs=pairs(2_000, 200))))
    assert early.outcome is Outcome.NO_DATA


def test_predictions_are_left_out_without_a_mirror():
    assert judge(rollout(PredictionCheck()), stratum(arm(9), arm(9), arm(9))) == ()


def test_failed_copies_are_judged_against_zero():
    check = rollout(RateCheck(), step=SHADOW)
    assert only(judge(check, stratum(pairs=pairs(3_000, 0)))).outcome is Outcome.PASS
    failing = only(judge(check, stratum(pairs=pairs(950, 0, error=30, timeout=20))))
    assert failing.outcome is Outcome.FAIL
    assert failing.note == "candidate failed 5 % of 1,000 copied requests, all of which stable had answered"
    assert only(judge(check, stratum(pairs=PairEvidence()))).outcome is Outcome.NO_DATA


# Metrics.


def reading(candidate=(1_000, 200), base=(1_000, 200), age=10.0, **rest):
    arms = [None if one is None else ArmSums(n=one[0], total=one[1], squares=one[-1]) for one in (candidate, base)]
    return Reading(candidate=arms[0], baseline=arms[1], age=age, **rest)


NAN, INF = math.nan, math.inf
BAD = {
    "down": (Reading(error="connection refused"), Outcome.PROVIDER_ERROR),
    "nan": (reading((NAN, 200)), Outcome.PROVIDER_ERROR),
    "nan total": (reading(base=(1_000, NAN)), Outcome.PROVIDER_ERROR),
    "nan squares": (reading((100_000, 20_000, NAN)), Outcome.PROVIDER_ERROR),
    "infinite": (reading((INF, INF)), Outcome.PROVIDER_ERROR),
    "negative": (reading((-5, 0)), Outcome.PROVIDER_ERROR),
    "more successes than tries": (reading((10, 11)), Outcome.PROVIDER_ERROR),
    "text": (reading(("many", 1)), Outcome.PROVIDER_ERROR),
    "none": (reading((None, 1)), Outcome.PROVIDER_ERROR),
    "nan age": (reading(age=NAN), Outcome.PROVIDER_ERROR),
    "sum of nothing": (reading((0, 0, 5)), Outcome.PROVIDER_ERROR),
    "stale": (reading((100_000, 20_000), (100_000, 20_000), age=301.0), Outcome.NO_DATA),
    "infinitely stale": (reading((100_000, 20_000), (100_000, 20_000), age=INF), Outcome.NO_DATA),
    "of unknown age": (reading((100_000, 20_000), (100_000, 20_000), age=None), Outcome.NO_DATA),
    "of no candidate": (reading(None), Outcome.NO_DATA),
    "of no baseline": (reading(base=None), Outcome.NO_DATA),
    "empty": (Reading(age=1.0), Outcome.NO_DATA),
    "zero": (reading((0, 0), (0, 0)), Outcome.NO_DATA),
    "few": (reading((30, 6), (10_000, 2_000)), Outcome.NO_DATA),
}


@pytest.mark.parametrize("what", list(BAD))
@pytest.mark.parametrize("better", ["higher", "lower"])
def test_metrics_that_say_nothing(what, better):
    bad, outcome = BAD[what]
    check = msgspec.structs.replace(METRIC, better=better)
    verdict = only(judge(rollout(check), HEALTHY, {"conversion": bad}))
    assert verdict.outcome is outcome, verdict
    assert verdict.note


def test_a_metric_that_was_not_read_is_no_data():
    assert only(judge(rollout(METRIC), HEALTHY)).outcome is Outcome.NO_DATA


def test_directions_of_a_rate():
    dropped = {"conversion": reading((20_000, 3_000), (20_000, 4_000))}
    assert only(judge(rollout(METRIC), HEALTHY, dropped)).outcome is Outcome.FAIL
    lower = msgspec.structs.replace(METRIC, better="lower")
    assert only(judge(rollout(lower), HEALTHY, dropped)).outcome is Outcome.PASS
    verdict = only(judge(rollout(METRIC), HEALTHY, dropped))
    assert verdict.estimate == pytest.approx(0.05)
    assert verdict.note == "candidate 15 % of 20,000, baseline 20 % of 20,000 (higher is better)"


def test_means():
    check = msgspec.structs.replace(METRIC, kind="mean", margin=1.0)
    same = reading((5_000, 50_000, 550_000), (5_000, 50_000, 550_000))
    assert only(judge(rollout(check), HEALTHY, {"conversion": same})).outcome is Outcome.PASS
    worse = reading((5_000, 40_000, 370_000), (5_000, 50_000, 550_000))
    assert only(judge(rollout(check), HEALTHY, {"conversion": worse})).outcome is Outcome.FAIL
    impossible = reading((5_000, 50_000, 1), (5_000, 50_000, 550_000))
    assert only(judge(rollout(check), HEALTHY, {"conversion": impossible})).outcome is Outcome.PROVIDER_ERROR


def test_max_age_zero_is_no_limit():
    check = msgspec.structs.replace(METRIC, max_age=0.0)
    unknown = reading((20_000, 4_000), (20_000, 4_000), age=None)
    assert only(judge(rollout(check), HEALTHY, {"conversion": unknown})).outcome is Outcome.PASS


def test_delayed_labels_are_judged_while_the_old_version_is_retained():
    late = msgspec.structs.replace(METRIC, name="default_rate", delayed=True, better="lower")
    seen = {"default_rate": reading((9_000, 1_000), (9_000, 300), age=1e6), "conversion": reading()}
    verdicts = judge(rollout(RateCheck(), METRIC, late, phase=Phase.RETAINING), None, seen)
    assert [(v.check, v.outcome) for v in verdicts] == [("default_rate", Outcome.FAIL)]


def test_metrics_are_left_out_where_nobody_meets_the_candidate():
    assert judge(rollout(METRIC, step=SHADOW), stratum(pairs=PairEvidence()), {"conversion": reading()}) == ()


# Segments.


def with_segment(name, candidate, stable, whole=HEALTHY):
    arms = {role: dict(segments) for role, segments in whole.arms.items()}
    arms[CANDIDATE][name], arms[STABLE][name] = candidate, stable
    return msgspec.structs.replace(whole, arms=arms)


def test_a_segment_that_fails_is_named_though_the_whole_passes():
    seen = with_segment("country=DE", arm(200, 20), arm(1_800, 9))
    verdicts = judge(rollout(RateCheck(), segments=("header:country",)), seen)
    assert overall(verdicts) is Outcome.FAIL
    assert [(v.segment, v.outcome) for v in verdicts if v.check == "error_rate"] == [
        (ALL, Outcome.PASS),
        ("country=DE", Outcome.FAIL),
    ]


def test_a_segment_without_enough_evidence_does_not_keep_a_rollout_waiting():
    seen = with_segment("country=LI", arm(2), arm(20))
    assert overall(judge(rollout(RateCheck(), segments=("header:country",)), seen)) is Outcome.PASS


def test_alpha_is_shared_and_never_spent_twice():
    checks = (RateCheck(), LatencyCheck(), PredictionCheck())
    plain, cut = rollout(*checks), rollout(*checks, segments=("header:country",))
    assert alpha_of(plain, 0) == pytest.approx(0.05 / 3)
    # However segments turn up, what each was given at its first look adds up to their half.
    first = sum(alpha_of(cut, m, "s") for m in range(1, MAX_SEGMENTS + 1))
    assert alpha_of(cut, 5) + first == pytest.approx(0.05 / 3)


def test_the_largest_segments_are_judged():
    seen = HEALTHY
    for i in range(30):
        seen = with_segment(f"s={i:02}", arm(100 + i, 90), arm(1_000 + i), seen)
    verdicts = judge(rollout(RateCheck(), segments=("header:s",)), seen)
    assert [v.segment for v in verdicts if v.segment] == [f"s={i:02}" for i in range(29, 9, -1)]


# Sample ratio.


def test_sample_ratio():
    lost = stratum(arm(3_000, 15, assigned=2_500), arm(3_000, 15), arm(24_000, 120))
    verdicts = judge(rollout(RateCheck()), lost)
    assert verdicts[0].outcome is Outcome.SRM
    assert verdicts[0].note == "candidate got 8.5 % of 29,500 requests, 10 % were planned"
    assert overall(verdicts) is Outcome.SRM


def test_sample_ratio_goes_by_keys_where_requests_have_them():
    keys = {CANDIDATE: 100, BASELINE: 100, STABLE: 800}
    heavy = stratum(arm(3_000, 15, assigned=9_000), arm(3_000, 15), arm(24_000, 120), keys=keys)
    assert only(judge(rollout(RateCheck(), key="header:user"), heavy), SAMPLE_RATIO).outcome is Outcome.PASS
    skewed = msgspec.structs.replace(heavy, keys={CANDIDATE: 200, BASELINE: 100, STABLE: 800})
    assert only(judge(rollout(RateCheck(), key="header:user"), skewed), SAMPLE_RATIO).outcome is Outcome.SRM


def test_sample_ratio_knows_that_a_large_candidate_has_no_baseline():
    seen = stratum(arm(7_500, 30), None, arm(2_500, 10))
    verdicts = judge(rollout(RateCheck(), step=Step(weight=7_500)), seen)
    assert only(verdicts, SAMPLE_RATIO).outcome is Outcome.PASS


# Whatever the counts.

count = st.one_of(st.integers(0, 100), st.integers(0, 10**9))
arms = st.builds(
    ArmEvidence,
    assigned=count,
    attempts=count,
    failures=count,
    latency=st.dictionaries(st.integers(0, 900), count, max_size=4),
)
copies = st.builds(
    PairEvidence, **{name: count for name in PairEvidence.__struct_fields__ if name not in ("dropped", "outputs")}
)
names = st.sampled_from([ALL, "country=DE", "country=FR"])
strata = st.builds(
    Stratum,
    endpoint=st.just("m"),
    name=st.just("r1/0"),
    arms=st.dictionaries(st.sampled_from([CANDIDATE, BASELINE, STABLE]), st.dictionaries(names, arms, max_size=3)),
    pairs=st.dictionaries(names, copies, max_size=3),
    keys=st.one_of(st.none(), st.dictionaries(st.sampled_from([CANDIDATE, BASELINE, STABLE]), count)),
)
numbers = st.one_of(st.floats(), st.integers(-5, 10**9), st.none(), st.just("x"))
half = st.one_of(st.none(), st.builds(ArmSums, n=numbers, total=numbers, squares=numbers))
anything = st.builds(Reading, candidate=half, baseline=half, age=st.one_of(st.none(), st.floats()))
steps = st.builds(Step, weight=st.sampled_from([0, 1, 500, 5_000, 9_000, 10_000]), mirror=st.sampled_from([0, 1_000]))
ALL_CHECKS = (RateCheck(), LatencyCheck(), PredictionCheck(), METRIC)


@given(strata, steps, anything, st.sampled_from(["rate", "mean"]))
@settings(max_examples=scale(40, 1_000), deadline=None)
def test_any_evidence_gives_verdicts_that_can_be_written_down(seen, step, read, kind):
    checks = (*ALL_CHECKS[:3], msgspec.structs.replace(METRIC, kind=kind))
    judged = rollout(*checks, step=step, segments=("header:country",))
    verdicts = judge(judged, seen, {"conversion": read})
    assert msgspec.json.decode(msgspec.json.encode(verdicts), type=tuple[Verdict, ...]) == verdicts
    for verdict in verdicts:
        values = (verdict.estimate, verdict.low, verdict.high)
        assert all(value is None or math.isfinite(value) for value in values)
        if verdict.outcome is Outcome.PASS and verdict.check != SAMPLE_RATIO:
            assert verdict.high < verdict.margin
            assert min(verdict.n, verdict.n_base) >= judged.course.min_samples
        if verdict.outcome is Outcome.FAIL:
            assert verdict.low > verdict.margin
    assert judge(judged, seen, {"conversion": read}) == verdicts


@given(steps, st.sampled_from([None, stratum(), stratum(arm(0), arm(0), arm(0), PairEvidence())]))
def test_no_evidence_never_passes(step, seen):
    assert overall(judge(rollout(*ALL_CHECKS, step=step), seen)) is Outcome.NO_DATA
