"""The console's routes: the page, its data, its two files, each with headers that let a browser do nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from octoserve.patterns.online.supervisor.console import pages
from octoserve.patterns.online.supervisor.console.markup import Markup
from octoserve.security.caller import ADMIN

_KINDS = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

OPEN_PATHS = frozenset({"/", "/console", *(f"/console/{name}" for name in _KINDS)})
"""What a token guard lets through: nothing here holds data. `/console/fragment` is not among them."""

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class ConsoleSource(Protocol):
    """What the page shows: the values of /api/rollouts, /api/models, /api/workers and /api/live."""

    async def rollouts(self) -> Mapping[str, Any]:
        """Endpoint -> Status."""
        ...

    async def models(self) -> Mapping[str, Any]:
        """Model -> routes, labels, versions."""
        ...

    async def workers(self) -> Sequence[Mapping[str, Any]]:
        """Every worker process."""
        ...

    async def live(self) -> Mapping[str, Any]:
        """The last minutes, by endpoint and version."""
        ...


def routes(source: ConsoleSource, token_set: bool, role: Callable[[Request], str] = lambda _: ADMIN) -> list[Route]:
    """To be mounted at the admin port's root; with `token_set` behind a guard that lets OPEN_PATHS through.

    role: of who asks, by which commands are offered
    """

    async def root(_: Request) -> Response:
        return RedirectResponse("/console", 307, HEADERS)

    async def console(request: Request) -> Response:
        content = None if token_set else await _fragment(source, role(request))
        return HTMLResponse(pages.page(content), headers=dict(HEADERS))

    async def fragment(request: Request) -> Response:
        return HTMLResponse(await _fragment(source, role(request)), headers=dict(HEADERS))

    async def file(request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        return Response(_file(name), media_type=_KINDS[name], headers=dict(HEADERS))

    return [
        Route("/", root),
        Route("/console", console),
        Route("/console/fragment", fragment),
        *(Route(f"/console/{name}", file) for name in _KINDS),
    ]


async def _fragment(source: ConsoleSource, role: str) -> Markup:
    """Drawn in a thread: the supervisor's loop has workers to attend to."""
    rollouts, models, workers, live = await asyncio.gather(
        source.rollouts(), source.models(), source.workers(), source.live()
    )
    return await asyncio.to_thread(pages.fragment, rollouts, models, workers, live, role)


@cache
def _file(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()
