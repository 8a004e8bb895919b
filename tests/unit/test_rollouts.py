"""The driver of rollouts, on a room and a fleet that do as they are told: what it hears, starts from and survives."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from octoserve.control.reconcile import reconcile
from octoserve.control.rollout.audit import PRUNED, decode
from octoserve.control.rollout.following import FollowerWord, Route
from octoserve.control.rollout.replica_tables import Said
from octoserve.control.rollout.store import SqliteStore
from octoserve.control.rollout.values import Command, Course, Endpoint, Phase, RateCheck, Result, Rollout, Step
from octoserve.control.rollout.view import Preview
from octoserve.control.snapshot import Aspired, ModelWishes, Snapshot, WorkerView
from octoserve.core.errors import InvalidInput, Unsupported
from octoserve.core.evidence import ALL, BASELINE, CANDIDATE, ArmEvidence, Seen, Stratum
from octoserve.lifecycle.states import State, VersionReport
from octoserve.patterns.online.supervisor import rollout_facts
from octoserve.patterns.online.supervisor.rollouts import Rollouts
from octoserve.repository.layout import DiskState, VersionOnDisk

M = "fraud"
COURSE = Course(strategy="canary", steps=(Step(weight=1000, samples=1),), golden=False, checks=(RateCheck(),))


class Fleet:
    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.deaths = 0

    async def observe(self, timeout: float = 0.5) -> list[Seen]:
        return list(self.seen)

    def forget_seen(self, strata: Collection[str]) -> None:
        pass

    def deaths_since(self, at: float) -> int:
        return self.deaths


class Fronts:
    def kind_of(self, endpoint: str) -> str:
        return "in-process"

    def refuse_unless_able(self, endpoint: str, course: Course) -> None:
        pass

    def behind(self, *_: object) -> str:
        return ""


class Room:
    """One worker that has everything ready and follows at once."""

    def __init__(self, *versions: int, on_new_version: str = "switch") -> None:
        self.versions = list(versions)
        self.wishes = ModelWishes(on_new_version=on_new_version)
        self.rollouts: dict[str, Any] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.holds: frozenset[str] = frozenset()
        self.current = Aspired(generation=1)
        self.fronts = Fronts()

    @property
    def scan(self) -> Any:
        disk = (
            VersionOnDisk(model=M, version=v, path="", state=DiskState.WHOLE, digest="d", runtime="onnx")
            for v in self.versions
        )
        return SimpleNamespace(models={M: tuple(disk)})

    def snapshot(self) -> Snapshot:
        held = {ref.version for ref in self.current.versions}
        reports = {(M, v): VersionReport(M, v, State.READY) for v in held}
        return Snapshot(
            disk=self.scan.models,
            workers=(WorkerView(index=0, generation=self.current.generation, reports=reports),),
            current=self.current,
            default=self.wishes,
            rollouts=self.rollouts,
            endpoints=self.endpoints,
        )

    def wake(self) -> None:
        pass

    def all_follow(self) -> bool:
        return True

    def turn(self) -> None:
        for _ in range(3):
            self.current = reconcile(self.snapshot())


class House:
    """A driver, its room and its store."""

    def __init__(self, folder: Path, *versions: int, on_new_version: str = "switch", keep: float = 0.0) -> None:
        self.now = 1000.0
        self.room, self.fleet = Room(*versions, on_new_version=on_new_version), Fleet()
        section = SimpleNamespace(on_new_version=on_new_version, strategy="canary")

        async def preview(*_: object) -> Any:
            return Preview(True)

        self.rollouts = Rollouts(
            lambda: SqliteStore(folder),
            self.room,  # type: ignore[arg-type]
            self.fleet,  # type: ignore[arg-type]
            sections=lambda _: section,  # type: ignore[arg-type, return-value]
            strategies={"canary": lambda _: COURSE},
            preview=preview,
            now=lambda: self.now,
            keep=keep,
        )

    async def go(self, steps: int = 6) -> None:
        for _ in range(steps):
            await self.rollouts.step()
            self.room.turn()

    async def start(self, candidate: int) -> Rollout:
        """Up to its first step, where the candidate lies in the repository by then."""
        made = self.rollouts.make(M, candidate)
        await self.rollouts.propose(made)
        await self.rollouts.step()
        if candidate not in self.room.versions:
            self.room.versions.append(candidate)
        await self.go()
        return self.rollouts.live[M]

    async def put(self, **fields: Any) -> None:
        """Take the rollout somewhere else by hand."""
        driver, rollout = self.rollouts, self.rollouts.live[M]
        rollout = msgspec.structs.replace(rollout, version=rollout.version + 1, **fields)
        await driver.ledger.do(lambda store: store.commit(driver.ledger.token, rollout, []))
        self.room.turn()

    async def command(self, command: Command) -> None:
        await self.rollouts.ledger.do(lambda store: store.ask(M, command, "ann", "", ""))
        await self.go()

    @property
    def rollout(self) -> Rollout:
        return self.rollouts.live.get(M) or self.rollouts.last[M]


def drive(house: House, story: Coroutine[Any, Any, None]) -> None:
    async def told() -> None:
        await house.rollouts.open("me")
        house.room.turn()
        try:
            await story
        finally:
            await house.rollouts.close()

    asyncio.run(told())


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.PROMOTING, Phase.RETAINING])
def test_a_breaker_is_heard_wherever_clients_meet_the_candidate(tmp_path: Path, phase: Phase) -> None:
    house = House(tmp_path, 1)

    async def story() -> None:
        rollout = await house.start(2)
        await house.put(phase=phase, settled=1000.0)
        stratum = f"{rollout.id}/0" if phase is Phase.RUNNING else ""
        house.fleet.seen = [Seen(evidence=Stratum(endpoint=M, name=stratum), seed=rollout.id, cut="20 of 20 failed")]
        await house.go()
        result = Result.ABORTED if phase is Phase.RUNNING else Result.ROLLED_BACK
        assert (house.rollout.phase, house.rollout.result) == (Phase.ENDED, result)
        assert house.rollout.reason == "breaker: 20 of 20 failed"

    drive(house, story())


def test_a_rollout_starts_from_what_answers_though_an_older_one_recorded_another_version(tmp_path: Path) -> None:
    house = House(tmp_path, 1)

    async def story() -> None:
        await house.start(2)
        await house.command(Command.ABORT)
        assert house.rollouts.endpoints[M] == Endpoint(name=M, stable=1, refused=(2,))
        house.room.versions.append(3)  # it switches
        house.room.turn()
        made = house.rollouts.make(M, 4)
        await house.rollouts.propose(made)
        await house.go()
        assert house.rollout.stable == 3
        assert house.room.current.plans[0].stable == 3
        assert house.rollouts.endpoints[M].stable == 3, "who restarts with on_new_version: rollout keeps it"

    drive(house, story())


def test_an_older_version_that_was_promoted_stays(tmp_path: Path) -> None:
    house = House(tmp_path, 1, 2, 3)

    async def story() -> None:
        await house.start(2)
        await house.put(phase=Phase.RETAINING, settled=0.0, entered=0.0)
        await house.go()
        assert house.rollout.result is Result.PROMOTED
        assert house.rollouts.endpoints[M] == Endpoint(name=M, stable=2, refused=(3,))
        assert house.room.current.plans[0].stable == 2

    drive(house, story())


def test_evidence_that_cannot_be_judged_keeps_nobody_from_aborting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, 1)

    def broken(*_: object) -> Any:
        raise ZeroDivisionError("0 / 0")

    async def story() -> None:
        await house.start(2)
        monkeypatch.setattr(rollout_facts, "_judge", broken)
        await house.go()
        [verdict] = house.rollouts.looks[house.rollout.id].verdicts
        assert (verdict.outcome, verdict.note) == ("PROVIDER_ERROR", "ZeroDivisionError: 0 / 0")
        assert house.rollout.phase is Phase.RUNNING
        await house.command(Command.ABORT)
        assert house.rollout.result is Result.ABORTED

    drive(house, story())


def test_an_abort_ends_though_the_model_is_gone(tmp_path: Path) -> None:
    house = House(tmp_path, 1)

    async def story() -> None:
        await house.start(2)
        house.room.versions.clear()
        await house.command(Command.ABORT)
        assert house.rollout.phase is Phase.ENDED
        assert house.room.current.plans == ()

    drive(house, story())


def test_a_start_from_a_version_that_is_not_trusted_is_refused(tmp_path: Path) -> None:
    house = House(tmp_path, 1)

    async def story() -> None:
        with pytest.raises(InvalidInput, match="version 1 is what a rollout of 'fraud' starts from, 99 came"):
            house.rollouts.make(M, 2, stable=99)
        assert house.rollouts.make(M, 2, stable=1).stable == 1

    drive(house, story())


def test_a_pause_outranks_a_promote_that_was_asked_before_and_answers_it(tmp_path: Path) -> None:
    house = House(tmp_path, 1)

    async def story() -> None:
        await house.start(2)
        for command in (Command.PROMOTE, Command.PAUSE):
            await house.rollouts.ledger.do(lambda store, command=command: store.ask(M, command, "ann", "wait", ""))
        await house.go()
        assert house.rollout.paused == "wait"
        assert house.rollout.phase is Phase.RUNNING
        entries = [decode(line) for line in await house.rollouts.audit(house.rollout)]
        assert [e.reason for e in entries if e.event == "promote"] == ["not followed: it was paused since"]

    drive(house, story())


GATES = Course(
    strategy="canary",
    steps=tuple(Step(weight=weight, approval=True, analysis=False) for weight in (1000, 5000, 9000)),
    golden=False,
)


async def answered(house: House, *asked: Coroutine[Any, Any, Rollout]) -> list[Rollout]:
    """What they come to, while the driver goes on."""
    waiting = asyncio.gather(*asked)
    while not waiting.done():
        await house.go(1)
        await asyncio.sleep(0)
    return await waiting


def test_approvals_of_one_gate_do_not_open_the_next(tmp_path: Path) -> None:
    """Two people, or a client that asks again: both say yes to the first step."""
    house = House(tmp_path, 1)

    async def story() -> None:
        await house.start(2)
        await house.put(course=GATES)
        await house.go()
        first = house.rollout.stratum
        approve = (house.rollouts.ask(M, Command.APPROVE, who, "", "") for who in ("ann", "bo"))
        await answered(house, *approve)
        await house.go()
        assert house.rollout.step == 1, "the second gate is shut"
        entries = [decode(line) for line in await house.rollouts.audit(house.rollout)]
        [refused] = [e.reason for e in entries if e.event == "approve"]
        assert refused in {f"not followed: {why}" for why in (
            "it was meant for another rollout or step", "this step is approved already")}  # fmt: skip
        with pytest.raises(Unsupported, match=f"it stands at {house.rollout.stratum}"):
            await house.rollouts.ask(M, Command.APPROVE, "cy", "", first)
        await answered(house, house.rollouts.ask(M, Command.APPROVE, "cy", "", house.rollout.stratum))
        await house.go()
        assert house.rollout.step == 2

    drive(house, story())


def test_all_who_abort_are_answered(tmp_path: Path) -> None:
    house = House(tmp_path, 1)

    async def story() -> None:
        await house.start(2)
        await answered(house, *(house.rollouts.ask(M, Command.ABORT, who, "", "") for who in "abc"))
        assert house.rollout.result is Result.ABORTED
        entries = [decode(line) for line in await house.rollouts.audit(house.rollout)]
        assert [e.reason for e in entries if e.event == "abort"] == ["not followed: it is being aborted already"] * 2

    drive(house, story())


def test_what_is_left_when_it_ends_is_answered_then(tmp_path: Path) -> None:
    house = House(tmp_path, 1)

    async def story() -> None:
        await house.start(2)
        await house.put(course=GATES)
        await house.go()
        asked = (Command.APPROVE, Command.ABORT)
        await answered(house, *(house.rollouts.ask(M, command, "ann", "", "") for command in asked))
        assert house.rollout.phase is Phase.ENDED
        survey = await house.rollouts.ledger.do(lambda store: store.survey())
        assert survey.asked == ()

    drive(house, story())


def test_a_start_whose_id_is_taken_is_dropped_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    house = House(tmp_path, 1)

    async def story() -> None:
        first = await house.start(2)
        await house.command(Command.ABORT)
        taken = msgspec.structs.replace(house.rollouts.make(M, 2), id=first.id)
        await house.rollouts.propose(taken)
        await house.go()
        assert house.rollouts.live == {}
        await house.start(2)
        assert house.rollout.phase is Phase.RUNNING

    drive(house, story())


@pytest.mark.parametrize(("deaths", "phase"), [(2, Phase.RUNNING), (3, Phase.ENDED)])
def test_workers_that_die_while_it_is_tried_cut_it(tmp_path: Path, deaths: int, phase: Phase) -> None:
    house = House(tmp_path, 1)

    async def story() -> None:
        await house.start(2)
        house.fleet.deaths = deaths
        await house.go()
        assert house.rollout.phase is phase
        assert phase is Phase.RUNNING or house.rollout.reason == "breaker: 3 workers have died since it got requests"

    drive(house, story())


def test_rollouts_that_ended_long_ago_are_forgotten_but_for_the_last(tmp_path: Path) -> None:
    house = House(tmp_path, 1, keep=86400.0)
    looked = house.rollouts._retention

    async def story() -> None:
        for candidate in (2, 3):
            house.now += 1.0
            await house.start(candidate)
            await house.command(Command.ABORT)
        house.now += 86400.0
        await house.go(1)
        assert len(await house.rollouts.history(M, 9)) == 2, "not yet: it has just been looked"
        looked._next = 0.0
        await house.go(2)
        [left] = await house.rollouts.history(M, 9)
        assert left == house.rollout
        assert left.candidate == 3
        assert house.rollouts.endpoints[M].refused == (2, 3), "what was refused stays so"
        ledger = house.rollouts.ledger
        lines = await ledger.do(lambda store: store.lines(M))
        assert decode(lines[-1]).event == PRUNED
        assert await ledger.do(lambda store: store.verify(M)) is None
        page = await house.rollouts.audit(left, decode(lines[0]).seq, 2)
        assert page == lines[1:3]
        assert await house.rollouts.rollout("nobody") is None

    drive(house, story())


# Those who follow from outside.


class Queue:
    """A follower whose versions are all ready and that carries out what it hears, unless a test says otherwise."""

    def __init__(self, house: House, id: str = "q") -> None:
        self.house, self.id = house, id
        self.ready, self.follows = True, True
        self.route = Route()
        self.failures = 0

    async def says(self, **more: Any) -> Route:
        followers, route = self.house.rollouts.followers, self.route
        said = Said(
            version=route.record if self.follows else -1, behind="" if self.follows else "the queue",
            present=True, ready=self.ready, stable_ready=True,
        )  # fmt: skip
        seen = None
        if route.plan is not None and route.plan.stratum:
            counts = ArmEvidence(assigned=60, attempts=60, failures=self.failures)
            arms = {role: {ALL: counts} for role in (CANDIDATE, BASELINE)}
            arms["stable"] = {ALL: ArmEvidence(assigned=480, attempts=480)}
            seen = Seen(evidence=Stratum(endpoint=M, name=route.plan.stratum, arms=arms), seed=route.rollout)
        word = FollowerWord(id=self.id, rollout=route.rollout, said=said, seen=seen)
        self.route = await followers.hear(M, msgspec.json.encode(msgspec.structs.replace(word, **more)))
        return self.route

    async def talks(self, times: int = 4) -> None:
        for _ in range(times):
            await self.says()
            await self.house.go(2)


def test_a_rollout_waits_for_a_queue_and_goes_on_by_what_it_has_seen(tmp_path: Path) -> None:
    house = House(tmp_path, 1)
    queue = Queue(house)

    async def story() -> None:
        route = await queue.says()
        assert (route.rollout, route.plan.stable if route.plan else 0) == ("", 1)
        queue.ready = False
        await house.start(2)
        await queue.talks()
        assert house.rollout.phase is Phase.WAITING, "version 2 is not ready in the queue"
        assert (queue.route.keep, queue.route.candidate, queue.route.record) == ((1, 2), 2, house.rollout.version)
        queue.ready, queue.follows = True, False
        await queue.talks()
        assert house.rollout.phase is Phase.PREPARING
        assert house.rollouts.looks[house.rollout.id].view.behind == "replica queue q"
        queue.follows = True
        await queue.talks()
        assert house.rollout.phase is Phase.RUNNING
        assert queue.route.plan is not None
        assert queue.route.plan.stratum == house.rollout.stratum
        queue.failures = 30
        await queue.talks()
        assert house.rollout.result is Result.ABORTED, "nobody but the queue has seen a message"
        assert "error_rate" in house.rollout.reason
        await queue.talks(1)
        assert queue.route.plan == house.room.current.plans[0]

    drive(house, story())


def test_a_queue_that_has_left_is_not_waited_for_and_its_evidence_counts(tmp_path: Path) -> None:
    house = House(tmp_path, 1)
    queue = Queue(house)

    async def story() -> None:
        await queue.says()
        await house.start(2)
        await queue.talks()
        assert house.rollout.phase is Phase.RUNNING
        view = {row["id"]: row for row in house.rollouts.replicas.view(house.rollout)}
        assert view["queue q"]["counts"]
        await queue.says(leaves=True)
        await house.go()
        look = house.rollouts.looks[house.rollout.id]
        assert look.stratum is not None
        assert look.stratum.arms[CANDIDATE][ALL].attempts == 60
        assert "queue q" not in {row["id"] for row in house.rollouts.replicas.view(house.rollout)}
        await house.command(Command.ABORT)
        assert house.rollout.result is Result.ABORTED
        await house.go()
        assert await house.rollouts.ledger.do(lambda store: store.evidence()) == [], "it is over"

    drive(house, story())


def test_a_service_that_starts_again_waits_for_no_ghost_of_itself(tmp_path: Path) -> None:
    house = House(tmp_path, 1)

    async def story() -> None:
        await Queue(house).says()
        await house.go()
        assert sorted(row["id"] for row in house.rollouts.replicas.view(None)) == ["me", "queue q"]

    drive(house, story())
    again = House(tmp_path, 1)

    async def after() -> None:
        await again.rollouts.open("another")
        assert [row["id"] for row in again.rollouts.replicas.view(None)] == ["queue q"]
        await again.rollouts.close()

    asyncio.run(after())


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "is wanted"),
        (b'{"id": ""}', "a name of at most 200 printable characters"),
        (b'{"id": "a\\nb"}', "a name of at most 200 printable characters"),
    ],
)
def test_what_is_no_word_of_a_follower_is_refused(tmp_path: Path, body: bytes, why: str) -> None:
    house = House(tmp_path, 1)

    async def story() -> None:
        with pytest.raises(InvalidInput, match=why):
            await house.rollouts.followers.hear(M, body)

    drive(house, story())


def test_evidence_of_something_else_is_refused(tmp_path: Path) -> None:
    house = House(tmp_path, 1)
    queue = Queue(house)

    async def story() -> None:
        await house.start(2)
        await queue.says()
        other = Seen(evidence=Stratum(endpoint="other", name=""), seed=house.rollout.id)
        with pytest.raises(InvalidInput, match="evidence of the rollout that is named"):
            await queue.says(seen=other)

    drive(house, story())
