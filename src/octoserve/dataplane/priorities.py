"""A queue with levels: who goes first, who may still come in, and whose wait is bounded how.

Why these rules: docs/decisions/0026-priorities-and-tenants.md.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator

from octoserve.core.admission import LEVELS, LOW, NORMAL, Priorities
from octoserve.core.errors import InvalidInput
from octoserve.dataplane.call import Call

PARAMETER = "priority"
HEADER = "x-octoserve-priority"
_LONGEST = 40
_WANTED = "1 (high), 2 (normal), 3 (low), or 0 for the default"
_BY_WORD = {
    **{name: level for level, name in enumerate(LEVELS)},
    **{str(level + 1): level for level in range(len(LEVELS))},
    "0": None,
    "default": None,
}


def level_of(call: Call, default: int) -> int:
    """The level that a call asks for, by its place in LEVELS; the less urgent one where it says it twice.

    Raises InvalidInput for one that does not exist.
    """
    header, parameter = call.header(HEADER), call.parameter(PARAMETER)
    if header is None and parameter is None:
        return default
    asked = (_level(header, f"header {HEADER}"), _level(parameter, "parameter priority"))
    named = [level for level in asked if level is not None]
    return max(named) if named else default


def _level(value: object, where: str) -> int | None:
    if value is None:
        return None
    word = str(value) if type(value) is int else value if isinstance(value, str) else ""
    level = word.strip().lower()
    if level not in _BY_WORD:
        came = repr(word[:_LONGEST]) if word else "nothing" if value == "" else type(value).__name__
        raise InvalidInput(f"{where}: {_WANTED} wanted, {came} came")
    return _BY_WORD[level]


class Levels:
    """Calls that wait, by level: what the batcher asks of a deque, in the order in which they should go."""

    def __init__(self, rules: Priorities) -> None:
        self._rules = rules
        self._queues: tuple[deque[Call], ...] = tuple(deque() for _ in LEVELS)
        self._rows = [0] * len(LEVELS)
        self._count = 0
        self._overtaking = 0
        self._oldest_first = False

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Call]:
        return itertools.chain.from_iterable(self._queues)

    def share(self, level: int, whole: int) -> int:
        """How much of `whole` may be taken when this level is let in; at least 1."""
        return max(1, int(whole * self._rules.shares[level]))

    def rows_behind(self, level: int) -> int:
        """Rows that wait at lower levels."""
        _, normal, low = self._rows
        return 0 if level == LOW else low if level == NORMAL else normal + low

    # --- as a deque ------------------------------------------------------------------------------------

    def append(self, call: Call) -> None:
        """The last of its level."""
        self._count += 1
        self._rows[call.level] += call.rows
        self._queues[call.level].append(call)

    def appendleft(self, call: Call) -> None:
        """Back to the head of its level, from where it was taken."""
        self._count += 1
        self._rows[call.level] += call.rows
        self._queues[call.level].appendleft(call)

    def extendleft(self, calls: Iterable[Call]) -> None:
        """`appendleft` of each."""
        for call in calls:
            self.appendleft(call)

    def remove(self, call: Call) -> None:
        """Raises ValueError if it does not wait."""
        self._queues[call.level].remove(call)
        self._count -= 1
        self._rows[call.level] -= call.rows

    def popleft(self) -> Call:
        """Who goes next. Raises IndexError where nobody waits."""
        high, normal, low = self._queues
        queue = high or normal or low
        if self._oldest_first:
            self._oldest_first = False
            queue = min((queue for queue in self._queues if queue), key=lambda queue: queue[0].arrived)
        call = queue.popleft()
        self._count -= 1
        self._rows[call.level] -= call.rows
        return call

    # --- turns -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A run is about to be put together: see whose turn it is."""
        waiting = [queue[0].arrived for queue in self._queues if queue]
        self._oldest_first = False
        if len(waiting) > 1 and waiting[0] > min(waiting):
            self._overtaking += 1
            if self._overtaking >= self._rules.turn:
                self._overtaking = 0
                self._oldest_first = True
