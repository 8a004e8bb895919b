"""What is observed of the answers of a service beside counting them: a prediction log, and how far inputs drift."""

from __future__ import annotations

import msgspec

PARQUET, JSONL = "parquet", "jsonl"


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one model. Sizes in bytes, times in seconds; see `spec.prediction_log`.

    to: a folder, or s3://bucket/prefix
    """

    to: str
    sample: float = 1.0
    format: str = PARQUET
    rotate: float = 60.0
    rotate_size: int = 8 << 20
    keep_days: int = 30
    keep_size: int = 10 << 30
    queue_rows: int = 65_536
    queue_size: int = 32 << 20
    spool_size: int = 256 << 20
    max_record: int = 64 << 10
    only: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()

    def wants(self, name: str) -> bool:
        """Whether what has this name may be recorded."""
        return name not in self.exclude and (self.only is None or name in self.only)


class DriftSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one model; see `spec.drift`."""

    sample: float = 1.0
    window: float = 3600.0
    minimum: int = 1000
    alert: float = 0.25


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """Of one model, both."""

    log: LogSettings | None = None
    drift: DriftSettings | None = None

    @property
    def sample(self) -> float:
        """The share of requests that is looked at: one draw for both."""
        if self.log is not None:
            return self.log.sample
        return self.drift.sample if self.drift is not None else 0.0


class Observations(msgspec.Struct, frozen=True, kw_only=True):
    """Of a whole service. `models` holds those that differ from `default`."""

    default: Observed = Observed()
    models: dict[str, Observed] = {}

    def of(self, model: str) -> Observed:
        """What is observed of this model."""
        return self.models.get(model, self.default)

    def all(self) -> list[Observed]:
        """Everything that is asked for somewhere."""
        return [self.default, *self.models.values()]

    def any_log(self) -> bool:
        """Whether some model's predictions are recorded."""
        return any(observed.log is not None for observed in self.all())

    def any_drift(self) -> bool:
        """Whether some model's drift is watched."""
        return any(observed.drift is not None for observed in self.all())

    def any(self) -> bool:
        """Whether anything is observed at all."""
        return self.any_log() or self.any_drift()
