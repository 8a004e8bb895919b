"""Dynamic batching without waiting.

An idle model runs at once: what arrived in the same tick of the event loop is its batch. What arrives while
it runs forms the next. Nobody ever waits for company, so at concurrency 1 batching costs one callback.

A run that is known to be short happens on the event loop; a longer one, or one not measured yet, in a
thread. One run of a version is in flight at a time. A failing batch is halved until the bad request fails
alone. See docs/decisions/0002-dynamic-batching.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from octoserve.core.admission import LEVELS, Priorities
from octoserve.core.clock import Clock
from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import Cancelled, DeadlineExceeded, Internal, OctoserveError, Overloaded, Unavailable
from octoserve.core.results import Ran, Result
from octoserve.core.signature import Signature
from octoserve.core.tensors import Array
from octoserve.dataplane.admission import ByteBudget, admit
from octoserve.dataplane.cache import Kept
from octoserve.dataplane.call import NEVER, Call
from octoserve.dataplane.priorities import Levels
from octoserve.dataplane.statistics import LET_IN, SHED, VersionStatistics
from octoserve.dataplane.traced import Run, given_up
from octoserve.dataplane.traced import run as traced_run
from octoserve.lifecycle.lease import Handle
from octoserve.telemetry.tracing import Tracer, active

if TYPE_CHECKING:
    from octoserve.dataplane.predictions import Predictions

log = logging.getLogger(__name__)

INLINE_SECONDS = 0.001
"""A run longer than this would hold up every other request on the loop; a thread hand-off costs a tenth."""
SWEEP_SECONDS = 0.01
"""How late a deadline may be noticed while a run is in a thread."""
FAILURE_LOG_SECONDS = 1.0
"""A failure of a version's run is logged at most this often: a client can make as many as it likes."""
Outcome = Sequence[tuple[list[Call], Ran | OctoserveError]]
"""What came of a run: of all its calls at once, or of each where it failed as a whole."""
_SMOOTHING = 0.1
_DOUBTED = 8
"""So many runs after one that was long by the clock have their CPU time read: reading it takes longer than the rest
of a turn's bookkeeping."""


class BatchLimits(msgspec.Struct, frozen=True):
    """Bounds of one batch and of the queue before it."""

    rows: int = 64
    bytes: int = 16 << 20
    queue: int = 1024
    priorities: Priorities | None = None
    """None: first come, first served."""


class Ground(NamedTuple):
    """Where runs are made, and by what they are measured; one for all queues of a data plane.

    budget: bytes of inputs that all of them may hold
    """

    loop: asyncio.AbstractEventLoop
    executor: Executor
    clock: Clock
    budget: ByteBudget
    tracer: Tracer | None = None


