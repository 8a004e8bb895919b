"""A sink that is a table of Delta or Iceberg: a job's parts lie below it, and one commit of the table adds them all.

See docs/decisions/0012-batch-on-object-stores.md. Below the table's root `octoserve-RUN/` has the run's parts, bad rows
and manifest, as in a sink in place; `_octoserve/` is the work folder. What is committed, the table alone says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from octoserve.connectors.files import LocalFiles
from octoserve.connectors.lake import Added, LakeTable
from octoserve.connectors.opening import is_object
from octoserve.patterns.batch.job import Difference, Job, Split
from octoserve.patterns.batch.journal import Began, Ended, Finished, Part, State
from octoserve.patterns.batch.lease import Holder
from octoserve.patterns.batch.local import LocalSink, LocalWork
from octoserve.patterns.batch.manifest import Manifest
from octoserve.patterns.batch.object_sink import Buckets, ObjectSink, ObjectWork
from octoserve.patterns.batch.outputs import Layout
from octoserve.patterns.batch.sinks import SplitOut
from octoserve.patterns.batch.workplace import INSIDE, Place, prepare

_NONE = "none"


class LakeSink:
    """See `sinks.Sink`."""

    def __init__(self, table: LakeTable, files: LocalFiles, buckets: Buckets) -> None:
        self.table = table
        self.name = table.name
        self._files = files
        self._buckets = buckets
        self._base = self.of_run(_NONE)

    def of_run(self, run: str) -> LocalSink | ObjectSink:
        """The folder of a run's parts, as a sink in place."""
        folder = f"{self.table.root}/octoserve-{run}"
        if is_object(folder):
            return ObjectSink(folder, self._buckets, work=f"{self.table.root}/{INSIDE}")
        place = Place(Path(folder), Path(self.table.root) / INSIDE, True)
        return LocalSink(folder, self._files, place)

    def bad(self, run: str) -> str:
        """See `Sink.bad`."""
        return self.of_run(run).bad(run)

    def committed(self, run: str = "") -> Manifest | None:
        """See `Sink.committed`; without a run, of the job that has begun, else of the last that the table has."""
        run = run or (self.job().id() if self.has_job() else self.table.last())
        whole = self.of_run(run).committed() if run else None
        return whole if whole is not None and self.holds(whole) else None

    def holds(self, whole: Manifest) -> bool:
        """Whether the table has a run's commit, or its parts: the commit's own record goes when old snapshots do."""
        return self.table.has(whole.run) or (bool(whole.parts) and self.paths(whole) <= self.table.live())

    def paths(self, whole: Manifest) -> set[str]:
        """Of a run's parts, as the table has them."""
        return {f"{self.table.root}/octoserve-{whole.run}/{part.name}" for part in whole.parts}

    def has_job(self) -> bool:
        """See `Sink.has_job`."""
        return self._base.has_job()

    def job(self) -> Job:
        """See `Sink.job`."""
        return self._base.job()

    def state(self) -> State:
        """See `Sink.state`."""
        return self._base.state()

    def holder(self) -> Holder | None:
        """See `Sink.holder`."""
        return self._base.holder()

    def is_held(self) -> bool:
        """See `Sink.is_held`."""
        return self._base.is_held()

    def has_left_overs(self) -> bool:
        """See `Sink.has_left_overs`."""
        return self._base.has_left_overs()

    def enter(self, now: float) -> LakeWork:
        """See `Sink.enter`. What the table holds stays there."""
        if isinstance(self._base, ObjectSink):
            return LakeWork(self, ObjectWork(self._base, now))
        at = self._base.place
        self._files.make_folder(at.temp)
        return LakeWork(self, LocalWork(at, self._files, now))

    def tables(self, whole: Manifest, bad: bool, columns: Sequence[str] | None) -> Iterator[Any]:
        """See `Sink.tables`: of the run, not of the whole table."""
        return self.of_run(whole.run).tables(whole, bad, columns)

    def differences(self, whole: Manifest, seen: Callable[[Part], None]) -> Iterator[Difference]:
        """See `Sink.differences`; also what the table has no longer."""
        yield from self.of_run(whole.run).differences(whole, seen)
        live = self.table.live()
        for part in whole.parts:
            if f"{self.table.root}/octoserve-{whole.run}/{part.name}" not in live:
                remedy = "the table was rewritten, or restored to before"
                yield Difference(part.name, "a file of the table", "a file that it has no longer", remedy)


class LakeWork:
    """See `sinks.Work`: a sink's in place, and the table's commit."""

    def __init__(self, sink: LakeSink, inner: LocalWork | ObjectWork) -> None:
        self._sink = sink
        self._inner = inner
        self._shape: Layout | None = None

    @property
    def token(self) -> int:
        """See `Work.token`."""
        return self._inner.token

    def write_job(self, job: Job) -> None:
        """See `Work.write_job`."""
        self._inner.write_job(job)

    def begin(self, line: Began) -> tuple[State, dict[int, Finished]]:
        """See `Work.begin`; from now on parts go to the run's folder."""
        at = self._sink.of_run(self._sink.job().id())
        if isinstance(at, ObjectSink):
            assert isinstance(self._inner, ObjectWork)
            self._inner.sink = at
        else:
            assert isinstance(self._inner, LocalWork)
            self._inner.place = at.place
            prepare(self._inner.files, at.place)
        return self._inner.begin(line)

    def end(self, line: Ended) -> None:
        """See `Work.end`."""
        self._inner.end(line)

    def open(self, split: Split, shape: Layout) -> SplitOut:
        """See `Work.open`. Raises SettingsError if the table does not take such rows."""
        return self.below(shape).open(split, shape)

    def below(self, shape: Layout) -> LocalWork | ObjectWork:
        """The work on the run's folder. Raises SettingsError if the table does not take such rows."""
        if self._shape is None:
            self._sink.table.check(shape.schema)
            self._shape = shape
        return self._inner

    def check(self) -> None:
        """See `Work.check`."""
        self._inner.check()

    def commit(self, whole: Manifest) -> None:
        """The manifest, then the table's commit, unless it has one of this run.

        Crash between them: the table's readers see nothing, and the next run commits.
        """
        self._inner.commit(whole)
        table = self._sink.table
        if self._sink.holds(whole):
            return
        folder = f"{table.root}/octoserve-{whole.run}"
        added = [Added(f"{folder}/{part.name}", part.rows, part.bytes) for part in whole.parts]
        if self._shape is None:  # all splits were finished by runs before
            schema = next(self._sink.of_run(whole.run).tables(whole, False, None)).schema
        else:
            schema = self._shape.schema
        self._inner.check()
        table.append(added, schema, whole.run)

    def clear(self) -> None:
        """See `Work.clear`."""
        self._inner.clear()

    def release(self) -> None:
        """See `Work.release`."""
        self._inner.release()
