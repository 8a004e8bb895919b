"""The mirror: the primary never waits for it, and every copy is accounted for, whatever the shadow does."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.comparison import Comparison, Difference
from octoserve.core.evidence import ALL, PairEvidence
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Tensor
from octoserve.dataplane.endpoint import DataPlane
from octoserve.dataplane.exposure import Exposure
from octoserve.dataplane.mirror import GIVES_WAY, LAST, SLOW, Copy, Mirror
from octoserve.dataplane.thread import Thread
from octoserve.lifecycle.lease import Handle
from octoserve.routing.plan import BUCKETS, MirrorTo, RoutePlan, split_arms
from octoserve.telemetry.metrics import Registry
from support.loops import FakeClock, InlineExecutor, drive, loop, ticks
from support.models import Asked, FakeModel, floats, handle_of, publish
from support.spans import tracer


class Slow:
    """A thread that works when the test says so."""

    def __init__(self) -> None:
        self.given: deque[Callable[[], None]] = deque()
        self.stopped = False
        self.niceness = 0

    def __call__(self, name: str) -> Slow:
        return self

    def give(self, work: Callable[[], None]) -> None:
        self.given.append(work)

    def give_way(self, niceness: int) -> None:
        self.niceness = niceness

    def stop(self) -> None:
        self.stopped = True

    def work(self) -> None:
        self.given.popleft()()
        drive(ticks())


class Judge:
    """Compares exactly; keeps everything, until it is full."""

    def __init__(self, room: int = 1000) -> None:
        self.pairs: list[tuple[str, str, tuple[str, ...]]] = []
        self.room = room
        self.rested = 0
        self.closed = False

    def compare(self, stable: Sequence[Tensor], others: Sequence[Tensor]) -> Difference:
        return Comparison().compare(stable, others)

    def keep(
        self, copy: Copy, kind: str, outputs: Any, error: str, seconds: float, difference: Difference | None
    ) -> bool:
        if len(self.pairs) >= self.room:
            return False
        self.pairs.append((kind, error, tuple(difference.outputs) if difference else ()))
        return True

    def rest(self) -> None:
        self.rested += 1

    def close(self) -> None:
        self.closed = True


def times(factor: float, name: str = "x") -> FakeModel:
    signature = Signature([TensorSpec(name, "FP32", (-1, -1))], [TensorSpec("y", "FP32", (-1, -1))], True)
    return FakeModel(signature, lambda x: [x * np.float32(factor)])


class Setting:
    """A mirror to version 2, and answered requests to offer."""

    def __init__(self, shadow: FakeModel, to: MirrorTo | None = None, **limits: Any) -> None:
        self.stable, self.shadow = handle_of(times(1), version=1), handle_of(shadow, version=2)
        self.exposure = Exposure("m", "r/0", keyed=False)
        self.thread, self.judge, self.clock = Slow(), Judge(), FakeClock()
        self.ready = True
        self.mirror = Mirror(
            to or MirrorTo(2, BUCKETS),
            self.exposure,
            self.handle,
            self.judge,
            loop(),
            self.clock,
            Registry().counter("c", "", ("endpoint", "version", "outcome")),
            thread=self.thread,
            **limits,
        )
        self.plane = DataPlane(Registry(), loop(), InlineExecutor(), clock=self.clock)
        publish(self.plane, self.stable)

    def handle(self, version: int) -> Handle | None:
        return {1: self.stable, 2: self.shadow}[version] if self.ready else None

    def offer(self, count: int = 1, number: float = 1.0) -> None:
        for _ in range(count):
            call = Asked([floats([[number, 2]])])
            self.plane.submit(call)
            drive(ticks(6))
            assert call.error is None
            self.mirror.offer(call, 0.001)

    def account(self) -> PairEvidence:
        told = self.exposure.pair(ALL).evidence()
        assert told.offered == told.sent + sum(told.dropped.values()) + self.mirror.pending
        assert told.sent == told.ok + told.error + told.timeout
        return told


def test_pairs_are_compared_and_kept() -> None:
    setting = Setting(times(2), MirrorTo(2, BUCKETS, BUCKETS))
    setting.offer(3)
    setting.thread.work()
    told = setting.account()
    assert (told.ok, told.compared, told.disagreed, told.outputs) == (1, 1, 1, {"y": 1})
    assert (told.noise_compared, told.noise_disagreed) == (1, 0)
    assert setting.judge.pairs == [("shadow", "", ("y",)), ("noise", "", ())]


def test_a_sampled_requests_copy_is_a_trace_of_its_own() -> None:
    setting = Setting(times(2), MirrorTo(2, BUCKETS, BUCKETS))
    of, spans = tracer()
    call = Asked([floats([[1, 2]])])
    setting.plane.submit(call)
    drive(ticks(6))
    call.trace = span = of.begin({}, "request")
    assert span is not None
    setting.mirror.offer(call, 0.001)
    setting.thread.work()
    assert setting.account().ok == 1
    candidate, again = spans.named("shadow")
    assert [s.attributes["octoserve.version"] for s in (candidate, again)] == [2, 1]
    assert [link.span for link in candidate.links] == [span.id]
    assert candidate.trace != span.trace


def test_what_waits_goes_on_after_a_rest() -> None:
    setting = Setting(times(1), share=1.0)
    setting.offer(3)
    setting.thread.work()
    drive(ticks(5))
    setting.thread.work()
    assert setting.account().ok == 3
    assert setting.account().disagreed == 0


def test_a_full_queue_drops_the_newest() -> None:
    setting = Setting(times(1), queue=2)
    setting.offer(10)
    told = setting.account()
    assert told.dropped == {"queue_full": 7}
    assert setting.mirror.pending == 3


def test_bytes_are_bounded_too() -> None:
    setting = Setting(times(1), queue_bytes=40)
    setting.offer(5)
    assert setting.account().dropped == {"queue_bytes": 2}


def test_a_shadow_that_fails_is_counted_and_not_compared() -> None:
    shadow = times(1)
    shadow.poison = {7.0}
    setting = Setting(shadow)
    setting.offer(number=7.0)
    setting.thread.work()
    told = setting.account()
    assert (told.error, told.compared) == (1, 0)
    assert setting.judge.pairs[0][1] == "RuntimeError: poisoned"


def test_a_shadow_of_another_signature_says_so() -> None:
    setting = Setting(times(1, name="z"))
    setting.offer()
    setting.thread.work()
    assert setting.account().error == 1
    assert "'z' is missing" in setting.judge.pairs[0][1]


def test_a_system_without_threads_to_give_costs_the_copies_and_no_more() -> None:
    def none_left(name: str) -> Slow:
        raise RuntimeError("can't start new thread")

    setting = Setting(times(1))
    setting.mirror._new_thread = none_left
    setting.offer(2)
    assert setting.account().dropped == {"no_thread": 2}
    assert setting.shadow.leases == 0
    setting.mirror._new_thread = setting.thread
    setting.offer()
    setting.thread.work()
    assert setting.account().ok == 1


def test_a_shadow_that_hangs_is_given_up_and_the_accounts_stay_exact() -> None:
    setting = Setting(times(1), timeout=5.0)
    setting.offer(4)
    setting.clock.advance(6)
    setting.mirror.look_for_stalls()
    assert setting.thread.stopped, "the one that is left behind ends with its run"
    assert setting.account().timeout == 1
    assert setting.mirror.pending == 3, "they wait for a fresh thread"
    setting.clock.advance(6)
    setting.mirror.look_for_stalls()
    told = setting.account()
    assert told.timeout == 2
    assert told.dropped == {"stalled": 2}
    assert setting.shadow.leases == 2, "what hangs still holds the version"
    setting.offer()
    assert setting.account().dropped == {"stalled": 3}
    setting.thread.work()
    setting.thread.work()
    assert setting.shadow.leases == 0
    setting.offer()
    setting.thread.work()
    assert setting.account().ok == 1


@pytest.mark.parametrize(("seconds", "niceness"), [(SLOW / 2, 0), (SLOW * 2, GIVES_WAY)])
def test_a_thread_with_slow_runs_gives_way(seconds: float, niceness: int) -> None:
    shadow = times(1)
    setting = Setting(shadow)
    run = shadow.function
    shadow.function = lambda x: [setting.clock.advance(seconds), *run(x)][1:]
    setting.offer()
    setting.thread.work()
    assert setting.account().ok == 1
    assert setting.thread.niceness == niceness


def test_a_thread_that_was_left_to_itself_is_the_last_to_get_a_core() -> None:
    setting = Setting(times(1), timeout=5.0)
    setting.offer()
    setting.clock.advance(6)
    setting.mirror.look_for_stalls()
    assert setting.account().timeout == 1
    assert setting.thread.niceness == LAST


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no priorities of threads by this call")
def test_a_threads_niceness_is_its_own_and_is_never_raised() -> None:
    thread, seen, done = Thread("t"), [], Event()

    def look() -> None:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread.give_way(GIVES_WAY)
    thread.give(look)
    thread.give_way(1)
    thread.give(look)
    thread.give(done.set)
    assert done.wait(10)
    thread.stop()
    assert seen == [max(GIVES_WAY, before)] * 2
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_a_version_that_is_not_ready_gets_nothing() -> None:
    setting = Setting(times(1))
    setting.ready = False
    setting.offer(2)
    assert setting.account().dropped == {"not_ready": 2}


def test_what_cannot_be_stored_is_still_counted() -> None:
    setting = Setting(times(2))
    setting.judge.room = 0
    setting.offer()
    setting.thread.work()
    assert setting.account().compared == 1


def test_closing_drops_what_waits() -> None:
    setting = Setting(times(1))
    setting.offer(3)
    setting.mirror.close()
    setting.thread.work()
    setting.thread.work()
    assert setting.judge.closed
    told = setting.account()
    assert told.dropped == {"closed": 2}
    assert told.ok == 1
    assert setting.thread.stopped


def test_a_run_that_hangs_when_the_mirror_closes_is_counted_too() -> None:
    setting = Setting(times(1), timeout=5.0)
    setting.offer(1)
    setting.mirror.close()
    assert not setting.mirror.is_over
    setting.clock.advance(6)
    setting.mirror.look_for_stalls()
    assert setting.mirror.is_over
    told = setting.account()
    assert (told.offered, told.timeout) == (1, 1)
    setting.thread.given.popleft()  # it never comes back; another thread has closed the pairs
    setting.thread.work()
    assert setting.judge.closed


def test_pairs_are_closed_though_the_last_thread_was_left_behind() -> None:
    setting = Setting(times(1), timeout=5.0)
    setting.offer(2)
    for _ in range(2):
        setting.clock.advance(6)
        setting.mirror.look_for_stalls()
    hung = [setting.thread.given.popleft() for _ in range(2)]
    setting.mirror.close()
    setting.thread.work()
    assert setting.judge.closed
    assert not setting.thread.given
    for run in hung:  # should they come back after all
        run()
        drive(ticks())
    assert not setting.thread.given, "closed once"
    assert setting.shadow.leases == 0


def test_a_mirror_that_was_never_used_is_closed_without_a_thread() -> None:
    setting = Setting(times(1))
    setting.mirror.close()
    assert not setting.thread.given
    assert setting.mirror.is_over


@given(st.integers(0, BUCKETS))
def test_the_share_is_kept(share: int) -> None:
    setting = Setting(times(1), MirrorTo(2, share))
    call = Asked([floats([[1.0, 2]])])
    setting.plane.submit(call)
    drive(ticks(6))
    for _ in range(300):
        setting.mirror.offer(call, 0.001)
    want = share / BUCKETS
    assert abs(setting.account().offered / 300 - want) < 6 * (want * (1 - want) / 300) ** 0.5 + 1e-9


@pytest.mark.parametrize("weight", [0, 2000])
def test_a_plan_with_a_mirror_copies_what_stable_answers(weight: int) -> None:
    judge = Judge()
    plane = DataPlane(Registry(), loop(), InlineExecutor(), clock=FakeClock(), judges=lambda plan, version: judge)
    publish(plane, handle_of(times(1), version=1), handle_of(times(2), version=2))
    plan = RoutePlan("m", 2, split_arms(1, 2, weight), mirrors=(MirrorTo(2, BUCKETS),), stratum="r/0")
    plane.route([plan], {}, [("m", 1), ("m", 2)])
    calls = [Asked([floats([[1.0]])]) for _ in range(40)]
    for call in calls:
        plane.submit(call)
        drive(ticks(6))
    stable = sum(call.rows_of()[0, 0] == 1 for call in calls)
    [seen] = plane.splits.seen()
    assert seen.evidence.pairs[ALL].offered == stable


def test_a_plan_that_ends_leaves_no_copy_uncounted() -> None:
    """Its mirror's last run hangs: it is given up and counted though no plan knows the mirror any more."""
    registry, clock, shadow = Registry(), FakeClock(), times(2)
    shadow.gate = Event()
    plane = DataPlane(registry, loop(), InlineExecutor(), clock=clock, judges=lambda plan, version: Judge())
    publish(plane, handle_of(times(1), version=1), handle_of(shadow, version=2))
    ready = [("m", 1), ("m", 2)]
    plane.route([RoutePlan("m", 2, split_arms(1, 2, 0), mirrors=(MirrorTo(2, BUCKETS),), stratum="r/0")], {}, ready)
    plane.submit(Asked([floats([[1.0]])]))
    drive(ticks(6))
    assert shadow.started.wait(10)
    plane.route([RoutePlan.to("m", 1, 3)], {}, ready)
    clock.advance(60)
    plane.splits.sweep()
    [family] = [f for f in registry.families() if f.name == "octoserve_mirror_total"]
    told = {sample.labels[2]: sample.total for sample in family.samples}
    assert told == {"offered": 1, "sent": 1, "timeout": 1}
    shadow.gate.set()


class Whose(Asked):
    """A call whose customer stands in a header."""

    def header(self, name: str) -> str | None:
        return "ann" if name == "x-customer" else None


@pytest.mark.parametrize(("key", "want"), [("header:x-customer", b"ann"), ("header:x-other", None), ("", None)])
def test_a_copy_says_whose_request_it_was(key: str, want: bytes | None) -> None:
    keys: list[bytes | None] = []
    kept = Event()

    class Keys(Judge):
        def keep(self, copy: Copy, *rest: Any) -> bool:
            keys.append(copy.key)
            kept.set()
            return super().keep(copy, *rest)

    plane = DataPlane(Registry(), loop(), InlineExecutor(), clock=FakeClock(), judges=lambda plan, version: Keys())
    publish(plane, handle_of(times(1), version=1), handle_of(times(2), version=2))
    mirrors = (MirrorTo(2, BUCKETS),)
    plane.route(
        [RoutePlan("m", 2, split_arms(1, 2, 0), mirrors=mirrors, stratum="r/0", key=key)], {}, [("m", 1), ("m", 2)]
    )
    plane.submit(Whose([floats([[1.0]])]))
    drive(ticks(6))
    assert kept.wait(10)  # the mirror's thread is a real one
    assert keys == [want]
