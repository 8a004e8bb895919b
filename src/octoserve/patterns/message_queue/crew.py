"""The versions that one worker scores with, and the plan by which it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

from octoserve.codecs.json_rows import JsonRows
from octoserve.codecs.request_rows import OpenInferenceRows, RawRows
from octoserve.core.errors import SettingsError
from octoserve.core.signature import TensorSpec
from octoserve.patterns.message_queue.model import Bound, Loaded, Models, find, load, unlike
from octoserve.patterns.message_queue.picking import Picker
from octoserve.patterns.message_queue.routed import Routed, Voice
from octoserve.patterns.message_queue.scoring import Decode, Guard
from octoserve.patterns.message_queue.settings import QueueSettings
from octoserve.routing.plan import RoutePlan
from octoserve.runtimes.protocol import Runtime
from octoserve.telemetry.metrics import Registry


def decoder(loaded: Loaded, settings: QueueSettings) -> Decode:
    """How payloads become a version's inputs. Raises SettingsError."""
    signature = loaded.signature
    if settings.payload == "open-inference":
        return OpenInferenceRows(signature).decode
    if settings.payload == "raw":
        return RawRows(signature).decode
    features: Mapping[str, tuple[str, ...]] = signature.features
    if settings.columns:
        if len(signature.inputs) != 1:
            raise SettingsError("columns: for models of one input; this one's are found by their names")
        features = {"": settings.columns}
    missing = settings.missing or loaded.settings.missing or "refuse"
    return JsonRows(signature, features, missing).decode


def answering(plan: RoutePlan) -> set[int]:
    """Versions that a message may be scored by."""
    return {plan.stable, *(arm.version for arm in plan.arms if arm.hi > arm.lo), *plan.overrides.values()}


class Crew:
    """See the module. On the worker's one thread."""

    def __init__(
        self, settings: QueueSettings, runtimes: Mapping[str, Runtime], registry: Registry, executor: Executor
    ) -> None:
        """Loads every version that may be asked. Raises NotFound, BrokenVersion, SettingsError."""
        self._settings = settings
        self._runtimes = runtimes
        self.models = Models(settings.model, registry, executor)
        self._voices: dict[int, Voice] = {}
        first = self._load(settings.version if settings.plan is None else settings.plan.stable)
        number = first.handle.ref.version
        plan = settings.plan or RoutePlan.to(settings.model, number, 1)
        self.outputs: Sequence[TensorSpec] = first.signature.outputs
        self._publish(first)
        for other in sorted(answering(plan) - {number}):
            loaded = self._load(other)
            reason = unlike(self.outputs, loaded)
            if reason:
                raise SettingsError(reason)
            self._publish(loaded)
        self.models.route(plan)
        self.picker = Picker(self.models.plane, settings.model, settings.payload)

    def _load(self, number: int | None) -> Loaded:
        settings = self._settings
        return load(find(Path(settings.repository), settings.model, number, self._runtimes), self._runtimes)

    def _publish(self, loaded: Loaded) -> None:
        number = loaded.handle.ref.version
        self._voices[number] = Voice(Bound(self.models, number), decoder(loaded, self._settings), loaded.signature)
        self.models.publish(loaded)

    def voice(self, number: int) -> Voice:
        """A version that the plan in force names."""
        return self._voices[number]

    def routed(self, guard: Guard, failed: Callable[[int], None]) -> Routed:
        """What scores micro-batches. failed: see `Routed`."""
        return Routed(self.picker, self.voice, self.outputs, guard, failed=failed)
