"""What finishes the splits of a job that is opened: the local engine's lanes here, or another engine.

Everything before it (the plan, the lease, the journal) and after it (the commit) is the same for all engines.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from octoserve.core.clock import Clock
from octoserve.core.datatypes import DATATYPES
from octoserve.core.signature import Signature
from octoserve.patterns.batch.job import BudgetSpent, Job, RunSettings, Split
from octoserve.patterns.batch.journal import Finished
from octoserve.patterns.batch.lanes import Lanes
from octoserve.patterns.batch.matching import Matched
from octoserve.patterns.batch.opening import Crew, Fitted
from octoserve.patterns.batch.outputs import Layout
from octoserve.patterns.batch.progress import Progress
from octoserve.patterns.batch.routed import RoutedScorer, Voice
from octoserve.patterns.batch.scoring import Models, OnBad, Scorer, Scores
from octoserve.patterns.batch.sinks import Sink, SplitOut, Work
from octoserve.patterns.batch.table import Table
from octoserve.runtimes.protocol import LoadedModel


class Opened(msgspec.Struct, frozen=True):
    """A job, and what of it is in memory only. loaded: a model of each version, for the first thread that scores."""

    job: Job
    crew: Crew
    loaded: Mapping[int, LoadedModel]
    table: Table
    fitted: Fitted
    shape: Layout

    @property
    def matched(self) -> Matched:
        """The stable version's."""
        return self.fitted.matched

    def scorer(self, on_bad: OnBad) -> Scores:
        """Of this job's blocks."""
        missing = self.job.settings.missing
        if self.job.routing is None:
            return Scorer(self.matched, self.shape, missing, on_bad)
        return RoutedScorer(self.fitted.voices, self.shape, missing, on_bad)

    def models(self, loaded: Mapping[int, LoadedModel]) -> Models:
        """What that scorer takes."""
        return loaded if self.job.routing is not None else loaded[self.job.model.version]

    def row_bytes(self) -> int:
        """Bytes of all tensors that a row becomes, by the version that answers it and by the shadow."""
        voices = self.fitted.voices
        size = row_bytes(voices.by_version[voices.stable].signature, self.matched)
        shadow = voices.shadow
        return size + (row_bytes(shadow.signature, shadow) if shadow is not None else 0)


class Budget:
    """Counts bad rows of all threads, and of splits finished before."""

    def __init__(self, borne: int, rows: int) -> None:
        self._borne = borne
        self._rows = rows
        self._bad = 0
        self._lock = threading.Lock()

    def count(self, bad: int) -> None:
        """Raises BudgetSpent."""
        with self._lock:
            self._bad += bad
            if self._bad > self._borne:
                raise BudgetSpent(
                    f"{self._bad} rows are bad so far, {self._borne} of {self._rows} are borne; nothing was committed"
                )


class Stage(msgspec.Struct, frozen=True):
    """What an engine works with. work: on the sink; stop: set when somebody asks for the end."""

    opened: Opened
    work: Work
    progress: Progress
    budget: Budget
    settings: RunSettings
    stop: threading.Event
    clock: Clock


class Engine(Protocol):
    """One way to finish splits."""

    def begin(self, job: Job, sink: Sink, settings: RunSettings) -> RunSettings:
        """Be ready, before anything is written down; the settings with as many workers as there are.

        Raises SettingsError, also for a source or a sink that is not for this engine.
        """
        ...

    def finish(self, stage: Stage, left: Sequence[Split]) -> list[Finished]:
        """Returns when all of `left` are published and journaled. Raises what first went wrong."""
        ...

    def end(self) -> None:
        """Let go of what `begin` took; also after an error."""
        ...


class Local:
    """The engine of one machine: see `lanes`."""

    def begin(self, job: Job, sink: Sink, settings: RunSettings) -> RunSettings:
        """Nothing is needed."""
        return settings

    def finish(self, stage: Stage, left: Sequence[Split]) -> list[Finished]:
        """See `Engine.finish`."""
        work = stage.work
        return lanes(
            stage.opened, work.open, stage.progress, stage.budget, stage.settings, stage.stop, stage.clock
        ).run(left)

    def end(self) -> None:
        """Nothing is held."""


def lanes(
    opened: Opened,
    open_: Callable[[Split, Layout], SplitOut],
    progress: Progress,
    budget: Budget,
    settings: RunSettings,
    stop: threading.Event,
    clock: Clock,
) -> Lanes:
    """Of this process. open_: for a split's rows on their way out."""
    spare = [opened.loaded]

    def load() -> Models:
        try:
            return opened.models(spare.pop())
        except IndexError:
            return opened.models(opened.crew.load())

    return Lanes(
        opened.job,
        opened.table,
        opened.matched,
        opened.scorer(budget.count),
        lambda split: open_(split, opened.shape),
        progress,
        load=load,
        workers=settings.workers,
        bytes_in_flight=settings.bytes_in_flight,
        row_bytes=opened.row_bytes(),
        stop=stop,
        clock=clock,
    )


def row_bytes(signature: Signature, matched: Matched | Voice) -> int:
    """Bytes of all tensors that a row takes, inputs and outputs; what varies counts as one element."""
    size = 0
    for shape, datatype in [(feed.shape, feed.spec.datatype) for feed in matched.feeds] + [
        (spec.shape[1:], spec.datatype) for spec in signature.outputs
    ]:
        elements = 1
        for dimension in shape:
            elements *= max(1, dimension)
        size += elements * (DATATYPES[datatype].itemsize or 64)
    return size
