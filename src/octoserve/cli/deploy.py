"""`octoserve deploy emr | keda | monitoring`: files for other systems, rendered and not sent. A module each."""

from __future__ import annotations

import typer

from octoserve.cli.deploy_emr import emr
from octoserve.cli.deploy_keda import keda
from octoserve.cli.deploy_monitoring import monitoring

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(emr)
app.command()(keda)
app.command()(monitoring)


@app.callback()
def group() -> None:
    """Render what other systems need to run octoserve, or to watch it. Nothing is sent."""
