"""From pairs (and, where at hand, accounts and verdicts) to a report, in one pass."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from octoserve.control.analysis.verdict import Verdict
from octoserve.control.report import report as r
from octoserve.control.report.blocks import Block, compare, count_output, counts_of
from octoserve.control.report.pair import Stored
from octoserve.control.report.readable import elements_of, row_of
from octoserve.control.report.tally import MAX_VALUES, OTHERS, Compared, LabelTally, NumberTally, OutputTally, Sketch
from octoserve.control.report.tally import distance as _distance
from octoserve.control.report.wording import headline, notes
from octoserve.core.comparison import Comparison
from octoserve.telemetry.pairs import NOISE

MAX_SEGMENTS = 50
MAX_MOVES = 12
_BINS = 24


class Tally:
    """Everything that a report is made from, added up pair by pair."""

    def __init__(self, worst: int) -> None:
        self._worst = worst
        self._all = Compared()
        self._segments: dict[str, dict[str, Compared]] = {}
        self._outputs: dict[str, OutputTally] = {}
        self._errors: Counter[str] = Counter()
        self._stable_versions: set[int] = set()
        self._candidate_versions: set[int] = set()
        self._first, self._last = math.inf, -math.inf
        self._pairs = self._noise = self._rows = self._rows_differing = 0

    def add(self, pair: Stored) -> None:
        """Count a pair."""
        if pair.time is not None:
            self._first, self._last = min(self._first, pair.time), max(self._last, pair.time)
        if pair.kind == NOISE:
            self._noise += 1
        else:
            self._pairs += 1
            self._stable_versions.add(pair.stable_version)
            self._candidate_versions.add(pair.candidate_version)
            if pair.error:
                error = pair.error if pair.error in self._errors or len(self._errors) < MAX_VALUES else OTHERS
                self._errors[error] += 1
            else:
                self._rows += pair.rows
                self._rows_differing += pair.rows_differing
        self._all.add(pair)
        for name, value in pair.segments.items():
            self._segment(name, value).add(pair)
        if not pair.error:
            self._add_outputs(pair)

    def add_block(self, comparison: Comparison, block: Block, versions: tuple[set[int], int]) -> None:
        """Count rows of a table, each as a pair. versions: those that answered, and the candidate's."""
        found = compare(comparison, block)
        differing = int(found.differs.sum())
        if block.noise:
            self._noise += block.rows
        else:
            self._pairs += block.rows
            self._rows += block.rows
            self._rows_differing += differing
            self._stable_versions |= versions[0]
            self._candidate_versions.add(versions[1])
        of_outputs = {name: int(np.count_nonzero(m)) for name, m in found.magnitudes.items()}
        self._all.add_rows(block.rows, differing, {n: c for n, c in of_outputs.items() if c}, block.noise)
        for segment in block.segments:
            for value, rows, differ, outputs in counts_of(segment, found):
                self._segment(segment.name, value).add_rows(rows, differ, outputs, block.noise)
        for output in block.stable:
            name, datatype, _ = output
            tally = self._outputs.setdefault(name, OutputTally(name, datatype, self._worst))
            count_output(tally, comparison, block, output, found.magnitudes.get(name))

    def add_failed(self, error: str, rows: int, segments: Mapping[str, Mapping[str, int]], candidate: int) -> None:
        """Count rows that the candidate failed on. segments: name -> value -> how many of them."""
        self._pairs += rows
        self._candidate_versions.add(candidate)
        self._errors[error if error in self._errors or len(self._errors) < MAX_VALUES else OTHERS] += rows
        self._all.errors += rows
        for name, values in segments.items():
            for value, count in values.items():
                self._segment(name, value).errors += count

    def _segment(self, name: str, value: str) -> Compared:
        values = self._segments.setdefault(name, {})
        if value not in values:
            if len(values) >= MAX_VALUES:
                value = OTHERS
            values.setdefault(value, Compared())
        return values[value]

    def _add_outputs(self, pair: Stored) -> None:
        stable, candidate = elements_of(pair.stable), elements_of(pair.candidate)
        datatypes = elements_of(pair.datatypes)["outputs"]
        for name, value in stable.items():
            tally = self._outputs.get(name)
            if tally is None:
                tally = self._outputs[name] = OutputTally(name, datatypes[name], self._worst)
            tally.add(pair, value, candidate.get(name))

    def report(
        self,
        endpoint: str,
        rollout: str,
        now: float,
        accounts: tuple[r.Accounts, ...] = (),
        verdicts: tuple[Verdict, ...] = (),
        of: str = r.SHADOW,
    ) -> r.Report:
        """What has been added up."""
        segments = sorted(
            (_segment(n, v, c) for n, values in self._segments.items() for v, c in values.items()),
            key=lambda s: (-_surely(s.rate), -s.rate.compared, s.name, s.value),
        )
        made = r.Report(
            of=of,
            endpoint=endpoint,
            rollout=rollout,
            stable_versions=tuple(sorted(self._stable_versions)),
            candidate_versions=tuple(sorted(self._candidate_versions)),
            made=now,
            first=_number(self._first),
            last=_number(self._last),
            headline="",
            notes=(),
            pairs=self._pairs,
            noise=self._noise,
            rate=_rate(self._all),
            rows=self._rows,
            rows_differing=self._rows_differing,
            accounts=accounts,
            outputs=tuple(_output(tally) for tally in self._outputs.values()),
            segments=tuple(segments[:MAX_SEGMENTS]),
            more_segments=max(0, len(segments) - MAX_SEGMENTS),
            stable=_latency(self._all.stable),
            candidate=_latency(self._all.candidate),
            errors=tuple(r.ErrorCount(error=e, count=n) for e, n in self._errors.most_common(10)),
            error_pairs=self._all.errors,
            verdicts=verdicts,
            examples=self._examples(),
        )
        return msgspec.structs.replace(made, headline=headline(made), notes=notes(made))

    def _examples(self) -> tuple[r.Example, ...]:
        """The worst of each output in turn: magnitudes of unlike outputs do not compare."""
        by_output = [sorted(tally.examples, reverse=True) for tally in self._outputs.values() if tally.examples]
        names = [tally.name for tally in self._outputs.values() if tally.examples]
        chosen: list[r.Example] = []
        seen: set[int] = set()
        for i in range(self._worst):
            for name, entries in zip(names, by_output, strict=True):
                if i < len(entries) and id(entries[i][3]) not in seen and len(chosen) < self._worst:
                    seen.add(id(entries[i][3]))
                    chosen.append(_example(entries[i][3], name))
        return tuple(chosen)


