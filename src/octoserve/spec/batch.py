"""The section `batch` of `octoserve.yaml`: what `octoserve batch run` scores, and how. Flags have the same names."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from octoserve.core.names import is_elsewhere
from octoserve.spec.values import Port, Rows, Section, Share, Size

_BUDGET = re.compile(r"(\d+)|(\d+(?:\.\d+)?)\s*%|(0?\.\d+)")


def split_words(value: Any) -> Any:
    """A list from `a,b` or from a list. In the URL of a query commas are its own."""
    if isinstance(value, str) and value.startswith(("postgresql://", "postgres://")):
        return [value]
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def table_from(folder: Path, where: str, pattern: bool = False) -> str:
    """A table that stands in a settings file in `folder`: its path is taken from there, an address as it is.

    pattern: whether it may match several files
    """
    if is_elsewhere(where) or where.startswith("iceberg:"):
        return where
    if where.startswith("delta:"):
        return f"delta:{folder / where.removeprefix('delta:')}"
    if pattern and any(letter in where for letter in "*?[") and not (folder / where).exists():
        folder = Path(glob.escape(str(folder)))
    return str(folder / where)


def parse_budget(value: Any) -> Any:
    """`100` (rows), `0.1%` or 0.001 (a share) as text; ValueError for anything else."""
    text = str(value).strip() if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
    found = _BUDGET.fullmatch(text)
    if found is None or (found[2] and float(found[2]) > 100):
        raise ValueError("a number of rows such as 100, or a share such as 0.1%")
    return text


def budget_of(text: str) -> tuple[int | None, float]:
    """Rows, or None and a share of all rows."""
    found = _BUDGET.fullmatch(text)
    assert found is not None
    if found[1]:
        return int(found[1]), 0.0
    return None, float(found[2]) / 100 if found[2] else float(found[3])


def parse_version(value: Any) -> Any:
    """A number from 1, `stable` or `plan`; ValueError for anything else."""
    return _version_or(value, ("stable", "plan"))


def parse_shadow(value: Any) -> Any:
    """A number from 1, or `candidate`; ValueError for anything else."""
    return _version_or(value, ("candidate",))


def _version_or(value: Any, words: tuple[str, ...]) -> int | str:
    text = str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if text in words:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"a version such as 3, or {' or '.join(words)}")
    return int(text)


Words = Annotated[list[str], BeforeValidator(split_words)]
_NUMBER_OR_WORD = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]}
Version = Annotated[int | str, BeforeValidator(parse_version), WithJsonSchema(_NUMBER_OR_WORD)]
Shadow = Annotated[int | str, BeforeValidator(parse_shadow), WithJsonSchema(_NUMBER_OR_WORD)]
Budget = Annotated[
    str, BeforeValidator(parse_budget), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}]})
]


class BatchSection(Section):
    """A batch job: a table in, predictions out."""

    model: str | None = None
    """Which model scores."""
    version: Version | None = None
    """Which version of it: a number, `stable` (which the endpoint's route trusts), or `plan` (row by row, as the
    endpoint's route plan says); unset: the highest."""
    plan: str | None = None
    """Where the route plan comes from: the address of an admin API, a service's state directory, or a file; unset:
    OCTOSERVE_ADMIN_URL, else http://127.0.0.1:8082. It is asked once, when a job begins."""
    plan_key: str | None = None
    """The column that holds what the route plan splits by; unset: the plan's own, if it names a column."""
    shadow: Shadow | None = None
    """A version that scores every row too, or `candidate`; its predictions are columns that end in `__shadow`."""
    noise: Share = 0.0
    """The share of rows that the stable version scores a second time, to see how far it differs from itself."""
    source: Words = Field(default_factory=list)
    """Files, folders or patterns such as data/*.parquet, here or in s3://; several with commas. Or one table:
    postgresql://user@host/db?table=t (or ?query=...&split_by=id), delta:PATH, iceberg:CATALOG/namespace.table."""
    sink: str | None = None
    """A new or empty folder for the predictions, here or in s3://; or a table, as above with
    ?table=t, delta:PATH, iceberg:CATALOG/namespace.table."""
    engine: Literal["local", "spark"] = "local"
    """What runs the job: this machine, or Spark. It may change when a job is resumed."""
    spark_master: str | None = None
    """Of Spark: local[2], spark://host:7077, yarn, ...; unset: what spark-submit says, or the session that is there."""
    spark_remote: str | None = None
    """Of Spark Connect instead: sc://host:15002."""
    format: Literal["parquet", "csv", "tsv", "jsonl", "arrow"] | None = None
    """The source's format; unset: told by the files' names."""
    sink_format: Literal["parquet", "csv", "jsonl", "arrow"] | None = None
    """What files a sink that is a folder, here or in s3://, is made of; unset: parquet."""
    keys: Words = Field(default_factory=list)
    """Columns that the predictions are written beside, and that bad rows are known by."""
    columns: Words = Field(default_factory=list)
    """For a model of one input: the columns that it is made of, in order; unset: model.yaml's `features`."""
    all_columns: bool = False
    """Whether every column of the source is written beside the predictions."""
    prefix: str = ""
    """Put before the names of predictions, where they would be those of columns."""
    missing: Literal["refuse", "nan"] | None = None
    """What becomes of a missing number: refuse makes its row a bad one, nan lets the model see NaN; unset: what the
    version's model.yaml says, else refuse."""
    convert: Literal["lossless", "round"] = "lossless"
    """Which columns are converted: those whose every value the model's type holds, or also those that are rounded."""
    error_budget: Budget = "1%"
    """How many bad rows are borne: rows (100), or a share of the job's rows (0.1%)."""
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads that score, each with a model of its own; unset: one a core. On Spark its tasks are the workers."""
    bytes_in_flight: Size = 64 << 20
    """Bytes of rows that are read and not yet written, of all workers."""
    split_size: Size = 64 << 20
    """Bytes of rows in a split: what a crash costs a worker, and what a file of the result holds."""
    block_rows: Rows | None = None
    """Rows in one run of the model at most; unset: model.yaml's batching, else what 4 MB holds, up to 8192."""
    metrics_port: Port | None = None
    """Serve Prometheus metrics on this port while the job runs; 0 picks a free one."""
    metrics_host: str = "127.0.0.1"
    """Where the metrics' page listens; 0.0.0.0 for a Prometheus on another machine. They tell no data and no secret."""
    state_dir: Path = Path(".octoserve")
    """Where `octoserve batch list` knows jobs from."""
