"""What every strategy's course is made of: the section of the spec in the control plane's words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octoserve.control.rollout.values import (
    Check,
    Course,
    LatencyCheck,
    MetricCheck,
    PredictionCheck,
    RateCheck,
    Step,
)
from octoserve.core.errors import SettingsError
from octoserve.routing.plan import BUCKETS

if TYPE_CHECKING:
    from octoserve.spec import AnalysisSection, RolloutSection


def buckets(share: float) -> int:
    """A share in whole buckets; one at least for what is not 0."""
    return max(round(share * BUCKETS), 1) if share > 0 else 0


def course_of(section: RolloutSection, strategy: str, steps: tuple[Step, ...], promotes: bool = True) -> Course:
    """A course of these steps. Raises SettingsError where a step waits for checks that nothing would answer.

    Checks that no step could ever answer are left out, since each takes its part of alpha: of predictions where nothing
    is mirrored, of latency and of the business where no client meets the candidate beside the stable version.
    """
    checks = tuple(check for check in checks_of(section.analysis) if any(_sees(check, step) for step in steps))
    for number, step in enumerate(steps, 1):
        if step.analysis and all(_is_late(check) or not _sees(check, step) for check in checks):
            raise SettingsError(
                f"rollout.analysis: step {number} of the {strategy} waits for checks to pass, and none is left that "
                "could; switch one on, or write `analysis: false` into the step"
            )
    return Course(
        strategy=strategy,
        steps=steps,
        promotes=promotes,
        checks=checks,
        alpha=section.alpha,
        baseline=section.baseline,
        min_samples=section.min_samples,
        key=section.key,
        segments=tuple(section.segments),
        overrides=dict(section.overrides),
        golden=section.golden,
        replay=section.replay,
        retain=section.retain,
        deadline=section.deadline,
        on_deadline=section.on_deadline,
        tolerance=section.tolerance,
        breaker=(section.breaker.window, section.breaker.failures),
    )


def checks_of(analysis: AnalysisSection) -> tuple[Check, ...]:
    """The checks that are switched on."""
    checks: list[Check] = []
    if analysis.error_rate is not None:
        checks.append(RateCheck(margin=analysis.error_rate.margin))
    for name, latency in analysis.latency.items():
        quantile = float(name[1:]) / 100
        checks.append(
            LatencyCheck(name=f"latency_{name}", quantile=quantile, ratio=latency.ratio, seconds=latency.seconds)
        )
    if analysis.disagreement is not None:
        checks.append(PredictionCheck(margin=analysis.disagreement.margin))
    checks += [MetricCheck(**metric.model_dump()) for metric in analysis.metrics]
    return tuple(checks)


def _sees(check: Check, step: Step) -> bool:
    """Whether a step gives a check anything to judge."""
    match check:
        case RateCheck():
            return step.weight > 0 or step.mirror > 0
        case PredictionCheck():
            return step.mirror > 0
        case LatencyCheck() | MetricCheck():
            return 0 < step.weight < BUCKETS


def _is_late(check: Check) -> bool:
    """Steps do not wait for labels that come late."""
    return isinstance(check, MetricCheck) and check.delayed
