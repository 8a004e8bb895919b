"""A batch job against programs that promise less: the same table, from Parquet to Parquet, on all cores there are.

Every run is a process of its own, peers in their own environments (`peers/batch_*.py`), in turns; what it wrote is read
and held against what the bare program wrote before its time counts.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import environments
import processes
from answers import WrongAnswer
from contest import FAILURES, Contest, say
from report import Row
from servers import ServerFailed

ROWS = 10_000_000
FILES, GROUP = 8, 125_000
FEATURES = [f"f{i}" for i in range(30)]
SMALL = 1_000
PATIENCE = 1800.0
BARS = {"bare": 0.9, "polars": 1.0, "duckdb": 1.0, "daft": 1.4, "ray": 2.5, "spark": 4.0}
"""Peer -> how many times its rate is wanted."""
NAMES = {
    "bare": "bare program",
    "polars": "Polars",
    "duckdb": "DuckDB",
    "daft": "Daft",
    "ray": "Ray Data",
    "spark": "Spark mapInArrow",
}


@dataclass(frozen=True)
class Run:
    """Seconds of the wall, and the most that the program and its descendants had resident together, in MB."""

    seconds: float
    memory: float


def batch(contest: Contest) -> None:
    """All of them on the same rows, in turns; then a small job, for what a start takes."""
    if contest.lacks("batch", "octoserve"):
        return
    folder = environments.CACHE / "batch"
    model = contest.repository / "fraud" / "1" / "model.onnx"
    sources = {rows: _rows(contest, folder, rows) for rows in (contest.rows, SMALL)}
    wanted = _sums(contest, _command(contest, "bare", model, sources[contest.rows], folder / "out"), folder)
    found: dict[str, list[Run]] = {}
    for number in range(contest.rounds):
        order = ["octoserve", *BARS] if number % 2 == 0 else [*reversed(BARS), "octoserve"]
        for name in order:
            if number and name not in found:
                continue  # it has failed
            command = _command(contest, name, model, sources[contest.rows], folder / "out")
            try:
                run = _once(command, folder)
                _check(contest, folder / "out", wanted)
            except FAILURES as error:
                found.pop(name, None)
                contest.fail(f"batch, {name}", error)
                continue
            found.setdefault(name, []).append(run)
            rate = contest.rows / run.seconds
            say(f"batch, round {number + 1} of {contest.rounds}, {name}: {rate:,.0f} rows/s, {run.memory:,.0f} MB")
    small = [
        _once(_command(contest, "octoserve", model, sources[SMALL], folder / "out"), folder).seconds
        for _ in range(contest.rounds)
    ]
    _report(contest, found, small)


def _report(contest: Contest, found: dict[str, list[Run]], small: Sequence[float]) -> None:
    rates = {name: [contest.rows / run.seconds for run in runs] for name, runs in found.items()}
    for name, bar in BARS.items():
        ours, theirs = rates.get("octoserve", []), rates.get(name, [])
        title = f"batch of {contest.rows:,} rows: {NAMES[name]}"
        contest.report.rows.append(Row(title, "rows/s", ours, theirs, "times", bar))
    for name in ("octoserve", *BARS):
        title = f"the same, most memory: {NAMES.get(name, name)}"
        contest.report.rows.append(Row(title, "MB", [run.memory for run in found.get(name, [])]))
    contest.report.rows.append(Row(f"batch of {SMALL:,} rows, start to end", "s", small, (), "at most", 1.5))


def _command(contest: Contest, name: str, model: Path, source: Path, sink: Path) -> list[str]:
    if name != "octoserve":
        python = environments.python_for(f"batch_{name}")
        return [str(python), str(environments.BENCH / "peers" / f"batch_{name}.py"), str(model), str(source), str(sink)]
    assert contest.octoserve is not None
    repository = model.parent.parent.parent
    asked = {"--repository": repository, "--model": "fraud", "--source": source, "--sink": sink, "--keys": "id"}
    asked |= {"--columns": ",".join(FEATURES), "--state-dir": sink.parent / "state"}
    return [*contest.octoserve, "batch", "run", *(str(word) for pair in asked.items() for word in pair)]


def _once(command: Sequence[str], folder: Path) -> Run:
    """From nothing to the program's end."""
    for name in ("out", ".out.octoserve", "state"):
        shutil.rmtree(folder / name, ignore_errors=True)
    log = environments.CACHE / "logs" / "batch.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    most, ended = 0.0, threading.Event()

    def watch(pid: int) -> None:
        nonlocal most
        while not ended.wait(0.2):
            most = max(most, processes.resident(pid))

    with log.open("w") as out:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=out, preexec_fn=processes.pinned(None))
        watcher = threading.Thread(target=watch, args=(process.pid,))
        watcher.start()
        try:
            code = process.wait(PATIENCE)
            seconds = time.perf_counter() - began
        finally:
            process.kill()
            ended.set()
            watcher.join()
    if code:
        raise ServerFailed(f"it ended with {code}; the end of {log}:\n{log.read_text()[-1500:]}")
    return Run(seconds, most)


def _rows(contest: Contest, folder: Path, rows: int) -> Path:
    """Rows that look like those that the model was trained with."""
    source = folder / f"rows-{rows}-{FILES}"
    if not source.exists():
        say(f"making {rows:,} rows ...")
        maker = [contest.tools, environments.BENCH / "prepare_rows.py", source, str(rows), str(FILES), str(GROUP)]
        subprocess.run(maker, check=True)
    return source


def _sums(contest: Contest, command: Sequence[str], folder: Path) -> str:
    """What the bare program's answers come to; its first run is nobody's time."""
    _once(command, folder)
    return _told(contest, folder / "out")


def _check(contest: Contest, sink: Path, wanted: str) -> None:
    told = _told(contest, sink)
    *counts, chances = told.split()
    *right_counts, right_chances = wanted.split()
    same = math.isclose(float(chances), float(right_chances), rel_tol=1e-6)  # a sum of floats, added in another order
    if counts != right_counts or not same:
        raise WrongAnswer(f"{sink} holds {told}, the bare program's {wanted} (rows, sum of ids, labels, chances)")


def _told(contest: Contest, sink: Path) -> str:
    reader = [contest.tools, environments.BENCH / "verify_rows.py", sink]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(reader, check=True, capture_output=True, text=True, env=environment).stdout.strip()
