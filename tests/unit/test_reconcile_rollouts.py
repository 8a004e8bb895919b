"""What rollouts ask of the data plane, and what the trusted and refused versions mean, as plans."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.control.policy import parse
from octoserve.control.reconcile import carries, reconcile
from octoserve.control.rollout.machine import start, wish_of
from octoserve.control.rollout.values import Course, Endpoint, Phase, Result, Rollout, Step
from octoserve.control.snapshot import Aspired, ModelWishes, Snapshot, WorkerView
from octoserve.lifecycle.states import State, VersionReport
from octoserve.repository.layout import DiskState, VersionOnDisk
from octoserve.routing.plan import BUCKETS, RoutePlan

M = "fraud"
COURSE = Course(strategy="canary", steps=(Step(weight=1000), Step(weight=5000)), key="header:x", baseline=True)


class House:
    """Two versions on disk, two workers; the rollout's record is set by hand."""

    def __init__(self, *versions: int, on_new_version: str = "rollout", endpoint: Endpoint | None = None) -> None:
        self.versions = list(versions)
        self.ready = {0: set(versions), 1: set(versions)}
        self.failed: set[int] = set()
        self.generations = [0, 0]
        self.current = Aspired(generation=1)
        self.rollout: Rollout | None = None
        self.endpoint = endpoint
        self.wishes = ModelWishes(policy=parse("latest:1"), on_new_version=on_new_version)

    def step(self, times: int = 3) -> RoutePlan | None:
        for _ in range(times):
            self.current = reconcile(self.snapshot())
            self.generations = [self.current.generation] * 2
        return next((p for p in self.current.plans if p.endpoint == M), None)

    def snapshot(self) -> Snapshot:
        disk = tuple(
            VersionOnDisk(model=M, version=v, path="", state=DiskState.WHOLE, digest="d", runtime="onnx")
            for v in self.versions
        )
        held = {ref.version for ref in self.current.versions}
        failed = {(M, v): VersionReport(M, v, State.FAILED, reason="broken") for v in self.failed & held}
        workers = tuple(
            WorkerView(
                index=i,
                generation=self.generations[i],
                reports={(M, v): VersionReport(M, v, State.READY) for v in self.ready[i] & held} | failed,
            )
            for i in (0, 1)
        )
        more: dict[str, Any] = {}
        if self.rollout is not None and self.rollout.phase is not Phase.ENDED:
            more["rollouts"] = {M: wish_of(self.rollout)}
        if self.endpoint is not None:
            more["endpoints"] = {M: self.endpoint}
        return Snapshot(disk={M: disk}, workers=workers, current=self.current, default=self.wishes, **more)

    def begin(self, phase: Phase = Phase.RUNNING, step: int = 0, **more: Any) -> None:
        made = start(M, 1, 2, COURSE, "r1", 0.0)
        self.rollout = msgspec.structs.replace(made, phase=phase, step=step, **more)

    @property
    def held(self) -> set[int]:
        return {ref.version for ref in self.current.versions}


def running() -> House:
    house = House(1, endpoint=Endpoint(name=M, stable=1))
    house.step()
    house.versions.append(2)
    house.ready[0].add(2)
    house.ready[1].add(2)
    house.begin()
    house.step()
    return house


def weight_of(plan: RoutePlan | None) -> int:
    assert plan is not None
    return sum(arm.hi - arm.lo for arm in plan.arms if arm.version == 2)


@pytest.mark.parametrize("policy", ["hold", "rollout"])
def test_a_new_version_waits_loaded_and_unrouted(policy: str) -> None:
    house = House(1, 2, on_new_version=policy, endpoint=Endpoint(name=M, stable=1))
    plan = house.step()
    assert plan is not None
    assert plan.stable == 1
    assert weight_of(plan) == 0
    assert house.held == {1, 2}


def test_without_a_record_the_newest_is_taken_whatever_the_policy() -> None:
    plan = House(1, 2, on_new_version="hold").step()
    assert plan is not None
    assert plan.stable == 2


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.RUNNING, Phase.PROMOTING, Phase.RETAINING])
def test_where_the_records_are_lost_the_candidate_gets_nothing(phase: Phase) -> None:
    """The database of rollouts was removed while one ran, and a new supervisor knows only the plan in force."""
    house = running()
    house.begin(phase=phase)
    house.step()
    house.rollout, house.endpoint = None, None
    plan = house.step()
    assert plan is not None
    assert (plan.stable, weight_of(plan), plan.mirrors) == (1, 0, ())
    assert 1 in house.held


