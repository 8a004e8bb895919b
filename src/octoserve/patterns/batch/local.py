"""A sink in a file system: `workplace`, `lease` and `journal` as one."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from octoserve.connectors.files import LocalFiles, NewFile, OutFile, publish
from octoserve.connectors.source import SourceFile
from octoserve.patterns.batch import journal, lease, manifest, workplace
from octoserve.patterns.batch.job import Difference, Job, Split
from octoserve.patterns.batch.journal import Began, Ended, Finished, Journal, Part, State
from octoserve.patterns.batch.lease import Holder, Lease
from octoserve.patterns.batch.manifest import Manifest
from octoserve.patterns.batch.outputs import Layout
from octoserve.patterns.batch.parts import BAD, SplitFiles
from octoserve.patterns.batch.verify import part_differences, part_tables
from octoserve.patterns.batch.workplace import Place


class LocalSink:
    """See `sinks.Sink`."""

    def __init__(self, sink: str | Path, files: LocalFiles, place: Place | None = None) -> None:
        self.place = place or workplace.place_of(sink)
        self.name = str(self.place.sink)
        self._files = files

    def bad(self, run: str) -> str:
        """See `Sink.bad`."""
        return f"{self.name}/{BAD}"

    def committed(self, run: str = "") -> Manifest | None:
        """See `Sink.committed`."""
        return manifest.read(self.place.sink)

    def has_job(self) -> bool:
        """See `Sink.has_job`."""
        return self.place.has_work()

    def job(self) -> Job:
        """See `Sink.job`."""
        return workplace.read_job(self.place)

    def state(self) -> State:
        """See `Sink.state`."""
        return journal.read(self.place.journal)

    def holder(self) -> Holder | None:
        """See `Sink.holder`."""
        return lease.holder(self.place.work)

    def is_held(self) -> bool:
        """See `Sink.is_held`."""
        return lease.is_held(self.place.work)

    def has_left_overs(self) -> bool:
        """See `Sink.has_left_overs`."""
        return self.place.work.is_dir()

    def enter(self, now: float) -> LocalWork:
        """See `Sink.enter`."""
        if not self.place.has_work() and self.committed() is None:
            workplace.refuse_strangers(self.place)
        workplace.prepare(self._files, self.place)
        return LocalWork(self.place, self._files, now)

    def tables(self, whole: Manifest, bad: bool, columns: Sequence[str] | None) -> Iterator[Any]:
        """See `Sink.tables`; one a part, in order."""
        return part_tables(self, whole, bad, columns)

    def differences(self, whole: Manifest, seen: Callable[[Part], None]) -> Iterator[Difference]:
        """See `Sink.differences`."""
        return part_differences(self, whole, seen)

    @contextlib.contextmanager
    def opened(self, part: str) -> Iterator[tuple[BinaryIO, SourceFile]]:
        """See `verify.Reading`."""
        path = self.place.sink / part
        with open(path, "rb", buffering=0) as file:
            yield file, SourceFile(str(path), os.fstat(file.fileno()).st_size, 0)

    def names(self) -> set[str]:
        """See `verify.Reading`."""
        folder = self.place.sink
        bad = os.listdir(folder / BAD) if (folder / BAD).is_dir() else []
        inside = os.listdir(folder) if folder.is_dir() else []
        return {*(name for name in inside if name != BAD), *(f"{BAD}/{name}" for name in bad)}


class LocalWork:
    """See `sinks.Work`, and `parts.Shelf`."""

    def __init__(self, place: Place, files: LocalFiles, now: float) -> None:
        """Raises Busy."""
        self.place = place
        self.files = files
        self._lease = Lease(files, place.work, now)
        self._journal: Journal | None = None
        self._lock = threading.Lock()

    @property
    def token(self) -> int:
        """See `Work.token`."""
        return self._lease.token

    def write_job(self, job: Job) -> None:
        """See `Work.write_job`."""
        workplace.write_job(self.files, self.place, job)

    def begin(self, line: Began) -> tuple[State, dict[int, Finished]]:
        """See `Work.begin`; orphans are swept."""
        self._journal = Journal(self.files, self.place.journal)
        past = self._journal.state
        self._journal.append(line)
        return past, workplace.sweep(self.files, self.place, past.finished)

    def open(self, split: Split, shape: Layout) -> SplitFiles:
        """See `Work.open`."""
        return SplitFiles(self, split, shape)

    def new_file(self, name: str) -> OutFile:
        """See `Shelf.new_file`."""
        return NewFile(self.files, self.place.temp / name.replace("/", "-"))

    def publish(self, file: OutFile, name: str) -> None:
        """See `Shelf.publish`."""
        assert isinstance(file, NewFile)
        self.adopt(file.path, name)

    def adopt(self, path: Path, name: str) -> None:
        """Publish a finished file that another process has written in this file system."""
        final = self.place.parts / name
        if name.startswith(f"{BAD}/"):
            self.files.make_folder(final.parent)
        publish(self.files, path, final)

    def journal(self, line: Finished) -> None:
        """See `Shelf.journal`."""
        assert self._journal is not None
        with self._lock:
            self._journal.append(line)

    def check(self) -> None:
        """See `Work.check`."""
        self._lease.check()

    def commit(self, whole: Manifest) -> None:
        """See `workplace.commit`."""
        self._lease.check()
        workplace.commit(self.files, self.place, whole)

    def clear(self) -> None:
        """See `workplace.clear`."""
        self._close()
        workplace.clear(self.files, self.place)

    def end(self, line: Ended) -> None:
        """See `Work.end`."""
        if self._journal is not None:
            with self._lock:
                self._journal.append(line)

    def release(self) -> None:
        """See `Work.release`."""
        self._close()
        self._lease.release()

    def _close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
