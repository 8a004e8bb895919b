"""`octoserve model profile`: how a version's features and outputs are spread over the data it was made with."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from octoserve.core.errors import SettingsError
from octoserve.core.profile import LEVELS, NUMBERS, ColumnProfile

_FEW_ROWS = 1000


def profile(
    repository: Annotated[
        str,
        typer.Option(
            "--repository", envvar="OCTOSERVE_REPOSITORY", help="Folder of <model>/<version>/, or where else it is."
        ),
    ],
    model: Annotated[str, typer.Option("--model", help="The model's name.")],
    data: Annotated[
        list[str],
        typer.Option("--data", help="Files, folders, patterns, s3://, tables, as batch run takes them."),
    ],
    version: Annotated[int | None, typer.Option(min=1, help="Without it: the highest.")] = None,
    format_: Annotated[str, typer.Option("--format", help="Of the files, where their names do not say.")] = "",
    columns: Annotated[
        str, typer.Option(help="a,b,c: columns of the model's only input, where its model.yaml names none.")
    ] = "",
    exclude: Annotated[
        str, typer.Option(help="a,b: features and outputs that the profile must not have; it holds values.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile.")] = False,
) -> None:
    """Score a table and keep how it is spread, beside the version: what live rows are compared with."""
    import msgspec

    from octoserve.app import runtimes
    from octoserve.connectors.sources import find
    from octoserve.origins.opening import root_here
    from octoserve.patterns.batch.model import Version
    from octoserve.patterns.batch.profile import profile_of
    from octoserve.patterns.batch.table import Table
    from octoserve.repository import profiles

    unwanted = _names(exclude)
    chosen = Version(repository, model, version, runtimes(), {})
    folder = root_here(repository) / model / str(chosen.identity.version)
    made = profile_of(
        chosen,
        Table(find(data, format_)),
        ", ".join(data),
        now=time.time(),
        columns=_names(columns),
        wants=lambda name: name not in unwanted,
    )
    found = made.profile
    path = profiles.write(folder, found)
    if as_json:
        print(json.dumps(msgspec.to_builtins(found)))
        return
    print(f"{found.model} version {found.version}: {found.rows:,} rows of {found.data}")
    for column in found.columns:
        print(f"  {column.side:<6}  {column.name}  {_spread(column)}")
    if made.no_profile:
        print(f"  without a profile: {', '.join(made.no_profile)}")
    if found.left_out:
        print(f"  {found.left_out:,} rows could not be scored and are left out: {made.reason}")
    if found.rows < _FEW_ROWS:
        print(f"  few rows: drift is hard to tell from chance below {_FEW_ROWS:,}")
    print(f"written: {path}")


def _spread(column: ColumnProfile) -> str:
    total = max(sum(column.counts), 1)
    missing = f", {column.counts[-1] / total:.1%} missing" if column.counts[-1] else ""
    if column.kind == NUMBERS:
        return (
            f"{column.low:.5g} to {column.high:.5g}, median about {column.edges[len(column.edges) // 2]:.5g}{missing}"
        )
    shown = ", ".join(
        f"{label} {count / total:.1%}"
        for label, count in zip(column.labels()[:-1], column.counts, strict=False)
        if count
    )
    kind = "values" if column.kind == LEVELS else "texts"
    return f"{kind}: {shown if len(shown) < 100 else shown[:97] + '...'}{missing}"


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if len(set(names)) != len(names):
        raise SettingsError(f"each name once, please: {text}")
    return names
