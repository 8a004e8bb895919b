"""RoutingBackend: what carries a plan out, and the refusal of what it cannot carry out.

`refuse_unless_able` is asked before a rollout starts (with its course) and again before each plan is applied. It
knows no middle way: a backend does all that a plan says, or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from octoserve.core.errors import SettingsError
from octoserve.core.evidence import BASELINE, CANDIDATE
from octoserve.routing.key import parse_key
from octoserve.routing.plan import BUCKETS, Arm, RoutePlan


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend can do.

    backend:      its name, as in messages
    keys:         kinds of key expressions (`routing.key`) whose value it can see; () means that its split is not
                  sticky
    weight_step:  smallest share of an arm that it can express, in buckets
    mirror_step:  the same of a mirror
    baseline:     whether an arm of the stable version can be counted apart
    overrides:    how many keys can be sent to a version of their own
    segments:     whether evidence is counted by segment
    mirrors:      how many versions can get copies at once
    beside_split: whether a version can get copies of what the stable version answers, and requests of its own
    pairs:        whether the two answers to a mirrored request come together, to be compared
    drains:       whether it sees requests in flight
    """

    backend: str
    keys: tuple[str, ...] = ()
    weight_step: int = 1
    mirror_step: int = 1
    baseline: bool = False
    overrides: int = 0
    segments: bool = False
    mirrors: int = 0
    beside_split: bool = False
    pairs: bool = False
    drains: bool = False