def _rate(counts: Compared | OutputTally) -> r.Rate:
    return r.Rate(
        compared=counts.compared,
        disagreed=counts.disagreed,
        share=counts.disagreed / counts.compared if counts.compared else None,
        noise_compared=counts.noise_compared,
        noise_disagreed=counts.noise_disagreed,
        noise_share=counts.noise_disagreed / counts.noise_compared if counts.noise_compared else None,
    )


def _surely(rate: r.Rate) -> float:
    """The lower end of Wilson's 95 % interval, over the noise floor: one pair of one does not come first."""
    n = rate.compared
    if not n:
        return -1.0
    share, z = rate.disagreed / n, 1.96
    middle = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - spread) / (1 + z * z / n) - (rate.noise_share or 0.0)


def _latency(sketch: Sketch) -> r.Latency:
    sketch.fold()
    p50, p90, p99, p999 = (_number(sketch.quantile(q)) for q in r.QUANTILES)
    return r.Latency(n=sketch.n, p50=p50, p90=p90, p99=p99, p999=p999, high=_number(sketch.high))


def _segment(name: str, value: str, counts: Compared) -> r.SegmentReport:
    return r.SegmentReport(
        name=name,
        value=value,
        rate=_rate(counts),
        errors=counts.errors,
        outputs=dict(counts.outputs),
        stable=_latency(counts.stable),
        candidate=_latency(counts.candidate),
    )


