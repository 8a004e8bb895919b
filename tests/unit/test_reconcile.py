"""Invariants of the control plane's one step, over random histories of disk, workers and requests."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octoserve.control.policy import parse, select
from octoserve.control.reconcile import reconcile
from octoserve.control.snapshot import Aspired, ModelWishes, Snapshot, WorkerView
from octoserve.core.errors import SettingsError
from octoserve.lifecycle.states import State, VersionReport
from octoserve.repository.layout import DiskState, ModelSettings, VersionOnDisk
from support.scale import scale

M = "fraud"


def on_disk(version, state=DiskState.WHOLE, digest="a", edition=0, reason=""):
    return VersionOnDisk(
        model=M,
        version=version,
        path=f"/r/{M}/{version}",
        state=state,
        digest=f"sha256:{digest}",
        runtime="onnx",
        edition=edition,
        reason=reason,
    )


def reports(**states):
    """reports(v1=State.READY) -> what a worker says."""
    return {
        (M, int(name[1:])): VersionReport(M, int(name[1:]), state, "broken" if state is State.FAILED else "")
        for name, state in states.items()
    }


class House:
    """A snapshot that is moved on step by step."""

    def __init__(self, *versions, workers=2, policy="latest:1", **more):
        self.disk = {M: tuple(on_disk(v) if isinstance(v, int) else v for v in versions)}
        self.workers = [WorkerView(index=i, generation=0) for i in range(workers)]
        self.current = Aspired(generation=1)
        self.more = {"default": ModelWishes(policy=parse(policy)), **more}

    def snapshot(self):
        return Snapshot(disk=self.disk, workers=tuple(self.workers), current=self.current, **self.more)

    def step(self):
        self.current = reconcile(self.snapshot())
        return self.current

    def say(self, index=None, **states):
        """One worker, or all, report; others' versions stay as they were."""
        for i, worker in enumerate(self.workers):
            if index is None or i == index:
                merged = {**worker.reports, **reports(**states)}
                self.workers[i] = msgspec.structs.replace(worker, reports=merged)

    def ack(self):
        self.workers = [msgspec.structs.replace(w, generation=self.current.generation) for w in self.workers]

    @property
    def routed(self):
        return {p.endpoint: p.arms[0].version for p in self.current.plans}.get(M)

    @property
    def held(self):
        return {ref.version for ref in self.current.versions}

    def settle(self, **states):
        for _ in range(4):
            self.step()
            self.say(**states)
            self.ack()
        return self


def test_first_version_is_wanted_then_routed():
    house = House(1)
    assert house.step().plans == ()
    assert house.held == {1}
    house.say(v1=State.LOADING)
    assert house.step().plans == ()
    house.say(0, v1=State.READY)
    assert house.step().plans == ()
    house.say(v1=State.READY)
    assert house.step().plans[0].arms[0].version == 1


def test_nothing_changes_nothing():
    house = House(1).settle(v1=State.READY)
    generation = house.current.generation
    assert house.step() is house.current
    assert house.current.generation == generation


def test_switch_keeps_the_old_until_all_have_applied():
    house = House(1).settle(v1=State.READY)
    house.disk = {M: (on_disk(1), on_disk(2))}
    house.step()
    assert house.held == {1, 2}
    assert house.routed == 1
    house.ack()
    house.say(v2=State.READY)
    house.step()
    assert house.routed == 2
    assert house.held == {1, 2}
    house.step()
    assert house.held == {1, 2}, "not acknowledged yet"
    house.ack()
    house.step()
    assert house.held == {2}


def test_broken_version_leaves_the_good_one():
    house = House(1).settle(v1=State.READY)
    house.disk = {M: (on_disk(1), on_disk(2))}
    house.settle(v1=State.READY, v2=State.FAILED)
    assert house.routed == 1
    assert house.held == {1, 2}
    entry = next(e for e in house.current.catalog if e.version == 2)
    assert (entry.state, entry.reason) == ("UNAVAILABLE", "broken")


