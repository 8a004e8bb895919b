"""A rollout in a queue: messages by the route plan, each result with the version that scored it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octoserve.connectors.queues.nats_server import EmbeddedBroker
from octoserve.routing.plan import RoutePlan, split_arms
from octoserve.routing.split import pick
from support.graphs import flawed_model
from support.queue_runs import sent
from support.queues import jsonl
from support.rolling import rolling
from support.supervised import until

MODEL = "flawed"
BAD = 1000.0
SINK = ("--sink", "sqlite:///results.db?table=t")


class Place:
    """A folder that commands run in, with versions 1 and 2 of a model; version 2 fails for large numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self.publish(1, 1e9)
        self.publish(2, BAD)

    def publish(self, version: int, above: float) -> None:
        folder = self.folder / "models" / MODEL / str(version)
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(flawed_model(version, above))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "octoserve", *arguments], cwd=self.folder, env={**os.environ, "NO_COLOR": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, *arguments: str) -> str:
        """It must end well."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        return out

    def queue_run(self, *arguments: str) -> str:
        repository = ("--repository", "models", "--model", MODEL, "--source", "embedded")
        return self.run("queue", "run", *repository, *SINK, *arguments, "--until-idle", "1s", "--json")

    def send(self, numbers: list[int]) -> None:
        rows = [{"id": f"m{i}", "who": f"k{i % 50}", "x": [float(i), 0.5]} for i in numbers]
        self.run("queue", "send", "embedded", str(jsonl(self.folder / "messages.jsonl", rows)))

    def results(self) -> dict[str, tuple[int, Any]]:
        """message_id -> version, first number of `plus`; none before the first is stored."""
        with closing(sqlite3.connect(self.folder / "results.db")) as db:
            if not db.execute("select 1 from sqlite_master where name = 't'").fetchall():
                return {}
            rows = db.execute("select message_id, version, plus from t").fetchall()
        return {id: (version, json.loads(plus)[0]) for id, version, plus in rows}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.wait()
    broker = EmbeddedBroker(tmp_path / ".octoserve")
    if broker.folder.exists():
        broker.join()
        broker.leave()


def canary(weight: int, **more: Any) -> RoutePlan:
    return RoutePlan(MODEL, 3, split_arms(1, 2, weight, baseline=True), **{"seed": "r1", "key": "column:who", **more})


def test_messages_are_scored_by_the_version_that_their_key_meets_online(place: Place):
    plan = canary(3000)
    (place.folder / "plan.json").write_bytes(msgspec.json.encode(plan))
    numbers = [*range(300), 1001, 1007, 1012]
    place.send(numbers)
    done = json.loads(place.queue_run("--version", "plan", "--plan", "plan.json", "--batch-rows", "64"))
    found = place.results()
    assert (done["stored"], done["dead"]) == (len(numbers), 0)
    for i in numbers:
        version, plus = found[f"m{i}"]
        # What version 2 cannot score, version 1 does; everything else is its key's.
        assert version == (1 if i > BAD else pick(plan, f"k{i % 50}".encode()))
        assert plus == i + version
    by_who = {f"k{i % 50}": found[f"m{i}"][0] for i in range(300)}
    assert set(by_who.values()) == {1, 2}
    place.send([*range(300), 400])  # those that are there stay, whatever version scores them now
    place.queue_run("--version", "stable", "--plan", "plan.json")
    assert place.results() == {**found, "m400": (1, 401.0)}


SECTION: dict[str, Any] = {
    "on_new_version": "hold", "key": "column:who", "steps": ["30%"], "min_samples": 30, "retain": "1s", "pairs": 60,
    "mirror": "100%", "noise": "10%", "analysis": {"latency": {}},
}  # fmt: skip


class Flow:
    """Messages that come, as a rollout goes on."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.sent = 0

    def more(self, count: int = 60) -> None:
        rows = [{"id": f"m{i}", "who": f"k{i}", "x": [i % 500.0, 0.5]} for i in range(self.sent, self.sent + count)]
        sent(self._place.folder / ".octoserve", rows)
        self.sent += count

    def until(self, reached: Callable[[], bool]) -> None:
        """Send until it holds."""

        def again() -> bool:
            if reached():
                return True
            self.more()
            return False

        until(again, 120)

    def done(self) -> dict[str, tuple[int, Any]]:
        """All results, once all are there: each message once, and right by the version that scored it."""
        until(lambda: len(self._place.results()) == self.sent, 120)
        found = self._place.results()
        for i in range(self.sent):
            version, plus = found[f"m{i}"]
            assert plus == i % 500 + version
        return found


