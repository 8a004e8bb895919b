"""The report of a batch with a shadow: its rows, part by part, as the comparison of two versions.

Reads the committed sink once; memory does not grow with it. See `control.report`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from octoserve.connectors.arrow import Array as ArrowArray
from octoserve.connectors.arrow import RecordBatch, pyarrow
from octoserve.control.report.blocks import Block, Named, Segment
from octoserve.control.report.build import Tally
from octoserve.control.report.pair import Stored
from octoserve.control.report.readable import text_of
from octoserve.control.report.report import BATCH, Report
from octoserve.core.comparison import Comparison, Difference
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import NotFound, SettingsError
from octoserve.core.tensors import Tensor
from octoserve.patterns.batch.conversion import numbers, valid, words
from octoserve.patterns.batch.job import Routing
from octoserve.patterns.batch.manifest import SUCCESS, Manifest
from octoserve.patterns.batch.places import sink_of
from octoserve.patterns.batch.routed import AGAIN, ERROR, MODEL_VERSION, SHADOW
from octoserve.telemetry.pairs import SHADOW as OF_SHADOW
from octoserve.telemetry.pairs import RawTensor

_ROWS = 1 << 16
"""Of a block."""
_OUTPUT = re.compile(r"output (.+) ([A-Z0-9]+)\[(.*)\]", re.DOTALL)
_NONE = "(none)"
_LONGEST = 2000
"""Characters of a text in what is shown of a row."""


def compared(
    sink: str,
    *,
    now: float,
    segments: Sequence[str] = (),
    tolerance_of: Callable[[str], Mapping[str, Mapping[str, float]]] = lambda model: {},
    worst: int = 10,
) -> Report:
    """now: Unix time, written into it. segments: columns of the sink. tolerance_of: a model (see `core.comparison`).

    Raises NotFound if nothing is committed there, SettingsError if there is nothing to compare.
    """
    place = sink_of(sink)
    whole = place.committed()
    if whole is None:
        raise NotFound(f"{place.name} holds no {SUCCESS}: no batch job was committed there")
    if isinstance(whole.routing, msgspec.UnsetType) or whole.routing.shadow is None:
        raise SettingsError(
            f"{place.name} holds predictions of {whole.model.name} and no shadow's; score with --shadow VERSION"
        )
    reader = _Reader(whole, whole.routing, segments, Comparison(tolerance_of(whole.model.name)), worst)
    for table in place.tables(whole, False, None):
        for batch in table.to_batches(max_chunksize=_ROWS):
            if batch.num_rows:
                reader.add(batch)
    return reader.tally.report(whole.model.name, whole.run, now, of=BATCH)


class _Reader:
    """One job's columns, by what they are."""

    def __init__(
        self, whole: Manifest, routing: Routing, segments: Sequence[str], comparison: Comparison, worst: int
    ) -> None:
        assert routing.shadow is not None
        self.tally = Tally(worst)
        self._whole = whole
        self._prefix = whole.settings.prefix
        self._stable = whole.model.version
        self._candidate = routing.shadow.version
        self._by_plan = routing.plan is not None
        self._noise = bool(routing.noise)
        self._segments = tuple(segments)
        self._comparison = comparison
        self._outputs = _outputs_in(whole.schema, "")
        self._theirs = _outputs_in(whole.schema, f"version {self._candidate}: ")

    def add(self, batch: RecordBatch) -> None:
        """Count the rows of a part."""
        self._check(batch)
        pa = pyarrow()
        failed = valid(batch.column(self._prefix + ERROR))
        chosen = ~failed
        versions = np.full(batch.num_rows, self._stable)
        if self._by_plan:
            versions = numbers(batch.column(self._prefix + MODEL_VERSION), np.dtype(np.int64))
            mine = versions == self._candidate  # they would be compared with themselves
            chosen, failed = chosen & ~mine, failed & ~mine
        if failed.any():
            self._failed(batch.take(pa.array(np.flatnonzero(failed))))
        if chosen.any():
            fit = batch if chosen.all() else batch.take(pa.array(np.flatnonzero(chosen)))
            self._block(fit, SHADOW, versions[chosen])
        if self._noise and self._outputs:
            again = valid(batch.column(self._prefix + next(iter(self._outputs)) + AGAIN))
            if again.any():
                self._block(batch.take(pa.array(np.flatnonzero(again))), AGAIN, versions[again])

    def _check(self, batch: RecordBatch) -> None:
        there = batch.schema.names
        own = self._made(there)
        for name in self._segments:
            if name not in there or name in own:
                few = ", ".join(n for n in there if n not in own) or "none; score with --keys or --all-columns"
                raise SettingsError(f"--segments: no column {name!r} was passed through to the sink; there is {few}")

    def _made(self, there: Sequence[str]) -> set[str]:
        """Columns that are no source's."""
        own = {self._prefix + name for name in (MODEL_VERSION, ERROR, *self._outputs)}
        own |= {self._prefix + name + AGAIN for name in self._outputs}
        return own | {self._prefix + name + SHADOW for name in self._theirs}

    def _block(self, batch: RecordBatch, suffix: str, versions: NDArray[np.int64]) -> None:
        theirs = self._theirs if suffix == SHADOW else self._outputs
        stable = [_named(batch, name, self._prefix + name, datatype) for name, datatype in self._outputs.items()]
        other = [_named(batch, name, self._prefix + name + suffix, datatype) for name, datatype in theirs.items()]
        passed = [name for name in batch.schema.names if name not in self._made(batch.schema.names)]

        def pair(row: int, difference: Difference) -> Stored:
            return self._pair(batch.slice(row, 1), passed, stable, other, row, int(versions[row]), difference)

        block = Block(
            batch.num_rows,
            stable,
            other,
            [_segment(name, batch.column(name)) for name in self._segments],
            pair,
            noise=suffix == AGAIN,
        )
        self.tally.add_block(self._comparison, block, (set(np.unique(versions).tolist()), self._candidate))

    def _failed(self, batch: RecordBatch) -> None:
        errors = batch.column(self._prefix + ERROR).to_pylist()
        by_error: dict[str, list[int]] = {}
        for row, error in enumerate(errors):
            by_error.setdefault(error, []).append(row)
        values = {name: _segment(name, batch.column(name)) for name in self._segments}
        for error, rows in by_error.items():
            counts = {
                name: Counter(segment.values[code] for code in segment.codes[rows].tolist())
                for name, segment in values.items()
            }
            self.tally.add_failed(error, len(rows), counts, self._candidate)

    def _pair(
        self,
        row: RecordBatch,
        passed: Sequence[str],
        stable: Sequence[Named],
        other: Sequence[Named],
        at: int,
        version: int,
        difference: Difference,
    ) -> Stored:
        values = {name: _shown(row.column(name).to_pylist()[0]) for name in passed}
        keys = {name: values[name] for name in self._whole.settings.keys if name in values}
        key = next(iter(keys.values())) if len(keys) == 1 else ", ".join(f"{n}={v}" for n, v in keys.items())
        return Stored(
            time=None,
            kind=OF_SHADOW,
            stratum="",
            key=str(key) if keys else None,
            segments={name: str(values[name]) for name in self._segments},
            stable_version=version,
            candidate_version=self._candidate,
            stable_seconds=None,
            candidate_seconds=None,
            agreed=difference.agreed,
            worst=difference.worst,
            rows=1,
            rows_differing=difference.rows_differing,
            differing=difference.outputs,
            error="",
            inputs=msgspec.json.encode(values).decode(),
            stable=_text_of(stable, at),
            candidate=_text_of(other, at),
            datatypes="",
            raw=None,
        )


