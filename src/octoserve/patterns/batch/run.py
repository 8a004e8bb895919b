"""From what was asked to a committed sink. See docs/decisions/0010-batch-jobs.md for the order of the steps."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from octoserve import __version__
from octoserve.connectors import arrow, objects, sources
from octoserve.connectors.files import DiskTrouble, LocalFiles
from octoserve.connectors.postgres import Databases
from octoserve.connectors.source import Source
from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import Internal, OctoserveError, SettingsError
from octoserve.core.names import is_elsewhere
from octoserve.patterns.batch import databases as ways
from octoserve.patterns.batch import manifest, plan
from octoserve.patterns.batch.engine import Budget, Engine, Local, Opened, Stage, row_bytes
from octoserve.patterns.batch.job import (
    Busy,
    Differs,
    Job,
    JobSettings,
    RunSettings,
    differences,
)
from octoserve.patterns.batch.journal import Began, Ended
from octoserve.patterns.batch.matching import Matched, refuse_collisions
from octoserve.patterns.batch.model import Version
from octoserve.patterns.batch.object_sink import Buckets
from octoserve.patterns.batch.opening import asked_of, crew_of, fit
from octoserve.patterns.batch.outcome import Outcome
from octoserve.patterns.batch.outputs import layout, noted_schema
from octoserve.patterns.batch.places import refuse_format, shown, sink_of
from octoserve.patterns.batch.progress import Progress
from octoserve.patterns.batch.sinks import Sink, Work
from octoserve.patterns.batch.table import Table
from octoserve.routing.plan import RoutePlan
from octoserve.runtimes.protocol import Runtime

_LONGEST = 2000
"""Characters of why a run ended."""
_PAST = 20
"""Splits of earlier runs that a rate is told from."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asks for.

    version:  None for the highest; with a plan, the stable one
    plan:     says which version answers which row
    plan_key: the column that holds its key; "" where that is the plan's own
    shadow:   the version whose predictions are carried beside; noise: see `job.Routing`
    """

    repository: str
    model: str
    version: int | None = None
    source: tuple[str, ...]
    sink: str
    settings: JobSettings = JobSettings()
    plan: RoutePlan | None = None
    plan_key: str = ""
    shadow: int | None = None
    noise: int = 0


class Tools:
    """What a run works with; given, so that tests can give others.

    runtimes: by name; libraries: what each runs on, with its version
    on_begin: called when the job is known, before the first row
    engine: what finishes the splits; None: the local one
    """

    def __init__(
        self,
        runtimes: Mapping[str, Runtime],
        libraries: Mapping[str, str],
        *,
        files: LocalFiles | None = None,
        buckets: Buckets = objects.bucket,
        databases: Databases = ways.of("source"),
        stop: threading.Event | None = None,
        clock: Clock = monotonic,
        wall: Clock = time.time,
        on_begin: Callable[[Job, Matched, Progress], None] = lambda job, matched, progress: None,
        engine: Engine | None = None,
    ) -> None:
        self.runtimes = runtimes
        self.libraries = libraries
        self.files = files or LocalFiles()
        self.buckets = buckets
        self.databases = databases
        self.stop = stop or threading.Event()
        self.clock = clock
        self.wall = wall
        self.on_begin = on_begin
        self.engine: Engine = engine or Local()


def run(wish: Wish, settings: RunSettings, tools: Tools) -> Outcome:
    """Begin the job, or go on with it if it is the one that the sink was begun with. Blocking.

    Raises SettingsError, Differs, NotFound (nothing was begun); BudgetSpent, Busy, Interrupted, DiskTrouble and other
    OctoserveErrors, after which the job can be resumed.
    """
    sink = sink_of(wish.sink, tools.files, tools.buckets)
    refuse_format(sink, wish.settings)
    planned = sink.job() if sink.has_job() else None
    opened = open_job(wish, planned, settings.workers, tools)
    with contextlib.closing(opened.table.source):
        done = sink.committed(opened.job.id())
        if done is not None and done.run != opened.job.id():
            raise SettingsError(
                f"sink: {sink.name} holds the result of another job ({done.model.name} version {done.model.version}, "
                f"run {done.run}); name another sink"
            )
        return _settle(sink, done, tools) if done is not None else _go(opened, planned, sink, settings, tools)


def resume(sink: str | Path, settings: RunSettings, tools: Tools) -> Outcome:
    """Go on with the job that the sink was begun with, with the same files and the same model. Raises as `run`."""
    place = sink_of(str(sink), tools.files, tools.buckets)
    done = place.committed()
    if done is not None:
        return _settle(place, done, tools)
    job = place.job()
    wish = Wish(
        repository=job.repository,
        model=job.model.name,
        version=job.model.version,
        source=job.source,
        sink=str(sink),
        settings=job.settings,
        **asked_of(job.routing),
    )
    opened = open_job(wish, job, settings.workers, tools)
    with contextlib.closing(opened.table.source):
        return _go(opened, job, place, _with_budget(settings, place), tools)


def _with_budget(settings: RunSettings, sink: Sink) -> RunSettings:
    """Nobody bears more bad rows for having been stopped."""
    last = sink.state().runs[-1:] if settings.keep_budget else []
    if not last or (last[0].budget_rows is None and last[0].budget_share is None):
        return settings
    rows, share = last[0].budget_rows, last[0].budget_share
    return msgspec.structs.replace(settings, budget_rows=rows, budget_share=share or 0.0)


def open_job(wish: Wish, planned: Job | None, workers: int, tools: Tools, source: Source | None = None) -> Opened:
    """The job of the wish. With one planned: that one, if the wish is the same job; only one footer is read.

    source: the wish's, where it need not be looked for
    """

    def find(number: int | None) -> Version:
        return Version(wish.repository, wish.model, number, tools.runtimes, tools.libraries)

    was = planned.routing if planned is not None else None
    crew = crew_of(find, wish.version, wish.plan, wish.shadow, wish.noise, was)
    version = crew.stable
    source = source or sources.find(wish.source, wish.settings.format, tools.databases)
    settings = msgspec.structs.replace(wish.settings, format=source.format)
    if not settings.missing:
        settings = msgspec.structs.replace(settings, missing=version.settings.missing or "refuse")
    job = Job(
        repository=wish.repository if is_elsewhere(wish.repository) else os.path.abspath(wish.repository),
        source=source.pinned,
        model=version.identity,
        files=source.files,
        schema=planned.schema if planned is not None else (),
        settings=settings,
        software=_software(crew.libraries()),
        block_rows=planned.block_rows if planned is not None else 0,
        splits=planned.splits if planned is not None else (),
        routing=crew.routing,
    )
    _refuse_other(planned, job, wish.sink)
    loaded = crew.load_first()
    table = Table(source)
    fitted = fit(crew, loaded, table, settings, wish.plan_key)
    matched, signature = fitted.matched, loaded[version.identity.version].signature
    routing = fitted.voices.routing if crew.routing is not None else None
    job = msgspec.structs.replace(job, schema=fitted.schema, routing=routing)
    _refuse_other(planned, job, wish.sink)
    if planned is None:
        splits = plan.plan_splits(table.ranges(matched.read, workers), settings.split_bytes)
        most = settings.block_rows or version.settings.max_batch_rows
        rows = plan.block_rows(splits, row_bytes(signature, matched), most)
        job = msgspec.structs.replace(job, splits=splits, block_rows=rows)
    beside = fitted.voices.fields(settings.prefix)
    refuse_collisions([field.name for field in beside], signature, matched.passed, settings.prefix)
    shape = layout(signature, table.schema, matched.passed, matched.keys, job, beside)
    return Opened(job, crew, loaded, table, fitted, shape)


def _refuse_other(planned: Job | None, job: Job, sink: str) -> None:
    found = differences(planned, job) if planned is not None else []
    if found:
        raise Differs(f"this is not the job that {shown(sink)} was begun with", found)


def _software(libraries: Mapping[str, str]) -> dict[str, str]:
    return {"octoserve": __version__, "pyarrow": arrow.version(), **libraries}


def _go(opened: Opened, planned: Job | None, sink: Sink, settings: RunSettings, tools: Tools) -> Outcome:
    began = tools.clock()
    try:
        settings = tools.engine.begin(opened.job, sink, settings)
        work = sink.enter(tools.wall())
        try:
            _nobody_was_here(sink, planned, opened.job.id())
            if planned is None:
                work.write_job(opened.job)
            rows = _finish_splits(opened, work, settings, tools)
            done = sink.committed(opened.job.id())
            if done is None:
                raise Internal(f"{sink.name} was committed, and nothing is there")
            work.clear()
        except BaseException as failure:
            _say_why(work, failure, tools)
            raise
        finally:
            work.release()
    except OSError as error:
        what = f" {error.filename}" if error.filename else ""
        raise DiskTrouble(
            f"cannot write{what}: {error.strerror or error}; what is finished stays, resume it"
        ) from error
    finally:
        tools.engine.end()
    return Outcome(sink=sink.name, manifest=done, scored=rows, seconds=tools.clock() - began)


def _say_why(work: Work, failure: BaseException, tools: Tools) -> None:
    """For whoever asks for the job's status. It does no harm if it cannot be written down."""
    if isinstance(failure, Busy):
        return  # it is another's job by now
    reason = getattr(failure, "reason", "failed") if isinstance(failure, OctoserveError) else "failed"
    text = str(failure) or type(failure).__name__
    with contextlib.suppress(OSError, OctoserveError):
        work.end(Ended(token=work.token, reason=reason, text=text[:_LONGEST], at=tools.wall()))


