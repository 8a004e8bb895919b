"""Positions at which a queue went over from one version to another."""

from __future__ import annotations

from pathlib import Path

from octoserve.connectors.queues.protocol import Message
from octoserve.patterns.message_queue.cutovers import KEPT, Cutovers, cutovers
from support.queues import Ticking, message


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
