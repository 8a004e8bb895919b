"""`octoserve deploy keda`: what KEDA's own schema takes, with the queue's names in it and none of its secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from octoserve.cli.main import run
from octoserve.core.errors import SettingsError

CRDS = Path(__file__).resolve().parent.parent / "data" / "crds"
FIELDS = {
    "kafka": {"bootstrapServers", "consumerGroup", "topic", "lagThreshold", "offsetResetPolicy"},
    "nats-jetstream": {"natsServerMonitoringEndpoint", "account", "stream", "consumer", "lagThreshold"},
}
"""Of the triggers' metadata, which the schema leaves open: from KEDA v2.21.0's schema of its scalers."""


def rendered(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        run(["deploy", "keda", "--deployment", "scorer", *arguments])
    assert ended.value.code == 0
    manifest = yaml.safe_load(capsys.readouterr().out)
    jsonschema.validate(manifest, closed(json.loads((CRDS / "scaledobject.json").read_text())))
    for trigger in manifest["spec"]["triggers"]:
        assert trigger["metadata"].keys() == FIELDS[trigger["type"]]
        assert {type(value) for value in trigger["metadata"].values()} == {str}
    return manifest


def closed(schema: Any) -> Any:
    """The API server drops what a schema does not name; a test wants to hear of it."""
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(each) for name, each in schema.items()}
    if "properties" in found and found.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


def test_a_topic_of_the_spec(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    spec = tmp_path / "octoserve.yaml"
    spec.write_text("queue: {model: fraud, source: 'kafka://u:s3cret@kafka.svc:9092/payments?group=fraud&create=6'}\n")
    made = rendered(capsys, "--spec", str(spec), "--lag", "500", "--max", "6", "--authentication", "kafka-user")
    assert "s3cret" not in str(made)
    assert made["metadata"]["name"] == made["spec"]["scaleTargetRef"]["name"] == "scorer"
    assert (made["spec"]["minReplicaCount"], made["spec"]["maxReplicaCount"]) == (1, 6)
    (trigger,) = made["spec"]["triggers"]
    assert trigger == {
        "type": "kafka",
        "metadata": {
            "bootstrapServers": "kafka.svc:9092", "consumerGroup": "fraud", "topic": "payments", "lagThreshold": "500",
            "offsetResetPolicy": "earliest",
        },
        "authenticationRef": {"name": "kafka-user"},
    }  # fmt: skip


def test_a_stream(capsys: pytest.CaptureFixture[str]):
    (trigger,) = rendered(capsys, "--source", "nats://u:s3cret@nats.svc:4222/orders?durable=d")["spec"]["triggers"]
    assert trigger["metadata"] == {
        "natsServerMonitoringEndpoint": "nats.svc:8222", "account": "$G", "stream": "orders", "consumer": "d",
        "lagThreshold": "1000",
    }  # fmt: skip
    made = rendered(capsys, "--source", "nats://nats.svc/orders", "--monitoring", "m:1")
    assert made["spec"]["triggers"][0]["metadata"]["natsServerMonitoringEndpoint"] == "m:1"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "source: wanted, none was given"),
        (["--source", "embedded"], "a broker that pods can reach is wanted"),
        (["--source", "kafka://h/t", "--min", "3", "--max", "2"], "from 0 to max"),
    ],
)
def test_what_cannot_be_rendered_is_said(arguments: list[str], why: str):
    with pytest.raises(SettingsError, match=why):
        run(["deploy", "keda", "--deployment", "scorer", *arguments])
