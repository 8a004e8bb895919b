"""What supervisor and workers say to each other over the control socket.

Frames are a 4-byte big-endian length and a MessagePack body (`msgspec`, tagged structs). Everything the
supervisor wants is one value, `Desired`, replaced whole and numbered by `generation`; a change is done
when every worker has answered `Applied` with that generation. Losing the socket changes nothing in a
worker: it serves on with the last `Desired` and reconnects.
"""

from __future__ import annotations

import msgspec

from octoserve.core.evidence import Seen
from octoserve.lifecycle.states import VersionRef, VersionReport
from octoserve.routing.plan import RoutePlan


class CatalogEntry(msgspec.Struct, frozen=True):
    """A version that lies in the repository, wanted or not: what the repository index shows."""

    model: str
    version: int
    state: str  # READY | LOADING | UNAVAILABLE, Triton's words
    reason: str = ""


class Desired(msgspec.Struct, frozen=True, tag="desired"):
    """All that a worker should hold and route. An omitted version is to be drained and unloaded.

    labels: model -> label -> version; a label moves with its generation, in one swap with the plans
    """

    generation: int
    versions: tuple[VersionRef, ...]
    plans: tuple[RoutePlan, ...]
    labels: dict[str, dict[str, int]]
    catalog: tuple[CatalogEntry, ...]


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Stop accepting, finish what is in flight within `grace` seconds, exit 0."""

    grace: float


class Collect(msgspec.Struct, frozen=True, tag="collect"):
    """Send your metrics now."""

    id: int


class Observe(msgspec.Struct, frozen=True, tag="observe"):
    """Send what you have seen of each split."""

    id: int


class OperationReply(msgspec.Struct, frozen=True, tag="operation_reply"):
    """The end of an `Operation`: `error` is empty on success, else kind names a class of core.errors."""

    id: int
    error: str = ""
    kind: str = ""


ToWorker = Desired | Drain | Collect | Observe | OperationReply


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First frame of a worker on every (re)connection."""

    pid: int
    index: int
    http_port: int
    grpc_port: int
    generation: int
    """The last generation applied; 0 for a fresh worker."""


class Applied(msgspec.Struct, frozen=True, tag="applied"):
    """Plans and labels of this generation are in force; loading may still go on (see `Report`).

    The first one of a fresh worker also says that its doors are open, which they are once what it should
    hold is ready or has failed.
    """

    generation: int


class Report(msgspec.Struct, frozen=True, tag="report"):
    """All versions of this worker with their states; sent on every change."""

    versions: tuple[VersionReport, ...]


class Operation(msgspec.Struct, frozen=True, tag="operation"):
    """A client of this worker asked for a model to be loaded or unloaded."""

    id: int
    action: str  # "load" | "unload"
    model: str
    who: str = ""
    """The caller's name, "" where the door does not know it."""


class Missed(msgspec.Struct, frozen=True, tag="missed"):
    """A token named a key that the identity provider's keys, as they lie here, lack: look again."""


class Collected(msgspec.Struct, frozen=True, tag="collected"):
    """Metrics since the worker's start; `snapshot` is telemetry.metrics' own MessagePack form.

    id: of the `Collect` that asked; 0 for the last ones of a worker that leaves, which nobody asked for
    """

    id: int
    snapshot: bytes


class Observed(msgspec.Struct, frozen=True, tag="observed"):
    """What this worker has seen of each split that it routes by.

    id: of the `Observe` that asked; 0 where the worker speaks up by itself, having cut a candidate
    """

    id: int
    seen: tuple[Seen, ...]


ToSupervisor = Hello | Applied | Report | Operation | Missed | Collected | Observed
