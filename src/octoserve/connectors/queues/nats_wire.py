"""A connection to NATS: the client, which is asynchronous, on a thread of its own, and what it is asked by the others.

Source of the wire forms: the NATS documentation, "JetStream wire API reference".
"""

from __future__ import annotations

import asyncio
import calendar
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from octoserve.connectors.queues.address import Address
from octoserve.connectors.queues.headers import heard
from octoserve.connectors.queues.nats_server import EmbeddedBroker
from octoserve.connectors.queues.protocol import Lag, Message, Position
from octoserve.core.errors import OctoserveError, SettingsError, Unavailable

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js.api import PubAck
    from nats.js.client import JetStreamContext

log = logging.getLogger(__name__)

REMEDY = "NATS needs a client library: pip install 'octoserve[nats]'"
REQUEST = 10.0
"""Seconds that an answer of the server is waited for."""
KEPT = 1000
"""Messages that are left of what is done, for people to look at."""
WINDOW = 1000
"""Messages that are sent and not yet acknowledged."""
_WINDOW_BYTES = 32 << 20
"""And their bytes, about."""
HEADERS = 4 << 10
"""Bytes of the largest message that are left to its headers, where we decide."""
_ACKNOWLEDGED = 30.0
"""Seconds that a window may take to be acknowledged."""
_AT_ONCE = 64
"""Messages that are read at once, each of any size."""
_MAX_ACK_PENDING = 50_000
_NOT_FOUND = 10037

T = TypeVar("T")


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """What an address names.

    url:     of the server, a function where it may change (the embedded one is started again)
    label:   for people
    subject: what is taken of the stream, and sent to; "" takes all of it
    ours:    whether the stream is of the embedded broker: made if it is missing, and swept now and then, which removes
             what every consumer has acknowledged, but for the last `KEPT`. A stream of retention `interest` would do so
             at each acknowledgement, with a flush each
    ack_wait: seconds after which a message that nobody speaks for comes again
    """

    url: Callable[[], str]
    label: str
    stream: str
    durable: str = "octoserve"
    subject: str = ""
    ours: bool = False
    ack_wait: float = 10.0
    leave: Callable[[], None] = lambda: None

    @property
    def dead_stream(self) -> str:
        """The dead letters' stream."""
        return f"{self.stream}-dead"

    @property
    def dead_subject(self) -> str:
        """Their subject."""
        return f"octoserve.dead.{self.stream}"


def where_of(address: Address, state_dir: Path, ack_wait: float = 10.0) -> Where:
    """What an address names: `nats://host:port/stream?subject=s&durable=d`, `embedded[:NAME]`. Raises SettingsError."""
    address.only(("subject", "durable", "prefix"))
    durable = address.parameters.get("durable", "octoserve")
    subject = address.parameters.get("subject", "")
    stream = address.path.strip("/")
    for what, name in (("stream", stream), ("durable", durable)):
        if not name or any(letter in name for letter in " .*>/\\") or not name.isprintable():
            raise SettingsError(f"source: a name for the {what} without ' . * > / is wanted, {name!r} came")
    if address.scheme == "embedded":
        broker = EmbeddedBroker(state_dir)
        return Where(
            url=broker.join,
            leave=broker.leave,
            label=f"embedded:{stream}",
            stream=stream,
            durable=durable,
            ours=True,
            ack_wait=ack_wait,
        )
    return Where(
        url=lambda: address.base.rpartition("/")[0],
        label=address.label,
        stream=stream,
        durable=durable,
        subject=subject,
        ack_wait=ack_wait,
    )


