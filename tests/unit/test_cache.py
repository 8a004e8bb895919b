"""Answers that are kept: exact, bounded, gone with their version, and no evidence of anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from octoserve.core.admission import Admission, CacheLimits, TenantLimits, TenantRules
from octoserve.core.errors import DeadlineExceeded
from octoserve.core.evidence import BASELINE, CANDIDATE, STABLE
from octoserve.core.results import Ran, Result
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.slo import Slo, Slos
from octoserve.core.tensors import Tensor
from octoserve.dataplane import cache as cache_module
from octoserve.dataplane.cache import OVERHEAD, Caches
from octoserve.dataplane.endpoint import DataPlane
from octoserve.routing.plan import BUCKETS, MirrorTo, RoutePlan, split_arms
from octoserve.telemetry.metrics import Registry
from support.loops import FakeClock, InlineExecutor, drive, loop, ticks
from support.models import Asked, FakeModel, answer, floats, handle_of
from support.scale import scale

TTL = 60.0


class House:
    """A data plane that keeps the answers of `m`."""

    def __init__(self, bytes: int = 1 << 20, versions: int = 1, model: FakeModel | None = None, **more: Any) -> None:
        self.clock = FakeClock()
        self.registry = Registry()
        self.plane = DataPlane(
            self.registry,
            loop(),
            InlineExecutor(),
            Admission(caches={"m": CacheLimits(bytes, TTL)}, **more),
            clock=self.clock,
        )
        self.models = {version: model or FakeModel() for version in range(1, versions + 1)}
        self.handles = {v: handle_of(model, version=v, cached=True) for v, model in self.models.items()}
        for handle in self.handles.values():
            self.plane.publish(handle)
        self.route(RoutePlan.to("m", 1, 1))

    def route(self, plan: RoutePlan) -> None:
        self.plane.route([plan], {}, [("m", version) for version in self.models])

    def ask(self, rows: Any = None, **more: Any) -> Asked:
        tensor = rows if isinstance(rows, Tensor) else floats([[1.0, 2.0]] if rows is None else rows)
        call = Asked([tensor], **more)
        self.plane.submit(call)
        drive(ticks())
        assert call.answers == 1
        return call

    @property
    def runs(self) -> int:
        return sum(len(model.batches) for model in self.models.values())

    def metric(self, name: str) -> dict[tuple[str, ...], float]:
        [family] = [family for family in self.registry.families() if family.name == name]
        return {sample.labels: sample.total for sample in family.samples if sample.total}


def raws(call: Asked) -> list[bytes]:
    assert call.result is not None
    return [call.result.raw(i) for i in range(2)]


# --- exact ------------------------------------------------------------------------------------------------


def test_the_same_again_is_a_hit_with_the_same_bytes() -> None:
    house = House()
    first, second = house.ask(), house.ask()
    assert (first.cache, second.cache, house.runs) == ("miss", "hit", 1)
    assert raws(first) == raws(second)
    assert second.result is not None
    assert (second.result.ran.model, second.result.ran.version) == ("m", 1)
    assert house.metric("octoserve_cache_requests_total") == {("m", "miss"): 1, ("m", "hit"): 1}
    assert house.metric("octoserve_cache_bytes") == {("m",): OVERHEAD + 8 + 8}


def test_a_kept_row_is_its_own_and_not_its_batchs() -> None:
    house = House()
    calls = [Asked([floats([[float(i)]])]) for i in range(5)]
    for call in calls:
        house.plane.submit(call)
    drive(ticks())
    assert house.models[1].batches == [5]
    for i, call in enumerate(calls):
        again = house.ask([[float(i)]])
        assert again.cache == "hit"
        assert raws(again) == raws(call)
    assert house.metric("octoserve_cache_bytes") == {("m",): 5 * (OVERHEAD + 4 + 8)}


def test_shapes_belong_to_the_key() -> None:
    house = House()
    flat, tall, wide = [[1, 2, 3, 4]], [[1], [2], [3], [4]], [[1, 2], [3, 4]]
    for rows in (flat, tall, wide):
        assert house.ask(rows).cache == "miss"
    for rows in (flat, tall, wide):
        call = house.ask(rows)
        assert call.cache == "hit"
        assert call.rows_of(0).tolist() == answer(np.array(rows, dtype=np.float32))[0].tolist()


def test_raw_bytes_and_arrays_are_one_key_and_outputs_are_none() -> None:
    house = House()
    house.ask([[1.0, 2.0]])
    array = Tensor.of("x", np.array([[1.0, 2.0]], dtype=np.float32))
    assert house.ask(array).cache == "hit"
    assert house.ask(outputs=["row_sum"]).cache == "hit"
    assert house.ask(outputs=["nothing"]).error is not None


def test_texts_are_kept_apart() -> None:
    signature = Signature([TensorSpec("x", "BYTES", (-1, 2))], [TensorSpec("y", "BYTES", (-1, 2))], True)
    house = House(model=FakeModel(signature, lambda x: [x]))
    for texts in ([b"ab", b"c"], [b"a", b"bc"], [b"", b"abc"]):
        cells = np.array([texts], dtype=object)
        raw = Tensor("x", "BYTES", (1, 2), Tensor.of("x", cells).bytes())
        assert house.ask(Tensor.of("x", cells)).cache == "miss"
        call = house.ask(raw)
        assert call.cache == "hit"
        assert call.rows_of().tolist() == [texts]


def test_inputs_in_another_order_are_the_same_request() -> None:
    signature = Signature(
        [TensorSpec("a", "FP32", (-1, 1)), TensorSpec("b", "FP32", (-1, 1))], [TensorSpec("y", "FP32", (-1, 1))], True
    )
    house = House(model=FakeModel(signature, lambda a, b: [a - b]))
    for order, outcome in ((("a", 1), ("b", 2)), "miss"), ((("b", 2), ("a", 1)), "hit"), ((("a", 2), ("b", 1)), "miss"):
        call = Asked([floats([[value]], name) for name, value in order])
        house.plane.submit(call)
        drive(ticks())
        assert call.cache == outcome


def test_nothing_is_kept_where_nobody_asked_for_it() -> None:
    house = House()
    other = FakeModel()
    house.plane.publish(handle_of(other, "other", cached=True))
    house.plane.publish(handle_of(other, "m", 9))  # a version that must not be
    house.plane.route([], {}, [("other", 1), ("m", 1), ("m", 9)])
    for model, version in (("other", "1"), ("m", "9")):
        assert [house.ask(model=model, version=version).cache for _ in range(2)] == ["", ""]
    assert len(other.batches) == 4


def test_a_failure_is_not_kept() -> None:
    house = House()
    house.models[1].poison = {5.0}
    for _ in range(2):
        assert house.ask([[5.0]]).error is not None
    assert house.metric("octoserve_cache_requests_total") == {("m", "miss"): 2}
    house.models[1].poison = set()
    assert house.ask([[5.0]]).cache == "miss"
    assert house.ask([[5.0]]).cache == "hit"


# --- bounded ----------------------------------------------------------------------------------------------


def test_an_answer_grows_old() -> None:
    house = House()
    house.ask()
    house.clock.advance(TTL - 0.1)
    assert house.ask().cache == "hit"
    house.clock.advance(0.2)
    assert house.ask().cache == "miss", "a hit does not make it younger"
    assert house.metric("octoserve_cache_evictions_total") == {("m", "age"): 1}


def test_what_was_used_least_recently_goes() -> None:
    house = House(bytes=2 * (OVERHEAD + 12))
    house.ask([[1]]), house.ask([[2]])
    assert house.ask([[1]]).cache == "hit"
    house.ask([[3]])
    assert [house.ask([[i]]).cache for i in (1, 3, 2)] == ["hit", "hit", "miss"]
    assert house.metric("octoserve_cache_evictions_total") == {("m", "room"): 2}


def test_what_is_larger_than_the_room_is_not_kept() -> None:
    house = House(bytes=OVERHEAD + 100)
    house.ask([[1]])
    big = [[0.5] * 40]
    assert [house.ask(big).cache for _ in range(2)] == ["miss", "miss"]
    assert house.ask([[1]]).cache == "hit"


def test_what_takes_long_to_hash_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "LARGEST", 8)
    house = House()
    assert [house.ask([[1, 2]]).cache for _ in range(2)] == ["miss", "hit"]
    assert [house.ask([[1, 2, 3]]).cache for _ in range(2)] == ["", ""]


def test_an_answer_that_cannot_be_kept_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module.Cache, "keep", lambda *_: 1 / 0)
    house = House()
    assert [house.ask([[1]]).cache for _ in range(2)] == ["miss", "miss"]


class Room(RuleBasedStateMachine):
    """A cache against a dictionary that forgets nothing: never a wrong answer, never an old one, never too much."""

    limit = 4 * OVERHEAD

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.cache = Caches(Registry()).cache_of("m", CacheLimits(self.limit, 10.0), self.clock)
        self.kept = [self.cache.opened() for _ in range(3)]
        self.model: dict[tuple[int, int], tuple[float, float]] = {}

    keys = st.tuples(st.integers(0, 2), st.integers(0, 4))

    @rule(key=keys, value=st.floats(0, 9), size=st.integers(1, 60))
    def keep(self, key: tuple[int, int], value: float, size: int) -> None:
        signature = Signature([], [TensorSpec("y", "FP64", (-1,))])
        result = Result(Ran("m", 1, signature, [np.full(size, value)]))
        self.cache.keep((key[0], 1, (), b"%d" % key[1]), result)
        self.model[key] = (self.clock.now + 10.0, value)

    @rule(key=keys)
    def find(self, key: tuple[int, int]) -> None:
        entry = self.cache.find((key[0], 1, (), b"%d" % key[1]))
        if entry is not None:
            until, value = self.model[key]
            assert self.clock.now < until
            assert set(entry.arrays[0].tolist()) == {value}

    @rule(seconds=st.floats(0, 6))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(owner=st.integers(0, 2))
    def leave(self, owner: int) -> None:
        self.cache.leave(owner)
        assert not any(key[0] == owner for key in self.cache._entries)

    @invariant()
    def bounded(self) -> None:
        entries = self.cache._entries.values()
        assert self.cache.size == sum(entry.size for entry in entries) <= self.limit


TestRoom = Room.TestCase
TestRoom.settings = settings(stateful_step_count=30, max_examples=scale(25, 500), deadline=None)


# --- versions ---------------------------------------------------------------------------------------------


def test_a_version_that_leaves_takes_its_answers_along() -> None:
    house = House()
    house.ask()
    house.plane.retire(house.handles[1])
    assert house.metric("octoserve_cache_bytes") == {}
    again = handle_of(house.models[1], cached=True)
    house.plane.publish(again)
    assert house.ask().cache == "miss", "the same version, loaded again"
    house.plane.publish(handle_of(house.models[1], cached=True))
    assert house.ask().cache == "miss", "and replaced"
    assert house.metric("octoserve_cache_bytes") == {("m",): OVERHEAD + 16}


def test_what_is_computed_for_a_version_that_has_left_is_not_kept() -> None:
    house = House()
    call = Asked([floats([[1.0]])])
    house.plane.submit(call)
    house.plane.retire(house.handles[1])
    drive(ticks())
    assert call.cache == "miss"
    assert call.error is None
    assert house.metric("octoserve_cache_bytes") == {}


def test_versions_have_answers_of_their_own() -> None:
    house = House(versions=2)
    assert [house.ask(version=v).cache for v in ("1", "2", "1", "2")] == ["miss", "miss", "hit", "hit"]
    assert [call.result.ran.version for v in ("1", "2") if (call := house.ask(version=v)).result] == [1, 2]
    house.route(RoutePlan.to("m", 2, 2))
    switched = house.ask()
    assert switched.cache == "hit"
    assert switched.result is not None
    assert switched.result.ran.version == 2


# --- evidence ---------------------------------------------------------------------------------------------


def splitting(house: House, weight: int, baseline: bool) -> None:
    house.route(RoutePlan("m", 5, split_arms(1, 2, weight, baseline), seed="s", stratum="r/0"))


def test_a_hit_is_assigned_and_no_evidence() -> None:
    house = House(versions=2)
    splitting(house, BUCKETS // 2, baseline=False)
    calls = [house.ask() for _ in range(200)]
    [seen] = house.plane.splits.seen()
    arms = {role: seen.evidence.arms[role][""] for role in (STABLE, CANDIDATE)}
    assert {call.cache for call in calls} == {"hit", "miss"}
    assert sum(arm.assigned for arm in arms.values()) == 200
    assert arms[CANDIDATE].assigned > 50
    assert {role: arm.attempts for role, arm in arms.items()} == {STABLE: 1, CANDIDATE: 1}
    assert house.runs == 2


def test_a_baseline_is_as_cold_as_its_candidate() -> None:
    house = House(versions=2)
    assert [house.ask().cache for _ in range(2)] == ["miss", "hit"]
    splitting(house, BUCKETS // 2, baseline=True)
    for _ in range(100):
        house.ask()
    [seen] = house.plane.splits.seen()
    attempts = {role: arm[""].attempts for role, arm in seen.evidence.arms.items()}
    assert (attempts[BASELINE], attempts[CANDIDATE]) == (1, 1), "each computes it once, though stable has it"
    assert house.runs == 3


def test_a_mirror_gets_what_was_computed() -> None:
    house = House(versions=2)
    plan = RoutePlan.to("m", 1, 1)
    house.route(RoutePlan("m", 5, plan.arms, seed="s", stratum="r/0", mirrors=(MirrorTo(2, BUCKETS, 0),)))
    split = house.plane.splits.by_endpoint["m"]
    offered: list[Any] = []

    class Spy:
        def offer(self, call: Asked, seconds: float) -> None:
            offered.append(call)

    split.mirror = Spy()  # type: ignore[assignment]
    calls = [house.ask() for _ in range(3)]
    assert offered == calls[:1]


# --- the rest of the way ----------------------------------------------------------------------------------


def test_hits_are_answers_in_the_counts() -> None:
    rules = TenantRules("parameter:tenant", TenantLimits(concurrency=1))
    house = House(slos=Slos(default=Slo(latency=1.0)), tenants=rules)
    for _ in range(3):
        assert house.ask().error is None
    [(_, _, statistics)] = house.plane.statistics("m")
    assert (statistics.successes, statistics.hits, statistics.executions) == (3, 2, 1)
    assert house.metric("octoserve_slo_good_total") == {("m", "latency"): 3}
    assert house.metric("octoserve_tenant_in_flight") == {}


def test_a_deadline_that_has_passed_is_not_looked_up() -> None:
    house = House()
    house.ask()
    assert isinstance(house.ask(deadline=house.clock.now - 1).error, DeadlineExceeded)


def test_a_hit_leaves_what_is_kept_as_it_was() -> None:
    house = House()
    house.ask()
    for _ in range(3):
        hit = house.ask()
        assert hit.result is not None
        hit.result.text(0)
        hit.result.raw(0)
    assert house.metric("octoserve_cache_bytes") == {("m",): OVERHEAD + 16}, "no encoder's work is kept uncounted"
