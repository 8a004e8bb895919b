"""All checks of a rollout's current step, at one look.

**Alpha.** A course's alpha is shared evenly among its checks. Where evidence is counted by segments, half of a
check's part belongs to all requests together, and half to the segments: each of m segments gets 1 / (m * H) of that,
H = 1 + 1/2 + ... + 1/20. Segments turn up one by one, and what each was ever given then adds up to the half
at most, however many of the first 20 there were at what time. That is for FAIL. A PASS needs every check to pass, so
each is held to the whole alpha (an intersection-union test). Each step spends alpha anew: who goes on to
another step has passed one, so a candidate that is no better than the margin has alpha to get there.

**Segments** can fail a rollout and need not pass: the small ones would keep it waiting for ever. A segment whose
verdict is neither FAIL nor PASS is left out; of more than 20 the largest are judged.

**What is compared.** Only arms of one stratum and one segment: never sums over steps. The baseline and
the stable arm are the same version: failures are compared with both, latencies with the baseline, which has as much
traffic (and as cold caches) as the candidate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec

from octoserve.control.analysis import ratio, wording
from octoserve.control.analysis.checks import (
    Terms,
    judge_latency,
    judge_metric,
    judge_mirrored_rate,
    judge_prediction,
    judge_rate,
    no_data,
    unreadable,
)
from octoserve.control.analysis.reading import Reading
from octoserve.control.analysis.verdict import Outcome, Verdict
from octoserve.control.rollout.values import (
    Check,
    LatencyCheck,
    MetricCheck,
    Phase,
    PredictionCheck,
    RateCheck,
    Rollout,
)
from octoserve.core.evidence import ALL, BASELINE, CANDIDATE, STABLE, ArmEvidence, PairEvidence, Stratum, add
from octoserve.routing.plan import BUCKETS, split_arms

SAMPLE_RATIO = "sample_ratio"
MAX_SEGMENTS = 20
_HARMONIC = math.fsum(1 / i for i in range(1, MAX_SEGMENTS + 1))
_NO_ARM, _NO_PAIRS = ArmEvidence(), PairEvidence()


def judge(rollout: Rollout, stratum: Stratum | None, readings: Mapping[str, Reading] = {}) -> tuple[Verdict, ...]:
    """Every check that applies now, in the course's order; first the sample ratio, where there are arms to compare.

    stratum:  evidence of the current step; that of another one is no evidence
    readings: check name -> what its provider read

    Before the first step and after the last nothing is judged, but for delayed metrics while the old version is
    retained. A course without checks gets no verdict but SRM, and so never PASS.
    """
    if rollout.phase is Phase.RETAINING:
        return tuple(_metric(rollout, check, readings) for check in _metrics(rollout) if check.delayed)
    if rollout.phase is not Phase.RUNNING:
        return ()
    if stratum is None or stratum.name != rollout.stratum:
        stratum = Stratum(endpoint=rollout.endpoint, name=rollout.stratum)
    verdicts = [verdict for check in rollout.course.checks for verdict in _check(rollout, check, stratum, readings)]
    mixed = _sample_ratio(rollout, stratum)
    if mixed is not None and (verdicts or mixed.outcome is not Outcome.PASS):
        verdicts.insert(0, mixed)
    return tuple(verdicts)


def alpha_of(rollout: Rollout, segments: int, segment: str = ALL) -> float:
    """False FAILs accepted of one check, on all requests or on one of so many segments."""
    alpha = _alpha(rollout) / max(1, len(rollout.course.checks))
    if not rollout.course.segments and not segments:
        return alpha
    return alpha / 2 if segment == ALL else alpha / 2 / (_HARMONIC * max(1, segments))


def _alpha(rollout: Rollout) -> float:
    return min(max(rollout.course.alpha, 1e-12), 0.5)


def _metrics(rollout: Rollout) -> Iterator[MetricCheck]:
    return (check for check in rollout.course.checks if isinstance(check, MetricCheck))


def _check(rollout: Rollout, check: Check, stratum: Stratum, readings: Mapping[str, Reading]) -> Iterator[Verdict]:
    """The verdict on all requests, then those segments that have one."""
    step = rollout.now
    if isinstance(check, MetricCheck):
        if step.weight:
            yield _metric(rollout, check, readings, missing=_missing(rollout, stratum))
        return
    if isinstance(check, LatencyCheck) and not step.weight:
        return
    if isinstance(check, PredictionCheck) and not step.mirror:
        return
    present = _present(stratum)
    yield _judged(rollout, check, stratum, len(present), ALL)
    for segment in present[:MAX_SEGMENTS]:
        verdict = _judged(rollout, check, stratum, len(present), segment)
        if verdict.outcome in (Outcome.FAIL, Outcome.PASS):
            yield verdict


def _judged(rollout: Rollout, check: Check, stratum: Stratum, segments: int, segment: str) -> Verdict:
    step = rollout.now
    terms = Terms(
        alpha=alpha_of(rollout, segments, segment),
        alpha_pass=_alpha(rollout),
        samples=rollout.course.min_samples,
        share=step.weight / BUCKETS,
        missing=_missing(rollout, stratum),
        segment=segment,
    )
    try:
        match check:
            case RateCheck() if step.weight:
                own, base = _arm(stratum, CANDIDATE, segment), _arm(stratum, BASELINE, segment)
                return judge_rate(check, terms, own, add(base, _arm(stratum, STABLE, segment)))
            case RateCheck():
                return judge_mirrored_rate(check, terms, stratum.pairs.get(segment, _NO_PAIRS))
            case LatencyCheck():
                return _latency(check, terms, stratum)
            case PredictionCheck():
                pairs = stratum.pairs.get(segment, _NO_PAIRS)
                noise = step.noise > 0 or stratum.pairs.get(ALL, _NO_PAIRS).noise_compared > 0
                terms = msgspec.structs.replace(terms, share=1 / (1 + step.noise / BUCKETS))
                return judge_prediction(check, terms, pairs, noise)
    except ValueError as error:
        return unreadable(check.name, f"the counts contradict each other: {error}", segment)
    return no_data(check.name, "nothing judges it", segment)


def _latency(check: LatencyCheck, terms: Terms, stratum: Stratum) -> Verdict:
    # Which arm it is does not depend on the segment, nor change once the baseline has answered anything.
    role = BASELINE if _arm(stratum, BASELINE, ALL).latency else STABLE
    terms = msgspec.structs.replace(terms, share=0.5 if role == BASELINE else terms.share)
    own, base = _arm(stratum, CANDIDATE, terms.segment), _arm(stratum, role, terms.segment)
    return judge_latency(check, terms, own.latency, base.latency, role)


def _metric(rollout: Rollout, check: MetricCheck, readings: Mapping[str, Reading], missing: str = "") -> Verdict:
    shares = _shares(rollout)
    terms = Terms(
        alpha=_alpha(rollout) / len(rollout.course.checks),  # it has no segments to share with
        alpha_pass=_alpha(rollout),
        samples=rollout.course.min_samples,
        share=0.5 if shares.get(BASELINE) or len(shares) < 2 else shares[CANDIDATE] / BUCKETS,
        missing=missing,
    )
    try:
        return judge_metric(check, terms, readings.get(check.name))
    except ValueError as error:
        return unreadable(check.name, f"the numbers contradict each other: {error}")


def _missing(rollout: Rollout, stratum: Stratum) -> str:
    """What the step still waits for, for people."""
    step = rollout.now
    seen = _arm(stratum, CANDIDATE, ALL).attempts if step.weight else stratum.pairs.get(ALL, _NO_PAIRS).compared
    if seen >= step.samples:
        return ""
    return f"{wording.count(step.samples - seen)} more {'candidate samples' if step.weight else 'pairs'}"


def _arm(stratum: Stratum, role: str, segment: str) -> ArmEvidence:
    return stratum.arms.get(role, {}).get(segment, _NO_ARM)


def _present(stratum: Stratum) -> list[str]:
    """The segments that anything was counted in, largest first."""
    sizes: dict[str, int] = {}
    for by_segment in stratum.arms.values():
        for segment, arm in by_segment.items():
            sizes[segment] = sizes.get(segment, 0) + arm.attempts
    for segment, pairs in stratum.pairs.items():
        sizes[segment] = sizes.get(segment, 0) + pairs.compared
    sizes.pop(ALL, None)
    return sorted(sizes, key=lambda segment: (-sizes[segment], segment))


def _shares(rollout: Rollout) -> dict[str, int]:
    """Role -> buckets, of arms that have any."""
    arms = split_arms(rollout.stable, rollout.candidate, rollout.weight, rollout.course.baseline)
    return {arm.role: arm.hi - arm.lo for arm in arms if arm.hi > arm.lo}


def _sample_ratio(rollout: Rollout, stratum: Stratum) -> Verdict | None:
    """Keys, where requests have them: those of one key all go to one arm, and are no sample of the split."""
    shares = _shares(rollout)
    if len(shares) < 2:
        return None
    what, counts = "requests", {role: _arm(stratum, role, ALL).assigned for role in shares}
    if rollout.course.key and stratum.keys is not None:
        what, counts = "keys", {role: stratum.keys.get(role, 0) for role in shares}
    total = sum(counts.values())
    try:
        wrong = ratio.mismatch(counts, shares)
    except ValueError as error:
        return unreadable(SAMPLE_RATIO, f"the counts contradict each other: {error}")
    if not total:
        return None
    arm, seen, expected = ratio.furthest(counts, shares)
    got, planned = wording.share(seen), wording.share(expected)
    return Verdict(
        check=SAMPLE_RATIO,
        outcome=Outcome.SRM if wrong else Outcome.PASS,
        estimate=seen - expected,
        n=counts[CANDIDATE],
        n_base=total - counts[CANDIDATE],
        note=f"{arm} got {got} of {wording.count(total)} {what}, {planned} were planned",
    )
