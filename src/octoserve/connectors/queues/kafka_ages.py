"""How old the oldest message of each partition is that is not done, as far as a consumer knows without asking."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from octoserve.connectors.queues.protocol import Message


class Ages:
    """Of the partitions of one consumer. Times are Unix seconds; a broker may be told to keep none."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._working: dict[str, deque[tuple[int, int, float]]] = {}
        """Of what was handed out together: the first and last offset, and when the first one was published."""
        self._done: dict[str, float] = {}
        """When the last one that is done was."""
        self._empty: dict[str, float] = {}
        """When nothing was left, the last time that we saw it so."""

    def in_work(self, messages: Iterable[Message]) -> None:
        """They are handed out, together and in order."""
        first: dict[str, Message] = {}
        last: dict[str, int] = {}
        for message in messages:
            lane, offset = message.position
            last[lane] = offset
            if lane not in first:
                first[lane] = message
        for lane, offset in last.items():
            one = first[lane]
            self._working.setdefault(lane, deque()).append((one.position.offset, offset, one.published))

    def done(self, last: Message) -> None:
        """It is, and with it all that came before it in its partition."""
        lane, offset = last.position
        working = self._working.get(lane)
        while working and working[0][1] <= offset:
            working.popleft()
        if last.published > 0:
            self._done[lane] = last.published
            if working and working[0][0] <= offset:  # some of those are done
                working[0] = (offset, working[0][1], max(working[0][2], last.published))

    def gone(self, lane: str) -> None:
        """The partition is another's."""
        for known in (self._working, self._done, self._empty):
            known.pop(lane, None)

    def oldest(self, lane: str, behind: int, next_one: Message | None) -> float | None:
        """Of `behind` messages that are not done, the first one's time of publication; None for none, or unknown.

        next_one: the first that has come and is not in work. What has not come is younger than what is done, and
        than the moment at which nothing was left: at most that old.
        """
        if not behind:
            self._empty[lane] = self._wall()
            return None
        known = [published for _, _, published in self._working.get(lane, ())]
        if next_one is not None:
            known.append(next_one.published)
        known = [published for published in known if published > 0]
        if known:
            return min(known)
        bounds = [each[lane] for each in (self._done, self._empty) if lane in each]
        return max(bounds) if bounds else None
