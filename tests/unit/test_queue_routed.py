"""A micro-batch of several versions: parted and put together again, and what the candidate fails on."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.codecs.json_rows import JsonRows
from octoserve.connectors.queues.protocol import Message
from octoserve.core.errors import InvalidInput
from octoserve.core.evidence import ALL, CANDIDATE, STABLE, ArmEvidence
from octoserve.dataplane.endpoint import DataPlane
from octoserve.dataplane.table import ScoredTable
from octoserve.patterns.message_queue.picking import Picker
from octoserve.patterns.message_queue.routed import BLOCK, Routed, Voice, together
from octoserve.patterns.message_queue.scoring import Scored, score
from octoserve.routing.plan import RoutePlan, split_arms
from octoserve.routing.split import pick
from support.queue_versions import SIGNATURE, Twice, body, canary, plane_of
from support.queues import message


class Direct:
    """`scoring.Scorer` of one version, without a data plane."""

    name = "m"

    def __init__(self, model: Twice) -> None:
        self.version = model.version
        self._model = model

    def score(self, columns: Any) -> ScoredTable:
        (y,) = self._model.run([columns[0].array()])
        return ScoredTable({"y": y}, np.full(len(y), self.version))


class Bench:
    def __init__(self, plan: RoutePlan) -> None:
        self.plan = plan
        self.models = {1: Twice(1), 2: Twice(2)}
        self.plane: DataPlane = plane_of(plan, self.models)
        self.before: list[str] = []
        self.failed: list[int] = []
        decode = JsonRows(SIGNATURE).decode
        voices = {number: Voice(Direct(model), decode, SIGNATURE) for number, model in self.models.items()}
        self.routed = Routed(
            Picker(self.plane, "m", "json"), voices.__getitem__, SIGNATURE.outputs, nullcontext,
            before=self.before.append, failed=self.failed.append,
        )  # fmt: skip

    def score(self, messages: list[Message], tried: bool = False) -> Scored:
        return self.routed.score(messages, tried)

    def arm(self, role: str) -> ArmEvidence:
        (seen,) = self.plane.splits.seen()
        return seen.evidence.arms[role][ALL]


def mine(plan: RoutePlan, version: int, count: int) -> list[int]:
    """Numbers of messages that the plan gives to this version."""
    return [i for i in range(10_000) if pick(plan, f"m{i}".encode()) == version][:count]


def test_each_version_scores_its_own_and_the_order_stays():
    bench = Bench(canary())
    found = bench.score([message(i, body(i)) for i in range(400)])
    expected = [pick(bench.plan, f"m{i}".encode()) for i in range(400)]
    assert found.good == list(range(400))
    assert found.ids == [f"m{i}" for i in range(400)]
    assert found.versions.tolist() == expected
    assert found.columns[0].tolist() == [float(i) * version for i, version in enumerate(expected)]
    assert found.failed == {}
    counted = [bench.arm(role) for role in ("candidate", "baseline", "stable")]
    assert sum(arm.assigned for arm in counted) == sum(arm.attempts for arm in counted) == 400
    assert bench.before == [role for seen in bench.before[::2] for role in (seen, "")]


def test_the_same_plan_and_keys_give_the_same_versions_again():
    bench = Bench(canary())
    messages = [message(i, body(i)) for i in range(100)]
    assert bench.score(messages).versions.tolist() == bench.score(messages).versions.tolist()


def test_runs_that_are_compared_are_of_a_size_and_measured_once_each():
    bench = Bench(canary(2000))
    bench.score([message(i, body(i)) for i in range(1000)])
    assert {len(run) for run in bench.models[2].runs[:-1]} == {BLOCK}
    candidate = bench.arm(CANDIDATE)
    fresh = -(-20 // BLOCK)  # runs of the first answers, which are left out
    assert sum(candidate.latency.values()) == len(bench.models[2].runs) - fresh
    assert max(len(run) for run in bench.models[1].runs) > 500, "who is compared with nobody runs whole"


def test_what_the_candidate_fails_on_is_scored_by_the_stable_version_and_is_the_candidate_s_failure():
    bench = Bench(canary(5000))
    numbers = mine(bench.plan, 2, 30)
    bench.models[2].poison = {float(numbers[3]): RuntimeError("no luck"), float(numbers[7]): InvalidInput("too much")}
    found = bench.score([message(i, body(i)) for i in numbers])
    assert found.failed == {}
    assert found.good == list(range(30))
    assert [at for at, version in enumerate(found.versions.tolist()) if version == 1] == [3, 7]
    assert found.columns[0].tolist() == [i * (1.0 if at in (3, 7) else 2.0) for at, i in enumerate(numbers)]
    assert (bench.arm(CANDIDATE).attempts, bench.arm(CANDIDATE).failures) == (30, 2)
    assert bench.arm(STABLE).attempts == 0, "it was not drawn for them"
    assert bench.failed == [2, 2]


def test_what_both_refuse_is_the_sender_s_doing_and_what_both_fail_on_is_the_candidate_s():
    bench = Bench(canary(5000))
    malformed, broken = mine(bench.plan, 2, 2)
    for model in bench.models.values():
        model.poison = {float(malformed): InvalidInput("never"), float(broken): RuntimeError("no luck")}
    found = bench.score([message(malformed, body(malformed)), message(broken, b'{"id": "m%d"}' % broken)])
    assert sorted(found.failed) == [0, 1]
    assert bench.arm(CANDIDATE).attempts == 0
    found = bench.score([message(broken, body(broken))])
    assert str(found.failed[0]) == "no luck"
    assert (bench.arm(CANDIDATE).attempts, bench.arm(CANDIDATE).failures) == (1, 1)


def test_failures_of_the_stable_version_are_its_own_and_nothing_is_run_for_them_again():
    bench = Bench(canary(3000))
    number = mine(bench.plan, 1, 1)[0]
    bench.models[1].poison = {float(number): RuntimeError("no luck")}
    found = bench.score([message(number, body(number))])
    assert list(found.failed) == [0]
    assert bench.models[1].runs == [[float(number)]]
    assert bench.models[2].runs == []


def test_a_candidate_that_fails_outright_is_cut_here_at_once():
    bench = Bench(canary(5000))
    numbers = mine(bench.plan, 2, 40)
    bench.models[2].poison = {float(i): RuntimeError("broken") for i in numbers}
    bench.score([message(i, body(i)) for i in mine(bench.plan, 1, 20)])
    bench.score([message(i, body(i)) for i in numbers[:20]])
    runs = len(bench.models[2].runs)
    found = bench.score([message(i, body(i)) for i in numbers[20:]])
    assert set(found.versions.tolist()) == {1}
    assert len(bench.models[2].runs) == runs
    (seen,) = bench.plane.splits.seen()
    assert "of its last 20 requests failed" in seen.cut


def test_what_failed_before_is_the_stable_version_s():
    bench = Bench(canary(10_000))
    found = bench.score([message(0, body(0))], tried=True)
    assert found.versions.tolist() == [1]
    assert bench.before == []


@pytest.mark.parametrize("weight", [0, 10_000])
def test_one_version_for_all(weight: int):
    bench = Bench(RoutePlan("m", 1, split_arms(1, 2, weight), seed="s"))
    found = bench.score([message(i, body(i)) for i in range(10)])
    assert set(found.versions.tolist()) == {2 if weight else 1}


@given(parts=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["well", "fails"])), max_size=40))
def test_parts_put_together_are_what_was_parted(parts: list[tuple[int, str]]):
    """Whatever belongs to whom, and whatever of it fails: as if one had scored all."""
    messages = [message(i, body(i)) for i in range(len(parts))]
    model = Twice(1)
    model.poison = {float(i): RuntimeError("no luck") for i, (_, fate) in enumerate(parts) if fate == "fails"}
    decode = JsonRows(SIGNATURE).decode

    def scored(places: list[int]) -> Scored:
        return score(Direct(model), decode, SIGNATURE.outputs, [messages[p] for p in places], nullcontext)

    whole = scored(list(range(len(parts))))
    own = [[place for place, (mine, _) in enumerate(parts) if mine == of] for of in range(4)]
    found = together([(places, scored(places)) for places in own if places], len(parts))
    assert found.good == whole.good
    assert found.ids == whole.ids
    assert sorted(found.failed) == sorted(whole.failed)
    assert found.versions.tolist() == whole.versions.tolist()
    if whole.good:
        assert found.columns[0].tolist() == whole.columns[0].tolist()


def test_evidence_is_counted_apart_by_segment():
    bench = Bench(canary(5000, segments=("column:country",)))
    numbers = mine(bench.plan, 2, 60)
    bench.models[2].poison = {float(numbers[0]): RuntimeError("no luck")}
    bench.score([message(i, body(i, country="CH" if at < 20 else "DE")) for at, i in enumerate(numbers)])
    (seen,) = bench.plane.splits.seen()
    candidate = seen.evidence.arms[CANDIDATE]
    counted = {segment: (arm.assigned, arm.attempts, arm.failures) for segment, arm in candidate.items()}
    assert counted == {ALL: (60, 60, 1), "country=CH": (20, 20, 1), "country=DE": (40, 40, 0)}
    assert sum(candidate["country=DE"].latency.values()) > 0
