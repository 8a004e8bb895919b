"""Blocks whose rows belong to several versions, or that a shadow scores too: what `scoring` does, for more than one.

A block is split by version, each part is one run of its version, and the rows come out in the order in which they came.
The shadow's predictions and the second look stand beside them and decide nothing (docs/decisions/0013).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from octoserve.connectors.arrow import Array as ArrowArray
from octoserve.connectors.arrow import DataType, RecordBatch, pyarrow
from octoserve.connectors.source import Rows
from octoserve.core.datatypes import DATATYPES
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array
from octoserve.dataplane.table import in_order, versions_of
from octoserve.patterns.batch.conversion import numbers, valid, words
from octoserve.patterns.batch.job import Difference, Routing
from octoserve.patterns.batch.matching import Feed, datatype_of
from octoserve.patterns.batch.outputs import Layout, arrow_type, bad_rows, column_of, together
from octoserve.patterns.batch.scoring import Answered, Asker, OnBad, Scored
from octoserve.routing.key import column_keys
from octoserve.routing.plan import BUCKETS
from octoserve.runtimes.protocol import LoadedModel

MODEL_VERSION = "model_version"
SHADOW, AGAIN = "__shadow", "__again"
ERROR = "error" + SHADOW
_MIX = np.uint64(0x9E3779B97F4A7C15)
"""Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4): neighbours land far from each other."""


class Voice(msgspec.Struct, frozen=True):
    """A version that takes part: what it takes and gives, and how its inputs are made of columns."""

    signature: Signature
    feeds: tuple[Feed, ...]


class Voices(msgspec.Struct, frozen=True):
    """All that take part. routing: as in the job; by_version: the stable one and the shadow among them."""

    stable: int
    routing: Routing
    by_version: Mapping[int, Voice]

    @property
    def shadow(self) -> Voice | None:
        """The one that is compared."""
        chosen = self.routing.shadow
        return None if chosen is None else self.by_version[chosen.version]

    def fields(self, prefix: str) -> list[Any]:
        """Columns behind the outputs, in order."""
        pa = pyarrow()
        outputs = self.by_version[self.stable].signature.outputs
        made = [pa.field(prefix + MODEL_VERSION, pa.int64(), nullable=False)] if self.routing.plan is not None else []
        if self.shadow is not None:
            made += [_field(prefix, spec, SHADOW) for spec in self.shadow.signature.outputs]
            made.append(pa.field(prefix + ERROR, pa.string()))
            if self.routing.noise:
                made += [_field(prefix, spec, AGAIN) for spec in outputs]
        return made


def _field(prefix: str, spec: TensorSpec, suffix: str) -> Any:
    return pyarrow().field(prefix + spec.name + suffix, _may_lack(arrow_type(spec)))


def _may_lack(type_: DataType) -> DataType:
    """The type with elements that may be null, as those of a null list are."""
    pa = pyarrow()
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(pa.field("item", _may_lack(type_.value_type)), type_.list_size)
    return pa.list_(pa.field("item", _may_lack(type_.value_type))) if pa.types.is_list(type_) else type_


def unlike(stable: Signature, other: Signature, version: int) -> list[Difference]:
    """What of `other`'s outputs is not as the stable version's: a table has one type a column."""
    theirs = {spec.name: spec for spec in other.outputs}
    found = []
    for spec in stable.outputs:
        came = theirs.get(spec.name)
        if came is None or (came.datatype, came.shape) != (spec.datatype, spec.shape):
            remedy = "score with one of the versions; --shadow can compare them"
            found.append(Difference(f"version {version}", f"output {spec}", str(came or "no such output"), remedy))
    return found


class RoutedScorer:
    """How one job's blocks are scored; the models, by version, are the calling thread's own."""

    def __init__(self, voices: Voices, shape: Layout, missing: str, on_bad: OnBad) -> None:
        self._voices = voices
        self._shape = shape
        routing = voices.routing
        answering = {voices.stable, *(other.version for other in routing.others)}
        self._askers = {number: self._asker(number, missing, on_bad) for number in sorted(answering)}
        self._order = {
            number: [voices.by_version[number].signature.output_index[spec.name] for spec in shape.outputs]
            for number in answering
        }
        self._again = self._asker(voices.stable, missing, _nobody_minds)
        self._shadow: Asker | None = None
        if routing.shadow is not None:
            self._shadow = self._asker(routing.shadow.version, missing, _nobody_minds)

    def _asker(self, number: int, missing: str, on_bad: OnBad) -> Asker:
        voice = self._voices.by_version[number]
        return Asker(voice.feeds, voice.signature.outputs, missing, on_bad)

    def score(self, models: Mapping[int, LoadedModel], block: Rows, path: str, first_row: int) -> Scored:
        """See `Scores`. models: by version."""
        batch = block.batch
        versions = self._versions(batch)
        parts: dict[int, tuple[NDArray[np.intp], list[Array]]] = {}
        reasons: dict[int, str] = {}
        for number in np.unique(versions).tolist() or [self._voices.stable]:
            rows = np.flatnonzero(versions == number)
            answered = self._ask(number, models, block, rows)
            reasons |= {int(rows[row]): reason for row, reason in answered.reasons.items()}
            good = rows if answered.places is None else rows[answered.places]
            parts[number] = good, [answered.outputs[place] for place in self._order[number]]
        places = np.sort(np.concatenate([good for good, _ in parts.values()]))
        outputs = self._together(parts, places)
        fit = batch if len(places) == batch.num_rows else batch.take(pyarrow().array(places))
        beside = self._beside(models, fit, versions[places], first_row + places)
        scored = together(fit, outputs, self._shape, beside)
        bad = bad_rows(batch, reasons, path, first_row, self._shape) if reasons else None
        return Scored(scored, bad, batch.num_rows)

    def _versions(self, batch: RecordBatch) -> NDArray[np.int64]:
        """Which version each row belongs to; what has no key, to the stable one."""
        routing = self._voices.routing
        versions = np.full(batch.num_rows, self._voices.stable, dtype=np.int64)
        if routing.plan is None or not routing.key:
            return versions
        column = batch.column(routing.key)
        have = np.flatnonzero(valid(column))
        keys = column if len(have) == len(column) else column.take(pyarrow().array(have))
        versions[have] = versions_of(routing.plan, (), list(column_keys(_plain(keys))), len(have))
        return versions

    def _ask(self, number: int, models: Mapping[int, LoadedModel], block: Rows, rows: NDArray[np.intp]) -> Answered:
        asker, batch = self._askers[number], block.batch
        if len(rows) == batch.num_rows:
            return asker.ask(models[number], batch, block.unfit)
        unread = {int(np.searchsorted(rows, row)): why for row, why in block.unfit.items() if row in rows}
        return asker.ask(models[number], batch.take(pyarrow().array(rows)), unread)

    def _together(
        self, parts: Mapping[int, tuple[NDArray[np.intp], list[Array]]], places: NDArray[np.intp]
    ) -> list[Array]:
        if len(parts) == 1:
            return next(iter(parts.values()))[1]
        into = [np.searchsorted(places, good) for good, _ in parts.values()]
        return [
            in_order(spec.name, into, [outputs[number] for _, outputs in parts.values()], len(places))
            for number, spec in enumerate(self._shape.outputs)
        ]

    def _beside(
        self,
        models: Mapping[int, LoadedModel],
        fit: RecordBatch,
        versions: NDArray[np.int64],
        numbers_in_file: NDArray[np.int64],
    ) -> list[ArrowArray]:
        """As `Voices.fields`."""
        pa, voices = pyarrow(), self._voices
        columns = [pa.array(versions)] if voices.routing.plan is not None else []
        if voices.shadow is None or self._shadow is None or voices.routing.shadow is None:
            return columns
        answered = self._shadow.ask(models[voices.routing.shadow.version], fit, {})
        places = np.arange(fit.num_rows) if answered.places is None else answered.places
        columns += _spread(answered.outputs, voices.shadow.signature.outputs, places, fit.num_rows)
        reasons: list[str | None] = [None] * fit.num_rows
        for row, reason in answered.reasons.items():
            reasons[row] = reason
        columns.append(pa.array(reasons, pa.string()))
        if voices.routing.noise:
            chosen = np.flatnonzero(is_noise(numbers_in_file, voices.routing.noise) & (versions == voices.stable))
            again = self._again.ask(models[voices.stable], fit.take(pa.array(chosen)), {})
            places = chosen if again.places is None else chosen[again.places]
            columns += _spread(again.outputs, voices.by_version[voices.stable].signature.outputs, places, fit.num_rows)
        return columns


def is_noise(rows: NDArray[np.int64], share: int) -> NDArray[np.bool_]:
    """Whether the rows of these numbers are scored twice: `share` of BUCKETS of them, always the same ones."""
    mixed = (rows.astype(np.uint64) * _MIX) >> np.uint64(32)
    chosen: NDArray[np.bool_] = mixed % np.uint64(BUCKETS) < np.uint64(share)
    return chosen


def _plain(column: ArrowArray) -> Array:
    """A column of keys, none of them null, as an array."""
    datatype = datatype_of(column.type) or ""
    return words(column) if datatype == "BYTES" else numbers(column, DATATYPES[datatype].dtype)


def _spread(
    outputs: Sequence[Array], specs: Sequence[TensorSpec], places: NDArray[np.int64], rows: int
) -> list[ArrowArray]:
    """Columns of `rows` rows; null where `places` are not."""
    pa = pyarrow()
    made = [
        column_of(array, spec, _may_lack(arrow_type(spec)), len(places))
        for array, spec in zip(outputs, specs, strict=True)
    ]
    if len(places) == rows:
        return made
    at = np.full(rows, -1, dtype=np.int64)
    at[places] = np.arange(len(places))
    index = pa.array(at, mask=at < 0)
    return [column.take(index) for column in made]


def _nobody_minds(bad: int) -> None:
    """A shadow's failures cost no budget."""