class Batcher:
    """The queue, the batches and the runs of one version. Single-threaded: lives on the event loop."""

    def __init__(self, handle: Handle, statistics: VersionStatistics, limits: BatchLimits, ground: Ground) -> None:
        self.handle = handle
        self.statistics = statistics
        self._limits = limits
        self._max_queue = limits.queue
        self._ground = ground
        self._loop, self._executor, self._clock, self._budget, self._tracer = ground
        self._merge = handle.signature.batchable
        self.cache: Kept | None = None
        """Where this queue's answers are kept; set by who publishes the version."""
        self.counted = False
        """Whether an arm of a split may want to know what comes of its calls."""
        self.predictions: Predictions | None = None
        """Who records answers, or watches their drift."""
        self._levels = None if limits.priorities is None else Levels(limits.priorities)
        self._waiting: deque[Call] | Levels = deque() if self._levels is None else self._levels
        self._running: list[Call] = []
        self._rows_ahead = 0
        self._scheduled = False
        self._timed = 0
        self._sweeping = False
        self._row_seconds = 0.0
        self._size = 0
        """Bytes of the inputs of the run in flight."""
        self._costs: dict[int, float] = {}
        self._doubted = 0
        self._run_began = 0.0
        self._logged = -math.inf
        self._unlogged = 0

    def beside(self) -> Batcher:
        """A second queue of the same version, with runs of its own and the same statistics."""
        second = type(self)(self.handle, self.statistics, self._limits, self._ground)
        second.cache = None if self.cache is None else self.cache.beside()
        second.predictions = self.predictions
        return second

    # --- in ------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Requests waiting or running."""
        return len(self._waiting) + len(self._running)

    @property
    def run_age(self) -> float:
        """Seconds since the run in flight began; 0 without one."""
        return self._clock() - self._run_began if self._running else 0.0

    def offer(self, call: Call) -> None:
        """Admit a call whose inputs are in signature order. Raises Overloaded or DeadlineExceeded."""
        pending = len(self._waiting) + len(self._running)
        timed = call.deadline != NEVER
        if self._levels is not None:
            self._admit(call, pending, self._levels)
        elif timed or pending >= self._max_queue:
            admit(call.arrived, call.deadline, pending, self._max_queue, self._rows_ahead, self._row_seconds)
        budget = self._budget
        held = budget.held + call.nbytes
        if held > budget.limit:
            budget.refuse(call.nbytes, self._rows_ahead * self._row_seconds)
        budget.held = held
        call.batcher = self
        self.handle.leases += 1
        self._rows_ahead += call.rows
        self._waiting.append(call)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)
        if timed:
            self._timed += 1
            self._sweep_later()

    def _admit(self, call: Call, pending: int, levels: Levels) -> None:
        """Whether there is room and time for a call of its level. Raises Overloaded or DeadlineExceeded."""
        level, budget = call.level, self._budget
        room, limit = levels.share(level, self._max_queue), levels.share(level, budget.limit)
        try:
            if pending >= room or call.deadline != NEVER or budget.held + call.nbytes > limit:
                ahead = self._rows_ahead - levels.rows_behind(level)
                admit(call.arrived, call.deadline, pending, room, ahead, self._row_seconds, LEVELS[level])
                if budget.held + call.nbytes > limit:
                    budget.refuse(call.nbytes, ahead * self._row_seconds, limit)
        except Overloaded:
            self.statistics.of_level(level, SHED).value += 1
            raise
        self.statistics.of_level(level, LET_IN).value += 1

    def cancel(self, call: Call) -> None:
        """The caller went away; a run that has begun is finished, its answer dropped."""
        if call.trace is not None:
            given_up(call, call.trace)
        self._abandon(call, Cancelled("the client went away"))

    # --- deadlines -----------------------------------------------------------------------------------

    def _sweep_later(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = False
        now = self._clock()
        late = [c for c in (*self._running, *self._waiting) if c.deadline <= now and c.batcher is not None]
        for call in late:
            if call.batcher is not None:  # an answer may have cancelled others
                self._expire(call)
        if self._timed:
            self._sweep_later()

    def _expire(self, call: Call) -> None:
        call.error = DeadlineExceeded("the deadline passed before the answer was there")
        self._abandon(call, call.error)
        self._answer(call)

    def _abandon(self, call: Call, error: OctoserveError) -> None:
        if call.batcher is None:
            return
        self._leave(call)
        self._count_failure(call, error)
        if call.arm is not None:
            call.arm.failed(call, error.reason)
        try:
            self._waiting.remove(call)
        except ValueError:
            return  # it is running: its rows, its bytes and its lease go with the batch
        self._rows_ahead -= call.rows
        self._budget.held -= call.nbytes
        self.handle.release()

    def _leave(self, call: Call) -> None:
        call.batcher = None
        if call.deadline != NEVER:
            self._timed -= 1
        if call.tenant is not None:
            call.tenant.leave()

    # --- a turn --------------------------------------------------------------------------------------

    def _turn(self) -> None:
        calls, rows, self._size = self._next_batch()
        if not calls:
            self._scheduled = False
            return
        self._running = calls
        cost = self._predict(rows, self._size)
        if cost is not None and cost <= INLINE_SECONDS:
            self._finish(*self._execute(calls, rows, self._doubted > 0))
        else:
            self._run_began = self._clock()
            self._executor.submit(self._execute_in_thread, calls, rows)

    def _next_batch(self) -> tuple[list[Call], int, int]:
        """The oldest call and those behind it that may share its run; their rows and bytes."""
        waiting = self._waiting
        if self._levels is not None:
            self._levels.begin()
        now = self._clock() if self._timed else 0.0
        calls: list[Call] = []
        others: list[Call] = []
        rows = size = 0
        group: tuple[object, ...] = ()
        while waiting:
            call = waiting.popleft()
            if call.deadline <= now and call.batcher is not None:
                waiting.appendleft(call)
                self._expire(call)
                continue
            if calls and call.group != group:
                others.append(call)
                continue
            if self._merge and calls:
                limits = self._limits
                if rows + call.rows > limits.rows or size + call.nbytes > limits.bytes:
                    waiting.appendleft(call)
                    break
            group = call.group
            calls.append(call)
            rows += call.rows
            size += call.nbytes
            if not self._merge:
                break
        if others:
            waiting.extendleft(reversed(others))
        return calls, rows, size

    def _execute_in_thread(self, calls: list[Call], rows: int) -> None:
        outcome = self._execute(calls, rows, True)
        try:
            self._loop.call_soon_threadsafe(self._finish, *outcome)
        except RuntimeError:
            log.debug("the event loop closed during a run")

    def _execute(self, calls: list[Call], rows: int, doubted: bool) -> tuple[int, float, float, float | None, Outcome]:
        """Run, without touching any state of the loop: this may be another thread. The CPU time only if `doubted`."""
        start = self._clock()
        cpu = time.thread_time() if doubted else 0.0
        model = self.handle.loaded.run
        if self._tracer is None:
            outcome = self._run(calls, rows, model)
        else:
            outcome = traced_run(self._tracer, calls, rows, self.handle, lambda run: self._run(calls, rows, run))
        return rows, start, self._clock() - start, time.thread_time() - cpu if doubted else None, outcome

    def _run(self, calls: list[Call], rows: int, run: Run) -> list[tuple[list[Call], Ran | OctoserveError]]:
        handle = self.handle
        try:
            outputs = run(gather(calls, rows))
            if len(calls) > 1 and any(a.ndim == 0 or a.shape[0] != rows for a in outputs):
                self._merge = False  # not a batch dimension after all: the calls run alone from now on
                log.warning("%s does not keep its rows apart; it is served unbatched from now on", handle.ref)
                return [part for call in calls for part in self._run([call], call.rows, run)]
            return [(calls, Ran(handle.ref.model, handle.ref.version, handle.signature, outputs))]
        except (Unavailable, Overloaded) as error:  # of a server behind the model: no half of the batch would do better
            return [([call], error) for call in calls]
        except BaseException as error:  # sys.exit, or a panic of Rust: in a thread it would leave calls unanswered
            if isinstance(error, KeyboardInterrupt):
                raise
            if len(calls) > 1:
                half = len(calls) // 2
                halves = (calls[:half], calls[half:])
                return [part for some in halves for part in self._run(some, sum(c.rows for c in some), run)]
            return [(calls, self._blame(error, calls[0]))]

    def _blame(self, error: BaseException, call: Call) -> OctoserveError:
        if isinstance(error, OctoserveError) and not isinstance(error, Internal):
            return error
        now = self._clock()
        if now - self._logged < FAILURE_LOG_SECONDS:
            self._unlogged += 1
        else:
            more = f" ({self._unlogged} more since the last such line)" if self._unlogged else ""
            with active(call.trace) if call.trace is not None else contextlib.nullcontext():  # its own, not the run's
                log.error("%s failed to run%s: %s", self.handle.ref, more, error, exc_info=error)
            self._logged, self._unlogged = now, 0
        return Internal(f"{self.handle.ref} failed on this input; the server's log has the reason")

    # --- out -----------------------------------------------------------------------------------------

    def _unbatch(self) -> None:
        """A new signature, as the old one promises what was found untrue, and keeps layouts that go by it."""
        old = self.handle.signature
        self.handle.signature = Signature(
            old.inputs, old.outputs, False, old.dimensions, old.features, old.missing, old.categories
        )

    def _finish(self, rows: int, start: float, seconds: float, cpu: float | None, outcome: Outcome) -> None:
        calls, self._running = self._running, []
        self._settle(calls, self._size, rows, start, seconds, cpu, outcome)
        if self._waiting:
            self._loop.call_soon(self._turn)
        else:
            self._scheduled = False

    def _settle(
        self,
        ran: Sequence[Call],
        size: int,
        rows: int,
        start: float,
        seconds: float,
        cpu: float | None,
        outcome: Outcome,
    ) -> None:
        """A run of these calls, of so many bytes, has ended."""
        if not self._merge and self.handle.signature.batchable:
            self._unbatch()
        statistics = self.statistics
        self._rows_ahead -= rows
        self._budget.held -= size
        self._learn(rows, size, seconds, cpu)
        answered = rows
        for calls, came in outcome:
            if isinstance(came, OctoserveError):
                answered -= calls[0].rows
                self._fail(calls[0], came)
            else:
                self._deliver(calls, came, start)
        statistics.ran(rows, seconds, answered)
        statistics.fold_if_due()
        self.handle.release(len(ran))

    def _deliver(self, calls: list[Call], ran: Ran, start: float) -> None:
        alone = len(calls) == 1
        at = 0
        delivered: list[Call] = []
        for call in calls:
            if call.batcher is not None:
                call.batcher = None
                if call.deadline != NEVER:
                    self._timed -= 1
                if call.tenant is not None:
                    call.tenant.leave()
                call.result = Result(ran) if alone else Result(ran, at, call.rows)
                try:
                    call.answered()
                except Exception:
                    log.exception("an answer could not be written")
                delivered.append(call)
            at += call.rows
        latencies = self.statistics.delivered(delivered, start, self._clock())
        if self.cache is not None:
            self.cache.keep(delivered)
        if self.counted:
            self._count(delivered, latencies)
        if self.predictions is not None:
            self.predictions.answered(self.handle, delivered, latencies, ran)

    def _count(self, delivered: Sequence[Call], latencies: Sequence[float]) -> None:
        """Tell the arms of a split; mostly all calls of a run are of one arm."""
        arms = [call.arm for call in delivered]
        if not arms or arms.count(arms[0]) == len(arms):
            if arms and arms[0] is not None:
                arms[0].answered(delivered, latencies)
            return
        for arm in dict.fromkeys(arms):
            if arm is not None:
                mine = [place for place, other in enumerate(arms) if other is arm]
                arm.answered([delivered[place] for place in mine], [latencies[place] for place in mine])

    def _fail(self, call: Call, error: OctoserveError) -> None:
        if call.batcher is None:
            return
        self._leave(call)
        call.error = error
        self._answer(call)
        self._count_failure(call, error)
        if call.arm is not None:
            # Inputs that a model refuses count against it: those that all versions refuse come to all arms alike.
            call.arm.failed(call, "refused" if error.reason == "invalid" else error.reason)

    def _count_failure(self, call: Call, error: OctoserveError) -> None:
        seconds = self._clock() - call.arrived
        self.statistics.failed(call.door, error.reason, seconds)
        if self.predictions is not None:
            self.predictions.failed(self.handle, call, seconds, error.reason)

    def _answer(self, call: Call) -> None:
        try:
            call.answered()
        except Exception:
            log.exception("an answer could not be written")

    # --- what a run costs ----------------------------------------------------------------------------

    def _predict(self, rows: int, size: int) -> float | None:
        """CPU seconds of a run of about `rows` rows and `size` bytes; None while nothing like it has run.

        By bytes too, since rows differ in size where a model's other dimensions vary: a long text after many
        short ones must not hold up the loop.
        """
        return self._costs.get(rows.bit_length() << 8 | size.bit_length())

    def _learn(self, rows: int, size: int, seconds: float, cpu: float | None) -> None:
        """Smoothed costs. The inline decision goes by CPU time, which a busy neighbour does not inflate.

        A run that was short by the clock took no more CPU time than that. One that was long may have waited for a
        core: it makes those after it doubted, and says nothing itself unless its CPU time was read.
        """
        if seconds > INLINE_SECONDS:
            self._doubted = _DOUBTED
        elif self._doubted:
            self._doubted -= 1
        cost = cpu if cpu is not None else seconds
        if cpu is not None or seconds <= INLINE_SECONDS:
            like = rows.bit_length() << 8 | size.bit_length()
            before = self._costs.get(like)
            self._costs[like] = cost if before is None else before + _SMOOTHING * (cost - before)
        per_row = seconds / max(rows, 1)
        self._row_seconds += (_SMOOTHING if self._row_seconds else 1.0) * (per_row - self._row_seconds)


def gather(calls: Sequence[Call], rows: int) -> list[Array]:
    """The inputs of many calls as one array each, row after row.

    Raw tensors are joined as bytes and become an array once; what one call brought alone is not copied.
    """
    first = calls[0]
    if len(calls) == 1:
        return [np.require(tensor.array(), requirements=["C", "A"]) for tensor in first.inputs]
    arrays: list[Array] = []
    for i, tensor in enumerate(first.inputs):
        column = [call.inputs[i] for call in calls]
        kind = DATATYPES[tensor.datatype]
        raws = [t.raw for t in column]
        if kind.kind not in ("bytes", "bool") and None not in raws:
            joined = np.frombuffer(b"".join(raws), dtype=kind.dtype)  # type: ignore[arg-type]
            arrays.append(joined.reshape(rows, *tensor.shape[1:]))
        else:
            arrays.append(np.concatenate([t.array() for t in column]))
    return arrays
