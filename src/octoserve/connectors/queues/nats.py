"""NATS JetStream as a source: a durable pull consumer whose messages are acknowledged one by one.

The server decides what comes again (`ack_wait`), and we tell it every third of that time what is still in work. What it
has to give is fetched ahead on the client's thread, up to a bound, and then no longer asked for.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from octoserve.connectors.queues.headers import value_of
from octoserve.connectors.queues.letters import about
from octoserve.connectors.queues.nats_wire import Where, Wire, header_bytes, message_of
from octoserve.connectors.queues.protocol import (
    HISTORY_HEADER,
    ID_HEADER,
    ORIGIN_HEADER,
    DeadLetter,
    Desk,
    Lag,
    Message,
    SourceTraits,
)
from octoserve.core.errors import SettingsError, Unavailable

if TYPE_CHECKING:
    from nats.aio.msg import Msg

_EXPIRES = 30.0
"""Seconds after which the server forgets what we asked for."""
_HEARTBEAT = 5.0


class NatsSource:
    """A share in a durable consumer."""

    def __init__(self, where: Where, ahead: int = 4096, ahead_bytes: int = 32 << 20) -> None:
        """ahead: messages that are fetched before they are polled for, at most; ahead_bytes: their size."""
        self._where = where
        self._ahead = ahead
        self._ahead_bytes = ahead_bytes
        self._wire: Wire
        self._inbox = ""
        self._arrived: deque[Message] = deque()
        self._arrived_bytes = 0
        self._here = threading.Condition()
        self._asked = 0
        """Of messages asked for, those that have not come."""
        self._heard = 0.0
        self._held: dict[str, float] = {}
        """Token -> when the server last heard of it."""
        self._keeper: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """See `QueueSource.name`."""
        return f"nats:{self._where.stream}/{self._where.durable}"

    @property
    def traits(self) -> SourceTraits:
        """See `QueueSource.traits`."""
        return SourceTraits(system="nats", shape="acks", ours_for=self._where.ack_wait)

    def open(self, desk: Desk) -> None:
        """See `QueueSource.open`."""
        self._wire = Wire(self._where)
        self._wire.ensure()
        desk.granted(())
        self._wire.on_reconnect = self._ask_again
        self._wire.call(self._subscribe())

    async def _subscribe(self) -> None:
        self._inbox = self._wire.client.new_inbox()
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{self._where.stream}.{self._where.durable}"
        await self._wire.client.subscribe(self._inbox, cb=self._take, pending_msgs_limit=-1, pending_bytes_limit=-1)
        self._keeper = asyncio.create_task(self._keep())
        await self._ask()

    # --- on the client's thread ----------------------------------------------------------------------

    async def _take(self, msg: Msg) -> None:
        self._heard = time.monotonic()
        if not msg.reply or not msg.reply.startswith("$JS.ACK."):
            status = (msg.headers or {}).get("Status", "")
            if status != "100":  # 100 is a heartbeat; anything else ends the request
                self._asked = 0
                await self._ask()
            return
        self._asked = max(0, self._asked - 1)
        message = message_of(msg, self._where.stream)
        with self._here:
            self._arrived.append(message)
            self._arrived_bytes += len(message.value)
            self._held[message.token] = self._heard
            self._here.notify()
        if not self._asked:
            await self._ask()

    async def _ask(self) -> None:
        """For as many as there is room for, unless there are enough, or some are on their way."""
        with self._here:
            room, used = self._ahead - len(self._arrived), self._arrived_bytes
        if self._asked or room < self._ahead // 2 or used > self._ahead_bytes // 2:
            return
        self._asked = room
        self._heard = time.monotonic()
        largest = self._wire.client.max_payload + (64 << 10)
        query = {
            "batch": room,
            "max_bytes": max(self._ahead_bytes - used, largest),
            "expires": int(_EXPIRES * 1e9),
            "idle_heartbeat": int(_HEARTBEAT * 1e9),
        }
        await self._wire.client.publish(self._next, json.dumps(query).encode(), self._inbox)

    def _ask_again(self) -> None:
        self._asked = 0
        asyncio.ensure_future(self._ask())  # noqa: RUF006 - it ends by itself

    async def _keep(self) -> None:
        """Speak for what is in work, and notice when the server has forgotten what we asked for."""
        third = self._where.ack_wait / 3
        while True:
            await asyncio.sleep(third)
            now = time.monotonic()
            with self._here:
                waiting = [token for token, told in self._held.items() if told <= now - third / 2]
                for token in waiting:
                    self._held[token] = now
            if self._wire.client.is_connected:
                for token in waiting:
                    await self._wire.client.publish(token, b"+WPI")
                if now - self._heard > 2 * _HEARTBEAT + 1:
                    self._asked = 0
                    await self._ask()

    async def _leave(self, tokens: Sequence[str]) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
        if self._wire.client.is_connected:
            await self._answer(tokens, b"-NAK")

    async def _answer(self, tokens: Sequence[str], what: bytes) -> None:
        for token in tokens:
            await self._wire.client.publish(token, what)

    # --- on the loop's thread ------------------------------------------------------------------------

    def poll(self, rows: int, nbytes: int, timeout: float) -> list[Message]:
        """See `QueueSource.poll`."""
        taken: list[Message] = []
        size = 0
        with self._here:
            if not self._arrived:
                self._here.wait(timeout)
            while self._arrived and len(taken) < rows:
                size += len(self._arrived[0].value)
                if taken and size > nbytes:
                    break
                taken.append(self._arrived.popleft())
                self._arrived_bytes -= len(taken[-1].value)
        if taken:
            self._wire.post(lambda: asyncio.ensure_future(self._ask()))  # type: ignore[arg-type]
        return taken

    def hold(self, timeout: float) -> None:
        """See `QueueSource.hold`; the keeper does it."""
        time.sleep(timeout)

    def settle(self, messages: Sequence[Message]) -> None:
        """See `QueueSource.settle`."""
        self._let_go(messages, b"+ACK")

    def retry(self, message: Message, id: str, attempt: int, delay: float) -> None:
        """See `QueueSource.retry`: the server keeps it, and gives it out again after the delay."""
        self._let_go([message], b'-NAK {"delay": %d}' % int(delay * 1e9))

    def _let_go(self, messages: Sequence[Message], what: bytes) -> None:
        tokens = [message.token for message in messages]
        with self._here:
            for token in tokens:
                self._held.pop(token, None)
        self._wire.call(self._answer(tokens, what))

    def bury(self, letters: Sequence[DeadLetter]) -> None:
        """See `QueueSource.bury`."""
        self._wire.call(_publish_letters(self._wire, letters), 120)

    def lag(self) -> list[Lag]:
        """See `QueueSource.lag`."""
        self._wire.sweep()
        return self._wire.lag()

    def close(self) -> None:
        """See `QueueSource.close`."""
        with self._here:
            tokens = list(self._held)
            self._held.clear()
            self._arrived.clear()
        try:
            self._wire.call(self._leave(tokens))
        except Unavailable:
            pass  # they come again when their time is up
        finally:
            self._wire.close()


async def _publish_letters(wire: Wire, letters: Sequence[DeadLetter]) -> None:
    where = wire.where
    await wire.publish_all(where.dead_subject, where.dead_stream, [_written(wire, letter) for letter in letters])


def _written(wire: Wire, letter: DeadLetter) -> tuple[bytes, dict[str, str]]:
    """With as much of its history as the server takes. Raises SettingsError where it does not even take the rest."""
    most = wire.client.max_payload
    headers = {
        **{name: value for name, value in letter.headers.items() if not name.startswith("Nats-")},
        ID_HEADER: value_of(letter.id),
        ORIGIN_HEADER: letter.origin,
        "Nats-Msg-Id": f"dead {letter.origin}",
        "Nats-Expected-Stream": wire.where.dead_stream,
        HISTORY_HEADER: "",
    }
    headers[HISTORY_HEADER] = about(letter, most - len(letter.value) - header_bytes(headers))
    size = len(letter.value) + header_bytes(headers)
    if size > most:
        raise SettingsError(
            f"source: {letter.origin} is to be a dead letter, which has {size} bytes with its headers; "
            f"{wire.where.label} takes {most}: raise the server's max_payload"
        )
    return letter.value, headers
