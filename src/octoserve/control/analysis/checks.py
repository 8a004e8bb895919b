"""One check on one segment: counts in, a verdict out.

The effect of a verdict is always how much worse the candidate is, so that FAIL is "low > margin" and PASS "high <
margin" whatever the check. A verdict on fewer samples than wanted may be FAIL, since the tests are valid
at any number, but nothing else than NO_DATA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from octoserve.control.analysis import wording
from octoserve.control.analysis.means import compare_means
from octoserve.control.analysis.quantiles import Histogram, compare_quantiles
from octoserve.control.analysis.rates import Interval, compare_rates, rate_above
from octoserve.control.analysis.reading import ArmSums, Reading
from octoserve.control.analysis.verdict import Outcome, Verdict
from octoserve.control.rollout.values import LatencyCheck, MetricCheck, PredictionCheck, RateCheck
from octoserve.core.evidence import ALL, BASELINE, ArmEvidence, PairEvidence


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """On what terms a check is judged.

    alpha:   false FAILs accepted of this check on this segment
    alpha_pass: false PASSes accepted of it
    samples: fewer than this, of either side, are NO_DATA
    share:   the candidate's part of what is compared, as planned
    missing: what the step still waits for before anything may PASS, for people; "" for nothing
    segment: see Verdict; the interval of a segment is worked out only if it says something
    """

    alpha: float
    alpha_pass: float
    samples: int
    share: float = 0.5
    missing: str = ""
    segment: str = ""

    def only(self, margin: float) -> float | None:
        """The margin, if nothing but its being passed is of interest."""
        return margin if self.segment != ALL else None


def no_data(check: str, note: str, segment: str = "", n: int = 0, n_base: int = 0) -> Verdict:
    """Nothing to judge by."""
    return Verdict(check=check, outcome=Outcome.NO_DATA, segment=segment, n=n, n_base=n_base, note=note)


def unreadable(check: str, note: str, segment: str = "") -> Verdict:
    """What was read is no evidence."""
    return Verdict(check=check, outcome=Outcome.PROVIDER_ERROR, segment=segment, note=note)


def judge_rate(check: RateCheck, terms: Terms, candidate: ArmEvidence, base: ArmEvidence) -> Verdict:
    """Failed attempts, against the stable version's in the same stratum. Raises ValueError for impossible counts."""
    interval = compare_rates(
        candidate.attempts,
        candidate.failures,
        base.attempts,
        base.failures,
        alpha=terms.alpha,
        alpha_high=terms.alpha_pass,
        share=terms.share,
        margin=terms.only(check.margin),
    )
    failed = wording.part(candidate.failures, candidate.attempts)
    note = f"candidate failed {failed}, stable {wording.part(base.failures, base.attempts)}"
    return _verdict(check.name, terms, interval, check.margin, (candidate.attempts, base.attempts), note)


def judge_mirrored_rate(check: RateCheck, terms: Terms, pairs: PairEvidence) -> Verdict:
    """Failed copies: stable has answered every request that was copied, so that it stands at 0."""
    failed = pairs.error + pairs.timeout
    interval = rate_above(pairs.sent, failed, alpha=terms.alpha, alpha_high=terms.alpha_pass)
    note = f"candidate failed {wording.part(failed, pairs.sent)} copied requests, all of which stable had answered"
    return _verdict(check.name, terms, interval, check.margin, (pairs.sent, pairs.sent), note)


def judge_latency(
    check: LatencyCheck, terms: Terms, candidate: Mapping[int, int], base: Mapping[int, int], role: str = BASELINE
) -> Verdict:
    """A quantile against the same quantile of the arm `role`. Raises ValueError for impossible counts."""
    interval = compare_quantiles(
        candidate,
        base,
        check.quantile,
        seconds=check.seconds,
        alpha=terms.alpha,
        alpha_high=terms.alpha_pass,
        share=terms.share,
        margin=terms.only(1 + check.ratio),
    )
    own, other = Histogram.of(candidate), Histogram.of(base)
    quantiles = [wording.seconds(histogram.quantile(check.quantile)) for histogram in (own, other)]
    note = (
        f"candidate's {wording.level(check.quantile)} is {quantiles[0]} of {wording.count(own.n)}, "
        f"{role}'s {quantiles[1]} of {wording.count(other.n)}"
    )
    if check.seconds:
        note += f" ({wording.seconds(check.seconds)} more are accepted and taken off)"
    return _verdict(check.name, terms, interval, 1 + check.ratio, (int(own.n), int(other.n)), note, unit="ratio")


def judge_prediction(check: PredictionCheck, terms: Terms, pairs: PairEvidence, noise: bool) -> Verdict:
    """Pairs that disagree, against the stable version's disagreement with itself.

    noise: whether that is measured; if not, a deterministic model is assumed, and the note says so
    """
    ours = wording.part(pairs.disagreed, pairs.compared)
    if not noise:
        interval = rate_above(pairs.compared, pairs.disagreed, alpha=terms.alpha, alpha_high=terms.alpha_pass)
        note = f"{ours} pairs disagree; no noise floor is measured, so it is taken to be 0"
        return _verdict(check.name, terms, interval, check.margin, (pairs.compared, pairs.compared), note)
    interval = compare_rates(
        pairs.compared,
        pairs.disagreed,
        pairs.noise_compared,
        pairs.noise_disagreed,
        alpha=terms.alpha,
        alpha_high=terms.alpha_pass,
        share=terms.share,
        margin=terms.only(check.margin),
    )
    floor = wording.part(pairs.noise_disagreed, pairs.noise_compared)
    note = f"{ours} pairs disagree, of stable with itself {floor}"
    return _verdict(check.name, terms, interval, check.margin, (pairs.compared, pairs.noise_compared), note)


