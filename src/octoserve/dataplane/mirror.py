"""The mirror: copies of answered requests for a candidate, which never cost the one who asked.

The stable answer has left before a copy is offered. Copies wait in a queue of their own, bounded in number and
bytes (the newest is dropped, and counted by reason), and run in a thread of their own, a few at a time, for at most
`share` of the time: a candidate that is slow, hung, failing or overloaded fills its queue and nothing else.

    offered = sent + sum(dropped),  sent = ok + error + timeout

Every counter is touched on the event loop only. A run cannot be cut; one that exceeds its time is given up
(`timeout`), its thread left to itself with the leases it holds, and a fresh one goes on; with ABANDONED of
them, everything is dropped as `stalled` until one comes back. A thread whose runs are slow gives way to all others
on its core, and one that was left to itself gets only what nobody else wants.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from octoserve.core.clock import Clock
from octoserve.core.comparison import Difference
from octoserve.core.errors import OctoserveError
from octoserve.core.evidence import ALL
from octoserve.core.tensors import Tensor
from octoserve.dataplane.call import Call
from octoserve.dataplane.exposure import Exposure
from octoserve.dataplane.thread import Hand, Thread
from octoserve.dataplane.traced import copied
from octoserve.lifecycle.lease import Handle
from octoserve.routing.plan import BUCKETS, MirrorTo
from octoserve.telemetry.metrics import Metric

log = logging.getLogger(__name__)

QUEUE = 256
QUEUE_BYTES = 32 << 20
CHUNK = 16
"""Copies handed to the thread at a time: one hand-over for all of them."""
TIMEOUT = 10.0
"""Seconds that one run of the candidate may take."""
SHARE = 0.25
"""Of the time that the thread may work: it shares the interpreter, and perhaps the core, with those who wait."""
ABANDONED = 2
SLOW = 0.005
"""Seconds. Whoever wakes up while a run takes longer than this would notice that it has the core."""
GIVES_WAY, LAST = 10, 19
"""Niceness of a thread with slow runs, and of one that was left to itself. The first is no higher, since between two
runs it holds the interpreter's lock, and those who wait for that wait as long as it waits for a core."""


class Copy:
    """A request that was answered, and its answer: copied, so that it holds no batch in memory."""

    __slots__ = (
        "arrived",
        "inputs",
        "key",
        "nbytes",
        "noise",
        "rows",
        "seconds",
        "segments",
        "stable",
        "trace",
        "version",
    )

    def __init__(self, call: Call, seconds: float, noise: bool, version: int) -> None:
        assert call.result is not None
        self.inputs = [Tensor.of(t.name, np.array(t.array()), t.datatype) for t in call.inputs]
        self.stable = [Tensor.of(t.name, np.array(t.array()), t.datatype) for t in call.result.tensors()]
        self.nbytes = sum(t.nbytes() for t in (*self.inputs, *self.stable))
        self.rows = call.rows
        self.key = call.key
        self.segments = call.segments
        self.seconds = seconds
        self.noise = noise
        self.version = version
        self.trace = call.trace
        self.arrived = time.time()


class Outcome:
    """What a copy came to. `noise` is None where the stable version was not asked again."""

    __slots__ = ("copy", "difference", "error", "noise", "stored")

    def __init__(self, copy: Copy) -> None:
        self.copy = copy
        self.error = ""
        self.difference: Difference | None = None
        self.noise: Difference | None = None
        self.stored = True


class Judge(Protocol):
    """Compares answers and keeps pairs; called in the mirror's thread."""

    def compare(self, stable: Sequence[Tensor], others: Sequence[Tensor]) -> Difference:
        """How two answers to one request differ."""
        ...

    def keep(
        self,
        copy: Copy,
        kind: str,
        outputs: Sequence[Tensor] | None,
        error: str,
        seconds: float,
        difference: Difference | None,
    ) -> bool:
        """Store a pair; False if there is no room for it."""
        ...

    def rest(self) -> None:
        """Nothing is under way: about once a second."""
        ...

    def close(self) -> None:
        """The last call."""
        ...


class Chunk:
    """Copies under way in the thread."""

    def __init__(self, copies: list[Copy], candidate: Handle, stable: Handle | None) -> None:
        self.copies = copies
        self.candidate = candidate
        self.stable = stable
        self.outcomes: list[Outcome] = []
        self.began = 0.0
        """When the run in hand began; of the mirror's clock."""
        self.given_up = False


