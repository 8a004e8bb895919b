"""Takes answered requests off the event loop, for the prediction log and for watching drift. Never costs who asked.

On the loop, once a run: a draw a request, a copy of the run's outputs, one append to a bounded queue. All else is
done in a thread: `block` makes records (`telemetry.predictions`) that go to this process's spool, `drift` counts.

    offered = written + sum(dropped) + waiting

in requests, where `written` are in the spool, which outlives the process, and `waiting` is what the queue holds:
nothing, once nothing comes. A full queue drops the newest. Counters of what happens on the loop are touched there
only, those of the thread there only.
"""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from octoserve.core.clock import Clock, monotonic
from octoserve.core.fields import fields_of
from octoserve.core.observation import LogSettings, Observations, Observed
from octoserve.core.results import Ran
from octoserve.core.tensors import Array
from octoserve.dataplane.batcher import gather
from octoserve.dataplane.call import Call
from octoserve.dataplane.drift import DriftCounts
from octoserve.dataplane.prediction_blocks import Blocks
from octoserve.dataplane.slo import INTERNAL
from octoserve.dataplane.thread import Hand, Thread
from octoserve.lifecycle.lease import Handle
from octoserve.telemetry.families import Family, Sample
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.predictions import OK, Block, spool_of
from octoserve.telemetry.spool import Spool

log = logging.getLogger(__name__)

GATHER = 0.25
"""Seconds that the thread lets requests gather, so that it works on many at once."""
CLOSING = 5.0
"""Seconds that a worker which leaves waits for what is under way to reach the spool."""
DROPS = ("queue_rows", "queue_bytes", "spool_full", "spool_error", "too_large", "failed", "closed")
_NAME = "octoserve_prediction_log"
_QUEUE_ROWS, _QUEUE_BYTES = 65_536, 32 << 20


class Taken:
    """Requests of one run that were drawn. outputs: their rows, in order; None where there is no answer."""

    __slots__ = ("calls", "handle", "outputs", "rows", "seconds", "size", "status", "time")

    def __init__(
        self,
        handle: Handle,
        calls: Sequence[Call],
        seconds: Sequence[float],
        outputs: list[Array] | None,
        status: str,
        rows: int,
        size: int,
    ) -> None:
        self.handle = handle
        self.calls = calls
        self.seconds = seconds
        self.outputs = outputs
        self.status = status
        self.time = time.time()
        self.rows = rows
        self.size = size

    def part(self, second: bool) -> Taken:
        """One half of its requests."""
        middle = len(self.calls) // 2
        row = sum(call.rows for call in self.calls[:middle])
        chosen, rows = (slice(middle, None), slice(row, None)) if second else (slice(middle), slice(row))
        outputs = None if self.outputs is None else [array[rows] for array in self.outputs]
        count = self.rows - row if second else row
        part = Taken(self.handle, self.calls[chosen], self.seconds[chosen], outputs, self.status, count, 0)
        part.time = self.time
        return part


class Accounts:
    """Counts of one model's log, in requests. `offered` and the queue's drops are the loop's, others the thread's."""

    def __init__(self) -> None:
        self.offered = 0
        self.written = 0
        self.dropped = dict.fromkeys(DROPS, 0)
        self.cut = 0
        self.waiting = 0
        """As it was when the others were last told."""

    def told(self) -> dict[str, int]:
        """All of one moment: what is offered is written, dropped, or waits. On the event loop."""
        found = {"written": self.written} | {f"dropped_{why}": count for why, count in self.dropped.items()}
        self.waiting = self.offered - sum(found.values())
        return {"offered": self.offered} | found


