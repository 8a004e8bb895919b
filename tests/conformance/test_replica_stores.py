"""What replicas tell each other, over every store: one leads, a word replaces the last one, evidence stays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from uuid import uuid4

import msgspec
import psycopg
import pytest

from octoserve.control.rollout.postgres_store import PostgresStore
from octoserve.control.rollout.replica_tables import ReplicaReport, ReplicaRow, Said
from octoserve.control.rollout.store import Fenced, Ledger, SqliteStore
from octoserve.control.rollout.values import Command, Endpoint
from octoserve.core.evidence import ArmEvidence, Seen, Stratum
from support.rollouts import a_rollout, an_entry, ended


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request, tmp_path):
    """Opens the same store again and again."""
    if request.param == "sqlite":
        yield lambda: SqliteStore(tmp_path)
        return
    url, schema = request.getfixturevalue("server"), f"t{uuid4().hex}"
    yield lambda: PostgresStore(url, schema)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"drop schema if exists {schema} cascade".encode())


@pytest.fixture
def store(opened) -> Iterator[Ledger]:
    with closing(opened()) as store:
        yield store


SEEN = Seen(
    evidence=Stratum(
        endpoint="m",
        name="r1/0",
        arms={"candidate": {"": ArmEvidence(assigned=9, attempts=8, failures=1, latency={500: 3, 60: 4})}},
    ),
    seed="r1",
    cut="it fails",
    keys=(3, {2**64 - 8: "candidate", 16: "stable"}),
)
REPORT = ReplicaReport(
    rollouts={"r1": Said(version=3, behind="worker 1", present=True, failed="\0 no\ud800", digest="sha256:1")},
    serves=("m",),
)


def test_of_those_who_would_take_over_one_does(opened):
    first = opened()
    token = first.lead("a")
    came: list[int] = []

    def take(name: str) -> None:
        with closing(opened()) as mine:
            came.append(mine.take_over(token, name))

    threads = [threading.Thread(target=take, args=(f"b{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(came) == [0, 0, 0, token + 1]
    survey = first.survey()
    assert survey.token == token + 1
    assert survey.leader.startswith("b")
    with pytest.raises(Fenced):
        first.commit(token, a_rollout(), [])
    first.close()


def test_a_word_replaces_the_one_before_and_the_beat_grows(opened, store):
    store.tell("a", ReplicaReport(), {})
    store.tell("a", REPORT, {"r1": SEEN})
    with closing(opened()) as other:
        other.tell("b", ReplicaReport(serves=()), {})
        a, b = other.survey().replicas
        assert (a.id, a.beat, a.report.serves) == ("a", 2, ("m",))
        assert b == ReplicaRow(id="b", beat=1, report=ReplicaReport(serves=()))
        assert msgspec.structs.asdict(a.report.rollouts["r1"]) == {
            **msgspec.structs.asdict(REPORT.rollouts["r1"]),
            "failed": a.report.rollouts["r1"].failed,
        }
        assert other.evidence() == [("a", SEEN)]
        other.tell("b", ReplicaReport(), {"r1": msgspec.structs.replace(SEEN, cut="")})
        store.tell("a", REPORT, {})
        assert [name for name, _ in other.evidence()] == ["a", "b"], "what is not told again stays"


def test_who_leaves_is_not_waited_for_and_its_evidence_stays(store):
    store.tell("a", REPORT, {"r1": SEEN})
    store.leave("a")
    assert store.survey().replicas == ()
    assert store.evidence() == [("a", SEEN)]


def test_what_is_of_no_live_rollout_is_forgotten_by_the_leader_alone(store):
    token = store.lead("a")
    store.tell("a", REPORT, {"r1": SEEN, "r2": SEEN})
    store.tell("b", REPORT, {"r2": SEEN})
    store.show(token, {"r1": b'{"a":1}', "r2": b"{}"})
    with pytest.raises(Fenced):
        store.forget(token + 1, (), ["a"])
    store.forget(token, {"r1"}, ["b"])
    assert [row.id for row in store.survey().replicas] == ["a"]
    assert store.evidence() == [("a", SEEN)]
    assert store.looks() == {"r1": b'{"a":1}'}
    with pytest.raises(Fenced):
        store.show(token - 1, {"r1": b"{}"})


def test_a_proposal_is_there_until_its_rollout_starts(opened, store):
    token = store.lead("a")
    with closing(opened()) as other:
        other.propose(a_rollout("r1"))
        other.propose(a_rollout("r2"))
        other.propose(a_rollout("r3", "n"))
        assert {name: r.id for name, r in store.survey().proposed.items()} == {"m": "r2", "n": "r3"}
        store.commit(token, a_rollout("r2", reason="started with other fields"), [])
        assert list(other.survey().proposed) == ["n"]
        with pytest.raises(Fenced):
            other.withdraw(token + 1, "r3")
        store.withdraw(token, "r3")
        assert other.survey().proposed == {}


def test_a_survey_is_everything_a_step_starts_from(store):
    token = store.lead("a")
    rollout = a_rollout()
    store.commit(token, rollout, [an_entry(rollout)], Endpoint(name="m", stable=1))
    seq = store.ask("m", Command.PAUSE, "ada", "lunch")
    store.tell("a", REPORT, {})
    survey = store.survey()
    assert (survey.token, survey.leader, survey.live) == (token, "a", (rollout,))
    assert survey.endpoints == store.endpoints()
    assert list(survey.asked) == store.asked()
    assert survey.asked[0].seq == seq
    store.commit(token, ended(rollout), [], commands_done=[seq])
    assert store.survey().live == ()
    assert store.survey().asked == ()
