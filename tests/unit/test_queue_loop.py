"""The loop of a queue: the order of its steps, what fails and what does not, back-pressure, suspects, fences."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.codecs.json_rows import JsonRows
from octoserve.connectors.queues.columns import values
from octoserve.connectors.queues.protocol import (
    Fenced,
    Lag,
    Message,
    Move,
    Position,
    Results,
    SinkTraits,
    Stored,
)
from octoserve.core.errors import InvalidInput, Unavailable
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Tensor
from octoserve.core.trace_context import Tracing
from octoserve.dataplane.table import ScoredTable
from octoserve.patterns.message_queue.ledger import ENDED, Attempts, SqliteLedger
from octoserve.patterns.message_queue.loop import Limits, Loop, Stopped, Work, portions
from octoserve.patterns.message_queue.outcome import Policy
from octoserve.patterns.message_queue.scoring import score
from octoserve.patterns.message_queue.statistics import Statistics
from octoserve.patterns.message_queue.traced import Traced
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.tracing import Tracer
from support.queues import MemorySink, MemorySource, Ticking, in_thread, message
from support.spans import Spans
from support.supervised import until

SIGNATURE = Signature([TensorSpec("x", "FP32", (-1,))], [TensorSpec("y", "FP32", (-1,))], batchable=True)


class Scorer:
    """y = 2x. poison: values that raise what they are mapped to."""

    name, version = "m", 4

    def __init__(self) -> None:
        self.poison: dict[float, BaseException] = {}
        self.runs: list[list[float]] = []

    def score(self, columns: Sequence[Tensor]) -> ScoredTable:
        x = columns[0].array()
        self.runs.append(x.tolist())
        for value in x.ravel().tolist():
            if value in self.poison:
                raise self.poison[value]
        return ScoredTable({"y": x * 2}, np.full(len(x), self.version))


class Bench:
    """A loop over things in memory, with a real ledger."""

    def __init__(
        self, tmp_path: Any, messages: Sequence[Message], shape: str = "acks", aside: bool = False, **limits: Any
    ) -> None:
        self.source = MemorySource(messages, shape)
        self.sink = MemorySink(SinkTraits(transactional=True, idempotent=True, aside=aside))
        self.scorer = Scorer()
        self.clock, self.wall = Ticking(), Ticking(2e9)
        self.source.on_hold = self.clock.pass_
        self.stopping = False
        self.traced: Traced | None = None
        self.tmp_path = tmp_path
        self.registry = Registry()
        self.statistics = Statistics(self.registry, "m", self.wall)
        self.told: list[dict[str, int]] = []
        """What was counted when the figures had to be told at once."""
        self.limits = Limits(**{"rows": 100, "nbytes": 1 << 20, "seconds": 1.0, "idle": None, **limits})
        self.loop = self.another("a")

    def another(self, owner: str, attempts: int = 3) -> Loop:
        """What the next process has."""
        self.ledger = SqliteLedger(self.tmp_path, self.source.name, owner, wall=self.wall)
        decode, outputs = JsonRows(SIGNATURE).decode, SIGNATURE.outputs
        work = Work(
            self.scorer, decode, outputs, Policy(attempts, 1.0),
            lambda messages, tried: score(self.scorer, decode, outputs, messages, nullcontext),
        )  # fmt: skip
        return Loop(
            self.source, self.sink, self.ledger, work, self.limits, self.statistics, lane=owner,
            stop=lambda: self.stopping, beat=self.beat, clock=self.clock, wall=self.wall, traced=self.traced,
        )  # fmt: skip

    def beat(self, now: bool) -> None:
        if now:
            self.told.append(self.outcomes())

    def begun(self) -> Loop:
        """Its source is open."""
        self.source.open(self.loop)
        return self.loop

    def again(self, messages: Sequence[Message]) -> None:
        """They come once more."""
        import msgspec

        self.source.arrived.extend(msgspec.structs.replace(m, deliveries=m.deliveries + 1) for m in messages)

    def outcomes(self) -> dict[str, int]:
        return {word: int(counter.value) for word, counter in self.statistics.outcomes.items() if counter.value}


def some(count: int, **fields: Any) -> list[Message]:
    return [message(i, id=f"m{i}", published=2e9 - 1, **fields) for i in range(count)]


def test_what_comes_is_scored_stored_and_settled(tmp_path):
    bench = Bench(tmp_path, some(5))
    assert bench.begun().step() == 5
    assert {id: values for id, (_, values) in bench.sink.rows.items()} == {f"m{i}": (2.0 * i,) for i in range(5)}
    assert {version for version, _ in bench.sink.rows.values()} == {4}
    assert [p.offset for p in bench.source.settled] == [0, 1, 2, 3, 4]
    assert bench.outcomes() == {"stored": 5}
    assert bench.loop.step() == 0


def test_a_sampled_message_has_a_span_and_carries_it_on(tmp_path, monkeypatch):
    kept = Spans()
    sender = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    messages = [message(0, id="a", headers=sender), message(1, id="b"), message(2, id="c", headers=sender)]
    bench = Bench(tmp_path, messages)
    bench.traced = Traced(Tracer(kept, Tracing(share=0.0)), "memory:orders", "memory", "m")
    bench.loop = bench.another("a")
    bench.scorer.poison = {2.0: RuntimeError("no luck")}
    stored: list[Message] = []
    retried: list[Message] = []
    store, retry = bench.sink.store, bench.source.retry
    monkeypatch.setattr(bench.sink, "store", lambda r, moves: (stored.extend(r.messages), store(r, moves))[1])
    monkeypatch.setattr(bench.source, "retry", lambda m, *rest: (retried.append(m), retry(m, *rest))[1])
    bench.begun().step()
    score, *processed = kept.spans
    good, bad = sorted(processed, key=lambda span: span.attributes["messaging.message.id"])
    assert (good.name, good.kind, f"{good.parent:016x}") == ("process orders", "consumer", "00f067aa0ba902b7")
    assert (score.name, score.parent) == ("score", good.id)
    assert [link.span for link in score.links] == [good.id, bad.id]
    assert (good.error, good.attributes["octoserve.version"]) == ("", 4)
    assert (bad.error, bad.fault, bad.attributes["octoserve.fate"]) == ("RuntimeError: no luck", True, "retry")
    assert [dict(m.headers) for m in retried] == [bad.headers()]
    assert {m.name: dict(m.headers) for m in stored} == {"q/0": good.headers(), "q/1": {}}


def test_the_attempt_is_kept_before_the_run_and_the_result_before_the_source_is_told(tmp_path):
    bench = Bench(tmp_path, some(2))
    order: list[str] = []

    def noting(what: Any, name: str) -> None:
        real = getattr(what, name)

        def noted(*args: Any, **named: Any) -> Any:
            order.append(name)
            return real(*args, **named)

        setattr(what, name, noted)

    bench.scorer.poison[1.0] = InvalidInput("never")
    for what, name in (
        (bench.ledger, "begin"), (bench.scorer, "score"), (bench.ledger, "failed"), (bench.source, "bury"),
        (bench.sink, "store"), (bench.source, "settle"),
    ):  # fmt: skip
        noting(what, name)
    bench.begun().step()
    assert order == ["begin", "score", "score", "score", "failed", "bury", "store", "settle"]


def test_a_failing_message_is_found_and_its_mates_succeed(tmp_path):
    bench = Bench(tmp_path, some(16))
    bench.scorer.poison = {3.0: RuntimeError("no luck"), 11.0: InvalidInput("x is too much")}
    bench.begun().step()
    assert sorted(bench.sink.rows) == sorted(f"m{i}" for i in range(16) if i not in (3, 11))
    assert bench.source.retried == [(Position("", 3), "m3", 1, 1.0)]
    (letter,) = bench.source.buried
    assert (letter.id, letter.origin, letter.attempts) == ("m11", "q/11", 1)
    assert (letter.history[0].error, letter.history[0].by) == ("x is too much", "m version 4")
    assert Position("", 3) not in bench.source.settled
    assert Position("", 11) in bench.source.settled
    assert bench.outcomes() == {"stored": 14, "retried": 1, "dead": 1}
    assert bench.told == [{"dead": 1}], "a dead letter is told at once"


def test_the_third_failure_is_the_last_and_delays_double(tmp_path):
    bench = Bench(tmp_path, some(1))
    bench.scorer.poison = {0.0: RuntimeError("no luck")}
    bench.begun()
    bench.loop.step()
    for _ in range(2):
        bench.again(some(1))
        bench.loop.step()
    assert [(attempt, delay) for _, _, attempt, delay in bench.source.retried] == [(1, 1.0), (2, 2.0)]
    (letter,) = bench.source.buried
    assert [f.error for f in letter.history] == ["RuntimeError: no luck"] * 3
    assert bench.sink.rows == {}
    assert bench.ledger.suspects([Position("", 0)]) == {}, "what is over is forgotten"


def test_a_message_that_succeeds_at_last_is_forgotten(tmp_path):
    bench = Bench(tmp_path, some(1))
    bench.scorer.poison = {0.0: RuntimeError("no luck")}
    bench.begun().step()
    bench.scorer.poison = {}
    bench.again(some(1))
    bench.loop.step()
    assert list(bench.sink.rows) == ["m0"]
    assert bench.ledger.suspects([Position("", 0)]) == {}


class Gone(BaseException):
    """The process is killed."""


def dies_at(bench: Bench, value: float) -> None:
    """Running this value kills the process; then the next one gets the same messages."""
    bench.scorer.poison = {value: Gone()}  # type: ignore[dict-item]
    with pytest.raises(Gone):
        bench.loop.step()


def test_what_killed_its_process_is_buried_at_its_third_attempt_and_not_run_again(tmp_path):
    given = some(6)
    bench = Bench(tmp_path, given)
    bench.begun()
    dies_at(bench, 4.0)
    for owner in ("b", "c"):
        done = set(bench.source.settled)
        bench.loop = bench.another(owner)
        bench.begun()
        bench.source.arrived.clear()
        bench.again([m for m in given if m.position not in done])
        dies_at(bench, 4.0)
        assert bench.scorer.runs[-1] == [4.0], "suspects run alone"
    bench.loop = bench.another("d")
    bench.begun()
    bench.source.arrived.clear()
    bench.again([m for m in given if m.position not in set(bench.source.settled)])
    runs = len(bench.scorer.runs)
    bench.loop.step()
    assert [4.0] not in bench.scorer.runs[runs:]
    (letter,) = bench.source.buried
    assert (letter.id, letter.attempts) == ("m4", 3)
    assert [f.error for f in letter.history] == [f"{ENDED} with 5 others", f"{ENDED}, alone", f"{ENDED}, alone"]
    assert sorted(bench.sink.rows) == ["m0", "m1", "m2", "m3", "m5"]
    assert {p.offset for p in bench.source.settled} == set(range(6))


def test_what_was_in_work_when_it_was_told_to_stop_is_no_suspect(tmp_path):
    bench = Bench(tmp_path, some(3))
    bench.sink.fail = [Unavailable("away")]

    def stop(seconds: float) -> None:
        bench.stopping = True

    bench.source.on_hold = stop
    with pytest.raises(Stopped):
        bench.loop.run()
    assert bench.source.closed
    assert bench.sink.closed
    after = SqliteLedger(tmp_path, bench.source.name, "b")
    assert after.suspects([Position("", i) for i in range(3)]) == {}


def test_a_sink_that_is_away_is_tried_again_without_scoring_twice_or_taking_more(tmp_path):
    bench = Bench(tmp_path, some(300), rows=100)
    bench.begun()
    bench.sink.fail = [Unavailable("away")] * 8
    bench.loop.step()
    assert len(bench.scorer.runs) == 1
    assert len(bench.source.arrived) == 300 - len(bench.sink.rows)
    waited = bench.source.held
    assert waited == pytest.approx(1 + 2 + 4 + 8 + 16 + 30 + 30 + 30)
    assert bench.statistics.sink_retries.value == 8


def test_what_a_sink_can_never_hold_is_buried_and_its_mates_are_stored(tmp_path):
    bench = Bench(tmp_path, some(9), shape="log")
    bench.sink.refuse = lambda id: id in ("m2", "m8")
    bench.begun().step()
    assert sorted(bench.sink.rows) == [f"m{i}" for i in (0, 1, 3, 4, 5, 6, 7)]
    assert [letter.id for letter in bench.source.buried] == ["m2", "m8"]
    assert bench.sink.lanes[""].offset == 9
    assert len(bench.source.settled) == 9
    assert bench.outcomes() == {"stored": 7, "dead": 2}


def test_of_a_log_the_position_moves_with_the_results(tmp_path):
    given = [message(i, id=f"{p}{i}", partition=p) for i in range(4) for p in ("0", "1")]
    bench = Bench(tmp_path, given, shape="log")
    bench.scorer.poison = {2.0: RuntimeError("no luck")}
    bench.begun().step()
    assert {lane: claim.offset for lane, claim in bench.sink.lanes.items()} == {"0": 4, "1": 4}
    assert sorted(str(p) for p, *_ in bench.source.retried) == ["0/2", "1/2"]
    assert len(bench.source.settled) == 8, "what lies in a retry topic is done here"
    assert bench.loop.granted(["0"]) == {"0": 4}


def test_a_fenced_process_writes_nothing_and_leaves(tmp_path):
    bench = Bench(tmp_path, some(3, partition="0"), shape="log")
    bench.begun()
    bench.sink.claim(["0"], None)  # another owns it now
    with pytest.raises(Fenced):
        bench.loop.step()
    assert bench.sink.rows == {}
    assert bench.source.settled == []


def test_a_partition_that_goes_while_its_messages_are_in_work_drops_them(tmp_path):
    bench = Bench(tmp_path, some(3, partition="0"), shape="log")
    bench.begun()
    bench.sink.fail = [Unavailable("away")]
    bench.source.on_hold = lambda seconds: bench.loop.revoked(["0"])
    with pytest.raises(Fenced):
        bench.loop.step()
    assert bench.sink.rows == {}
    bench.loop.revoked(["5"])  # nothing of it is in hand


def test_a_claim_is_renewed_while_nothing_comes(tmp_path):
    bench = Bench(tmp_path, [])
    bench.begun()
    for _ in range(4):
        bench.clock.pass_(2.0)
        bench.loop.step()
    stores = [call for call in bench.sink.calls if call == ("store", ())]
    assert len(stores) == 2, "every third of the 9 s that messages stay ours"


def test_idle_is_when_nothing_came_and_nothing_is_left(tmp_path):
    bench = Bench(tmp_path, some(1), idle=5.0)
    bench.begun()
    assert not bench.loop.is_idle()
    bench.loop.step()
    bench.clock.pass_(4.9)
    assert not bench.loop.is_idle()
    bench.source.lag = lambda: [Lag(partition="", behind=0, in_hand=1)]
    bench.clock.pass_(0.2)
    assert not bench.loop.is_idle(), "a retry waits"
    bench.source.lag = lambda: [Lag(partition="", behind=0, in_hand=0)]
    assert not bench.loop.is_idle(), "it has just looked"
    bench.clock.pass_(1.1)
    assert bench.loop.is_idle()


def test_a_repeated_message_is_settled_and_counted_apart(tmp_path):
    bench = Bench(tmp_path, some(2))
    bench.begun().step()
    bench.again(some(2))
    bench.loop.step()
    assert bench.outcomes() == {"stored": 2, "repeated": 2}
    assert len(bench.source.settled) == 4


def test_a_sink_that_only_adds_gets_every_result_with_its_id(tmp_path):
    bench = Bench(tmp_path, some(2))
    bench.sink.traits = SinkTraits()
    bench.begun().step()
    assert sorted(bench.sink.rows) == ["m0", "m1"]


def test_results_of_unequal_shapes_are_stored_in_the_order_they_came(tmp_path):
    signature = Signature([TensorSpec("x", "FP32", (-1, -1))], [TensorSpec("y", "FP32", (-1, -1))], batchable=True)
    given_values = [b'{"x": [1, 2]}', b'{"x": [3]}', b'{"x": [4, 5]}']
    scorer = Scorer()
    messages = [message(i, value) for i, value in enumerate(given_values)]
    scored = score(scorer, JsonRows(signature).decode, signature.outputs, messages, nullcontext)
    assert scored.good == [0, 1, 2]
    assert values(scored.columns[0], signature.outputs[0]) == ["[2.0,4.0]", "[6.0]", "[8.0,10.0]"]


@given(st.lists(st.booleans(), max_size=40))
def test_portions_keep_the_order_and_leave_those_with_a_history_alone(history: list[bool]):
    messages = [message(i) for i in range(len(history))]
    known: Any = {m.position: None for m, has in zip(messages, history, strict=True) if has}
    cut = list(portions(messages, known))
    assert [m for portion in cut for m in portion] == messages
    for portion in cut:
        assert portion
        assert len(portion) == 1 or not any(m.position in known for m in portion)
    for one, two in pairwise(cut):
        assert one[-1].position in known or two[0].position in known, "nothing is cut without need"


# Results that are stored while the next micro-batch is worked on.


class Slow(MemorySink):
    """Stores when it may."""

    def __init__(self) -> None:
        super().__init__(SinkTraits(transactional=True, idempotent=True, aside=True))
        self.may, self.asked = threading.Event(), threading.Event()

    def store(self, results: Results, moves: Sequence[Move]) -> Stored:
        self.asked.set()
        assert self.may.wait(60)
        return super().store(results, moves)


def aside(
    tmp_path: Any, count: int, rows: int = 2, poison: dict[float, BaseException] | None = None
) -> tuple[Bench, Slow]:
    """A loop that has put its first micro-batch aside."""
    bench = Bench(tmp_path, [message(i, id=f"m{i}", partition="p") for i in range(count)], "log", rows=rows)
    bench.sink = sink = Slow()
    bench.loop = bench.another("b")
    bench.scorer.poison = poison or {}
    assert bench.begun().step() == rows
    assert sink.asked.wait(60)
    return bench, sink


def test_the_next_is_scored_while_results_are_stored_and_nothing_of_it_is_written_before(tmp_path):
    bench, sink = aside(tmp_path, 5, poison={3.0: InvalidInput("never")})
    assert bench.source.settled == []
    before: list[Any] = []

    def look() -> None:
        until(lambda: bench.scorer.runs[1:2] == [[2.0, 3.0]], 60)
        before.extend((list(bench.source.buried), dict(sink.rows)))
        sink.may.set()

    in_thread(look)
    bench.loop.step()
    assert before == [[], {}]
    assert sink.calls[-2:] == [("store", ("m0", "m1")), ("store", ("m2",))]
    assert [letter.id for letter in bench.source.buried] == ["m3"]
    bench.loop.step()
    bench.loop.step()
    assert [p.offset for p in bench.source.settled] == [0, 1, 2, 3, 4]
    assert sink.lanes["p"].offset == 5
    assert bench.outcomes() == {"stored": 4, "dead": 1}


def test_who_dies_meanwhile_has_both_for_suspects(tmp_path):
    bench, sink = aside(tmp_path, 4, poison={2.0: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        bench.loop.step()
    bench.another("c")
    assert {p.offset: known.count for p, known in bench.ledger.history("p").items()} == dict.fromkeys(range(4), 1)
    sink.may.set()


@pytest.mark.parametrize("trouble", [Unavailable("away"), Fenced("p is another's")], ids=["away", "fenced"])
def test_what_becomes_of_it_is_known_before_anything_else_is_written(tmp_path, trouble: Exception):
    bench, sink = aside(tmp_path, 4, poison={3.0: InvalidInput("never")})
    sink.fail = [trouble]
    sink.may.set()
    if isinstance(trouble, Fenced):
        with pytest.raises(Fenced):
            bench.loop.step()
        assert (bench.source.settled, bench.source.buried, sink.rows) == ([], [], {})
        return
    bench.loop.step()
    assert bench.source.held >= 1.0
    bench.loop.step()
    assert set(sink.rows) == {"m0", "m1", "m2"}
    assert [p.offset for p in bench.source.settled] == [0, 1, 2, 3]


def test_a_row_that_the_sink_can_never_hold_is_found_afterwards(tmp_path):
    bench, sink = aside(tmp_path, 4)
    sink.refuse = lambda id: id == "m1"
    sink.may.set()
    bench.loop.step()
    bench.loop.step()
    assert set(sink.rows) == {"m0", "m2", "m3"}
    assert [letter.id for letter in bench.source.buried] == ["m1"] or bench.source.retried
    assert sink.lanes["p"].offset == 4


def test_a_lane_goes_to_another_only_when_nothing_of_it_is_being_stored(tmp_path):
    bench, sink = aside(tmp_path, 4)
    waits, wait = threading.Event(), bench.loop._await_store
    bench.loop._await_store = lambda: (waits.set(), wait())[1]
    in_thread(lambda: sink.may.set() if waits.wait(60) else None)
    bench.loop.revoked(["p"])
    assert set(sink.rows) == {"m0", "m1"}
    assert sink.lanes["p"].offset == 2


def test_a_lane_that_went_before_it_could_be_stored_is_given_up(tmp_path):
    bench, sink = aside(tmp_path, 4)
    sink.fail = [Unavailable("away")]
    sink.may.set()
    with pytest.raises(Fenced, match="was not stored"):
        bench.loop.revoked(["p"])


def test_who_turns_to_another_version_has_stored_what_the_last_one_scored(tmp_path):
    bench, sink = aside(tmp_path, 4)
    seen: list[int] = []
    bench.loop._turns, bench.loop._turn = lambda: True, lambda: seen.append(len(sink.rows))
    sink.may.set()
    bench.loop.step()
    assert seen == [2]


def test_a_last_attempt_is_stored_before_anything_else_runs(tmp_path):
    bench = Bench(tmp_path, some(4), "log", aside=True, rows=2)
    bench.loop = bench.another("b", attempts=1)
    bench.begun().step()
    assert set(bench.sink.rows) == {"m0", "m1"}


def test_what_is_known_below_a_partitions_first_message_is_forgotten(tmp_path):
    bench = Bench(tmp_path, [message(i, id=f"m{i}", partition="p") for i in range(5, 9)], "log", rows=2)
    bench.ledger.failed({Position("p", i): Attempts(2) for i in (3, 6)})
    bench.ledger.begin([Position("p", 4), Position("p", 8)])
    bench.loop = bench.another("b")
    loop = bench.begun()
    assert {p.offset: known.count for p, known in loop._history.items()} == {3: 2, 4: 1, 6: 2, 8: 1}
    loop.step()
    assert {p.offset: known.count for p, known in loop._history.items()} == {8: 1}, "3 and 4 are done, and now 6"
    assert {p.offset for p in bench.ledger.history("p")} == {8}
    loop.step()
    assert loop._history == {}
    assert len(bench.sink.rows) == 4


@given(
    kinds=st.lists(st.sampled_from(["well", "never", "moment"]), min_size=1, max_size=30),
    shape=st.sampled_from(["log", "acks"]),
    rows=st.sampled_from([2, 100]),
)
def test_whatever_fails_everything_ends_in_exactly_one_place(kinds: list[str], shape: str, rows: int, tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("loop"), some(len(kinds)), shape=shape, aside=True, rows=rows)
    for i, kind in enumerate(kinds):
        if kind != "well":
            bench.scorer.poison[float(i)] = InvalidInput("never") if kind == "never" else RuntimeError("now")
    loop = bench.begun()
    while loop.step() or bench.source.arrived:
        pass
    assert sorted(p.offset for p in bench.source.settled) == [
        i for i, kind in enumerate(kinds) if shape == "log" or kind != "moment"
    ]
    stored = set(bench.sink.rows)
    buried = {letter.id for letter in bench.source.buried}
    retried = {id for _, id, _, _ in bench.source.retried}
    assert stored == {f"m{i}" for i, kind in enumerate(kinds) if kind == "well"}
    assert buried == {f"m{i}" for i, kind in enumerate(kinds) if kind == "never"}
    assert retried == {f"m{i}" for i, kind in enumerate(kinds) if kind == "moment"}


def test_what_messages_need_is_waited_for_before_they_are_tried(tmp_path):
    bench = Bench(tmp_path, some(3))
    troubles: list[Exception] = [Unavailable("the registry is away")] * 3
    seen: list[int] = []

    def ready(messages: Sequence[Message]) -> None:
        seen.append(len(messages))
        if troubles:
            assert bench.ledger.suspects([m.position for m in messages]) == {}
            raise troubles.pop()

    bench.loop._work = bench.loop._work._replace(ready=ready)
    bench.begun().step()
    assert seen == [3] * 4
    assert bench.source.held == pytest.approx(1 + 2 + 4)
    assert bench.outcomes() == {"stored": 3}


def test_a_promise_of_freshness_is_counted(tmp_path):
    given = [message(i, id=f"m{i}", published=2e9 - age) for i, age in enumerate((0.5, 60, 61, 0.5, 0.5))]
    bench = Bench(tmp_path, given)
    bench.statistics = Statistics(bench.registry, "m", bench.wall, freshness=60.0)
    bench.loop = bench.another("b")
    bench.scorer.poison = {3.0: RuntimeError("broken"), 4.0: InvalidInput("never")}
    bench.begun().step()
    for _ in range(2):
        bench.again([given[3]])
        bench.loop.step()
    counts = {
        family.name: {sample.labels: sample.total for sample in family.samples}
        for family in bench.registry.families()
        if family.name.startswith("octoserve_slo_")
    }
    assert counts == {
        "octoserve_slo_good_total": {("m", "freshness"): 2},
        "octoserve_slo_bad_total": {("m", "freshness"): 2},  # the late one, and the one that was given up
    }
