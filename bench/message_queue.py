"""A queue from Kafka to PostgreSQL, one worker on one core, against what would be written instead.

All start behind the same messages in the same topic, each in a group of its own, and write the same kind of table;
each is a process of its own, in turns. The clock runs from the first rows that are seen in the table to the last, so it
holds no start. Kafka, PostgreSQL and Redis are on the other core. What was written is read and held against what bare
ONNX Runtime says before it counts.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import environments
import processes
import systems
from answers import WrongAnswer
from contest import FAILURES, Contest, say
from report import Row
from servers import ServerFailed
from systems import Systems

ROWS = 100_000
FEATURES = ",".join(f"f{i}" for i in range(30))
BARS = {"bare": 0.8, "faststream": 2.0, "celery": 20.0, "one_by_one": 10.0}
"""Peer -> how many times its rate is wanted."""
NAMES = {"bare": "bare loop", "faststream": "FastStream", "celery": "Celery", "one_by_one": "one by one, by hand"}
SHARES = {"celery": 20, "one_by_one": 20}
"""Those that would take minutes get one message in so many."""
FLAT = 1.2
"""Of octoserve's most memory before `MORE` times the messages to that before them: were they held, it would be 1.6."""
MORE = 5
_PARTITIONS = 4
_TOLERANCE = 1e-5
"""Of a probability."""
_LOOK = 0.005
_GRACE = 30.0


@dataclass(frozen=True)
class Messages:
    """As many lines of a file, lying in a topic, and what they come to."""

    rows: int
    file: Path
    topic: str
    labels: int
    chances: float


@dataclass(frozen=True)
class Run:
    """Messages a second, the process's CPU time a message in us, and the most that it had resident, in MB."""

    rate: float
    cpu: float
    memory: float


