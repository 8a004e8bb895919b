"""Brings every published plan to what stands in front of the workers, and says when it is in force there too.

Workers come first: a proxy may only name what they already know, and what their plan does not have they answer by the
stable version. A plan that takes everything from a candidate goes to the proxy at once as well, since it is right under
the workers' last plan too. The order, and what a crash after each step means: docs/decisions/0008-routing-backends.md.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from octoserve.control.rollout.values import IN_PROCESS, Course, Phase, Rollout
from octoserve.control.snapshot import Aspired
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.core.evidence import CANDIDATE
from octoserve.patterns.online.supervisor.plan_times import PlanTimes
from octoserve.routing.backends.protocol import Capabilities, refuse_unless_able
from octoserve.routing.plan import RoutePlan

if TYPE_CHECKING:
    from octoserve.patterns.online.supervisor.route_fronts import Front
    from octoserve.spec import BackendSection

log = logging.getLogger(__name__)

TICK = 0.25
"""Seconds between two looks at the plans."""
ASK_EVERY = 1.0
"""Seconds between two questions to a front: does it live, and what is in force there."""
NAMES = {"envoy": "Envoy", "istio": "Istio", "gateway-api": "the gateway"}


class Room(Protocol):
    """The control room, as far as it is needed here."""

    @property
    def current(self) -> Aspired:
        """What is wanted now."""

    def all_follow(self) -> bool:
        """Whether every worker has acknowledged it."""


class _Kept:
    """A front, and what is known of it.

    confirmed: by endpoint, the plan that it has said it routes by
    problems:  by endpoint, why it does not; under "", why it says nothing at all
    since:     by endpoint, the plan that it is to route by next, and when that was first seen
    """

    def __init__(self, front: Front, kind: str) -> None:
        self.front = front
        self.name = NAMES[kind]
        self.confirmed: dict[str, RoutePlan] = {}
        self.problems: dict[str, str] = {}
        self.since: dict[str, tuple[RoutePlan, float]] = {}
        self.times = PlanTimes()
        self.asked = float("-inf")

    @property
    def lives(self) -> bool:
        """Whether it has answered, and nothing has been wrong since."""
        return self.asked > float("-inf") and not self.problems.get("")


class RouteBackends:
    """See the module. On the supervisor's event loop.

    section_of: an endpoint's section; None where the workers draw
    fronts:     by `key_of` the section, what was made of it
    changed:    called when a plan was confirmed
    """

    def __init__(
        self,
        room: Room,
        section_of: Callable[[str], BackendSection | None],
        fronts: Mapping[str, Front],
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._room = room
        self._section_of = section_of
        self._changed = changed
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        for key, front in fronts.items():
            self._kept[key] = _Kept(front, key.partition(" ")[0])
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._left = False

    # What is asked of it.

    def kind_of(self, endpoint: str) -> str:
        """Who carries out the shares of an endpoint."""
        section = self._section_of(endpoint)
        return IN_PROCESS if section is None else section.kind

    def refuse_unless_able(self, endpoint: str, course: Course) -> None:
        """Raise SettingsError if what the course asks cannot be carried out."""
        kept = self._of(endpoint)
        if kept is not None:
            refuse_unless_able(course, with_copies_made_here(kept.front.backend.capabilities()))

    def behind(self, rollout: Rollout, plan: RoutePlan) -> str:
        """Who in front of the workers does not route by this plan yet, for people; "" if it does."""
        kind = self.kind_of(rollout.endpoint)
        if kind != rollout.course.backend and rollout.phase is not Phase.ABORTING:
            return f"the backend {rollout.course.backend} that it was started with (the spec now says {kind})"
        kept = self._of(rollout.endpoint)
        if kept is None:
            return ""
        problem = kept.problems.get("") or kept.problems.get(rollout.endpoint, "")
        if kept.confirmed.get(rollout.endpoint) == plan and not problem:
            return ""
        return f"{kept.name} ({problem})" if problem else kept.name

    def addresses(self) -> list[str]:
        """Where clients come in by a front."""
        return [kept.front.address for kept in self._kept.values() if kept.front.address]

    def view(self) -> list[dict[str, Any]]:
        """Of each front: its name, where clients come in, what is wrong, seconds from a plan to its confirmation."""
        return [
            {
                "name": kept.name,
                "address": kept.front.address,
                "problems": {endpoint: problem for endpoint, problem in kept.problems.items() if problem},
                "took": kept.times.quantiles(),
            }
            for kept in self._kept.values()
        ]

    def settled(self) -> bool:
        """Whether every plan of now is in force in front of the workers."""
        return all(
            kept is None or (kept.confirmed.get(plan.endpoint) == plan and not kept.problems.get(""))
            for plan in self._room.current.plans
            for kept in (self._of(plan.endpoint),)
        )

    # Life.

    async def newest(self) -> int:
        """The highest generation that any front was ever given: the next plan must have a higher one."""
        return max([await kept.front.newest() for kept in self._kept.values()], default=0)

    async def run(self) -> None:
        """Follow the plans on the beat, and when woken. Ends by cancellation."""
        while self._kept and not self._left:
            self._wake.clear()
            try:
                await self.step()
            except Exception:
                log.exception("bringing plans to the routing backends failed; tried again")
            try:
                async with asyncio.timeout(TICK):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def wake(self) -> None:
        """A plan was pushed, or a worker has acknowledged one."""
        self._wake.set()

    async def leave(self, grace: float) -> None:
        """The service ends: fronts that were started here end before the workers do."""
        self._left = True
        async with self._turn:
            for kept in self._kept.values():
                await kept.front.leave(grace)

    # One step.

    async def step(self) -> None:
        """See that every front lives, and bring it what it does not have yet."""
        async with self._turn:
            for kept in () if self._left else self._kept.values():
                try:
                    if not kept.lives:
                        await self._ask(kept)
                    for plan in self._room.current.plans:
                        if self._of(plan.endpoint) is kept:
                            await self._bring(kept, plan)
                    await self._ask(kept)  # last: a plan must not wait for an answer
                except Unavailable as error:
                    self._complain(kept, "", str(error))

    async def _ask(self, kept: _Kept) -> None:
        """Once in a while, and at once where something was wrong: does it live, and do what it said it does."""
        now = self._clock()
        if now - kept.asked < (ASK_EVERY if kept.lives else TICK):
            return
        kept.asked = now
        await kept.front.keep()
        in_force = (await kept.front.backend.observe()).plans
        for endpoint, plan in list(kept.confirmed.items()):
            there = in_force.get(endpoint)
            if there is None or there.generation != plan.generation:
                log.warning("%s does not route %s by generation %d any more", kept.name, endpoint, plan.generation)
                del kept.confirmed[endpoint]
        if kept.problems.pop("", ""):
            log.info("%s answers again", kept.name)
            self._changed()

    async def _bring(self, kept: _Kept, plan: RoutePlan) -> None:
        before = kept.confirmed.get(plan.endpoint)
        if before != plan and kept.since.get(plan.endpoint, (None, 0.0))[0] != plan:
            kept.since[plan.endpoint] = plan, self._clock()
        if before == plan or not (self._room.all_follow() or takes_back(plan, before)):
            return
        try:
            await kept.front.backend.apply(msgspec.structs.replace(plan, mirrors=()))
        except SettingsError as error:
            self._complain(kept, plan.endpoint, str(error))
            return
        kept.confirmed[plan.endpoint] = plan
        kept.times.pushed(plan.generation, kept.since.pop(plan.endpoint)[1])
        kept.times.followed(plan.generation, self._clock())
        kept.problems.pop(plan.endpoint, None)
        self._changed()

    def _complain(self, kept: _Kept, endpoint: str, problem: str) -> None:
        if kept.problems.get(endpoint) != problem:
            kept.problems[endpoint] = problem
            log.error("%s%s: %s", kept.name, f", endpoint {endpoint}" if endpoint else "", problem)
            self._changed()

    def _of(self, endpoint: str) -> _Kept | None:
        section = self._section_of(endpoint)
        return self._kept[key_of(section)] if section is not None else None


def with_copies_made_here(able: Capabilities) -> Capabilities:
    """What a front can do with this service behind it, whose workers copy what they have answered: so both answers meet
    and are compared, which no front does. It is told of no mirrors."""
    return msgspec.structs.replace(able, mirrors=1, mirror_step=1, beside_split=True, pairs=True)


def takes_back(plan: RoutePlan, before: RoutePlan | None) -> bool:
    """Whether a plan only sends more to the version that both it and the one before call stable."""
    exposed = any(arm.role == CANDIDATE and arm.hi > arm.lo for arm in plan.arms) or plan.mirrors or plan.overrides
    return before is not None and before.stable == plan.stable and not exposed


def key_of(section: BackendSection) -> str:
    """Sections that say the same are one front."""
    return f"{section.kind} {section.model_dump_json()}"
