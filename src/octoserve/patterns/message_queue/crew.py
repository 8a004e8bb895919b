"""The versions that one worker scores with, and the plan by which it does."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

from octoserve.codecs.json_rows import JsonRows, Read
from octoserve.codecs.request_rows import OpenInferenceRows, RawRows
from octoserve.control.rollout.following import Route
from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import NotFound, OctoserveError, SettingsError
from octoserve.core.signature import Signature, TensorSpec
from octoserve.dataplane.mirror import Judge
from octoserve.lifecycle.lease import Handle
from octoserve.lifecycle.manager import LoaderThread
from octoserve.lifecycle.warmup import warm
from octoserve.patterns.message_queue.copies import judge_of
from octoserve.patterns.message_queue.following import ABSENT, FAILED, LOADING, READY, Followed, VersionWord
from octoserve.patterns.message_queue.model import Bound, Models, find, load, unlike
from octoserve.patterns.message_queue.picking import Picker
from octoserve.patterns.message_queue.routed import BLOCK, Routed, Voice
from octoserve.patterns.message_queue.scoring import Decode, Guard
from octoserve.patterns.message_queue.settings import ROWS, QueueSettings
from octoserve.routing.plan import BUCKETS, RoutePlan
from octoserve.runtimes.protocol import Runtime
from octoserve.telemetry.metrics import Registry

log = logging.getLogger(__name__)

LOOK_AGAIN, TRY_AGAIN = 1.0, 30.0
"""Seconds until a version is looked for again that was not there, or tried again that failed."""


def decoder(signature: Signature, settings: QueueSettings, read: Read | None = None) -> Decode:
    """How payloads become a version's inputs. read: of payloads that are records. Raises SettingsError."""
    if settings.payload == "open-inference":
        return OpenInferenceRows(signature).decode
    if settings.payload == "raw":
        return RawRows(signature).decode
    features: Mapping[str, tuple[str, ...]] = signature.features
    if settings.columns:
        if len(signature.inputs) != 1:
            raise SettingsError("columns: for models of one input; this one's are found by their names")
        features = {"": settings.columns}
    missing = settings.missing or signature.missing or "refuse"
    return JsonRows(signature, features, missing, read).decode


def answering(plan: RoutePlan) -> set[int]:
    """Versions that a message may be scored by."""
    return {plan.stable, *(arm.version for arm in plan.arms if arm.hi > arm.lo), *plan.overrides.values()}


def needed(plan: RoutePlan) -> set[int]:
    """Those without which the plan cannot be carried out."""
    return {plan.stable, *(arm.version for arm in plan.arms if arm.hi > arm.lo)}