class Predictions:
    """Of one model. `answered` and `failed` are called on the event loop, `drain` in the thread."""

    def __init__(
        self,
        model: str,
        observed: Observed,
        accounts: Accounts | None,
        wake: Callable[[], None],
        drift: Callable[[Handle], DriftCounts | None],
        spool: Spool[Block] | None,
    ) -> None:
        """wake: have `drain` called soon, in the thread. drift: the counts of a version, if it has a profile."""
        self._model = model
        self._share = observed.sample
        self._per_log = 1 / math.log1p(-observed.sample) if 0 < observed.sample < 1 else 0.0
        self._passed_over = self._gap()
        self._log = observed.log
        self._accounts = accounts
        self._wake = wake
        self._drift = drift
        self._blocks = Blocks(observed.log) if observed.log is not None else None
        self._spool = spool
        settings = observed.log or LogSettings(to="", queue_rows=_QUEUE_ROWS, queue_size=_QUEUE_BYTES)
        self._max_rows, self._max_size = settings.queue_rows, settings.queue_size
        self._queue: deque[Taken] = deque()
        self._added_rows = self._added_size = 0
        self._gone_rows = self._gone_size = 0
        """The first are the loop's to change, the second the thread's: what waits is the difference."""
        self._closed = False
        self._complaint = ""

    # --- on the event loop -------------------------------------------------------------------------------

    def answered(self, handle: Handle, calls: Sequence[Call], seconds: Sequence[float], ran: Ran) -> None:
        """One run's answers have left; never raises, never waits."""
        try:
            if self._share < 1 or any([call.door == INTERNAL for call in calls]):  # noqa: C419 - the hot path
                drawn = self._draw(calls)
                if not drawn:
                    return
                calls, seconds = [calls[i] for i in drawn], [seconds[i] for i in drawn]
            rows = size = 0
            for call in calls:
                rows += call.rows
                size += call.nbytes
            for array in ran.arrays:
                size += array.nbytes
            if calls and self._has_room(len(calls), rows, size):
                try:
                    copies = _rows_of(calls, rows, ran)
                except Exception:
                    if self._accounts is not None:
                        self._accounts.dropped["failed"] += len(calls)  # offered they are already
                    raise
                self._add(Taken(handle, calls, seconds, copies, OK, rows, size))
        except Exception as error:
            self._complain(error)

    def failed(self, handle: Handle, call: Call, seconds: float, status: str) -> None:
        """An admitted request got no answer; never raises, never waits."""
        try:
            if self._log is not None and self._draw([call]) and self._has_room(1, call.rows, call.nbytes):
                self._add(Taken(handle, [call], [seconds], None, status, call.rows, call.nbytes))
        except Exception as error:
            self._complain(error)

    def _draw(self, calls: Sequence[Call]) -> Sequence[int]:
        """Places of those that are looked at. What the process asks itself is no prediction that anybody got.

        Each request has the same chance, whatever became of others: drawn is how many to pass over until the next one,
        which has a geometric distribution, so that most runs cost a comparison.
        """
        drawn = []
        at, count = self._passed_over, len(calls)
        while at < count:
            if calls[at].door != INTERNAL:
                drawn.append(at)
            at += 1 + self._gap()
        self._passed_over = at - count
        return drawn

    def _gap(self) -> int:
        return int(math.log(1.0 - random.random()) * self._per_log) if self._share < 1 else 0

    def _has_room(self, requests: int, rows: int, size: int) -> bool:
        accounts = self._accounts
        if accounts is not None:
            accounts.offered += requests
        if self._closed:
            reason = "closed"
        elif self._added_rows - self._gone_rows + rows > self._max_rows:
            reason = "queue_rows"
        elif self._added_size - self._gone_size + size > self._max_size:
            reason = "queue_bytes"
        else:
            return True
        if accounts is not None:
            accounts.dropped[reason] += requests
        return False

    def _add(self, taken: Taken) -> None:
        self._added_rows += taken.rows
        self._added_size += taken.size
        self._queue.append(taken)
        if len(self._queue) == 1:
            self._wake()

    # --- in the thread -----------------------------------------------------------------------------------

    def drain(self) -> None:
        """Everything that waits, in groups of one version and one shape."""
        queue = self._queue
        while queue:
            first = queue.popleft()
            some, requests, size = [first], len(first.calls), first.size
            while queue and _alike(queue[0], first):
                requests += len(queue[0].calls)
                size += queue[0].size
                if requests > Blocks.REQUESTS or size > Blocks.BYTES:
                    break
                some.append(queue.popleft())
            try:
                self._process(some)
            finally:
                for taken in some:
                    self._gone_rows += taken.rows
                    self._gone_size += taken.size

    def _process(self, some: Sequence[Taken]) -> None:
        handle = some[0].handle
        try:
            tensors = tensors_of(some)
            counts = self._drift(handle) if some[0].status == OK else None
            if counts is not None:
                counts.add(*tensors, handle.signature.batchable)
        except Exception as error:
            self._complain(error)
            tensors = None
        if self._blocks is not None:
            self._record(self._blocks, some, tensors)

    def _record(self, blocks: Blocks, some: Sequence[Taken], tensors: Tensors | None = None) -> None:
        assert self._spool is not None
        assert self._accounts is not None
        requests = sum(len(taken.calls) for taken in some)
        reason = "failed"
        try:
            block = blocks.of(some, *(tensors or tensors_of(some)))
            if self._spool.append(block):
                self._accounts.written += requests
                self._accounts.cut += sum(1 for names in block.cut if names)
                return
            reason = self._spool.reason
            if reason == "spool_error":
                self._complain(self._spool.error)
        except Exception as error:
            self._complain(error)
        if reason == "too_large" and requests > 1:  # together; one by one most of them may fit
            for half in _halves(some):
                self._record(blocks, half)
        else:
            self._accounts.dropped[reason] += requests

    def _complain(self, error: object) -> None:
        if str(error) != self._complaint:
            self._complaint = str(error)
            log.warning("predictions of %s are not recorded: %s", self._model, error)

    def rest(self) -> None:
        """Nothing is under way: about once a second."""
        if self._spool is not None:
            self._spool.rotate_if_due()

    def shut(self) -> None:
        """No more from now on; said on the event loop, or at its end."""
        self._closed = True

    def close(self) -> None:
        """The last call."""
        self.drain()
        if self._spool is not None:
            self._spool.close()