class Wire:
    """A connection, and the thread on which its client runs."""

    def __init__(self, where: Where) -> None:
        """Raises SettingsError, Unavailable."""
        try:
            import nats
        except ImportError:
            raise SettingsError(f"source: {REMEDY}") from None
        self._nats = nats
        self.where = where
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="nats", daemon=True)
        self._thread.start()
        self.on_reconnect: Callable[[], None] = lambda: None
        self.client: Client
        self.js: JetStreamContext
        try:
            self.call(self._connect(where.url()), REQUEST)
        except OctoserveError:
            self._end()
            raise

    async def _connect(self, url: str) -> None:
        async def disconnected() -> None:
            if not self.client.is_closed:
                log.warning("%s: connection lost", self.where.label)
                # Where the broker is ours, it is started again, at its old port.
                await self.loop.run_in_executor(None, self._revive)

        async def reconnected() -> None:
            log.warning("%s: connected again", self.where.label)
            self.on_reconnect()

        async def wrong(error: Exception) -> None:
            log.debug("%s: %s", self.where.label, error)

        try:
            self.client = await self._nats.connect(
                url,
                name="octoserve",
                connect_timeout=5,
                allow_reconnect=True,
                max_reconnect_attempts=1,
                reconnect_time_wait=0.5,
                disconnected_cb=disconnected,
                reconnected_cb=reconnected,
                error_cb=wrong,
                pending_size=64 << 20,
            )
        except (TimeoutError, OSError, self._nats.errors.Error) as error:
            raise Unavailable(f"cannot connect to {self.where.label}: {str(error) or type(error).__name__}") from None
        self.client.options["max_reconnect_attempts"] = -1  # one that was there comes back; one that never was does not
        self.js = self.client.jetstream(timeout=REQUEST, publish_async_max_pending=2 * WINDOW)

    def _revive(self) -> None:
        try:
            self.where.url()
        except OctoserveError as error:
            log.error("%s", error)

    def call(self, work: Coroutine[Any, Any, T], timeout: float = 2 * REQUEST) -> T:
        """Do it on the client's thread. Raises Unavailable for whatever the client raises."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout)
        except OctoserveError:
            raise
        except TimeoutError:
            future.cancel()
            raise Unavailable(f"{self.where.label} does not answer") from None
        except (OSError, self._nats.errors.Error) as error:
            raise Unavailable(f"{self.where.label}: {_text(error)}") from None

    def post(self, work: Callable[[], None]) -> None:
        """Do it there soon."""
        self.loop.call_soon_threadsafe(work)

    def close(self) -> None:
        """See that everything has been sent, and end the thread."""
        try:
            if self.client.is_connected:
                self.call(self.client.flush(timeout=5), 6)
            self.call(self.client.close(), 6)
        except Unavailable:
            log.warning("%s: left without its last acknowledgements, what they were for comes again", self.where.label)
        finally:
            self._end()

    def _end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.where.leave()

    # --- messages --------------------------------------------------------------------------------------

    async def publish_all(self, subject: str, stream: str, messages: Iterable[tuple[bytes, dict[str, str]]]) -> int:
        """Values and headers, all acknowledged on return; how many the server had already. Raises Unavailable."""
        repeated, size = 0, 0
        waiting: list[asyncio.Future[PubAck]] = []
        for value, headers in messages:
            waiting.append(await self.js.publish_async(subject, value, headers=headers, stream=stream))
            size += len(value)
            if len(waiting) == WINDOW or size > _WINDOW_BYTES:
                repeated += await self._acknowledged(waiting)
                waiting, size = [], 0
        return repeated + await self._acknowledged(waiting)

    async def _acknowledged(self, waiting: Sequence[asyncio.Future[PubAck]]) -> int:
        try:
            acks = await asyncio.wait_for(asyncio.gather(*waiting), _ACKNOWLEDGED)
        except TimeoutError:
            raise Unavailable(f"{self.where.label} does not acknowledge") from None
        return sum(bool(ack.duplicate) for ack in acks)

    async def everything(self, stream: str, subject: str) -> AsyncIterator[Message]:
        """What lies in a stream, the first first; through a consumer that is gone afterwards."""
        from nats.js import api

        if not (await self.js.stream_info(stream)).state.messages:
            return
        read_only = api.ConsumerConfig(ack_policy=api.AckPolicy.NONE, inactive_threshold=REQUEST)
        reader = await self.js.pull_subscribe(subject, stream=stream, config=read_only)
        try:
            left = 1
            while left:
                for msg in await reader.fetch(_AT_ONCE, timeout=REQUEST):
                    left = msg.metadata.num_pending
                    yield message_of(msg, stream)
        finally:
            await reader.unsubscribe()

    # --- streams and consumers -----------------------------------------------------------------------

    def ensure(self) -> None:
        """Stream, durable consumer and the dead letters' stream are there. Raises SettingsError, Unavailable."""
        self.call(self._ensure())

    async def _ensure(self) -> None:
        from nats.js import api

        where = self.where
        await self.ensure_stream("source")
        if not await self._has_stream(where.dead_stream):
            await self.js.add_stream(
                name=where.dead_stream, subjects=[where.dead_subject], storage=api.StorageType.FILE
            )
        await self.js.add_consumer(
            where.stream,
            api.ConsumerConfig(
                durable_name=where.durable,
                ack_policy=api.AckPolicy.EXPLICIT,
                ack_wait=where.ack_wait,
                max_deliver=-1,
                max_ack_pending=_MAX_ACK_PENDING,
                filter_subject=where.subject or None,
            ),
        )

    async def ensure_stream(self, setting: str) -> None:
        """The stream alone. Raises SettingsError, naming the setting."""
        from nats.js import api

        where = self.where
        subject = where.subject or where.stream
        if not await self._has_stream(where.stream):
            if not where.ours and not where.subject:
                raise SettingsError(
                    f"{setting}: {where.label} has no stream {where.stream!r}; make it, or say which subject it is to "
                    "hold: ?subject=..."
                )
            await self.js.add_stream(name=where.stream, subjects=[subject], storage=api.StorageType.FILE)

    async def _has_stream(self, name: str) -> bool:
        from nats.js.errors import NotFoundError

        try:
            await self.js.stream_info(name)
        except NotFoundError:
            return False
        return True

    def sweep(self) -> None:
        """Remove what is done, where that is ours to do. Raises Unavailable."""
        if self.where.ours:
            self.call(self._sweep())

    async def _sweep(self) -> None:
        floors = [info.ack_floor for info in await self.js.consumers_info(self.where.stream)]
        state = (await self.js.stream_info(self.where.stream)).state
        done = min((floor.stream_seq if floor is not None else 0 for floor in floors), default=0)
        before = min(done + 1, state.last_seq - KEPT + 1)
        if before - state.first_seq >= KEPT:
            await self.js.purge_stream(self.where.stream, seq=before)

    def lag(self) -> list[Lag]:
        """Of the durable consumer. Raises Unavailable."""
        return [self.call(self._lag())]

    async def _lag(self) -> Lag:
        info = await self.js.consumer_info(self.where.stream, self.where.durable)
        behind, in_hand = info.num_pending or 0, info.num_ack_pending or 0
        oldest = None
        if behind or in_hand:
            floor = info.ack_floor.stream_seq if info.ack_floor is not None else 0
            oldest = await self._published(floor + 1)
        return Lag(partition="", behind=behind, in_hand=in_hand, oldest=oldest)

    async def _published(self, sequence: int) -> float | None:
        """When the first message from there on was stored."""
        found = await self.stored(self.where.stream, sequence)
        return found.published if found is not None else None

    async def stored(self, stream: str, sequence: int) -> Message | None:
        """The first message of the stream from `sequence` on; None if there is none."""
        query = json.dumps({"seq": max(1, sequence), "next_by_subj": ">"}).encode()
        answer = await self.client.request(f"$JS.API.STREAM.MSG.GET.{stream}", query, timeout=REQUEST)
        found = msgspec.json.decode(answer.data, type=_Got)
        if found.message is None:
            if found.error is not None and found.error.err_code != _NOT_FOUND:
                raise Unavailable(f"{self.where.label}: {found.error.description}")
            return None
        raw = found.message
        return Message(
            position=Position("", raw.seq),
            name=f"{stream}/{raw.seq}",
            value=raw.data,
            headers=heard(_headers(raw.hdrs)),
            published=_seconds(raw.time),
        )


