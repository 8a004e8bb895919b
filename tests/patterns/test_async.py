"""Asynchronous requests end to end: the page's own commands, and stories of what is killed, fails, or is away."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from octoserve.connectors.queues.nats_server import EmbeddedBroker
from support.graphs import flawed_model, versioned_model
from support.service import Answer, Served, serving
from support.supervised import publish, until

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "async.md"
LIMIT = 120.0


class Hook:
    """Somebody who is called back. answers: with which status, in order; 200 after that."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str | None, Any]] = []
        self.answers: list[int] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                hook.heard.append((self.path, self.headers["idempotency-key"], body))
                self.send_response(hook.answers.pop(0) if hook.answers else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


def spec(folder: Path, **settings: Any) -> Path:
    path = folder / "octoserve.yaml"
    path.write_text(json.dumps({"async": {"redeliver_after": "2s", "retry_delay": "100ms", **settings}}))
    return path


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def service(models: Path, tmp_path_factory: pytest.TempPathFactory, hook: Hook) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("async")
    repository = folder / "models"
    publish(repository, "m", 1, versioned_model(1))
    publish(repository, "flawed", 1, flawed_model(1, above=100.0))
    shutil.copytree(models / "penguins", repository / "penguins")
    path = spec(folder, models=["m", "flawed", "penguins"], callbacks=[f"{hook.url}/hooks/"], results="embedded:told")
    with serving(repository, folder / "service", spec=path, settle="100ms", patience=LIMIT) as made:
        yield made
    assert not broker_runs(folder / "service" / "state"), "who leaves last stops the broker"


def broker_runs(state_dir: Path) -> bool:
    return EmbeddedBroker(state_dir)._running() is not None


def stop_broker(state_dir: Path) -> None:
    broker = EmbeddedBroker(state_dir)
    if broker.folder.exists():
        broker.join()
        broker.leave()


def rows(*values: float, **more: Any) -> dict[str, Any]:
    flat = [number for value in values for number in (value, 0.0)]
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(values), 2], "data": flat}], **more}


def ask(service: Served, model: str, body: Any, **headers: str) -> Answer:
    return service.ask("POST", f"/v2/models/{model}/infer-async", body, headers)


def poll(service: Served, model: str, id: str) -> dict[str, Any]:
    return dict(service.ask("GET", f"/v2/models/{model}/infer-async/{id}").json())


def ended(service: Served, model: str, id: str) -> dict[str, Any]:
    """What a poll says once it is done or failed."""
    until(lambda: poll(service, model, id)["state"] != "pending", LIMIT, f"{model}/{id}")
    return poll(service, model, id)


def consumers(service: Served) -> list[psutil.Process]:
    """Processes that score."""
    found = []
    for child in psutil.Process(service.process.pid).children():
        with suppress(psutil.NoSuchProcess):  # one that was killed, and is not buried yet
            if "queue" in " ".join(child.cmdline()):
                found.append(child)
    return found


