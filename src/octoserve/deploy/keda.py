"""A KEDA ScaledObject that starts and stops workers of a queue by its lag: rendered, never sent.

Fields of the triggers are those of KEDA's documentation, "Apache Kafka" and "NATS JetStream".
"""

from __future__ import annotations

from typing import Any

import msgspec

from octoserve.core.errors import SettingsError


class Kafka(msgspec.Struct, frozen=True, kw_only=True):
    """Where a topic's lag is told. servers: host:port, several by commas."""

    servers: str
    topic: str
    group: str


class JetStream(msgspec.Struct, frozen=True, kw_only=True):
    """Where a stream's lag is told. monitoring: host:port of the server's HTTP monitoring."""

    monitoring: str
    stream: str
    durable: str


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """deployment: whose pods run `octoserve queue run`; lag: messages that wait, a pod; authentication: the name of a
    TriggerAuthentication, where the broker wants to know who asks."""

    deployment: str
    trigger: Kafka | JetStream
    lag: int
    least: int = 1
    most: int = 10
    authentication: str = ""


def scaled_object(wanted: Scaling) -> dict[str, Any]:
    """The manifest. Raises SettingsError."""
    if not wanted.deployment or len(wanted.deployment) > 63:
        raise SettingsError("deployment: the name of the Deployment that runs `octoserve queue run` is wanted")
    if not 0 <= wanted.least <= wanted.most or wanted.most < 1:
        raise SettingsError(f"min: from 0 to max ({wanted.most}) is wanted, {wanted.least} came")
    trigger: dict[str, Any] = _trigger(wanted.trigger, wanted.lag)
    if wanted.authentication:
        trigger["authenticationRef"] = {"name": wanted.authentication}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": wanted.deployment},
        "spec": {
            "scaleTargetRef": {"name": wanted.deployment},
            "minReplicaCount": wanted.least,
            "maxReplicaCount": wanted.most,
            "triggers": [trigger],
        },
    }


def _trigger(of: Kafka | JetStream, lag: int) -> dict[str, Any]:
    """Values are text, as KEDA has them."""
    if isinstance(of, Kafka):
        about = {"bootstrapServers": of.servers, "consumerGroup": of.group, "topic": of.topic}
        return {"type": "kafka", "metadata": {**about, "lagThreshold": str(lag), "offsetResetPolicy": "earliest"}}
    about = {"natsServerMonitoringEndpoint": of.monitoring, "account": "$G", "stream": of.stream}
    return {"type": "nats-jetstream", "metadata": {**about, "consumer": of.durable, "lagThreshold": str(lag)}}