def test_the_plan_is_what_the_record_asks_for() -> None:
    house = running()
    [plan] = house.current.plans
    assert house.rollout is not None
    assert carries(plan, wish_of(house.rollout))
    assert [(a.version, a.hi - a.lo, a.role) for a in plan.arms] == [
        (2, 1000, "candidate"),
        (1, 1000, "baseline"),
        (1, 8000, "stable"),
    ]
    assert (plan.key, plan.seed, plan.stratum) == ("header:x", "r1", "r1/0")


def test_a_weight_grows_only_once_the_candidate_is_ready_everywhere_it_serves() -> None:
    house = House(1, endpoint=Endpoint(name=M, stable=1))
    house.step()
    house.versions.append(2)
    house.ready[0].add(2)
    house.begin()
    assert weight_of(house.step()) == 0
    house.ready[1].add(2)
    assert weight_of(house.step()) == 1000


def test_abort_needs_no_more_than_the_stable_version() -> None:
    house = running()
    house.begin(Phase.ABORTING, result=Result.ABORTED)
    house.ready[0].discard(2)
    assert weight_of(house.step(1)) == 0
    assert 2 in house.held, "workers may still route to it"


def test_a_refused_candidate_does_not_come_back_by_itself() -> None:
    for policy in ("switch", "hold", "rollout"):
        house = House(1, 2, on_new_version=policy, endpoint=Endpoint(name=M, stable=1, refused=(2,)))
        plan = house.step()
        assert plan is not None
        assert plan.stable == 1
        house.versions.append(3)
        house.ready[0].add(3)
        house.ready[1].add(3)
        plan = house.step()
        assert plan is not None
        assert plan.stable == (3 if policy == "switch" else 1)


def test_promoted_and_ended_leaves_one_plain_arm() -> None:
    house = running()
    house.begin(Phase.ENDED, result=Result.PROMOTED)
    house.endpoint = Endpoint(name=M, stable=2)
    plan = house.step()
    assert plan is not None
    assert (len(plan.arms), plan.stable, plan.seed) == (1, 2, "")
    assert house.held == {2}


def test_the_stable_version_is_kept_while_the_candidate_has_everything() -> None:
    house = running()
    house.begin(Phase.RETAINING)
    plan = house.step()
    assert plan is not None
    assert (weight_of(plan), plan.stable) == (BUCKETS, 1)
    assert house.held == {1, 2}


@given(st.lists(st.tuples(st.sampled_from(list(Phase)), st.integers(0, 1), st.booleans(), st.booleans()), max_size=12))
def test_no_plan_ever_names_a_version_that_some_serving_worker_lacks(
    moves: list[tuple[Phase, int, bool, bool]],
) -> None:
    """Whatever the records and the workers do: who would answer is ready, or the plan did not change."""
    house = running()
    for phase, step, first, second in moves:
        house.begin(phase, step)
        for index, ready in ((0, first), (1, second)):
            (house.ready[index].add if ready else house.ready[index].discard)(2)
        before = house.current.plans
        plan = house.step(1)
        assert plan is not None, "the stable version always answers"
        if house.current.plans != before and weight_of(plan):
            assert all(2 in house.ready[index] for index in (0, 1))


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.RUNNING, Phase.ABORTING])
@pytest.mark.parametrize("policy", ["switch", "rollout"])
def test_a_candidate_that_is_up_before_the_stable_version_answers_nobody(policy: str, phase: Phase) -> None:
    """After a start of the whole service: the newest version loads first."""
    house = House(1, 2, on_new_version=policy, endpoint=Endpoint(name=M, stable=1))
    house.begin(phase)
    house.ready = {0: {2}, 1: {2}}
    assert house.step() is None
    house.ready = {0: {1, 2}, 1: {1, 2}}
    assert weight_of(house.step()) == (1000 if phase is Phase.RUNNING else 0)


def test_a_refused_version_that_is_up_first_answers_only_if_no_other_one_can() -> None:
    house = House(1, 2, on_new_version="switch", endpoint=Endpoint(name=M, stable=1, refused=(2,)))
    house.ready = {0: {2}, 1: {2}}
    assert house.step() is None
    house.failed = {1}
    assert weight_of(house.step()) == BUCKETS


def test_a_candidate_answers_under_switch_where_the_stable_version_cannot_be_loaded() -> None:
    house = House(1, 2, on_new_version="switch", endpoint=Endpoint(name=M, stable=1))
    house.begin()
    house.ready, house.failed = {0: {2}, 1: {2}}, {1}
    assert weight_of(house.step()) == BUCKETS


@pytest.mark.parametrize("policy", ["switch", "hold"])
def test_a_model_whose_files_are_all_gone_is_unloaded_whoever_was_trusted(policy: str) -> None:
    house = House(1, on_new_version=policy, endpoint=Endpoint(name=M, stable=1))
    assert house.step() is not None
    house.versions.clear()
    assert house.step() is None
    assert house.held == set()
    settled = house.current
    house.step()
    assert house.current is settled
