"""A sink in an object store: parts in place, whole when `_SUCCESS` is there.

See docs/decisions/0012-batch-on-object-stores.md for the order of the steps and for what a crash after each means.
Nothing published is removed before the commit: a part's name and bytes follow from the job, whoever writes it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import msgspec

from octoserve.connectors.files import OutFile
from octoserve.connectors.objects import Bucket, Exists, Missing, split_url
from octoserve.connectors.opening import ObjectFile
from octoserve.connectors.source import SourceFile
from octoserve.connectors.uploads import Upload
from octoserve.core.errors import NotFound, SettingsError
from octoserve.patterns.batch import journal, manifest, object_lease
from octoserve.patterns.batch.job import Busy, Difference, Job, Split
from octoserve.patterns.batch.journal import Began, DamagedJournal, Ended, Finished, Part, State
from octoserve.patterns.batch.lease import LEASE, Holder, is_gone
from octoserve.patterns.batch.manifest import Manifest
from octoserve.patterns.batch.object_lease import ObjectLease
from octoserve.patterns.batch.outputs import Layout
from octoserve.patterns.batch.parts import BAD, SplitFiles
from octoserve.patterns.batch.verify import part_differences, part_tables
from octoserve.patterns.batch.workplace import INSIDE, JOB, DamagedJob

Buckets = Callable[[str], Bucket]
"""A bucket by its name."""
JOURNAL = "journal"
_READERS = 16
"""Of the journal's objects, at a time."""
_SHOWN = 3


class ObjectSink:
    """See `sinks.Sink`."""

    def __init__(self, url: str, buckets: Buckets, wall: Callable[[], float] = time.time, work: str = "") -> None:
        """work: the work folder's URL, if it is not within."""
        name, key = split_url(url)
        self.key = key.strip("/")
        if not self.key:
            raise SettingsError(f"sink: s3://bucket/folder wanted, {url!r} came")
        self.name = f"s3://{name}/{self.key}"
        self.folder = split_url(work)[1] if work else f"{self.key}/{INSIDE}"
        self.bucket = buckets(name)
        self._wall = wall

    def bad(self, run: str) -> str:
        """See `Sink.bad`."""
        return f"{self.name}/{BAD}"

    def committed(self, run: str = "") -> Manifest | None:
        """See `Sink.committed`."""
        try:
            data, _ = self.bucket.get(f"{self.key}/{manifest.SUCCESS}")
        except Missing:
            return None
        return manifest.decode(data, f"{self.name}/{manifest.SUCCESS}")

    def has_job(self) -> bool:
        """See `Sink.has_job`."""
        try:
            self.bucket.head(f"{self.folder}/{JOB}")
        except Missing:
            return False
        return True

    def job(self) -> Job:
        """See `Sink.job`."""
        try:
            return msgspec.json.decode(self.bucket.get(f"{self.folder}/{JOB}")[0], type=Job)
        except Missing:
            raise NotFound(f"{self.name} is the sink of no unfinished batch job") from None
        except msgspec.DecodeError as error:
            raise DamagedJob(
                f"s3://{self.bucket.name}/{self.folder}/{JOB} is not a job of octoserve: {error}"
            ) from None

    def state(self) -> State:
        """See `Sink.state`. A line is true whoever wrote it: tokens do not matter."""
        keys = [found.key for found in self.bucket.list(f"{self.folder}/{JOURNAL}")]
        with ThreadPoolExecutor(_READERS) as pool:
            lines = [line for line in pool.map(self._line, keys) if line is not None]
        runs = sorted((line for line in lines if isinstance(line, Began)), key=lambda line: line.token)
        last = runs[-1].token if runs else 0
        ended = next((line for line in lines if isinstance(line, Ended) and line.token == last), None)
        return State({line.split: line for line in lines if isinstance(line, Finished)}, tuple(runs), ended)

    def _line(self, key: str) -> journal.Line | None:
        try:
            data, _ = self.bucket.get(key)
        except Missing:
            return None  # committed and cleared meanwhile
        lines, size = journal.parse(data)
        if len(lines) != 1 or size != len(data):
            raise DamagedJournal(f"s3://{self.bucket.name}/{key} is not a line of octoserve's journal")
        return lines[0]

    def holder(self) -> Holder | None:
        """See `Sink.holder`."""
        return object_lease.holder(self.bucket, self.folder)

    def is_held(self) -> bool:
        """By this machine's clock against the store's: only to be shown."""
        last, lies = self.holder(), object_lease.lease_object(self.bucket, self.folder)
        if last is None or lies is None or last.released or is_gone(last):
            return False
        return self._wall() - lies.modified < object_lease.LASTS

    def has_left_overs(self) -> bool:
        """See `Sink.has_left_overs`."""
        return next(self.bucket.list(self.folder), None) is not None

    def enter(self, now: float) -> ObjectWork:
        """See `Sink.enter`."""
        if not self.has_job() and self.committed() is None:
            self.refuse_strangers()
        return ObjectWork(self, now)

    def refuse_strangers(self) -> None:
        """Raises SettingsError if the sink of a new job holds what is not ours."""
        strangers = sorted(name for name in self._all() if not name.startswith(f"{INSIDE}/"))[:_SHOWN]
        if strangers:
            raise SettingsError(
                f"sink: a new or empty folder is wanted, {self.name} holds {', '.join(strangers)}; name another"
            )

    def sizes(self) -> dict[str, int]:
        """Of all objects there but the work folder's."""
        return {name: size for name, size in self._all().items() if not name.startswith(f"{INSIDE}/")}

    def _all(self) -> dict[str, int]:
        return {found.key[len(self.key) + 1 :]: found.size for found in self.bucket.list(self.key)}

    def tables(self, whole: Manifest, bad: bool, columns: Sequence[str] | None) -> Iterator[Any]:
        """See `Sink.tables`; one a part, in order."""
        return part_tables(self, whole, bad, columns)

    def differences(self, whole: Manifest, seen: Callable[[Part], None]) -> Iterator[Difference]:
        """See `Sink.differences`."""
        return part_differences(self, whole, seen)

    @contextlib.contextmanager
    def opened(self, part: str) -> Iterator[tuple[BinaryIO, SourceFile]]:
        """See `verify.Reading`."""
        key = f"{self.key}/{part}"
        found = self.bucket.head(key)
        raw = ObjectFile(found.size, lambda start, stop: self.bucket.read(key, start, stop, found.etag))
        yield raw, SourceFile(f"s3://{self.bucket.name}/{key}", found.size, 0, etag=found.etag)

    def names(self) -> set[str]:
        """See `verify.Reading`."""
        return set(self.sizes())


