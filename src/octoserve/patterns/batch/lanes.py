"""The threads of a run: a lane reads a split, has its blocks scored, and writes them in order.

There is a lane a worker, and a scoring thread a worker with a model of its own. Lanes share the scoring threads, so the
last split is scored by all of them. What a lane has read and not yet written is bounded in bytes; it writes before it
reads on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from octoserve.connectors.source import Rows, SourceFile
from octoserve.core.clock import Clock
from octoserve.core.errors import Internal, OctoserveError
from octoserve.patterns.batch.job import Differs, Interrupted, Job, Split, file_differences
from octoserve.patterns.batch.journal import Finished
from octoserve.patterns.batch.matching import Matched
from octoserve.patterns.batch.progress import Progress
from octoserve.patterns.batch.scoring import Models, Scored, Scores
from octoserve.patterns.batch.sinks import SplitOut
from octoserve.patterns.batch.table import Table

Waiting = deque[tuple[Future[Scored], int]]
"""Blocks of a split that are being scored, in order, and how many bytes each holds."""


class Lanes:
    """All splits that are left, with `workers` lanes.

    out:             where a split's rows go
    load:            the models of a scoring thread; called in that thread
    row_bytes:       of tensors that a row becomes, beside what is read
    bytes_in_flight: of all lanes together
    """

    def __init__(
        self,
        job: Job,
        table: Table,
        matched: Matched,
        scorer: Scores,
        out: Callable[[Split], SplitOut],
        progress: Progress,
        *,
        load: Callable[[], Models],
        workers: int,
        bytes_in_flight: int,
        row_bytes: int,
        stop: threading.Event,
        clock: Clock,
    ) -> None:
        self._job = job
        self._table = table
        self._matched = matched
        self._scorer = scorer
        self._out = out
        self._progress = progress
        self._load = load
        self._workers = workers
        self._limit = bytes_in_flight // workers
        self._row_bytes = row_bytes
        self._stop = stop
        self._clock = clock
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._over = threading.Event()
        """Somebody failed, or all is done: no lane goes on."""
        self._failure: BaseException | None = None
        self._finished: list[Finished] = []

    def run(self, splits: Sequence[Split]) -> list[Finished]:
        """Returns when all are journaled. Raises what first went wrong; Interrupted if `stop` was set."""
        self._left = deque(splits)
        lanes = min(self._workers, len(splits))
        with ThreadPoolExecutor(self._workers, "octoserve-score") as self._pool:
            threads = [threading.Thread(target=self._lane, name=f"octoserve-lane-{i}") for i in range(lanes)]
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            except BaseException:  # a second Ctrl-C
                self._over.set()
                raise
        if self._failure is not None:
            raise self._failure
        return self._finished

    def _lane(self) -> None:
        try:
            while (split := self._next()) is not None:
                line = self._work(split)
                with self._lock:
                    self._finished.append(line)
                self._progress.finished_split()
        except BaseException as failure:
            with self._lock:
                if self._failure is None:
                    self._failure = failure
            self._over.set()

    def _next(self) -> Split | None:
        with self._lock:
            return self._left.popleft() if self._left and not self._over.is_set() else None

    def _work(self, split: Split) -> Finished:
        began = self._clock()
        file = self._job.files[split.file]
        self._unchanged(file)
        files = self._out(split)
        waiting: Waiting = deque()
        try:
            rows = self._read(split, file, files, waiting)
            if rows != split.rows:
                raise Internal(f"{file.path}: {split.rows} rows were planned for {split.name}, {rows} came")
            self._unchanged(file)
            return files.finish(self._clock() - began, time.time())
        except BaseException:
            for future, _ in waiting:
                future.cancel()
            files.abandon()
            raise

    def _read(self, split: Split, file: SourceFile, files: SplitOut, waiting: Waiting) -> int:
        row, held = split.first_row, 0
        for block in self._table.read(split, self._matched.read, self._job.block_rows):
            count = block.batch.num_rows
            size = block.batch.nbytes + count * self._row_bytes
            while waiting and (held + size > self._limit or waiting[0][0].done()):
                held -= self._write(split, files, waiting)
            self._go_on()
            waiting.append((self._pool.submit(self._score, block, file.path, row), size))
            row += count
            held += size
        while waiting:
            self._write(split, files, waiting)
        return row - split.first_row

    def _write(self, split: Split, files: SplitOut, waiting: Waiting) -> int:
        """The oldest block; what it held."""
        future, size = waiting[0]
        scored = future.result()
        waiting.popleft()
        self._go_on()
        files.write(scored)
        bad = scored.bad.num_rows if scored.bad is not None else 0
        self._progress.add(scored.rows, split.bytes * scored.rows // split.rows, bad)
        return size

    def _score(self, block: Rows, path: str, first_row: int) -> Scored:
        self._go_on()
        models = getattr(self._mine, "models", None)
        if models is None:
            models = self._mine.models = self._load()
        return self._scorer.score(models, block, path, first_row)

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise Interrupted("interrupted; what was journaled stays")
        if self._over.is_set():
            raise _OtherFailed("another lane failed")

    def _unchanged(self, file: SourceFile) -> None:
        found = file_differences([file], [self._table.source.identify(file)])
        if found:
            raise Differs("the source has changed while the job runs", found)


class _OtherFailed(OctoserveError):
    """Never seen outside: the first failure is raised."""
