"""The file formats by name, and which one a source is of."""

from __future__ import annotations

from collections.abc import Sequence

from octoserve.connectors import discovery
from octoserve.connectors.delimited import Delimited, JsonLines
from octoserve.connectors.ipc import ArrowIpc
from octoserve.connectors.parquet import Parquet
from octoserve.connectors.source import SourceFile, TableFormat
from octoserve.core.errors import SettingsError

_ALL: tuple[TableFormat, ...] = (
    Parquet(),
    Delimited("csv", (".csv",), ","),
    Delimited("tsv", (".tsv",), "\t"),
    JsonLines(),
    ArrowIpc(),
)
FORMATS = {format_.name: format_ for format_ in _ALL}


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