def _output(tally: OutputTally) -> r.OutputReport:
    labels = None
    if tally.labels.same + tally.labels.changed and not (tally.datatype != "BYTES" and tally.labels.is_full):
        labels = _labels(tally.labels)
    columns = tally.columns if labels is None else {}
    return r.OutputReport(
        name=tally.name,
        datatype=tally.datatype,
        rate=_rate(tally),
        worst=tally.worst,
        numbers=tuple(_numbers(column, numbers) for column, numbers in sorted(columns.items())),
        labels=labels,
    )


def _labels(tally: LabelTally) -> r.LabelShift:
    moves = tally.moves.most_common(MAX_MOVES)
    labels = (tally.stable + tally.candidate).most_common(MAX_MOVES)
    distinct = len(tally.stable.keys() | tally.candidate.keys())
    return r.LabelShift(
        same=tally.same,
        changed=tally.changed,
        moves=tuple(r.Move(stable=s, candidate=c, count=n) for (s, c), n in moves),
        labels=tuple(
            r.LabelCount(label=name, stable=tally.stable[name], candidate=tally.candidate[name]) for name, _ in labels
        ),
        more_moves=len(tally.moves) - len(moves),
        more_labels=distinct - len(labels),
    )


def _numbers(column: str, tally: NumberTally) -> r.NumberShift:
    tally.fold()
    edges, stable_bins, candidate_bins = _histogram(tally)
    return r.NumberShift(
        column=column,
        stable=_distribution(tally.stable),
        candidate=_distribution(tally.candidate),
        mean_change=_number(tally.change.mean),
        mean_size=tally.moved / tally.change.n if tally.change.n else None,
        distance=_distance(tally.stable, tally.candidate),
        edges=edges,
        stable_bins=stable_bins,
        candidate_bins=candidate_bins,
    )


def _histogram(tally: NumberTally) -> tuple[tuple[float, ...], tuple[int, ...], tuple[int, ...]]:
    sketches = [sketch for sketch in (tally.stable, tally.candidate) if sketch.n]
    if not sketches:
        return (), (), ()
    low = min(sketch.quantile(0.005) for sketch in sketches)
    high = max(sketch.quantile(0.995) for sketch in sketches)
    if not low < high or not math.isfinite(high - low):
        return (), (), ()
    edges = np.linspace(low, high, _BINS + 1)
    return (
        tuple(edges.tolist()),
        tuple(tally.stable.histogram(edges)),
        tuple(tally.candidate.histogram(edges)),
    )


def _distribution(sketch: Sketch) -> r.Distribution:
    p5, p25, p50, p75, p95 = (_number(sketch.quantile(q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95))
    return r.Distribution(
        n=sketch.n,
        odd=sketch.odd,
        mean=_number(sketch.mean),
        low=_number(sketch.low),
        p5=p5,
        p25=p25,
        p50=p50,
        p75=p75,
        p95=p95,
        high=_number(sketch.high),
    )


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinities."""
    return value if math.isfinite(value) else None


def _example(pair: Stored, output: str) -> r.Example:
    at = pair.differing[output].at
    row = at[0] if at and pair.rows > 1 else None
    return r.Example(
        time=pair.time,
        key=pair.key,
        segments=pair.segments,
        stable_version=pair.stable_version,
        candidate_version=pair.candidate_version,
        stable_seconds=pair.stable_seconds,
        candidate_seconds=pair.candidate_seconds,
        row=row,
        rows=pair.rows,
        rows_differing=pair.rows_differing,
        differing=dict(pair.differing),
        inputs=_of_row(pair.inputs, row, pair.rows),
        stable=_of_row(pair.stable, row, pair.rows),
        candidate=_of_row(pair.candidate, row, pair.rows),
    )


def _of_row(text: str, row: int | None, rows: int) -> dict[str, Any]:
    tensors: Iterable[tuple[str, Any]] = elements_of(text).items()
    return {name: value if row is None else row_of(value, row, rows) for name, value in tensors}