def _nobody_was_here(sink: Sink, planned: Job | None, run: str) -> None:
    """Between our look at the sink and our right to work on it."""
    if sink.has_job() != (planned is not None) or sink.committed(run) is not None:
        raise Busy(f"another run has just begun or ended a job in {sink.name}; look again: octoserve batch status")


def _finish_splits(opened: Opened, work: Work, settings: RunSettings, tools: Tools) -> int:
    """Every split that is left, and the commit; how many rows were scored."""
    job = opened.job
    began = Began(
        token=work.token,
        host=socket.gethostname(),
        pid=os.getpid(),
        at=tools.wall(),
        workers=settings.workers,
        budget_rows=settings.budget_rows,
        budget_share=settings.budget_share,
    )
    past, finished = work.begin(began)
    progress = Progress(tools.clock)
    last = sorted(past.finished.values(), key=lambda line: line.at)[-_PAST:]
    progress.begin(job, list(finished.values()), last, past.runs[-1].workers if past.runs else 1)
    tools.on_begin(job, opened.matched, progress)
    left = [split for split in job.splits if split.index not in finished]
    budget = Budget(settings.bad_rows_borne(job.rows), job.rows)
    budget.count(sum(line.bad.rows for line in finished.values() if line.bad is not None))
    stage = Stage(opened, work, progress, budget, settings, tools.stop, tools.clock)
    for line in tools.engine.finish(stage, left):
        finished[line.split] = line
    opened.crew.check()
    whole = manifest.make(job, [finished[split.index] for split in job.splits], noted_schema(opened.shape))
    work.commit(whole)
    return sum(split.rows for split in left)


def _settle(sink: Sink, done: manifest.Manifest, tools: Tools) -> Outcome:
    """The sink is committed; what a crash right after that has left is removed, unless somebody is about it."""
    if sink.has_left_overs():
        with contextlib.suppress(Busy):
            work = sink.enter(tools.wall())
            try:
                work.clear()
            finally:
                work.release()
    return Outcome(sink=sink.name, manifest=done)
