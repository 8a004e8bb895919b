"""Splits: every row exactly once, in order, whatever the files' ranges are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octoserve.connectors.source import Range
from octoserve.patterns.batch.plan import BLOCK_BYTES, MOST_ROWS, block_rows, plan_splits

sizes = st.lists(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 2000)), max_size=12), max_size=6)


def ranges(sizes: list[list[tuple[int, int]]]) -> list[list[Range]]:
    return [[Range(i, i + 1, rows, size) for i, (rows, size) in enumerate(file)] for file in sizes]


@given(sizes, st.integers(1, 5000))
def test_every_row_exactly_once_and_in_order(sizes: list[list[tuple[int, int]]], split_bytes: int) -> None:
    files = ranges(sizes)
    splits = plan_splits(files, split_bytes)
    assert [split.index for split in splits] == list(range(len(splits)))
    planned = [(s.file, row) for s in splits for row in range(s.first_row, s.first_row + s.rows)]
    assert planned == [(number, row) for number, file in enumerate(files) for row in range(sum(r.rows for r in file))]
    for split in splits:
        inside = [r for r in files[split.file] if split.start <= r.start and r.stop <= split.stop]
        assert sum(r.rows for r in inside) == split.rows, "what is read is what was planned"
    assert plan_splits(files, split_bytes) == splits


@given(sizes, st.integers(1, 5000))
def test_a_split_is_no_larger_than_asked_unless_it_is_one_range(
    sizes: list[list[tuple[int, int]]], split_bytes: int
) -> None:
    for split in plan_splits(ranges(sizes), split_bytes):
        assert split.bytes <= split_bytes or split.stop - split.start == 1


def test_a_gap_without_rows_is_in_no_split() -> None:
    splits = plan_splits([[Range(0, 1, 5, 10), Range(1, 2, 0, 0), Range(2, 3, 5, 10)]], 1000)
    assert [(s.start, s.stop, s.first_row) for s in splits] == [(0, 1, 0), (2, 3, 5)]


def test_a_table_without_rows_is_one_split() -> None:
    (split,) = plan_splits([[], []], 100)
    assert (split.rows, split.file) == (0, 0)
    assert plan_splits([], 100) == ()


def test_a_block_is_bounded_in_bytes_and_in_rows() -> None:
    narrow = plan_splits([[Range(0, 1, 1000, 8000)]], 1 << 20)
    wide = plan_splits([[Range(0, 1, 10, 10 * BLOCK_BYTES)]], 1 << 20)
    assert block_rows(narrow, 4) == MOST_ROWS
    assert block_rows(wide, 4) == 1
    assert block_rows(narrow, BLOCK_BYTES // 100) == 99
    assert block_rows(narrow, 4, most=32) == 32
    assert block_rows((), 4) == MOST_ROWS
