"""The worker's side of the control socket: says Hello, hears what is desired, comes back when it is lost.

Losing the supervisor changes nothing in the worker. What it must know of a worker is state, not history
(the generation applied, the versions held), so a reconnection says it anew and nothing is queued meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from octoserve.core import errors
from octoserve.core.clock import Clock, monotonic
from octoserve.core.evidence import Seen
from octoserve.lifecycle.states import VersionReport
from octoserve.patterns.online.link.messages import (
    Applied,
    Collect,
    Collected,
    Desired,
    Drain,
    Hello,
    Missed,
    Observe,
    Observed,
    Operation,
    OperationReply,
    Report,
    ToSupervisor,
    ToWorker,
)
from octoserve.patterns.online.link.unix_socket import connect, frame, messages

log = logging.getLogger(__name__)

BACK_OFF = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Seconds between attempts; the last one repeats."""
ABANDONED = 60.0
"""Seconds after which a worker that never applied anything gives up on its supervisor."""
OPERATION_TIMEOUT = 120.0
LEAVE_SECONDS = 0.3
"""How long a leaving worker waits until its last metrics have been read."""


class ControlLink:
    """One worker's connection. Callbacks run on the event loop.

    hello:      makes the first frame, anew for every connection
    on_desired: apply it, then call `applied`
    on_drain:   stop accepting, finish, leave
    on_collect: gives the metrics' snapshot
    on_observe: gives what was seen of each split
    """

    def __init__(
        self,
        path: str,
        hello: Callable[[], Hello],
        *,
        on_desired: Callable[[Desired], None],
        on_drain: Callable[[Drain], None],
        on_collect: Callable[[], bytes],
        on_observe: Callable[[], Sequence[Seen]] = tuple,
        clock: Clock = monotonic,
    ) -> None:
        self._path = Path(path)
        self._hello = hello
        self._on_desired = on_desired
        self._on_drain = on_drain
        self._on_collect = on_collect
        self._on_observe = on_observe
        self._clock = clock
        self._decoder = msgspec.msgpack.Decoder(ToWorker)
        self._writer: asyncio.StreamWriter | None = None
        self._report = Report(())
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._operations = 0
        self._leaving = False
        self._lost = asyncio.Event()

    async def run(self) -> None:
        """Stay connected. Returns only if no supervisor was ever there to say what to do, or after `leave`."""
        attempt, lost_at = 0, self._clock()
        while True:
            try:
                reader, writer = await connect(self._path)
            except OSError:
                if self._hello().generation == 0 and self._clock() - lost_at > ABANDONED:
                    log.warning("no supervisor at %s, and nothing to serve: leaving", self._path)
                    return
                await asyncio.sleep(BACK_OFF[min(attempt, len(BACK_OFF) - 1)])
                attempt += 1
                continue
            try:
                if await self._converse(reader, writer):
                    lost_at = self._clock()
            finally:
                self._lose(writer)
            if self._leaving:
                return
            attempt = 0
            await asyncio.sleep(BACK_OFF[0])

    def applied(self, generation: int) -> None:
        """Plans and labels of this generation are in force."""
        self._send(Applied(generation))

    def report(self, versions: Sequence[VersionReport]) -> None:
        """All versions of this worker; remembered, and said again after a reconnection."""
        self._report = Report(tuple(versions))
        self._send(self._report)

    def observed(self, id: int = 0) -> None:
        """Tell what was seen of each split."""
        self._send(Observed(id, tuple(self._on_observe())))

    def missed(self) -> None:
        """A token named a key that the identity provider's keys lack."""
        self._send(Missed())

    async def operate(self, action: str, model: str, who: str = "") -> None:
        """`load` or `unload` a model on every worker; returns when it is done.

        Raises Unavailable when no supervisor is there or it does not answer, else what it answers.
        """
        if self._writer is None:
            raise errors.Unavailable(f"cannot {action} {model!r} now: the supervisor is not running")
        self._operations += 1
        number = self._operations
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = done
        self._send(Operation(number, action, model, who))
        try:
            async with asyncio.timeout(OPERATION_TIMEOUT):
                await done
        except TimeoutError:
            raise errors.Unavailable(f"{action} {model!r}: no answer in {OPERATION_TIMEOUT:.0f} s") from None
        finally:
            self._waiting.pop(number, None)

    async def leave(self, timeout: float = LEAVE_SECONDS) -> None:
        """Send the last metrics and hang up. Returns when the supervisor has hung up too, which it does once
        it has read them; or after `timeout` seconds."""
        writer = self._writer
        if writer is None or writer.is_closing():
            self._leaving = True
            return
        self._send(Collected(0, self._on_collect()))
        self._leaving = True
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            writer.write_eof()
            async with asyncio.timeout(timeout):
                await self._lost.wait()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Until the connection is lost; whether anything was heard."""
        self._writer = writer
        self._lost.clear()
        heard = False
        self._send(self._hello())
        self._send(self._report)
        try:
            async for message in messages(reader, self._decoder):
                heard = True
                self._hear(message)
        except (msgspec.MsgspecError, ValueError) as error:
            log.error("the supervisor sent what is no message: %s", error)
        return heard

    def _hear(self, message: ToWorker) -> None:
        try:
            if isinstance(message, Desired):
                self._on_desired(message)
            elif isinstance(message, Collect):
                self._send(Collected(message.id, self._on_collect()))
            elif isinstance(message, Observe):
                self.observed(message.id)
            elif isinstance(message, Drain):
                self._on_drain(message)
            else:
                self._reply(message)
        except Exception:
            log.exception("handling %s", type(message).__name__)

    def _reply(self, reply: OperationReply) -> None:
        done = self._waiting.get(reply.id)
        if done is None or done.done():
            return
        if reply.error:
            kind = getattr(errors, reply.kind, errors.Unavailable)
            done.set_exception(kind(reply.error))
        else:
            done.set_result(None)

    def _send(self, message: ToSupervisor) -> None:
        if self._writer is not None and not self._writer.is_closing() and not self._leaving:
            self._writer.write(frame(message))

    def _lose(self, writer: asyncio.StreamWriter) -> None:
        self._writer = None
        self._lost.set()
        writer.close()
        for done in self._waiting.values():
            if not done.done():
                done.set_exception(errors.Unavailable("the supervisor went away before it was done"))
