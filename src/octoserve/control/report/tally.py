"""What a report is counted from, a pair at a time: bounded memory, whatever the number of pairs.

Quantiles come from a sketch of buckets in geometric progression: DDSketch (Masson, Rim and Lee, "DDSketch: a fast
and fully-mergeable quantile sketch with relative-error guarantees", PVLDB 12(12), 2019), within 1 % of the value.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octoserve.control.report.pair import Stored, Summary
from octoserve.control.report.readable import flat, number_of
from octoserve.core.comparison import Deviation
from octoserve.core.datatypes import DATATYPES
from octoserve.core.tensors import Array
from octoserve.telemetry.pairs import NOISE

ACCURACY = 0.01
_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GAMMA = math.log(_GAMMA)
_SMALLEST = 1e-9
"""Nearer to zero is zero."""
_OFFSET = 1 - math.ceil(math.log(_SMALLEST) / _LOG_GAMMA)
_WAITING = 8192
"""Values that wait to be put into buckets by numpy, all at once."""

MAX_LABELS = 200
"""Distinct labels of an output that are told apart; integers with more are shown as numbers."""
MAX_MOVES = 2_000
MAX_VALUES = 200
"""Distinct values of a segment."""
MAX_COLUMNS = 8
"""Outputs of shape (rows, k) with 2 <= k <= MAX_COLUMNS are shown by column: scores by class sum up to one."""
OTHERS = "(others)"


class Sketch:
    """Counts of buckets: quantiles within ACCURACY, exact mean, least and largest. Infinities and NaN are apart."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.n = 0
        self.odd = 0
        """NaN and infinities."""
        self.total = 0.0
        self.low, self.high = math.inf, -math.inf
        self._waiting: list[float] = []

    def add(self, values: Sequence[float]) -> None:
        """Count values."""
        self._waiting.extend(values)
        if len(self._waiting) >= _WAITING:
            self.fold()

    def fold(self) -> None:
        """Put what waits into its buckets; to be called before reading."""
        waiting, self._waiting = self._waiting, []
        self.take(np.asarray(waiting, dtype=np.float64))

    def take(self, values: NDArray[np.float64]) -> None:
        """Count many values, at once."""
        finite = values[np.isfinite(values)]
        self.odd += len(values) - len(finite)
        if not len(finite):
            return
        self.n += len(finite)
        self.total += float(finite.sum())
        self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
        for bucket, count in zip(*np.unique(buckets_of(finite), return_counts=True), strict=True):
            self.counts[int(bucket)] += int(count)

    def quantile(self, q: float) -> float:
        """The value below which a share `q` lies; NaN without values."""
        if not self.n:
            return math.nan
        rank, seen = q * (self.n - 1), 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen > rank:
                return min(max(value_of(bucket), self.low), self.high)
        return self.high

    @property
    def mean(self) -> float:
        """NaN without values."""
        return self.total / self.n if self.n else math.nan

    def histogram(self, edges: Array) -> list[int]:
        """Counts between edges; what lies beyond is in the first and the last bin."""
        bins = [0] * (len(edges) - 1)
        for bucket, count in self.counts.items():
            at = int(np.searchsorted(edges, value_of(bucket), side="right")) - 1
            bins[min(max(at, 0), len(bins) - 1)] += count
        return bins


def buckets_of(values: Array) -> Array:
    """Bucket numbers: negative for negative values, 0 about zero, growing with the value."""
    size = np.abs(values)
    far = size >= _SMALLEST
    index = np.ceil(np.log(np.where(far, size, 1.0)) / _LOG_GAMMA).astype(np.int64) + _OFFSET
    return np.where(far, np.sign(values) * index, 0).astype(np.int64)


def value_of(bucket: int) -> float:
    """A value within ACCURACY of all that are in the bucket."""
    if bucket == 0:
        return 0.0
    log = (abs(bucket) - _OFFSET) * _LOG_GAMMA + math.log(2 / (_GAMMA + 1))
    return math.copysign(math.exp(min(log, 709.0)), bucket)