class Mirror:
    """Copies of one endpoint's requests for one candidate. Lives on the event loop.

    handles: version -> its handle if it is ready here; asked anew for each chunk
    """

    def __init__(
        self,
        to: MirrorTo,
        exposure: Exposure,
        handles: Callable[[int], Handle | None],
        judge: Judge,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        totals: Metric,
        *,
        queue: int = QUEUE,
        queue_bytes: int = QUEUE_BYTES,
        timeout: float = TIMEOUT,
        share: float = SHARE,
        thread: Callable[[str], Hand] | None = None,
    ) -> None:
        self.to = to
        self.exposure = exposure
        self._handles = handles
        self._judge = judge
        self._loop = loop
        self._clock = clock
        self._totals = totals
        self._max_queue, self._max_bytes = queue, queue_bytes
        self._timeout, self._share = timeout, share
        self._queue: deque[Copy] = deque()
        self._bytes = 0
        self._chunk: Chunk | None = None
        self._resting = False
        self._abandoned = 0
        self._closed = False
        self._new_thread = thread or Thread
        self._thread: Hand | None = None
        self._unjudged = True
        """Whether the judge has nothing to close."""

    # --- in --------------------------------------------------------------------------------------------

    def offer(self, call: Call, seconds: float) -> None:
        """Perhaps copy an answered request; never raises, never waits."""
        to = self.to
        draw = random.random() * BUCKETS
        if draw >= to.share or call.result is None:
            return
        self._count("offered", call.segments)
        if self._closed:
            self._drop("closed", call.segments)
        elif self._abandoned >= ABANDONED:
            self._drop("stalled", call.segments)
        elif len(self._queue) >= self._max_queue:
            self._drop("queue_full", call.segments)
        else:
            self._take(call, seconds)

    def _take(self, call: Call, seconds: float) -> None:
        assert call.result is not None
        noise = self.to.noise > 0 and random.random() * BUCKETS < self.to.noise
        try:
            copy = Copy(call, seconds, noise, call.result.ran.version)
        except Exception as error:
            log.warning("a request could not be copied: %s", error)
            self._drop("not_copied", call.segments)
            return
        if self._bytes + copy.nbytes > self._max_bytes:
            self._drop("queue_bytes", call.segments)
            return
        self._queue.append(copy)
        self._bytes += copy.nbytes
        self._go_on()

    def close(self) -> None:
        """No more copies; what waits is dropped, and counted; what runs is finished."""
        self._closed = True
        self._drop_all("closed")
        if self._chunk is None:
            self._stop_thread()

    def _stop_thread(self) -> None:
        """The judge's last call, in a thread like all of them: a new one, where the last is left to a hung run."""
        if self._unjudged:
            return
        self._unjudged = True
        try:
            thread = self._thread or self._new_thread(f"mirror {self.exposure.endpoint}")
        except RuntimeError:
            log.warning("mirror %s: no thread to close its pairs with; they wait for the process's end", self._labels())
            return
        thread.give(self._judge.close)
        thread.stop()
        self._thread = None

    @property
    def is_over(self) -> bool:
        """Closed, and nothing is under way whose outcome is still to be counted."""
        return self._closed and self._chunk is None

    @property
    def pending(self) -> int:
        """Copies that wait or run."""
        return len(self._queue) + (len(self._chunk.copies) - len(self._chunk.outcomes) if self._chunk else 0)

    # --- through -----------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        if self._chunk is not None or self._resting or not self._queue or self._abandoned >= ABANDONED:
            return
        candidate = self._handles(self.to.version)
        if candidate is None:
            self._drop_all("not_ready")
            return
        if self._thread is None:
            try:
                self._thread = self._new_thread(f"mirror {self.exposure.endpoint}")
            except RuntimeError:  # the system has no more of them
                self._drop_all("no_thread")
                return
        self._unjudged = False
        copies = [self._pop() for _ in range(min(CHUNK, len(self._queue)))]
        stable = self._handles(copies[0].version) if any(copy.noise for copy in copies) else None
        candidate.leases += 1
        if stable is not None:
            stable.leases += 1
        chunk = self._chunk = Chunk(copies, candidate, stable)
        chunk.began = self._clock()
        self._thread.give(lambda: self._work(chunk))

    def _drop_all(self, reason: str) -> None:
        while self._queue:
            self._drop(reason, self._pop().segments)

    def _pop(self) -> Copy:
        copy = self._queue.popleft()
        self._bytes -= copy.nbytes
        return copy

    def look_for_stalls(self) -> None:
        """Give up a run that takes too long. Called about once a second by the owner."""
        chunk = self._chunk
        if chunk is None and self._thread is not None:
            self._thread.give(self._judge.rest)
        if chunk is None or self._clock() - chunk.began <= self._timeout:
            return
        done = len(chunk.outcomes)
        if done == len(chunk.copies):
            return  # it is back, and about to say so
        chunk.given_up = True
        self._settle(chunk.outcomes[:done])
        self._count("sent", chunk.copies[done].segments)
        self._count("timeout", chunk.copies[done].segments)
        for copy in reversed(chunk.copies[done + 1 :]):  # their turn comes again
            self._queue.appendleft(copy)
            self._bytes += copy.nbytes
        self._abandoned += 1
        if self._thread is not None:
            self._thread.give_way(LAST)
            self._thread.stop()  # should its run come back after all
        self._thread, self._chunk = None, None
        if self._closed:
            self._drop_all("closed")
            self._stop_thread()
        elif self._abandoned >= ABANDONED:
            self._drop_all("stalled")
        self._go_on()

    def _finished(self, chunk: Chunk, took: float) -> None:
        chunk.candidate.release()
        if chunk.stable is not None:
            chunk.stable.release()
        if chunk.given_up:
            self._abandoned -= 1
        else:
            self._settle(chunk.outcomes)
            self._chunk = None
            self._resting = True
            if took > SLOW * len(chunk.copies) and self._thread is not None:
                self._thread.give_way(GIVES_WAY)
            self._loop.call_later(took * (1 / self._share - 1), self._rested)
        if self._closed and self._chunk is None:
            self._stop_thread()

    def _rested(self) -> None:
        self._resting = False
        self._go_on()

    # --- in the thread -----------------------------------------------------------------------------------

    def _work(self, chunk: Chunk) -> None:
        began = self._clock()
        for copy in chunk.copies:
            if chunk.given_up:
                break
            chunk.began = self._clock()
            outcome = self._run(chunk, copy)
            if chunk.given_up:
                break  # it was counted as a timeout meanwhile
            chunk.outcomes.append(outcome)
        took = self._clock() - began
        try:
            self._loop.call_soon_threadsafe(self._finished, chunk, took)
        except RuntimeError:
            log.debug("the event loop closed during a mirrored run")

    def _run(self, chunk: Chunk, copy: Copy) -> Outcome:
        outcome = Outcome(copy)
        outputs, seconds = self._ask(chunk.candidate, copy, outcome)
        if outputs is not None:
            outcome.difference = self._compare(copy, outputs, outcome)
        if chunk.given_up:
            return outcome  # counted as a timeout by now, and another thread keeps pairs
        outcome.stored = self._keep(copy, "shadow", outputs, outcome.error, seconds, outcome.difference)
        if copy.noise and chunk.stable is not None and not outcome.error:
            again = Outcome(copy)
            outputs, seconds = self._ask(chunk.stable, copy, again)
            if outputs is not None:
                outcome.noise = self._compare(copy, outputs, again)
                if not chunk.given_up:
                    self._keep(copy, "noise", outputs, again.error, seconds, outcome.noise)
        return outcome

    def _ask(self, handle: Handle, copy: Copy, outcome: Outcome) -> tuple[list[Tensor] | None, float]:
        began = self._clock()
        try:
            signature = handle.signature
            order = signature.check(copy.inputs).order  # the candidate may take its inputs in another order, or refuse
            inputs = [copy.inputs[i].array() for i in order]
            run = handle.loaded.run
            arrays = run(inputs) if copy.trace is None else copied(copy.trace, handle, run, inputs)
            outputs = [Tensor.of(s.name, a, s.datatype) for s, a in zip(signature.outputs, arrays, strict=True)]
        except OctoserveError as error:
            outcome.error = str(error)[:500] or type(error).__name__
        except Exception as error:
            outcome.error = f"{type(error).__name__}: {error}"[:500]
        else:
            return outputs, self._clock() - began
        return None, self._clock() - began

    def _compare(self, copy: Copy, outputs: list[Tensor], outcome: Outcome) -> Difference | None:
        try:
            return self._judge.compare(copy.stable, outputs)
        except Exception as error:
            log.exception("a pair could not be compared")
            outcome.error = f"could not be compared: {error}"
            return None

    def _keep(
        self,
        copy: Copy,
        kind: str,
        outputs: Sequence[Tensor] | None,
        error: str,
        seconds: float,
        difference: Difference | None,
    ) -> bool:
        try:
            return self._judge.keep(copy, kind, outputs, error, seconds, difference)
        except Exception:
            log.exception("a pair could not be kept")
            return False

    # --- accounts ----------------------------------------------------------------------------------------

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            segments = outcome.copy.segments
            self._count("sent", segments)
            self._count("error" if outcome.error else "ok", segments)
            if not outcome.stored:
                self._totals.counter(*self._labels(), "not_stored").add()
            if outcome.difference is not None:
                self._compared(outcome.difference, outcome.noise, segments)

    def _compared(self, difference: Difference, noise: Difference | None, segments: Sequence[str]) -> None:
        for segment in (ALL, *segments):
            counts = self.exposure.pair(segment)
            counts.compared += 1
            counts.disagreed += not difference.agreed
            for name in difference.outputs:
                counts.outputs[name] = counts.outputs.get(name, 0) + 1
            if noise is not None:
                counts.noise_compared += 1
                counts.noise_disagreed += not noise.agreed

    def _count(self, what: str, segments: Sequence[str]) -> None:
        for segment in (ALL, *segments):
            counts = self.exposure.pair(segment)
            setattr(counts, what, getattr(counts, what) + 1)
        self._totals.counter(*self._labels(), what).add()

    def _drop(self, reason: str, segments: Sequence[str]) -> None:
        for segment in (ALL, *segments):
            dropped = self.exposure.pair(segment).dropped
            dropped[reason] = dropped.get(reason, 0) + 1
        self._totals.counter(*self._labels(), f"dropped_{reason}").add()

    def _labels(self) -> tuple[str, str]:
        return self.exposure.endpoint, str(self.to.version)
