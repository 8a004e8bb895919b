"""The message queue as its page tells it: the tutorial's own commands, and stories around them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from octoserve.connectors.queues.nats_server import EmbeddedBroker, greeting
from support.graphs import put_stepped
from support.queues import jsonl
from support.supervised import until

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "message-queue.md"
BIRDS = ROOT / "examples" / "queue" / "penguins.jsonl"


class Place:
    """A folder that commands run in, with a repository in `models`."""

    def __init__(self, folder: Path, models: Path) -> None:
        self.folder = folder
        (folder / "models").symlink_to(models)
        (folder / "examples").symlink_to(ROOT / "examples")
        self.started: list[subprocess.Popen[str]] = []

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}

    def shell(self, line: str) -> str:
        """What it prints. It must end well."""
        done = subprocess.run(
            ["sh", "-c", line], cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "octoserve", "queue", *arguments],
            cwd=self.folder, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def queue(self, *arguments: str) -> str:
        """`octoserve queue ...`, ended well."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        return out

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.folder / "birds.db")) as db:
            return db.execute(statement).fetchall()


RUN = ("--repository", "models", "--model", "penguins", "--source", "embedded")
SINK = ("--sink", "sqlite:///birds.db?table=species")


@pytest.fixture
def place(tmp_path: Path, models: Path) -> Iterator[Place]:
    made = Place(tmp_path, models)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.wait()
    broker = EmbeddedBroker(tmp_path / ".octoserve")  # of whoever was killed, the broker is left
    if broker.folder.exists():
        broker.join()
        broker.leave()