def queue(service: Served, *arguments: str) -> str:
    command = [sys.executable, "-m", "octoserve", "queue", *arguments, "--state-dir", str(service.state_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_does_what_it_says(service: Served):
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("curl ")]
    assert len(commands) == 4, "the page has other commands now: say here what they are to show"
    said: list[str] = []
    for line in commands:
        if "-d" not in line and "birds-1" in line:
            assert "202 Accepted" in said[0]
            ended(service, "penguins", "birds-1")
        line = line.replace("http://127.0.0.1:8080", f"http://{service.http}")
        done = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert "location: /v2/models/penguins/infer-async/birds-1" in said[0]
    told = json.loads(said[1])
    assert (told["state"], told["answer"]["outputs"][0]["data"]) == ("done", ["Adelie", "Gentoo", "Chinstrap"])
    assert "another request's" in said[2]
    assert "no request 'birds-2'" in said[3]


def test_the_answer_is_what_infer_answers(service: Served):
    body = rows(1.0, 2.5, -3.25, id="same")
    at_once = service.ask("POST", "/v2/models/m/infer", body).body
    assert ask(service, "m", body).status == 202
    ended(service, "m", "same")
    later = service.ask("GET", "/v2/models/m/infer-async/same").body
    assert later == b'{"id":"same","model":"m","state":"done","answer":' + at_once + b"}"


def test_consumers_that_are_killed_lose_and_double_nothing(service: Served):
    ids = [f"k-{number}" for number in range(60)]
    until(lambda: len(consumers(service)) == 3, LIMIT)
    connection = service.connect()
    for number, id in enumerate(ids):
        answer = service.ask("POST", "/v2/models/m/infer-async", rows(float(number), id=id), {}, connection)
        assert answer.status == 202
        if number % 20 == 10:
            until(lambda: len(consumers(service)) == 3, LIMIT)
            for process in consumers(service):
                process.kill()
    connection.close()
    for number, id in enumerate(ids):
        told = ended(service, "m", id)
        assert told["state"] == "done", told
        assert told["answer"]["outputs"][0]["data"] == [number + 1.0, 1.0]
    with closing(sqlite3.connect(service.state_dir / "async.db")) as db:
        [(found,)] = db.execute("select count(*) from answers where message_id like 'm/k-%'").fetchall()
    assert found == len(ids)
    assert service.total("octoserve_async_requests_total", model="m", outcome="accepted") >= len(ids)


def test_the_topic_of_results_is_told_of_every_end(service: Served):
    def told() -> dict[str, Any]:
        lines = queue(service, "tail", "embedded:told", "-n", "1000", "--json").splitlines()
        messages = [json.loads(line) for line in lines]
        return {each["headers"]["octoserve-message-id"]: json.loads(each["payload"]) for each in messages}

    assert ask(service, "m", rows(1.0, id="t-good")).status == 202
    assert ask(service, "flawed", rows(200.0, id="t-bad")).status == 202
    until(lambda: {"m/t-good", "flawed/t-bad"} <= told().keys(), LIMIT, "the topic to be told")
    assert told()["m/t-good"] == poll(service, "m", "t-good")
    assert told()["flawed/t-bad"] == poll(service, "flawed", "t-bad")


def test_a_dead_letter_is_shown_as_failed_and_a_better_version_answers_its_replay(service: Served, hook: Hook):
    hook.heard.clear()
    hook.answers = [503]
    place = f"{hook.url}/hooks/flawed"
    assert ask(service, "flawed", rows(1.0, id="good"), **{"X-Octoserve-Callback": place}).status == 202
    assert ask(service, "flawed", rows(200.0, id="bad"), **{"X-Octoserve-Callback": place}).status == 202
    assert ended(service, "flawed", "good")["state"] == "done"
    failed = ended(service, "flawed", "bad")
    assert (failed["state"], failed["attempts"]) == ("failed", 1)
    assert "the model refuses these inputs" in failed["error"]
    until(lambda: len(hook.heard) == 3, LIMIT, "both are told, the first of them twice")
    assert {(path, key, body["state"]) for path, key, body in hook.heard} == {
        ("/hooks/flawed", "flawed/good", "done"), ("/hooks/flawed", "flawed/bad", "failed"),
    }  # fmt: skip
    assert "flawed/bad" in queue(service, "dlq", "list", "embedded:async-flawed")
    publish(service.repository, "flawed", 2, versioned_model(2))
    until(lambda: answered_by(service, "flawed") == "2", LIMIT, "the consumer follows the plan")
    queue(service, "dlq", "replay", "embedded:async-flawed")
    until(lambda: poll(service, "flawed", "bad")["state"] == "done", LIMIT)
    assert poll(service, "flawed", "bad")["answer"]["model_version"] == "2"


_probes = iter(range(10_000))


def answered_by(service: Served, model: str) -> str:
    """The version that answers a new request."""
    id = f"probe-{next(_probes)}"
    assert ask(service, model, rows(1.0, id=id)).status == 202
    return str(ended(service, model, id)["answer"]["model_version"])


def test_what_is_refused_is_kept_nowhere(service: Served):
    assert ask(service, "m", rows(1.0, id="r"), **{"X-Octoserve-Callback": "http://127.0.0.1/hooks/"}).status == 400
    assert ask(service, "m", {"input_location": "s3://b/k", "id": "r"}).status == 400
    assert ask(service, "m", {"inputs": [], "id": "r"}).status == 400
    assert service.ask("GET", "/v2/models/m/infer-async/r").status == 404


def test_what_was_accepted_outlives_everything_that_is_killed(tmp_path: Path):
    repository = tmp_path / "models"
    publish(repository, "m", 1, versioned_model(1))
    path = spec(tmp_path, models=["m"])
    with serving(repository, tmp_path / "service", spec=path, finish=False, patience=LIMIT) as service:
        until(lambda: bool(consumers(service)), LIMIT)
        for process in consumers(service):
            process.send_signal(signal.SIGSTOP)  # so that nothing is answered
        for number in range(20):
            assert ask(service, "m", rows(float(number), id=f"a-{number}")).status == 202
        broker = json.loads((service.state_dir / "broker" / "address.json").read_text())["pid"]
        victims = [*consumers(service), psutil.Process(service.process.pid), psutil.Process(broker)]
        victims += [psutil.Process(pid) for pid in service.worker_pids()]
        for process in victims:
            process.kill()
        service.process.wait()
        psutil.wait_procs(victims, LIMIT)
    try:
        with serving(repository, tmp_path / "service", spec=path, patience=LIMIT) as service:
            for number in range(20):
                told = ended(service, "m", f"a-{number}")
                assert told["answer"]["outputs"][0]["data"] == [number + 1.0, 1.0]
    finally:
        stop_broker(tmp_path / "service" / "state")


@pytest.mark.full
def test_a_broker_that_is_away_costs_infer_nothing(tmp_path: Path):
    publish(tmp_path / "models", "m", 1, versioned_model(1))
    path = spec(tmp_path, models=["m"], source="nats://127.0.0.1:9/s-{model}?subject=s.{model}")
    with serving(tmp_path / "models", tmp_path / "service", spec=path, patience=LIMIT) as service:
        answer = ask(service, "m", rows(1.0))
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert service.ask("POST", "/v2/models/m/infer", rows(1.0)).status == 200
        until(lambda: "cannot connect to nats://127.0.0.1:9/s-m" in service.output(), LIMIT)


def test_off_nothing_of_it_is_there():
    script = (
        "import sys, octoserve.app, octoserve.patterns.online.worker, octoserve.patterns.online.supervisor.supervisor;"
        "words = ('connectors.queues', 'async_door', 'message_queue', 'deferred');"
        "print([name for name in sys.modules if any(word in name for word in words)])"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
