"""A candidate that kills, hangs or refuses in a queue's worker: its messages are stored by the trusted version all the
same, and the death is the candidate's."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from octoserve.connectors.queues.nats_server import EmbeddedBroker
from octoserve.control.rollout.following import FollowerWord, Route
from octoserve.core.evidence import ALL, CANDIDATE, ArmEvidence
from octoserve.patterns.message_queue.following import Follower
from octoserve.routing.plan import BUCKETS, RoutePlan, split_arms
from support.queue_runs import HANGS, KILLS, RAISES, dead, of, put_tricky, sent, settings_of
from support.queues import in_thread
from support.supervised import until

WORD = {"kills": KILLS, "hangs": HANGS, "raises": RAISES}


class Service:
    """One that has a canary at full weight, and hears what comes of it."""

    def __init__(self) -> None:
        plan = RoutePlan("tricky", 1, split_arms(1, 2, BUCKETS), seed="r1", stratum="r1/0", key="message:key")
        self.route = Route(plan=plan, keep=(1, 2), stable=1, candidate=2, rollout="r1", record=3)
        self.heard: list[FollowerWord] = []
        self.lock = threading.Lock()

    def __call__(self, word: FollowerWord) -> Route:
        with self.lock:
            self.heard.append(word)
        return self.route

    def candidate(self) -> ArmEvidence:
        """As it was told last."""
        told = [word.seen for word in self.heard if word.seen is not None]
        return told[-1].evidence.arms.get(CANDIDATE, {}).get(ALL, ArmEvidence()) if told else ArmEvidence()


def scored(path: Path) -> dict[str, int]:
    """message_id -> version."""
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as db:
        if not db.execute("select 1 from sqlite_master where name = 't'").fetchall():
            return {}
        return dict(db.execute("select message_id, version from t").fetchall())


@pytest.mark.parametrize("trouble", list(WORD))
def test_what_the_candidate_does_to_a_message_is_its_failure_and_not_the_message_s_end(tmp_path: Path, trouble: str):
    repository = put_tricky(put_tricky(tmp_path / "models", 1, calm=True), 2)
    rows = [{"id": f"m{i}", "x": float(i)} for i in range(40)]
    service = Service()
    settings = settings_of(repository, tmp_path / "s", f"sqlite:///{tmp_path}/r.db?table=t", until_idle=None)
    supervisor = of(settings, follower=Follower(service, "q", "", "json"))
    sent(tmp_path / "s", rows[:20])
    thread = in_thread(supervisor.run)
    try:
        sent(tmp_path / "s", [{"id": "bad", "x": WORD[trouble]}])
        until(lambda: "bad" in scored(tmp_path / "r.db"), 120)
        sent(tmp_path / "s", rows[20:])
        until(lambda: len(scored(tmp_path / "r.db")) == len(rows) + 1, 120)
        until(lambda: service.candidate().attempts > 1, 60)
        assert service.candidate().failures == 1
    finally:
        supervisor.stop()
        thread.join(60)
    versions = scored(tmp_path / "r.db")
    assert versions["bad"] == 1
    assert {versions[row["id"]] for row in rows[20:]} == {2}, "what was not tried before is the candidate's"
    assert dead(tmp_path / "s") == {}
    assert service.heard[-1].leaves
    broker = EmbeddedBroker(tmp_path / "s")
    broker.join()
    broker.leave()