def message_of(msg: Msg, stream: str) -> Message:
    """A message that a consumer was given; its place and time are in the subject that it is acknowledged by."""
    words = msg.reply.split(".")
    delivered, sequence, _, stamp, _ = words[4:9] if len(words) == 9 else words[6:11]
    return Message(
        position=Position("", int(sequence)),
        name=f"{stream}/{sequence}",
        value=msg.data,
        headers=heard(msg.headers),
        published=int(stamp) / 1e9,
        deliveries=int(delivered),
        token=msg.reply,
    )


def header_bytes(headers: Mapping[str, str]) -> int:
    """What headers add to a message, which the server counts as its payload."""
    lines = sum(len(name.encode()) + len(value.encode()) + 4 for name, value in headers.items())
    return len("NATS/1.0\r\n\r\n") + lines


class _Raw(msgspec.Struct):
    seq: int
    time: str
    data: bytes = b""
    hdrs: bytes = b""


class _Error(msgspec.Struct):
    err_code: int = 0
    description: str = ""


class _Got(msgspec.Struct):
    message: _Raw | None = None
    error: _Error | None = None


def _headers(block: bytes) -> dict[str, str]:
    """Of a message as it is stored: `NATS/1.0`, then `name: value`, lines ended by CR LF."""
    lines = block.decode("utf-8", "replace").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _seconds(stamp: str) -> float:
    """Unix seconds of RFC 3339 with nanoseconds, which datetime does not read."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    parsed = time.strptime(whole, "%Y-%m-%dT%H:%M:%S")
    return calendar.timegm(parsed) + (float(f"0.{fraction}") if fraction else 0.0)


def _text(error: BaseException) -> str:
    return getattr(error, "description", None) or " ".join(str(error).split()) or type(error).__name__
