"""`octoserve deploy emr`: files for other systems, rendered and not sent. A module a system beside this one."""

from __future__ import annotations

import typer

from octoserve.cli.deploy_emr import emr

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(emr)


@app.callback()
def group() -> None:
    """Render what other systems need to run octoserve. Nothing is sent."""
