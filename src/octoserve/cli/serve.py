"""`octoserve serve`: its flags are made from the fields of the spec, so that the two cannot drift apart."""

from __future__ import annotations

import inspect
import os
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octoserve import spec
from octoserve.spec.described import description

if TYPE_CHECKING:
    from octoserve.patterns.online.supervisor.supervisor import Supervisor

_GROUPS = {
    "Models": ("repository", "model", "version_policy", "async_models", "trust", "spec"),
    "Doors": (
        "host",
        "http_port",
        "grpc_port",
        "admin_host",
        "admin_port",
        "admin_token",
        "protect_metrics",
        "doors",
        "default_model",
        "multi_model",
    ),
    "Processes": (
        "workers",
        "state_dir",
        "rollout_store",
        "keep_rollouts",
        "ports_file",
        "grace",
        "hang",
        "log_level",
        "log_format",
    ),
}
_LISTS = ("model", "trust")
_SWITCHES = ("protect_metrics", "repository_api")


def command(spare: list[subprocess.Popen[bytes]]) -> Callable[..., None]:
    """The command, with a flag a field."""

    def serve(**flags: Any) -> None:
        """Serve a model repository over HTTP and gRPC."""
        raise typer.Exit(run(flags, spare))

    names = ("spec", *(name for name in spec.ServeSettings.model_fields if name not in spec.SECTIONS))
    parameters = [*map(_parameter, names), _ASYNC]
    parameters.sort(key=lambda parameter: parameter.name != "repository")
    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return serve


def _parameter(name: str) -> inspect.Parameter:
    """One flag. Values stay text: the spec parses them, and its errors name the flag."""
    flag = "--" + name.replace("_", "-")
    group = next((title for title, names in _GROUPS.items() if name in names), "Limits")
    if name == "spec":
        text = "Settings file; every flag but this one is a field of it. (OCTOSERVE_SPEC)"
    else:
        field = spec.ServeSettings.model_fields[name]
        default = "" if field.is_required() or field.default_factory or name in _LISTS else field.default
        shown = f" [dim]\\[default: {default}][/dim]" if default not in ("", None) else ""
        text = f"{description(spec.ServeSettings, name)}{shown}"
    kind: Any = str | None
    declared: tuple[str, ...] = (flag,)
    if name in _SWITCHES:
        kind = bool | None
        declared = (f"{flag}/--no-{flag[2:]}",)
    elif name in _LISTS:
        kind = list[str] | None
    option = typer.Option(*declared, help=text, rich_help_panel=group, show_default=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


_ASYNC = inspect.Parameter(
    "async_models",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        list[str] | None,
        typer.Option(
            "--async",
            help="A model whose answers may also be fetched later (POST .../infer-async); field async.models of the "
            "spec. (OCTOSERVE_ASYNC)",
            rich_help_panel="Models",
            show_default=False,
        ),
    ],
)


def run(flags: dict[str, Any], spare: list[subprocess.Popen[bytes]]) -> int:
    """Read the settings and serve; the exit code."""
    if flags.get("repository") is None:
        from octoserve.cli import sagemaker

        if sagemaker.asked(flags, os.environ):
            flags = {**sagemaker.contract(os.environ), **{k: v for k, v in flags.items() if v is not None}}
    settings = spec.load(flags, spec=flags.pop("spec", None))

    from octoserve.app import serve
    from octoserve.telemetry.logs import set_up

    set_up(settings.log_level, settings.log_format, "supervisor")
    return serve(settings, on_ready=announce if settings.log_format == "text" else None, spare=spare)


def announce(supervisor: Supervisor) -> None:
    """Say where everything is, and what to type next."""
    from octoserve.cli.summary import print_summary

    print_summary(supervisor)
