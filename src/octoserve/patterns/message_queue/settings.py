"""What a run of a queue is told, as its processes pass it on."""

from __future__ import annotations

import os

import msgspec

from octoserve.control.rollout.following import Route
from octoserve.core.trace_context import Tracing
from octoserve.routing.plan import RoutePlan

REQUESTS = "requests"
"""The payload of which each message is a whole request."""
RECORDS = ("avro", "protobuf")
"""Payloads that are read by schemas of a registry."""
ROWS = ("json", *RECORDS)
"""Payloads that are rows by feature name."""


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a queue is worked on. Durations in seconds; see `spec.QueueSection` for what each means.

    inputs: where objects may lie that whole requests refer to; max_input: how large they may be, in bytes
    worker: which of the run's workers this is, from 0
    plan:   who scores which message, where that is not one version for all
    """

    repository: str
    model: str
    version: int | None = None
    source: str
    sink: str
    payload: str = "json"
    schema_registry: str = ""
    columns: tuple[str, ...] = ()
    missing: str = ""
    batch_rows: int = 1024
    batch_bytes: int = 8 << 20
    batch_seconds: float = 1.0
    run_timeout: float = 30.0
    max_attempts: int = 3
    retry_delay: float = 1.0
    until_idle: float | None = None
    redeliver_after: float = 10.0
    freshness: float | None = None
    """Seconds from publication to result that are promised."""
    state_dir: str = ".octoserve"
    trust: tuple[str, ...] | None = None
    """What the repository's versions may bring beyond data; None: what OCTOSERVE_TRUST says."""
    inputs: tuple[str, ...] = ()
    max_input: int = 1 << 30
    worker: int = 0
    plan: RoutePlan | None = None
    tracing: Tracing | None = None


def owner_of(pid: int) -> str:
    """What a worker of this machine is called by those who outlive it."""
    return f"{os.uname().nodename}/{pid}"


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker process starts with.

    ends:  how workers of this run have died, by `owner_of`
    route: of a queue that follows a service, as it was last told
    """

    settings: QueueSettings
    index: int = 0
    route: Route | None = None
    ends: dict[str, str] = {}
    log_level: str = "info"
    log_format: str = "text"
