"""Who stands in front of the workers follows their plans: in which order, what is waited for, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from octoserve.control.rollout.values import Course, Phase, Rollout, Step
from octoserve.control.snapshot import Aspired
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.patterns.online.supervisor.route_backend import ASK_EVERY, RouteBackends, key_of, takes_back
from octoserve.routing.backends.protocol import Capabilities, InForce, Observed
from octoserve.routing.plan import BUCKETS, MirrorTo, RoutePlan, split_arms
from octoserve.spec import BackendSection
from support.loops import FakeClock, drive

SECTION = BackendSection(kind="envoy", start=True)
COURSE = Course(strategy="canary", steps=(Step(weight=1000),), backend="envoy")
ROLLOUT = Rollout(id="r", endpoint="m", stable=1, candidate=2, course=COURSE, phase=Phase.RUNNING)


class Room:
    """A control room whose workers follow when they are told to."""

    def __init__(self) -> None:
        self.current = Aspired()
        self.follow = True

    def all_follow(self) -> bool:
        return self.follow

    def wants(self, *plans: RoutePlan) -> None:
        self.current = structs.replace(self.current, plans=plans)


class Front:
    """A front that does as it is told, or not."""

    address = "127.0.0.1:8090"

    def __init__(self) -> None:
        self.backend = self
        self.routes: dict[str, RoutePlan] = {}
        self.applied: list[RoutePlan] = []
        self.down = ""
        self.refuses = ""
        self.kept = 0
        self.left = False

    def capabilities(self) -> Capabilities:
        return Capabilities(backend="Envoy", keys=("header",), baseline=True)

    async def apply(self, plan: RoutePlan) -> None:
        if self.refuses:
            raise SettingsError(self.refuses)
        if self.down:
            raise Unavailable(self.down)
        self.applied.append(plan)
        self.routes[plan.endpoint] = plan

    async def observe(self) -> Observed:
        if self.down:
            raise Unavailable(self.down)
        return Observed(plans={name: InForce(plan.generation, plan.arms) for name, plan in self.routes.items()})

    async def drain(self, endpoint: str, version: int, deadline: float) -> int:
        return 0

    async def newest(self) -> int:
        return max((plan.generation for plan in self.routes.values()), default=0)

    async def keep(self) -> None:
        self.kept += 1

    async def leave(self, grace: float) -> None:
        self.left = True


class House:
    def __init__(self, sections: dict[str, BackendSection] | None = None) -> None:
        self.room, self.front, self.clock = Room(), Front(), FakeClock()
        self.changes = 0
        self.sections = {"m": SECTION} if sections is None else sections
        self.backends = RouteBackends(
            self.room, self.sections.get, {key_of(SECTION): self.front}, self._changed, self.clock
        )

    def _changed(self) -> None:
        self.changes += 1

    def step(self, seconds: float = 0.0) -> None:
        self.clock.now += seconds
        drive(self.backends.step())

    def behind(self, plan: RoutePlan, rollout: Rollout = ROLLOUT) -> str:
        return self.backends.behind(rollout, plan)


def canary(weight: int, generation: int, **more: Any) -> RoutePlan:
    return RoutePlan("m", generation, split_arms(1, 2, weight), seed="r", by_proxy=True, **more)


def test_workers_know_a_growing_share_first() -> None:
    house = House()
    plan = canary(1000, 2)
    house.room.wants(plan)
    house.room.follow = False
    house.step()
    assert house.front.applied == []
    assert house.behind(plan) == "Envoy"
    house.room.follow = True
    house.step()
    assert house.front.applied == [plan]
    assert house.behind(plan) == ""
    assert house.changes == 1
    house.step()
    assert house.front.applied == [plan], "once is enough"


def test_an_abort_waits_for_no_worker() -> None:
    house = House()
    house.room.wants(canary(5000, 2))
    house.step()
    house.room.follow = False
    abort = canary(0, 3)
    house.room.wants(abort)
    house.step()
    assert house.front.routes["m"] == abort


@pytest.mark.parametrize(
    ("plan", "before", "back"),
    [
        (canary(0, 3), canary(5000, 2), True),
        (canary(0, 3), canary(BUCKETS, 2), True),
        (canary(0, 3), None, False),
        (canary(100, 3), canary(5000, 2), False),
        (canary(0, 3, mirrors=(MirrorTo(2, 100),)), canary(5000, 2), False),
        (canary(0, 3, overrides={"tester": 2}), canary(5000, 2), False),
        (RoutePlan.to("m", 2, 3), canary(BUCKETS, 2), False),  # promoted: workers still call version 1 stable
        (RoutePlan.to("m", 1, 3), canary(BUCKETS, 2), True),
    ],
)
def test_what_takes_back(plan: RoutePlan, before: RoutePlan | None, back: bool) -> None:
    assert takes_back(plan, before) is back


def test_a_front_that_is_down_is_named_and_asked_again() -> None:
    house = House()
    plan = canary(1000, 2)
    house.room.wants(plan)
    house.step()
    house.front.down = "its admin does not answer"
    house.step(ASK_EVERY)
    assert house.behind(plan) == "Envoy (its admin does not answer)"
    assert house.changes == 2
    house.front.down = ""
    house.step(ASK_EVERY)
    assert house.behind(plan) == ""
    assert house.front.kept == 3
    assert house.changes == 3


def test_a_front_that_came_back_with_other_routes_gets_its_plan_again() -> None:
    house = House()
    plan = canary(1000, 7)
    house.room.wants(plan)
    house.step()
    house.front.routes.clear()
    house.step(ASK_EVERY)
    assert house.behind(plan) == "Envoy"
    house.step()
    assert house.front.applied == [plan, plan]
    assert house.behind(plan) == ""


def test_what_it_refuses_is_said_and_not_followed() -> None:
    house = House()
    plan = canary(1000, 2)
    house.room.wants(plan)
    house.front.refuses = "no such version"
    house.step()
    assert house.behind(plan) == "Envoy (no such version)"
    assert not house.backends.settled()
    house.front.refuses = ""
    house.step()
    assert house.behind(plan) == ""
    assert house.backends.settled()


def test_a_course_that_asks_too_much_is_refused() -> None:
    house = House()
    house.backends.refuse_unless_able("m", COURSE)
    with pytest.raises(SettingsError, match="header:NAME only"):
        house.backends.refuse_unless_able("m", structs.replace(COURSE, key="input:customer"))
    house.backends.refuse_unless_able("other", structs.replace(COURSE, key="input:customer"))
    assert (house.backends.kind_of("m"), house.backends.kind_of("other")) == ("envoy", "in-process")


def test_a_rollout_whose_backend_is_not_in_the_spec_any_more_stands_still_but_can_be_aborted() -> None:
    house = House(sections={})
    plan = canary(1000, 2)
    house.room.wants(plan)
    house.step()
    assert "the spec now says in-process" in house.behind(plan)
    assert house.front.applied == []
    assert house.behind(canary(0, 3), structs.replace(ROLLOUT, phase=Phase.ABORTING)) == ""


def test_times_are_counted_from_the_plan_to_its_confirmation() -> None:
    house = House()
    house.room.wants(canary(1000, 2))
    house.room.follow = False
    house.step()
    house.room.follow = True
    house.step(0.5)
    [view] = house.backends.view()
    assert view["took"] == {"changes": 1, "p50": 0.5, "p99": 0.5}
    assert (view["name"], view["address"], view["problems"]) == ("Envoy", "127.0.0.1:8090", {})


def test_the_next_generation_is_higher_than_any_that_a_front_has_seen() -> None:
    house = House()
    house.front.routes["m"] = canary(100, 41)
    assert drive(house.backends.newest()) == 41


def test_a_service_that_ends_takes_its_front_along_and_brings_it_nothing_more() -> None:
    house = House()
    drive(house.backends.leave(1.0))
    assert house.front.left
    house.room.wants(canary(1000, 2))
    house.step()
    assert house.front.applied == []
    assert house.front.kept == 0
