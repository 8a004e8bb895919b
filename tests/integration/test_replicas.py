"""Several services over one PostgreSQL are one: a step is a step everywhere, evidence is one sum, and one decides."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from octoserve.control.rollout.postgres_store import PostgresStore
from support.graphs import versioned_model
from support.hammer import hammering
from support.postgres import PASSWORD, Postgres, missing
from support.rolling import Rolling, rolling
from support.service import Served
from support.supervised import publish, until

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

GATES: dict[str, Any] = {
    "on_new_version": "rollout",
    "strategy": "canary",
    "steps": [
        {"weight": "20%", "samples": 40, "approval": True, "analysis": False},
        {"weight": "50%", "samples": 40, "approval": True, "analysis": False},
    ],
    "retain": "1s",
    "deadline": "120s",
}
"""A person decides, on the evidence of all replicas: so a test knows when what happens."""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def database(server: Postgres) -> Iterator[str]:
    """The URL of a database of its own."""
    name = f"d{uuid4().hex}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    yield f"{server.url.rpartition('/')[0]}/{name}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)".encode())


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path / "models", "versioned", 1, versioned_model(1))
    return tmp_path / "models"


@pytest.fixture
def replica(tmp_path: Path, database: str, repository: Path) -> Iterator[Callable[..., Rolling]]:
    """Starts one; all of them end with the test, and none has said the password."""
    with contextlib.ExitStack() as stack:

        def start(name: str, section: dict[str, Any] = GATES, models: Path = repository, **more: Any) -> Rolling:
            given: dict[str, Any] = {"workers": 1, "settle": "0.1s", "scan": "0.2s", "rollout_store": database, **more}
            return stack.enter_context(rolling(models, tmp_path / name, section, **given))

        yield start
    for log in tmp_path.glob("*/serve.log"):
        text = log.read_text()
        assert PASSWORD not in text
        assert PASSWORD.replace("/", "%2F") not in text


def stored(database: str) -> contextlib.closing[PostgresStore]:
    return contextlib.closing(PostgresStore(database))


def shares(*replicas: Rolling) -> list[float]:
    """The candidate's share on each."""
    return [it.shares().get((2, "candidate"), 0.0) for it in replicas]


def gate_of(it: Rolling, step: int) -> bool:
    rollout = it.rollout()
    return bool(rollout) and rollout["step"] == step and rollout["waiting_for"] == "approval"


def leads(it: Rolling) -> bool:
    return any(replica["here"] and replica["leads"] for replica in it.status()["replicas"])


def check_log(database: str) -> list[str]:
    """The log is one chain, and every record in it is the next one of the one before; what happened, in order."""
    with stored(database) as store:
        assert store.verify("versioned") is None
        happened = []
        versions: dict[str, int] = {}
        for rollout in reversed(store.history("versioned")):
            for entry in store.audit(rollout.id):
                assert entry.record is not None
                before = versions.get(rollout.id, -1)
                assert entry.record.version == before + (entry.event != "look"), (entry.event, before)
                versions[rollout.id] = entry.record.version
                if entry.event != "look":
                    happened.append(entry.event)
            assert versions[rollout.id] == rollout.version
        return happened


WHOLE = [
    "started", "preparing", "running", "settled", "approved", "advanced", "settled", "approved", "promoting",
    "retaining", "ended",
]  # fmt: skip


def test_a_canary_is_one_over_both_replicas(repository: Path, database: str, replica: Callable[..., Rolling]) -> None:
    a, b = replica("a"), replica("b")
    until(lambda: leads(a) != leads(b), 10)
    follower = b if leads(a) else a
    counted = 0
    for step, weight in enumerate((0.2, 0.5)):
        # What is asked before everybody has taken the step counts for the one before.
        until(lambda step=step: step == 0 or (a.rollout()["step"] == step and a.rollout()["settled"]), 20)
        with hammering(a.service, http=2, grpc=1) as at_a, hammering(b.service, http=2) as at_b:
            if step == 0:
                publish(repository, "versioned", 2, versioned_model(2))
            until(lambda step=step: gate_of(a, step) and gate_of(b, step), 40, f"{a.rollout()}")
            assert shares(a, b) == [weight, weight]
        assert at_a.errors + at_b.errors == []
        counted = at_a.answers[2] + at_b.answers[2]
        until(lambda n=counted: a.rollout()["arms"]["candidate"]["attempts"] == n, 5, f"{counted}: {a.rollout()}")
        until(lambda n=counted: b.rollout()["arms"]["candidate"]["attempts"] == n, 5)
        assert 0 < at_a.answers[2] < counted
        assert follower.command("approve", reason="looks well")[0] == 202
    with hammering(a.service, http=2) as at_a, hammering(b.service, http=2) as at_b:
        for it in (a, b):
            assert it.until_result()["result"] == "promoted"
        until(lambda: at_a.all_at(2) and at_b.all_at(2), 5)
    assert at_a.errors + at_b.errors == []
    assert [it.shares() for it in (a, b)] == [{(2, "stable"): 1.0}] * 2
    assert check_log(database) == WHOLE


