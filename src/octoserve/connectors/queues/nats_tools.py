"""What people do to a JetStream stream at a terminal: send, look, replay dead letters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from octoserve.connectors.queues.headers import value_of
from octoserve.connectors.queues.nats_wire import WINDOW, Where, Wire
from octoserve.connectors.queues.protocol import HISTORY_HEADER, ID_HEADER, DeadLetter, Lag, Message
from octoserve.core.errors import InvalidInput, SettingsError


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
        for value in values:
            if len(value) > self._wire.client.max_payload:
                raise InvalidInput(
                    f"message {count + len(window) + 1}: {len(value)} bytes came, "
                    f"{self._where.label} takes {self._wire.client.max_payload}"
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
        at = 1
        while (found := await self._wire.stored(self._where.dead_stream, at)) is not None:
            at = found.position.offset + 1
            letter = _letter(found)
            letters.setdefault(letter.origin, letter)
        return list(letters.values())

    def replay(self, letters: Sequence[DeadLetter]) -> int:
        """See `QueueTools.replay`."""
        return self._wire.call(self._replay(letters), 300)

    async def _replay(self, letters: Sequence[DeadLetter]) -> int:
        subject = self._where.subject or self._where.stream
        for letter in letters:
            headers = {k: v for k, v in letter.headers.items() if not k.startswith("Nats-") and k != HISTORY_HEADER}
            headers[ID_HEADER] = value_of(letter.id)
            # Sent, then removed: a crash between sends it twice, under one message id.
            await self._wire.js.publish(subject, letter.value, headers=headers, stream=self._where.stream)
            await self._wire.js.delete_msg(self._where.dead_stream, int(letter.sequence))
        return len(letters)

    def close(self) -> None:
        """See `QueueTools.close`."""
        self._wire.close()


def _letter(message: Message) -> DeadLetter:
    headers: Mapping[str, str] = message.headers
    try:
        about = msgspec.json.decode(headers.get(HISTORY_HEADER, ""), type=DeadLetter)
    except msgspec.MsgspecError:  # somebody else laid it there
        about = DeadLetter(
            id=headers.get(ID_HEADER, message.name), source="", origin=message.name, attempts=0, history=(),
            published=message.published, buried=message.published,
        )  # fmt: skip
    rest = {name: value for name, value in headers.items() if name != HISTORY_HEADER}
    return msgspec.structs.replace(about, headers=rest, value=message.value, sequence=str(message.position.offset))
