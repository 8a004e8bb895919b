"""Positions at which a queue went over from one version to another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.cli.queue_screen import print_lag
from octoserve.codecs.json_rows import JsonRows
from octoserve.connectors.queues.protocol import Lag, Message, Position
from octoserve.dataplane.table import ScoredTable
from octoserve.patterns.message_queue.cutovers import KEPT, Cutover, Cutovers, cutovers
from octoserve.patterns.message_queue.ledger import SqliteLedger
from octoserve.patterns.message_queue.loop import Limits, Loop, Work
from octoserve.patterns.message_queue.outcome import Policy
from octoserve.patterns.message_queue.scoring import Scored, score
from octoserve.patterns.message_queue.statistics import Statistics
from octoserve.telemetry.metrics import Registry
from support.queue_versions import SIGNATURE
from support.queues import MemorySink, MemorySource, Ticking, message


def batch(start: int, stop: int, partition: str = "", deliveries: int = 1) -> list[Message]:
    return [message(i, partition=partition, deliveries=deliveries) for i in range(start, stop)]


def noted(folder: Path) -> list[tuple[str, int, str]]:
    return [(each.partition, each.offset, each.by) for each in cutovers(folder, "q")]


def test_each_partition_has_the_position_from_which_another_one_scores(tmp_path: Path):
    noting = Cutovers(tmp_path, "q", Ticking(5.0))
    noting.note([*batch(0, 9, "0"), *batch(3, 9, "1")], "version 1")
    noting.note(batch(9, 20, "0"), "version 1")
    noting.note(batch(20, 30, "0"), "version 2")
    noting.note(batch(9, 12, "1"), "version 2")
    noting.note(batch(12, 15, "1"), "version 1")
    noting.close()
    assert noted(tmp_path) == [
        ("0", 0, "version 1"), ("0", 20, "version 2"),
        ("1", 3, "version 1"), ("1", 9, "version 2"), ("1", 12, "version 1"),
    ]  # fmt: skip
    assert cutovers(tmp_path, "another") == []
    assert cutovers(tmp_path, "q")[0].at == 5.0


def test_who_starts_again_goes_on_and_of_several_the_lowest_counts(tmp_path: Path):
    Cutovers(tmp_path, "q").note(batch(5, 9), "version 1")
    first, second = Cutovers(tmp_path, "q"), Cutovers(tmp_path, "q")
    first.note(batch(9, 12), "version 1")
    first.note(batch(20, 25), "version 2")
    second.note(batch(16, 20), "version 2")
    assert noted(tmp_path) == [("", 5, "version 1"), ("", 16, "version 2")]


def test_what_comes_again_says_nothing_of_where_it_went_over(tmp_path: Path):
    noting = Cutovers(tmp_path, "q")
    noting.note([*batch(2, 4, deliveries=2), *batch(40, 42)], "version 2")
    assert noted(tmp_path) == [("", 40, "version 2")]


def test_only_the_newest_are_kept(tmp_path: Path):
    noting = Cutovers(tmp_path, "q")
    for i in range(KEPT + 20):
        noting.note(batch(i, i + 1), f"version {i % 2 + 1}")
    assert [offset for _, offset, _ in noted(tmp_path)] == list(range(20, KEPT + 20))


def test_nothing_was_noted(tmp_path: Path):
    assert cutovers(tmp_path, "q") == []


class Killed(BaseException):
    """The process is gone."""


class One:
    """A version that only says which it is."""

    name = "m"

    def __init__(self, version: int) -> None:
        self.version = version

    def score(self, columns: Any) -> ScoredTable:
        x = columns[0].array()
        return ScoredTable({"y": x}, np.full(len(x), self.version))


@given(
    counts=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    rows=st.integers(2, 9),
    swaps=st.sets(st.integers(1, 8), max_size=3),
    kill=st.integers(1, 8),
)
def test_of_a_log_every_message_was_scored_as_its_position_says(
    counts: tuple[int, int], rows: int, swaps: set[int], kill: int, tmp_path_factory: pytest.TempPathFactory
):
    """Whenever the route changes, and whenever the process dies between a run and its results.

    What was running when it died is the trusted version's, here 1.
    """
    folder = tmp_path_factory.mktemp("cut")
    each_of = zip("01", counts, strict=True)
    given_ = [message(i, id=f"{p}-{i}", partition=p) for p, count in each_of for i in range(count)]
    sink, route, step, life = MemorySink(), 1, 0, 0
    suspects: set[Position] = set()

    def score_by(messages: Sequence[Message], tried: bool) -> Scored:
        if tried:
            suspects.update(m.position for m in messages)
        found = score(One(1 if tried else route), JsonRows(SIGNATURE).decode, SIGNATURE.outputs, messages, nullcontext)
        if step == kill and life == 0:
            raise Killed
        return found

    def turn() -> None:
        nonlocal step, route
        step += 1
        if step in swaps:
            route = 3 - route

    for life in range(2):
        noting = Cutovers(folder, "q")
        done = {partition: claim.offset or 0 for partition, claim in sink.lanes.items()}
        source = MemorySource([m for m in given_ if m.position.offset >= done.get(m.position.partition, 0)], "log")
        work = Work(One(1), JsonRows(SIGNATURE).decode, SIGNATURE.outputs, Policy(3, 1.0), score=score_by)
        loop = Loop(
            source, sink, SqliteLedger(folder, "q", f"o/{life}/x"), work, Limits(rows, 1 << 20, 1.0, None),
            Statistics(Registry(), "m", Ticking()), lane="l", turn=turn,
            note=lambda messages, noting=noting: noting.note(messages, f"version {route}"), clock=Ticking(),
        )  # fmt: skip
        source.open(loop)
        try:
            while source.arrived:
                loop.step()
            break
        except Killed:
            continue
    assert len(sink.rows) == sum(counts), "each once"
    went = cutovers(folder, "q")
    for each in given_:
        version, _ = sink.rows[f"{each.position.partition}-{each.position.offset}"]
        of = [cut for cut in went if cut.partition == each.position.partition and cut.offset <= each.position.offset]
        assert version == (1 if each.position in suspects else int(of[-1].by[-1]))


def test_people_are_told_from_where_on_who_scores(capsys: pytest.CaptureFixture[str]):
    went = [Cutover(partition="0", offset=41, by="version 2", at=0.0), Cutover(partition="1", offset=7, by="x", at=0.0)]
    print_lag([Lag(partition="0", behind=3)], went, as_json=False)
    assert capsys.readouterr().out.startswith("0: 3 behind, 0 in hand\n  0: scored by version 2 from 41 on, since ")
