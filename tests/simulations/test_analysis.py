"""Analysis as promised, by simulation: few rollouts by default, all of them under OCTOSERVE_TEST_FULL.

Looks at which a check might FAIL are found for all rollouts at once, by array, at a somewhat larger alpha than is
right; `judge` itself then says whether they do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np
from scipy import stats

from octoserve.control.analysis.judge import SAMPLE_RATIO, alpha_of, judge
from octoserve.control.analysis.rates import worse_than
from octoserve.control.analysis.tilting import Sample, log_e, tilts
from octoserve.control.analysis.verdict import Outcome, Verdict, overall
from octoserve.control.rollout.values import (
    Course,
    LatencyCheck,
    Phase,
    PredictionCheck,
    RateCheck,
    Rollout,
    Step,
)
from octoserve.core.evidence import (
    ALL,
    BASELINE,
    CANDIDATE,
    STABLE,
    ArmEvidence,
    PairEvidence,
    Stratum,
    bucket_of_seconds,
    seconds_of_bucket,
)
from support.scale import scale

LOOKS = 60
NEAR = 1.5
"""By how much alpha is larger where looks are found that may FAIL."""
SHIFT = 11
"""Buckets; a candidate that is slower by these has exactly the accepted quantile."""
CHECKS = (RateCheck(), LatencyCheck(ratio=1.02**SHIFT - 1), PredictionCheck())
SEGMENTS = {"country=DE": 0.3, "country=FR": 0.7}
STEP = Step(weight=1_000, mirror=5_000, noise=2_000)
BASE = bucket_of_seconds(0.005)
BUCKETS = np.diff(
    stats.lognorm(0.5, scale=0.02).cdf([0, *(seconds_of_bucket(BASE + i) for i in range(1, 180)), math.inf])
)


def rollout(*checks, step=STEP, **course):
    made = Course(strategy="canary", steps=(step,), checks=checks, **course)
    return Rollout(id="r", endpoint="m", stable=1, candidate=2, course=made, phase=Phase.RUNNING, settled=0.0)


class World(NamedTuple):
    """Rollouts under way: counts by segment, then rollout and look (and role: candidate, baseline, stable)."""

    attempts: np.ndarray
    failures: np.ndarray
    latency: np.ndarray
    """Two arms (candidate, baseline), then buckets."""
    pairs: np.ndarray
    """Compared, disagreed, and the same of noise."""

    def stratum(self, one: int, look: int) -> Stratum:
        names = [ALL, *SEGMENTS]
        arms: dict[str, dict[str, ArmEvidence]] = {}
        for i, role in enumerate((CANDIDATE, BASELINE, STABLE)):
            for s, name in enumerate(names):
                n = int(self.attempts[s, one, look, i])
                held = self.latency[s, one, look, i] if role != STABLE else np.zeros(1)
                buckets = {BASE + int(b): int(held[b]) for b in np.flatnonzero(held)}
                arms.setdefault(role, {})[name] = ArmEvidence(
                    assigned=n, attempts=n, failures=int(self.failures[s, one, look, i]), latency=buckets
                )
        pairs = {}
        for s, name in enumerate(names):
            n, disagreed, noise, noise_disagreed = (int(x) for x in self.pairs[s, one, look])
            pairs[name] = PairEvidence(
                offered=n,
                sent=n,
                ok=n,
                compared=n,
                disagreed=disagreed,
                noise_compared=noise,
                noise_disagreed=noise_disagreed,
            )
        return Stratum(endpoint="m", name="r/0", arms=arms, pairs=pairs)


def simulate(rng, rollouts, requests, fails=(0.005, 0.005), slower=0, differs=(0.08, 0.08)) -> World:
    """requests: a look, of all arms; the rest is (candidate's, stable's)."""
    shape = (rollouts, LOOKS)
    attempts, failures, latency, pairs = [], [], [], []
    for share in SEGMENTS.values():
        n = rng.multinomial(round(requests * share), [0.1, 0.1, 0.8], shape)
        attempts.append(n)
        failures.append(rng.binomial(n, [fails[0], fails[1], fails[1]]))
        shifted = np.concatenate([np.zeros(slower), BUCKETS[: len(BUCKETS) - slower]])
        shifted[-1] += 1 - shifted.sum()
        latency.append(
            np.stack([rng.multinomial(n[..., i], p) for i, p in enumerate((shifted, BUCKETS))], axis=2).astype(np.int32)
        )
        compared = rng.binomial(n[..., 2], 0.5)
        noise = rng.binomial(compared, 0.2)
        disagreed = [rng.binomial(m, p) for m, p in zip((compared, noise), differs, strict=True)]
        pairs.append(np.stack([compared, disagreed[0], noise, disagreed[1]], axis=-1))

    def whole(parts):
        total = np.stack([sum(parts), *parts])
        return total.cumsum(axis=2, dtype=total.dtype)

    return World(whole(attempts), whole(failures), whole(latency), whole(pairs))


def suspects(judged: Rollout, world: World) -> np.ndarray:
    """Rollout x look: where some check may FAIL in some segment."""
    found = np.zeros(world.attempts.shape[1:3], dtype=bool)
    for s, segment in enumerate([ALL, *SEGMENTS]):
        alpha = alpha_of(judged, len(SEGMENTS), segment) * NEAR
        n, k = (a[s].astype(float) for a in (world.attempts, world.failures))
        base = n[..., 1] + n[..., 2], k[..., 1] + k[..., 2]
        found |= worse_than(n[..., 0], k[..., 0], *base, CHECKS[0].margin, alpha, 0.1)
        found |= slower_than(world.latency[s], alpha)
        counts = [world.pairs[s, ..., i].astype(float) for i in range(4)]
        found |= worse_than(*counts, CHECKS[2].margin, alpha, 1 / 1.2)
    return found


def slower_than(latency: np.ndarray, alpha: float) -> np.ndarray:
    """The latency check at its margin, for all rollouts and looks at once."""
    above = latency[..., ::-1].cumsum(axis=-1)[..., ::-1].astype(float)
    own, base = above[..., 0, :], above[..., 1, :]
    over = np.concatenate([own[..., SHIFT + 1 :], np.zeros((*own.shape[:-1], SHIFT + 1))], axis=-1)
    mix, least = tilts(0.5, True), np.full(own.shape[:-1], np.inf)
    for bucket in range(own.shape[-1]):
        sample = Sample(own[..., 0], over[..., bucket], base[..., 0], base[..., bucket])
        least = np.minimum(least, log_e(mix, sample, 0.01, 0.01))
    sample = Sample(own[..., 0], np.zeros_like(least), base[..., 0], np.zeros_like(least))
    return np.minimum(least, log_e(mix, sample, 0.01, 0.01)) >= math.log(1 / alpha)


def false_alarms(rng, rollouts, requests, **world) -> tuple[int, list[Verdict]]:
    """How many rollouts get a FAIL at any look; and the verdicts of all that were judged."""
    judged = rollout(*CHECKS, segments=("header:country",))
    alarms, heard = 0, []
    for start in range(0, rollouts, 50):
        some = simulate(rng, min(50, rollouts - start), requests, **world)
        at = suspects(judged, some)
        for one in range(len(at)):
            for look in np.flatnonzero(at[one]):
                verdicts = judge(judged, some.stratum(one, int(look)))
                heard.extend(verdicts)
                if overall(verdicts) is Outcome.FAIL:
                    alarms += 1
                    break
        # What was passed over does not FAIL.
        for one in range(0, len(at), 10):
            passed = np.flatnonzero(~at[one])
            for look in rng.choice(passed, min(2, len(passed)), replace=False):
                verdicts = judge(judged, some.stratum(one, int(look)))
                assert all(v.outcome is not Outcome.FAIL for v in verdicts)
                heard.extend(verdicts)
    return alarms, heard


def at_most(rollouts, share):
    """As many as come with this share, but for one test run in a thousand; the bare share in a full run."""
    return share * rollouts if rollouts >= 2_000 else stats.binom.ppf(0.999, rollouts, share)


def test_two_equal_versions_are_told_apart_in_at_most_5_percent_of_rollouts():
    rollouts = scale(20, 2_000)
    alarms, heard = false_alarms(np.random.default_rng(1), rollouts, 300)
    print(f"A/A: {alarms} of {rollouts}")
    assert alarms <= at_most(rollouts, 0.05)
    assert {v.check for v in heard} >= {"error_rate", "latency_p99", "disagreement", SAMPLE_RATIO}
    assert {v.outcome for v in heard} & {Outcome.PASS, Outcome.HOLD}


def test_nor_is_a_candidate_that_is_as_bad_as_accepted_in_all_that_is_checked():
    """The hardest case that alpha is promised for: every check, in every segment, exactly at its margin."""
    rollouts = scale(20, 2_000)
    worst = {"fails": (0.015, 0.005), "slower": SHIFT, "differs": (0.10, 0.08)}
    alarms, _ = false_alarms(np.random.default_rng(2), rollouts, 300, **worst)
    print(f"at the margins: {alarms} of {rollouts}")
    assert alarms <= at_most(rollouts, 0.05)


def test_a_candidate_that_is_worse_is_found_by_the_same_means():
    """So that the two tests above are about judging and not about silence."""
    for worse in ({"fails": (0.05, 0.005)}, {"slower": 3 * SHIFT}, {"differs": (0.2, 0.08)}):
        alarms, _ = false_alarms(np.random.default_rng(3), 5, 300, **worse)
        assert alarms == 5, worse


def test_half_a_percent_to_five_percent_is_found_within_5000_requests():
    """At a tenth of the traffic, three checks sharing alpha, a look every 100 requests."""
    rollouts, rng = scale(400, 6_000), np.random.default_rng(11)
    judged = rollout(*CHECKS, step=Step(weight=1_000), baseline=False)
    n = rng.binomial(100, 0.1, (rollouts, 50))
    counts = np.stack([n, rng.binomial(n, 0.05), 100 - n, rng.binomial(100 - n, 0.005)]).cumsum(axis=2)
    found = worse_than(*counts.astype(float), 0.01, alpha_of(judged, 0), 0.1)
    share = found.any(axis=1).mean()
    looks = np.where(found.any(axis=1), found.argmax(axis=1) + 1, 51)
    print(f"found: {share:.3f}, half of them within {100 * np.median(looks):.0f} requests")
    assert share >= (0.95 if rollouts >= 2_000 else stats.binom.ppf(0.001, rollouts, 0.95) / rollouts)
    agreed = 0
    for one in range(20):
        if not found[one].any():
            continue
        n, k, base_n, base_k = (int(x) for x in counts[:, one, found[one].argmax()])
        arms = {CANDIDATE: {ALL: counted(n, k)}, STABLE: {ALL: counted(base_n, base_k)}}
        agreed += overall(judge(judged, Stratum(endpoint="m", name="r/0", arms=arms))) is Outcome.FAIL
    assert agreed >= 18


def counted(n, k):
    return ArmEvidence(assigned=n, attempts=n, failures=k)


def test_a_broken_segment_of_5_percent_is_named_while_the_whole_improves():
    """Stable fails 1 % everywhere; the candidate 0.05 %, but 15 % in one country: 0.8 % of all."""
    rng, rollouts = np.random.default_rng(5), scale(20, 300)
    judged, named = rollout(*CHECKS, step=Step(weight=2_500), segments=("header:country",)), 0
    rates = {"country=DE": (0.05, 0.15), "country=FR": (0.60, 0.0005), "country=US": (0.35, 0.0005)}
    for _ in range(rollouts):
        arms: dict[str, dict[str, ArmEvidence]] = {CANDIDATE: {}, BASELINE: {}, STABLE: {}}
        for segment, (share, rate) in rates.items():
            sizes = rng.multinomial(round(20_000 * share), [0.25, 0.25, 0.5])
            for role, n, p in zip(arms, sizes, (rate, 0.01, 0.01), strict=True):
                arms[role][segment] = counted(int(n), int(rng.binomial(n, p)))
        for by_segment in arms.values():
            sums = [sum(getattr(a, name) for a in by_segment.values()) for name in ("attempts", "failures")]
            by_segment[ALL] = counted(*sums)
        verdicts = judge(judged, Stratum(endpoint="m", name="r/0", arms=arms))
        failed = {(v.check, v.segment) for v in verdicts if v.outcome is Outcome.FAIL}
        assert failed <= {("error_rate", "country=DE")}
        assert next(v for v in verdicts if v.check == "error_rate").estimate < 0.005
        named += bool(failed)
    print(f"named: {named} of {rollouts}")
    assert named >= 0.95 * rollouts


def test_identical_versions_of_a_model_that_is_not_deterministic_do_not_disagree():
    """Each of the two answers differs from stable's with the same chance; some requests are touchier than others."""
    rollouts, rng = scale(300, 2_000), np.random.default_rng(6)
    judged = rollout(PredictionCheck(), step=Step(mirror=10_000, noise=1_000))
    touchy = rng.beta(0.4, 4.6, (rollouts, LOOKS, 200))
    measured = rng.random(touchy.shape) < 0.1
    both = [rng.random(touchy.shape) < touchy, (rng.random(touchy.shape) < touchy) & measured]
    k, base_k = (one.sum(axis=2).cumsum(axis=1).astype(float) for one in both)
    n = np.broadcast_to(np.arange(1, LOOKS + 1) * 200.0, k.shape)
    base_n = measured.sum(axis=2).cumsum(axis=1).astype(float)
    alarms = worse_than(n, k, base_n, base_k, 0.02, alpha_of(judged, 0), 1 / 1.1).any(axis=1).sum()
    print(f"disagreement: {alarms} of {rollouts}")
    assert alarms <= (0.005 * rollouts if rollouts >= 2_000 else 3)
    ends = {judge(judged, seen(*(int(x[one, -1]) for x in (n, k, base_n, base_k))))[-1].outcome for one in range(20)}
    assert Outcome.FAIL not in ends
    # The floor is not merely wide: a candidate that differs twice as often is found.
    worse = worse_than(n, np.minimum(2 * k, n), base_n, base_k, 0.02, alpha_of(judged, 0), 1 / 1.1)
    assert worse[:, -1].mean() > 0.98


def seen(n, k, noise, noise_k):
    pairs = PairEvidence(
        offered=n, sent=n, ok=n, compared=n, disagreed=k, noise_compared=noise, noise_disagreed=noise_k
    )
    return Stratum(endpoint="m", name="r/0", pairs={ALL: pairs})


def test_a_replayed_look_gives_the_same_verdicts():
    """Evidence and verdicts go through JSON in the audit log."""
    world = simulate(np.random.default_rng(9), 1, 300)
    judged, stratum = rollout(*CHECKS, segments=("header:country",)), world.stratum(0, 30)
    again = msgspec.json.decode(msgspec.json.encode(stratum), type=Stratum)
    kept = msgspec.json.decode(msgspec.json.encode(judge(judged, stratum)), type=tuple[Verdict, ...])
    assert judge(judged, again) == kept
