"""What the doors' routes are made of: a handler and what it is bound to, worked out once for each distinct head."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from octoserve.core.errors import Internal, OctoserveError
from octoserve.patterns.online.errors import headers_of, status_of
from octoserve.patterns.online.http.connection import Connection
from octoserve.patterns.online.http.head import Handler, Head
from octoserve.security.caller import NEVER, SEE

log = logging.getLogger(__name__)

Answer = Callable[[Connection, bytes], None]
Route = tuple[Handler, Any]
CACHE_HEADER = "x-octoserve-cache"
"""Says whether an answer was kept (`hit`) or computed (`miss`), where the model has a cache."""


class Family(Protocol):
    """Routes of one protocol, or of a few that share paths."""

    def find(self, head: Head, parts: list[str]) -> Route:
        """The route of a path, whose decoded `parts` are given. Raises NotFound."""
        ...


def respond_to(connection: Connection, error: OctoserveError) -> None:
    """Answer an error; shed load says when to come back."""
    connection.respond_error(status_of(error), str(error), headers_of(error))


def allow(head: Head, right: str = SEE, model: str = "") -> None:
    """Every route says by this, before all else, what it wants: a right on a model, or just somebody who is known.

    Raises Unauthenticated, Forbidden, Unavailable.
    """
    head.allowed = True
    if head.access is None:
        return
    once, head.once = head.once, True  # a refusal is not kept, nor is what expires
    head.caller = caller = head.access.caller(head.headers)
    if model or right:
        caller.check(right, model)
    if caller.until == NEVER:
        head.once = once


def open_to_all(head: Head) -> None:
    """What a route of health says in place of `allow`."""
    head.allowed = True


def seen_by(head: Head) -> Callable[[str], bool]:
    """Whether a model is shown to who asks."""
    return head.caller.sees if head.caller is not None else lambda model: True


class Later:
    """Answers that take longer than a look: of operations on models."""

    def __init__(self, refuse: Callable[[Connection, OctoserveError], None] = respond_to) -> None:
        self._refuse = refuse
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, connection: Connection, work: Coroutine[Any, Any, bytes]) -> None:
        """A JSON document when `work` has ended, or its error."""

        async def run() -> None:
            try:
                connection.respond_json(await work)
            except OctoserveError as error:
                self._refuse(connection, error)
            except Exception:
                log.exception("an operation failed")
                self._refuse(connection, Internal("the operation failed; the server's log has the reason"))

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def method(head: Head, *allowed: str) -> Handler:
    """What runs the route's `Answer`, or says that the method is not one of these."""
    asked = "GET" if head.method == "HEAD" else head.method  # load balancers probe with HEAD
    if asked not in allowed:
        return lambda c, h, _: c.respond_error(405, f"{h.method} is not offered here", f"allow: {', '.join(allowed)}")
    return _answer


def get(head: Head, body: Callable[[bytes], bytes]) -> Route:
    """GET of a JSON document."""
    return method(head, "GET"), lambda connection, came: connection.respond(200, body(came))


def _answer(connection: Connection, head: Head, body: bytes) -> None:
    """Run a route's answer; `binding` is the route."""
    try:
        head.binding(connection, body)
    except OctoserveError as error:
        respond_to(connection, error)
