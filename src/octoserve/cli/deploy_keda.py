"""`octoserve deploy keda`: a ScaledObject for the workers of a spec's queue, on standard output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octoserve.core.errors import SettingsError

if TYPE_CHECKING:
    from octoserve.deploy.keda import JetStream, Kafka

MONITORING = 8222
"""Where NATS servers have their HTTP monitoring unless they say otherwise."""


def keda(
    deployment: Annotated[str, typer.Option(help="The Deployment whose pods run `octoserve queue run`.")],
    spec: Annotated[
        Path | None, typer.Option(envvar="OCTOSERVE_SPEC", help="Settings file with `queue` in it.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="kafka:// or nats://.", show_default="queue.source")] = None,
    lag: Annotated[int, typer.Option(min=1, help="Messages that may wait for each pod.")] = 1000,
    least: Annotated[int, typer.Option("--min", min=0, help="Pods at least.")] = 1,
    most: Annotated[int, typer.Option("--max", min=1, help="Pods at most.")] = 10,
    authentication: Annotated[
        str, typer.Option(help="A TriggerAuthentication, where the broker wants user and password.")
    ] = "",
    monitoring: Annotated[
        str | None, typer.Option(help="host:port of NATS' monitoring.", show_default="the source's host, 8222")
    ] = None,
) -> None:
    """Render a KEDA ScaledObject that scales a queue's workers by its lag. Nothing is sent."""
    import yaml

    from octoserve import spec as settings_file
    from octoserve.deploy.keda import Scaling, scaled_object

    if source is None and spec is not None:
        source = settings_file.load({"repository": "."}, environ={}, spec=spec).queue.source
    if not source:
        raise SettingsError("source: wanted, none was given; pass --source, or --spec with queue.source in it")
    wanted = Scaling(
        deployment=deployment, trigger=_trigger(source, monitoring), lag=lag, least=least, most=most,
        authentication=authentication,
    )  # fmt: skip
    print(yaml.safe_dump(scaled_object(wanted), sort_keys=False), end="")


def _trigger(source: str, monitoring: str | None) -> Kafka | JetStream:
    from octoserve.connectors.queues.address import parse
    from octoserve.connectors.queues.kafka import PARAMETERS
    from octoserve.connectors.queues.kafka_wire import where_of as kafka_where
    from octoserve.connectors.queues.nats_wire import where_of as nats_where
    from octoserve.deploy.keda import JetStream, Kafka

    address = parse(source, "source")
    if address.scheme == "kafka":
        topic = kafka_where(address, PARAMETERS)
        return Kafka(servers=str(topic.settings["bootstrap.servers"]), topic=topic.topic, group=topic.group)
    if address.scheme == "nats":
        stream = nats_where(address, Path())
        host = address.host.rpartition(":")[0] or address.host
        return JetStream(monitoring=monitoring or f"{host}:{MONITORING}", stream=stream.stream, durable=stream.durable)
    raise SettingsError(
        f"source: a broker that pods can reach is wanted, kafka:// or nats://; {address.scheme} is of one machine"
    )
