"""Who the admin API lets past: bearers of a token, by its role; without any, this machine's programs, no web page."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from octoserve.core.errors import Unauthenticated
from octoserve.core.names import is_loopback
from octoserve.security.access import Access
from octoserve.security.caller import ADMIN, OPERATOR, VIEWER, Caller

_READS = ("GET", "HEAD", "OPTIONS")
_OPEN_TO_READ = frozenset({"/livez", "/readyz", "/metrics"})
"""Probes and scrapers call by whatever name they know; nothing there is a secret."""


def refusal(status: int, text: str) -> JSONResponse:
    """An error as every answer of the API says it."""
    return JSONResponse({"error": text}, status)


def needed_role(method: str, path: str) -> str:
    """The least role that may ask for this. What nobody has thought of is an admin's."""
    if method in _READS:
        return VIEWER
    parts = path.split("/")
    commands = len(parts) == 5 and parts[1:3] == ["api", "rollouts"]
    return OPERATOR if commands and parts[4] in OPERATORS else ADMIN


OPERATORS = frozenset({"approve", "pause", "resume", "abort", "rollback", "follow"})
"""Commands that make a rollout safer, or let it go on as it was started; and the word of a queue that follows one."""


class RoleGuard:
    """Lets nobody past without a token of a role that may ask for it, the open paths excepted.

    Who asks is left in the scope as `caller`.
    """

    def __init__(self, app: ASGIApp, access: Access, open_paths: frozenset[str]) -> None:
        self._app = app
        self._access = access
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["path"] not in self._open:
            try:
                caller = self._access.caller(
                    {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
                )
            except Unauthenticated as error:
                answer = refusal(401, "a bearer token is wanted: Authorization: Bearer <token>; " + str(error))
                answer.headers["www-authenticate"] = "Bearer"
                await answer(scope, receive, send)
                return
            role = needed_role(scope["method"], scope["path"])
            if not caller.reaches(role):
                have = f"is {caller.role}" if caller.role else "has no role on the admin API"
                problem = f"the role {role} is wanted for this, {caller.name!r} {have}"
                await refusal(403, problem)(scope, receive, send)
                return
            scope["caller"] = caller
        await self._app(scope, receive, send)


def caller_of(scope: Scope) -> Caller | None:
    """Who asks; None where no token is wanted."""
    caller: Caller | None = scope.get("caller")
    return caller


class OriginGuard:
    """Without a token: refuse what a web page in a browser of this machine asks for, to change and to read.

    A page of another site shows its own Origin; one that has pointed its name to this machine (DNS rebinding)
    shows that name as Host. Both must be loopback with our port; a program sends no Origin.
    """

    def __init__(self, app: ASGIApp, port: int, scheme: str = "http") -> None:
        self._app = app
        self._port = port
        self._scheme = scheme

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
            if name == b"host" and not self._ours(f"{self._scheme}://{text}"):
                return f"Host: {wanted}, {text!r} came; call it by that name, or set OCTOSERVE_ADMIN_TOKEN"
            if name == b"origin" and not self._ours(text):
                return (
                    f"Origin: {self._scheme}://{wanted}, {text!r} came; no page of another site may change this service"
                )
        return ""

    def _ours(self, url: str) -> bool:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or (443 if self._scheme == "https" else 80)
        except ValueError:
            return False
        return parts.scheme == self._scheme and port == self._port and is_loopback(host)
