"""The data plane: every prediction, of every pattern and door, goes through here.

Routes and ready versions are published to it as values; it takes a reference once a request, so a swap is
seen by the next request and by no half of one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from octoserve.core.admission import Admission
from octoserve.core.clock import Clock, monotonic
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput, NotFound, OctoserveError, Unavailable
from octoserve.core.evidence import BASELINE
from octoserve.core.results import Result
from octoserve.core.tensors import Tensor
from octoserve.dataplane.admission import ByteBudget
from octoserve.dataplane.batcher import Batcher, BatchLimits, Ground
from octoserve.dataplane.cache import Caches, Kept
from octoserve.dataplane.call import NEVER, Call
from octoserve.dataplane.gate import Gate
from octoserve.dataplane.lanes import LanesBatcher
from octoserve.dataplane.slo import INTERNAL, SloCounts
from octoserve.dataplane.splits import Judges, Splits
from octoserve.dataplane.statistics import Metrics, VersionStatistics
from octoserve.dataplane.table import ScoredTable, score, versions_of
from octoserve.dataplane.traced import follow
from octoserve.lifecycle.lease import Handle
from octoserve.routing.plan import RoutePlan
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.tracing import ACTIVE, Span, Tracer

if TYPE_CHECKING:
    from octoserve.dataplane.predictions import AllPredictions

log = logging.getLogger(__name__)

_MAX_DIRECT = 1024


class DataPlane:
    """Endpoints by name. Single-threaded: lives on one event loop."""

    def __init__(
        self,
        registry: Registry,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        admission: Admission = Admission(),
        *,
        clock: Clock = monotonic,
        judges: Judges | None = None,
        tracer: Tracer | None = None,
        predictions: AllPredictions | None = None,
    ) -> None:
        priorities, tenants, default = admission.priorities, admission.tenants, admission.default_deadline
        self._admission = admission
        self._metrics = Metrics(registry, levels=priorities is not None)
        self._gate = None if priorities is None and tenants is None else Gate(priorities, tenants, registry)
        self._loop = loop
        self._ground = Ground(loop, executor, clock, ByteBudget(admission.max_pending_bytes), tracer)
        self.tracer = tracer
        self._default_deadline = NEVER if default is None else default
        self._deadlines = {name: NEVER if own is None else own for name, own in admission.deadlines.items()}
        self._caches = Caches(registry) if admission.caches else None
        self._any_deadline = bool(self._deadlines) or default is not None
        self.clock = clock
        self._slos = SloCounts(registry, admission.slos)
        self._predictions = predictions
        self._batchers: dict[tuple[str, int], Batcher] = {}
        self._baselines: dict[tuple[str, int], Batcher] = {}
        """A second queue of a version that is compared with its candidate on equal footing."""
        self._statistics: dict[tuple[str, int], VersionStatistics] = {}
        self._plans: dict[str, RoutePlan] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._known: frozenset[tuple[str, int]] = frozenset()
        self._models: frozenset[str] = frozenset()
        self._direct: dict[tuple[str, str], Batcher] = {}
        """Answers of `bind` that hold until anything is published, retired or routed."""
        self.splits = Splits(self._batcher, registry, loop, clock, judges)
        registry.gauge(
            "octoserve_pending_requests", "Requests waiting or running.", ("model", "version"), self._pending
        )
        registry.gauge(
            "octoserve_pending_bytes",
            "Bytes of the inputs that wait or run.",
            (),
            lambda: {(): float(self._ground.budget.held)},
        )

    # --- published values ----------------------------------------------------------------------------

    def publish(self, handle: Handle) -> None:
        """A version is ready: requests may be routed to it."""
        ref = handle.ref
        key = (ref.model, ref.version)
        statistics = self._statistics.get(key)
        if statistics is None:
            statistics = self._statistics[key] = VersionStatistics(
                self._metrics, ref.model, ref.version, self._slos.of(ref.model)
            )
        told = self._admission
        limits = BatchLimits(ref.max_batch_rows, told.max_batch_bytes, told.max_queue, told.priorities)
        kind = LanesBatcher if handle.lanes else Batcher
        batcher = kind(handle, statistics, limits, self._ground)
        if self._predictions is not None:
            batcher.predictions = self._predictions.of(handle)
        if self._caches is not None and ref.cached and ref.model in told.caches:
            batcher.cache = self._caches.cache_of(ref.model, told.caches[ref.model], self.clock).opened()
        before = self._batchers.get(key)
        self._batchers[key] = batcher
        if before is not None:
            _close(before)
        self._changed(ref.model)

    def retire(self, handle: Handle) -> None:
        """No new request for this version; those it has are answered under their leases."""
        key = (handle.ref.model, handle.ref.version)
        batcher = self._batchers.get(key)
        if batcher is not None and batcher.handle is handle:  # else it is its successor's place by now
            del self._batchers[key]
            _close(batcher)
            self._changed(handle.ref.model)

    def _changed(self, model: str) -> None:
        self._direct.clear()
        for key, baseline in list(self._baselines.items()):
            batcher = self._batchers.get(key)
            if batcher is None or batcher.handle is not baseline.handle:
                del self._baselines[key]
                _close(baseline)
        self.splits.compile_again(model)

    def _batcher(self, model: str, version: int, role: str) -> Batcher | None:
        """The queue of an arm; None where the version is not ready here."""
        key = (model, version)
        batcher = self._batchers.get(key)
        if role != BASELINE or batcher is None:
            return batcher
        baseline = self._baselines.get(key)
        if baseline is None:
            baseline = self._baselines[key] = batcher.beside()
        return baseline

    def route(
        self,
        plans: Iterable[RoutePlan],
        labels: Mapping[str, Mapping[str, int]],
        known: Iterable[tuple[str, int]],
    ) -> None:
        """Swap plans and labels, in one step. `known`: all (model, version) of the repository."""
        self._known = frozenset(known)
        self._models = frozenset(model for model, _ in self._known)
        self._labels = {model: dict(names) for model, names in labels.items()}
        self._plans = {plan.endpoint: plan for plan in plans}
        self._direct.clear()
        self.splits.publish(self._plans.values())

    # --- looking up ----------------------------------------------------------------------------------

    def bind(self, model: str, version: str = "") -> Batcher:
        """The version that answers, ready; of a split, the stable one. Raises NotFound or Unavailable.

        version: "" goes by the route plan; a number or a label goes there directly
        """
        batcher = self._direct.get((model, version))
        if batcher is not None:
            return batcher
        batcher = self._find(model, version)
        if version or model not in self.splits.by_endpoint:
            if len(self._direct) >= _MAX_DIRECT:
                self._direct.clear()
            self._direct[model, version] = batcher
        return batcher

    def _bind(self, call: Call) -> Batcher:
        """The version that answers this call."""
        if not call.version:
            split = self.splits.by_endpoint.get(call.model)
            if split is not None:
                batcher = split.choose(call)
                if batcher is not None:
                    if call.made_for is not None and call.made_for is not batcher.handle.signature:
                        call.remake(batcher.handle.signature)  # its columns may be in another order
                    return batcher
        return self.bind(call.model, call.version)

    def _find(self, model: str, version: str) -> Batcher:
        if not version:
            plan = self._plans.get(model)
            if plan is None:
                if model in self._models:
                    raise Unavailable(f"model {model!r} has no version that is ready")
                raise NotFound(f"model {model!r} does not exist; GET /v2/repository/index lists what does")
            number = plan.stable
        else:
            number = self._number(model, version)
        batcher = self._batchers.get((model, number))
        if batcher is None:
            if (model, number) in self._known:
                raise Unavailable(f"model {model!r} version {number} is not ready")
            raise NotFound(f"model {model!r} has no version {number}")
        return batcher

    def _number(self, model: str, version: str) -> int:
        if version.isascii() and version.isdigit() and len(version) < 19:
            return int(version)
        number = self._labels.get(model, {}).get(version)
        if number is None:
            raise NotFound(f"model {model!r} has neither a version nor a label {version!r}")
        return number

    @property
    def known(self) -> frozenset[tuple[str, int]]:
        """All (model, version) of the repository, ready or not."""
        return self._known

    def plan(self, model: str) -> RoutePlan | None:
        """The plan in force."""
        return self._plans.get(model)

    def ready_versions(self, model: str) -> list[int]:
        """Versions that can answer, in order."""
        return sorted(number for name, number in self._batchers if name == model)

    def statistics(self, model: str = "", version: str = "") -> list[tuple[str, int, VersionStatistics]]:
        """What the named versions (all, where not named) have done since this process started."""
        number = self._number(model, version) if version else None
        return [
            (name, n, statistics)
            for (name, n), statistics in sorted(self._statistics.items())
            if (not model or name == model) and (number is None or n == number)
        ]

    # --- predictions ---------------------------------------------------------------------------------

    def submit(self, call: Call) -> None:
        """Answer `call`, now or later, by its `answered`. Never raises."""
        call.arrived = now = self.clock()
        if self.tracer is not None:
            self._follow(self.tracer, call)
        if self._any_deadline and call.deadline == NEVER:
            call.deadline = now + self._deadlines.get(call.model, self._default_deadline)
        batcher: Batcher | None = None
        entered = False
        try:
            if self._gate is not None:
                self._gate.enter(call)
            entered = True
            batcher = self._direct.get((call.model, call.version)) or self._bind(call)
            self._check(call, batcher)
            if batcher.cache is not None and self._answered(call, batcher, batcher.cache):
                return
            batcher.offer(call)
        except OctoserveError as error:
            call.error = error
            if batcher is None:
                self.refused(call.model, call.door, error, self.clock() - call.arrived)
            else:
                batcher.statistics.failed(call.door, error.reason, self.clock() - call.arrived)
            # A stream knows its arm before; what the gate refuses says nothing of it.
            if call.arm is not None and entered:
                call.arm.turned_away(call, error.reason)
            if call.tenant is not None:
                call.tenant.leave()
            call.answered()

    def _answered(self, call: Call, batcher: Batcher, cache: Kept) -> bool:
        """Whether it was answered from the cache. Its arm, which it is assigned to, hears no more of it."""
        ref = batcher.handle.ref
        if not cache.answers(call, ref.model, ref.version):
            return False
        if call.tenant is not None:
            call.tenant.leave()
        try:
            call.answered()
        except Exception:
            log.exception("an answer could not be written")
        took = self.clock() - call.arrived
        batcher.statistics.hit(call.door, took)
        if batcher.predictions is not None and call.result is not None:
            batcher.predictions.answered(batcher.handle, [call], [took], call.result.ran)
        return True

    def _follow(self, tracer: Tracer, call: Call) -> None:
        """Take over the span that a door has begun for this call, if it has."""
        if tracer.received is not None:
            span, over = tracer.received
            tracer.received = None
            follow(call, span, over)

    def _check(self, call: Call, batcher: Batcher) -> None:
        signature = batcher.handle.signature
        inputs = call.inputs
        layout = signature.check(inputs)
        if len(inputs) > 1:
            call.inputs = inputs = [inputs[i] for i in layout.order]
        call.rows = layout.rows
        call.group = layout.group
        call.nbytes = layout.nbytes
        if layout.inspect:
            for tensor in inputs:
                if DATATYPES[tensor.datatype].kind in ("bytes", "bool"):
                    tensor.array()  # malformed elements are this caller's fault, not its batch-mates'
            call.nbytes = sum(_held(tensor) for tensor in inputs)
        if call.outputs is not None:
            check_outputs(signature.output_index, call.outputs)

    def refused(self, model: str, door: str, error: OctoserveError, seconds: float = 0.0) -> None:
        """Count a request that was refused before a version was bound to it."""
        if self.tracer is not None and self.tracer.received is not None:
            span, over = self.tracer.received
            self.tracer.received = None
            span.attributes.update({"octoserve.model": model, "octoserve.door": door})
            over(span, error)
            span.end()
        # A name that nobody knows is the client's text: it must not become a label.
        known = model in self._models
        series = self._metrics.requests.histogram(model if known else "", "", door, error.reason)
        series.observe(seconds)
        series.fold_if_due()
        slo = self._slos.of(model) if known else None
        if slo is not None:
            slo.failed(door, error.reason)

    async def infer(
        self, model: str, inputs: Sequence[Tensor], version: str = "", timeout: float | None = None
    ) -> Result:
        """One prediction, awaited; for callers inside the process. Raises OctoserveError."""
        deadline = NEVER if timeout is None else self.clock() + timeout
        call = _Awaited(model, version, inputs, self._loop.create_future(), deadline)
        if self.tracer is not None and isinstance(span := ACTIVE.get(), Span):
            call.trace = span  # of who asks: it ends there
        self.submit(call)
        try:
            return await call.future
        finally:
            call.cancel()

    async def infer_table(
        self, model: str, columns: Sequence[Tensor], version: str = "", keys: Sequence[bytes] | None = None
    ) -> ScoredTable:
        """Score a table: split by row where the route plan says so, in order all the same. Raises OctoserveError.

        keys: of each row, where the plan's key is nothing that a column holds
        """
        stable = self.bind(model, version).handle
        rows = stable.signature.check(columns).rows
        if not rows:
            raise InvalidInput("a table without rows came")
        plan = self._plans.get(model)
        if version or plan is None:
            versions = np.full(rows, stable.ref.version, dtype=np.int64)
        else:
            versions = self._taking_part(model, versions_of(plan, columns, keys, rows), stable.ref.version)
        return await score(
            columns, versions, lambda number: self.bind(model, str(number)).handle, self._loop, self._ground.executor
        )

    def _taking_part(self, model: str, versions: NDArray[np.int64], stable: int) -> NDArray[np.int64]:
        """Rows of a version that is cut or not ready here are the stable version's, as single requests are."""
        split = self.splits.by_endpoint.get(model)
        if split is not None:
            for version in np.unique(versions).tolist():
                if not split.takes_part(version):
                    versions[versions == version] = stable
        return versions

    def routes_to(self, model: str, version: int) -> bool:
        """Whether requests without a version may still go to this one."""
        split = self.splits.by_endpoint.get(model)
        if split is not None:
            return split.takes_part(version)
        plan = self._plans.get(model)
        return plan is not None and version in plan.versions()

    def _pending(self) -> dict[tuple[str, ...], float]:
        waiting: dict[tuple[str, ...], float] = {
            (m, str(v)): float(batcher.pending) for (m, v), batcher in self._batchers.items()
        }
        for (m, v), baseline in self._baselines.items():
            waiting[m, str(v)] += baseline.pending
        return waiting


def _close(batcher: Batcher) -> None:
    """Its version is no more."""
    if batcher.cache is not None:
        batcher.cache.close()


def _held(tensor: Tensor) -> int:
    """Bytes that a tensor keeps in memory; elements of a BYTES array lie outside of it."""
    size = tensor.nbytes()
    if tensor.raw is None and tensor.datatype == "BYTES":
        size += sum(map(len, tensor.array().ravel().tolist()))
    return size


def check_outputs(known: Mapping[str, int], wanted: Sequence[str]) -> None:
    """Raise InvalidInput unless every wanted output exists and is named once."""
    for name in wanted:
        if name not in known:
            raise InvalidInput(f"unknown output {name!r}; the model gives: {', '.join(known)}")
    if len(set(wanted)) != len(wanted):
        raise InvalidInput("an output is requested twice")


class _Awaited(Call):
    door = INTERNAL

    def __init__(
        self,
        model: str,
        version: str,
        inputs: Sequence[Tensor],
        future: asyncio.Future[Result],
        deadline: float,
    ) -> None:
        super().__init__(model, version, inputs)
        self.deadline = deadline
        self.future = future

    def answered(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            assert self.result is not None
            self.future.set_result(self.result)
