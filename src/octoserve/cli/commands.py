"""The tree of commands. Only the chosen one is imported, so that help and errors come at once."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
from typing import Annotated

import typer

COMMANDS = {
    "serve": ("octoserve.cli.serve", "Serve a model repository over HTTP and gRPC."),
    "sagemaker": ("octoserve.cli.sagemaker", "Serve /opt/ml/model as SageMaker's containers do."),
    "model": ("octoserve.cli.model", "A model repository: list, inspect, verify, profile, import, init."),
    "security": ("octoserve.cli.security", "Who may ask: make a key for a caller."),
    "spec": ("octoserve.cli.spec", "Check a settings file, or print its JSON Schema."),
    "rollout": ("octoserve.cli.rollout", "Roll out a version: start, watch, approve, abort, roll back."),
    "drift": ("octoserve.cli.drift", "How far live data has moved from what a version was made with: status, report."),
    "batch": ("octoserve.cli.batch", "Score a table: run, resume, status, verify, report, list."),
    "queue": ("octoserve.cli.queue", "Score messages: run, send, tail, lag, dlq."),
    "deploy": ("octoserve.cli.deploy", "Render what other systems need to run or watch it: emr, keda, monitoring."),
    "advise": ("octoserve.cli.advise", "Recommend a pattern for what you need, with reasons."),
    "bench": ("octoserve.cli.bench", "Load a running endpoint and report throughput and latency."),
}
"""Name -> module and one line of help. A module offers `app` (a group) or a function of the command's name."""


def application(arguments: list[str], spare: list[subprocess.Popen[bytes]]) -> typer.Typer:
    """The application for these arguments. `spare`: workers started ahead, for serve."""
    app = typer.Typer(
        help="One trained model, one spec, eight ways to serve it.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
        ] = False,
    ) -> None:
        pass

    chosen = next((word for word in arguments if not word.startswith("-")), "")
    for name, (module, help_) in COMMANDS.items():
        if importlib.util.find_spec(module) is None:
            continue
        if name != chosen:
            app.command(name, help=help_)(_placeholder)
            continue
        loaded = importlib.import_module(module)
        if hasattr(loaded, "app"):
            app.add_typer(loaded.app, name=name, help=help_)
        elif name == "serve":
            app.command(name, help=help_)(loaded.command(spare))
        else:
            app.command(name)(getattr(loaded, name))
    return app


def _placeholder() -> None:
    """Stands in the list of commands; the chosen one is never this."""


def _print_version(asked: bool) -> None:
    if asked:
        from octoserve import __version__

        print(f"octoserve {__version__}")
        raise typer.Exit
