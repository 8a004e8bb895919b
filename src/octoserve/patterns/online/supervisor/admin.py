"""The admin API: what is served and why, and the way to change it. Never on the hot path.

    GET  /livez /readyz /metrics
    GET  /api/models /api/workers /api/generation /api/repository /api/slo /api/drift
    GET  /api/models/{model}/plan             the route plan, for whoever splits as it does (batch jobs)
    POST /api/models/{model}/load | unload
    PUT  /api/models/{model}/labels/{label}   {"version": n}
    DELETE /api/models/{model}/labels/{label}
    /api/rollouts/... /api/live             see docs/rollout-api.md
    GET  /console                           a page for people

Errors are `{"error": "..."}`. With tokens set, everything but /livez, /readyz and (by default) /metrics
wants `Authorization: Bearer <token>`, of a role that may ask for it. Without any, changes are refused to web pages.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from octoserve.core import errors
from octoserve.patterns.online.supervisor import admin_rollouts
from octoserve.patterns.online.supervisor.admin_guards import OriginGuard, RoleGuard, caller_of, refusal
from octoserve.patterns.online.supervisor.admin_server import serve_application
from octoserve.patterns.online.supervisor.admin_views import generation_view, models_view, plan_of, workers_view
from octoserve.patterns.online.supervisor.console import routes as console
from octoserve.patterns.online.supervisor.live_figures import LiveFigures
from octoserve.security.caller import ADMIN, ADMIN_API

if TYPE_CHECKING:
    from octoserve.patterns.online.supervisor.supervisor import Supervisor

log = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[errors.OctoserveError], int], ...] = (
    (errors.NotFound, 404),
    (errors.Unsupported, 409),
    (errors.BrokenVersion, 409),
    (errors.TooLarge, 413),
    (errors.InvalidInput, 400),
    (errors.SettingsError, 400),
    (errors.Overloaded, 429),
    (errors.Unavailable, 503),
)
_MAX_BODY = 1 << 16
_BODY_TIMEOUT = 10.0


def application(supervisor: Supervisor) -> ASGIApp:
    """The API over a running supervisor."""
    room, fleet, settings = supervisor.room, supervisor.fleet, supervisor.settings
    guard = supervisor.security.guard
    access = guard.access

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        serving = any(member.generation for member in fleet.serving())
        ready = supervisor.ready and serving
        return PlainTextResponse("ok\n" if ready else "no worker serves yet\n", 200 if ready else 503)

    async def metrics(_: Request) -> Response:
        from octoserve.patterns.online.supervisor.admin_metrics import page

        content, kind = await page(supervisor)
        return Response(content, media_type=kind)

    async def models(_: Request) -> Response:
        return JSONResponse(models_view(room))

    async def plan(request: Request) -> Response:
        return Response(plan_of(room, request.path_params["model"]), media_type="application/json")

    async def workers(_: Request) -> Response:
        return JSONResponse(workers_view(fleet))

    async def generation(_: Request) -> Response:
        return JSONResponse(generation_view(room))

    async def repository(_: Request) -> Response:
        return JSONResponse(supervisor.elsewhere.view() or {"folder": str(supervisor.repository.root)})

    async def slo(_: Request) -> Response:
        return JSONResponse(await supervisor.slo.view())

    async def note(request: Request, event: str, reason: str = "") -> str:
        """The model, once its audit log has the change."""
        model: str = request.path_params["model"]
        await supervisor.rollouts.noted(model, who(request), event, reason)
        return model

    async def drift(_: Request) -> Response:
        return JSONResponse(await supervisor.drift.view())

    async def load(request: Request) -> Response:
        model: str = request.path_params["model"]
        await supervisor.change("load", model, who(request))
        return JSONResponse(models_view(room)[model])

    async def unload(request: Request) -> Response:
        model: str = request.path_params["model"]
        await supervisor.change("unload", model, who(request))
        return JSONResponse(models_view(room)[model])

    async def label(request: Request) -> Response:
        name, version = request.path_params["label"], await _version(request)
        model = await note(request, "label", f"{name} is version {version}")
        await room.set_label(model, name, version)
        return JSONResponse(models_view(room)[model])

    async def unlabel(request: Request) -> Response:
        model = await note(request, "unlabel", request.path_params["label"])
        await room.remove_label(model, request.path_params["label"])
        return JSONResponse(models_view(room)[model])

    app = Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/api/models", models),
            Route("/api/models/{model}/plan", plan),
            Route("/api/workers", workers),
            Route("/api/generation", generation),
            Route("/api/repository", repository),
            Route("/api/slo", slo),
            Route("/api/drift", drift),
            Route("/api/models/{model}/load", load, methods=["POST"]),
            Route("/api/models/{model}/unload", unload, methods=["POST"]),
            Route("/api/models/{model}/labels/{label}", label, methods=["PUT"]),
            Route("/api/models/{model}/labels/{label}", unlabel, methods=["DELETE"]),
            *admin_rollouts.routes(supervisor, _body, who),
            *console.routes(admin_rollouts.Source(supervisor), access is not None, role),
        ],
        exception_handlers={errors.OctoserveError: _refuse, HTTPException: _refuse_http, Exception: _fail},
    )
    if access is not None:
        paths = {"/livez", "/readyz", *console.OPEN_PATHS} | (set() if settings.protect_metrics else {"/metrics"})
        return RoleGuard(app, access, frozenset(paths))
    return OriginGuard(app, supervisor.admin_port, "http" if guard.certificates is None else "https")


def who(request: Request) -> str:
    """In the audit log."""
    caller = caller_of(request.scope)
    return ADMIN_API if caller is None else caller.name


def role(request: Request) -> str:
    """What decides which commands the console offers."""
    caller = caller_of(request.scope)
    return ADMIN if caller is None else caller.role


async def _body(request: Request, most: int = _MAX_BODY) -> bytes:
    """At most so many bytes, within _BODY_TIMEOUT."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise errors.TooLarge(f"at most {most} bytes are taken")
    except TimeoutError:
        raise HTTPException(408, "the body did not come in time", {"connection": "close"}) from None
    return bytes(body)


async def _version(request: Request) -> int:
    import msgspec

    body = await _body(request)
    try:
        version: int = msgspec.json.decode(body, type=dict[str, int])["version"]
    except (msgspec.MsgspecError, KeyError):
        raise errors.InvalidInput(f'{{"version": 2}} is wanted, {body[:100]!r} came') from None
    return version


async def _refuse(_: Request, error: Exception) -> Response:
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    answer = refusal(status, str(error))
    if isinstance(error, errors.Overloaded):
        answer.headers["retry-after"] = str(error.retry_after)
    return answer


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    answer.headers.update(error.headers or {})
    return answer


async def _fail(_: Request, error: Exception) -> Response:
    log.error("admin API: %s", error, exc_info=error)
    return refusal(500, "an error of ours; the log has it")


__all__ = ["LiveFigures", "application", "serve_admin"]


async def serve_admin(supervisor: Supervisor, listener: socket.socket) -> None:
    """Serve until cancelled."""
    certificates = supervisor.security.guard.certificates
    tls = None
    if certificates is not None:
        from octoserve.security.certificates import HTTP1

        tls = certificates.context(HTTP1, clients=False)  # who probes has no certificate, and here tokens say who asks
    await serve_application(application(supervisor), listener, tls)