def judge_metric(check: MetricCheck, terms: Terms, reading: Reading | None) -> Verdict:
    """A number of the business. Never PASS on what is down, no number, stale or empty.

    Data of unknown age is NO_DATA as stale data is: ask the provider for `newest`, or set `max_age: 0`, which is no
    limit. Delayed labels are old by their nature; whether they are complete is asked elsewhere.
    """
    if reading is None:
        return no_data(check.name, "not read yet")
    if reading.error:
        return unreadable(check.name, f"could not be read: {reading.error}")
    wrong = _wrong(check, reading)
    if wrong:
        return unreadable(check.name, wrong)
    candidate, base = reading.candidate, reading.baseline
    if candidate is None or base is None:
        missing = " and ".join(arm for arm, sums in (("candidate", candidate), ("baseline", base)) if sums is None)
        return no_data(check.name, f"the provider has nothing of the {missing}")
    n, n_base = int(candidate.n), int(base.n)
    if check.max_age > 0 and not check.delayed:
        if reading.age is None:
            note = "the provider does not tell how old the data is: ask it for `newest`, or set max_age: 0"
            return no_data(check.name, note, n=n, n_base=n_base)
        if reading.age > check.max_age:
            note = f"the data is {reading.age:,.0f} s old, {check.max_age:,.0f} s are accepted"
            return no_data(check.name, note, n=n, n_base=n_base)
    interval = _metric_interval(check, terms, candidate, base)
    return _verdict(
        check.name,
        terms,
        interval,
        check.margin,
        (n, n_base),
        _metric_note(check, candidate, base),
        unit="share" if check.kind == "rate" else check.name,
    )


def _wrong(check: MetricCheck, reading: Reading) -> str:
    """Why a reading is no reading, for people; "" if it is one."""
    if reading.age is not None and not (_number(reading.age) or reading.age == math.inf):
        return f"the age of the data is {reading.age!r:.40}"
    for arm, sums in (("candidate", reading.candidate), ("baseline", reading.baseline)):
        if sums is None:
            continue
        for name in ("n", "total", "squares"):
            value = getattr(sums, name)
            if not _number(value) or (name != "total" and value < 0):
                return f"{name} of the {arm} is {value!r:.40}"
        if check.kind == "rate" and not 0 <= sums.total <= sums.n:
            return f"{sums.total:g} successes of {sums.n:g} of the {arm} are no rate"
        if sums.n == 0 and (sums.total or sums.squares):
            return f"the {arm} has a sum and no samples"
    return ""


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _metric_interval(check: MetricCheck, terms: Terms, candidate: ArmSums, base: ArmSums) -> Interval:
    """How much worse the candidate is."""
    higher = check.better == "higher"
    # Where more is better, worse is less, and the two ends change places.
    low, high = (terms.alpha_pass, terms.alpha) if higher else (terms.alpha, terms.alpha_pass)
    if check.kind == "rate":
        (n, k), (base_n, base_k) = _whole(candidate), _whole(base)
        found = compare_rates(n, k, base_n, base_k, alpha=low, alpha_high=high, share=terms.share)
    else:
        found = compare_means(candidate, base, alpha=low, alpha_high=high)
    return Interval(-found.estimate, -found.high, -found.low) if higher else found


def _whole(sums: ArmSums) -> tuple[int, int]:
    """Prometheus extrapolates: its counts are seldom whole."""
    n = round(sums.n)
    return n, min(round(sums.total), n)


def _metric_note(check: MetricCheck, candidate: ArmSums, base: ArmSums) -> str:
    if check.kind == "rate":
        ours, theirs = (wording.part(sums.total, sums.n) for sums in (candidate, base))
    else:
        ours, theirs = (
            f"{sums.total / sums.n:.4g} over {wording.count(sums.n)}" if sums.n else "none yet"
            for sums in (candidate, base)
        )
    return f"candidate {ours}, baseline {theirs} ({check.better} is better)"


def _verdict(
    name: str, terms: Terms, interval: Interval, margin: float, samples: tuple[int, int], note: str, unit: str = "share"
) -> Verdict:
    n, n_base = samples
    outcome = Outcome.HOLD
    if interval.low > margin:
        outcome = Outcome.FAIL
    elif min(n, n_base) < max(terms.samples, 1):
        outcome, note = Outcome.NO_DATA, f"{note}; {wording.count(terms.samples)} of each are wanted"
    elif interval.high < margin:
        outcome = Outcome.HOLD if terms.missing else Outcome.PASS
        note = f"{note}; waits for {terms.missing}" if terms.missing else note
    return Verdict(
        check=name,
        outcome=outcome,
        segment=terms.segment,
        estimate=_finite(interval.estimate),
        low=_finite(interval.low),
        high=_finite(interval.high),
        margin=margin,
        unit=unit,
        n=n,
        n_base=n_base,
        note=note,
    )


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