def _rows_of(calls: Sequence[Call], rows: int, ran: Ran) -> list[Array]:
    """Copies, which hold no batch in memory, and which no runtime writes into."""
    first = calls[0].result
    assert first is not None
    if first.rows is None or (ran.arrays and rows == len(ran.arrays[0])):
        return [array.copy() for array in ran.arrays]
    places: list[int] = []
    for call in calls:
        assert call.result is not None
        places.extend(range(call.result.start, call.result.start + call.rows))
    return [array[places] for array in ran.arrays]


Tensors = tuple[list[list[Array]], list[list[Array]]]


def tensors_of(some: Sequence[Taken]) -> Tensors:
    """Each input's arrays, and each output's; of what has no answer, no outputs."""
    signature = some[0].handle.signature
    calls = [call for taken in some for call in taken.calls]
    if signature.batchable:
        inputs = [[array] for array in gather(calls, sum(taken.rows for taken in some))]
    else:
        inputs = [[call.inputs[i].array() for call in calls] for i in range(len(signature.inputs))]
    if some[0].outputs is None:
        return inputs, []
    return inputs, [[(taken.outputs or [])[i] for taken in some] for i in range(len(signature.outputs))]


def _halves(some: Sequence[Taken]) -> tuple[Sequence[Taken], Sequence[Taken]]:
    middle = len(some) // 2
    return (some[:middle], some[middle:]) if middle else ([some[0].part(False)], [some[0].part(True)])


def _alike(one: Taken, other: Taken) -> bool:
    """Whether both go into one block: of one version, one outcome, and one shape, rows left out."""
    if one.handle is not other.handle or one.status != other.status:
        return False
    if one.calls[0].group != other.calls[0].group:
        return False
    return [a.shape[1:] for a in one.outputs or ()] == [a.shape[1:] for a in other.outputs or ()]


