"""The versions of a queue's worker: a plan is carried out once all that it needs is there, and then whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest

from octoserve.control.rollout.following import Route
from octoserve.core.errors import NotFound, SettingsError
from octoserve.core.evidence import ALL, PairEvidence
from octoserve.patterns.message_queue.crew import Crew, described
from octoserve.patterns.message_queue.following import ABSENT, FAILED, READY
from octoserve.patterns.message_queue.settings import QueueSettings
from octoserve.routing.plan import BUCKETS, MirrorTo, RoutePlan, split_arms
from octoserve.runtimes.onnx import OnnxRuntime
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.spool import frames
from support.graphs import flawed_model, versioned_model
from support.queues import Ticking, message
from support.supervised import until

M = "flawed"


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Ticking()
        self.executor = ThreadPoolExecutor(1)

    def publish(self, version: int, model: bytes | None = None, yaml: str = "") -> None:
        folder = self.folder / M / str(version)
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(flawed_model(version, 1e9) if model is None else model)
        if yaml:
            (folder / "model.yaml").write_text(yaml)

    def crew(self, route: Route | None = None, plan: RoutePlan | None = None, version: int | None = None) -> Crew:
        settings = QueueSettings(repository=str(self.folder), model=M, source="", sink="", plan=plan, version=version)
        runtimes = {"onnx": OnnxRuntime()}
        return Crew(settings, runtimes, Registry(), self.executor, route, self.clock)

    def settled(self, crew: Crew, version: int, state: str) -> None:
        def there() -> bool:
            crew.turn()
            return crew.followed("").versions[version].state == state

        until(there, 60)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.publish(1)
    yield made
    made.executor.shutdown()


def following(plan: RoutePlan, record: int, *keep: int) -> Route:
    return Route(plan=plan, keep=keep, stable=1, candidate=2, rollout="r1", record=record)


def canary(weight: int) -> RoutePlan:
    return RoutePlan(M, 1, split_arms(1, 2, weight, baseline=True), seed="r1", stratum="r1/0")


def test_the_highest_version_unless_another_one_is_named(bench: Bench):
    bench.publish(2)
    assert bench.crew().models.version == 2
    assert bench.crew(version=1).models.version == 1
    with pytest.raises(NotFound, match="no version 3"):
        bench.crew(version=3)


def test_a_plan_needs_all_whom_it_names(bench: Bench):
    with pytest.raises(NotFound, match="no version 2"):
        bench.crew(plan=canary(1000))
    bench.publish(2, versioned_model(2).replace(b"minus", b"mines"))
    with pytest.raises(SettingsError, match="version 2 does not answer as the others: output minus"):
        bench.crew(plan=canary(1000))


def test_a_candidate_is_loaded_beside_and_its_plan_carried_out_once_it_is_there(bench: Bench):
    crew = bench.crew(Route(plan=RoutePlan.to(M, 1, 1)))
    crew.hear(following(canary(0), 3, 1, 2))
    assert crew.turn()
    assert (crew.followed("").record, crew.followed("").rollout) == (3, "r1")
    bench.settled(crew, 2, ABSENT)
    crew.hear(following(canary(3000), 4, 1, 2))
    crew.turn()
    told = crew.followed("stable")
    assert (told.record, told.running) == (3, "stable"), "it cannot be carried out yet"
    assert told.behind.startswith("version 2 is ")
    bench.publish(2)
    bench.clock.pass_(2.0)
    bench.settled(crew, 2, READY)
    crew.turn()
    told = crew.followed("")
    assert (told.record, told.behind) == (4, "")
    assert told.versions[2].digest
    assert {arm.version for arm in crew.models.plane.plan(M).arms} == {1, 2}  # type: ignore[union-attr]
    crew.hear(Route(plan=RoutePlan.to(M, 2, 9)))
    assert crew.turn()
    assert crew.models.version == 2
    assert set(crew.followed("").versions) == {2}, "the old one is unloaded when nothing names it"
    assert not crew.turn(), "there is nothing new"


def test_a_version_that_cannot_score_here_says_why_and_is_not_carried_out(bench: Bench):
    bench.publish(2, yaml="effects: external\n")
    bench.publish(3, b"no graph")
    crew = bench.crew(Route(plan=RoutePlan.to(M, 1, 1)))
    crew.hear(following(canary(0), 3, 1, 2))
    bench.settled(crew, 2, FAILED)
    assert "effects: external" in crew.followed("").versions[2].reason
    crew.hear(Route(plan=RoutePlan.to(M, 3, 2)))
    bench.settled(crew, 3, FAILED)
    crew.turn()
    assert crew.models.version == 1
    assert "version 3 is failed" in crew.followed("").behind


def test_a_worker_that_starts_in_the_middle_begins_with_what_the_plan_needs(bench: Bench):
    bench.publish(2)
    crew = bench.crew(following(canary(10_000), 5, 1, 2))
    told = crew.followed("")
    assert (told.record, {n: word.state for n, word in told.versions.items()}) == (5, {1: READY, 2: READY})
    assert crew.picker.stable == 1


def test_a_worker_whose_candidate_is_broken_begins_with_the_trusted_version(bench: Bench):
    bench.publish(2, b"no graph")
    crew = bench.crew(following(canary(3000), 5, 1, 2))
    crew.turn()
    told = crew.followed("")
    assert (told.rollout, told.versions[2].state) == ("", FAILED)
    assert crew.models.plane.plan(M) == RoutePlan.to(M, 1, 1)


def test_a_turn_that_changes_something_is_told_before(bench: Bench):
    crew = bench.crew(Route(plan=RoutePlan.to(M, 1, 1)))
    assert not crew.turns()
    crew.hear(following(canary(3000), 4, 1, 2))
    assert crew.turns()
    bench.settled(crew, 2, ABSENT)
    assert not crew.turns(), "a route that was looked at is no news, though it cannot be carried out yet"
    bench.publish(2)
    bench.clock.pass_(2.0)
    until(lambda: crew.turn() and crew.followed("").record == 4, 60)
    assert not crew.turns()


def test_the_same_plan_of_a_newer_record_is_only_noted(bench: Bench):
    crew = bench.crew(following(canary(0), 3, 1))
    crew.hear(following(canary(0), 4, 1))
    plan = crew.models.plane.plan(M)
    assert crew.turn()
    assert crew.followed("").record == 4
    assert crew.models.plane.plan(M) is plan


def test_plans_in_words():
    assert described(RoutePlan.to(M, 3, 1)) == "version 3"
    assert described(canary(2500)) == "version 2 25 %, version 1 75 %"


def shadow(share: int) -> RoutePlan:
    plan = RoutePlan.to(M, 1, 1)
    mirror = MirrorTo(2, share, noise=BUCKETS)
    return msgspec.structs.replace(plan, seed="r1", stratum="r1/0", mirrors=(mirror,))


def scored(crew: Crew, count: int) -> None:
    rows = [message(i, b'{"id": "m%d", "x": [%d, 0.5]}' % (i, i)) for i in range(count)]
    found = crew.routed(nullcontext, lambda version: None, lambda role: None).score(rows, tried=False)
    assert set(found.versions.tolist()) == {1}
    assert found.good == list(range(count))


def pairs(crew: Crew) -> PairEvidence:
    (seen,) = crew.models.seen()
    return seen.evidence.pairs.get(ALL, PairEvidence())


@pytest.mark.parametrize("near", [True, False])
def test_a_shadow_gets_copies_and_decides_nothing(bench: Bench, tmp_path: Path, near: bool):
    bench.publish(2)
    spool = tmp_path / "state" / "shadow" / "spool"
    spool.parent.parent.mkdir()
    route = msgspec.structs.replace(
        following(shadow(BUCKETS), 3, 1, 2), host=os.uname().nodename if near else "elsewhere", spool=str(spool)
    )
    crew = bench.crew(route)
    bench.settled(crew, 2, READY)
    scored(crew, 40)
    until(lambda: pairs(crew).sent == 40, 60)
    counted = pairs(crew)
    assert (counted.offered, counted.ok, counted.compared, counted.disagreed) == (40, 40, 40, 40)
    assert (counted.noise_compared, counted.noise_disagreed) == (40, 0)
    assert (sum(len(list(frames(path.read_bytes()))) for path in spool.glob("queue-*")) == 80) is near
    assert near or not spool.exists(), "nobody would read it"


def test_a_shadow_that_would_be_fed_wrongly_is_refused(bench: Bench):
    bench.publish(2, yaml="features: [b, a]\n")
    crew = bench.crew(following(shadow(0), 2, 1, 2))
    bench.settled(crew, 2, READY)
    crew.hear(following(shadow(BUCKETS), 3, 1, 2))
    bench.settled(crew, 2, FAILED)
    told = crew.followed("")
    assert "makes its inputs of other fields than version 1" in told.versions[2].reason
    assert told.record == 2
