"""Canary: a share of the traffic that grows as long as the evidence lets it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octoserve.control.rollout.course import buckets, course_of
from octoserve.control.rollout.values import Course, Step
from octoserve.routing.plan import BUCKETS

if TYPE_CHECKING:
    from octoserve.spec import RolloutSection, StepSection


def course(section: RolloutSection) -> Course:
    """The spec's steps. With `mirror` written, other requests are copied too, so that predictions are compared.

    Raises SettingsError where every check is switched off and a step waits for one.
    """
    return course_of(section, "canary", tuple(_step(step, section) for step in section.steps))


def _step(step: StepSection, section: RolloutSection) -> Step:
    weight = buckets(step.weight)
    mirror = 0 if section.mirror is None or weight == BUCKETS else buckets(section.mirror)
    return Step(
        weight=weight,
        mirror=mirror,
        noise=buckets(section.noise) if mirror else 0,
        samples=section.min_samples if step.samples is None else step.samples,
        pause=step.pause,
        approval=step.approval,
        analysis=weight < BUCKETS if step.analysis is None else step.analysis,
    )
