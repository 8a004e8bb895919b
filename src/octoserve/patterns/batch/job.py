"""What a job is: a value with an identity. Two jobs of one identity have equal results, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from octoserve.connectors.formats import PARQUET
from octoserve.connectors.source import SourceFile
from octoserve.core.errors import OctoserveError, SettingsError
from octoserve.routing.plan import RoutePlan


class JobSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What shapes the result. See `spec.batch` for what each field means.

    sink_format: unset for what a sink writes unasked; a job of it is the same as before there was a choice
    """

    format: str = ""
    sink_format: str | msgspec.UnsetType = msgspec.UNSET
    keys: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    all_columns: bool = False
    prefix: str = ""
    missing: str = ""
    convert: str = "lossless"
    split_bytes: int = 64 << 20
    block_rows: int | None = None

    @property
    def written(self) -> str:
        """The format of parts that are files."""
        return self.sink_format or PARQUET


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How this run goes about it; nothing here changes the result. error_budget: rows, or a share of them."""

    workers: int = 1
    bytes_in_flight: int = 64 << 20
    budget_rows: int | None = None
    budget_share: float = 0.0
    keep_budget: bool = False
    """Whether a run that goes on with another takes that one's error budget."""

    def bad_rows_borne(self, rows: int) -> int:
        """How many of `rows` may be bad."""
        return self.budget_rows if self.budget_rows is not None else int(self.budget_share * rows + 1e-6)  # 29 % of 100


class Split(msgspec.Struct, frozen=True):
    """The unit of work and of the result. file: place in `Job.files`; start, stop: as in `source.Range`.

    first_row: of the split in its file
    """

    index: int
    file: int
    start: int
    stop: int
    first_row: int
    rows: int
    bytes: int

    @property
    def name(self) -> str:
        """Of its part, without an ending."""
        return f"part-{self.index:05}"


class ModelIdentity(msgspec.Struct, frozen=True):
    """Which model answers."""

    name: str
    version: int
    digest: str


class Routing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who answers which row, and who is compared, where that is not one version alone.

    Pinned: however the rollout moves, the job goes on as it began (docs/decisions/0013-rollouts-in-batch.md).

    plan:   the route plan, as far as it shapes a row; None: `Job.model` answers all
    key:    the column that holds the plan's key; "" where everything goes to one version
    others: versions that may answer beside `Job.model`, which is the stable one
    shadow: the version whose predictions are carried beside
    noise:  share (of BUCKETS) of the rows that the stable version scores a second time
    """

    plan: RoutePlan | None = None
    key: str = ""
    others: tuple[ModelIdentity, ...] = ()
    shadow: ModelIdentity | None = None
    noise: int = 0

    def versions(self) -> tuple[ModelIdentity, ...]:
        """Every version beside `Job.model` that a thread must hold."""
        shadow = (self.shadow,) if self.shadow is not None and self.shadow not in self.others else ()
        return (*self.others, *shadow)


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The whole of it. Written once, read by every run after the first.

    repository, source: as they were asked for; to find things again, not part of the identity
    schema:     the columns that are read and the model's inputs and outputs, as text
    software:   who reads, scores and writes, with versions
    block_rows: rows that one run of the model gets
    routing:    None where `model` answers every row, and nobody is compared
    """

    repository: str
    source: tuple[str, ...]
    model: ModelIdentity
    files: tuple[SourceFile, ...]
    schema: tuple[str, ...]
    settings: JobSettings
    software: dict[str, str]
    block_rows: int
    splits: tuple[Split, ...]
    routing: Routing | None = None

    @property
    def rows(self) -> int:
        """Of all splits."""
        return sum(split.rows for split in self.splits)

    @property
    def bytes(self) -> int:
        """Of all splits, about."""
        return sum(split.bytes for split in self.splits)

    def id(self) -> str:
        """The identity as text: 32 hexadecimal digits."""
        return hashlib.sha256(msgspec.json.encode(self._identity(), order="sorted")).hexdigest()[:32]

    def _identity(self) -> dict[str, Any]:
        document: dict[str, Any] = msgspec.to_builtins(self)
        del document["repository"], document["source"]
        return document