def test_no_step_begins_before_every_replica_follows(
    repository: Path, database: str, replica: Callable[..., Rolling]
) -> None:
    """Over shares without gates, looked at all the time: the two are never more than one step apart."""
    weights = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0]
    steps = [{"weight": w, "pause": "0.3s", "samples": 0, "analysis": False} for w in weights[1:-1]]
    a, b = (replica(name, {**GATES, "steps": steps}) for name in "ab")

    def step_of(it: Rolling) -> int:
        return weights.index(sum(share for (version, _), share in it.shares().items() if version == 2))

    publish(repository, "versioned", 2, versioned_model(2))
    seen: set[tuple[int, int]] = set()
    end = time.monotonic() + 60
    while a.rollout().get("phase") != "ended" or b.rollout().get("phase") != "ended":
        assert time.monotonic() < end, (a.rollout(), b.rollout())
        before, other, after = step_of(a), step_of(b), step_of(a)
        if before == after:  # so it was there all the while that the other was asked
            seen.add((before, other))
    assert len({one for one, _ in seen}) > 3, seen
    assert all(abs(one - other) <= 1 for one, other in seen), seen
    events = check_log(database)
    assert events.count("advanced") == 4
    assert events[-3:] == ["promoting", "retaining", "ended"]


def test_a_leader_that_is_killed_is_followed_by_another(
    repository: Path, database: str, replica: Callable[..., Rolling]
) -> None:
    a = replica("a", finish=False)
    until(lambda: leads(a), 10)
    b = replica("b")
    with hammering(b.service, http=1) as at_b, hammering(a.service, http=2) as at_a:
        publish(repository, "versioned", 2, versioned_model(2))
        until(lambda: gate_of(a, 0) and gate_of(b, 0), 40)
        a.service.kill()
        killed = time.monotonic()
        until(lambda: leads(b), 15)
        assert time.monotonic() - killed < 7, "about 5 s, on a busy machine"
        shown = b.rollout()["arms"]["candidate"]["attempts"]

        def dead_one_counts() -> bool:
            counted = b.rollout()["arms"]["candidate"]["attempts"]
            return counted > max(shown, at_b.answers[2])  # more than shown: it is b's own sum

        until(dead_one_counts, 20)
        assert b.command("approve")[0] == 202
        until(lambda: gate_of(b, 1), 40)
        until(at_a.all_answered(20))  # its workers serve on
    assert at_a.errors + at_b.errors == []
    again = replica("a")
    until(lambda: shares(again, b) == [0.5, 0.5], 20)
    assert again.command("approve")[0] == 202
    for it in (again, b):
        assert it.until_result()["result"] == "promoted"
        assert it.shares() == {(2, "stable"): 1.0}
    assert not leads(again)
    assert len(again.status()["replicas"]) == 2, "it is the one that it was"
    assert check_log(database) == WHOLE


def test_a_leader_that_slept_decides_nothing_any_more(
    repository: Path, database: str, replica: Callable[..., Rolling]
) -> None:
    a = replica("a")
    until(lambda: leads(a), 10)
    b = replica("b")
    with hammering(b.service, http=1) as at_b, hammering(a.service, http=1) as at_a:
        publish(repository, "versioned", 2, versioned_model(2))
        until(lambda: gate_of(a, 0) and gate_of(b, 0), 40)
        a.service.process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: leads(b), 15)
            assert b.command("approve")[0] == 202
            until(lambda: shares(b) == [0.5], 10)
            until(lambda: b.rollout()["waiting_for"] == f"{a_of(b)} to follow", 8, "it may only be slow")
            until(lambda: gate_of(b, 1), 40)
        finally:
            a.service.process.send_signal(signal.SIGCONT)
        until(lambda: shares(a, b) == [0.5, 0.5], 10)
        assert (leads(a), leads(b)) == (False, True)
        assert "another replica leads now; this one follows" in a.service.output()
        assert a.command("approve")[0] == 202
        for it in (a, b):
            assert it.until_result()["result"] == "promoted"
        assert at_a.errors + at_b.errors == []
    assert check_log(database) == WHOLE


def a_of(b: Rolling) -> str:
    [other] = [replica["id"] for replica in b.status()["replicas"] if not replica["here"]]
    return f"replica {other}"


