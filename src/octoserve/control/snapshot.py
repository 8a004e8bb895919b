"""What `reconcile` looks at, and what it decides: values only."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from octoserve.control.policy import LATEST, VersionPolicy
from octoserve.control.rollout.values import Endpoint
from octoserve.control.rollout.wish import Wish
from octoserve.lifecycle.states import VersionRef, VersionReport
from octoserve.repository.layout import VersionOnDisk
from octoserve.routing.plan import RoutePlan

Key = tuple[str, int]
"""Model and version."""


class ModelWishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator wants of one model; None where the version or the default decides."""

    policy: VersionPolicy = LATEST
    labels: Mapping[str, int] = {}
    threads: int | None = None
    batching: bool | None = None
    max_batch_rows: int | None = None
    cached: bool = False
    """Whether its answers are kept, which a version that acts on the world does not allow."""
    on_new_version: str = "switch"
    """switch: the newest one answers as soon as it is ready; rollout, hold: the stable one does until a rollout has
    said otherwise."""


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """A connected worker. `generation` is the last one it applied, 0 for one that is still joining."""

    index: int
    generation: int
    reports: Mapping[Key, VersionReport] = {}


class Listed(msgspec.Struct, frozen=True):
    """A version in the repository, wanted or not, with its state in Triton's words."""

    model: str
    version: int
    state: str  # READY | LOADING | UNAVAILABLE
    reason: str = ""


class Aspired(msgspec.Struct, frozen=True, kw_only=True):
    """All that every worker should hold and route."""

    generation: int = 0
    versions: tuple[VersionRef, ...] = ()
    plans: tuple[RoutePlan, ...] = ()
    labels: dict[str, dict[str, int]] = {}
    catalog: tuple[Listed, ...] = ()

    def routed(self) -> set[Key]:
        """Every version that a plan or a label names."""
        named = {(plan.endpoint, version) for plan in self.plans for version in plan.versions()}
        named |= {(m, v) for m, labels in self.labels.items() for v in labels.values()}
        return named


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `reconcile` may know.

    disk:     the last good scan
    digests:  recorded digests; a version whose digest differs is refused
    holds:    models that were unloaded by request
    retries:  how often `load` asked to try a model again
    base_attempt: where attempts start, so that they grow over a restart of the supervisor
    default:  wishes of models that have none of their own
    current:  what was decided last; its generation is the highest that anybody has seen
    """

    disk: Mapping[str, tuple[VersionOnDisk, ...]]
    workers: tuple[WorkerView, ...]
    current: Aspired
    digests: Mapping[Key, str] = {}
    holds: frozenset[str] = frozenset()
    retries: Mapping[str, int] = {}
    base_attempt: int = 0
    wishes: Mapping[str, ModelWishes] = {}
    default: ModelWishes = ModelWishes()
    labels: Mapping[str, Mapping[str, int]] = {}
    """Set by API; they win over those of the wishes."""
    aliases: Mapping[str, Mapping[str, int]] = {}
    """What a registry calls its versions; any other label wins over them."""
    rollouts: Mapping[str, Wish] = {}
    """What live rollouts ask of the data plane, by model."""
    endpoints: Mapping[str, Endpoint] = {}
    """What outlives them."""

    def wishes_of(self, model: str) -> ModelWishes:
        """The model's own wishes, or the default ones."""
        return self.wishes.get(model, self.default)
