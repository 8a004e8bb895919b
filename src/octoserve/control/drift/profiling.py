"""Makes a reference profile of rows as they pass: memory is bounded, whatever the table's size.

Bins and counts are of at most SAMPLE rows, each with the same chance to be among them: every row draws a number, and
those with the smallest are kept. The least and the most of a column are of all rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from octoserve.core.bins import ColumnCounts, text_of
from octoserve.core.datatypes import DATATYPES
from octoserve.core.fields import fields_of, is_text, matrix
from octoserve.core.profile import LEVELS, NUMBERS, TEXTS, ColumnProfile
from octoserve.core.signature import Signature
from octoserve.core.tensors import Array

SAMPLE = 100_000
BINS = 10
FEW = 20
"""Values of numbers up to which each has a bin of its own; and texts that have one."""
LONGEST = 100
"""Characters of a text that has a bin."""
COLUMNS = 256
"""At most so many are profiled: each is a series on the page of metrics."""


class _Column:
    def __init__(self, name: str, side: str, datatype: str) -> None:
        self.name = name
        self.side = side
        self.datatype = datatype
        self.kept: Array = np.empty(0, dtype=object if is_text(datatype) else np.float64)
        self.low, self.high = np.inf, -np.inf

    def add(self, values: Array, keep: NDArray[np.int64]) -> None:
        """keep: places in what was kept and `values` behind it."""
        if not is_text(self.datatype):
            values = values.astype(np.float64)
            finite = values[np.isfinite(values)]
            if len(finite):
                self.low, self.high = min(self.low, finite.min()), max(self.high, finite.max())
        self.kept = np.concatenate([self.kept, values])[keep]

    def profile(self) -> ColumnProfile:
        common: dict[str, Any] = {"name": self.name, "side": self.side, "datatype": self.datatype}
        if is_text(self.datatype):
            often = Counter(text for text in map(text_of, self.kept.tolist()) if len(text) <= LONGEST)
            texts = tuple(sorted((t for t, _ in often.most_common(FEW)), key=lambda t: (-often[t], t)))
            return _counted(ColumnProfile(kind=TEXTS, texts=texts, counts=(0,) * (len(texts) + 2), **common), self.kept)
        if self.low <= self.high:
            common |= {"low": float(self.low), "high": float(self.high)}
        values = self.kept[~np.isnan(self.kept)]
        different, times = np.unique(values, return_counts=True)
        finite = different[np.isfinite(different)]
        if len(different) <= FEW or not len(finite) or DATATYPES[self.datatype].kind == "bool":
            levels = tuple(float(v) for v in different[np.argsort(-times, kind="stable")] if np.isfinite(v))
            made = ColumnProfile(kind=LEVELS, levels=levels[:FEW], counts=(0,) * (min(len(levels), FEW) + 2), **common)
            return _counted(made, self.kept)
        shares = np.arange(1, BINS) / BINS
        cuts = np.unique(np.quantile(values, shares, method="inverted_cdf"))
        edges = tuple(float(cut) for cut in cuts if np.isfinite(cut)) or (float(finite[0]),)
        return _counted(ColumnProfile(kind=NUMBERS, edges=edges, counts=(0,) * (len(edges) + 2), **common), self.kept)


def _counted(empty: ColumnProfile, values: Array) -> ColumnProfile:
    counts = ColumnCounts(empty)
    counts.add(values)
    return msgspec.structs.replace(empty, counts=tuple(counts.counts.tolist()))


class Profiler:
    """Rows of one version in, columns of a profile out."""

    def __init__(
        self,
        signature: Signature,
        wants: Callable[[str], bool] = lambda _: True,
        sample: int = SAMPLE,
        seed: int = 0,
    ) -> None:
        """wants: whether a column may be in the profile, which holds values of it."""
        self._signature = signature
        self._sample = sample
        self._random = np.random.default_rng(seed)
        self._drawn: NDArray[np.float64] = np.empty(0)
        self.rows = 0
        self.left_out: list[str] = []
        """Columns that have no profile: their elements vary in number, or are too many."""
        self._plan: list[tuple[int, list[tuple[int, _Column]]]] = []
        self._fields = fields_of(signature)
        room = COLUMNS
        for place, field in enumerate(self._fields):
            elements = field.elements()
            if not elements:
                self.left_out.extend(name for name in field.names if wants(name))
            wanted = [
                (at, name)
                for at, name in enumerate(elements)
                if wants(name) and (not field.is_list or wants(field.names[0]))
            ]
            self.left_out.extend(name for _, name in wanted[room:])
            self._plan.append((place, [(at, _Column(name, field.side, field.datatype)) for at, name in wanted[:room]]))
            room -= len(wanted[:room])

    def add(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """More rows: each tensor's array, rows first."""
        rows = len(inputs[0]) if inputs else len(outputs[0])
        if not rows:
            return
        self.rows += rows
        drawn = np.concatenate([self._drawn, self._random.random(rows)])
        keep = np.arange(len(drawn))
        if len(drawn) > self._sample:
            keep = np.sort(np.argpartition(drawn, self._sample)[: self._sample])
        self._drawn = drawn[keep]
        for place, columns in self._plan:
            field = self._fields[place]
            array = (inputs if field.side == "input" else outputs)[field.index]
            table = matrix([array], self._signature.batchable, field.datatype)
            for at, column in columns:
                column.add(table[:, at], keep)

    @property
    def counted(self) -> int:
        """Rows that bins and counts are made of."""
        return len(self._drawn)

    def columns(self) -> tuple[ColumnProfile, ...]:
        """Inputs, then outputs."""
        return tuple(column.profile() for _, columns in self._plan for _, column in columns)
