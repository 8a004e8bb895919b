"""A sink as an executor reaches it, and what its driver makes of what came of that.

A reach goes to the executors within the order; its desk stays with the driver. In a file system the driver publishes
and journals what attempts wrote. In an object store tasks do both: there every part, and every line, is true whoever
writes it (docs/decisions/0012-batch-on-object-stores.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from octoserve.connectors.files import LocalFiles, NewFile, OutFile
from octoserve.connectors.objects import Found
from octoserve.connectors.uploads import Upload
from octoserve.core.errors import Internal, NotFound, SettingsError
from octoserve.patterns.batch import journal, workplace
from octoserve.patterns.batch.job import Fenced, Job, Split
from octoserve.patterns.batch.journal import Finished
from octoserve.patterns.batch.lake_sink import LakeSink, LakeWork
from octoserve.patterns.batch.lease import holder
from octoserve.patterns.batch.local import LocalSink, LocalWork
from octoserve.patterns.batch.object_sink import JOURNAL, ObjectSink, ObjectWork
from octoserve.patterns.batch.outputs import Layout
from octoserve.patterns.batch.parts import SplitFiles
from octoserve.patterns.batch.run import Tools
from octoserve.patterns.batch.sinks import Sink, Work
from octoserve.patterns.batch.spark import mailbox
from octoserve.patterns.batch.spark.mailbox import Answer
from octoserve.patterns.batch.workplace import Place


class LocalReach(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that driver and executors see under one path. work: the work folder; token: of the driver's lease."""

    work: str
    token: int

    @property
    def _place(self) -> Place:
        work = Path(self.work)
        return Place(work, work, True)

    @property
    def answers(self) -> Path:
        """Where this run's tasks write; nobody else does."""
        return self._place.answers(self.token)

    def job(self, tools: Tools) -> Job:
        """What the driver wrote down. Raises SettingsError if it is not seen from here."""
        try:
            return workplace.read_job(self._place)
        except NotFound:
            raise SettingsError(
                f"no job lies in {self.work}; the sink must be a folder that driver and executors share, under one path"
            ) from None

    def check(self) -> None:
        """Raises Fenced if the driver has lost its lease."""
        now = holder(Path(self.work))
        if now is None or now.token != self.token or not self.answers.is_dir():
            raise Fenced("the run that this task is of has ended, or lost its lease; nothing more is written")

    def open(self, tools: Tools, split: Split, shape: Layout, attempt: str) -> SplitFiles:
        """For what an attempt writes. Raises Fenced."""
        self.check()
        try:
            (self.answers / attempt).mkdir()  # and never what is above it
        except FileNotFoundError:
            self.check()
            raise
        return SplitFiles(_Attempt(self, tools.files, attempt), split, shape)

    def post(self, tools: Tools, answer: Answer) -> None:
        """Leave the answer where the driver looks. Raises Fenced, OSError."""
        try:
            mailbox.post(tools.files, self.answers, answer)
        except FileNotFoundError:
            self.check()
            raise


class _Attempt:
    """See `parts.Shelf`: the attempt's own folder. What it publishes, its driver may take; or nobody."""

    def __init__(self, reach: LocalReach, files: LocalFiles, attempt: str) -> None:
        self.token = reach.token
        self._reach = reach
        self._files = files
        self._folder = reach.answers / attempt

    def new_file(self, name: str) -> OutFile:
        """See `Shelf.new_file`."""
        return NewFile(self._files, written(self._folder, name))

    def publish(self, file: OutFile, name: str) -> None:
        """Its name has been its own from the start; it must only last."""
        self._files.fsync_folder(self._folder)

    def check(self) -> None:
        """See `Shelf.check`."""
        self._reach.check()

    def journal(self, line: Finished) -> None:
        """The driver does it."""


def written(folder: Path, name: str) -> Path:
    """Where an attempt writes what will be published as `name`."""
    return folder / name.replace("/", "-")


class LocalDesk:
    """The driver's side of a `LocalReach`."""

    every = 0.2
    """Seconds between two looks: what a killed driver may lose beside what is under way."""

    def __init__(self, work: LocalWork) -> None:
        """Makes the folder; those of runs before went when this one began. Raises OSError."""
        self._work = work
        self._files = work.files
        self._seen: set[str] = set()
        self.reach = LocalReach(work=str(work.place.work), token=work.token)
        self._files.make_folder(self.reach.answers)
        self._files.fsync_folder(work.place.work)

    def look(self) -> Iterator[Answer]:
        """Answers that came since the last look."""
        return mailbox.collect(self.reach.answers, self._seen)

    def take(self, answer: Answer, line: Finished) -> None:
        """Publish what the attempt wrote, and journal it. Raises Fenced, OSError."""
        folder = self.reach.answers / answer.attempt
        self._work.check()
        for part in (line.bad, line.part):
            if part is not None:
                self._work.adopt(written(folder, part.name), part.name)
        self._work.journal(line)

    def close(self) -> None:
        """Remove the folder. Raises OSError."""
        workplace.close_answers(self._files, self.reach.answers)