def test_a_queue_follows_a_service_through_canary_shadow_and_blue_green(place: Place):
    """No request reaches the service: what decides is what the queue has seen."""
    place.publish(3, 1e9)
    flow = Flow(place)
    flow.more()
    with rolling(place.folder / "models", place.folder / "s", SECTION, endpoint=MODEL, workers=1) as it:
        admin = f"127.0.0.1:{it.service.ports['admin']}"
        assert it.status()["stable"] == 3, "the highest, as it always began"
        queue = place.start(
            "queue", "run", "--repository", "models", "--model", MODEL, "--source", "embedded", *SINK, "--version",
            "plan", "--plan", admin, "--redeliver-after", "60s",
        )  # fmt: skip
        try:
            assert {version for version, _ in flow.done().values()} == {3}

            assert it.start(1, strategy="canary")[0] == 201
            flow.until(lambda: it.rollout()["phase"] == "ended")
            assert (it.rollout()["result"], it.status()["stable"]) == ("aborted", 3), "its answers are others"
            assert "disagree" in it.rollout()["reason"]
            by = [version for version, _ in flow.done().values()]
            assert 0 < by.count(1) < by.count(3)
            first = flow.sent

            assert it.start(2, strategy="shadow")[0] == 201
            flow.until(lambda: it.rollout()["phase"] == "ended")
            assert it.rollout()["result"] == "aborted"
            code, report = it.service.admin("GET", f"/api/rollouts/{MODEL}/report")
            assert code == 200
            assert report["candidate"]["n"] > 0, "its pairs lie with the service"
            assert {version for id, (version, _) in flow.done().items() if int(id[1:]) >= first} == {3}

            assert it.start(2, strategy="blue-green")[0] == 201
            flow.until(lambda: it.rollout()["phase"] == "ended")
            assert (it.rollout()["result"], it.status()["stable"]) == ("promoted", 2)
            flow.more()
            found = flow.done()
            assert [row["id"].split(" ")[0] for row in it.status()["replicas"] if not row["leads"]] == ["queue"]

            (lag,) = json.loads(place.run("queue", "lag", "embedded", "--json"))
            *before, last = lag["scored_by"]
            assert last["by"] == "version 2"
            assert [each["by"] for each in before] == ["version 3", "version 1 30 %, version 3 70 %", "version 3"]
            cut = last["from"] - 1  # sequences count from 1
            assert {version for id, (version, _) in found.items() if int(id[1:]) >= cut} == {2}
            assert {version for id, (version, _) in found.items() if first <= int(id[1:]) < cut} == {3}
        finally:
            queue.send_signal(signal.SIGTERM)
            _, err = queue.communicate(timeout=60)
        assert queue.returncode == 0, err
        assert "Traceback" not in err
        until(lambda: all(row["leads"] for row in it.status()["replicas"]), 60)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--plan", "plan.json"], "--plan: nothing here goes by a route plan"),
        (["--version", "plan", "--plan", "127.0.0.1:9"], "no service answers there"),
        (["--version", "plan", "--plan", "other.json"], "no version 3 of 'flawed'"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_one_line(place: Place, arguments: list[str], why: str):
    (place.folder / "plan.json").write_bytes(msgspec.json.encode(canary(3000)))
    other = RoutePlan(MODEL, 1, split_arms(1, 3, 3000), seed="r", key="message:key")
    (place.folder / "other.json").write_bytes(msgspec.json.encode(other))
    process = place.start(
        "queue", "run", "--repository", "models", "--model", MODEL, "--source", "embedded", *SINK, *arguments
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode in (1, 2), err
    assert why in err
    assert "Traceback" not in err