def queue(contest: Contest) -> None:
    """All of them in turns; then octoserve alone before a longer backlog, for its memory."""
    if contest.lacks("queue", "octoserve"):
        return
    if reason := systems.missing():
        contest.report.skipped.append(f"queue: {reason}")
        return
    with systems.on(contest.load_cores), systems.running(contest.load_cores) as running:
        names = ["octoserve", *BARS]
        if running.redis is None:
            contest.report.skipped.append("queue, Celery: needs redis-server; on Debian: apt-get install redis-server")
            names.remove("celery")
        stage = _Stage(contest, running)
        found: dict[str, list[Run]] = {}
        for number in range(contest.rounds):
            for name in names if number % 2 == 0 else reversed(names):
                if number and name not in found:
                    continue  # it has failed
                try:
                    run = stage.run(name, max(1000, contest.rows // SHARES.get(name, 1)))
                except FAILURES as error:
                    found.pop(name, None)
                    contest.fail(f"queue, {name}", error)
                    continue
                found.setdefault(name, []).append(run)
                say(
                    f"queue, round {number + 1} of {contest.rounds}, {name}: {run.rate:,.0f} messages/s, "
                    f"{run.cpu:,.0f} us of CPU each, {run.memory:,.0f} MB"
                )
        longer: list[Run] = []
        try:
            longer = [stage.run("octoserve", MORE * contest.rows)]
        except FAILURES as error:
            contest.fail(f"queue, octoserve, {MORE} times the backlog", error)
    _report(contest, found, longer)


def _report(contest: Contest, found: dict[str, list[Run]], longer: list[Run]) -> None:
    rows = contest.report.rows
    ours = [run.rate for run in found.get("octoserve", [])]
    for name, bar in BARS.items():
        title = f"queue of {contest.rows:,} messages, one core: {NAMES[name]}"
        rows.append(Row(title, "messages/s", ours, [run.rate for run in found.get(name, [])], "times", bar))
    for name in ("octoserve", *BARS):
        runs = found.get(name, [])
        rows.append(Row(f"the same, CPU a message: {NAMES.get(name, name)}", "us", [run.cpu for run in runs]))
        rows.append(Row(f"the same, most memory: {NAMES.get(name, name)}", "MB", [run.memory for run in runs]))
    many = [run.memory for run in longer]
    rows.append(Row(f"most memory before {MORE * contest.rows:,} messages: octoserve", "MB", many))
    few = [run.memory for run in found.get("octoserve", [])]
    growth = [median(many) / median(few)] if many and few else []
    # Less than is fetched ahead is no backlog: its memory grows until that is full.
    rule = "at most" if contest.rows >= ROWS else "context"
    rows.append(Row(f"that to the most before {contest.rows:,}", "times", growth, (), rule, FLAT))


class _Stage:
    """The systems, and the messages that lie in them by now."""

    def __init__(self, contest: Contest, running: Systems) -> None:
        self._contest = contest
        self._running = running
        self._model = contest.repository / "fraud" / "1" / "model.onnx"
        self._sent: dict[int, Messages] = {}

    def run(self, name: str, rows: int) -> Run:
        """One contender, from nothing to its last row. Raises what `FAILURES` lists."""
        messages = self._messages(rows)
        table = f"t_{uuid4().hex[:12]}"
        systems.table_of(self._running.postgres, table)
        with (
            tempfile.TemporaryDirectory(prefix="octoserve-bench-") as state,
            contextlib.closing(systems.database_of(self._running.postgres)) as database,
        ):
            command = self._command(name, messages, table, Path(state))
            with _running(name, command, self._contest.server_cores) as process:
                run = _watch(process, database, table, messages)
            _check(database, table, messages)
            database.execute(f'drop table "{table}"')
        return run

    def _command(self, name: str, messages: Messages, table: str, state: Path) -> list[str]:
        running, group = self._running, f"g-{uuid4().hex[:12]}"
        if name == "octoserve":
            assert self._contest.octoserve is not None
            asked = {
                "--repository": self._contest.repository,
                "--model": "fraud",
                "--source": f"kafka://{running.kafka}/{messages.topic}?group={group}",
                "--sink": f"{running.postgres}?table={table}",
                "--columns": FEATURES,
                "--state-dir": state,
            }
            return [*self._contest.octoserve, "queue", "run", *(str(word) for pair in asked.items() for word in pair)]
        script = environments.BENCH / "peers" / f"queue_{name}.py"
        peer = [str(environments.python_for(f"queue_{name}")), str(script)]
        if name == "celery":
            url = f"{running.redis}"
            subprocess.run([*peer, "send", url, str(messages.file)], check=True)
            return [*peer, "work", url, str(self._model), running.postgres, table]
        return [*peer, str(self._model), running.kafka, messages.topic, group, running.postgres, table]

    def _messages(self, rows: int) -> Messages:
        """In a topic of their own; made and sent once."""
        if rows not in self._sent:
            contest = self._contest
            folder = environments.CACHE / "queue" / f"{contest.material.name}-{rows}"
            if not folder.exists():
                say(f"making {rows:,} messages ...")
                maker = [contest.tools, environments.BENCH / "prepare_messages.py", folder, self._model, str(rows)]
                subprocess.run(maker, check=True)
            file, topic = folder / "messages.jsonl", f"fraud-{rows}"
            sender = [environments.python_for("queue_bare"), environments.BENCH / "send_messages.py"]
            subprocess.run([*sender, self._running.kafka, topic, file], check=True)
            expected = json.loads((folder / "expected.json").read_text())
            self._sent[rows] = Messages(rows, file, topic, expected["labels"], expected["chances"])
        return self._sent[rows]


@contextlib.contextmanager
def _running(name: str, command: list[str], cores: set[int] | None) -> Iterator[subprocess.Popen[bytes]]:
    """Told to end afterwards."""
    log = environments.CACHE / "logs" / f"queue-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, preexec_fn=processes.pinned(cores))
        try:
            yield process
        except ServerFailed as error:
            raise ServerFailed(f"{error}; the end of {log}:\n{log.read_text()[-1500:]}") from None
        finally:
            process.terminate()
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _watch(process: subprocess.Popen[bytes], database: Any, table: str, messages: Messages) -> Run:
    """Until the last message of each partition has its row, and with it all."""
    most, ended = 0.0, threading.Event()

    def look() -> None:
        nonlocal most
        while not ended.wait(0.2):
            most = max(most, processes.resident(process.pid))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        first = _until(process, database, 120.0, f'select count(*) from "{table}"', 1)
        began, used = time.perf_counter(), processes.cpu_seconds(process.pid)
        last = [f"m{number}" for number in range(messages.rows - _PARTITIONS, messages.rows)]
        there = f'select count(*) from "{table}" where message_id = any(%s)'
        _until(process, database, 120.0 + messages.rows / 100, there, _PARTITIONS, last)
        _until(process, database, 10.0, f'select count(*) from "{table}"', messages.rows)
        seconds = time.perf_counter() - began
        used = processes.cpu_seconds(process.pid) - used
    finally:
        ended.set()
        watcher.join()
    done = max(1, messages.rows - first)
    return Run(done / seconds, used / done * 1e6, most)


def _until(
    process: subprocess.Popen[bytes], database: Any, patience: float, query: str, wanted: int, *values: Any
) -> int:
    """When the query says so many, or more. Raises ServerFailed."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        (count,) = database.execute(query, values).fetchone()
        if count >= wanted:
            return int(count)
        if process.poll() is not None:
            raise ServerFailed(f"it ended with {process.returncode}")
        time.sleep(_LOOK)
    raise ServerFailed(f"not done after {patience:.0f} s")


def _check(database: Any, table: str, messages: Messages) -> None:
    rows, labels, chances = database.execute(
        f'select count(*), sum(label), sum((probabilities->>1)::float8) from "{table}"'
    ).fetchone()
    near = abs(chances - messages.chances) <= _TOLERANCE * messages.rows
    if (rows, labels) != (messages.rows, messages.labels) or not near:
        raise WrongAnswer(
            f"the table has {rows} rows, labels of {labels}, chances of {chances:.3f}; "
            f"{messages.rows}, {messages.labels} and {messages.chances:.3f} are right"
        )
