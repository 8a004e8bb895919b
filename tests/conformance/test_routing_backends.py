"""What every routing backend promises, over each of them: octoserve's own pick, and the real Envoy."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter

import pytest

from octoserve.core.errors import SettingsError, Unavailable
from octoserve.core.evidence import BASELINE, CANDIDATE, STABLE
from octoserve.routing.backends.in_process import InProcessBackend
from octoserve.routing.backends.protocol import RoutingBackend
from octoserve.routing.plan import BUCKETS, OVERRIDE, RoutePlan, split_arms
from octoserve.routing.split import arm_of, bucket_of, pick
from support.loops import drive
from support.routing_rigs import ENDPOINT, EnvoyRig, InProcessRig, Rig, canary, keys, needs_envoy
from support.scale import scale


@pytest.fixture(params=["in_process", pytest.param("envoy", marks=needs_envoy)])
def rig(request: pytest.FixtureRequest) -> Rig:
    if request.param == "in_process":
        return InProcessRig()
    found: EnvoyRig = request.getfixturevalue("envoy")
    return found


def test_it_is_a_backend(rig: Rig) -> None:
    assert isinstance(rig.backend, RoutingBackend)
    assert rig.backend.capabilities().backend


def test_every_key_goes_where_the_pick_says(rig: Rig) -> None:
    plan = canary(rig, 2_000, baseline=True)
    drive(rig.backend.apply(plan))
    wrong = []
    for key in keys(scale(2_000, 10_000)):
        arm = arm_of(plan, bucket_of(plan.seed, key))
        if rig.ask(key) != (arm.role, arm.version):
            wrong.append(key)
    assert wrong == []


def test_a_seed_may_have_any_printable_characters(rig: Rig) -> None:
    plan = canary(rig, 5_000, seed=r"a\1 %REQ(x)% é")
    drive(rig.backend.apply(plan))
    assert [rig.ask(key)[1] for key in keys(200)] == [pick(plan, key) for key in keys(200)]


def test_a_candidate_that_grows_keeps_every_key(rig: Rig) -> None:
    asked = keys(scale(400, 10_000))
    had: set[bytes] = set()
    for weight in (100, 500, 1_000, 2_500, 5_000, 10_000):
        drive(rig.backend.apply(canary(rig, weight, baseline=True)))
        has = {key for key in asked if rig.ask(key)[0] == CANDIDATE}
        assert had <= has
        share = weight / BUCKETS
        assert abs(len(has) / len(asked) - share) <= 5 * math.sqrt(share * (1 - share) / len(asked))
        had = has
    assert had == set(asked)


def test_a_request_without_a_key_is_drawn_each_time(rig: Rig) -> None:
    drive(rig.backend.apply(canary(rig, 2_500)))
    count = scale(600, 20_000)
    drawn = Counter(rig.ask()[0] for _ in range(count))
    assert set(drawn) == {STABLE, CANDIDATE}
    assert abs(drawn[CANDIDATE] / count - 0.25) <= 5 * math.sqrt(0.25 * 0.75 / count)


def test_a_plan_without_a_key_is_drawn_each_time_though_a_key_comes(rig: Rig) -> None:
    drive(rig.backend.apply(RoutePlan(ENDPOINT, rig.next_generation(), split_arms(1, 2, 5_000), seed="r")))
    assert {rig.ask(b"always the same")[1] for _ in range(200)} == {1, 2}


def test_baseline_has_the_candidates_share_of_the_stable_version(rig: Rig) -> None:
    plan = canary(rig, 3_000, baseline=True)
    drive(rig.backend.apply(plan))
    roles = Counter(rig.ask(key) for key in keys(600))
    assert set(roles) == {(CANDIDATE, 2), (BASELINE, 1), (STABLE, 1)}


def test_overrides_come_before_the_split(rig: Rig) -> None:
    drive(rig.backend.apply(canary(rig, 0, overrides={"tester": 2, "Grüße, Jürgen": 3})))
    assert rig.ask(b"tester") == (OVERRIDE, 2)
    assert rig.ask("Grüße, Jürgen".encode()) == (OVERRIDE, 3)
    assert rig.ask(b"Tester") == (STABLE, 1)
    assert rig.ask() == (STABLE, 1)


def test_what_has_been_applied_is_in_effect(rig: Rig) -> None:
    for _ in range(20):
        for version in (2, 1):
            drive(rig.backend.apply(RoutePlan.to(ENDPOINT, version, rig.next_generation())))
            assert rig.ask() == (STABLE, version)


def test_what_is_in_force_is_observed(rig: Rig) -> None:
    plan = canary(rig, 1_000, baseline=True)
    drive(rig.backend.apply(plan))
    before = {(arm.version, arm.role): arm.requests for arm in drive(rig.backend.observe()).counts}
    asked = Counter(rig.ask(key) for key in keys(300))
    observed = drive(rig.backend.observe())
    assert observed.plans[ENDPOINT].generation == plan.generation
    assert observed.plans[ENDPOINT].arms == plan.arms
    counted = {(arm.version, arm.role): arm.requests for arm in observed.counts}
    for (role, version), number in asked.items():
        assert counted[version, role] - before.get((version, role), 0) == number


def test_an_arm_without_buckets_is_not_observed(rig: Rig) -> None:
    plan = canary(rig, 0)
    drive(rig.backend.apply(plan))
    assert drive(rig.backend.observe()).plans[ENDPOINT].arms == plan.arms[1:]


def test_an_older_plan_is_refused_and_the_same_one_is_not(rig: Rig) -> None:
    first, second = canary(rig, 1_000), canary(rig, 2_000)
    drive(rig.backend.apply(second))
    drive(rig.backend.apply(second))
    with pytest.raises(SettingsError, match="generation"):
        drive(rig.backend.apply(first))
    with pytest.raises(SettingsError, match="generation"):
        drive(rig.backend.apply(RoutePlan.to(ENDPOINT, 1, second.generation)))
    assert drive(rig.backend.observe()).plans[ENDPOINT].arms == second.arms


def test_drain_waits_for_what_is_in_flight(rig: Rig) -> None:
    drive(rig.backend.apply(RoutePlan.to(ENDPOINT, 2, rig.next_generation())))
    rig.hold(2)
    drive(rig.backend.apply(RoutePlan.to(ENDPOINT, 1, rig.next_generation())))
    assert drive(rig.backend.drain(ENDPOINT, 2, time.monotonic() + 0.05)) == 1

    async def both() -> tuple[int, float]:
        start = time.monotonic()
        waiting = asyncio.create_task(rig.backend.drain(ENDPOINT, 2, start + 10))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await asyncio.to_thread(rig.let_go, 2)
        return await waiting, time.monotonic() - start

    left, took = drive(both())
    assert left == 0
    assert took < 5
    assert drive(rig.backend.drain(ENDPOINT, 3, time.monotonic() + 5)) == 0


# --- what only one of them can get wrong -------------------------------------------------------------------


def test_workers_that_do_not_acknowledge() -> None:
    async def never(generation: int) -> None:
        await asyncio.Event().wait()

    backend = InProcessBackend(lambda plan: None, never, lambda *_: 0, timeout=0.01)
    with pytest.raises(Unavailable, match="generation 4"):
        drive(backend.apply(RoutePlan.to(ENDPOINT, 1, 4)))
    assert drive(backend.observe()).plans == {}