class ObjectReach(msgspec.Struct, frozen=True, kw_only=True):
    """An object store. url: of the parts; work: of the work folder; token: of the driver's lease."""

    url: str
    work: str
    token: int

    def job(self, tools: Tools) -> Job:
        """What the driver wrote down. Raises SettingsError if it is not seen from here."""
        try:
            return self.sink(tools).job()
        except NotFound:
            raise SettingsError(f"no job lies in {self.url}; executors must reach the driver's store") from None

    def open(self, tools: Tools, split: Split, shape: Layout, attempt: str) -> SplitFiles:
        """For what an attempt writes. Raises Fenced, StoreTrouble."""
        shelf = _ObjectShelf(self, self.sink(tools))
        shelf.check()
        return SplitFiles(shelf, split, shape)

    def post(self, tools: Tools, answer: Answer) -> None:
        """Leave why there is no part; a part's own line is in the journal. Raises StoreTrouble."""
        if answer.line is None:
            sink = self.sink(tools)
            sink.bucket.put(f"{self.refusals(sink)}/{answer.attempt}.json", mailbox.encode(answer))

    def sink(self, tools: Tools) -> ObjectSink:
        """As this process reaches it."""
        return ObjectSink(self.url, tools.buckets, work=self.work)

    def refusals(self, sink: ObjectSink) -> str:
        """The keys' prefix."""
        return f"{sink.folder}/{workplace.ANSWERS}{self.token}"


class _ObjectShelf:
    """See `parts.Shelf`: the sink's own, under the driver's lease."""

    def __init__(self, reach: ObjectReach, sink: ObjectSink) -> None:
        self.token = reach.token
        self._sink = sink

    def new_file(self, name: str) -> OutFile:
        """See `Shelf.new_file`."""
        return Upload(self._sink.bucket, f"{self._sink.key}/{name}")

    def publish(self, file: OutFile, name: str) -> None:
        """See `Shelf.publish`."""
        assert isinstance(file, Upload)
        file.publish()

    def check(self) -> None:
        """See `Shelf.check`."""
        now = self._sink.holder()
        if now is None or now.token != self.token or now.released:
            raise Fenced("the run that this task is of has ended, or lost its lease; nothing more is written")

    def journal(self, line: Finished) -> None:
        """See `Shelf.journal`."""
        self._sink.bucket.put(journal_key(self._sink, line.split), journal.encode(line))


class ObjectDesk:
    """The driver's side of an `ObjectReach`: it only reads."""

    every = 3.0
    """Seconds between two looks; each costs two lists."""

    def __init__(self, work: ObjectWork) -> None:
        self._sink = work.sink
        self.reach = ObjectReach(
            url=work.sink.name, work=f"s3://{work.sink.bucket.name}/{work.sink.folder}", token=work.token
        )
        self._seen = {found.key for found in self._lines()}

    def look(self) -> Iterator[Answer]:
        """Answers that came since the last look. Raises StoreTrouble."""
        bucket = self._sink.bucket
        for found in list(self._lines()):
            if found.key not in self._seen:
                self._seen.add(found.key)
                (line,), _ = journal.parse(bucket.get(found.key)[0])
                if isinstance(line, Finished):
                    yield Answer(split=line.split, attempt="", host="", line=line)
        for found in list(bucket.list(self.reach.refusals(self._sink))):
            yield mailbox.decode(bucket.get(found.key)[0])

    def take(self, answer: Answer, line: Finished) -> None:
        """Its task has published and journaled it."""

    def close(self) -> None:
        """What refusals there are goes with the work folder, or stays for nobody."""
        bucket = self._sink.bucket
        bucket.delete([found.key for found in bucket.list(self.reach.refusals(self._sink))])

    def _lines(self) -> Iterator[Found]:
        return self._sink.bucket.list(f"{self._sink.folder}/{JOURNAL}")


def journal_key(sink: ObjectSink, split: int) -> str:
    """Of a split's line."""
    return f"{sink.folder}/{JOURNAL}/{split:08}.json"


Reach = LocalReach | ObjectReach
Desk = LocalDesk | ObjectDesk


def refuse_unreachable(sink: Sink) -> None:
    """Raises SettingsError for a sink that has no reach."""
    if not isinstance(sink, LocalSink | ObjectSink | LakeSink):
        raise SettingsError(
            f"sink: a folder that all executors share, s3://, or a table of such wanted by engine: spark; {sink.name} "
            "is for --engine local"
        )


def desk_of(work: Work, shape: Layout) -> Desk:
    """Of a run's right to work on its sink. Raises SettingsError if a table does not take rows of that shape."""
    if isinstance(work, LakeWork):
        work = work.below(shape)
    if isinstance(work, LocalWork):
        return LocalDesk(work)
    if isinstance(work, ObjectWork):
        return ObjectDesk(work)
    raise Internal(f"{type(work).__name__} is a sink that no executor reaches")
