"""How far a job is: counted by the lanes, read by whoever shows it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import msgspec

from octoserve.core.clock import Clock
from octoserve.patterns.batch.job import Job
from octoserve.patterns.batch.journal import Finished


class Glance(msgspec.Struct, frozen=True, kw_only=True):
    """A moment of a job. rate, byte_rate: per second, of this run, or of runs before while this one has none yet."""

    rows: int
    total_rows: int
    bytes: int
    total_bytes: int
    bad: int
    splits: int
    total_splits: int
    resumed_rows: int
    elapsed: float
    rate: float
    byte_rate: float

    @property
    def seconds_left(self) -> float | None:
        """Until the last row, at this rate; None while there is none."""
        return (self.total_rows - self.rows) / self.rate if self.rate else None


class Progress:
    """Of one run."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock()
        self._job: Job | None = None
        self._rows = self._bytes = self._bad = self._splits = 0
        self._resumed = 0
        self._past_rate = 0.0

    def begin(self, job: Job, finished: Sequence[Finished], past: Sequence[Finished], workers: int) -> None:
        """What is there already. past: the last lines of earlier runs, to tell a rate from."""
        done = {line.split for line in finished}
        with self._lock:
            self._began = self._clock()
            self._job = job
            self._splits = len(done)
            self._rows = self._resumed = sum(split.rows for split in job.splits if split.index in done)
            self._bytes = sum(split.bytes for split in job.splits if split.index in done)
            self._bad = sum(line.bad.rows for line in finished if line.bad is not None)
            seconds = sum(line.seconds for line in past)
            rows = sum(line.part.rows for line in past)
            self._past_rate = workers * rows / seconds if seconds > 0 else 0.0

    def add(self, rows: int, size: int, bad: int) -> None:
        """A block has been written."""
        with self._lock:
            self._rows += rows
            self._bytes += size
            self._bad += bad

    def finished_split(self) -> None:
        """A split has been journaled."""
        with self._lock:
            self._splits += 1

    def glance(self) -> Glance | None:
        """As it is now; None before a job is known."""
        with self._lock:
            if self._job is None:
                return None
            elapsed = self._clock() - self._began
            new = self._rows - self._resumed
            rate = new / elapsed if new and elapsed > 0 else self._past_rate
            mean = self._job.bytes / self._job.rows if self._job.rows else 0.0
            return Glance(
                rows=self._rows,
                total_rows=self._job.rows,
                bytes=self._bytes,
                total_bytes=self._job.bytes,
                bad=self._bad,
                splits=self._splits,
                total_splits=len(self._job.splits),
                resumed_rows=self._resumed,
                elapsed=elapsed,
                rate=rate,
                byte_rate=rate * mean,
            )
