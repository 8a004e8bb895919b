"""What a job asks of the place where its result appears. Lanes, scoring and planning know no more of it than this.

See docs/decisions/0010-batch-jobs.md and 0012-batch-on-object-stores.md for the order of the steps of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from octoserve.patterns.batch.job import Difference, Job, Split
from octoserve.patterns.batch.journal import Began, Ended, Finished, Part, State
from octoserve.patterns.batch.lease import Holder
from octoserve.patterns.batch.manifest import Manifest
from octoserve.patterns.batch.outputs import Layout
from octoserve.patterns.batch.scoring import Scored


class SplitOut(Protocol):
    """One split's rows on their way out; `finish` or `abandon` ends it."""

    def write(self, scored: Scored) -> None:
        """The next block, in order. Raises OSError, StoreTrouble."""
        ...

    def finish(self, seconds: float, at: float) -> Finished:
        """Published and journaled. seconds: that it took; at: Unix time. Raises Fenced, OSError, StoreTrouble."""
        ...

    def abandon(self) -> None:
        """Take back what was not published."""
        ...


class Work(Protocol):
    """The right to work on a sink, from `Sink.enter` to `release`. All that changes anything there."""

    @property
    def token(self) -> int:
        """Grows with every run of the sink's job."""
        ...

    def write_job(self, job: Job) -> None:
        """From now on it is this job that runs of the sink go on with."""
        ...

    def begin(self, line: Began) -> tuple[State, dict[int, Finished]]:
        """Note the run; what the journal said before it, and what of that is still there, by split."""
        ...

    def open(self, split: Split, shape: Layout) -> SplitOut:
        """For one split's rows. In any thread."""
        ...

    def check(self) -> None:
        """Raises Fenced if another has taken the job over."""
        ...

    def commit(self, whole: Manifest) -> None:
        """Make the result visible, at once. Every split is journaled by now."""
        ...

    def clear(self) -> None:
        """Remove what the committed sink does not need."""
        ...

    def end(self, line: Ended) -> None:
        """Note why the run ends without a commit. Raises OSError, StoreTrouble."""
        ...

    def release(self) -> None:
        """Let others in."""
        ...


class Sink(Protocol):
    """A sink, there or not. All but `enter` only look."""

    @property
    def name(self) -> str:
        """Absolute, as people write it, without secrets."""
        ...

    def bad(self, run: str) -> str:
        """Where a run's bad rows are, once it is committed, as people write it."""
        ...

    def committed(self, run: str = "") -> Manifest | None:
        """What is committed; of that run, where a sink takes several one after the other. Raises DamagedManifest."""
        ...

    def has_job(self) -> bool:
        """Whether a job has begun and is not committed and cleared."""
        ...

    def job(self) -> Job:
        """The job that has begun. Raises NotFound, DamagedJob."""
        ...

    def state(self) -> State:
        """What its journal says. Raises DamagedJournal."""
        ...

    def holder(self) -> Holder | None:
        """Who has, or last had, the right to work on it."""
        ...

    def is_held(self) -> bool:
        """Whether somebody has it now, as far as can be told by looking."""
        ...

    def has_left_overs(self) -> bool:
        """Whether there is something for `Work.clear` to remove."""
        ...

    def enter(self, now: float) -> Work:
        """now: Unix time. Raises Busy, with who works on it; SettingsError if the sink holds what is not ours."""
        ...

    def tables(self, whole: Manifest, bad: bool, columns: Sequence[str] | None) -> Iterator[Any]:
        """The predictions, or the bad rows, of what is committed, as pyarrow Tables, at least one if there are any."""
        ...

    def differences(self, whole: Manifest, seen: Callable[[Part], None]) -> Iterator[Difference]:
        """What is not as it was committed; every byte is read. seen: told after each part."""
        ...
