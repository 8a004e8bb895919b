"""A DataFrame with predictions: for tables that only Spark can read. Same matching and scoring as a job's, and no job.

What is written, where and how often, is the caller's `write`; there is no journal, no manifest and no resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from octoserve.connectors.arrow import Array as ArrowArray
from octoserve.connectors.arrow import DataType, RecordBatch, pyarrow
from octoserve.core.errors import InvalidInput, SettingsError
from octoserve.core.signature import TensorSpec
from octoserve.origins.opening import root_here
from octoserve.patterns.batch.job import JobSettings, ModelIdentity
from octoserve.patterns.batch.matching import Feed, match
from octoserve.patterns.batch.model import Version
from octoserve.patterns.batch.outputs import arrow_type, column_of
from octoserve.patterns.batch.run import Tools
from octoserve.patterns.batch.scoring import Answered, Asker
from octoserve.patterns.batch.spark import shipping
from octoserve.patterns.batch.spark.session import DataFrame, Spark, Task, pyspark, unpacked
from octoserve.runtimes.protocol import LoadedModel

REFUSE, KEEP = "refuse", "keep"
ERROR = "error"


class _Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What every task is told. passed: columns that stay; bad: REFUSE or KEEP.

    rows: in a run of the model; 0: as many as Spark gives at once (spark.sql.execution.arrow.maxRecordsPerBatch)
    """

    model: ModelIdentity
    archive: str
    feeds: tuple[Feed, ...]
    outputs: tuple[TensorSpec, ...]
    passed: tuple[str, ...]
    keys: tuple[str, ...]
    prefix: str
    missing: str
    bad: str
    rows: int
    tools: Callable[[], Tools]


def score(
    frame: DataFrame,
    repository: str,
    model: str,
    version: int | None,
    settings: JobSettings,
    bad: str,
    tools: Callable[[], Tools],
) -> DataFrame:
    """See `octoserve.score`. tools: makes a process's tools, here and on executors."""
    if bad not in (REFUSE, KEEP):
        raise SettingsError(f"bad_rows: {REFUSE} or {KEEP} wanted, {bad!r} came")
    here = tools()
    chosen = Version(repository, model, version, here.runtimes, here.libraries)
    loaded = chosen.load_first()
    schema = pyspark("sql.pandas.types").to_arrow_schema(frame.schema, timezone="UTC")
    matched = match(loaded.signature, schema, settings, loaded.signature.features, str(chosen))
    spark = Spark(frame.sparkSession)
    recipe = _Recipe(
        model=chosen.identity,
        archive=shipping.ship(spark, root_here(repository), [chosen.identity]),
        feeds=matched.feeds,
        outputs=loaded.signature.outputs,
        passed=matched.passed,
        keys=matched.keys,
        prefix=settings.prefix,
        missing=settings.missing or chosen.settings.missing or "refuse",
        bad=bad,
        rows=settings.block_rows or chosen.settings.max_batch_rows or 0,
        tools=tools,
    )
    return frame.select(*map(_quoted, matched.read)).mapInArrow(_task_of(recipe), _schema(frame.schema, recipe))


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _schema(came: Any, recipe: _Recipe) -> Any:
    """Of the frame that is made."""
    types = pyspark("sql.types")
    schema = types.StructType([came[name] for name in recipe.passed])
    for spec in recipe.outputs:
        schema = schema.add(recipe.prefix + spec.name, _spark_type(arrow_type(spec)), recipe.bad == KEEP)
    return schema.add(recipe.prefix + ERROR, types.StringType()) if recipe.bad == KEEP else schema