class Crew:
    """See the module. On the worker's one thread, but for loading and for `hear`."""

    def __init__(
        self,
        settings: QueueSettings,
        runtimes: Mapping[str, Runtime],
        registry: Registry,
        executor: Executor,
        route: Route | None = None,
        clock: Clock = monotonic,
        read: Read | None = None,
    ) -> None:
        """Loads every version that may be asked. route: of a queue that follows a service; read: see `decoder`.

        Raises NotFound, BrokenVersion, SettingsError.
        """
        self._settings = settings
        self._runtimes = runtimes
        self._read = read
        self._clock = clock
        self.models = Models(
            settings.model,
            registry,
            executor,
            live=route is not None,
            judges=self._judge if route is not None else None,
        )
        self._voices: dict[int, Voice] = {}
        self._words: dict[int, VersionWord] = {}
        self._again: dict[int, float] = {}
        """When what failed, or is not there, is looked at again."""
        self._loads: queue.SimpleQueue[tuple[int, Handle | Exception]] = queue.SimpleQueue()
        self._loader = LoaderThread()
        self._to_load: set[int] = set()
        """To be loaded from the next turn on: that it is, is told before, since it may be the end of the process."""
        self._inbox = self._looked_at = self.route = route
        self._behind = ""
        given = route.plan if route is not None else settings.plan
        first = self._load(settings.version if given is None else given.stable)
        self.outputs: Sequence[TensorSpec] = first.signature.outputs
        number = self._publish(first)
        plan = given or RoutePlan.to(settings.model, number, 1)
        for other in sorted((answering(plan) if route is None else needed(plan)) - {number}):
            try:
                self._publish(self._load(other))
            except OctoserveError as error:
                if route is None:
                    raise
                self._failed(other, error)
        if not needed(plan) <= self._voices.keys():
            plan = RoutePlan.to(settings.model, number, plan.generation)
            self.route = Route(plan=plan)
        self.models.route(plan)
        self.picker = Picker(self.models.plane, settings.model, settings.payload, read)

    # --- versions ------------------------------------------------------------------------------------

    def _load(self, number: int | None) -> Handle:
        settings = self._settings
        return load(find(settings.repository, settings.model, number, self._runtimes), self._runtimes)

    def _publish(self, handle: Handle) -> int:
        number = handle.ref.version
        reason = unlike(self.outputs, handle)
        if reason:
            raise SettingsError(reason)
        signature = handle.signature
        self._voices[number] = Voice(
            Bound(self.models, number), decoder(signature, self._settings, self._read), signature
        )
        self._words[number] = VersionWord(READY, "", handle.ref.digest)
        self.models.publish(handle)
        return number

    def _failed(self, number: int, error: Exception) -> None:
        absent = isinstance(error, NotFound)
        self._words[number] = VersionWord(ABSENT if absent else FAILED, str(error))
        self._again[number] = self._clock() + (LOOK_AGAIN if absent else TRY_AGAIN)
        if not absent:
            log.warning("%s version %d cannot score here: %s", self._settings.model, number, error)

    def _load_beside(self, number: int) -> None:
        """In a thread of its own, while messages are scored."""

        def work() -> None:
            try:
                handle = self._load(number)
                warm(handle.loaded, BLOCK, Path(handle.ref.path))
            except Exception as error:
                self._loads.put((number, error))
            else:
                self._loads.put((number, handle))

        self._loader(work)

    def voice(self, number: int) -> Voice:
        """A version that the plan in force names."""
        return self._voices[number]

    def _judge(self, plan: RoutePlan, version: int) -> Judge:
        return judge_of(self._inbox or Route(), plan, version)

    def _misfed(self, plan: RoutePlan) -> tuple[int, str] | None:
        """A shadow that would get what it does not take: inputs that are made as the trusted version says."""
        for mirror in plan.mirrors:
            theirs, ours = (self.models.signature(n).features for n in (mirror.version, plan.stable))
            if theirs != ours and self._settings.payload in ROWS and not self._settings.columns:
                return mirror.version, (
                    f"{self._settings.model} version {mirror.version} makes its inputs of other fields than version "
                    f"{plan.stable}; a queue's shadow gets the inputs of the trusted one: use a canary, without mirror"
                )
        return None

    # --- the route -----------------------------------------------------------------------------------

    def hear(self, route: Route) -> None:
        """What the service says now. May be called by any thread; it is carried out by `turn`."""
        self._inbox = route

    def turns(self) -> bool:
        """Whether `turn` has anything to take up."""
        return self._inbox is not self._looked_at or bool(self._to_load) or not self._loads.empty()

    def turn(self) -> bool:
        """Between two micro-batches: take up what has loaded and what was heard; whether there is something to tell."""
        news = False
        while self._to_load:
            self._load_beside(self._to_load.pop())
        while not self._loads.empty():
            number, loaded = self._loads.get()
            news = True
            if isinstance(loaded, Exception):
                self._failed(number, loaded)
                continue
            try:
                self._publish(loaded)
            except OctoserveError as error:
                self._failed(number, error)
        route = self._looked_at = self._inbox
        if route is None or route.plan is None:
            return news
        for number in sorted(set(route.keep) | route.plan.versions()):
            state = self._words.get(number, VersionWord(ABSENT)).state
            if state not in (READY, LOADING) and self._clock() >= self._again.get(number, 0.0):
                self._words[number] = VersionWord(LOADING)
                self._to_load.add(number)
                news = True
        return self._carry_out(route, route.plan) or news

    def _carry_out(self, route: Route, plan: RoutePlan) -> bool:
        if route is self.route:
            return False
        missing = sorted(needed(plan) - self._voices.keys())
        if missing:
            word = self._words.get(missing[0], VersionWord(ABSENT))
            behind = f"version {missing[0]} is {word.state}" + (f" ({word.reason})" if word.reason else "")
            news, self._behind = behind != self._behind, behind
            return news
        misfed = self._misfed(plan) if all(m.version in self._voices for m in plan.mirrors) else None
        if misfed is not None:
            news = self._words[misfed[0]].state != FAILED
            self._words[misfed[0]], self._behind = VersionWord(FAILED, misfed[1]), misfed[1]
            self._again[misfed[0]] = float("inf")
            return news
        before = self.route.plan if self.route is not None else None
        if before is None or plan != before:
            self.models.route(plan)
            if before is None or described(plan) != described(before):
                log.info("%s: messages go to %s", self._settings.model, described(plan))
        self.route, self._behind = route, ""
        for number in sorted(self._voices.keys() - set(route.keep) - plan.versions()):
            del self._voices[number], self._words[number]
            self.models.retire(number)
        return True

    def scored_by(self) -> str:
        """Who scores now, for people."""
        plan = self.models.plane.plan(self._settings.model)
        return described(plan) if plan is not None else ""

    def followed(self, running: str) -> Followed:
        """What is to be told of it; about once a second."""
        self.models.sweep()
        route = self.route or Route()
        return Followed(
            rollout=route.rollout,
            record=route.record,
            behind=self._behind,
            versions=dict(self._words),
            seen=tuple(self.models.seen()),
            running=running,
        )

    def routed(self, guard: Guard, failed: Callable[[int], None], before: Callable[[str], None]) -> Routed:
        """What scores micro-batches. failed, before: see `Routed`."""
        return Routed(
            self.picker,
            self.voice,
            self.outputs,
            guard,
            on_loop=self.models.on_loop,
            failed=failed,
            before=before,
        )


def described(plan: RoutePlan) -> str:
    """Who gets what, for people."""
    shares: dict[int, int] = {}
    for arm in plan.arms:
        shares[arm.version] = shares.get(arm.version, 0) + arm.hi - arm.lo
    parts = [f"version {version} {100 * share / BUCKETS:.4g} %" for version, share in shares.items() if share]
    return parts[0].removesuffix(" 100 %") if len(parts) == 1 else ", ".join(parts)
