"""Requests that are answered later: 202 once the broker has them, and polls. Nothing is scored here.

The order of a POST, and what a crash after each step means, is in docs/decisions/0015-async-requests.md. What waits for
a broker or a database does so in threads; a request costs no thread and no connection once it has its 202.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Coroutine, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from octoserve.codecs.open_inference_json import decode_request
from octoserve.connectors.queues.answers import TOPIC, Answer, AnswerStore, Asked, digest_of
from octoserve.connectors.queues.protocol import Publisher
from octoserve.core.clock import Clock
from octoserve.core.errors import (
    Conflict,
    Internal,
    InvalidInput,
    NotFound,
    OctoserveError,
    Overloaded,
    SettingsError,
    Unavailable,
)
from octoserve.core.trace_context import carried
from octoserve.dataplane.deferred import check, headers_of, message_id, reference_in, within
from octoserve.patterns.online.errors import status_of
from octoserve.patterns.online.http.coding import decompress
from octoserve.patterns.online.http.connection import Connection
from octoserve.patterns.online.http.head import Head
from octoserve.patterns.online.http.infer_head import InferHead
from octoserve.patterns.online.http.routes import Route, method
from octoserve.patterns.online.service import Service
from octoserve.patterns.online.settings import AsyncRequests, Limits
from octoserve.patterns.online.traced import named, over_http
from octoserve.telemetry.metrics import Metric
from octoserve.telemetry.tracing import ACTIVE, active, outgoing

log = logging.getLogger(__name__)

_THREADS = 8
"""That wait for the broker and the store."""
_LOOKUPS = 2
_AWAY = 5
"""Seconds after which a client is asked to come back when either is away."""
_POLL = 1
_QUIET = 5.0
"""Seconds between complaints in the log."""
_LONGEST = 200
ACCEPTED, REPEATED = "accepted", "repeated"
_encode = msgspec.json.encode


class Way(NamedTuple):
    """Where requests go, by model, and where answers come from."""

    publishers: Mapping[str, Publisher]
    store: AnswerStore

    @property
    def parts(self) -> list[Publisher | AnswerStore]:
        """Whatever is connected to."""
        return [*self.publishers.values(), self.store]

    def prepare(self) -> None:
        """Connect to all, as far as they are there: the first request is not to wait for it."""
        for part in self.parts:
            with contextlib.suppress(OctoserveError):
                part.prepare()

    def close(self) -> None:
        """The last call."""
        for part in self.parts:
            part.close()


class Order(NamedTuple):
    """A request that may be accepted. own: whether the client gave the id, and may come again with it.

    trace: the headers of its trace, which are no part of what it asks
    """

    model: str
    id: str
    own: bool
    value: bytes
    headers: dict[str, str]
    callback: str
    trace: Mapping[str, str] = {}


class AsyncDoor:
    """`/v2/models/MODEL/infer-async` of one worker's port."""

    def __init__(
        self,
        service: Service,
        settings: AsyncRequests,
        limits: Limits,
        way: Way,
        counts: Metric,
        wall: Clock = time.time,
        executor: Executor | None = None,
    ) -> None:
        self._service = service
        self._settings = settings
        self._limits = limits
        self._way = way
        self._counts = counts
        self._wall = wall
        self._threads = executor or ThreadPoolExecutor(_THREADS, "async")
        self._lookups = executor or ThreadPoolExecutor(_LOOKUPS, "poll")  # not behind who waits for a broker
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = 0
        """Requests that wait for the queue; polls, which may be many, keep none of them out."""
        self._complained = 0.0
        self._threads.submit(way.prepare)

    def close(self) -> None:
        """Once the last request has been answered."""
        for threads in (self._threads, self._lookups):
            threads.shutdown(wait=False, cancel_futures=True)
        self._way.close()

    def find(self, head: Head, model: str, rest: list[str]) -> Route:
        """See `door.Routes`."""
        head.once = True
        if model not in self._settings.models:
            raise NotFound(f"model {model!r} takes no asynchronous requests; those that do: async.models in the spec")
        match rest:
            case []:
                if head.method != "POST":
                    return method(head, "POST"), None
                infer = InferHead(model, "", head)
                return method(head, "POST"), lambda c, body: self._later(c, model, self._accept(c, head, infer, body))
            case [id]:
                return method(head, "GET"), lambda c, _: self._later(c, model, self._look(c, model, id))
        raise NotFound(f"no such path: {head.path}")

    # --- accept --------------------------------------------------------------------------------------

    async def _accept(self, connection: Connection, head: Head, infer: InferHead, body: bytes) -> None:
        """As a part of the client's trace, where that is sampled: the queue's message says so."""
        tracer = self._service.dataplane.tracer
        span = None if tracer is None else tracer.begin(head.headers, "")
        if span is None:
            ACTIVE.set(None)  # of this task: what its connection asked before has ended
            await self._admit(connection, infer, body)
            return
        named(span, head, infer)
        span.attributes.update({"octoserve.model": infer.model, "octoserve.door": "async"})
        error: OctoserveError | None = Internal("the request failed")  # unless something better is known
        try:
            with active(span):
                await self._admit(connection, infer, body)
            error = None
        except OctoserveError as came:
            error = came
            raise
        finally:
            over_http(span, error)
            if error is None:
                span.attributes["http.response.status_code"] = 202
            span.end()

    async def _admit(self, connection: Connection, infer: InferHead, body: bytes) -> None:
        if self._accepting >= self._settings.max_pending:
            raise Overloaded(f"{self._accepting} requests wait for the queue to take them", 1)
        self._accepting += 1
        try:
            await self._take(connection, infer, body)
        finally:
            self._accepting -= 1

    async def _take(self, connection: Connection, infer: InferHead, body: bytes) -> None:
        loop = asyncio.get_running_loop()
        if infer.encoding:
            body = await loop.run_in_executor(self._threads, decompress, body, infer.encoding, self._limits.max_body)
        order = self._order(infer, body)
        found, outcome = await loop.run_in_executor(self._threads, self._submit, order)
        self._counts.counter(order.model, outcome).add()
        place = f"/v2/models/{quote(order.model, safe='')}/infer-async/{quote(order.id, safe='')}"
        told = {"id": order.id, "state": found.state, "status_url": place}
        headers = f"content-type: application/json\r\nlocation: {place}\r\nretry-after: {_POLL}"
        connection.respond(202, _encode(told), headers)

    def _order(self, infer: InferHead, body: bytes) -> Order:
        """Raises OctoserveError for what could never succeed."""
        batcher = self._service.dataplane.bind(infer.model, "")
        if infer.header_length == 0:
            _, spec = self._service.raw_input(infer.model, "")
            raise InvalidInput(
                f"a raw body is not taken here; send the input {spec.name!r} in JSON, or as a binary tensor behind it"
            )
        headers = headers_of(infer.header_length)
        reference = reference_in(body, headers)
        if reference is None:
            request = decode_request(body, infer.header_length)
            check(batcher.handle.signature, request)
        elif not within(reference.input_location, self._settings.inputs):
            raise InvalidInput(
                f"input_location {reference.input_location[:_LONGEST]!r} is not one that is allowed here; those that "
                "are: async.inputs in the spec"
            )
        callback = infer.headers.get("x-octoserve-callback", "")
        if callback and not within(callback, self._settings.callbacks):
            raise InvalidInput(
                f"header X-Octoserve-Callback: {callback[:_LONGEST]!r} is not an address that may be called; those "
                "that may: async.callbacks in the spec"
            )
        key = infer.headers.get("idempotency-key", "")
        id = key or (request.id if reference is None else reference.id)
        if len(id) > _LONGEST or not id.isprintable() or not (id.isascii() or not key):
            what = "header Idempotency-Key" if key else "id"
            raise InvalidInput(f"{what}: at most {_LONGEST} printable characters are wanted, {id[:_LONGEST]!r} came")
        trace = outgoing() or carried(infer.headers)
        return Order(infer.model, id or uuid.uuid4().hex, bool(id), body, headers, callback, trace)

    def _submit(self, order: Order) -> tuple[Answer, str]:
        """Steps 2 to 4, in a thread. Raises Conflict, TooLarge, Unavailable."""
        store = self._way.store
        digest = digest_of(order.model, order.value, *sorted(order.headers.values()), order.callback)
        callback = order.callback or (TOPIC if self._settings.results else "")
        asked = Asked(id=message_id(order.model, order.id), digest=digest, callback=callback)
        try:
            if order.own:
                found = store.take(asked, self._wall())
                _same(order, asked, found)
                if found.accepted is not None:
                    return found, REPEATED
            self._way.publishers[order.model].publish(order.value, asked.id, {**order.headers, **order.trace})
            return store.accept(asked, self._wall()), ACCEPTED
        except (Unavailable, SettingsError) as error:
            self._complain(f"asynchronous requests are not accepted: {error}")
            raise Unavailable("asynchronous requests cannot be accepted now; send it again") from None

    def _complain(self, text: str) -> None:
        """Now and then: there may be thousands of requests in an outage."""
        now = self._wall()
        if now - self._complained >= _QUIET:
            self._complained = now
            log.warning("%s", text)

    # --- poll ----------------------------------------------------------------------------------------

    async def _look(self, connection: Connection, model: str, id: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._lookups, self._way.store.look, message_id(model, id))
        except (Unavailable, SettingsError) as error:
            self._complain(f"polls are not answered: {error}")
            raise Unavailable("answers cannot be looked up now; ask again") from None
        if found is None:
            raise NotFound(f"no request {id!r} of model {model!r} was accepted, or its answer was kept long enough")
        headers = "content-type: application/json\r\ncache-control: no-store"
        if found.state == "pending":
            headers += f"\r\nretry-after: {_POLL}"
        connection.respond(200, found.told(), headers)

    # --- both ----------------------------------------------------------------------------------------

    def _later(self, connection: Connection, model: str, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except OctoserveError as error:
                self._counts.counter(model, error.reason).add()
                _refuse(connection, error)
            except Exception:
                log.exception("an asynchronous request failed")
                _refuse(connection, Internal("the request failed; the server's log has the reason"))

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _same(order: Order, asked: Asked, found: Answer) -> None:
    if found.digest != asked.digest:
        raise Conflict(f"id {order.id!r} is another request's of this model; a new request wants a new id")


def _refuse(connection: Connection, error: OctoserveError) -> None:
    retry = error.retry_after if isinstance(error, Overloaded) else _AWAY if isinstance(error, Unavailable) else None
    connection.respond_error(status_of(error), str(error), f"retry-after: {retry}" if retry else "")
