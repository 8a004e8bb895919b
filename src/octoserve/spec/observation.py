"""`prediction_log:` and `drift:` of octoserve.yaml. See docs/prediction-log.md and docs/drift.md."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from octoserve.core.observation import DriftSettings, LogSettings
from octoserve.spec.values import Duration, Section, Share, Size, off, switch

_DAY = 86400.0
_LEAST_ROTATED = 64 << 10


def _all(value: Any) -> Any:
    return 1.0 if value == "all" or (value == 1 and not isinstance(value, bool)) else value


def _some(value: float) -> float:
    if value <= 0:
        raise ValueError("a share over 0, such as 10% or all; leave the section out to record nothing")
    return value


def _place(value: Any) -> Any:
    text = str(value)
    if "://" in text and not re.fullmatch(r"s3://[^/]+(/.*)?", text):
        raise ValueError("a folder, or s3://bucket/prefix")
    return text


def _within(least: float, most: float, words: str) -> AfterValidator:
    def check(value: float) -> float:
        if not least <= value <= most:
            raise ValueError(words)
        return value

    return AfterValidator(check)


Sample = Annotated[Share, BeforeValidator(_all), AfterValidator(_some)]


class PredictionLogSection(Section):
    """Requests and their answers, recorded."""

    to: Annotated[str, BeforeValidator(_place), Field(min_length=1)]
    """A folder, or s3://bucket/prefix; made if missing. Files lie below it as model=NAME/day=2026-11-24/..."""
    sample: Sample = 1.0
    """The share of requests that is recorded, drawn one by one: 10%, or all."""
    format: Literal["parquet", "jsonl"] = "parquet"
    """Parquet, or JSON lines."""
    only: list[str] | None = None
    """Record only these features, inputs and outputs; unset: all."""
    exclude: list[str] = Field(default_factory=list)
    """Never record these features, inputs and outputs (and `_key`, what sticky assignment goes by)."""
    rotate: Annotated[Duration, _within(1.0, _DAY, "a duration from 1s to 1d")] = 60.0
    """A file holds at most so long a time; a record can be read at most so long after it was made, and a little."""
    rotate_size: Annotated[Size, _within(_LEAST_ROTATED, 256 << 20, "a size from 64KB to 256MB")] = 8 << 20
    """And so many bytes, as the worker leaves them: the file is mostly smaller."""
    keep: Annotated[Duration, _within(_DAY, 3660 * _DAY, "a duration from 1d to 3660d")] = 30 * _DAY
    """Files of days before that are removed, today not counted."""
    keep_size: Annotated[Size, Field(ge=1 << 20)] = 10 << 30
    """Of one model; the oldest days go first."""
    queue_rows: Annotated[int, Field(ge=1)] = 65_536
    """Rows that wait in a worker at most; more are dropped, and counted."""
    queue_size: Annotated[Size, Field(ge=1 << 16)] = 32 << 20
    """And so many bytes."""
    spool_size: Annotated[Size, Field(ge=1 << 20)] = 256 << 20
    """Bytes on disk, of all workers, that wait for a store that is away; more are dropped, and counted."""
    max_record: Annotated[Size, _within(256, 16 << 20, "a size from 256 bytes to 16MB")] = 64 << 10
    """Bytes of a row's values: texts are shortened, what is too large otherwise is left out, and both is counted."""

    def settings(self) -> LogSettings:
        """The same in the words of the core."""
        return LogSettings(
            to=self.to if "://" in self.to else os.path.abspath(self.to),
            sample=self.sample,
            format=self.format,
            rotate=self.rotate,
            rotate_size=self.rotate_size,
            keep_days=round(self.keep / _DAY),
            keep_size=self.keep_size,
            queue_rows=self.queue_rows,
            queue_size=self.queue_size,
            spool_size=max(self.spool_size, self.rotate_size),
            max_record=self.max_record,
            only=None if self.only is None else tuple(self.only),
            exclude=tuple(self.exclude),
        )


class DriftSection(Section):
    """Live features and outputs against the version's reference profile."""

    sample: Sample | None = None
    """The share of requests that is counted; with a prediction log that one's `sample` holds, and this stays unset."""
    window: Annotated[Duration, _within(60.0, 7 * _DAY, "a duration from 1m to 7d")] = 3600.0
    """Over how long drift is measured, always up to now."""
    minimum: Annotated[int, Field(ge=100)] = 1000
    """Rows of the window below which there is no number."""
    alert: Annotated[float, Field(gt=0, le=100)] = 0.25
    """PSI of a feature or output above which `octoserve deploy monitoring` makes Prometheus tell somebody."""

    def settings(self) -> DriftSettings:
        """The same in the words of the core."""
        sample = 1.0 if self.sample is None else self.sample
        return DriftSettings(sample=sample, window=self.window, minimum=self.minimum, alert=self.alert)


OptionalLog = Annotated[PredictionLogSection | None, BeforeValidator(off)]
"""`false` records nothing."""
OptionalDrift = Annotated[DriftSection | None, BeforeValidator(switch)]
"""`true` watches with the defaults, `false` watches nothing."""
