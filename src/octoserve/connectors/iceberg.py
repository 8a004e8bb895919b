"""Tables of Apache Iceberg: `iceberg:CATALOG/namespace.table`, the catalog as pyiceberg's own settings name it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from octoserve.connectors.arrow import Schema, pyarrow
from octoserve.connectors.lake import Added, LakeFile, LakeSource, mismatch, path_of, refuse_types
from octoserve.connectors.objects import StoreTrouble
from octoserve.connectors.source import SourceFile
from octoserve.core.errors import SettingsError

PREFIX = "iceberg:"
RUN = "octoserve.run"
"""In a snapshot's summary: whose it is."""
_FIELD_ID = b"PARQUET:field_id"


def pyiceberg(part: str) -> Any:
    """A part of the library. Raises SettingsError."""
    try:
        return importlib.import_module(f"pyiceberg.{part}")
    except ImportError:
        raise SettingsError("tables of Iceberg need pyiceberg: pip install 'octoserve[iceberg]'") from None


def _opened(where: str) -> tuple[Any, str, str]:
    """The table, its name without a snapshot, and the snapshot that was asked for."""
    name, _, asked = where.removeprefix(PREFIX).partition("?")
    key, _, snapshot = asked.partition("=")
    catalog, slash, table = name.partition("/")
    if not catalog or not slash or "." not in table or (asked and (key != "snapshot" or not snapshot.isdigit())):
        raise SettingsError(
            f"iceberg:CATALOG/namespace.table or iceberg:CATALOG/namespace.table?snapshot=ID wanted, {where!r} came"
        )
    load = pyiceberg("catalog").load_catalog
    errors = pyiceberg("exceptions")
    try:
        return load(catalog).load_table(table), f"{PREFIX}{name}", snapshot
    except (errors.NoSuchTableError, errors.NoSuchNamespaceError):
        raise SettingsError(f"catalog {catalog} has no table {table}; create it first") from None
    except Exception as error:  # each kind of catalog has errors of its own
        raise SettingsError(
            f"{PREFIX}{name}: the catalog cannot be read ({_line(error)}); it is set up in ~/.pyiceberg.yaml, or by "
            f"PYICEBERG_CATALOG__{catalog.upper()}__URI"
        ) from None


def iceberg_source(where: str) -> LakeSource:
    """One snapshot, the current one if none is named. Raises SettingsError."""
    pa = pyarrow()
    table, name, asked = _opened(where)
    snapshot = table.snapshot_by_id(int(asked)) if asked else table.current_snapshot()
    if snapshot is None:
        raise SettingsError(f"source: {name} has no snapshot{' ' + asked if asked else ': it is empty'}")
    scan = table.scan(snapshot_id=snapshot.snapshot_id)
    planned = pyiceberg("io.pyarrow").schema_to_pyarrow(scan.projection())
    schema = pa.schema([pa.field(f.name, _small(f.type), nullable=f.nullable) for f in planned])
    ids = {field.field_id: field.name for field in scan.projection().fields}
    mapping = table.name_mapping()
    known = {alias: ids[field.field_id] for field in (mapping or ()) if field.field_id in ids for alias in field.names}
    files = list(_files(table, scan, schema, ids))
    return LakeSource(
        "iceberg", f"{name}?snapshot={snapshot.snapshot_id}", schema, files, lambda own: _names(own, ids, known)
    )


def _files(table: Any, scan: Any, schema: Schema, ids: Mapping[int, str]) -> Iterator[LakeFile]:
    pa = pyarrow()
    for task in scan.plan_files():
        if task.delete_files:
            raise SettingsError(
                f"{table.name()} has delete files: its data files hold rows that are deleted; rewrite them first"
            )
        if str(task.file.file_format).rpartition(".")[2].upper() != "PARQUET":
            raise SettingsError(
                f"{table.name()}: Parquet files wanted, {task.file.file_path} is {task.file.file_format}"
            )
        constants = {}
        for place, part in enumerate(table.specs()[task.file.spec_id].fields):
            if str(part.transform) == "identity" and part.source_id in ids:
                column = ids[part.source_id]
                value = task.file.partition[place]
                type_ = schema.field(column).type
                days = isinstance(value, int) and pa.types.is_date32(type_)
                constants[column] = pa.scalar(value, pa.int32()).cast(type_) if days else pa.scalar(value, type_)
        yield LakeFile(SourceFile(path_of(task.file.file_path), int(task.file.file_size_in_bytes), 0), constants)


def _names(own: Schema, ids: Mapping[int, str], known: Mapping[str, str]) -> dict[str, str]:
    """By field id, as Iceberg has it; by the table's name mapping in files that have none."""
    marked = {int((f.metadata or {})[_FIELD_ID]): f.name for f in own if _FIELD_ID in (f.metadata or {})}
    if marked:
        return {ids[number]: name for number, name in marked.items() if number in ids}
    return {(known or {name: name for name in ids.values()})[n]: n for n in own.names if n in (known or ids.values())}


def _small(type_: Any) -> Any:
    pa = pyarrow()
    if pa.types.is_large_list(type_) or pa.types.is_list(type_):
        return pa.list_(pa.field("element", _small(type_.value_type), nullable=type_.value_field.nullable))
    if pa.types.is_large_string(type_):
        return pa.string()
    return type_


class IcebergSink:
    """See `lake.LakeTable`. The table must be there."""

    def __init__(self, where: str) -> None:
        table, self.name, snapshot = _opened(where)
        if snapshot:
            raise SettingsError(f"sink: a table is appended to as it is; leave the snapshot out of {where!r}")
        self.root = path_of(table.location())

    def _table(self) -> Any:
        return _opened(self.name)[0]

    def has(self, run: str) -> bool:
        """See `LakeTable.has`."""
        return any(found == run for found in self._runs())

    def last(self) -> str:
        """See `LakeTable.last`."""
        return next(iter(self._runs()), "")

    def _runs(self) -> Iterator[str]:
        snapshots = sorted(self._table().snapshots(), key=lambda snapshot: -snapshot.timestamp_ms)
        for snapshot in snapshots:
            run = snapshot.summary[RUN] if snapshot.summary is not None else None
            if run:
                yield str(run)

    def check(self, schema: Schema) -> None:
        """See `LakeTable.check`."""
        refuse_types(schema, "Iceberg")
        table = self._table()
        if table.spec().fields:
            raise SettingsError(f"sink: {self.name} has partitions, to which a job cannot append; name another table")
        wrong = mismatch(schema, pyiceberg("io.pyarrow").schema_to_pyarrow(table.schema()))
        if wrong:
            raise SettingsError(f"sink: {self.name} takes other rows: {wrong}")

    def append(self, files: Sequence[Added], schema: Schema, run: str) -> None:
        """See `LakeTable.append`. Of two that commit one run at once, the later fails: its files are in the table."""
        try:
            paths = [file.path if "://" in file.path else f"file://{file.path}" for file in files]
            self._table().add_files(paths, snapshot_properties={RUN: run})
        except Exception as error:  # each kind of catalog has errors of its own
            if self.has(run):
                return
            raise StoreTrouble(f"{self.name}: {_line(error)}; nothing was committed, resume it") from None

    def live(self) -> set[str]:
        """See `LakeTable.live`."""
        return {path_of(task.file.file_path) for task in self._table().scan().plan_files()}


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
