"""How old the oldest message of each partition is that is not done, as far as a consumer knows without asking."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from octoserve.connectors.queues.protocol import Message


class Ages:
    """Of the partitions of one consumer. Times are Unix seconds."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._first: dict[str, float] = {}
        """When the first message in work was published."""
        self._done: dict[str, float] = {}
        """When the last one that is done was."""
        self._empty: dict[str, float] = {}
        """When nothing was left, the last time that we saw it so."""

    def in_work(self, messages: Iterable[Message]) -> None:
        """They are handed out, in order."""
        first = self._first
        for message in messages:
            lane = message.position.partition
            if lane not in first and message.published:  # a broker may be told to keep no times
                first[lane] = message.published

    def done(self, last: Message) -> None:
        """It is, and with it all that came before it in its partition."""
        lane = last.position.partition
        self._first.pop(lane, None)
        self._done[lane] = last.published

    def gone(self, lane: str) -> None:
        """The partition is another's."""
        for known in (self._first, self._done, self._empty):
            known.pop(lane, None)

    def oldest(self, lane: str, behind: int, next_one: Message | None) -> float | None:
        """Of `behind` messages that are not done, the first one's time of publication; None for none, or unknown.

        next_one: the first that has come and is not in work. What has not come is younger than what is done, and
        than the moment at which nothing was left: at most that old.
        """
        if not behind:
            self._empty[lane] = self._wall()
            return None
        known = [self._first[lane]] if lane in self._first else []
        if next_one is not None:
            known.append(next_one.published)
        if known:
            return min(known)
        bounds = [each[lane] for each in (self._done, self._empty) if lane in each]
        return max(bounds) if bounds else None
