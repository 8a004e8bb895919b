"""Runs of a queue in real processes: a model that raises, hangs or kills as a message tells it, and workers that die by
SIGKILL right before or after a step.

The supervisor is given another way to start workers: forked from a process that has imported everything, since a life
here is often a moment. Nothing else is changed: the real supervisor, worker, loop, broker, ledger and sink.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from octoserve.core.errors import InvalidInput
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array
from octoserve.patterns.message_queue.following import Follower
from octoserve.patterns.message_queue.settings import QueueSettings, WorkerConfig
from octoserve.patterns.message_queue.supervisor import Figures, Supervisor
from octoserve.runtimes.protocol import LoadedModel, RuntimeSettings

RAISES, HANGS, KILLS, REFUSED = 1e6, 2e6, 3e6, 4e6
"""Values of `x` that do that. Of the last one the model says that it can never be scored."""
CALM = "calm"
"""A file in versions to which no value does anything."""
BEFORE, AFTER, STOPS = "before", "after", "stops"

STEPS = {
    "poll": "source", "bury": "source", "retry": "source", "settle": "source",
    "suspects": "ledger", "history": "ledger", "begin": "ledger", "failed": "ledger", "forget": "ledger",
    "end": "ledger",
    "store": "sink", "claim": "sink",
}  # fmt: skip
"""Each step of a micro-batch that somebody else sees, and whose it is."""


class Trouble(msgspec.Struct, frozen=True):
    """Die at the `number`-th call of `step` in a life, counted from 1, in the first `lives` lives.

    when:    of the last kind, do not die before it, but stop until somebody says SIGCONT; of `store` those count that
             hold results: who only renews a claim has nothing in hand that another would take over
    counter: a file that grows by a byte with each death, or that the process which stops writes its number to
    """

    step: str
    when: str
    number: int
    lives: int
    counter: str


class TrickyModel:
    """x FP32[-1] -> y = 2x + 1, FP32[-1]. calm: no value of x does anything else."""

    platform, lanes = "tricky", 0

    def __init__(self, calm: bool = False) -> None:
        self._calm = calm
        self.signature = Signature([TensorSpec("x", "FP32", (-1,))], [TensorSpec("y", "FP32", (-1,))], batchable=True)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        values = set() if self._calm else set(inputs[0].tolist())
        if KILLS in values:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANGS in values:
            ctypes.PyDLL(None).sleep(600)  # in native code, with Python's lock held
        if RAISES in values:
            raise RuntimeError("no such thing")
        if REFUSED in values:
            raise InvalidInput("x is refused")
        return [inputs[0] * np.float32(2) + np.float32(1)]

    def close(self) -> None:
        pass


class TrickyRuntime:
    """Versions that hold `model.tricky`."""

    name = "tricky"
    artifacts = ("model.tricky",)
    distributions: tuple[str, ...] = ()

    def load(self, folder: Path, settings: RuntimeSettings) -> LoadedModel:
        return TrickyModel(calm=(folder / CALM).exists())


def put_tricky(repository: Path, version: int = 1, calm: bool = False) -> Path:
    """A repository with model `tricky`."""
    folder = repository / "tricky" / str(version)
    folder.mkdir(parents=True)
    (folder / "model.tricky").write_text("")
    if calm:
        (folder / CALM).write_text("")
    return repository


def rows(count: int, poison: dict[int, float] | None = None) -> list[dict[str, Any]]:
    """Messages m0, m1, ... with x = 0, 1, ..., but for those that `poison` says otherwise of."""
    return [{"id": f"m{i}", "x": (poison or {}).get(i, float(i))} for i in range(count)]


def settings_of(repository: Path, state_dir: Path, sink: str, **others: Any) -> QueueSettings:
    """Quick ones."""
    chosen: dict[str, Any] = {
        "model": "tricky", "source": "embedded", "until_idle": 0.5, "redeliver_after": 2.0, "retry_delay": 0.1,
        "run_timeout": 1.0, "batch_rows": 50, **others,
    }  # fmt: skip
    return QueueSettings(repository=str(repository), sink=sink, state_dir=str(state_dir), **chosen)


def run(settings: QueueSettings, trouble: Trouble | None = None, workers: int = 1) -> tuple[Figures, Supervisor]:
    """Until it is idle."""
    supervisor = of(settings, trouble, workers)
    return supervisor.run(), supervisor


def of(
    settings: QueueSettings, trouble: Trouble | None = None, workers: int = 1, follower: Follower | None = None
) -> Supervisor:
    """One that has not begun."""
    return Supervisor(settings, workers, spawner(trouble), log_level="warning", follower=follower)


_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["support.queue_runs", "nats", "nats.js.api", "octoserve.patterns.message_queue.worker"])


class Forked:
    """What the supervisor knows a worker by, of a process that was forked with everything imported."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def spawner(trouble: Trouble | None = None) -> Callable[[WorkerConfig, socket.socket], Any]:
    """Starts workers that know `tricky`, and that die where they are told to."""

    def spawn(config: WorkerConfig, link: socket.socket) -> Forked:
        process = _forks.Process(target=_child, args=(msgspec.json.encode(config), link, trouble))
        process.start()
        return Forked(process)

    return spawn


