"""What the tables of Delta and Iceberg share: Parquet files that a version of the table names, under one schema."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from octoserve.connectors import objects
from octoserve.connectors.arrow import RecordBatch, Schema, pyarrow
from octoserve.connectors.opening import is_object
from octoserve.connectors.parquet import Parquet, open_parquet
from octoserve.connectors.source import Range, Rows, SourceFile
from octoserve.core.errors import InvalidInput, SettingsError

Names = Callable[[Schema], Mapping[str, str]]
"""A file's schema -> the table's columns that are in it, and what they are called there."""


class LakeFile(msgspec.Struct, frozen=True):
    """A data file. constants: columns that the table knows and the file need not hold, as pyarrow scalars."""

    file: SourceFile
    constants: dict[str, Any] = {}


class LakeSource:
    """A version of a table. See `source.Source`."""

    text = False

    def __init__(self, format_: str, pinned: str, schema: Schema, files: Sequence[LakeFile], names: Names) -> None:
        self.format = format_
        self.pinned = (pinned,)
        self.files = tuple(sorted((one.file for one in files), key=lambda file: file.path))
        self._constants = {one.file.path: one.constants for one in files}
        self._schema = schema
        self._names = names
        if not self.files:
            raise SettingsError(f"source: rows wanted, {pinned} has none")

    def inspect(self, file: SourceFile) -> tuple[Schema, list[Range]]:
        """See `Source.inspect`: the table's schema, whatever the file's. Raises SettingsError if the file is gone."""
        self.identify(file)
        return self._schema, Parquet().inspect(file)[1]

    def read(
        self, file: SourceFile, start: int, stop: int, columns: Sequence[str], schema: Schema, rows: int
    ) -> Iterator[Rows]:
        """See `Source.read`; what the file lacks is the table's constant, or null."""
        constants = self._constants[file.path]
        with open_parquet(file, len(columns)) as table:
            names = {name: at for name, at in self._names(table.schema_arrow).items() if name in columns}
            theirs = list(names.values())
            for batch in table.iter_batches(rows, row_groups=range(start, stop), columns=theirs, use_threads=False):
                yield Rows(self._as_planned(batch, columns, names, constants, file.path), {})

    def _as_planned(
        self,
        batch: RecordBatch,
        columns: Sequence[str],
        names: Mapping[str, str],
        constants: Mapping[str, Any],
        path: str,
    ) -> RecordBatch:
        pa = pyarrow()
        arrays = []
        for name in columns:
            type_ = self._schema.field(name).type
            if name in names:
                column = batch.column(names[name])
                try:
                    arrays.append(column if column.type == type_ else column.cast(type_))
                except pa.ArrowException as error:
                    raise InvalidInput(
                        f"{path}: column {name!r} of type {column.type} is no {type_}: {error}"
                    ) from None
            else:
                arrays.append(pa.repeat(constants.get(name, pa.scalar(None, type_)), batch.num_rows))
        return pa.RecordBatch.from_arrays(arrays, names=list(columns))

    def identify(self, file: SourceFile) -> SourceFile:
        """A table's files never change; they can be gone, or another's. Raises SettingsError."""
        try:
            if is_object(file.path):
                bucket, key = objects.split_url(file.path)
                size = objects.bucket(bucket).head(key).size
            else:
                size = os.stat(file.path).st_size
        except (OSError, objects.Missing):
            raise SettingsError(
                f"source: {file.path} is gone: the table was vacuumed, or its snapshots expired"
            ) from None
        return file if size == file.size else msgspec.structs.replace(file, size=size)

    def close(self) -> None:
        """Nothing is held."""


class Added(msgspec.Struct, frozen=True):
    """A file that a commit adds. path: absolute."""

    path: str
    rows: int
    bytes: int


class LakeTable(Protocol):
    """A table that a job appends to by one commit, which carries the run's id."""

    @property
    def name(self) -> str:
        """As people write it."""
        ...

    @property
    def root(self) -> str:
        """The folder, or the s3:// URL, that files of the table may lie below."""
        ...

    def has(self, run: str) -> bool:
        """Whether the table has a commit of that run."""
        ...

    def last(self) -> str:
        """The run of the last commit that was a job's; empty if there is none."""
        ...

    def check(self, schema: Schema) -> None:
        """Raises SettingsError if rows of it cannot be appended."""
        ...

    def append(self, files: Sequence[Added], schema: Schema, run: str) -> None:
        """The commit. Raises StoreTrouble; nothing happens if there is one of that run."""
        ...

    def live(self) -> set[str]:
        """Paths of its files now, as in `Added`."""
        ...


def path_of(location: str) -> str:
    """A path, or an s3:// URL, from what a table calls its place."""
    if location.startswith(("s3://", "s3a://", "s3n://")):
        return f"s3://{location.partition('://')[2].rstrip('/')}"
    if location.startswith("file:"):
        rest = location.removeprefix("file:")
        return ("/" + rest.lstrip("/")).rstrip("/")
    if "://" in location:
        raise SettingsError(f"a table on a disk or in s3:// wanted, it lies at {location}")
    return location.rstrip("/")


def plain_type(type_: Any) -> Any:
    """A type as tables of Delta and Iceberg have it: lists of any length, texts of one kind, values themselves."""
    pa = pyarrow()
    types = pa.types
    if types.is_dictionary(type_):
        return plain_type(type_.value_type)
    if types.is_fixed_size_list(type_) or types.is_list(type_) or types.is_large_list(type_):
        inner = type_.value_field
        return pa.list_(pa.field("element", plain_type(inner.type), nullable=inner.nullable))
    if types.is_large_string(type_):
        return pa.string()
    return type_


def refuse_types(schema: Schema, kind: str) -> None:
    """Raises SettingsError for what neither kind of table has."""
    types = pyarrow().types
    for field in schema:
        inner = plain_type(field.type)
        while types.is_list(inner):
            inner = inner.value_type
        unsigned = types.is_unsigned_integer(inner)
        if unsigned or types.is_float16(inner) or types.is_null(inner) or getattr(inner, "unit", "us") in ("ns", "s"):
            raise SettingsError(
                f"sink: column {field.name} of type {field.type} has no type in a table of {kind}; leave it out, or "
                "write Parquet"
            )


def mismatch(schema: Schema, table: Schema) -> str:
    """Why rows of `schema` cannot be appended to `table`; empty if they can."""
    ours = {field.name: plain_type(field.type) for field in schema}
    theirs = {field.name: plain_type(field.type) for field in table}
    for name, type_ in ours.items():
        if name not in theirs:
            return f"the table has no column {name}"
        if not _alike(type_, theirs[name]):
            return f"column {name} is {theirs[name]} there, and {type_} here"
    lacking = [field.name for field in table if field.name not in ours and not field.nullable]
    return f"the table's column {lacking[0]} must not be null" if lacking else ""


def _alike(one: Any, other: Any) -> bool:
    types = pyarrow().types
    if types.is_list(one) and types.is_list(other):
        return _alike(one.value_type, other.value_type)
    return bool(one == other)
