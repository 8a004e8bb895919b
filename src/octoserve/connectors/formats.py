"""The file formats by name, and which one a source is of."""

from __future__ import annotations

from collections.abc import Sequence

from octoserve.connectors import discovery
from octoserve.connectors.delimited import Delimited
from octoserve.connectors.ipc import ArrowIpc
from octoserve.connectors.json_lines import JsonLines
from octoserve.connectors.parquet import Parquet
from octoserve.connectors.source import SourceFile, TableFormat
from octoserve.connectors.written import SinkFormat
from octoserve.core.errors import SettingsError

PARQUET = "parquet"
_WRITTEN: tuple[SinkFormat, ...] = (Parquet(), Delimited("csv", (".csv",), ","), JsonLines(), ArrowIpc())
SINK_FORMATS = {format_.name: format_ for format_ in _WRITTEN}
FORMATS: dict[str, TableFormat] = {**SINK_FORMATS, "tsv": Delimited("tsv", (".tsv",), "\t")}


def find(source: Sequence[str], name: str = "") -> tuple[TableFormat, list[SourceFile]]:
    """The files of a source and their format: the one named, else the one that all names end as.

    Raises SettingsError.
    """
    if name:
        format_ = FORMATS.get(name)
        if format_ is None:
            raise SettingsError(f"format: one of {', '.join(FORMATS)} wanted, {name!r} came")
        return format_, discovery.find(source, format_.endings)
    files = discovery.find(source, [ending for format_ in FORMATS.values() for ending in format_.endings])
    named: dict[str, str] = {}
    for file in files:
        of = next((f.name for f in FORMATS.values() if file.path.endswith(tuple(f.endings))), None)
        if of is None:
            raise SettingsError(f"format: cannot tell it from the name of {file.path}; say it: --format parquet, ...")
        named.setdefault(of, file.path)
    if len(named) > 1:
        shown = "; ".join(f"{path} is {of}" for of, path in named.items())
        raise SettingsError(f"source: files of one format wanted; {shown}; name one: --format parquet, ...")
    return FORMATS[next(iter(named))], files
