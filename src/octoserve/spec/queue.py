"""The section `queue` of `octoserve.yaml`: what `octoserve queue run` consumes, and how. Flags have the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from octoserve.spec.batch import Version, Words
from octoserve.spec.slo import QueueSloSection
from octoserve.spec.values import Duration, Port, Rows, Section, Size


class QueueSection(Section):
    """A queue: messages in, each result stored once."""

    model: str | None = None
    """Which model scores."""
    version: Version | None = None
    """Which version of it: a number, `stable` (which the endpoint's route trusts), or `plan` (message by message, as
    the endpoint's route plan says); unset: the highest."""
    plan: str | None = None
    """Where the route plan comes from: the address of an admin API, a service's state directory, or a file; unset:
    OCTOSERVE_ADMIN_URL, else http://127.0.0.1:8082. With `plan` a service is followed, and hears what comes of it;
    everything else is asked once, when the run begins."""
    plan_key: str | None = None
    """What the plan's split goes by instead of its own key: message:key, header:NAME, or column:NAME, a field of the
    payload, for which NAME will do."""
    source: str | None = Field(default=None, repr=False)
    """Where messages come from: embedded, embedded:NAME, nats://host:port/stream?subject=s&durable=d, or
    kafka://host:port/topic?group=g."""
    sink: str | None = Field(default=None, repr=False)
    """Where results go: sqlite:///path.db?table=t, postgresql://user@host/db?table=t, a stream or topic (embedded:NAME,
    nats://, kafka://), a folder of Parquet, or an https:// webhook."""
    payload: Literal["json", "avro", "protobuf", "open-inference", "raw", "requests"] = "json"
    """What a message is: json, a row by feature name; avro or protobuf, such a row as a record behind its schema's
    number; open-inference, a request of one row; raw, the only input; requests, a whole request of any rows, whose
    result is its answer (see docs/async.md)."""
    schema_registry: str | None = Field(default=None, repr=False)
    """Where the schemas of records are: http://user:password@host:8081, or without user and password, which
    OCTOSERVE_SCHEMA_REGISTRY_AUTH may hold (`user:password`)."""
    columns: Words = Field(default_factory=list)
    """For a model of one input: the fields that it is made of, in order; unset: model.yaml's `features`."""
    missing: Literal["refuse", "nan"] | None = None
    """What becomes of a missing number: refuse buries its message, nan lets the model see NaN; unset: what the
    version's model.yaml says, else refuse."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes that share the messages."""
    batch_rows: Rows = 1024
    """Messages in a micro-batch at most; what is there is taken at once, however few."""
    batch_bytes: Size = 8 << 20
    """Their bytes."""
    batch_time: Duration = 1.0
    """How long a micro-batch may take; its rows follow from how long a row took."""
    run_timeout: Duration = 30.0
    """A run of the model that takes longer is ended, with its process, and counts as an attempt."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """After which a message goes to the dead letters."""
    retry_delay: Duration = 1.0
    """Before the second attempt; doubled before each further one."""
    redeliver_after: Annotated[Duration, Field(ge=1)] = 10.0
    """After which messages of a process that is gone come to another, where the broker gives them out one by one."""
    until_idle: Duration | None = None
    """End when nothing came for so long and nothing is left, retries included; unset: run until stopped."""
    slo: QueueSloSection | None = None
    """What the queue promises, such as {freshness: 60s}. See docs/slo.md#freshness-of-a-queue."""
    metrics_port: Port | None = None
    """Serve Prometheus metrics on this port; 0 picks a free one."""
    metrics_host: str = "127.0.0.1"
    """Where the metrics' page listens; 0.0.0.0 for a Prometheus on another machine. They tell no data and no secret."""
    state_dir: Path = Path(".octoserve")
    """Where the embedded broker and the attempts are kept."""