def distance(a: Sketch, b: Sketch) -> float:
    """The Kolmogorov-Smirnov distance: the largest difference between two distributions' shares below a value."""
    if not a.n or not b.n:
        return 0.0
    gap, below_a, below_b = 0.0, 0, 0
    for bucket in sorted(a.counts.keys() | b.counts.keys()):
        below_a += a.counts[bucket]
        below_b += b.counts[bucket]
        gap = max(gap, abs(below_a / a.n - below_b / b.n))
    return gap


class NumberTally:
    """One number (or column of numbers) of both versions, pair by pair."""

    def __init__(self) -> None:
        self.stable, self.candidate = Sketch(), Sketch()
        self.change = Sketch()
        self.moved = 0.0

    def add(self, stable: Sequence[float], candidate: Sequence[float]) -> None:
        """Numbers in the same order."""
        self.stable.add(stable)
        self.candidate.add(candidate)
        changes = [c - s for s, c in zip(stable, candidate, strict=True)]
        self.change.add(changes)
        self.moved += sum(abs(change) for change in changes if math.isfinite(change))

    def take(self, stable: NDArray[np.float64], candidate: NDArray[np.float64]) -> None:
        """The same of many numbers, at once."""
        with np.errstate(invalid="ignore", over="ignore"):
            changes = candidate - stable
        self.stable.take(stable)
        self.candidate.take(candidate)
        self.change.take(changes)
        self.moved += float(np.abs(changes[np.isfinite(changes)]).sum())

    def fold(self) -> None:
        """To be called before reading."""
        for sketch in (self.stable, self.candidate, self.change):
            sketch.fold()


class LabelTally:
    """Labels of both versions, and which became which."""

    def __init__(self) -> None:
        self.stable: Counter[str] = Counter()
        self.candidate: Counter[str] = Counter()
        self.moves: Counter[tuple[str, str]] = Counter()
        self.same = 0
        self.changed = 0

    @property
    def is_full(self) -> bool:
        """Whether there are too many labels to tell all apart."""
        return OTHERS in self.stable or OTHERS in self.candidate

    def add(self, stable: Sequence[Any], candidate: Sequence[Any]) -> None:
        """Labels in the same order."""
        for before, after in zip(stable, candidate, strict=True):
            self.add_times(before, after, 1)

    def add_times(self, before: Any, after: Any, count: int) -> None:
        """So many times one became the other, or stayed."""
        is_same = before == after
        before, after = _named(before, self.stable), _named(after, self.candidate)
        self.stable[before] += count
        self.candidate[after] += count
        if is_same:
            self.same += count
            return
        self.changed += count
        move = (before, after)
        if move not in self.moves and len(self.moves) >= MAX_MOVES:
            move = (OTHERS, OTHERS)
        self.moves[move] += count


def _named(label: Any, known: Mapping[str, int]) -> str:
    text = "base64:" + label["base64"] if isinstance(label, dict) else str(label)
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if text in known or len(known) < MAX_LABELS else OTHERS


class Compared:
    """Pairs and what became of them: of a segment, of an output, or of all."""

    def __init__(self) -> None:
        self.compared = 0
        self.disagreed = 0
        self.errors = 0
        self.noise_compared = 0
        self.noise_disagreed = 0
        self.outputs: Counter[str] = Counter()
        self.stable, self.candidate = Sketch(), Sketch()
        """Seconds of both versions' runs in the mirror: the stable one's where it was asked again (noise). What a
        client waited for the stable answer holds its queue and its batch, and compares with nothing here."""

    def add(self, pair: Summary) -> None:
        """Count a pair."""
        if pair.kind == NOISE:
            if not pair.error:
                self.noise_compared += 1
                self.noise_disagreed += not pair.agreed
                self.stable.add(_taken(pair))
            return
        if pair.error:
            self.errors += 1
            return
        self.candidate.add(_taken(pair))
        self.compared += 1
        self.disagreed += not pair.agreed
        self.outputs.update(pair.differing.keys())

    def add_rows(self, compared: int, disagreed: int, outputs: Mapping[str, int], noise: bool) -> None:
        """Count many, of which nobody took the time. outputs: name -> how many differ in it."""
        if noise:
            self.noise_compared += compared
            self.noise_disagreed += disagreed
        else:
            self.compared += compared
            self.disagreed += disagreed
            self.outputs.update(outputs)

    def fold(self) -> None:
        """To be called before reading."""
        self.stable.fold()
        self.candidate.fold()


