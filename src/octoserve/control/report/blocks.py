"""Rows of a table, counted many at once: as if each were a pair, but only those that may be shown become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from octoserve.control.report.pair import Stored
from octoserve.control.report.tally import MAX_COLUMNS, OutputTally
from octoserve.core.comparison import Comparison, Difference
from octoserve.core.datatypes import DATATYPES
from octoserve.core.tensors import Array, from_bf16

Named = tuple[str, str, Array]
"""An output: name, datatype, elements; the first dimension counts rows."""


class Segment(msgspec.Struct, frozen=True):
    """A column by which rows are told apart. codes: of each row, a place in `values`."""

    name: str
    codes: NDArray[np.int64]
    values: Sequence[str]


class Block(msgspec.Struct, frozen=True):
    """Rows with two answers each.

    noise: the second one is the stable version's too
    pair:  makes what is shown of a row, from its place and its difference
    """

    rows: int
    stable: Sequence[Named]
    candidate: Sequence[Named]
    segments: Sequence[Segment]
    pair: Callable[[int, Difference], Stored]
    noise: bool = False


class Found(msgspec.Struct, frozen=True):
    """What a comparison says of a block's rows. magnitudes: of each output that is compared; differs: in any."""

    magnitudes: Mapping[str, NDArray[np.float64]]
    differs: NDArray[np.bool_]


def compare(comparison: Comparison, block: Block) -> Found:
    """All rows at once."""
    magnitudes = comparison.by_row(block.stable, block.candidate)
    differs = np.zeros(block.rows, dtype=bool)
    for of_output in magnitudes.values():
        differs |= of_output > 0
    return Found(magnitudes, differs)


def counts_of(segment: Segment, found: Found) -> list[tuple[str, int, int, Counter[str]]]:
    """Of each value that is there: rows, rows that differ, and those that differ in each output."""
    kinds = len(segment.values)
    rows = np.bincount(segment.codes, minlength=kinds)
    differ = np.bincount(segment.codes[found.differs], minlength=kinds)
    outputs = {
        name: np.bincount(segment.codes[of_output > 0], minlength=kinds)
        for name, of_output in found.magnitudes.items()
        if of_output.any()
    }
    return [
        (
            segment.values[i],
            int(rows[i]),
            int(differ[i]),
            Counter({name: int(counts[i]) for name, counts in outputs.items() if counts[i]}),
        )
        for i in np.flatnonzero(rows).tolist()
    ]


def count_output(
    tally: OutputTally, comparison: Comparison, block: Block, output: Named, magnitudes: NDArray[np.float64] | None
) -> None:
    """One output of all rows: how often it differs, how far, and how its distribution moves."""
    differing = 0 if magnitudes is None else int(np.count_nonzero(magnitudes))
    if block.noise:
        tally.noise_compared += block.rows
        tally.noise_disagreed += differing
        return
    tally.compared += block.rows
    tally.disagreed += differing
    if magnitudes is not None and differing:
        tally.worst = max(tally.worst, float(magnitudes.max()))
        _show(tally, comparison, block, magnitudes)
    name, datatype, before = output
    after = next((array for other, its, array in block.candidate if other == name and its == datatype), None)
    if after is not None and after.shape == before.shape:
        _shift(tally, DATATYPES[datatype].kind, _plain(before, datatype), _plain(after, datatype))


def _show(tally: OutputTally, comparison: Comparison, block: Block, magnitudes: NDArray[np.float64]) -> None:
    """Offer the rows that may be among the worst."""
    chosen = np.flatnonzero(magnitudes > tally.least_shown())
    if len(chosen) > tally.keep:
        chosen = chosen[np.argsort(-magnitudes[chosen], kind="stable")[: tally.keep]]
    for row in chosen.tolist():
        one = slice(row, row + 1)
        stable, candidate = ([(n, d, a[one]) for n, d, a in side] for side in (block.stable, block.candidate))
        difference = comparison.compare(stable, candidate)
        tally.offer(block.pair(row, difference), difference.outputs[tally.name])


def _shift(tally: OutputTally, kind: str, before: Array, after: Array) -> None:
    if kind == "bytes":
        _labels(tally, before.ravel().tolist(), after.ravel().tolist())
        return
    if kind != "float":
        pairs, counts = np.unique(np.stack([before.ravel(), after.ravel()]), axis=1, return_counts=True)
        for stable, candidate, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
            tally.labels.add_times(stable, candidate, count)
        if kind != "int":
            return
    s, c = before.astype(np.float64), after.astype(np.float64)
    width = s.shape[1] if s.ndim == 2 else 1
    if kind == "int" or not 2 <= width <= MAX_COLUMNS:
        tally.column("").take(s.ravel(), c.ravel())
        return
    for i in range(width):
        tally.column(f"[{i}]").take(np.ascontiguousarray(s[:, i]), np.ascontiguousarray(c[:, i]))


def _labels(tally: OutputTally, before: list[bytes | str], after: list[bytes | str]) -> None:
    for (stable, candidate), count in Counter(zip(before, after, strict=True)).items():
        tally.labels.add_times(_text(stable), _text(candidate), count)


def _text(label: bytes | str) -> str:
    return label.decode("utf-8", "replace") if isinstance(label, bytes) else label


def _plain(array: Array, datatype: str) -> Array:
    """As numbers."""
    return from_bf16(array) if datatype == "BF16" else array
