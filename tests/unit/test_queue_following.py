"""A queue's conversation with a service: what its workers say together, and who died over what."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from octoserve.control.rollout.following import FollowerWord, Route
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.core.evidence import ALL, CANDIDATE, STABLE, ArmEvidence, Seen, Stratum
from octoserve.patterns.message_queue import following
from octoserve.patterns.message_queue.following import (
    ABSENT,
    DEATHS,
    FAILED,
    LOADING,
    READY,
    Deaths,
    Followed,
    Follower,
    VersionWord,
    said_of,
    seen_by,
)
from octoserve.routing.plan import MirrorTo, RoutePlan
from support.queue_versions import canary
from support.supervised import until

ROUTE = Route(plan=canary(), keep=(1, 2), stable=1, candidate=2, rollout="r1", record=7)


def worker(candidate: str = READY, record: int = 7, seen: tuple[Seen, ...] = (), **more: Any) -> Followed:
    versions = {1: VersionWord(READY, "", "d1"), 2: VersionWord(candidate, more.pop("reason", ""), "d2")}
    return Followed(rollout="r1", record=record, versions=versions, seen=seen, **more)


def seen(attempts: int, stratum: str = "r1/0", role: str = CANDIDATE, failures: int = 0) -> Seen:
    arms = {role: {ALL: ArmEvidence(assigned=attempts, attempts=attempts, failures=failures)}}
    return Seen(evidence=Stratum(endpoint="m", name=stratum, arms=arms), seed="r1")


def test_what_holds_in_every_worker_holds():
    said = said_of(ROUTE, [worker(), worker()])
    assert said is not None
    assert (said.version, said.behind, said.present, said.ready, said.stable_ready) == (7, "", True, True, True)
    assert said.digest == "d2"


@pytest.mark.parametrize(
    ("other", "behind", "present", "ready"),
    [
        (None, "worker 1 of the queue, which starts", True, False),
        (worker(record=6, behind="version 2 is loading"), "worker 1 of the queue: version 2 is loading", True, True),
        (worker(LOADING), "", True, False),
        (worker(ABSENT), "", False, False),
    ],
)
def test_one_worker_that_is_not_so_far_is_waited_for(other: Followed | None, behind: str, present: bool, ready: bool):
    said = said_of(ROUTE, [worker(), other])
    assert said is not None
    assert (said.behind, said.present, said.ready) == (behind, present, ready)


def test_a_version_that_fails_in_one_has_failed():
    said = said_of(ROUTE, [worker(), worker(FAILED, reason="its files changed")])
    assert said is not None
    assert (said.failed, said.ready) == ("its files changed", False)


def test_without_a_rollout_nothing_is_said_and_without_workers_nobody_follows():
    assert said_of(Route(plan=canary()), [worker()]) is None
    said = said_of(ROUTE, [])
    assert said is not None
    assert (said.behind, said.ready) == ("the queue's workers", False)


def test_evidence_is_one_sum_over_workers_and_those_that_died():
    deaths = Deaths()
    deaths.of(ROUTE, worker(seen=(seen(5),)), killed=False)
    told = seen_by(ROUTE, [worker(seen=(seen(3), seen(100, "r1/9"))), None], deaths)
    assert told is not None
    assert told.evidence.arms[CANDIDATE][ALL].attempts == 8, "of this step alone"


@pytest.mark.parametrize("role", [CANDIDATE, STABLE])
def test_who_died_over_a_message_has_failed_on_it(role: str):
    deaths = Deaths()
    deaths.of(ROUTE, worker(running=role), killed=True)
    deaths.of(ROUTE, worker(running=""), killed=True)
    deaths.of(ROUTE, worker(running=role), killed=False)
    told = seen_by(ROUTE, [], deaths)
    assert told is not None
    assert told.cut == ""
    assert (told.evidence.arms[role][ALL].attempts, told.evidence.arms[role][ALL].failures) == (1, 1)


@pytest.mark.parametrize(("role", "cut"), [(CANDIDATE, True), (STABLE, False)])
def test_a_candidate_that_workers_die_over_is_cut(role: str, cut: bool):
    deaths = Deaths()
    for _ in range(DEATHS):
        deaths.of(ROUTE, worker(running=role), killed=True)
    told = seen_by(ROUTE, [], deaths)
    assert told is not None
    assert bool(told.cut) is cut


def test_a_shadow_dies_beside_what_runs_and_is_cut_all_the_same():
    plan = RoutePlan.to("m", 1, 1)
    plan = msgspec.structs.replace(plan, seed="r1", stratum="r1/0", mirrors=(MirrorTo(2, 1000),))
    route = msgspec.structs.replace(ROUTE, plan=plan)
    deaths = Deaths()
    for _ in range(DEATHS):
        deaths.of(route, worker(), killed=True)
    told = seen_by(route, [], deaths)
    assert told is not None
    assert "have died" in told.cut


def test_a_candidate_that_workers_die_of_while_they_load_it_has_failed():
    deaths = Deaths()
    for _ in range(DEATHS):
        assert deaths.failed(ROUTE) == ""
        deaths.of(ROUTE, worker(LOADING), killed=True)
    said = said_of(ROUTE, [worker(LOADING)], deaths.failed(ROUTE))
    assert said is not None
    assert said.failed == f"{DEATHS} workers of a queue have died while they loaded it"
    assert deaths.failed(msgspec.structs.replace(ROUTE, rollout="r2")) == ""


def test_of_a_rollout_that_is_over_nothing_is_remembered():
    deaths = Deaths()
    deaths.of(ROUTE, worker(seen=(seen(5),)), killed=False)
    other = msgspec.structs.replace(ROUTE, rollout="r2", plan=canary(seed="r2", stratum="r2/0"))
    assert seen_by(other, [], deaths) is None
    assert seen_by(ROUTE, [], deaths) is None


class Service:
    """Answers what a test says, and keeps what it heard."""

    def __init__(self) -> None:
        self.answer: Route | Exception = Route(plan=RoutePlan.to("m", 1, 1))
        self.heard: list[FollowerWord] = []
        self.lock = threading.Lock()

    def __call__(self, word: FollowerWord) -> Route:
        with self.lock:
            self.heard.append(word)
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer


@pytest.fixture
def service() -> Service:
    return Service()


def test_what_the_service_says_is_heard_and_what_is_new_is_told_at_once(service: Service):
    follower = Follower(service, "q1", "who", "json")
    follower.begin()
    try:
        assert follower.route.plan is not None
        assert follower.route.plan.key == "column:who"
        service.answer = ROUTE
        until(lambda: follower.route.rollout == "r1", 60)
        follower.say(said_of(follower.route, [worker()]), seen(4))
        until(lambda: any(word.seen is not None for word in service.heard), 60)
        word = next(word for word in service.heard if word.seen is not None)
        assert (word.id, word.rollout) == ("q1", "r1")
        service.answer = Unavailable("it is away")
        count = len(service.heard)
        until(lambda: len(service.heard) > count + 1, 60)
        assert follower.route.rollout == "r1", "it goes on as before"
        service.answer = Route()
        until(lambda: follower.route.rollout == "", 60)
        assert follower.route.plan is not None, "nothing answers there: it goes on as before"
    finally:
        follower.end()
    assert service.heard[-1].leaves
    assert not any(word.leaves for word in service.heard[:-1])


def test_a_cut_is_told_at_once_and_not_again_and_again(service: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(following, "EVERY", 3600.0)
    monkeypatch.setattr(following, "EVERY_EXPOSED", 3600.0)
    service.answer = ROUTE
    follower = Follower(service, "q1", "", "json")
    follower.begin()
    try:
        said = said_of(follower.route, [worker()])
        follower.say(said, seen(4))
        until(lambda: len(service.heard) == 2, 60)
        cut = msgspec.structs.replace(seen(5), cut="its breaker is open")
        follower.say(said, cut)
        until(lambda: len(service.heard) == 3, 60)
        assert service.heard[-1].seen == cut
        for count in range(6, 30):
            follower.say(said, msgspec.structs.replace(seen(count), cut=cut.cut))
        assert not follower._due.is_set(), "only how much was seen is new, and that waits"
        assert len(service.heard) == 3
    finally:
        follower.end()


def test_a_queue_does_not_begin_without_its_service(service: Service):
    service.answer = Unavailable("nobody is there")
    with pytest.raises(Unavailable, match="nobody is there"):
        Follower(service, "q", "", "json").begin()
    service.answer = Route()
    with pytest.raises(Unavailable, match="nothing answers for the model"):
        Follower(service, "q", "", "json").begin()
    service.answer = ROUTE
    with pytest.raises(SettingsError, match="no parameters"):
        Follower(service, "q", "parameter:x", "json").begin()
