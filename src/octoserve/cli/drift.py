"""`octoserve drift`: live rows, or those of a table, against the reference profile of their version."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octoserve.cli.admin_client import DEFAULT_URL, URL_VARIABLE, AdminClient, read_token
from octoserve.cli.pages import show_page
from octoserve.core.errors import NotFound, SettingsError

if TYPE_CHECKING:
    from octoserve.control.drift.report import DriftReport

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="The admin token is read from OCTOSERVE_ADMIN_TOKEN, or from --token-file.",
)

Url = Annotated[str, typer.Option("--admin-url", envvar=URL_VARIABLE, help="Where the admin API is.")]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", help="File with the admin token; without it OCTOSERVE_ADMIN_TOKEN.", metavar="FILE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Version = Annotated[int | None, typer.Option("--version", min=1, help="Without it: the highest.", metavar="V")]
_MINIMUM = 1000


@app.callback()
def group() -> None:
    """Say how far live features and outputs have moved from what a version was made with."""


@app.command()
def status(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="Without it: every model.")] = "",
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """A line for each version that a running service watches. Exit code 1 if something has moved."""
    from rich.console import Console

    from octoserve.control.drift.text import as_status

    found = _live(AdminClient(url, read_token(token_file)), model)
    if as_json:
        print(json.dumps([_plain(report) for report in found]))
    else:
        Console().print(as_status(found))
    if any(report.moved() for report in found):
        raise typer.Exit(1)


@app.command()
def report(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="Of a running service.")] = "",
    version: Version = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="No service is asked: compare these files, a prediction log, a batch's result."),
    ] = None,
    repository: Annotated[
        str | None,
        typer.Option("--repository", envvar="OCTOSERVE_REPOSITORY", help="With --data: where the profile is."),
    ] = None,
    model_option: Annotated[str, typer.Option("--model", help="The same as MODEL.", metavar="MODEL")] = "",
    format_: Annotated[str, typer.Option("--format", help="Of the files, where their names do not say.")] = "",
    minimum: Annotated[int, typer.Option(min=1, help="With --data: rows below which there is no number.")] = _MINIMUM,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page that a browser shows, - for standard output.")
    ] = None,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Json = False,
) -> None:
    """Say what has moved, from where to where, bin by bin."""
    if html is not None and as_json:
        raise SettingsError("--html and --json: one of them, please")
    name = model or model_option
    if not name:
        raise SettingsError("MODEL: a model's name is wanted, none was given")
    if data:
        if repository is None:
            raise SettingsError("--repository: the folder with the version's profile is wanted; none was given")
        found = _of_table(repository, name, version, data, format_, minimum)
    else:
        reports = _live(AdminClient(url, read_token(token_file)), name)
        of_version = [one for one in reports if version is None or one.version == version]
        if not of_version:
            there = ", ".join(str(one.version) for one in reports)
            raise NotFound(f"version {version} of {name} is not watched; there is {there}")
        found = of_version[-1]
    _show(found, html, as_json)


def _show(found: DriftReport, html: Path | None, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_plain(found)))
    elif html is not None:
        from octoserve.control.drift.html import as_html

        show_page(html, as_html(found))
    else:
        from rich.console import Console

        from octoserve.control.drift.text import as_text

        Console().print(as_text(found))


def _live(client: AdminClient, model: str) -> list[DriftReport]:
    """What a service watches, by model and version. Raises NotFound where that is nothing."""
    import msgspec

    from octoserve.control.drift.report import from_json

    try:
        models = client.drift()["models"]
        found = {name: {int(v): from_json(r) for v, r in versions.items()} for name, versions in models.items()}
    except (KeyError, ValueError, AttributeError, msgspec.ValidationError):
        raise NotFound(f"{client.url} answers, but not as an octoserve of this version does") from None
    if (model and model not in found) or not found:
        there = f"; it watches {', '.join(sorted(found))}" if found else ""
        raise NotFound(
            f"{client.url} watches no drift{f' of {model}' if model else ''}{there}. It needs `drift: true` in its "
            "octoserve.yaml, a profile (octoserve model profile), and a request"
        )
    return [found[name][v] for name in sorted(found) if name == model or not model for v in sorted(found[name])]


def _of_table(
    repository: str, model: str, version: int | None, data: list[str], format_: str, minimum: int
) -> DriftReport:
    from octoserve.connectors.sources import find
    from octoserve.control.drift.report import build
    from octoserve.origins.opening import root_here
    from octoserve.patterns.batch.profile import count_table
    from octoserve.patterns.batch.table import Table
    from octoserve.repository import profiles
    from octoserve.repository.layout import version_number

    there = root_here(repository) / model
    numbers = sorted(n for path in there.glob("*") if (n := version_number(path.name)) is not None)
    if not numbers or (version is not None and version not in numbers):
        raise NotFound(f"no {model}{f' version {version}' if version else ''} in {repository}")
    number = version or numbers[-1]
    profile = profiles.read(there / str(number))
    if profile is None:
        raise NotFound(
            f"{model} version {number} has no profile; make one: octoserve model profile --repository {repository} "
            f"--model {model} --version {number} --data FILES"
        )
    counted = count_table(profile, Table(find(data, format_)))
    return build(profile, counted.counts, now=time.time(), over=", ".join(data), minimum=minimum, notes=counted.notes)


def _plain(found: DriftReport) -> Any:
    from octoserve.control.drift.report import as_json

    return as_json(found)
