"""How a sink's job stands, for whoever asks: reads, takes no lease, changes nothing."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from octoserve.connectors import discovery
from octoserve.core.errors import NotFound, SettingsError
from octoserve.patterns.batch import journal, manifest
from octoserve.patterns.batch.job import Job, file_differences
from octoserve.patterns.batch.lease import Holder
from octoserve.patterns.batch.places import sink_of

COMMITTED, RUNNING, STOPPED, NONE, UNKNOWN = "committed", "running", "stopped", "none", "unknown"


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """state: committed, running, stopped (resume it), none, or unknown: it could not be asked.

    rows:    scored so far, bad ones included
    seconds: since the first run began, as far as known
    rate:    rows a second, over the splits of the last run that finished any
    why:     a stopped job's last run ended, as far as is known; or the state is unknown
    changed: files of a stopped job's source that are not as they were; a resume will be refused. Those of object
             stores are not looked at
    """

    sink: str
    state: str
    run: str = ""
    model: str = ""
    version: int = 0
    rows: int = 0
    total_rows: int = 0
    bad_rows: int = 0
    splits: int = 0
    total_splits: int = 0
    runs: int = 0
    holder: Holder | None = None
    last: float = 0.0
    rate: float = 0.0
    why: str = ""
    changed: tuple[str, ...] = ()

    @property
    def seconds_left(self) -> float | None:
        """At the last rate; None if there is none."""
        return (self.total_rows - self.rows) / self.rate if self.rate else None


def look(sink: str | Path) -> Status:
    """Raises NotFound if no job has ever begun there, DamagedJob, DamagedJournal, DamagedManifest."""
    place = sink_of(str(sink))
    done = place.committed()
    if done is not None:
        return _committed(place.name, done)
    try:
        job = place.job()
    except NotFound:
        done = place.committed()  # it may have been committed between the two looks
        if done is None:
            raise
        return _committed(place.name, done)
    state = place.state()
    lines = list(state.finished.values())
    last_run = max((line.token for line in lines), default=0)
    recent = [line for line in lines if line.token == last_run]
    seconds = sum(line.seconds for line in recent)
    workers = next((run.workers for run in state.runs if run.token == last_run), 1)
    scored = sum(line.part.rows + _bad(line) for line in recent)
    running = place.is_held()
    return Status(
        sink=place.name,
        state=RUNNING if running else STOPPED,
        run=job.id(),
        model=job.model.name,
        version=job.model.version,
        rows=sum(line.part.rows + _bad(line) for line in lines),
        total_rows=job.rows,
        bad_rows=sum(_bad(line) for line in lines),
        splits=len(lines),
        total_splits=len(job.splits),
        runs=len(state.runs),
        holder=place.holder(),
        last=max((line.at for line in lines), default=0.0),
        rate=workers * scored / seconds if seconds else 0.0,
        why="" if running else _why(state),
        changed=() if running else _changed(job),
    )


def _why(state: journal.State) -> str:
    """What the last run said when it ended; one that was killed said nothing."""
    if state.ended is not None:
        return state.ended.text
    if not state.runs:
        return "it ended before its first row, and could not say why"
    last = state.runs[-1]
    at = max([last.at, *(line.at for line in state.finished.values() if line.token == last.token)])
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    return f"killed, or its machine went down: process {last.pid} on {last.host} said nothing after {when}"


def _changed(job: Job) -> tuple[str, ...]:
    found = []
    for file in job.files:
        if "://" not in file.path:
            try:
                same = not file_differences([file], [discovery.identify(file.path)])
            except SettingsError:
                same = False
            if not same:
                found.append(file.path)
    return tuple(found)


def _committed(sink: str, done: manifest.Manifest) -> Status:
    return Status(
        sink=sink,
        state=COMMITTED,
        run=done.run,
        model=done.model.name,
        version=done.model.version,
        rows=done.rows_in,
        total_rows=done.rows_in,
        bad_rows=done.bad_rows,
        splits=len(done.parts),
        total_splits=len(done.parts),
    )


def _bad(line: journal.Finished) -> int:
    return line.bad.rows if line.bad is not None else 0
