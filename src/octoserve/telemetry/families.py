"""Metrics as values, when they are told, added up or shown; who only reads them needs no numpy."""

from __future__ import annotations

import msgspec

Labels = tuple[str, ...]
TALLY = "tally"
"""A kind of family: counts by place, added up as histograms are, for the supervisor alone and on no page."""


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One series. A counter or gauge has its value in `total`; a histogram also count and buckets."""

    labels: Labels
    total: float
    count: int = 0
    buckets: tuple[int, ...] = ()


class Family(msgspec.Struct, frozen=True, array_like=True):
    """All series of one name."""

    name: str
    kind: str  # counter | gauge | histogram | TALLY
    help: str
    label_names: Labels
    bounds: tuple[float, ...]
    samples: tuple[Sample, ...]
