"""Where a job's files lie, and the steps that change what a reader of the sink can see.

See docs/decisions/0010-batch-jobs.md for the order of the steps and for what a crash after each means.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from octoserve.connectors.files import LocalFiles, publish, write_whole
from octoserve.connectors.formats import SINK_FORMATS
from octoserve.core.errors import NotFound, OctoserveError, SettingsError
from octoserve.patterns.batch import manifest
from octoserve.patterns.batch.job import Job
from octoserve.patterns.batch.journal import Finished, Part
from octoserve.patterns.batch.parts import BAD

INSIDE = "_octoserve"
"""The work folder of a sink in which parts appear in place."""
JOB, JOURNAL = "job.json", "journal.jsonl"
_PART = re.compile(rf"part-\d{{5,}}({'|'.join(re.escape(known.endings[0]) for known in SINK_FORMATS.values())})")
ANSWERS = "spark-"
"""A folder of executors begins so; their run's token follows."""
_GONE = ".gone"


class DamagedJob(OctoserveError):
    """`job.json` is not what octoserve wrote."""

    reason = "damaged"


class Place(msgspec.Struct, frozen=True):
    """A sink's folders. parts: what becomes `sink` by one rename, or is `sink` itself (`in_place`)."""

    sink: Path
    work: Path
    in_place: bool

    @property
    def parts(self) -> Path:
        """Where parts are published."""
        return self.sink if self.in_place else self.work / "parts"

    @property
    def temp(self) -> Path:
        """Where files are written."""
        return self.work / "temp"

    @property
    def journal(self) -> Path:
        """What is finished."""
        return self.work / JOURNAL

    def answers(self, token: int) -> Path:
        """Where the executors of the run with that token write; nobody else does."""
        return self.work / f"{ANSWERS}{token}"

    def has_work(self) -> bool:
        """Whether there is a job that has begun and whose folder is still there."""
        return (self.work / JOB).exists()


def place_of(sink: str | Path) -> Place:
    """Of a sink that is there or not."""
    folder = Path(os.path.realpath(sink))
    beside, inside = folder.parent / f".{folder.name}.octoserve", folder / INSIDE
    if inside.is_dir():
        return Place(folder, inside, True)
    if beside.is_dir() or not folder.is_dir():
        return Place(folder, beside, False)
    fixed = os.path.ismount(folder) or not os.access(folder.parent, os.W_OK)
    return Place(folder, inside, True) if fixed else Place(folder, beside, False)


def prepare(files: LocalFiles, place: Place) -> None:
    """Make the folders. Raises SettingsError if one cannot be made."""
    try:
        for folder in (place.work, place.temp, place.parts):
            files.make_folder(folder)
        files.fsync_folder(place.work.parent)
    except OSError as error:
        raise SettingsError(f"sink: cannot make {error.filename}: {error.strerror}") from None


def refuse_strangers(place: Place) -> None:
    """Raises SettingsError if the sink of a new job holds what is not ours."""
    if place.sink.exists() and not place.sink.is_dir():
        raise SettingsError(f"sink: a new or empty folder is wanted, {place.sink} is a file")
    names = sorted(os.listdir(place.sink)) if place.sink.is_dir() else []
    strangers = [name for name in names if name not in (INSIDE, "lost+found")]
    if strangers:
        raise SettingsError(
            f"sink: a new or empty folder is wanted, {place.sink} holds {', '.join(strangers[:3])}; name another"
        )


def write_job(files: LocalFiles, place: Place, job: Job) -> None:
    """Write the job down; from now on it is this one that a run of the sink goes on with."""
    write_whole(files, place.work / JOB, msgspec.json.encode(job), place.temp)


def read_job(place: Place) -> Job:
    """The job that has begun. Raises NotFound, DamagedJob."""
    try:
        return msgspec.json.decode((place.work / JOB).read_bytes(), type=Job)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{place.sink} is the sink of no unfinished batch job") from None
    except msgspec.DecodeError as error:
        raise DamagedJob(f"{place.work / JOB} is not a job of octoserve: {error}") from None


def sweep(files: LocalFiles, place: Place, finished: Mapping[int, Finished]) -> dict[int, Finished]:
    """Remove what no journal line speaks of; the splits whose files are there as journaled.

    Only for who holds the lease.
    """
    whole = {split: line for split, line in finished.items() if _lies_there(place, line)}
    known = {part.name for line in whole.values() for part in (line.part, line.bad) if part is not None}
    for path in place.temp.iterdir():
        files.remove(path)
    for path in place.work.glob(f"{ANSWERS}*"):
        close_answers(files, path)
    for folder, prefix in ((place.parts, ""), (place.parts / BAD, f"{BAD}/")):
        for path in folder.iterdir() if folder.is_dir() else ():
            if _PART.fullmatch(path.name) and prefix + path.name not in known:
                files.remove(path)
    return whole


def close_answers(files: LocalFiles, folder: Path) -> None:
    """Remove it at once for executors that still write there, driver or not: from the rename on they find it gone."""
    if folder.is_dir() and not folder.name.endswith(_GONE):
        gone = folder.with_name(f"{folder.name}.{time.time_ns():x}{_GONE}")
        files.rename(folder, gone)
        folder = gone
    files.remove_tree(folder)


def _lies_there(place: Place, line: Finished) -> bool:
    return all(_has_size(place.parts, part) for part in (line.part, line.bad) if part is not None)


def _has_size(folder: Path, part: Part) -> bool:
    try:
        return (folder / part.name).stat().st_size == part.bytes
    except OSError:
        return False


def commit(files: LocalFiles, place: Place, whole: manifest.Manifest) -> None:
    """Make the result visible, at once. Every split is journaled by now.

    1. `_SUCCESS` beside the parts.  Crash after it: in place, committed; else the next run does step 2.
    2. `parts` becomes the sink.     Crash after it: committed.
    """
    if manifest.read(place.parts) is None:
        write_whole(files, place.parts / manifest.SUCCESS, manifest.encode(whole), place.temp)
    if not place.in_place:
        publish(files, place.parts, place.sink)


def clear(files: LocalFiles, place: Place) -> None:
    """Remove the work folder of a committed sink. The lock goes last: whoever waits for it finds that out."""
    for folder in (place.temp, place.work / "parts"):
        files.remove_tree(folder)
    files.remove_tree(place.work)
