"""Tables to score, and runs of batch jobs in processes that die at a step of the file system.

`Ground` is what is set up once: a repository with `flawed` (x FP32[-1, 2] -> plus, minus; fails for rows whose first
number is above 1,000,000), a table, and the result of a run that nobody disturbed.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from octoserve.app import runtimes
from octoserve.connectors.files import LocalFiles
from octoserve.patterns.batch.job import JobSettings, RunSettings
from octoserve.patterns.batch.outcome import Outcome
from octoserve.patterns.batch.run import Tools, Wish, resume, run
from support.graphs import flawed_model

LIMIT = 1_000_000.0
BEFORE, HALF, AFTER = "before", "half", "after"
STEPS = ("create", "write", "fsync", "rename", "fsync_folder", "make_folder", "remove", "remove_tree", "open_to_append")
SPLIT = 3_000
"""Bytes of a split: about two row groups of 100 rows."""


def put_model(repository: Path, version: int = 1, above: float = LIMIT, name: str = "flawed") -> None:
    """A version of `flawed`."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(flawed_model(version, above))


def rows(start: int, count: int, bad: tuple[int, ...] = ()) -> pa.Table:
    """id, a, b; the rows of `bad` are such that the model fails."""
    ids = np.arange(start, start + count)
    a = (ids % 1_000_000 * 0.5).astype(np.float32)  # below LIMIT, however many they are
    a[np.isin(ids, bad)] = 2 * LIMIT
    return pa.table({"id": ids, "a": a, "b": (ids % 7).astype(np.float32), "name": [f"n{i}" for i in ids]})


def put_table(folder: Path, files: int = 3, each: int = 500, bad: tuple[int, ...] = ()) -> str:
    """`files` Parquet files with row groups of 100 rows; the pattern that matches them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        pq.write_table(rows(number * each, each, bad), folder / f"{number}.parquet", row_group_size=100)
    return str(folder / "*.parquet")


def wish(repository: Path, source: str, sink: Path, **settings: Any) -> Wish:
    """Score `flawed`."""
    chosen = {"keys": ("id",), "columns": ("a", "b"), "split_bytes": SPLIT, "block_rows": 64, **settings}
    others = {name: chosen.pop(name) for name in ("version", "plan", "plan_key", "shadow", "noise") if name in chosen}
    return Wish(
        repository=str(repository),
        model="flawed",
        **others,
        source=(source,),
        sink=str(sink),
        settings=JobSettings(**chosen),
    )


def tools(files: LocalFiles | None = None, **others: Any) -> Tools:
    """As the command line has them."""
    library = f"onnxruntime {importlib.metadata.version('onnxruntime')}"
    return Tools(runtimes(), {"onnx": library}, files=files, **others)


BORNE = RunSettings(workers=2, budget_share=0.5, bytes_in_flight=1 << 20)


def score(asked: Wish, settings: RunSettings = BORNE, **others: Any) -> Outcome:
    """Run it here."""
    return run(asked, settings, tools(**others))


def tree(folder: Path) -> dict[str, bytes]:
    """All files below, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def result(folder: Path) -> pa.Table:
    """The parts in the manifest's order."""
    from octoserve.patterns.batch.manifest import wanted

    parts = wanted(folder).parts
    return pa.concat_tables([pq.ParquetFile(folder / part.name).read() for part in parts])


class CountedFiles(LocalFiles):
    """Calls `at` with the number of each step from 1, its name, and the way to do it."""

    def __init__(self, at: Callable[[int, str, Callable[[], Any], tuple[Any, ...]], Any]) -> None:
        self.steps = 0
        self._at = at
        self._lock = threading.Lock()
        for name in STEPS:
            setattr(self, name, self._counted(name, getattr(self, name)))

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any) -> Any:
            with self._lock:
                self.steps += 1
                number = self.steps
            return self._at(number, name, lambda: real(*args), args)

        return step


class Stopping(CountedFiles):
    """Asks for the end once `after` parts are published."""

    def __init__(self, after: int) -> None:
        self.stop = threading.Event()
        self.left = after
        super().__init__(self._step)

    def _step(self, number, name, do, args):
        done = do()
        if name == "rename" and "part-" in str(args[1]):
            self.left -= 1
            if self.left <= 0:
                self.stop.set()
        return done


def counting() -> CountedFiles:
    """Only counts."""
    return CountedFiles(lambda number, name, do, args: do())


class Ground:
    """A job, and what comes of it if nobody disturbs it."""

    def __init__(self, folder: Path, bad: tuple[int, ...] = (), **settings: Any) -> None:
        self.folder = folder
        self.settings = settings
        self.repository = folder / "models"
        put_model(self.repository)
        self.source = put_table(folder / "data", bad=bad)
        files = counting()
        score(self.wish(folder / "undisturbed"), files=files)
        self.steps = files.steps
        self.expected = tree(folder / "undisturbed")

    def wish(self, sink: Path) -> Wish:
        return wish(self.repository, self.source, sink, **self.settings)


def deadly(step: int, when: str) -> CountedFiles:
    """This process is gone at that step: before it, after it, or with half of a write done."""

    def at(number: int, name: str, do: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if number != step:
            return do()
        if when == HALF and name == "write":
            os.write(args[0], args[1][: len(args[1]) // 2])
        if when == AFTER:
            do()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")

    return CountedFiles(at)


forks = multiprocessing.get_context("forkserver")
PRELOADED = [
    "octoserve.app", "octoserve.patterns.batch.run", "octoserve.runtimes.onnx", "onnx", "onnxruntime", "numpy.random",
    "pyarrow.parquet", "pyarrow.compute",
]  # fmt: skip
"""What a child would import otherwise, for longer than it lives. The server does not know the tests' own folder."""
forks.set_forkserver_preload(PRELOADED)


def dies(asked: Wish, step: int, when: str, again: bool = False, variables: Mapping[str, str] | None = None) -> bool:
    """Run (or resume) in a process that dies at the step; whether it did, or ended before it. variables: for it."""
    return ends_by_itself_or_killed(_child, asked, step, when, again, dict(variables or {})) != 0


def ends_by_itself_or_killed(target: Callable[..., None], *args: Any) -> int:
    """Runs `target` in a process of its own; how that ended: 0, or by SIGKILL."""
    process = forks.Process(target=target, args=args)
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL), f"the process ended with {process.exitcode}"
    return process.exitcode


def _child(asked: Wish, step: int, when: str, again: bool, variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    equipment = tools(deadly(step, when))
    if again:
        resume(asked.sink, BORNE, equipment)
    else:
        run(asked, BORNE, equipment)