def test_without_a_database_all_serve_on_and_nothing_advances(
    repository: Path, database: str, server: Postgres, replica: Callable[..., Rolling]
) -> None:
    a, b = replica("a"), replica("b")
    with hammering(b.service, http=1) as at_b, hammering(a.service, http=1) as at_a:
        publish(repository, "versioned", 2, versioned_model(2))
        until(lambda: gate_of(a, 0) and gate_of(b, 0), 40)
        with stored(database) as store:
            before = store.leader(), store.live()
        server.kill()
        try:
            code, body = b.command("approve")
            assert code == 503, body
            end = time.monotonic() + 6
            while time.monotonic() < end:
                assert shares(a, b) == [0.2, 0.2]
            until(at_a.all_answered(20))
            until(at_b.all_answered(20))
        finally:
            server.start()
        with stored(database) as store:
            assert (store.leader(), store.live()) == before, "nobody was taken for gone"
        for step in (0, 1):
            until(lambda step=step: gate_of(a, step) and gate_of(b, step), 30)
            until(lambda: a.command("approve")[0] == 202, 10)
        for it in (a, b):
            assert it.until_result()["result"] == "promoted"
        assert at_a.errors + at_b.errors == []
    assert check_log(database) == WHOLE
    assert "rollouts stand still" in a.service.output()


def test_who_lacks_the_version_is_waited_for(
    repository: Path, tmp_path: Path, database: str, replica: Callable[..., Rolling]
) -> None:
    late = tmp_path / "late"
    publish(late, "versioned", 1, versioned_model(1))
    publish(tmp_path / "other", "another", 1, versioned_model(1))
    a, b = replica("a"), replica("b", models=late)
    replica("c", models=tmp_path / "other")  # it has no part in this
    with hammering(a.service, http=1), hammering(b.service, http=1):
        publish(repository, "versioned", 2, versioned_model(2))
        until(lambda: a.rollout().get("phase") == "waiting" and b.rollout().get("phase") == "waiting", 20)
        time.sleep(2)
        assert a.rollout()["waiting_for"] == "version 2 to lie in the repository"
        publish(late, "versioned", 2, versioned_model(2))
        until(lambda: gate_of(a, 0), 30)
        assert shares(a, b) == [0.2, 0.2]


def test_other_content_under_the_same_number_is_refused(
    repository: Path, tmp_path: Path, replica: Callable[..., Rolling]
) -> None:
    late = tmp_path / "late"
    publish(late, "versioned", 1, versioned_model(1))
    a, b = replica("a"), replica("b", models=late)
    publish(repository, "versioned", 2, versioned_model(2))
    publish(late, "versioned", 2, versioned_model(2, ballast=10))
    for it in (a, b):
        ended = it.until_result()
        assert ended["result"] == "aborted"
        assert "other content under this version number" in ended["reason"]


def test_any_replica_takes_starts_and_commands(
    repository: Path, database: str, replica: Callable[..., Rolling]
) -> None:
    section = {**GATES, "on_new_version": "hold"}
    a, b = replica("a", section), replica("b", section)
    until(lambda: leads(a) != leads(b), 10)
    leader, follower = (a, b) if leads(a) else (b, a)
    publish(repository, "versioned", 2, versioned_model(2))
    publish(repository, "versioned", 3, versioned_model(3))
    until(lambda: follower.service.state("versioned", 3)["state"] != "absent", 10)
    code, body = follower.start(2, reason="by the follower")
    assert code == 201, body
    assert body["rollout"]["candidate"] == 2
    until(lambda: leader.rollout().get("phase") == "running", 20)
    code, body = follower.start(3)
    assert code == 201, body
    until(lambda: leader.rollout()["candidate"] == 3 and leader.rollout()["phase"] == "running", 20)
    code, body = follower.command("abort", reason="enough")
    assert code == 202, body
    for it in (a, b):
        assert it.until_result()["reason"] == "abort by a person: enough"
        assert it.shares() == {(1, "stable"): 1.0}
        assert it.status()["refused"] == [2, 3]
    code, body = follower.command("abort")
    assert code == 409, body
    with stored(database) as store:
        assert [(r.candidate, str(r.result)) for r in store.history("versioned")] == [(3, "aborted"), (2, "superseded")]
    leader.service.finish()  # in good order: the next one leads at once
    began = time.monotonic()
    until(lambda: leads(follower), 5)
    assert time.monotonic() - began < 2


def test_a_replica_that_starts_waits_for_the_database(
    repository: Path, database: str, server: Postgres, tmp_path: Path, replica: Callable[..., Rolling]
) -> None:
    """It would have to guess which version is trusted."""
    section = {**GATES, "on_new_version": "hold"}
    a = replica("a", section)
    until(lambda: leads(a) and a.status()["stable"] == 1, 10)
    publish(repository, "versioned", 2, versioned_model(2))
    server.kill()
    (tmp_path / "b").mkdir()
    flags = ("--spec", str(tmp_path / "a" / "octoserve.yaml"), "--rollout-store", database)
    b = Served(repository, tmp_path / "b" / "state", *flags, workers=1, wait=False)
    try:
        until(lambda: "the start waits for the rollout store" in b.output(), 20)
        assert not b.ports_file.exists()
        server.start()
        b.wait_ready()
        assert Rolling(b).shares() == {(1, "stable"): 1.0}
        b.finish()
    finally:
        if server.process.poll() is not None:
            server.start()
        b.clean()
    with stored(database) as store:
        assert store.live() == []
