"""A split as requests meet it: the arm is bound once, counted exactly, and a broken candidate is cut at once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from octoserve.core.errors import InvalidInput, OctoserveError
from octoserve.core.evidence import ALL, ArmEvidence
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Tensor
from octoserve.dataplane.breaker import Recent, should_cut
from octoserve.dataplane.endpoint import DataPlane
from octoserve.dataplane.exposure import FRESH
from octoserve.routing.plan import BUCKETS, MirrorTo, RoutePlan, split_arms
from octoserve.routing.split import arm_of, bucket_of, pick
from octoserve.telemetry.metrics import Registry
from support.loops import FakeClock, InlineExecutor, ManualExecutor, drive, loop, ticks
from support.models import Asked, FakeModel, floats, handle_of

KNOWN = [("m", 1), ("m", 2)]
WINDOW, FAILURES = 20, 10


def times(factor: float) -> FakeModel:
    signature = Signature([TensorSpec("x", "FP32", (-1, -1))], [TensorSpec("y", "FP32", (-1, -1))], True)
    return FakeModel(signature, lambda x: [x * np.float32(factor)])


class House:
    """A data plane with a stable and a candidate version of `m`."""

    def __init__(self, executor: Any = None) -> None:
        self.clock = FakeClock()
        self.registry = Registry()
        self.plane = DataPlane(self.registry, loop(), executor or InlineExecutor(), clock=self.clock)
        self.models = {1: times(1), 2: times(2)}
        for version, model in self.models.items():
            self.plane.publish(handle_of(model, version=version))

    def route(self, weight: int, **more: Any) -> RoutePlan:
        baseline = more.pop("baseline", False)
        plan = RoutePlan("m", 5, split_arms(1, 2, weight, baseline), **{"seed": "s", "stratum": "r/0", **more})
        self.plane.route([plan], {}, KNOWN)
        return plan

    def ask(self, *calls: Asked) -> list[Asked]:
        for call in calls:
            self.plane.submit(call)
        drive(ticks(8 + len(calls) // 32))
        return list(calls)

    def evidence(self, role: str, segment: str = ALL) -> ArmEvidence:
        [seen] = self.plane.splits.seen()
        return seen.evidence.arms.get(role, {}).get(segment, ArmEvidence())

    @property
    def cut(self) -> str:
        [seen] = self.plane.splits.seen()
        return seen.cut


class Keyed(Asked):
    """A call with headers and parameters, as doors have them."""

    def __init__(self, headers: dict[str, str] | None = None, parameters: dict[str, Any] | None = None) -> None:
        super().__init__([floats([[1.0]])])
        self.headers, self.parameters = headers or {}, parameters or {}

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    def parameter(self, name: str) -> object:
        return self.parameters.get(name)


def version_of(call: Asked) -> int:
    return int(call.rows_of()[0, 0])


def test_assignment_is_the_pure_picks() -> None:
    house = House()
    plan = house.route(3000, key="header:x-user", baseline=True)
    calls = house.ask(*(Keyed({"x-user": f"u{i}"}) for i in range(300)))
    assert [version_of(c) for c in calls] == [pick(plan, b"u%d" % i) for i in range(300)]


@pytest.mark.parametrize(
    ("key", "call", "want"),
    [
        ("header:x-user", Keyed({"x-user": "é"}), "é".encode("latin-1")),
        ("header:X-User", Keyed({"x-user": ""}), b""),
        ("parameter:customer", Keyed(parameters={"customer": 12}), b"12"),
        ("parameter:customer", Keyed(parameters={"customer": True}), b"true"),
        ("parameter:customer", Keyed(parameters={"customer": "é"}), "é".encode()),
    ],
)
def test_where_keys_come_from(key: str, call: Asked, want: bytes) -> None:
    bucket = bucket_of("s", want)
    for weight, version in ((bucket, 1), (bucket + 1, 2)):
        house = House()
        house.route(weight, key=key)
        call.answers = 0
        assert version_of(house.ask(call)[0]) == version


def test_a_tensor_as_key_and_a_float_that_is_none() -> None:
    signature = Signature(
        [TensorSpec("x", "FP32", (-1, 1)), TensorSpec("id", "INT64", (-1, 1))], [TensorSpec("y", "FP32", (-1, 1))], True
    )
    house = House()
    for version in (1, 2):
        house.plane.publish(
            handle_of(FakeModel(signature, lambda x, _, v=version: [x * np.float32(v)]), version=version)
        )
    plan = house.route(5000, key="input:id")
    calls = [Asked([floats([[1.0]]), Tensor.of("id", np.array([[i]]))]) for i in range(100)]
    assert [version_of(c) for c in house.ask(*calls)] == [pick(plan, b"%d" % i) for i in range(100)]
    house.route(9000, key="input:x")
    calls = house.ask(*(Asked([floats([[1.0]]), Tensor.of("id", np.array([[1]]))]) for _ in range(20)))
    assert {version_of(call) for call in calls} == {1}, "a spec's mistake costs no client an answer"


def test_every_arm_is_counted_and_the_baseline_apart() -> None:
    house = House()
    house.route(2000, key="header:x-user", baseline=True)
    house.ask(*(Keyed({"x-user": str(i % 50)}) for i in range(1000)))
    buckets = Counter(min(bucket_of("s", b"%d" % (i % 50)) // 2000, 2) for i in range(1000))
    for role, place in (("candidate", 0), ("baseline", 1), ("stable", 2)):
        evidence = house.evidence(role)
        assert evidence.assigned == evidence.attempts == buckets[place], role
        assert sum(evidence.latency.values()) == max(0, buckets[place] - FRESH)
    [seen] = house.plane.splits.seen()
    assert seen.keys is not None
    assert len(seen.keys[1]) == 50


def test_segments_are_counted_beside_the_whole() -> None:
    house = House()
    house.route(BUCKETS // 2, segments=("header:x-country",))
    house.ask(*(Keyed({"x-country": "DE" if i % 4 else "FR"}) for i in range(200)), *(Keyed() for _ in range(10)))
    whole = sum(house.evidence(role).attempts for role in ("candidate", "stable"))
    germans = sum(house.evidence(role, "x-country=DE").attempts for role in ("candidate", "stable"))
    assert (whole, germans) == (210, 150)


def test_a_new_stratum_starts_from_nothing_and_old_requests_are_not_counted_in_it() -> None:
    executor = ManualExecutor()
    house = House(executor)
    house.route(BUCKETS)
    call = Keyed()
    house.ask(call)
    house.route(BUCKETS, stratum="r/1")
    executor.run_one()
    drive(ticks(8))
    assert call.answers == 1
    assert house.evidence("candidate") == ArmEvidence()


@pytest.mark.parametrize(("weight", "baseline"), [(1000, True), (1000, False), (6000, True)])
def test_no_request_is_lost_between_arms(weight: int, baseline: bool) -> None:
    house = House()
    house.route(weight, baseline=baseline)
    calls = house.ask(*(Keyed() for _ in range(500)))
    assert all(c.answers == 1 for c in calls)
    assert sum(house.evidence(role).assigned for role in ("candidate", "baseline", "stable")) == 500


def test_client_errors_do_not_count_against_a_version() -> None:
    house = House()
    house.route(BUCKETS)
    [call] = house.ask(Asked([floats([1.0])]))
    assert isinstance(call.error, InvalidInput)
    evidence = house.evidence("candidate")
    assert (evidence.assigned, evidence.attempts, evidence.failures) == (1, 0, 0)


def test_a_candidate_that_refuses_what_stable_takes_has_failed() -> None:
    house = House()
    narrow = Signature([TensorSpec("x", "FP32", (-1, 3))], [TensorSpec("y", "FP32", (-1, 3))], True)
    house.plane.publish(handle_of(FakeModel(narrow, lambda x: [x]), version=2))
    house.route(BUCKETS)
    [call] = house.ask(Keyed())
    assert isinstance(call.error, InvalidInput)
    assert house.evidence("candidate").failures == 1


def test_inputs_that_a_model_refuses_count_against_its_arm() -> None:
    house = House()
    for model in house.models.values():
        model.poison, model.error = {1.0}, lambda: InvalidInput("not these")
    house.route(5000)
    for _ in range(60):
        house.ask(Keyed())
    for role in ("candidate", "stable"):
        evidence = house.evidence(role)
        assert evidence.failures == evidence.attempts > 0
    assert house.cut == ""


def test_overrides_see_their_version_and_count_for_no_arm() -> None:
    house = House()
    house.route(0, key="header:x-user", overrides={"tester": 2})
    calls = house.ask(Keyed({"x-user": "tester"}), Keyed({"x-user": "someone"}))
    assert [version_of(c) for c in calls] == [2, 1]
    assert house.evidence("candidate").attempts == 0
    assert house.evidence("override").attempts == 1


def drawn(role: str, version: int, stratum: str = "r/0", **more: str) -> Keyed:
    """A request as a proxy in front passes it on."""
    named = {"x-octoserve-arm": role, "x-octoserve-version": str(version), "x-octoserve-stratum": stratum}
    return Keyed({"x-octoserve-endpoint": "m", **named, **more})


def test_a_proxy_in_front_names_the_arm() -> None:
    house = House()
    house.route(2000, by_proxy=True, baseline=True)
    calls = house.ask(drawn("candidate", 2), drawn("baseline", 1), drawn("stable", 1), drawn("candidate", 2))
    assert [version_of(c) for c in calls] == [2, 1, 1, 2]
    counted = {role: house.evidence(role).attempts for role in ("candidate", "baseline", "stable", "unassigned")}
    assert counted == {"candidate": 2, "baseline": 1, "stable": 1, "unassigned": 0}


def test_what_no_proxy_has_drawn_by_this_plan_is_answered_and_counts_for_no_arm() -> None:
    house = House()
    house.route(5000, by_proxy=True)
    undrawn = [Keyed(), drawn("nobody", 2), drawn("candidate", 1), drawn("candidate", 3), drawn("override", 2)]
    assert {version_of(c) for c in house.ask(*undrawn)} == {1}
    former = house.ask(drawn("candidate", 2, "r/9"), drawn("stable", 1, ""))
    assert [version_of(c) for c in former] == [2, 1]
    assert house.evidence("unassigned").attempts == 7
    assert house.evidence("candidate").attempts == house.evidence("stable").attempts == 0


def test_what_another_endpoints_plan_has_drawn_is_stables() -> None:
    """A gRPC call that named no endpoint: the front has not read whom its message is for."""
    house = House()
    house.route(100, by_proxy=True)
    other = {"x-octoserve-endpoint": "other"}
    calls = house.ask(drawn("candidate", 2, **other), drawn("candidate", 2, "r/9", **other))
    assert [version_of(c) for c in calls] == [1, 1]
    assert house.evidence("unassigned").attempts == 2


def test_an_aborted_candidate_is_stables_whatever_a_proxy_still_says() -> None:
    house = House()
    house.route(5000, by_proxy=True, overrides={"tester": 2})
    assert [version_of(c) for c in house.ask(drawn("override", 2), drawn("candidate", 2))] == [2, 2]
    house.route(0, by_proxy=True, stratum="")
    late = [drawn("candidate", 2), drawn("override", 2), drawn("shadow", 2, **{"x-octoserve-shadow": "true"})]
    assert {version_of(c) for c in house.ask(*late)} == {1}


def test_a_copy_that_a_proxy_made_is_bound_and_counted_apart() -> None:
    house = House()
    plan = house.route(0, by_proxy=True, mirrors=(MirrorTo(2, 1000),))
    copy = {"x-octoserve-shadow": "true"}
    calls = house.ask(drawn("shadow", 2, **copy), drawn("stable", 2, **copy), drawn("shadow", 9, **copy))
    assert [version_of(c) for c in calls] == [2, 2, 1]
    assert house.evidence("shadow").attempts == 2
    assert house.evidence("stable").attempts == 0
    assert house.plane.splits.by_endpoint["m"].mirror is None, "a copy is not copied"
    assert plan.by_proxy


def test_a_named_version_outranks_what_a_proxy_has_drawn() -> None:
    house = House()
    house.route(5000, by_proxy=True)
    call = drawn("candidate", 2)
    call.version = "1"
    assert version_of(house.ask(call)[0]) == 1


def test_keys_that_a_proxy_drew_are_sampled_as_those_drawn_here() -> None:
    samples = []
    for by_proxy in (False, True):
        house = House()
        plan = house.route(2000, by_proxy=by_proxy, baseline=True, key="header:x-user")
        for number in range(300):
            arm = arm_of(plan, bucket_of(plan.seed, b"u%d" % number))
            house.ask(drawn(arm.role, arm.version, **{"x-user": f"u{number}"}))
        house.ask(drawn("candidate", 2, "another", **{"x-user": "late"}))
        [seen] = house.plane.splits.seen()
        assert seen.keys is not None
        samples.append(dict(seen.keys[1]))
    extra = samples[0].items() - samples[1].items()
    assert len(samples[1]) == 300
    assert len(extra) == 1, "only the one that another plan had drawn"


def test_a_candidate_that_a_proxy_names_is_cut_too() -> None:
    house = House()
    house.models[2].poison = {1.0}
    house.route(5000, by_proxy=True, overrides={"tester": 2})
    calls = house.ask(*(drawn("candidate", 2, stratum) for stratum in ("r/0", "former") * FAILURES))
    assert sum(c.error is not None for c in calls) >= FAILURES
    assert house.cut
    assert {version_of(c) for c in house.ask(drawn("candidate", 2), drawn("override", 2))} == {1}


def test_a_candidate_that_is_not_ready_here_is_answered_for_by_stable() -> None:
    house = House()
    house.route(BUCKETS)
    house.plane.retire(house.plane.bind("m", "2").handle)
    assert [version_of(c) for c in house.ask(Keyed(), Keyed())] == [1, 1]


# --- the breaker ------------------------------------------------------------------------------------------


def test_a_candidate_that_only_fails_is_cut_within_a_hundred_requests() -> None:
    house = House()
    house.models[2].poison = {1.0}
    house.route(5000)
    failed = 0
    for _ in range(100):
        [call] = house.ask(Keyed())
        failed += call.error is not None
        if house.cut:
            break
    assert failed == FAILURES
    assert "10 of its last 20 requests failed" in house.cut
    assert all(version_of(c) == 1 for c in house.ask(*(Keyed() for _ in range(50))))


def test_a_cut_lasts_as_long_as_the_rollout() -> None:
    house = House()
    house.models[2].poison = {1.0}
    house.route(BUCKETS)
    for _ in range(WINDOW):
        assert not house.cut
        house.ask(Keyed())
    assert house.cut
    house.models[2].poison = set()
    house.route(5000, stratum="r/1")
    assert all(version_of(c) == 1 for c in house.ask(*(Keyed() for _ in range(50))))
    house.route(BUCKETS, seed="another")
    assert version_of(house.ask(Keyed())[0]) == 2


def test_when_both_versions_fail_it_is_not_the_candidate() -> None:
    house = House()
    for model in house.models.values():
        model.poison = {1.0}
    house.route(5000)
    for _ in range(200):
        [call] = house.ask(Keyed())
        assert isinstance(call.error, OctoserveError)
    assert house.cut == ""


def test_a_candidate_whose_run_hangs_is_cut() -> None:
    executor = ManualExecutor()
    house = House(executor)
    house.route(BUCKETS)
    house.ask(Keyed())
    house.clock.advance(5)
    house.plane.splits.sweep()
    assert house.cut == ""
    house.clock.advance(6)
    house.plane.splits.sweep()
    assert "has not come back for 11 s" in house.cut


def test_recent_forgets() -> None:
    candidate, stable = Recent(), Recent()
    stable.ok()
    for _ in range(FAILURES - 1):
        candidate.failed()
    assert should_cut(candidate, stable) == ""
    for _ in range(WINDOW):
        candidate.ok()
    assert candidate.failures == 0


def test_what_is_broken_for_everybody_is_not_the_candidates_doing() -> None:
    candidate, stable = Recent(8), Recent(8)
    for _ in range(7):
        candidate.failed()
    assert should_cut(candidate, stable, 8, 4) == "", "nobody has asked the stable version yet"
    stable.ok()
    assert should_cut(candidate, stable, 8, 4)
    stable.failed()
    stable.failed()
    assert should_cut(candidate, stable, 8, 4) == ""


def test_a_plan_is_an_immutable_value() -> None:
    house = House()
    plan = house.route(100)
    assert structs.replace(plan, generation=6) != plan


def test_a_stable_version_that_was_asked_once_and_failed_is_no_better() -> None:
    """What both have in common is found by the candidate first where it has nearly everything."""
    candidate, stable = Recent(), Recent()
    for _ in range(WINDOW):
        candidate.failed()
    stable.failed()
    assert should_cut(candidate, stable) == ""
    for _ in range(4):
        stable.ok()
    assert should_cut(candidate, stable), "1 of 5 is no reason to spare what fails always"


def test_a_segment_that_cannot_be_read_costs_no_request_and_counts_against_nobody() -> None:
    house = House()
    house.route(5000, segments=("input:x",))
    calls = house.ask(*(Asked([floats([[1.5, 2.0]])]) for _ in range(40)))
    assert not any(call.error for call in calls)
    assert house.evidence("candidate").failures == 0
    assert house.evidence("candidate").attempts + house.evidence("stable").attempts == 40
