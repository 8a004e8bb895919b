"""What runs on an executor: one split by the local engine's lane, into a folder of its own; and an answer.

The order of the steps and what a crash after each means: docs/decisions/0011-spark-engine.md.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from octoserve.connectors import formats, sources
from octoserve.connectors.arrow import pyarrow
from octoserve.connectors.files import DiskTrouble
from octoserve.connectors.objects import StoreTrouble
from octoserve.connectors.source import Source
from octoserve.core.errors import OctoserveError, SettingsError
from octoserve.patterns.batch.engine import Budget, Opened, lanes
from octoserve.patterns.batch.job import Differs, Fenced, Job, RunSettings, Split
from octoserve.patterns.batch.journal import Finished
from octoserve.patterns.batch.opening import asked_of
from octoserve.patterns.batch.progress import Progress
from octoserve.patterns.batch.run import Tools, Wish, open_job
from octoserve.patterns.batch.spark import mailbox
from octoserve.patterns.batch.spark.mailbox import Answer
from octoserve.patterns.batch.spark.reach import Reach
from octoserve.patterns.batch.spark.session import TRY_AGAIN, Task, unpacked

ANSWERS = "answer string"
"""The schema of a task's rows."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What all tasks of a run are told.

    run:    the job's id
    reach:  how the sink is reached
    model:  the archive's name
    splits: the indices of those that are left; a task's number is a place in it
    tools:  makes a process's tools; pickled by name
    """

    run: str
    reach: Reach
    model: str
    settings: RunSettings
    splits: tuple[int, ...]
    tools: Callable[[], Tools]


def task_of(order: Order) -> Task:
    """The function that Spark ships; all it holds is the order."""

    def task(batches: Iterator[Any]) -> Iterator[Any]:
        return answers(order, batches)

    return task


def answers(order: Order, batches: Iterator[Any]) -> Iterator[Any]:
    """One row for each number that comes."""
    pa = pyarrow()
    for batch in batches:
        told = [mailbox.encode(_answer(order, order.splits[number])).decode() for number in batch.column(0).to_pylist()]
        yield pa.RecordBatch.from_arrays([pa.array(told, pa.string())], names=["answer"])


class _TryAgain(RuntimeError):
    """Fails the task; Spark does it again, elsewhere if it can."""


def _answer(order: Order, index: int) -> Answer:
    """Also left where the driver looks. Raises what Spark shall try again."""
    host, attempt = socket.gethostname(), f"{index:05}-{uuid.uuid4().hex[:16]}"
    try:
        opened, tools = _open(order)
        try:
            line = _score(order, opened, tools, opened.job.splits[index], attempt)
            answer = Answer(split=index, attempt=attempt, host=host, line=line)
            order.reach.post(tools, answer)
        except OctoserveError as error:
            answer = _refused(error, index, attempt, host)
            with contextlib.suppress(OctoserveError, OSError):  # it is the task's row, too
                order.reach.post(tools, answer)
        return answer
    except OctoserveError as error:
        return _refused(error, index, attempt, host)
    except _TryAgain:
        raise
    except Exception as error:
        raise _TryAgain(f"{TRY_AGAIN} on {host}: {type(error).__name__}: {error}") from error


def _refused(error: OctoserveError, index: int, attempt: str, host: str) -> Answer:
    if isinstance(error, DiskTrouble | StoreTrouble):
        raise _TryAgain(f"{TRY_AGAIN} on {host}: {error}") from error
    return mailbox.refusal(index, attempt, host, error)


_process: dict[str, tuple[Opened, Tools]] = {}
"""Of this worker process: the job that it works on, with the model loaded, by run."""
_lock = threading.Lock()


def _open(order: Order) -> tuple[Opened, Tools]:
    """The order's job; what is read and loaded is read and loaded once a process. Raises OctoserveError."""
    with _lock:
        found = _process.get(order.run)
        if found is None:
            _process.clear()
            tools = order.tools()
            found = _process[order.run] = _open_job(order, tools), tools
        return found


def _open_job(order: Order, tools: Tools) -> Opened:
    job = order.reach.job(tools)
    if job.id() != order.run:
        raise Fenced("the sink holds another job than this task is of")
    wish = Wish(
        repository=str(unpacked(order.model)),
        model=job.model.name,
        version=job.model.version,
        source=job.source,
        sink="the sink",
        settings=job.settings,
        **asked_of(job.routing),
    )
    try:
        return open_job(wish, job, 1, tools, _source(job))
    except Differs as error:
        raise Differs("what is here is not what the driver planned with", error.differences) from None


def _source(job: Job) -> Source:
    """As the driver found it: files are not looked for again; a table is, at the version that is pinned."""
    if job.settings.format not in formats.FORMATS:
        return sources.find(job.source)
    source = sources.Files(formats.FORMATS[job.settings.format], job.files, job.source)
    try:
        source.identify(job.files[0])
    except SettingsError as error:
        raise SettingsError(
            f"{error}; the source must be under the same path on the driver and on all executors: a shared folder, or "
            "s3://"
        ) from None
    return source


def _score(order: Order, opened: Opened, tools: Tools, split: Split, attempt: str) -> Finished:
    budget = Budget(order.settings.bad_rows_borne(opened.job.rows), opened.job.rows)
    lane = lanes(
        opened,
        lambda split, shape: order.reach.open(tools, split, shape, attempt),
        Progress(tools.clock),
        budget,
        msgspec.structs.replace(order.settings, workers=1),
        tools.stop,
        tools.clock,
    )
    (line,) = lane.run([split])
    return line
