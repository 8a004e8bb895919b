"""The report of a shadow: what the candidate would have changed, for whom, with the worst disagreements.

`build` reads the store once, a part at a time: its memory does not grow with the number of pairs. What decides
about a rollout are the verdicts (`control.analysis`); the report shows them, and decides nothing.

Forms: `as_json` here, `text.as_text` for a terminal, `html.as_html` for a browser.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import msgspec

from octoserve.control.analysis.verdict import Verdict
from octoserve.core.comparison import Deviation

SHADOW, BATCH = "shadow", "batch"
QUANTILES = (0.5, 0.9, 0.99, 0.999)


class Accounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of copies in one stratum, counted by the workers: offered = sent + dropped, to the last one."""

    stratum: str
    offered: int
    sent: int
    dropped: Mapping[str, int]
    ok: int
    error: int
    timeout: int
    compared: int
    disagreed: int

    @property
    def is_exact(self) -> bool:
        """Whether the accounts add up. They do, unless copies are under way."""
        return (
            self.offered == self.sent + sum(self.dropped.values()) and self.sent == self.ok + self.error + self.timeout
        )


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Disagreement in pairs, and the noise floor: the same version twice. Shares are None without pairs."""

    compared: int
    disagreed: int
    share: float | None
    noise_compared: int
    noise_disagreed: int
    noise_share: float | None


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, within 1 %; None without answers."""

    n: int
    p50: float | None
    p90: float | None
    p99: float | None
    p999: float | None
    high: float | None


class SegmentReport(msgspec.Struct, frozen=True, kw_only=True):
    """One segment, as `country` and `DE`. outputs: output name -> pairs in which it differs."""

    name: str
    value: str
    rate: Rate
    errors: int
    outputs: Mapping[str, int]
    stable: Latency
    candidate: Latency


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Finite numbers that a version gave; quantiles within 1 %. None without any."""

    n: int
    odd: int
    """NaN and infinities."""
    mean: float | None
    low: float | None
    p5: float | None
    p25: float | None
    p50: float | None
    p75: float | None
    p95: float | None
    high: float | None


class NumberShift(msgspec.Struct, frozen=True, kw_only=True):
    """How far a number moved.

    column:      "" or "[0]", the column of an output of few columns
    mean_change: of candidate - stable, pair by pair
    mean_size:   of its absolute value
    distance:    Kolmogorov-Smirnov, 0 (the same) to 1
    edges, stable_bins, candidate_bins: a histogram of both; what lies beyond the edges is in the outer bins
    """

    column: str
    stable: Distribution
    candidate: Distribution
    mean_change: float | None
    mean_size: float | None
    distance: float
    edges: tuple[float, ...]
    stable_bins: tuple[int, ...]
    candidate_bins: tuple[int, ...]


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """So many times one label became another."""

    stable: str
    candidate: str
    count: int


class LabelCount(msgspec.Struct, frozen=True, kw_only=True):
    """How often each version gave a label."""

    label: str
    stable: int
    candidate: int


class LabelShift(msgspec.Struct, frozen=True, kw_only=True):
    """Which labels became which: `moves` and `labels` are the most frequent ones."""

    same: int
    changed: int
    moves: tuple[Move, ...]
    labels: tuple[LabelCount, ...]
    more_moves: int
    more_labels: int


class OutputReport(msgspec.Struct, frozen=True, kw_only=True):
    """One output: how often it differs, how far at worst (in tolerances), and its distribution's shift."""

    name: str
    datatype: str
    rate: Rate
    worst: float
    numbers: tuple[NumberShift, ...]
    labels: LabelShift | None


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A pair that disagrees much. Tensors as `readable` writes them; of a batch, the worst row alone.

    row, rows: which row of how many; row is None where the outputs as a whole differ
    """

    time: float | None
    key: str | None
    segments: Mapping[str, str]
    stable_version: int
    candidate_version: int
    stable_seconds: float | None
    candidate_seconds: float | None
    row: int | None
    rows: int
    rows_differing: int
    differing: Mapping[str, Deviation]
    inputs: Mapping[str, Any]
    stable: Mapping[str, Any]
    candidate: Mapping[str, Any]


class ErrorCount(msgspec.Struct, frozen=True, kw_only=True):
    """Pairs in which the candidate failed with this text."""

    error: str
    count: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. Times are wall clock seconds; None where there are no pairs.

    of:         `shadow`: pairs are requests, `rollout` its id. `batch`: they are rows, `rollout` the run's id
    headline:   what changed, in a sentence or two
    notes:      what one must know to read the numbers rightly
    pairs, noise: stored pairs of each kind
    segments:   the most affected first; `more_segments` are not shown
    """

    of: str = SHADOW
    endpoint: str
    rollout: str
    stable_versions: tuple[int, ...]
    candidate_versions: tuple[int, ...]
    made: float
    first: float | None
    last: float | None
    headline: str
    notes: tuple[str, ...]
    pairs: int
    noise: int
    rate: Rate
    rows: int
    rows_differing: int
    accounts: tuple[Accounts, ...]
    outputs: tuple[OutputReport, ...]
    segments: tuple[SegmentReport, ...]
    more_segments: int
    stable: Latency
    candidate: Latency
    errors: tuple[ErrorCount, ...]
    error_pairs: int
    verdicts: tuple[Verdict, ...]
    examples: tuple[Example, ...]

    def __repr__(self) -> str:
        return f"<Report of {self.endpoint}, {self.of} {self.rollout}: {self.headline}>"

    def _repr_html_(self) -> str:
        """The page, in a frame of its own: its style is not the notebook's."""
        from octoserve.control.report.html import as_html

        page = html.escape(as_html(self), quote=True)
        return f'<iframe srcdoc="{page}" sandbox title="Report" style="width:100%;height:40em;border:0"></iframe>'


def as_json(report: Report) -> dict[str, Any]:
    """Plain values for a JSON encoder. Fields as in the classes above, deviations as objects."""
    plain: dict[str, Any] = msgspec.to_builtins(report)
    for example, built in zip(report.examples, plain["examples"], strict=True):
        built["differing"] = {
            name: {"reason": d.reason, "magnitude": d.magnitude, "rows": d.rows, "at": list(d.at)}
            for name, d in example.differing.items()
        }
    return plain
