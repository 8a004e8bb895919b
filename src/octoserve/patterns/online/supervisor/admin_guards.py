"""Who the admin API lets past: bearers of the token, or, without one, programs of this machine but no web page."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from octoserve.core.names import is_loopback

_READS = ("GET", "HEAD", "OPTIONS")
_OPEN_TO_READ = frozenset({"/livez", "/readyz", "/metrics"})
"""Probes and scrapers call by whatever name they know; nothing there is a secret."""


def refusal(status: int, text: str) -> JSONResponse:
    """An error as every answer of the API says it."""
    return JSONResponse({"error": text}, status)


class TokenGuard:
    """Lets nobody past without the token, the open paths excepted. Compared in constant time."""

    def __init__(self, app: ASGIApp, token: str, open_paths: frozenset[str]) -> None:
        self._app = app
        self._token = token.encode()
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["path"] not in self._open and not self._knows(scope):
            answer = refusal(401, "a bearer token is wanted: Authorization: Bearer <admin_token>")
            answer.headers["www-authenticate"] = "Bearer"
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, token = given.partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)


class OriginGuard:
    """Without a token: refuse what a web page in a browser of this machine asks for, to change and to read.

    A page of another site shows its own Origin; one that has pointed its name to this machine (DNS rebinding)
    shows that name as Host. Both must be loopback with our port; a program sends no Origin.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        reads = scope["type"] == "http" and scope["method"] in _READS and scope["path"] in _OPEN_TO_READ
        if scope["type"] == "http" and not reads:
            problem = self._problem(scope)
            if problem:
                await refusal(403, problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> str:
        wanted = f"localhost:{self._port} wanted"
        for name, value in scope["headers"]:
            text = value.decode("latin-1")
            if name == b"host" and not self._ours("//" + text):
                return f"Host: {wanted}, {text!r} came; call it by that name, or set OCTOSERVE_ADMIN_TOKEN"
            if name == b"origin" and not self._ours(text):
                return f"Origin: http://{wanted}, {text!r} came; no page of another site may change this service"
        return ""

    def _ours(self, url: str) -> bool:
        try:
            parts = urlsplit(url, "http")
            host, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        return parts.scheme == "http" and port == self._port and is_loopback(host)
