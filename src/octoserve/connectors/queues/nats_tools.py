"""What people do to a JetStream stream at a terminal: send, look, replay dead letters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

from octoserve.connectors.queues.headers import value_of
from octoserve.connectors.queues.letters import letter_of
from octoserve.connectors.queues.nats_wire import HEADERS, WINDOW, Where, Wire
from octoserve.connectors.queues.protocol import ID_HEADER, DeadLetter, Lag, Message
from octoserve.core.errors import InvalidInput, SettingsError

_AT_ONCE = 200
"""Dead letters that are sent again before they are removed."""


class NatsTools:
    """Send to, look at and repair a stream."""

    def __init__(self, where: Where) -> None:
        self._where = where
        self._wire = Wire(where)
        self._wire.ensure()

    def send(self, values: Iterator[bytes], sent: Callable[[int], None]) -> int:
        """See `QueueTools.send`."""
        count = 0
        window: list[bytes] = []
        most = self._wire.client.max_payload - HEADERS  # so that it can become a dead letter
        for value in values:
            if len(value) > most:
                raise InvalidInput(
                    f"message {count + len(window) + 1}: {len(value)} bytes came, {self._where.label} takes {most}"
                )
            window.append(value)
            if len(window) == WINDOW:
                count += self._wire.call(self._send(window), 120)
                sent(count)
                window = []
        if window:
            count += self._wire.call(self._send(window), 120)
        sent(count)
        return count

    async def _send(self, values: Sequence[bytes]) -> int:
        subject = self._where.subject or self._where.stream
        acks = [await self._wire.js.publish_async(subject, value) for value in values]
        for ack in await asyncio.gather(*acks):
            if ack.stream != self._where.stream:
                raise SettingsError(f"source: {subject} is held by the stream {ack.stream}, not {self._where.stream}")
        return len(values)

    def tail(self, last: int, follow: bool) -> Iterator[Message]:
        """See `QueueTools.tail`."""
        state = self._wire.call(self._state(self._where.stream))
        at = max(state[0], state[1] - last + 1)
        while True:
            found = self._wire.call(self._wire.stored(self._where.stream, at))
            if found is not None:
                at = found.position.offset + 1
                yield found
            elif follow:
                time.sleep(0.25)
            else:
                return

    async def _state(self, stream: str) -> tuple[int, int]:
        info = await self._wire.js.stream_info(stream)
        return info.state.first_seq, info.state.last_seq

    def lag(self) -> list[Lag]:
        """See `QueueTools.lag`."""
        return self._wire.lag()

    def dead(self) -> list[DeadLetter]:
        """See `QueueTools.dead`."""
        return self._wire.call(self._dead(), 120)

    async def _dead(self) -> list[DeadLetter]:
        letters: dict[str, DeadLetter] = {}
        async for message in self._wire.everything(self._where.dead_stream, self._where.dead_subject):
            letter = letter_of(message, str(message.position.offset))
            letters.setdefault(letter.origin, letter)
        return list(letters.values())

    def replay(self, letters: Sequence[DeadLetter]) -> int:
        """See `QueueTools.replay`."""
        for start in range(0, len(letters), _AT_ONCE):
            self._wire.call(self._replay(letters[start : start + _AT_ONCE]), 120)
        return len(letters)

    async def _replay(self, letters: Sequence[DeadLetter]) -> None:
        where = self._where
        messages = []
        for letter in letters:
            headers = {name: value for name, value in letter.headers.items() if not name.startswith("Nats-")}
            messages.append((letter.value, {**headers, ID_HEADER: value_of(letter.id)}))
        # Sent, then removed: a crash between sends them twice, under their message ids.
        await self._wire.publish_all(where.subject or where.stream, where.stream, messages)
        await asyncio.gather(*(self._wire.js.delete_msg(where.dead_stream, int(each.sequence)) for each in letters))

    def close(self) -> None:
        """See `QueueTools.close`."""
        self._wire.close()
