"""What the data plane is to do for a rollout: a function of the record alone.

So a crash between a commit and its effect is repaired by deriving the effect again.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from octoserve.control.rollout.values import IN_PROCESS, Phase, Result, Rollout
from octoserve.routing.plan import BUCKETS, Arm, MirrorTo, split_arms


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A route plan without its generation, and the versions that must stay loaded.

    stable:    the version that is trusted now
    candidate: the version on trial
    keep:      versions that are wanted whatever the version policy says
    Everything else: see RoutePlan.
    """

    endpoint: str
    stable: int
    candidate: int
    arms: tuple[Arm, ...]
    keep: frozenset[int]
    mirrors: tuple[MirrorTo, ...] = ()
    seed: str = ""
    key: str = ""
    segments: tuple[str, ...] = ()
    overrides: Mapping[str, int] = {}
    stratum: str = ""
    tolerance: Mapping[str, Mapping[str, float]] = {}
    breaker: tuple[int, int] = (20, 10)
    by_proxy: bool = False


EXPOSED = (Phase.RUNNING, Phase.PROMOTING, Phase.RETAINING)
"""Phases in which requests may reach the candidate."""


def wish_of(rollout: Rollout) -> Wish:
    """What this record asks of the data plane.

    Before the first step, and from an abort on, nothing reaches the candidate: no arm, no mirror, no tester's
    override. Both versions stay loaded until the rollout has ended: until then a worker may still route to either.
    """
    if rollout.phase is Phase.ENDED:
        winner = trusted_of(rollout)
        return Wish(
            endpoint=rollout.endpoint,
            stable=winner,
            candidate=rollout.candidate,
            arms=(Arm(winner, 0, BUCKETS),),
            keep=frozenset({winner}),
        )
    mirrors = (MirrorTo(rollout.candidate, rollout.mirror, rollout.now.noise),) if rollout.mirror else ()
    return Wish(
        endpoint=rollout.endpoint,
        stable=rollout.stable,
        candidate=rollout.candidate,
        arms=split_arms(rollout.stable, rollout.candidate, rollout.weight, rollout.course.baseline),
        keep=frozenset({rollout.stable, rollout.candidate}),
        mirrors=mirrors,
        seed=rollout.id,
        key=rollout.course.key,
        segments=rollout.course.segments,
        overrides=_overrides(rollout) if rollout.phase in EXPOSED else {},
        stratum=rollout.stratum,
        tolerance=rollout.course.tolerance,
        breaker=rollout.course.breaker,
        by_proxy=rollout.course.backend != IN_PROCESS,
    )


def trusted_of(rollout: Rollout) -> int:
    """The endpoint's stable version by this record: the candidate once it has ended as promoted, else what it was."""
    promoted = rollout.phase is Phase.ENDED and rollout.result is Result.PROMOTED
    return rollout.candidate if promoted else rollout.stable


def _overrides(rollout: Rollout) -> dict[str, int]:
    words = {"stable": rollout.stable, "candidate": rollout.candidate}
    return {key: to if isinstance(to, int) else words[to] for key, to in rollout.course.overrides.items()}
