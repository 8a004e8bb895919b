"""A block of rows through the model: what can be scored is, what cannot is named, row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from octoserve.connectors.arrow import RecordBatch, pyarrow
from octoserve.connectors.source import Rows
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import Internal, OctoserveError
from octoserve.core.signature import TensorSpec
from octoserve.core.tensors import Array
from octoserve.patterns.batch.conversion import tensors, unfit
from octoserve.patterns.batch.matching import Feed, Matched
from octoserve.patterns.batch.outputs import Layout, bad_rows, together
from octoserve.runtimes.protocol import LoadedModel

OnBad = Callable[[int], None]
"""Told of every so many bad rows at once; raises to stop."""


class Scored(msgspec.Struct, frozen=True):
    """A block's results. bad: None if there are none. rows: that came in."""

    good: RecordBatch
    bad: RecordBatch | None
    rows: int


Models = Any
"""What a thread has of its own to score with: a model, or several by version. Its scorer knows which."""


class Scores(Protocol):
    """How blocks are scored: by one version (`Scorer`), or by several (`routed.RoutedScorer`)."""

    def score(self, models: Models, block: Rows, path: str, first_row: int) -> Scored:
        """path, first_row: where the block comes from. Raises OctoserveError for what is not a row's fault."""
        ...


class Answered(msgspec.Struct, frozen=True):
    """What one version gave. places: rows of the batch that `outputs` are of, ascending; None for all of them."""

    outputs: list[Array]
    places: NDArray[np.int64] | None
    reasons: dict[int, str]
    """Row -> why it has no answer."""

    def picked(self, batch: RecordBatch) -> RecordBatch:
        """The rows that have one."""
        return batch if self.places is None else batch.take(pyarrow().array(self.places))


class Scorer:
    """How one job's blocks are scored; the model is the calling thread's own."""

    def __init__(self, matched: Matched, shape: Layout, missing: str, on_bad: OnBad) -> None:
        self._asker = Asker(matched.feeds, shape.outputs, missing, on_bad)
        self._shape = shape

    def score(self, models: LoadedModel, block: Rows, path: str, first_row: int) -> Scored:
        """See `Scores`. models: the one."""
        batch = block.batch
        answered = self._asker.ask(models, batch, block.unfit)
        good = together(answered.picked(batch), answered.outputs, self._shape)
        reasons = answered.reasons
        bad = bad_rows(batch, reasons, path, first_row, self._shape) if reasons else None
        return Scored(good, bad, batch.num_rows)


class Asker:
    """One version, and how its inputs are made of a table's columns; the model is the calling thread's own."""

    def __init__(self, feeds: Sequence[Feed], outputs: Sequence[TensorSpec], missing: str, on_bad: OnBad) -> None:
        self._feeds = feeds
        self._outputs = outputs
        self._nan = missing == "nan"
        self._on_bad = on_bad

    def ask(self, model: LoadedModel, batch: RecordBatch, unread: Mapping[int, str]) -> Answered:
        """Every row that can be. unread: row -> what of it could not be read. Raises OctoserveError."""
        reasons = unfit(batch, self._feeds, self._nan)
        reasons |= unread  # why a value is missing says more than that it is
        self._told(len(reasons))
        places = np.setdiff1d(np.arange(batch.num_rows), np.fromiter(reasons, np.int64)) if reasons else None
        fit = batch if places is None else batch.take(pyarrow().array(places))
        outputs, failed = self._run(model, tensors(fit, self._feeds), fit.num_rows)
        if failed:
            keep = np.setdiff1d(np.arange(fit.num_rows), np.fromiter(failed, np.int64))
            reasons |= {int(row if places is None else places[row]): reason for row, reason in failed.items()}
            places = keep if places is None else places[keep]
        return Answered(outputs, places, reasons)

    def _run(self, model: LoadedModel, inputs: Sequence[Array], rows: int) -> tuple[list[Array], dict[int, str]]:
        """Outputs of the rows that the model takes, and why it does not take the others."""
        runs: list[list[Array]] = []
        failed: dict[int, str] = {}
        waiting = [(0, rows)] if rows else []
        while waiting:
            start, stop = waiting.pop()
            try:
                outputs = model.run([array[start:stop] for array in inputs])
            except MemoryError:
                raise  # no row's fault
            except Exception as error:
                if stop - start == 1:
                    self._told(1)
                    failed[start] = _text(error)
                else:
                    middle = (start + stop) // 2
                    waiting += [(middle, stop), (start, middle)]
                continue
            _check_rows(outputs, stop - start)
            runs.append(outputs)
        if not runs:
            return [self._nothing(i) for i in range(len(self._outputs))], failed
        return (runs[0] if len(runs) == 1 else [np.concatenate(parts) for parts in zip(*runs, strict=True)]), failed

    def _nothing(self, output: int) -> Array:
        spec = self._outputs[output]
        return np.empty([0, *(max(0, size) for size in spec.shape[1:])], dtype=DATATYPES[spec.datatype].dtype)

    def _told(self, count: int) -> None:
        if count:
            self._on_bad(count)


def _check_rows(outputs: Sequence[Array], rows: int) -> None:
    for output in outputs:
        if output.ndim == 0 or output.shape[0] != rows:
            raise Internal(f"the model took {rows} rows and gave shape {list(output.shape)}; it answers no tables")


def _text(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if isinstance(error, OctoserveError) else f"{type(error).__name__}: {text}"
