"""Asynchronous requests that raise, hang or kill, and consumers that die around a dead letter: each ends well."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octoserve.connectors.queues.address import parse
from octoserve.connectors.queues.answer_databases import sqlite_answers
from octoserve.connectors.queues.answers import Asked, SqlAnswers
from octoserve.connectors.queues.nats_publisher import NatsPublisher
from octoserve.connectors.queues.nats_server import EmbeddedBroker
from octoserve.connectors.queues.nats_wire import where_of
from octoserve.dataplane.deferred import message_id
from support.queue_runs import AFTER, BEFORE, HANGS, KILLS, RAISES, REFUSED, Trouble, dead, put_tricky, run, settings_of
from support.scale import FULL


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_tricky(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One broker for all tests here; each has a queue of its own."""
    folder = tmp_path_factory.mktemp("state")
    broker = EmbeddedBroker(folder)
    broker.join()
    yield folder
    broker.leave()


class Place:
    """A queue and a store, as a door has them."""

    def __init__(self, repository: Path, state_dir: Path, folder: Path, name: str) -> None:
        self.source = f"embedded:{name}"
        self.state_dir = state_dir
        self.sink = f"sqlite:///{folder}/x.db?table=answers"
        self.settings = settings_of(
            repository, state_dir, self.sink, source=self.source, payload="requests", run_timeout=3.0
        )
        self.store: SqlAnswers = sqlite_answers(parse(self.sink, "async.store"))

    def accepted(self, requests: dict[str, list[float]]) -> None:
        """As a door does it: id -> rows."""
        publisher = NatsPublisher(where_of(parse(self.source, "async.source"), self.state_dir))
        with contextlib.closing(publisher):
            for id, rows in requests.items():
                tensor = {"name": "x", "shape": [len(rows)], "datatype": "FP32", "data": rows}
                body = json.dumps({"id": id, "inputs": [tensor]}).encode()
                publisher.publish(body, message_id("tricky", id), {})
                self.store.accept(Asked(id=message_id("tricky", id), digest=id), 1.0)

    def told(self, id: str) -> dict[str, Any]:
        found = self.store.look(message_id("tricky", id))
        assert found is not None, id
        return dict(json.loads(found.told()))


@pytest.fixture
def place(repository: Path, state_dir: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    made = Place(repository, state_dir, tmp_path, f"async-{len(request.node.name)}{request.node.name[-6:-1]}")
    yield made
    made.store.close()


def test_a_request_that_kills_or_hangs_its_process_fails_and_its_mates_are_answered(place: Place):
    requests = {f"r{n}": [float(n), float(n + 1)] for n in range(30)}
    poison = {"raises": [1.0, RAISES], "kills": [KILLS, 2.0], "refused": [3.0, REFUSED]}
    if FULL:
        poison["hangs"] = [HANGS]
    requests.update(poison)
    place.accepted(requests)
    run(place.settings)
    for n in range(30):
        answer = place.told(f"r{n}")
        assert answer["state"] == "done"
        assert answer["answer"]["outputs"][0]["data"] == [2.0 * n + 1, 2.0 * n + 3]
    told = {id: place.told(id) for id in poison}
    assert {id: each["state"] for id, each in told.items()} == dict.fromkeys(told, "failed")
    assert {told[id]["attempts"] for id in poison if id != "refused"} == {3}
    assert "SIGKILL" in told["kills"]["error"]
    if FULL:
        assert "ran longer than 3 s" in told["hangs"]["error"]
    assert told["refused"]["error"] == "x is refused"
    assert set(dead(place.state_dir, place.source)) == {f"tricky/{id}" for id in told}


@pytest.mark.parametrize("when", [BEFORE, AFTER])
def test_a_consumer_that_dies_around_a_failure_fails_it_once(place: Place, when: str, tmp_path: Path):
    place.accepted({"good": [1.0], "bad": [REFUSED]})
    run(place.settings, Trouble("fail", when, 1, 1, str(tmp_path / "deaths")))
    assert (tmp_path / "deaths").stat().st_size == 1
    assert (place.told("good")["state"], place.told("bad")["state"]) == ("done", "failed")
    assert set(dead(place.state_dir, place.source)) == {"tricky/bad"}