def commands() -> list[str]:
    """The page's commands, but for building the model, which the tests have."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return [line for line in lines if "build.py" not in line]


def test_the_tutorial_does_what_it_says(place: Place):
    said = {line: place.shell(line) for line in commands()}
    run = [out for line, out in said.items() if " run " in line]
    assert len(commands()) == 8, "the page has other commands now: say here what they are to show"
    assert any("sent 344 messages" in out for out in said.values())
    assert any(out.startswith("344 behind, 0 in hand") for out in said.values())
    assert any("('Adelie', 147), ('Chinstrap', 67), ('Gentoo', 119)" in out for out in said.values())
    assert any("bird-9" in out and "field 'sex' is missing" in out for out in said.values())
    assert any("sent 1 dead letters" in out for out in said.values())
    assert any("default/345" in out and '"bird-9"' in out for out in said.values())
    assert len(run) == 1, "the same command twice: the last one's"
    assert run[0].startswith("stored 0, dead 1")
    assert place.sql("select count(*), count(distinct message_id) from species") == [(333, 333)]
    assert greeting(json.loads((place.folder / ".octoserve/broker/address.json").read_text())["port"]) == {}


def test_killed_with_its_supervisor_and_begun_again(place: Place):
    place.queue("send", "embedded", str(BIRDS))
    for _ in range(3):
        process = place.start("run", *RUN, *SINK, "--batch-rows", "10", "--redeliver-after", "2s")
        until(lambda: (place.folder / "birds.db").exists(), 60)
        time.sleep(0.3)
        process.kill()
        process.wait()
    place.queue("run", *RUN, *SINK, "--until-idle", "1s", "--redeliver-after", "2s")
    assert place.sql("select count(*), count(distinct message_id) from species") == [(333, 333)]
    dead = json.loads(place.queue("dlq", "list", "embedded", "--json"))
    assert len(dead) == len({letter["id"] for letter in dead}) == 11
    assert "0 behind, 0 in hand" in place.queue("lag", "embedded")


def test_it_ends_in_order_when_told_to_and_shows_what_it_does(place: Place):
    process = place.start("run", *RUN, *SINK, "--metrics-port", "0")
    assert process.stderr is not None
    first = process.stderr.readline()
    page = re.search(r"http://\S+/metrics", first)
    assert page is not None, first
    place.queue("send", "embedded", str(BIRDS))

    def figures() -> dict[str, float]:
        with urllib.request.urlopen(page[0], timeout=10) as answer:
            lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    stored = 'octoserve_queue_messages_total{model="penguins",outcome="stored"}'
    until(lambda: figures().get(stored) == 333, 60)
    seen = figures()
    assert seen['octoserve_queue_messages_total{model="penguins",outcome="dead"}'] == 11
    assert seen['octoserve_queue_latency_seconds_count{model="penguins"}'] == 333
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.startswith("stored 333, dead 11")
    assert "Traceback" not in err


def test_what_stands_before_and_after_the_model_is_run_for_messages_too(place: Place, monkeypatch: pytest.MonkeyPatch):
    put_stepped(place.folder / "stepped" / "sums" / "1")
    (place.folder / "rows.jsonl").write_text("".join(f'{{"id": "{i}", "raw": [{i}, 0.5]}}\n' for i in range(20)))
    place.queue("send", "embedded", "rows.jsonl")
    asked = ("--repository", "stepped", "--model", "sums", "--source", "embedded", "--until-idle", "1s")
    asked = (*asked, "--sink", "sqlite:///birds.db?table=sums")
    process = place.start("run", *asked)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1, "code runs only where somebody trusts it"
    assert "sum.py is code, and code of this repository is not trusted" in err
    monkeypatch.setenv("OCTOSERVE_TRUST", "code")
    place.queue("run", *asked)
    assert sorted(place.sql("select cast(message_id as int), total from sums")) == [(i, 2 * i + 3.0) for i in range(20)]


def test_real_documents_are_classified_by_content_type(place: Place):
    """The page's commands, over a few of this project's own files."""
    chosen = {
        "README.md": "markdown", "pyproject.toml": "toml", "src/octoserve/app.py": "python",
        "docs/images/eight-patterns.svg": "svg", "docs/images/console-light.png": "png",
        "examples/queue/penguins.jsonl": "jsonl",
    }  # fmt: skip
    for name in chosen:
        (place.folder / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place.folder / "docs" / name)
    section = PAGE.read_text().partition("## Real documents\n")[2].partition("\n## ")[0]
    lines = [line[2:] for line in section.splitlines() if line.startswith("$ ") and "build.py" not in line]
    *_, shown = [place.shell(line) for line in lines]
    assert dict(line.rsplit(" ", 1) for line in shown.splitlines()) == {f"docs/{k}": v for k, v in chosen.items()}


def test_a_broker_that_is_killed_is_started_again(place: Place):
    rows = [json.loads(line) for line in BIRDS.read_text().splitlines()]
    whole = [row for row in rows if row["sex"]]
    process = place.start("run", *RUN, *SINK, "--redeliver-after", "2s")
    until(lambda: (place.folder / ".octoserve/broker/address.json").exists(), 60)
    address = place.folder / ".octoserve/broker/address.json"
    for part in range(3):
        place.queue("send", "embedded", str(jsonl(place.folder / "part.jsonl", whole[part::3])))
        os.kill(json.loads(address.read_text())["pid"], signal.SIGKILL)
    until(lambda: place.sql("select count(*) from species") == [(333,)], 90)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["run", "--repository", "models", "--model", "penguins"], "source: wanted, none was given"),
        (["run", *RUN, "--sink", "x.db"], "sink: an address such as"),
        (["run", *RUN, "--sink", "sqlite:///x.db"], "table= is wanted"),
        (["run", *RUN, "--sink", "mysql://h/t?table=t"], "unknown kind 'mysql'"),
        (["run", *RUN, "--sink", "sqlite:///x.db?table=t&tabel=u"], "unknown parameter 'tabel'"),
        (["run", *RUN, *SINK, "--until-idle", "soon"], "--until-idle"),
        (["run", *RUN, *SINK, "--model", "nobody"], "no model 'nobody'"),
        (["run", *RUN, *SINK, "--model", "fixed"], "takes no rows"),
        (["run", *RUN[:-1], "nats://127.0.0.1:9/s", *SINK], "cannot connect to nats://127.0.0.1:9/s"),
        (["send", "embedded", "nothing.jsonl"], "cannot read nothing.jsonl"),
        (["dlq", "replay", "embedded", "bird-1"], "no dead letter 'bird-1'"),
        (["lag", "embedded:a.b"], "a name for the stream"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_one_line(arguments: list[str], why: str, place: Place):
    process = place.start(*arguments)
    _, err = process.communicate(timeout=120)
    assert process.returncode in (1, 2)
    assert why in err
    assert "Traceback" not in err


def test_no_secret_is_shown(place: Place):
    shutil.copy(BIRDS, place.folder / "birds.jsonl")
    sink = "postgresql://me:hidd%2Fen@127.0.0.1:9/db?table=t"
    process = place.start("run", *RUN, "--sink", sink)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "cannot connect to postgresql://127.0.0.1:9/db" in err
    for secret in ("hidd%2Fen", "hidd/en"):
        assert secret not in out + err
