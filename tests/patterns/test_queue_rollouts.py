"""A rollout in a queue: messages by the route plan, each result with the version that scored it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octoserve.connectors.queues.nats_server import EmbeddedBroker
from octoserve.routing.plan import RoutePlan, split_arms
from octoserve.routing.split import pick
from support.graphs import flawed_model
from support.queues import jsonl

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
        """message_id -> version, first number of `plus`."""
        with closing(sqlite3.connect(self.folder / "results.db")) as db:
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


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--version", "newest"], "--version: a version such as 3, or stable or plan wanted"),
        (["--plan", "plan.json"], "--plan: nothing here goes by a route plan"),
        (["--version", "plan", "--plan", "nothing"], "neither a file nor a folder is called nothing"),
        (["--version", "plan", "--plan", "plan.json", "--plan-key", "parameter:x"], "has no parameters"),
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