class AllPredictions:
    """Of all models of a process: one thread, a spool each.

    spool:  the folder above the models' own; see `spool_of`
    worker: the name of this process in it
    """

    def __init__(
        self,
        observations: Observations,
        registry: Registry,
        spool: Path,
        worker: str,
        clock: Clock = monotonic,
        thread: Callable[[str], Hand] = Thread,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._observations = observations
        self._spool = spool
        self._worker = worker
        self._clock = clock
        self._sleep = sleep
        self._new_thread = thread
        self._thread: Hand | None = None
        self._models: dict[str, Predictions | None] = {}
        self._accounts: dict[str, Accounts] = {}
        self._drifts: dict[tuple[str, int], DriftCounts] = {}
        if observations.any_log():
            for family in (self._told, self._cut, self._waiting):  # in this order
                registry.reading(family)
        if observations.any_drift():
            registry.reading(lambda: DriftCounts.family(list(self._drifts.values())))

    def _told(self) -> Family:
        samples = [
            Sample((model, what), float(count))
            for model, accounts in self._accounts.items()
            for what, count in accounts.told().items()
        ]
        help_ = "Requests drawn for the prediction log, and what came of them."
        return Family(f"{_NAME}_total", "counter", help_, ("model", "what"), (), tuple(samples))

    def _cut(self) -> Family:
        samples = tuple(Sample((model,), float(accounts.cut)) for model, accounts in self._accounts.items())
        help_ = "Requests that were recorded without all that they held: it was too large."
        return Family(f"{_NAME}_cut_total", "counter", help_, ("model",), (), samples)

    def _waiting(self) -> Family:
        samples = tuple(Sample((model,), float(accounts.waiting)) for model, accounts in self._accounts.items())
        help_ = "Requests on their way to the prediction log."
        return Family(f"{_NAME}_waiting", "gauge", help_, ("model",), (), samples)

    def of(self, handle: Handle) -> Predictions | None:
        """What takes this version's answers; None where nothing of its model is observed."""
        model = handle.ref.model
        if model not in self._models:
            self._models[model] = self._made(model)
        return self._models[model]

    def _made(self, model: str) -> Predictions | None:
        observed = self._observations.of(model)
        if observed.log is None and observed.drift is None:
            return None
        spool: Spool[Block] | None = None
        accounts: Accounts | None = None
        if observed.log is not None:
            accounts = self._accounts[model] = Accounts()
            spool = Spool(
                spool_of(self._spool, model, observed.log),
                self._worker,
                max_bytes=observed.log.spool_size,
                segment_bytes=observed.log.rotate_size,
                segment_seconds=observed.log.rotate,
                clock=self._clock,
            )
        return Predictions(
            model, observed, accounts, self._wake, self._counts if observed.drift is not None else _none, spool
        )

    def _counts(self, handle: Handle) -> DriftCounts | None:
        key = (handle.ref.model, handle.ref.version)
        counts = self._drifts.get(key)
        if counts is None or counts.digest != handle.ref.digest:
            counts = self._drifts[key] = DriftCounts(handle.ref, fields_of(handle.signature), self._clock)
        return counts if counts.ready() else None

    # --- the thread --------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._give(self._gathered)

    def _give(self, work: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = self._new_thread("predictions")
        self._thread.give(work)

    def _gathered(self) -> None:
        self._sleep(GATHER)
        self.drain()

    def drain(self) -> None:
        """Everything that waits; in the thread."""
        for predictions in list(self._models.values()):
            if predictions is not None:
                predictions.drain()

    def sweep(self) -> None:
        """To be called about once a second: what rests becomes readable."""
        if self._thread is not None:
            self._thread.give(self._rest)

    def _rest(self) -> None:
        for predictions in list(self._models.values()):
            if predictions is not None:
                predictions.rest()

    def close(self) -> None:
        """Leave everything in the spools; a disk that hangs gets CLOSING seconds. Blocking."""
        done = threading.Event()

        def close() -> None:
            for predictions in list(self._models.values()):
                if predictions is not None:
                    predictions.close()
            done.set()

        for predictions in self._models.values():
            if predictions is not None:
                predictions.shut()
        if self._thread is None:
            return
        self._thread.give(close)
        self._thread.stop()
        if not done.wait(CLOSING):
            log.warning("the prediction log's disk takes too long: what waits is lost (pid %d)", os.getpid())


def _none(_: Handle) -> None:
    return None