def _spark_type(type_: DataType) -> Any:
    """Which every value of `type_` fits: Spark has no unsigned numbers and no lists of a fixed size."""
    pa, types = pyarrow(), pyspark("sql.types")
    if hasattr(type_, "value_type"):
        return types.ArrayType(_spark_type(type_.value_type), containsNull=False)
    known: dict[Any, Any] = {
        pa.bool_(): types.BooleanType(), pa.int8(): types.ByteType(), pa.int16(): types.ShortType(),
        pa.int32(): types.IntegerType(), pa.int64(): types.LongType(), pa.uint8(): types.ShortType(),
        pa.uint16(): types.IntegerType(), pa.uint32(): types.LongType(), pa.uint64(): types.DecimalType(20, 0),
        pa.float16(): types.FloatType(), pa.float32(): types.FloatType(), pa.float64(): types.DoubleType(),
        pa.string(): types.StringType(),
    }  # fmt: skip
    return known[type_]


def _for_spark(type_: DataType) -> DataType:
    """The same as Arrow has it."""
    pa = pyarrow()
    if hasattr(type_, "value_type"):
        return pa.list_(pa.field("element", _for_spark(type_.value_type), nullable=False))
    wider: dict[Any, Any] = {
        pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.uint64(): pa.decimal128(20, 0),
        pa.float16(): pa.float32(),
    }  # fmt: skip
    return wider.get(type_, type_)


def _task_of(recipe: _Recipe) -> Task:
    def task(batches: Iterator[Any]) -> Iterator[Any]:
        return scored(recipe, batches)

    return task


_loaded: dict[str, LoadedModel] = {}
"""Of this worker process, by digest."""


def _load(recipe: _Recipe) -> LoadedModel:
    found = _loaded.get(recipe.model.digest)
    if found is None:
        tools, model = recipe.tools(), recipe.model
        version = Version(unpacked(recipe.archive), model.name, model.version, tools.runtimes, tools.libraries)
        if version.identity != model:
            raise SettingsError(f"{version} did not arrive as it was sent: {version.identity.digest} came")
        _loaded.clear()
        found = _loaded[model.digest] = version.load_first()
    return found


def scored(recipe: _Recipe, batches: Iterator[RecordBatch]) -> Iterator[RecordBatch]:
    """What an executor does; one batch at a time, since the JVM reads and writes beside it."""
    model = _load(recipe)
    asker = Asker(recipe.feeds, recipe.outputs, recipe.missing, lambda count: None)
    for batch in batches:
        rows = recipe.rows or max(1, batch.num_rows)
        for start in range(0, batch.num_rows, rows):
            block = batch.slice(start, rows)
            yield _finished(recipe, block, asker.ask(model, block, {}))


def _finished(recipe: _Recipe, block: RecordBatch, answered: Answered) -> RecordBatch:
    pa = pyarrow()
    if answered.reasons and recipe.bad == REFUSE:
        row, reason = min(answered.reasons.items())
        keys = ", ".join(f"{name} {block.column(name)[row].as_py()!r}" for name in recipe.keys) or "no keys were named"
        raise InvalidInput(
            f"{len(answered.reasons)} rows of a block are bad, the first one ({keys}): {reason}; bad_rows='keep' "
            "passes them on, with the reason"
        )
    places = None if answered.places is None else _back(answered.places.tolist(), block.num_rows)
    columns = [block.column(name) for name in recipe.passed]
    names = list(recipe.passed)
    for spec, output in zip(recipe.outputs, answered.outputs, strict=True):
        rows = block.num_rows if answered.places is None else len(answered.places)
        column: ArrowArray = column_of(output, spec, arrow_type(spec), rows)
        column = column.cast(_for_spark(column.type))
        columns.append(column if places is None else column.take(places))
        names.append(recipe.prefix + spec.name)
    if recipe.bad == KEEP:
        columns.append(pa.array([answered.reasons.get(row) for row in range(block.num_rows)], pa.string()))
        names.append(recipe.prefix + ERROR)
    return pa.RecordBatch.from_arrays(columns, names=names)


def _back(places: Sequence[int], rows: int) -> ArrowArray:
    """Of each row of a block, where its answer is; null where there is none."""
    of = {row: at for at, row in enumerate(places)}
    return pyarrow().array([of.get(row) for row in range(rows)], pyarrow().int64())
