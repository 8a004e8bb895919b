"""How large a micro-batch may be. Pure: what was measured in, rows out."""

from __future__ import annotations

_SLOWER, _FASTER = 0.3, 0.7
"""Weights of the newest measurement. What each micro-batch costs whatever its size is shared by more rows in a larger
one: that it was faster says more of the rate than that one was slower."""


class Pace:
    """Rows for the next poll, such that a micro-batch takes about `seconds` at most.

    A poll takes what is there and waits for nothing more, so a quiet queue runs single messages whatever this says; it
    bounds what a crash repeats, and for how long others of the group wait for a rebalance.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._row: float | None = None

    @property
    def rows(self) -> int:
        """At most so many; few at first, until a row's time is known."""
        if self._row is None:
            return min(self._most, 64)
        return max(1, min(self._most, int(self._seconds / self._row) if self._row > 0 else self._most))

    def took(self, rows: int, seconds: float) -> None:
        """A micro-batch of so many rows was decoded, scored and stored in so many seconds."""
        if rows <= 0:
            return
        row = seconds / rows
        if self._row is None:
            self._row = row
        elif rows * 4 >= self.rows or seconds > self._seconds:  # a small one says little of the rate, unless it is slow
            self._row += (_FASTER if row < self._row else _SLOWER) * (row - self._row)
