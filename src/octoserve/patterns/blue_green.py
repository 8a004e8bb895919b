"""Blue-green: the candidate is loaded, tested without traffic, and then takes all of it in one swap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octoserve.control.rollout.course import course_of
from octoserve.control.rollout.values import Course, Step

if TYPE_CHECKING:
    from octoserve.spec import RolloutSection


def course(section: RolloutSection) -> Course:
    """One step at weight 0, in which a person may be asked; golden samples and replayed traffic come before it."""
    return course_of(section, "blue-green", (Step(approval=section.approval, analysis=False),))
