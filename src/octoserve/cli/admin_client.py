"""A client of the admin API (docs/rollout-api.md), over the standard library: one connection a request.

A request that came to nothing says which address was tried and how to name another. Changes are never sent a second
time: whether the first one arrived is for the caller to find out by reading.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from octoserve.core.errors import InvalidInput, NotFound, OctoserveError, SettingsError, Unavailable

DEFAULT_URL = "http://127.0.0.1:8082"
URL_VARIABLE = "OCTOSERVE_ADMIN_URL"
TOKEN_VARIABLE = "OCTOSERVE_ADMIN_TOKEN"

_ROLLOUTS = "/api/rollouts"
_SHOWN = 2000  # characters of an answer that an error repeats
_UNKNOWN = 404
_LATER = (408, 429, 502, 503, 504)


class Refused(OctoserveError):
    """Understood, and not allowed as things stand: the server's reason."""

    reason = "refused"


class NoAnswer(Unavailable):
    """Nothing came, or that it cannot answer now. `why`: the cause alone."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


def read_token(file: Path | None) -> str:
    """The admin token: of `file` if there is one, else of the environment; "" for none. Raises SettingsError."""
    if file is None:
        token, source = os.environ.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
    else:
        source = f"--token-file {file}"
        try:
            token = file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{source}: cannot read it: {error}") from None
        if not token:
            raise SettingsError(f"{source}: it is empty; it should hold the admin token and nothing else")
    if not token.isprintable():
        raise SettingsError(f"{source}: a token is one line of printable text, this is not")
    return token


class AdminClient:
    """One service's admin API.

    url:     http://host:port, the scheme may be left out; https (see OCTOSERVE_CA) and a path before /api work too
    token:   sent as a bearer token; "" sends none
    timeout: seconds for one request
    """

    def __init__(self, url: str = DEFAULT_URL, token: str = "", timeout: float = 10.0) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise SettingsError(f"--admin-url {url!r}: {error}") from None
        if parts.username or parts.password:
            raise SettingsError(f"--admin-url: no name and password in it; the token comes from {TOKEN_VARIABLE}")
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise SettingsError(f"--admin-url {url!r}: an address like {DEFAULT_URL} is wanted")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._secure = parts.scheme == "https"
        self._host, self._port = host, port
        self._path = parts.path.rstrip("/")
        self._token = token
        self._tls: ssl.SSLContext | None = None
        self.timeout = timeout

    # --- what there is ----------------------------------------------------------------------------------

    def statuses(self) -> dict[str, Any]:
        """Endpoint -> Status, of every endpoint."""
        status, content = self._exchange("GET", _ROLLOUTS)
        if status == _UNKNOWN and _message(content):
            raise NotFound(
                f"the service at {self.url} knows no rollouts; is that its admin port (8082 by default), and not an "
                f"older octoserve? Another address: --admin-url or {URL_VARIABLE}"
            )
        return self._object(self._good(status, content))

    def status(self, endpoint: str) -> dict[str, Any]:
        """The Status of one endpoint. Raises NotFound, with what there is."""
        return self._object(self._ask("GET", endpoint))

    def history(self, endpoint: str, limit: int = 20) -> list[Any]:
        """Summaries of its rollouts, the newest first."""
        return self._list(self._ask("GET", endpoint, "/history", {"limit": str(limit)}))

    def audit(self, endpoint: str, id_: str = "", after: int = 0, limit: int = 500) -> bytes:
        """The audit entries of a rollout, of the last one by default: a JSON array, byte for byte as it came.

        Those after number `after`, at most `limit`.
        """
        page = {"after": str(after), "limit": str(limit)}
        return self._ask("GET", endpoint, "/audit", page | ({"id": id_} if id_ else {}))

    def report(self, endpoint: str, kind: str, id_: str = "") -> bytes:
        """The comparison of predictions as `kind`: json, html or text."""
        return self._ask("GET", endpoint, "/report", {"format": kind} | ({"id": id_} if id_ else {}))

    def slo(self) -> dict[str, Any]:
        """What each model promises, and what came of it: `GET /api/slo`."""
        status, content = self._exchange("GET", "/api/slo")
        if status == _UNKNOWN:
            raise NotFound(f"the service at {self.url} knows no SLOs; is that its admin port (8082 by default)?")
        return self._object(self._good(status, content))

    def drift(self) -> dict[str, Any]:
        """How far each version's live rows are from its reference profile: `GET /api/drift`."""
        status, content = self._exchange("GET", "/api/drift")
        if status == _UNKNOWN:
            raise NotFound(f"the service at {self.url} watches no drift; is that its admin port (8082 by default)?")
        return self._object(self._good(status, content))

    # --- changes ----------------------------------------------------------------------------------------

    def start(self, endpoint: str, wish: dict[str, Any]) -> dict[str, Any]:
        """Start a rollout; the Status. `wish`: candidate, and what shall differ from the spec."""
        return self._object(self._ask("POST", endpoint, body=wish))

    def command(self, endpoint: str, command: str, reason: str = "", id_: str = "") -> dict[str, Any]:
        """approve, pause, resume, promote, abort or rollback; the Status. Raises Refused where it is not legal now."""
        given = {"reason": reason, "id": id_}
        body = {key: value for key, value in given.items() if value}
        return self._object(self._ask("POST", endpoint, f"/{command}", body=body))

    # --- how --------------------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        endpoint: str,
        rest: str = "",
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> bytes:
        path = f"{_ROLLOUTS}/{quote(endpoint, safe='')}{rest}" + (f"?{urlencode(query)}" if query else "")
        status, content = self._exchange(method, path, body)
        if status == _UNKNOWN:
            there = sorted(self.statuses())
            if endpoint not in there:
                raise NotFound(f"no endpoint {endpoint} at {self.url}; there is: {', '.join(there) or 'none yet'}")
        return self._good(status, content)

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        connection = self._connection()
        headers: dict[str, str | bytes] = {"accept": "*/*", "connection": "close"}
        if self._token:
            headers["authorization"] = b"Bearer " + self._token.encode()
        data = None
        if body is not None:
            data, headers["content-type"] = json.dumps(body).encode(), "application/json"
        try:
            connection.request(method, self._path + path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            why = _why(error)
            raise NoAnswer(
                f"no answer from {self.url} ({why}); is `octoserve serve` running there? "
                f"Another address: --admin-url or {URL_VARIABLE}",
                why,
            ) from None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=self.timeout)
        if self._tls is None:
            from octoserve.security.trust import client_context

            self._tls = client_context()
        return http.client.HTTPSConnection(self._host, self._port, timeout=self.timeout, context=self._tls)

    def _good(self, status: int, content: bytes) -> bytes:
        if 200 <= status < 300:
            return content
        text = _message(content)
        if status == 401:
            what = "refuses the token that was given" if self._token else "wants the admin token"
            raise SettingsError(f"{self.url} {what}: set {TOKEN_VARIABLE}, or name a file with it: --token-file")
        if status == 403 and text:
            raise Refused(text)
        if status == _UNKNOWN and text:
            raise NotFound(text)
        if status == 409:
            raise Refused(text or "not possible now")
        if status in (400, 413, 422):
            raise SettingsError(text or f"{self.url} answers {status}")
        if status in _LATER:
            raise NoAnswer(f"{self.url} cannot answer now: {text or status}", text or str(status))
        if status < 500 and not text:
            raise self._strange()
        raise OctoserveError(f"{self.url} answers {status}" + (f": {text}" if text else ""))

    def _object(self, content: bytes) -> dict[str, Any]:
        value = self._json(content)
        if not isinstance(value, dict):
            raise self._strange()
        return value

    def _list(self, content: bytes) -> list[Any]:
        value = self._json(content)
        if not isinstance(value, list):
            raise self._strange()
        return value

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except ValueError:
            raise self._strange() from None

    def _strange(self) -> InvalidInput:
        return InvalidInput(
            f"{self.url} answers, but not as octoserve's admin API does; is it the admin port (8082 by default)? "
            f"Another address: --admin-url or {URL_VARIABLE}"
        )


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{error.verify_message}; OCTOSERVE_CA names a PEM file of whom to trust"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _message(content: bytes) -> str:
    """The text of `{"error": "..."}`; "" where the answer is something else."""
    try:
        value = json.loads(content)
    except ValueError:
        return ""
    text = value.get("error", "") if isinstance(value, dict) else ""
    return printable(str(text)[:_SHOWN])


def printable(text: str) -> str:
    """Text of others as a terminal may get it: no escape sequences, no control characters but new lines and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
