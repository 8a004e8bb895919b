"""Rows of the comparison: what was measured against what, and whether the bar held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from load import Sample

Samples = dict[str, dict[str, list[Sample]]]
"""case -> contender -> one sample a round."""


@dataclass(frozen=True)
class Row:
    """One line. The bar is on the ratio of medians (`times`, or `within` so many times), on being no or less than
    the peer's value (`no higher`, `lower`), or on the value itself (`at most`); `context` has none."""

    title: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float] = ()
    rule: str = "context"
    bar: float = 0.0
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return median(self.ours) / median(self.theirs) if self.ours and self.theirs else None

    @property
    def verdict(self) -> str:
        if self.rule == "context":
            return ""
        if not self.ours or (self.rule != "at most" and not self.theirs):
            return "not measured"
        return "held" if self._holds() else "missed"

    def _holds(self) -> bool:
        ours = median(self.ours)
        if self.rule == "at most":
            return ours <= self.bar
        theirs = median(self.theirs)
        if self.rule == "times":
            return ours / theirs >= self.bar
        if self.rule == "within":
            return ours / theirs <= self.bar
        return ours <= theirs if self.rule == "no higher" else ours < theirs

    def cells(self) -> list[str]:
        bar = {
            "times": f"{self.bar:g}x",
            "within": f"at most {self.bar:g}x",
            "at most": f"at most {self.bar:g}",
            "context": "",
        }
        return [
            f"{self.title}, {self.unit}",
            _spread(self.ours),
            _spread(self.theirs),
            f"{self.ratio:.2f}x{self._ratio_range()}" if self.ratio is not None else "",
            bar.get(self.rule, self.rule),
            f"{self.verdict}{': ' + self.note if self.note else ''}",
        ]

    def _ratio_range(self) -> str:
        pairs = [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=False)]
        return f" ({min(pairs):.2f}-{max(pairs):.2f})"

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "verdict": self.verdict}


@dataclass
class Report:
    rows: list[Row] = field(default_factory=list)
    samples: Samples = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def values(self, case: str, contender: str, what: str = "throughput") -> list[float]:
        return [getattr(sample, what) for sample in self.samples.get(case, {}).get(contender, [])]

    def compare(self, case: str, peer: str, rule: str, bar: float = 0, what: str = "throughput") -> None:
        """Adds a row of octoserve against `peer` in `case`."""
        unit = "requests/s" if what == "throughput" else f"{what} ms"
        ours, theirs = self.values(case, "octoserve", what), self.values(case, peer, what)
        self.rows.append(Row(f"{case}: {peer}", unit, ours, theirs, rule, bar))

    def text(self) -> str:
        parts = [_MEASURED, _table(_HEAD, self._sample_lines())]
        parts += [
            "Compared: octoserve with its peer in the same rounds; the ratio's range is over single rounds",
            _table(_ROW_HEAD, self._row_lines()),
        ]
        for head, lines in (("Skipped", self.skipped), ("FAILED", self.failures)):
            if lines:
                parts.append("\n".join([f"{head}:", *(f"  {line}" for line in lines)]))
        if others := self._noise():
            parts.append(f"Other programs kept up to {others:.2f} cores busy meanwhile: repeat on an idle machine.")
        return "\n\n".join(parts)

    def document(self) -> dict[str, Any]:
        samples = {
            case: {name: [asdict(sample) for sample in samples] for name, samples in contenders.items()}
            for case, contenders in self.samples.items()
        }
        rows = [row.document() for row in self.rows]
        return {"rows": rows, "samples": samples, "skipped": self.skipped, "failures": self.failures}

    def _noise(self) -> float:
        """The most that others took in any sample, in cores; 0 when that is too little to matter."""
        samples = (s for contenders in self.samples.values() for found in contenders.values() for s in found)
        most = max((sample.other_cpu for sample in samples), default=0.0)
        return most if most > _QUIET else 0.0

    def _row_lines(self) -> list[list[str]]:
        return [row.cells() for row in self.rows]

    def _sample_lines(self) -> list[list[str]]:
        return [
            [
                case,
                name,
                *(_spread([getattr(sample, what) for sample in samples]) for what in _SPREADS),
                *(_number(median(getattr(sample, what) for sample in samples)) for what in _MEDIANS),
            ]
            for case, contenders in self.samples.items()
            for name, samples in contenders.items()
            if samples
        ]


_SPREADS = ("throughput", "p50", "p99")
_MEDIANS = ("server_cpu", "load_cpu", "other_cpu")
_HEAD = ["case", "server", "requests/s", "p50 ms", "p99 ms", "CPU us/request", "load cores", "other cores"]
_MEASURED = """Measured: median over the rounds (lowest-highest)
CPU us/request: all the server's processes; load cores: the load generator's; other cores: everything else"""
_QUIET = 0.15  # cores
_ROW_HEAD = ["octoserve against", "octoserve", "peer", "ratio", "bar", ""]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    middle, low, high = (_number(value) for value in (median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}-{high})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(head: list[str], lines: list[list[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(head, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, rule, *lines]
    )
