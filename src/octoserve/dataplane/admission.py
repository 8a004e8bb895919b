"""Who is let in: a bounded queue a version, and nobody whose deadline cannot be met.

Load is shed at the door, at once and with a time to come back, never by a queue that grows: neither in
requests, which each version bounds, nor in bytes, which all versions of a process share.
"""

from __future__ import annotations

import math

from octoserve.core.errors import DeadlineExceeded, Overloaded

MAX_RETRY_AFTER = 60


class ByteBudget:
    """Bytes of the inputs that wait or run, of all versions together. Single-threaded.

    The one who admits a call adds its bytes to `held`, and takes them off when the call leaves: the hot path
    asks `held + size > limit` itself, and `refuse` only where that is so.
    """

    __slots__ = ("held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def refuse(self, size: int, seconds_ahead: float, limit: int | None = None) -> None:
        """Raise Overloaded for `size` more bytes than there is room for; a call alone always has room.

        limit: of the call's level, where it is less than that of all
        """
        if self.held:
            raise Overloaded(
                f"the queue holds {self.held} bytes of inputs; {size} more are over its limit of "
                f"{self.limit if limit is None else limit}",
                retry_after(seconds_ahead),
                "queue_bytes",
            )


def admit(
    now: float,
    deadline: float,
    pending: int,
    max_pending: int,
    rows_ahead: int,
    seconds_per_row: float,
    level: str = "",
) -> None:
    """Raise Overloaded or DeadlineExceeded unless there is room, and time.

    now, deadline:   seconds of one clock
    pending:         requests waiting or running
    rows_ahead:      rows of those
    seconds_per_row: as measured lately; 0 while unknown
    level:           whose room `max_pending` is, where it is not everybody's
    """
    if pending >= max_pending:
        raise Overloaded(
            f"the queue is full{f' for priority {level}' if level else ''} ({max_pending} requests)",
            retry_after(rows_ahead * seconds_per_row),
            "queue_full",
        )
    if deadline <= now:
        raise DeadlineExceeded("no time is left: the deadline passes before the request can be looked at")
    if rows_ahead and now + rows_ahead * seconds_per_row > deadline:
        wait = rows_ahead * seconds_per_row
        raise Overloaded(
            f"the deadline is {deadline - now:.3f} s away, the queue {wait:.3f} s long",
            retry_after(wait),
            "deadline_unmeetable",
        )


def retry_after(seconds: float) -> int:
    """Whole seconds to wait before another try, 1 to `MAX_RETRY_AFTER`."""
    return min(MAX_RETRY_AFTER, max(1, math.ceil(seconds)))