def test_fresh_start_falls_back_below_a_broken_version():
    house = House(1, 2).settle(v2=State.FAILED, v1=State.READY)
    assert house.routed == 1


def test_broken_in_one_worker_is_broken():
    house = House(1).settle(v1=State.READY)
    house.disk = {M: (on_disk(1), on_disk(2))}
    house.step()
    house.say(0, v2=State.READY)
    house.say(1, v2=State.FAILED)
    house.settle()
    assert house.routed == 1
    assert 1 in house.held


def test_failed_version_is_retried_when_its_files_change():
    house = House(1).settle(v1=State.FAILED)
    assert house.current.versions[0].attempt == 0
    house.disk = {M: (on_disk(1, digest="b", edition=1),)}
    house.step()
    assert (house.current.versions[0].attempt, house.current.versions[0].digest) == (1, "sha256:b")


def test_changed_files_of_a_loaded_version_serve_on_and_say_so():
    house = House(1, digests={(M, 1): "sha256:a"}).settle(v1=State.READY)
    house.disk = {M: (on_disk(1, digest="b", edition=1),)}
    house.step()
    assert house.routed == 1
    assert house.current.versions[0].digest == "sha256:a"
    assert "digest was sha256:a, is sha256:b" in house.current.catalog[0].reason


def test_changed_files_of_a_held_version_that_is_not_routed_serve_on_while_no_worker_is_heard():
    house = House(1, 2, policy="latest:2", digests={(M, 1): "sha256:a"}).settle(v1=State.READY, v2=State.READY)
    assert (house.routed, house.held) == (2, {1, 2})
    house.disk = {M: (on_disk(1, digest="b", edition=1), on_disk(2))}
    workers, house.workers = house.workers, []
    house.step()
    assert house.held == {1, 2}
    house.workers = workers
    house.step()
    assert (house.routed, house.held) == (2, {1, 2})


def test_changed_files_of_an_unloaded_version_are_refused():
    house = House(on_disk(1, digest="b"), digests={(M, 1): "sha256:a"})
    house.step()
    assert house.held == set()
    assert house.current.catalog[0].state == "UNAVAILABLE"
    assert "publish them as version 2" in house.current.catalog[0].reason


def test_settling_version_is_not_wanted_and_one_in_use_stays():
    house = House(on_disk(1, DiskState.SETTLING))
    house.step()
    assert house.held == set()
    house = House(1).settle(v1=State.READY)
    house.disk = {M: (on_disk(1, DiskState.SETTLING, digest=""),)}
    house.step()
    assert house.routed == 1
    assert house.held == {1}


def test_held_model_is_emptied_after_the_acks_and_stays_so():
    house = House(1).settle(v1=State.READY)
    house.more["holds"] = frozenset({M})
    house.step()
    assert house.routed is None
    assert house.held == {1}
    house.ack()
    house.step()
    assert house.held == set()
    house.disk = {M: (on_disk(1), on_disk(2))}
    house.step()
    assert house.held == set()
    assert {e.state for e in house.current.catalog} == {"UNAVAILABLE"}


def test_joining_worker_does_not_take_the_plan_down():
    house = House(1, 2, policy="latest:2").settle(v1=State.READY, v2=State.READY)
    assert house.routed == 2
    house.workers[1] = WorkerView(index=1, generation=0)
    house.step()
    assert house.routed == 2
    house.say(1, v1=State.READY, v2=State.LOADING)
    house.step()
    assert house.routed == 2, "going down for a joining worker would be a flap"


def test_deleted_version_answers_until_the_one_before_is_ready():
    house = House(1, 2).settle(v2=State.READY)
    assert house.held == {2}
    house.disk = {M: (on_disk(1),)}
    house.step()
    assert house.routed == 2
    assert house.held == {1, 2}
    house.settle(v1=State.READY)
    assert house.routed == 1
    assert house.held == {1}


def test_deleted_model_loses_its_plan():
    house = House(1).settle(v1=State.READY)
    house.disk = {}
    house.settle()
    assert house.routed is None
    assert house.held == set()


