"""The driver's side: one Spark job over the splits that are left, and what is made of its tasks' answers.

The order of the steps and what a crash after each means: docs/decisions/0011-spark-engine.md.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence

import msgspec

from octoserve.connectors.postgres import PostgresSource
from octoserve.core.errors import Internal, SettingsError
from octoserve.origins.opening import root_here
from octoserve.patterns.batch.engine import Stage
from octoserve.patterns.batch.job import Interrupted, Job, RunSettings, Split
from octoserve.patterns.batch.journal import Finished
from octoserve.patterns.batch.run import Tools
from octoserve.patterns.batch.sinks import Sink
from octoserve.patterns.batch.spark import mailbox, shipping
from octoserve.patterns.batch.spark.mailbox import Answer
from octoserve.patterns.batch.spark.reach import Desk, desk_of, refuse_unreachable
from octoserve.patterns.batch.spark.session import Spark, SparkSettings, connect, failure
from octoserve.patterns.batch.spark.task import ANSWERS, Order, task_of

_STEP = 0.1
"""Seconds after which an end that was asked for is seen."""


class SparkEngine:
    """See `patterns.batch.engine.Engine`."""

    def __init__(self, settings: SparkSettings, tools: Callable[[], Tools]) -> None:
        """tools: makes the tools of an executor's process; a function of a module, as it is pickled by name."""
        self._settings = settings
        self._tools = tools
        self._spark: Spark | None = None

    def begin(self, job: Job, sink: Sink, settings: RunSettings) -> RunSettings:
        """Connect. Raises SettingsError."""
        if job.settings.format == PostgresSource.format:
            raise SettingsError(
                "source: files, or a table of files, wanted by engine: spark, a query came; --engine local reads it, "
                "and octoserve.score scores what Spark has read"
            )
        refuse_unreachable(sink)
        self._spark = connect(self._settings)
        return msgspec.structs.replace(settings, workers=self._spark.slots())

    def end(self) -> None:
        """End the session, if it is ours."""
        if self._spark is not None:
            with contextlib.suppress(Exception):  # a session whose other half is gone
                self._spark.close()
            self._spark = None

    def finish(self, stage: Stage, left: Sequence[Split]) -> list[Finished]:
        """See `Engine.finish`. Raises SparkFailed and what the tasks ran into."""
        assert self._spark is not None
        if not left:
            return []
        desk = desk_of(stage.work, stage.opened.shape)
        try:
            order = self._order(self._spark, stage, left, desk)
            return _Taking(self._spark, stage, left, order, desk).run()
        finally:
            with contextlib.suppress(OSError):  # a task that writes meanwhile; the work folder goes as a whole
                desk.close()

    def _order(self, spark: Spark, stage: Stage, left: Sequence[Split], desk: Desk) -> Order:
        job = stage.opened.job
        models = [job.model, *(job.routing.versions() if job.routing is not None else ())]
        model = shipping.ship(spark, root_here(job.repository), models)
        return Order(
            run=job.id(),
            reach=desk.reach,
            model=model,
            settings=stage.settings,
            splits=tuple(split.index for split in left),
            tools=self._tools,
        )


class _Taking:
    """One Spark job, and what is made of its answers."""

    def __init__(self, spark: Spark, stage: Stage, left: Sequence[Split], order: Order, desk: Desk) -> None:
        self._spark = spark
        self._stage = stage
        self._left = {split.index: split for split in left}
        self._order = order
        self._desk = desk
        self._finished: dict[int, Finished] = {}
        self._rows: list[str] = []
        self._error: Exception | None = None
        self._tag = f"octoserve-{order.run}-{order.reach.token}"

    def run(self) -> list[Finished]:
        """Until every split is journaled. Raises what went wrong first, after the Spark job has been cancelled."""
        waiting = threading.Thread(target=self._wait, name="octoserve-spark", daemon=True)
        waiting.start()
        clock = self._stage.clock
        next_look = clock()
        try:
            while waiting.is_alive():
                waiting.join(_STEP)
                if self._stage.stop.is_set():
                    raise Interrupted("interrupted; what was journaled stays")
                if clock() >= next_look:
                    self._take(self._desk.look())
                    next_look = clock() + self._desk.every
        except BaseException:
            self._cancel(waiting)
            raise
        self._take(mailbox.decode(row) for row in self._rows)
        if self._error is not None:
            raise failure(self._error) from self._error
        if len(self._finished) != len(self._left):
            raise Internal(f"Spark's job ended, and {len(self._left) - len(self._finished)} splits have no answer")
        return list(self._finished.values())

    def _wait(self) -> None:
        try:
            task = task_of(self._order)
            self._rows = [row[0] for row in self._spark.run(len(self._left), task, ANSWERS, self._tag)]
        except Exception as error:
            self._error = error

    def _cancel(self, waiting: threading.Thread) -> None:
        with contextlib.suppress(Exception):  # the session may be what has failed
            self._spark.cancel(self._tag)
        waiting.join(10)

    def _take(self, answers: Iterable[Answer]) -> None:
        """Raises OSError, Fenced, BudgetSpent, and what a task says that cannot be mended."""
        for answer in answers:
            if answer.line is None:
                raise mailbox.error_of(answer)
            if answer.split in self._finished:  # of a second attempt, or seen in the folder already
                continue
            self._desk.take(answer, answer.line)
            self._count(answer.line)

    def _count(self, line: Finished) -> None:
        self._finished[line.split] = line
        split, bad = self._left[line.split], line.bad.rows if line.bad is not None else 0
        self._stage.progress.add(split.rows, split.bytes, bad)
        self._stage.progress.finished_split()
        self._stage.budget.count(bad)
