"""`octoserve spec check | schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from octoserve import spec

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def check(file: Annotated[Path, typer.Argument(help="The settings file, octoserve.yaml by custom.")]) -> None:
    """Say whether a settings file can be used, and what is wrong with it if not."""
    settings = spec.load({}, environ={}, spec=file)
    given = settings.model_dump(mode="json", exclude_unset=True, exclude={"admin_token"})
    print(f"{file} is good: {', '.join(sorted(given))} set, the rest by default")


@app.command()
def schema() -> None:
    """Print the JSON Schema of octoserve.yaml, for editors and CI."""
    print(json.dumps(spec.schema(), indent=2))
