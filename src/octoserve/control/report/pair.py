"""A pair of answers as a report counts it, whoever keeps it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from octoserve.core.comparison import Deviation


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A pair without its tensors. Fields as in `telemetry.pairs.Pair`; times in seconds, None where nobody took them.

    agreed, worst: None where the candidate failed, and there is nothing to compare
    """

    time: float | None
    kind: str
    stratum: str
    key: str | None
    segments: Mapping[str, str]
    stable_version: int
    candidate_version: int
    stable_seconds: float | None
    candidate_seconds: float | None
    agreed: bool | None
    worst: float | None
    rows: int
    rows_differing: int
    differing: Mapping[str, Deviation]
    error: str


class Stored(Summary, frozen=True, kw_only=True):
    """A pair. Texts as `readable` writes them; `raw` only where the tensors are small."""

    inputs: str
    stable: str
    candidate: str
    datatypes: str
    raw: bytes | None