class Difference(msgspec.Struct, frozen=True):
    """One thing that is not as it must be: what, what was wanted, what came, what to do."""

    what: str
    wanted: str
    came: str
    remedy: str


class Differs(SettingsError):
    """What was asked for does not fit; `differences` is the table of it."""

    def __init__(self, message: str, differences: Sequence[Difference]) -> None:
        self.headline = message
        self.differences = tuple(differences)
        lines = [f"  {d.what}: {d.wanted} wanted, {d.came} came; {d.remedy}" for d in self.differences]
        super().__init__("\n".join([message, *lines]))


class BudgetSpent(OctoserveError):
    """More bad rows than are borne; nothing was committed."""

    reason = "error_budget"


class Busy(OctoserveError):
    """Another run has the job."""

    reason = "busy"


class Fenced(Busy):
    """Another run has taken the job over from this one."""


class Interrupted(OctoserveError):
    """Somebody asked for the end; the journal keeps what was done."""

    reason = "interrupted"


def differences(was: Job, now: Job) -> list[Difference]:
    """What makes `now` another job than `was`."""
    found = file_differences(was.files, now.files)
    if was.model != now.model:
        wanted, came = (f"{m.name}/{m.version} {m.digest[:19]}" for m in (was.model, now.model))
        found.append(Difference("model", wanted, came, "name the version with --version"))
    for name in sorted(was.software.keys() | now.software.keys()):
        before, after = was.software.get(name, "none"), now.software.get(name, "none")
        if before != after:
            found.append(Difference(f"library {name}", before, after, f"install {name} {before}"))
    for field in JobSettings.__struct_fields__:
        before, after = getattr(was.settings, field), getattr(now.settings, field)
        if field == "sink_format":
            before, after = was.settings.written, now.settings.written
        if before != after:
            found.append(Difference(f"setting {field}", str(before), str(after), "give the same, or another sink"))
    found.extend(_routing_differences(was.routing or Routing(), now.routing or Routing()))
    if was.schema != now.schema and not found:
        gone = [line for line in was.schema if line not in now.schema]
        came_ = [line for line in now.schema if line not in was.schema]
        found.append(Difference("schema", "; ".join(gone) or "less", "; ".join(came_) or "less", "restore the columns"))
    return found


def _routing_differences(was: Routing, now: Routing) -> list[Difference]:
    """What answers another row than it did, or is compared with another version."""
    moved = "the job keeps the plan that it began with: octoserve batch resume"
    remedies = {"plan": moved, "others": moved, "key": "give the same --plan-key"}
    found = []
    for field in Routing.__struct_fields__:
        before, after = getattr(was, field), getattr(now, field)
        if before != after:
            remedy = remedies.get(field, "give the same, or another sink")
            found.append(Difference(f"routing, {field}", _said(before), _said(after), remedy))
    return found


def _said(value: Any) -> str:
    if isinstance(value, RoutePlan):
        arms = ", ".join(f"version {arm.version} {(arm.hi - arm.lo) / 100:g}%" for arm in value.arms)
        return f"{arms}; seed {value.seed or 'none'}"
    if isinstance(value, ModelIdentity):
        return f"version {value.version} {value.digest[:19]}"
    if isinstance(value, tuple):
        return ", ".join(map(_said, value)) or "none"
    return str(value) if value else "none"


def file_differences(was: Sequence[SourceFile], now: Sequence[SourceFile]) -> list[Difference]:
    """Files that changed, vanished or came anew."""
    before, after = {file.path: file for file in was}, {file.path: file for file in now}
    found = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old != new:
            found.append(
                Difference(f"file {path}", _shown(old), _shown(new), "restore it, or begin a new job elsewhere")
            )
    return found


def _shown(file: SourceFile | None) -> str:
    if file is None:
        return "no such file"
    return f"{file.size} bytes of " + (f"ETag {file.etag}" if file.etag else f"time {file.mtime_ns}")
