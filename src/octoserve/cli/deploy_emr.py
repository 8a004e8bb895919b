"""`octoserve deploy emr`: a batch job for Amazon EMR, Serverless and on EC2."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octoserve.core.errors import SettingsError

if TYPE_CHECKING:
    from octoserve.spec import BatchSection

Text = str | None
_EXTRAS = ("sklearn", "xgboost", "lightgbm")
"""Runtimes that have an extra of their name."""
_HERE = {"engine", "model", "version", "workers", "state_dir", "metrics_port", "spark_master", "spark_remote"}
"""Fields that say where a job runs, or that are said of the model's archive."""
_PINNED = ("pyarrow", "onnxruntime", "numpy", "msgspec", "obstore", "pandas")
"""Of which the result's bytes, the way to S3, or `mapInArrow` depend."""


def emr(
    out: Annotated[Path, typer.Option(help="A folder for the files.")],
    assets: Annotated[str, typer.Option(help="s3://bucket/prefix that they will be uploaded to.")],
    release: Annotated[str, typer.Option(help="The EMR release label, of one with Spark 3.5 or later.")],
    role: Annotated[str, typer.Option(help="ARN of the execution role.")],
    repository: Annotated[Text, typer.Option(envvar="OCTOSERVE_REPOSITORY", help="<model>/<version>/.")] = None,
    model: Annotated[Text, typer.Option(help="Which model scores.")] = None,
    version: Annotated[Text, typer.Option(help="Which version of it.", show_default="the highest")] = None,
    source: Annotated[list[str] | None, typer.Option(help="s3://bucket/data/, or a pattern.")] = None,
    sink: Annotated[Text, typer.Option(help="s3://bucket/new-or-empty.")] = None,
    keys: Annotated[Text, typer.Option(help="Columns written beside the predictions: id,day")] = None,
    columns: Annotated[Text, typer.Option(help="The columns of the model's only input, in order.")] = None,
    spec: Annotated[Text, typer.Option(envvar="OCTOSERVE_SPEC", help="Settings file with a section `batch`.")] = None,
    name: Annotated[Text, typer.Option(help="Of the job.", show_default="octoserve-MODEL")] = None,
    application: Annotated[str, typer.Option(help="Id of an EMR Serverless application that is there.")] = "",
    executors: Annotated[int, typer.Option(min=1, help="Executors at most; core nodes on EC2.")] = 10,
    cores: Annotated[int, typer.Option(min=1, max=16, help="Of an executor; as many tasks at once.")] = 4,
    instance_type: Annotated[str, typer.Option(help="EC2: of all nodes.")] = "m6i.xlarge",
    subnet: Annotated[str, typer.Option(help="EC2: the subnet's id.")] = "",
) -> None:
    """Render a batch job for Amazon EMR: job definitions, the model's archive, how to package Python.

    Nothing is sent.
    """
    from octoserve.deploy.emr import EmrJob, check, render
    from octoserve.origins.opening import root_here

    flags = {"model": model, "version": version, "source": source, "sink": sink, "keys": keys, "columns": columns}
    section, folder = _section(flags, repository, spec)
    models, size, pins = _models(section, folder)
    job = EmrJob(
        name=name or f"octoserve-{section.model}",
        arguments=_arguments(section, models),
        assets=assets,
        release=release,
        role=role,
        application=application,
        executors=executors,
        cores=cores,
        memory_mb=-(-(2 * size + 4 * section.bytes_in_flight) // (1 << 20)),
        instance_type=instance_type,
        subnet=subnet,
    )
    check(job, section.source, str(section.sink))
    for path in render(job, root_here(folder), models, pins, out):
        print(path)
    print(f"next: {out / 'README.md'}")


def _section(flags: dict[str, Any], repository: str | None, spec: str | None) -> tuple[BatchSection, str]:
    from octoserve.cli.batch_settings import asked

    wanted = asked(flags, repository, spec)
    wish = wanted.wish()  # says what is missing
    return wanted.section, wish.repository


def _models(section: BatchSection, repository: str) -> tuple[list[str], int, dict[str, str]]:
    """The version's folder in the repository, its bytes, and the packages that it runs on."""
    from octoserve.app import batch_tools
    from octoserve.origins.opening import root_here
    from octoserve.patterns.batch.model import Version

    if not section.model:
        raise SettingsError("model: wanted, none was given; pass --model, or write it under batch: in the spec")
    if section.shadow is not None or isinstance(section.version, str):
        raise SettingsError("version: a number wanted, and no shadow; there is no service to ask for its route there")
    tools = batch_tools()
    found = Version(repository, section.model, section.version, tools.runtimes, tools.libraries)
    root = root_here(repository)
    folder = f"{found.identity.name}/{found.identity.version}"
    size = sum(path.stat().st_size for path in (root / folder).rglob("*") if path.is_file())
    return [folder], size, _pins(found.runtime, found.library)


def _arguments(section: BatchSection, models: list[str]) -> tuple[str, ...]:
    """The command that is run there: what was set here, with the model that was packaged here."""
    name, _, version = models[0].rpartition("/")
    words = ["batch", "run", "--engine", "spark", "--repository", "models", "--model", name, "--version", version]
    for field, value in section.model_dump(mode="json", include=section.model_fields_set - _HERE).items():
        flag = f"--{field.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif field == "source":
            words += [word for one in value for word in (flag, one)]
        elif value not in (None, False, []):
            words += [flag, ",".join(value) if isinstance(value, list) else str(value)]
    return tuple(words)


def _pins(runtime: str, library: str) -> dict[str, str]:
    from octoserve import __version__

    extra = f",{runtime}" if runtime in _EXTRAS else ""
    pins = {f"octoserve[batch,s3{extra}]": __version__}
    for name in (*_PINNED, library.partition(" ")[0]):
        try:
            pins[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return pins
