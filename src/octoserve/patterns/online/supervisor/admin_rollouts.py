"""The rollout API and the live figures: routes of the admin application. docs/rollout-api.md is the contract."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octoserve.control.rollout.audit import decode
from octoserve.control.rollout.values import Command, Rollout
from octoserve.core.errors import InvalidInput, NotFound
from octoserve.core.evidence import Stratum
from octoserve.patterns.online.supervisor.admin_views import models_view, workers_view
from octoserve.patterns.online.supervisor.rollout_views import status, statuses, summary

if TYPE_CHECKING:
    from octoserve.patterns.online.supervisor.supervisor import Supervisor

MAX_HISTORY = 1000
AUDIT_PAGE, MAX_AUDIT_PAGE = 500, 1000
"""Entries of one answer, of some KB each: unless it is said, and at most."""
MAX_REASON = 500
MAX_SEQ = 2**63 - 1

_REPORT_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
"""A report holds what clients sent: escaped, and given no way to do anything."""

MAX_WORD = 8 << 20
"""Bytes of what a follower says: evidence by segments, and a sample of keys."""


class ReadBody(Protocol):
    """Reads a request's body."""

    def __call__(self, request: Request, most: int = ...) -> Awaitable[bytes]:
        """At most so many bytes. Raises TooLarge."""
        ...


class Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a start."""

    candidate: int
    strategy: str | None = None
    stable: int | None = None
    reason: str = ""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a command; all of it may be left out."""

    reason: str = ""
    id: str = ""


class Source:
    """What the console shows."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def rollouts(self) -> dict[str, Any]:
        """See `ConsoleSource`."""
        room = self._supervisor.room
        return statuses(self._supervisor.rollouts, models_view(room), room.all_follow())

    async def models(self) -> dict[str, Any]:
        """See `ConsoleSource`."""
        return models_view(self._supervisor.room)

    async def workers(self) -> list[dict[str, Any]]:
        """See `ConsoleSource`."""
        return workers_view(self._supervisor.fleet)

    async def live(self) -> dict[str, Any]:
        """See `ConsoleSource`."""
        return self._supervisor.live_figures.view()


def routes(supervisor: Supervisor, read_body: ReadBody, who: Callable[[Request], str]) -> list[Route]:
    """Everything under /api/rollouts, and /api/live. who: asks, for the audit log"""
    rollouts, source = supervisor.rollouts, Source(supervisor)

    def shown(endpoint: str) -> dict[str, Any]:
        room = supervisor.room
        model = models_view(room).get(endpoint)
        if model is None:
            raise NotFound(f"no endpoint {endpoint!r}; there is: {', '.join(models_view(room)) or 'none'}")
        return status(rollouts, endpoint, model, room.all_follow())

    async def all_of_them(_: Request) -> Response:
        return _json(await source.rollouts())

    async def one(request: Request) -> Response:
        return _json(shown(request.path_params["endpoint"]))

    async def start(request: Request) -> Response:
        endpoint = request.path_params["endpoint"]
        shown(endpoint)
        body = _decode(await read_body(request), Start, '{"candidate": 2, "strategy": "canary"}')
        made = rollouts.make(
            endpoint, body.candidate, body.strategy, body.stable, body.reason[:MAX_REASON], who(request)
        )
        await rollouts.begin(made)
        return _json(shown(endpoint), 201)

    async def command(request: Request) -> Response:
        endpoint, name = request.path_params["endpoint"], request.path_params["command"]
        shown(endpoint)
        if name not in [str(command) for command in Command]:
            raise NotFound(f"no command {name!r}; there are: {', '.join(Command)}")
        body = _decode(await read_body(request) or b"{}", Order, '{"reason": "..."}')
        await rollouts.ask(endpoint, Command(name), who(request), body.reason[:MAX_REASON], body.id)
        return _json(shown(endpoint), 202)

    async def follow(request: Request) -> Response:
        endpoint = request.path_params["endpoint"]
        shown(endpoint)
        return _json(await rollouts.followers.hear(endpoint, await read_body(request, MAX_WORD)))

    async def history(request: Request) -> Response:
        endpoint = request.path_params["endpoint"]
        shown(endpoint)
        past = await rollouts.history(
            endpoint, _number("limit", request.query_params.get("limit", "20"), 1, MAX_HISTORY)
        )
        return _json([summary(rollout) for rollout in past])

    async def audit(request: Request) -> Response:
        rollout, query = await _rollout(request), request.query_params
        after = _number("after", query.get("after", "0"), 0, MAX_SEQ)
        limit = _number("limit", query.get("limit", str(AUDIT_PAGE)), 1, MAX_AUDIT_PAGE)
        lines = await rollouts.audit(rollout, after, limit)
        return Response(b"[%b]" % b",".join(lines), media_type="application/json")

    async def report(request: Request) -> Response:
        rollout = await _rollout(request)
        endpoint = rollout.endpoint
        form = request.query_params.get("format", "json")
        look = rollouts.looks.get(rollout.id)
        told = await _told(rollout)
        if look is not None and look.stratum is not None:
            told[look.stratum.name] = look.stratum
        verdicts = look.verdicts if look is not None and look.verdicts else rollout.verdicts
        content, kind = await supervisor.pairs.report(endpoint, rollout.id, list(told.values()), verdicts, form)
        return Response(content, media_type=kind, headers=_REPORT_HEADERS)

    async def _told(rollout: Rollout) -> dict[str, Stratum]:
        """The last evidence of each step, from the log."""
        told: dict[str, Stratum] = {}
        after = 0
        while page := [decode(line) for line in await rollouts.audit(rollout, after, AUDIT_PAGE)]:
            told.update({entry.evidence.name: entry.evidence for entry in page if entry.evidence is not None})
            after = page[-1].seq
        return told

    async def _rollout(request: Request) -> Rollout:
        """The one that `id` names, else the endpoint's last."""
        endpoint, id = request.path_params["endpoint"], request.query_params.get("id", "")
        shown(endpoint)
        found = await rollouts.rollout(id) if id else next(iter(await rollouts.history(endpoint, 1)), None)
        if found is None or found.endpoint != endpoint:
            raise NotFound(f"endpoint {endpoint!r} has had no rollout{f' {id!r}' if id else ''}")
        return found

    async def live(_: Request) -> Response:
        return _json(await source.live())

    base = "/api/rollouts/{endpoint}"
    return [
        Route("/api/live", live),
        Route("/api/rollouts", all_of_them),
        Route(base, one, methods=["GET"]),
        Route(base, start, methods=["POST"]),
        Route(f"{base}/follow", follow, methods=["POST"]),
        Route(f"{base}/history", history),
        Route(f"{base}/audit", audit),
        Route(f"{base}/report", report),
        Route(base + "/{command}", command, methods=["POST"]),
    ]


def _json(value: Any, status: int = 200) -> Response:
    """Infinities and NaN, which an interval may have, are null."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _decode(body: bytes, kind: type[Any], wanted: str) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidInput(f"{wanted} is wanted: {error}") from None


def _number(name: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise InvalidInput(f"{name}: a number from {least} to {most} wanted, {text!r} came")
    return int(text)
