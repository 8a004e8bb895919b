"""Shadow's course: copies of answered requests go to the candidate until enough pairs are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octoserve.control.rollout.course import buckets, course_of
from octoserve.control.rollout.values import Course, Step
from octoserve.core.errors import SettingsError

if TYPE_CHECKING:
    from octoserve.spec import RolloutSection

_SHARE = 0.1
"""Of the requests, unless the spec says otherwise."""


def course(section: RolloutSection) -> Course:
    """One step at weight 0 with a mirror. Ends as observed, or with `promote` in a switch.

    Raises SettingsError for a mirror of nothing, and where every check that pairs could answer is switched off.
    """
    mirror = buckets(_SHARE if section.mirror is None else section.mirror)
    if not mirror:
        raise SettingsError("rollout.mirror: a shadow needs a share of the requests, such as 10%; 0 came")
    step = Step(mirror=mirror, noise=buckets(section.noise), samples=section.pairs, approval=section.approval)
    return course_of(section, "shadow", (step,), promotes=section.promote)
