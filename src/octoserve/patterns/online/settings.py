"""What a worker is told at its start, once; the supervisor makes it from the spec."""

from __future__ import annotations

import msgspec

from octoserve.core.admission import Admission
from octoserve.core.doors import DOORS
from octoserve.core.observation import Observations
from octoserve.core.trace_context import Tracing
from octoserve.security.settings import Security


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what a client may send or hold. Sizes in bytes, times in seconds."""

    max_body: int = 64 << 20
    """One request body, also after decompression."""
    max_buffered: int = 512 << 20
    """What one worker's connections hold, together; what its queues hold as inputs is counted apart, in `Admission`."""
    max_connections: int = 10_000
    receive_timeout: float = 30.0
    """From the first byte of a request to its last: cuts slow-loris and half-open clients."""
    idle_timeout: float = 75.0
    """Keep-alive without a request."""


class AsyncRequests(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that are answered later; see `spec.AsyncSection`.

    source: an address, in which {model} stands for the model's name
    """

    models: tuple[str, ...]
    source: str
    store: str
    state_dir: str
    callbacks: tuple[str, ...] = ()
    results: str = ""
    inputs: tuple[str, ...] = ()
    max_pending: int = 256

    def source_of(self, model: str) -> str:
        """The address of a model's queue."""
        return self.source.replace("{model}", model)


class MultiModel(msgspec.Struct, frozen=True, kw_only=True):
    """A container into which SageMaker loads models; see `ServeSettings.multi_model`.

    folder:  below which it puts them
    workers: each of which takes memory for a model
    """

    folder: str
    repository: str
    workers: int = 1


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Written as JSON to a worker's standard input."""

    index: int
    host: str
    http_port: int
    grpc_port: int
    control_path: str
    """Unix socket of the supervisor (or the path that a restarted one will listen on)."""
    limits: Limits = Limits()
    admission: Admission = Admission()
    spool: str = ""
    """Folder where pairs of a shadow are left; "" keeps none."""
    observations: Observations = Observations()
    predictions: str = ""
    """Folder where recorded predictions are left, a spool a model."""
    trust: tuple[str, ...] = ()
    """What the repository's versions may bring beyond data."""
    repository_api: bool = True
    """Whether clients may load and unload models through the data doors."""
    asynchronous: AsyncRequests | None = None
    multi_model: MultiModel | None = None
    doors: tuple[str, ...] = DOORS
    default_model: str = ""
    """Of doors whose paths name none; "": the only model."""
    tracing: Tracing | None = None
    security: Security = Security()
    """Certificates and callers."""
    log_level: str = "info"
    log_format: str = "text"