def test_no_worker_changes_no_plan():
    house = House(1).settle(v1=State.READY)
    house.workers = []
    assert house.step().plans
    assert house.held == {1}


def test_labels_pin_and_move_only_to_ready_versions():
    wishes = ModelWishes(labels={"stable": 1})
    house = House(1, 2, wishes={M: wishes}).settle(v1=State.READY, v2=State.READY)
    assert house.held == {1, 2}
    assert house.current.labels == {M: {"stable": 1}}
    assert house.routed == 2
    house.disk = {M: (on_disk(1), on_disk(2), on_disk(3))}
    house.more["labels"] = {M: {"stable": 3}}
    house.step()
    assert house.current.labels == {M: {"stable": 1}}
    house.settle(v3=State.READY)
    assert house.current.labels == {M: {"stable": 3}}
    assert house.held == {3}


def test_a_registrys_aliases_are_labels_and_any_other_of_the_name_wins():
    house = House(1, 2, wishes={M: ModelWishes(labels={"stable": 1})}).settle(v1=State.READY, v2=State.READY)
    house.more["aliases"] = {M: {"stable": 2, "champion": 1}}
    house.settle()
    assert house.current.labels == {M: {"stable": 1, "champion": 1}}
    house.more["aliases"] = {M: {"champion": 2}}
    house.settle()
    assert house.current.labels == {M: {"stable": 1, "champion": 2}}


def test_specific_policy():
    house = House(1, 2, 3, policy="specific:1,2").settle(v1=State.READY, v2=State.READY)
    assert house.held == {1, 2}
    assert house.routed == 2
    assert "not selected" in next(e for e in house.current.catalog if e.version == 3).reason


@pytest.mark.parametrize("text", ["", "latest:0", "latest:x", "none", "specific:", "specific:0", "all:1"])
def test_bad_policies(text):
    with pytest.raises(SettingsError, match="version policy"):
        parse(text)


def test_policy_round_trip_and_select():
    for text in ("latest:3", "all", "specific:1,4"):
        assert str(parse(text)) == text
    assert select(parse("latest:2"), [1, 2, 3, 4], {4}) == {4, 3, 2}
    assert select(parse("all"), [1, 2], {1}) == {1, 2}
    assert select(parse("specific:2,9"), [1, 2], set()) == {2}


