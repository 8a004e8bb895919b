"""One request for a prediction, from a door to its answer.

A door subclasses `Call` and writes its protocol's answer in `answered`: a method call, so that a request
costs neither a future nor a task. `answered` is called exactly once, on the event loop, unless the door has
cancelled the call; it may be called before `submit` returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from octoserve.core.errors import OctoserveError
from octoserve.core.results import Result
from octoserve.core.signature import Signature
from octoserve.core.tensors import Tensor

if TYPE_CHECKING:
    from octoserve.dataplane.batcher import Batcher
    from octoserve.dataplane.cache import Key as CacheKey
    from octoserve.dataplane.split import ArmRoute
    from octoserve.dataplane.tenants import Tenant
    from octoserve.telemetry.tracing import Span

NEVER = float("inf")


class Call:
    """What the data plane needs of a request; all times are the data plane's clock's seconds.

    model:    endpoint name
    version:  as the client gave it: a number, a label, or "" for the route plan's pick
    inputs:   tensors in any order; in signature order once admitted
    outputs:  names of wanted outputs, None for all (checked; all are computed)
    deadline: absolute; NEVER for none
    key:      what sticky assignment goes by, None for a random bucket
    door:     metrics label, e.g. "http"
    result, error: exactly one is set when `answered` is called
    """

    # Defaults of the class: an instance holds only what differs, which makes it cheaper than slots.
    outputs: Sequence[str] | None = None
    deadline: float = NEVER
    key: bytes | None = None
    door: str = ""
    arrived: float = 0.0
    rows: int = 0
    nbytes: int = 0
    group: tuple[object, ...] = ()
    batcher: Batcher | None = None
    """Where it waits or runs; None before admission and after the answer."""
    arm: ArmRoute | None = None
    """What a split bound it to; None where one version has all requests."""
    segments: tuple[str, ...] = ()
    level: int = 0
    """Its priority, a place in `core.admission.LEVELS`; where levels are on."""
    tenant: Tenant | None = None
    """Whose it is, while it is in flight; where tenants have limits."""
    cache: str = ""
    """Whether its answer came from the cache: `hit` or `miss`; "" where the version has none."""
    cache_key: CacheKey | None = None
    """Where its answer will be kept."""
    made_for: Signature | None = None
    """By which signature a split's door has read a body that names neither datatypes nor inputs; None otherwise."""
    trace: Span | None = None
    """What it is followed by, where it is sampled."""
    result: Result | None = None
    error: OctoserveError | None = None

    def __init__(self, model: str, version: str, inputs: Sequence[Tensor]) -> None:
        self.model = model
        self.version = version
        self.inputs = inputs

    def answered(self) -> None:
        """`result` or `error` is there."""
        raise NotImplementedError(f"{type(self).__name__} must say what becomes of an answer")

    def header(self, name: str) -> str | None:
        """A header (lower case), a piece of metadata; None where the door has none of that name."""
        return None

    def parameter(self, name: str) -> object:
        """A request parameter; None without it."""
        return None

    def remake(self, signature: Signature) -> None:
        """The inputs as a version of this signature takes them; asked where `made_for` is another."""
        raise NotImplementedError(f"{type(self).__name__} has `made_for`, and must say how it is read again")

    def cancel(self) -> None:
        """The caller went away: free its place. Harmless after the answer."""
        if self.batcher is not None:
            self.batcher.cancel(self)