def _child(told: bytes, link: socket.socket, trouble: Trouble | None) -> None:
    from octoserve import app
    from octoserve.patterns.message_queue.worker import run_worker
    from octoserve.telemetry.logs import set_up

    app.runtimes = lambda trust=(): {"tricky": TrickyRuntime()}  # type: ignore[dict-item]
    if trouble is not None:
        _arm(trouble)
    config = msgspec.json.decode(told, type=WorkerConfig)
    write_logs = set_up(config.log_level, config.log_format, f"worker {config.index}")
    code = run_worker(config, app.queue_kinds(), link)
    write_logs()
    os._exit(code)


def sent(state_dir: Path, rows: Sequence[dict[str, Any]], source: str = "embedded") -> None:
    """These are in the queue."""
    from octoserve.app import queue_kinds
    from octoserve.patterns.message_queue.opening import tools

    with contextlib.closing(tools(queue_kinds(), source, state_dir)) as opened:
        opened.send((json.dumps(row).encode() for row in rows), lambda count: None)


def dead(state_dir: Path, source: str = "embedded") -> dict[str, Any]:
    """Dead letters by message id, each once."""
    from octoserve.app import queue_kinds
    from octoserve.patterns.message_queue.opening import tools

    with contextlib.closing(tools(queue_kinds(), source, state_dir)) as opened:
        letters = opened.dead()
    assert len({letter.id for letter in letters}) == len(letters)
    return {letter.id: letter for letter in letters}


def table(path: Path) -> dict[str, float]:
    """message_id -> y, of a table that cannot hold one twice; every row is as the model has it."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return dict(db.execute("select message_id, y from t").fetchall())


def expected(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What a table holds of these."""
    return {row["id"]: 2.0 * row["x"] + 1.0 for row in rows if row["x"] < RAISES}


def _arm(trouble: Trouble) -> None:
    from octoserve.patterns.message_queue import opening

    seen = 0

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **named: Any) -> Any:
            nonlocal seen
            if trouble.when == STOPS and trouble.step == "store" and not args[0].ids:
                return real(*args, **named)
            seen += 1
            if seen == trouble.number and trouble.when == BEFORE:
                _die(trouble)
            if seen == trouble.number and trouble.when == STOPS:
                _stop(trouble)
            result = real(*args, **named)
            if seen == trouble.number and trouble.when == AFTER:
                _die(trouble)
            return result

        return step

    whose = {**STEPS, "fail": "answers"}[trouble.step]
    open_: Any = getattr(opening, whose)

    def opened(*args: Any) -> Any:
        made = open_(*args)
        setattr(made, trouble.step, deadly(getattr(made, trouble.step)))
        return made

    setattr(opening, whose, opened)


def _stop(trouble: Trouble) -> None:
    with contextlib.suppress(FileExistsError), open(trouble.counter, "x") as file:
        file.write(str(os.getpid()))
        file.flush()
        os.kill(os.getpid(), signal.SIGSTOP)


def _die(trouble: Trouble) -> None:
    counter = Path(trouble.counter)
    if counter.exists() and counter.stat().st_size >= trouble.lives:
        return
    with counter.open("ab") as file:
        file.write(b".")
    os.kill(os.getpid(), signal.SIGKILL)
