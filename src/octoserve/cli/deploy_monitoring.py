"""`octoserve deploy monitoring`: Prometheus rules and a Grafana dashboard for the SLOs and the drift of a spec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octoserve.core.errors import SettingsError


def monitoring(
    out: Annotated[Path, typer.Option(help="A folder for the files.")],
    spec: Annotated[
        Path | None,
        typer.Option(envvar="OCTOSERVE_SPEC", help="Settings file with `slo` or `drift` in it."),
    ] = None,
    job: Annotated[str, typer.Option(help="What Prometheus calls what it scrapes: the label `job`.")] = "octoserve",
    target: Annotated[
        list[str] | None,
        typer.Option(help="host:port of a replica's admin port; several are fine.", show_default="this machine's"),
    ] = None,
) -> None:
    """Render Prometheus alert rules and a Grafana dashboard for SLOs and drift. Nothing is sent."""
    from octoserve import spec as settings_file
    from octoserve.deploy.monitoring import Monitoring, render

    if spec is None:
        raise SettingsError("spec: the settings file with `slo` in it is wanted, none was given; pass --spec")
    if not job.strip():
        raise SettingsError("job: a name is wanted, an empty one came; leave --job out for octoserve")
    settings = settings_file.load({"repository": "."}, environ={}, spec=spec)
    here = [settings.admin_port] if settings.slos().any() or settings.observations().any() else []
    queue = None
    if settings.queue.slo is not None:
        if not settings.queue.model:
            raise SettingsError("queue.model: wanted, since queue.slo promises something of it; none is in the spec")
        queue = settings.queue.model, settings.queue.slo.promise()
        here += [settings.queue.metrics_port] if settings.queue.metrics_port else []
    if queue is not None and not (target or settings.queue.metrics_port):
        raise SettingsError("queue.metrics_port: wanted, or --target host:port: where Prometheus finds the queue's run")
    targets = tuple(target or [f"127.0.0.1:{port}" for port in here])
    wanted = Monitoring(
        slos=settings.slos(),
        queue=queue,
        observations=settings.observations(),
        job=job,
        targets=targets,
        tls=settings.security.tls is not None,
        queue_port=settings.queue.metrics_port if queue is not None else None,
    )
    for path in render(wanted, out):
        print(path)
    print(f"next: {out / 'README.md'}")