class Histories(RuleBasedStateMachine):
    """Disk, workers and operators do what they like; the invariants hold after every step."""

    def __init__(self):
        super().__init__()
        self.house = House(workers=2)
        self.house.more.update(holds=frozenset(), labels={}, digests={})
        self.before = self.house.snapshot()
        self.acked = {}  # (worker index) -> Aspired in force there

    @rule(version=st.integers(1, 3), state=st.sampled_from(list(DiskState)), digest=st.sampled_from("ab"))
    def files(self, version, state, digest):
        disk = {v.version: v for v in self.house.disk.get(M, ())}
        edition = disk[version].edition + 1 if version in disk else 0
        disk[version] = on_disk(version, state, digest, edition)
        self.house.disk = {M: tuple(disk[v] for v in sorted(disk))}

    @rule(version=st.integers(1, 3))
    def delete(self, version):
        rest = tuple(v for v in self.house.disk.get(M, ()) if v.version != version)
        self.house.disk = {M: rest} if rest else {}

    @precondition(lambda self: self.house.workers and self.house.current.versions)
    @rule(data=st.data(), good=st.booleans())
    def load(self, data, good):
        """A worker moves one wanted version on, as the manager would."""
        at = data.draw(st.integers(0, len(self.house.workers) - 1))
        ref = data.draw(st.sampled_from(self.house.current.versions))
        worker = self.house.workers[at]
        now = worker.reports.get((M, ref.version))
        if now is not None and (now.state is State.READY or now.attempt == ref.attempt):
            return
        state = State.READY if good else State.FAILED
        said = {(M, ref.version): VersionReport(M, ref.version, state, "" if good else "bad", ref.attempt)}
        self.house.workers[at] = msgspec.structs.replace(worker, reports={**worker.reports, **said})

    @precondition(lambda self: self.house.workers)
    @rule(data=st.data())
    def ack(self, data):
        at = data.draw(st.integers(0, len(self.house.workers) - 1))
        worker = self.house.workers[at]
        wanted = {(M, ref.version) for ref in self.house.current.versions}
        kept = {key: report for key, report in worker.reports.items() if key in wanted}
        self.house.workers[at] = msgspec.structs.replace(worker, generation=self.house.current.generation, reports=kept)
        self.acked[worker.index] = self.house.current

    @rule()
    def worker_dies(self):
        if self.house.workers:
            self.acked.pop(self.house.workers.pop(0).index, None)

    @rule()
    def worker_joins(self):
        free = {0, 1} - {w.index for w in self.house.workers}
        if free:
            self.house.workers.append(WorkerView(index=min(free), generation=0))

    @rule(held=st.booleans())
    def hold(self, held):
        self.house.more["holds"] = frozenset({M}) if held else frozenset()

    @rule(version=st.integers(1, 3))
    def label(self, version):
        self.house.more["labels"] = {M: {"stable": version}}

    @rule(policy=st.sampled_from(["latest:1", "latest:2", "all", "specific:1"]))
    def policy(self, policy):
        self.house.more["default"] = ModelWishes(policy=parse(policy))

    @rule()
    def step(self):
        before = self.before = self.house.snapshot()
        after = self.house.step()
        ready = {
            key
            for key in {k for w in before.workers for k in w.reports}
            if all(k.reports.get(key) and k.reports[key].state is State.READY for k in before.workers)
        }
        old = {p.endpoint: p for p in before.current.plans}
        for plan in after.plans:
            if plan != old.get(plan.endpoint):
                assert (M, plan.arms[0].version) in ready, "a plan moves only to what is ready everywhere"
                assert plan.generation == after.generation
        for label, version in after.labels.get(M, {}).items():
            if before.current.labels.get(M, {}).get(label) != version:
                assert (M, version) in ready, "a label moves only to what is ready everywhere"
        if M in before.holds:
            assert after.plans == ()
            assert after.labels == {}
        lost = old.keys() - {p.endpoint for p in after.plans}
        if lost:
            assert M in before.holds or not before.disk.get(M), "a plan goes only with its model"
        changed = msgspec.structs.replace(after, generation=0) != msgspec.structs.replace(before.current, generation=0)
        assert after.generation == before.current.generation + changed
        assert reconcile(before) == after, "pure"

    @invariant()
    def nothing_routed_is_missing(self):
        """Whatever a worker may still follow stays wanted."""
        held = {(ref.model, ref.version) for ref in self.house.current.versions}
        assert self.house.current.routed() <= held
        for worker in self.house.workers:
            if worker.generation and worker.index in self.acked:
                assert self.acked[worker.index].routed() <= held, "a plan in force names what is not wanted"

    @invariant()
    def no_duplicates(self):
        keys = [(ref.model, ref.version) for ref in self.house.current.versions]
        assert len(keys) == len(set(keys))


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=scale(50, 500), stateful_step_count=40, deadline=None)


def test_a_version_that_acts_on_the_world_is_not_loaded_with_a_cache():
    acting = msgspec.structs.replace(on_disk(1), settings=ModelSettings(effects="external"))
    house = House(acting, wishes={M: ModelWishes(cached=True)})
    house.step()
    assert house.held == set()
    assert "an answer from the cache would not act on the world" in house.current.catalog[0].reason
    house = House(acting, 2, wishes={M: ModelWishes(cached=True)}, policy="all")
    house.step()
    assert [(ref.version, ref.cached) for ref in house.current.versions] == [(2, True)]
    house = House(acting)
    house.step()
    assert [(ref.version, ref.cached) for ref in house.current.versions] == [(1, False)]