def _outputs_in(schema: Sequence[str], start: str) -> dict[str, str]:
    """Outputs of a version, as the job's `schema` has them: name -> datatype."""
    found = (_OUTPUT.fullmatch(line.removeprefix(start)) for line in schema if line.startswith(start))
    return {match[1]: match[2] for match in found if match is not None}


def _named(batch: RecordBatch, name: str, column: str, datatype: str) -> Named:
    """The output's elements. Lists of varying lengths are texts: equal or not."""
    types, array = pyarrow().types, batch.column(column)
    shape = [len(array)]
    while types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    if types.is_list(array.type):
        texts = np.empty(len(array), dtype=object)
        texts[:] = [msgspec.json.encode(_shown(value)) for value in array.to_pylist()]
        return name, "BYTES", texts.reshape(shape)
    flat = words(array) if datatype == "BYTES" else numbers(array, DATATYPES[datatype].dtype)
    return name, datatype, flat.reshape(shape)


def _segment(name: str, column: ArrowArray) -> Segment:
    pa = pyarrow()
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    values = [*(str(value) for value in coded.dictionary.to_pylist()), _NONE]
    have = valid(coded)
    codes = np.full(len(coded), len(values) - 1, dtype=np.int64)
    places = coded.indices if have.all() else coded.indices.take(pa.array(np.flatnonzero(have)))
    codes[have] = places.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return Segment(name, codes, values)


def _text_of(outputs: Sequence[Named], row: int) -> str:
    tensors = [Tensor.of(name, array[row : row + 1], datatype) for name, datatype, array in outputs]
    return text_of([RawTensor.of(tensor) for tensor in tensors])


def _shown(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")[:_LONGEST]
    return str(value)[:_LONGEST]