class ArmCount(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend counted of one arm (or `SHADOW`, `OVERRIDE`) since it started.

    requests: sent to the version
    errors:   answered with a server's error, or not at all
    dropped:  not sent, since a bound was reached
    """

    endpoint: str
    version: int
    role: str
    requests: int = 0
    errors: int = 0
    dropped: int = 0
    in_flight: int = 0


class InForce(msgspec.Struct, frozen=True):
    """The plan that requests meet now; arms without buckets are left out."""

    generation: int
    arms: tuple[Arm, ...]


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What the backend itself says, not what it was told. `counts` is empty where it does not know them."""

    plans: Mapping[str, InForce] = {}
    counts: tuple[ArmCount, ...] = ()


@runtime_checkable
class RoutingBackend(Protocol):
    """Carries the plans of several endpoints out."""

    def capabilities(self) -> Capabilities:
        """What it can do; does not change while it lives."""

    async def apply(self, plan: RoutePlan) -> None:
        """Return when every new request is routed by `plan`.

        Raises SettingsError for a plan it cannot carry out (nothing has changed), Unavailable if it cannot be told
        whether the plan is in effect: applying it again is then safe.
        """

    async def observe(self) -> Observed:
        """What is in force, and what was counted. Raises Unavailable."""

    async def drain(self, endpoint: str, version: int, deadline: float) -> int:
        """Wait until no request of `version` is in flight, until `deadline` (of the clock that the backend was
        given).

        Returns how many were still in flight then: what unloads the version now cuts them. Raises Unsupported where
        requests in flight are not known.
        """


class StepLike(Protocol):
    """The shares of a step of a course."""

    @property
    def weight(self) -> int: ...
    @property
    def mirror(self) -> int: ...
    @property
    def noise(self) -> int: ...
    @property
    def samples(self) -> int: ...


class CourseLike(Protocol):
    """What of a rollout's course routing must carry out (`control.rollout.values.Course`)."""

    @property
    def steps(self) -> Sequence[StepLike]: ...
    @property
    def checks(self) -> Sequence[Any]: ...
    @property
    def baseline(self) -> bool: ...
    @property
    def key(self) -> str: ...
    @property
    def segments(self) -> tuple[str, ...]: ...
    @property
    def overrides(self) -> Mapping[str, Any]: ...


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan, or all plans of a course together, ask of a backend."""

    key: str = ""
    weights: frozenset[int] = frozenset()
    copies: frozenset[int] = frozenset()
    mirrors: int = 0
    beside_split: bool = False
    pairs: bool = False
    baseline: bool = False
    overrides: int = 0
    segments: tuple[str, ...] = ()


def needs_of_plan(plan: RoutePlan) -> Needs:
    """What one plan asks."""
    mirrors = [mirror for mirror in plan.mirrors if mirror.share]
    candidates = {arm.version for arm in plan.arms if arm.role == CANDIDATE and arm.hi > arm.lo}
    return Needs(
        key=plan.key,
        weights=frozenset(arm.hi - arm.lo for arm in plan.arms),
        copies=frozenset(mirror.share for mirror in mirrors),
        mirrors=len(mirrors),
        beside_split=bool(mirrors and candidates),
        pairs=any(mirror.noise for mirror in mirrors),
        baseline=any(arm.role == BASELINE and arm.hi > arm.lo for arm in plan.arms),
        overrides=len(plan.overrides),
        segments=plan.segments,
    )


def needs_of_course(course: CourseLike) -> Needs:
    """What a whole rollout asks, so that it is refused at its start and not in its middle."""
    mirrored = [step for step in course.steps if step.mirror]
    compared = any(type(check).__struct_config__.tag == "prediction" for check in course.checks)
    compared = compared or any(step.samples and not step.weight for step in mirrored)  # its samples are pairs
    return Needs(
        key=course.key,
        weights=frozenset(step.weight for step in course.steps),
        copies=frozenset(step.mirror for step in mirrored),
        mirrors=1 if mirrored else 0,
        beside_split=any(step.weight for step in mirrored),
        pairs=bool(mirrored) and (compared or any(step.noise for step in mirrored)),
        baseline=course.baseline and any(0 < step.weight <= BUCKETS // 2 for step in course.steps),
        overrides=len(course.overrides),
        segments=course.segments,
    )


def refuse_unless_able(wanted: RoutePlan | CourseLike, able: Capabilities) -> None:
    """Raise SettingsError naming each field that asks too much, what the backend can, and the remedy."""
    needs = needs_of_plan(wanted) if isinstance(wanted, RoutePlan) else needs_of_course(wanted)
    problems = [*_split_problems(needs, able), *_mirror_problems(needs, able)]
    if problems:
        raise SettingsError(f"the routing backend {able.backend} cannot carry this out: " + "; ".join(problems))


def _split_problems(needs: Needs, able: Capabilities) -> list[str]:
    problems = []
    if needs.key and parse_key(needs.key).kind not in able.keys:
        if able.keys:
            what = f"it sees {', '.join(f'{kind}:NAME' for kind in able.keys)} only; send the key that way"
        else:
            what = "its split sticks to no key; leave key out (each request is then drawn anew)"
        problems.append(f"key {needs.key!r}: {what}, or route in-process")
    odd = sorted(weight for weight in needs.weights if weight % able.weight_step)
    if odd:
        problems.append(
            f"weight {_percent(odd[0])}: its shares are multiples of {_percent(able.weight_step)}; choose such steps"
        )
    if needs.baseline and not able.baseline:
        problems.append("baseline: it cannot count an arm of the stable version apart; set baseline: false")
    if needs.overrides > able.overrides:
        can = f"it sends {able.overrides} keys" if able.overrides else "it sends no key"
        problems.append(f"overrides: {can} to a version of their own, {needs.overrides} asked; leave them out")
    if needs.segments and not able.segments:
        problems.append("segments: it counts no evidence by segment; leave them out, or put an octoserve behind it")
    return problems


def _mirror_problems(needs: Needs, able: Capabilities) -> list[str]:
    problems = []
    if needs.mirrors > able.mirrors:
        problems.append(f"mirrors: it copies to {able.mirrors} versions, {needs.mirrors} asked; mirror in-process")
    odd = sorted(share for share in needs.copies if share % able.mirror_step)
    if odd:
        problems.append(
            f"mirror {_percent(odd[0])}: its shares are multiples of {_percent(able.mirror_step)}; choose such a one"
        )
    if needs.beside_split and not able.beside_split:
        problems.append(
            "mirror beside weight: it would also copy what the candidate answered; mirror in a step of weight 0"
        )
    if needs.pairs and not able.pairs:
        problems.append(
            "mirror: the shadow's answers are thrown away, so predictions cannot be compared (noise, a check of "
            "predictions, and a shadow's pairs need that); leave those out, or mirror in-process"
        )
    return problems


def _percent(buckets: int) -> str:
    return f"{buckets * 100 / BUCKETS:g} %"
