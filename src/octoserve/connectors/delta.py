"""Tables of Delta Lake: `delta:PATH`, `delta:s3://bucket/table?version=3`, or a folder with a `_delta_log`."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from octoserve.connectors import aws, objects
from octoserve.connectors.arrow import Schema, pyarrow
from octoserve.connectors.lake import Added, LakeFile, LakeSource, mismatch, path_of, plain_type, refuse_types
from octoserve.connectors.objects import StoreTrouble
from octoserve.connectors.opening import is_object
from octoserve.connectors.source import SourceFile
from octoserve.core.errors import SettingsError

PREFIX = "delta:"
RUN = "octoserve.run"
"""In a commit's info: whose it is. Its transaction's application is `octoserve-RUN`."""


def deltalake(part: str = "") -> Any:
    """The library, or a part of it. Raises SettingsError."""
    try:
        return importlib.import_module(f"deltalake.{part}" if part else "deltalake")
    except ImportError:
        raise SettingsError("tables of Delta need deltalake: pip install 'octoserve[delta]'") from None


def is_delta(where: str) -> bool:
    """Whether it was said to be one, or is one by its looks."""
    if where.startswith(PREFIX):
        return True
    if is_object(where) and not any(letter in where for letter in "*?["):
        bucket, key = objects.split_url(where)
        return bool(key) and next(objects.bucket(bucket).list(f"{key.rstrip('/')}/_delta_log"), None) is not None
    return os.path.isdir(os.path.join(where, "_delta_log"))


def _split(where: str) -> tuple[str, str]:
    """Absolute root, and the version that was asked for."""
    path, _, asked = where.removeprefix(PREFIX).partition("?")
    name, _, version = asked.partition("=")
    if asked and (name != "version" or not version.isdigit()):
        raise SettingsError(f"delta:PATH or delta:PATH?version=NUMBER wanted, {where!r} came")
    root = path_of(path)
    return (root if is_object(root) else os.path.abspath(root)), version


def _options(root: str) -> dict[str, str] | None:
    if not is_object(root):
        return None
    said = aws.found()
    named = {
        "AWS_ACCESS_KEY_ID": said.key, "AWS_SECRET_ACCESS_KEY": said.secret, "AWS_SESSION_TOKEN": said.token,
        "AWS_REGION": said.region, "AWS_ENDPOINT_URL": said.endpoint,
        "AWS_ALLOW_HTTP": "true" if said.endpoint.startswith("http://") else "", "aws_conditional_put": "etag",
    }  # fmt: skip
    return {name: value for name, value in named.items() if value}


def _opened(root: str, version: str) -> Any:
    lib = deltalake()
    try:
        return lib.DeltaTable(root, version=int(version) if version else None, storage_options=_options(root))
    except lib.exceptions.TableNotFoundError:
        raise SettingsError(f"a table of Delta wanted, {root} is none") from None
    except lib.exceptions.DeltaError as error:
        raise SettingsError(f"{root}: {_line(error)}") from None
    except OSError as error:
        raise StoreTrouble(f"{root}: {_line(error)}") from None


def delta_source(where: str) -> LakeSource:
    """One version, the newest if none is named. Raises SettingsError."""
    pa = pyarrow()
    root, version = _split(where)
    table = _opened(root, version)
    _refuse_strange(table, root)
    schema = pa.schema(table.schema().to_arrow())
    actions = pa.RecordBatchReader.from_stream(table.get_add_actions(flatten=False)).read_all().to_pylist()
    files = [_file(root, action, schema) for action in actions]
    pinned = f"{PREFIX}{root}?version={table.version()}"
    return LakeSource("delta", pinned, schema, files, lambda own: {n: n for n in own.names if n in schema.names})


def _file(root: str, action: dict[str, Any], schema: Schema) -> LakeFile:
    pa = pyarrow()
    name = unquote(action["path"])
    path = path_of(name) if "://" in name else f"{root}/{name}"
    values = action.get("partition") or action.get("partition_values") or {}
    constants = {
        column: (pa.scalar(value) if isinstance(value, str) else pa.scalar(value, schema.field(column).type)).cast(
            schema.field(column).type
        )
        for column, value in values.items()
    }
    return LakeFile(SourceFile(path, int(action["size_bytes"]), 0), constants)


def _refuse_strange(table: Any, root: str) -> None:
    pa = pyarrow()
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        raise SettingsError(f"{root} maps its columns' names, which cannot be read here; read it with Spark")
    if pa.RecordBatchReader.from_stream(table.deletion_vectors()).read_all().num_rows:
        raise SettingsError(
            f"{root} has deletion vectors: its files hold rows that are deleted; rewrite them first, with "
            "REORG TABLE ... APPLY (PURGE)"
        )


class DeltaSink:
    """See `lake.LakeTable`. A table that is not there is made by the commit."""

    def __init__(self, where: str) -> None:
        self.root, version = _split(where)
        if version:
            raise SettingsError(f"sink: a table is appended to as it is; leave the version out of {where!r}")
        self.name = f"{PREFIX}{self.root}"
        deltalake()

    def _table(self) -> Any:
        # Not the library's own question, which holds the interpreter's lock until a store has answered.
        return _opened(self.root, "") if is_delta(self.root) else None

    def has(self, run: str) -> bool:
        """See `LakeTable.has`: its application's transaction."""
        table = self._table()
        return table is not None and table.transaction_version(f"octoserve-{run}") is not None

    def last(self) -> str:
        """See `LakeTable.last`."""
        table = self._table()
        history = table.history() if table is not None else []
        return str(next((commit[RUN] for commit in history if RUN in commit), ""))

    def check(self, schema: Schema) -> None:
        """See `LakeTable.check`."""
        refuse_types(schema, "Delta")
        table = self._table()
        if table is None:
            return
        _refuse_strange(table, self.root)
        strict = [name for name in table.metadata().configuration if name.startswith("delta.constraints.")]
        if table.metadata().partition_columns or strict:
            what = "partitions" if table.metadata().partition_columns else "constraints"
            raise SettingsError(f"sink: {self.name} has {what}, to which a job cannot append; name another table")
        wrong = mismatch(schema, pyarrow().schema(table.schema().to_arrow()))
        if wrong:
            raise SettingsError(f"sink: {self.name} takes other rows: {wrong}")

    def append(self, files: Sequence[Added], schema: Schema, run: str) -> None:
        """See `LakeTable.append`: two commits of one transaction conflict, so that one of them fails."""
        lib, parts = deltalake(), deltalake("transaction")
        adds = [
            parts.AddAction(
                file.path.removeprefix(f"{self.root}/"), file.bytes, {}, 0, True, json.dumps({"numRecords": file.rows})
            )
            for file in files
        ]
        info = lib.CommitProperties(
            custom_metadata={RUN: run}, app_transactions=[lib.Transaction(f"octoserve-{run}", 1)]
        )
        try:
            table = self._table()
            if table is None:
                parts.create_table_with_add_actions(
                    self.root, lib.Schema.from_arrow(_plain(schema)), adds, "error", [],
                    storage_options=_options(self.root), commit_properties=info,
                )  # fmt: skip
            else:
                table.create_write_transaction(adds, "append", table.schema(), commit_properties=info)
        except (lib.exceptions.DeltaError, OSError) as error:
            if self.has(run):
                return
            raise StoreTrouble(f"{self.name}: {_line(error)}; nothing was committed, resume it") from None

    def live(self) -> set[str]:
        """See `LakeTable.live`."""
        table = self._table()
        return {path_of(unquote(uri)) for uri in table.file_uris()} if table is not None else set()


def _plain(schema: Schema) -> Schema:
    pa = pyarrow()
    return pa.schema([pa.field(field.name, plain_type(field.type), nullable=field.nullable) for field in schema])


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