def _taken(pair: Summary) -> tuple[float, ...]:
    return () if pair.candidate_seconds is None else (pair.candidate_seconds,)


class OutputTally:
    """One output of both versions: how often it differs, how, and how far its distribution moved."""

    def __init__(self, name: str, datatype: str, keep: int) -> None:
        self.name = name
        self.datatype = datatype
        self.compared = 0
        self.disagreed = 0
        self.noise_compared = 0
        self.noise_disagreed = 0
        self.worst = 0.0
        self.columns: dict[str, NumberTally] = {}
        self.labels = LabelTally()
        self.examples: list[tuple[float, float, int, Stored]] = []
        """A heap, the least of the worst first."""
        self.keep = keep
        self._offered = 0

    def add(self, pair: Stored, stable: Any, candidate: Any) -> None:
        """Count one pair's output, as `readable` wrote it; `candidate` is None where it is missing."""
        deviation = pair.differing.get(self.name)
        if pair.kind == NOISE:
            self.noise_compared += 1
            self.noise_disagreed += deviation is not None
            return
        self.compared += 1
        if deviation is not None:
            self._differs(pair, deviation)
        before, after = flat(stable), flat(candidate) if candidate is not None else []
        if len(before) != len(after):
            return
        kind = DATATYPES[self.datatype].kind
        if kind == "float":
            self._numbers(stable, [number_of(v) for v in before], [number_of(v) for v in after])
            return
        self.labels.add(before, after)
        if kind == "int":
            self._numbers(None, before, after)

    def _differs(self, pair: Stored, deviation: Deviation) -> None:
        self.disagreed += 1
        self.worst = max(self.worst, deviation.magnitude)
        self.offer(pair, deviation)

    def least_shown(self) -> float:
        """The magnitude that an example must exceed to be among the worst."""
        if not self.keep:
            return math.inf
        return self.examples[0][0] if len(self.examples) >= self.keep else 0.0

    def offer(self, pair: Stored, deviation: Deviation) -> None:
        """An example, if it is among the worst."""
        if any(self._is_again(pair, known) for _, _, _, known in self.examples):
            return
        total = sum(d.magnitude for d in pair.differing.values())
        self._offered += 1  # no two entries are equal: pairs have no order
        entry = (deviation.magnitude, total, -self._offered, pair)
        if len(self.examples) < self.keep:
            heapq.heappush(self.examples, entry)
        else:
            heapq.heappushpop(self.examples, entry)

    @staticmethod
    def _is_again(pair: Stored, known: Stored) -> bool:
        """Whether it shows nothing that another example does not: the same question with the same two answers."""
        return (pair.inputs, pair.stable, pair.candidate) == (known.inputs, known.stable, known.candidate)

    def _numbers(self, stable: Any, before: Sequence[float], after: Sequence[float]) -> None:
        width = len(stable[0]) if isinstance(stable, list) and stable and isinstance(stable[0], list) else 1
        if not 2 <= width <= MAX_COLUMNS or isinstance(stable[0][0], list):
            self._column("", before, after)
            return
        for i in range(width):
            self._column(f"[{i}]", before[i::width], after[i::width])

    def _column(self, name: str, before: Sequence[float], after: Sequence[float]) -> None:
        self.column(name).add(before, after)

    def column(self, name: str) -> NumberTally:
        """Of one column of the output; "" is all of it."""
        if name not in self.columns:
            self.columns[name] = NumberTally()
        return self.columns[name]
