"""A version's reference profile, of a table that it scores; and a table against such a profile.

Both read a table as a job does, block by block, and keep counts instead of rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from octoserve.connectors.arrow import Array as ArrowArray
from octoserve.connectors.arrow import RecordBatch, pyarrow
from octoserve.control.drift.profiling import Profiler
from octoserve.core.bins import ProfileCounts
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, OctoserveError
from octoserve.core.profile import TEXTS, ColumnProfile, Profile
from octoserve.core.tensors import Array
from octoserve.patterns.batch.conversion import numbers, tensors, unfit, words
from octoserve.patterns.batch.job import JobSettings, Split
from octoserve.patterns.batch.matching import datatype_of, match, wishes
from octoserve.patterns.batch.model import Version
from octoserve.patterns.batch.table import Table

BLOCK = 4096
_VERSION, _STATUS = "_version", "_status"
"""Columns of a prediction log."""
_ELEMENT = re.compile(r"(.+)\[(\d+)\]", re.DOTALL)


class Profiled(msgspec.Struct, frozen=True):
    """A profile, and what has none. reason: of the first row that was left out; "" for none."""

    profile: Profile
    no_profile: tuple[str, ...]
    reason: str


def profile_of(
    version: Version,
    table: Table,
    data: str,
    *,
    now: float,
    columns: Sequence[str] = (),
    wants: Callable[[str], bool] = lambda _: True,
    progress: Callable[[int], None] = lambda _: None,
) -> Profiled:
    """Score every row, and count. data: where the rows come from, for people. columns: as in `JobSettings`.

    Raises InvalidInput where no row can be scored; Differs, SettingsError, BrokenVersion.
    """
    loaded = version.load_first()
    try:
        signature, settings = loaded.signature, JobSettings(columns=tuple(columns), convert="round")
        if table.is_text:
            table.read_as(wishes(signature, table.schema, settings, signature.features, str(version)))
        matched = match(signature, table.schema, settings, signature.features, str(version), may_round=True)
        profiler, left_out, reason = Profiler(signature, wants), 0, ""
        for batch, unread in _blocks(table, matched.read):
            reasons = {**unfit(batch, matched.feeds, signature.missing == "nan"), **unread}
            if reasons:
                left_out, reason = left_out + len(reasons), reason or next(iter(reasons.values()))
                keep = np.setdiff1d(np.arange(batch.num_rows), np.fromiter(reasons, np.int64))
                batch = batch.take(pyarrow().array(keep))
            if batch.num_rows:
                inputs = tensors(batch, matched.feeds)
                profiler.add(inputs, _run(loaded.run, inputs, version))
            progress(profiler.rows)
        version.check()
    finally:
        loaded.close()
    if not profiler.rows:
        raise InvalidInput(f"no row of {data} can be scored" + (f": {reason}" if reason else "; it has none"))
    profile = Profile(
        model=version.identity.name,
        version=version.identity.version,
        digest=version.identity.digest,
        made=now,
        data=data,
        rows=profiler.rows,
        counted=profiler.counted,
        left_out=left_out,
        columns=profiler.columns(),
    )
    return Profiled(profile, tuple(profiler.left_out), reason)


def _run(run: Callable[[Sequence[Array]], list[Array]], inputs: Sequence[Array], version: Version) -> list[Array]:
    try:
        return run(inputs)
    except OctoserveError:
        raise
    except Exception as error:
        raise InvalidInput(f"{version} does not take these rows: {type(error).__name__}: {error}") from error


def _blocks(table: Table, read: Sequence[str]) -> Iterator[tuple[RecordBatch, Mapping[int, str]]]:
    for file, ranges in enumerate(table.ranges(read, 1)):
        for place, part in enumerate(ranges):
            split = Split(place, file, part.start, part.stop, 0, part.rows, part.bytes)
            for block in table.read(split, read, BLOCK):
                yield block.batch, block.unfit


class Counted(msgspec.Struct, frozen=True):
    """A table in a profile's bins: column -> counts. notes: what one must know of it."""

    counts: dict[str, tuple[int, ...]]
    notes: tuple[str, ...]


def count_table(profile: Profile, table: Table) -> Counted:
    """The columns of the table that the profile has, by name. Of a prediction log, only answers of that version.

    Raises InvalidInput where there is no such column, or no row.
    """
    there, notes = _places(profile, table)
    if not there:
        wanted = ", ".join(column.name for column in profile.columns[:8])
        raise InvalidInput(f"the table has no column of the profile ({wanted}); it has {', '.join(table.schema.names)}")
    logged = [name for name in (_VERSION, _STATUS) if name in table.schema.names]
    made = ProfileCounts(profile)
    others = rows = 0
    for batch, _ in _blocks(table, list(dict.fromkeys([*(name for name, _ in there.values()), *logged]))):
        mine = _of_version(batch, profile.version) if len(logged) == 2 else batch
        others += batch.num_rows - mine.num_rows
        rows += mine.num_rows
        for column, (name, element) in there.items():
            _count(made, column, mine.column(name), element)
    if not rows:
        raise InvalidInput(f"no answer of version {profile.version} is among the {others:,} rows of the log")
    if others:
        notes.append(f"{others:,} rows of the log are other versions', or have no answer: they are left out.")
    counts = {column.name: tuple(made.columns[column.name].counts.tolist()) for column in there}
    return Counted(counts, tuple(notes))


def _places(profile: Profile, table: Table) -> tuple[dict[ColumnProfile, tuple[str, int]], list[str]]:
    """Column -> where in the table it is: a column, or an element of a list's (-1 for no list)."""
    if table.is_text:
        table.read_as({column.name: column.datatype for column in profile.columns if column.name in table.schema.names})
    there: dict[ColumnProfile, tuple[str, int]] = {}
    absent, odd = [], []
    for column in profile.columns:
        name, element = column.name, -1
        told = _ELEMENT.fullmatch(name)
        if name not in table.schema.names and told is not None:
            name, element = told[1], int(told[2])
        if name not in table.schema.names:
            absent.append(column.name)
            continue
        type_ = table.schema.field(name).type
        is_list = hasattr(type_, "value_field")
        datatype = datatype_of(type_.value_type if is_list else type_)
        if is_list != (element >= 0) or datatype is None or (datatype == "BYTES") != (column.kind == TEXTS):
            odd.append(f"{name} ({type_})")
            continue
        there[column] = (name, element)
    notes = [f"Not in the table: {', '.join(absent)}."] if absent else []
    notes += [f"Of another type than in the profile, and left out: {', '.join(odd)}."] if odd else []
    return there, notes


def _of_version(batch: RecordBatch, version: int) -> RecordBatch:
    compute = pyarrow("compute")
    of_it = compute.equal(batch.column(_VERSION), version)
    answered = compute.equal(batch.column(_STATUS), "ok")
    return batch.filter(compute.and_(of_it, answered))


def _count(made: ProfileCounts, column: ColumnProfile, values: ArrowArray, element: int) -> None:
    compute: Any = pyarrow("compute")
    if element >= 0:
        kept = values.filter(compute.greater(compute.list_value_length(values), element))  # null, or too short: missing
        missing = len(values) - len(kept)
        values = compute.list_element(kept, element)
    else:
        missing = 0
    counts = made.columns[column.name]
    if column.kind == TEXTS:
        missing += values.null_count
        counts.add(words(values.drop_null()), missing)
    else:
        found = numbers(values, np.dtype(np.float64))
        if column.datatype in ("FP32", "FP16"):  # as the model sees them, and as the profile's edges are
            found = found.astype(DATATYPES[column.datatype].dtype)
        counts.add(found, missing)
