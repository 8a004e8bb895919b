"""RoutePlan: endpoint -> versions, with shares. Replaced whole; a request binds a version once."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

import msgspec

from octoserve.core.errors import SettingsError
from octoserve.core.evidence import BASELINE, CANDIDATE, STABLE

BUCKETS = 10_000

ARM_HEADER = "x-octoserve-arm"
"""The role of the arm that a proxy in front has drawn; else `OVERRIDE` or `SHADOW`."""
VERSION_HEADER = "x-octoserve-version"
"""Beside it: the version that is to answer. For the two roles that are no arm's it is the only thing that says so."""
STRATUM_HEADER = "x-octoserve-stratum"
"""Beside them: the stratum of the plan by which it was drawn. Under another one it says nothing of the shares."""
ENDPOINT_HEADER = "x-octoserve-endpoint"
"""Beside them: whose plan it was. A gRPC call is drawn before anybody has read whom its message is for."""
DRAWN_HEADERS = (ARM_HEADER, VERSION_HEADER, STRATUM_HEADER, ENDPOINT_HEADER)
SHADOW_HEADER = "x-octoserve-shadow"
"""Set on copies, so that whoever answers knows that nobody waits for it."""

OVERRIDE, SHADOW = "override", "shadow"
"""Roles that are no arm's: requests whose version a key's override says, and copies."""


class Arm(msgspec.Struct, frozen=True, array_like=True):
    """`version` owns the buckets lo <= bucket < hi; `role` is what its evidence is counted as."""

    version: int
    lo: int
    hi: int
    role: str = STABLE


class MirrorTo(msgspec.Struct, frozen=True, array_like=True):
    """`version` gets a copy of `share` (of BUCKETS) of the answered requests.

    noise: share (of BUCKETS) of those that are also run once more by the version that answered
    """

    version: int
    share: int
    noise: int = 0


class RoutePlan(msgspec.Struct, frozen=True):
    """Immutable routes of one endpoint.

    endpoint:   the name that clients address (a model's name)
    generation: grows with every change; workers acknowledge it
    arms:       ranges of buckets, in order, without gap or overlap, over all of 0..BUCKETS. A candidate owns
                0..weight, so that its range only grows while its weight does
    seed:       mixed into the hash, fresh per rollout, so that two rollouts do not share their luck
    key:        what the bucket goes by (`routing.key`); "" gives each request a random one
    mirrors:    who gets copies
    overrides:  key -> version: testers see what they are to see, whatever the shares
    segments:   expressions by which evidence is counted apart (`routing.key`)
    stratum:    what evidence under this plan is counted as; "" counts none
    tolerance:  what counts as an equal answer of a mirror, by output (`core.comparison`)
    breaker:    (window, failures): so many failed among a worker's last attempts cut the candidate there at once
    by_proxy:   a proxy in front draws the arm and makes the copies, and says so in headers (see above). What it does
                not name, or what this plan does not have, is answered by the stable version
    """

    endpoint: str
    generation: int
    arms: tuple[Arm, ...]
    seed: str = ""
    key: str = ""
    mirrors: tuple[MirrorTo, ...] = ()
    overrides: Mapping[str, int] = {}
    segments: tuple[str, ...] = ()
    stratum: str = ""
    tolerance: Mapping[str, Mapping[str, float]] = {}
    breaker: tuple[int, int] = (20, 10)
    by_proxy: bool = False

    @classmethod
    def to(cls, endpoint: str, version: int, generation: int) -> RoutePlan:
        """Everything to one version."""
        return cls(endpoint, generation, (Arm(version, 0, BUCKETS),))

    def __post_init__(self) -> None:
        at = 0
        for arm in self.arms:
            if arm.lo != at or arm.hi < arm.lo:
                raise SettingsError(f"route plan of {self.endpoint!r}: arms leave a gap or overlap at {at}")
            at = arm.hi
        if at != BUCKETS:
            raise SettingsError(f"route plan of {self.endpoint!r}: arms end at {at}, not at {BUCKETS}")

    @property
    def stable(self) -> int:
        """The version that is trusted: that of the stable arm, which a plan may give no buckets."""
        return next((arm.version for arm in self.arms if arm.role == STABLE), self.arms[-1].version)

    def versions(self) -> set[int]:
        """Every version that a request may reach by this plan."""
        named = {arm.version for arm in self.arms} | {mirror.version for mirror in self.mirrors}
        return named | set(self.overrides.values())


def headers_of(plan: RoutePlan, role: str, version: int) -> dict[str, str]:
    """What a proxy says of a request that it has drawn; nothing of a stratum where none is counted."""
    told = {ARM_HEADER: role, VERSION_HEADER: str(version), ENDPOINT_HEADER: quote(plan.endpoint, safe="")}
    return {**told, STRATUM_HEADER: plan.stratum} if plan.stratum else told


def split_arms(stable: int, candidate: int, weight: int, baseline: bool = False) -> tuple[Arm, ...]:
    """The arms of a canary: candidate first, then its baseline of the same size, then the rest.

    weight: of BUCKETS, 0 <= weight <= BUCKETS. Where the baseline does not fit (weight over one half) there is
    none: what is left of the stable version is on less than equal footing, and is all there is.
    """
    if baseline and 0 < weight <= BUCKETS // 2:
        middle = Arm(stable, weight, 2 * weight, BASELINE)
        return Arm(candidate, 0, weight, CANDIDATE), middle, Arm(stable, 2 * weight, BUCKETS)
    return Arm(candidate, 0, weight, CANDIDATE), Arm(stable, weight, BUCKETS)