class ObjectWork:
    """See `sinks.Work`, and `parts.Shelf`."""

    def __init__(self, sink: ObjectSink, now: float) -> None:
        """Raises Busy."""
        self.sink = sink
        self._bucket = sink.bucket
        self._lease: ObjectLease | None = ObjectLease(sink.bucket, sink.folder, now)
        self._token = self._lease.token

    @property
    def token(self) -> int:
        """See `Work.token`."""
        return self._token

    def write_job(self, job: Job) -> None:
        """See `Work.write_job`. Raises Busy."""
        try:
            self._bucket.create(f"{self.sink.folder}/{JOB}", msgspec.json.encode(job))
        except Exists:
            raise Busy(f"another run has just begun a job in {self.sink.name}") from None

    def begin(self, line: Began) -> tuple[State, dict[int, Finished]]:
        """See `Work.begin`."""
        past = self.sink.state()
        self._bucket.put(f"{self.sink.folder}/{JOURNAL}/run-{line.token:08}.json", journal.encode(line))
        there = self.sink.sizes()

        def lies(part: Part | None) -> bool:
            return part is None or there.get(part.name) == part.bytes

        return past, {split: at for split, at in past.finished.items() if lies(at.part) and lies(at.bad)}

    def open(self, split: Split, shape: Layout) -> SplitFiles:
        """See `Work.open`."""
        return SplitFiles(self, split, shape)

    def new_file(self, name: str) -> OutFile:
        """See `Shelf.new_file`."""
        return Upload(self._bucket, f"{self.sink.key}/{name}")

    def publish(self, file: OutFile, name: str) -> None:
        """See `Shelf.publish`."""
        assert isinstance(file, Upload)
        file.publish()

    def journal(self, line: Finished) -> None:
        """See `Shelf.journal`."""
        self._bucket.put(f"{self.sink.folder}/{JOURNAL}/{line.split:08}.json", journal.encode(line))

    def check(self) -> None:
        """See `Work.check`."""
        assert self._lease is not None
        self._lease.check()

    def commit(self, whole: Manifest) -> None:
        """`_SUCCESS`, where there is none. Crash before it: resume does it; after it: committed. Raises Busy."""
        self.check()
        try:
            self._bucket.create(f"{self.sink.key}/{manifest.SUCCESS}", manifest.encode(whole))
        except Exists:
            raise Busy(f"another run has just committed another job to {self.sink.name}") from None

    def clear(self) -> None:
        """The lease goes last: whoever waits for it finds the sink committed."""
        keys = [found.key for found in self._bucket.list(self.sink.folder)]
        last = f"{self.sink.folder}/{LEASE}"
        self._bucket.delete([key for key in keys if key != last])
        assert self._lease is not None
        lease, self._lease = self._lease, None
        lease.forget()

    def end(self, line: Ended) -> None:
        """See `Work.end`."""
        self._bucket.put(f"{self.sink.folder}/{JOURNAL}/end-{line.token:08}.json", journal.encode(line))

    def release(self) -> None:
        """See `Work.release`."""
        if self._lease is not None:
            lease, self._lease = self._lease, None
            lease.release()
