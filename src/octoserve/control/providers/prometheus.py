"""Metrics by PromQL, over Prometheus' instant query API (/api/v1/query), which its successors speak too.

`check.queries` has `n` and `total`, `squares` for a mean, and `newest` where age matters: the time stamps that an
instant query returns are those of the question, so how old data is must be asked, by `timestamp(...)`. Each query
returns an instant vector whose series are labelled `arm` or `version`; series of one arm add up.

`{{candidate}}`, `{{stable}}`, `{{endpoint}}` and `{{window}}` are put in. Versions are digits and a window is a
duration, anywhere; an endpoint's name is text of people's choice: it stands only within quotes, and is escaped as
these want it.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import re
import socket
import ssl
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

from octoserve.control.analysis.reading import Reading
from octoserve.control.providers.protocol import Window
from octoserve.control.providers.rows import Gathering, Unreadable
from octoserve.control.rollout.values import MetricCheck
from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import SettingsError, Unavailable

MOST_BYTES = 4 * 2**20
"""Of an answer. More is a query that was not aggregated."""

_SUMS = ("n", "total", "squares")
_NEWEST = "newest"

_LITERAL = re.compile(
    r"""(?P<comment>\#[^\n]*)
      | (?P<regex>[=!]~\s*)? (?P<text> "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | `[^`]*` )""",
    re.DOTALL | re.VERBOSE,
)
_PLACE = re.compile(r"\{\{\s*(\w*)\s*\}\}")
_PLACES = ("candidate", "stable", "endpoint", "window")


class PrometheusProvider:
    """A `MetricProvider` over a Prometheus' address."""

    def __init__(
        self, url: str, timeout: float = 10.0, headers: Mapping[str, str] | None = None, clock: Clock = monotonic
    ) -> None:
        """`http[s]://[user:password@]host[:port][/prefix]`; `headers` for a bearer token or a tenant.

        Raises SettingsError for an address that is none; its message does not repeat it.
        """
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            self._host = ""
        if not self._host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
            raise SettingsError("providers: a Prometheus' address is http[s]://host:port, with a prefix if it has one")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = parts.path.rstrip("/") + "/api/v1/query"
        self._timeout, self._clock = timeout, clock
        self._headers = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
        self._secrets = [*(headers or {}).values()]
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
            self._secrets.append(unquote(parts.password or ""))
        self._secrets = [secret for secret in self._secrets if secret]
        self._label = f"{parts.scheme}://{self._host}{f':{self._port}' if self._port else ''}{parts.path.rstrip('/')}"

    def problem(self, check: MetricCheck) -> str:
        wanted = {"n", "total"} | ({"squares"} if check.kind == "mean" else set())
        if check.kind not in ("rate", "mean"):
            return f"{check.name}: a metric is a rate or a mean, not {check.kind!r}"
        if not wanted <= set(check.queries) or set(check.queries) - {*_SUMS, _NEWEST}:
            return f"{check.name}: wants the queries {', '.join(sorted(wanted))}, and newest if its age matters"
        window = Window(endpoint="m", candidate=2, stable=1, since=0.0, until=60.0)
        for name, query in check.queries.items():
            try:
                put_in(query, window)
            except Unreadable as error:
                return f"{check.name}: {name}: {error}"
        return ""

    def read(self, check: MetricCheck, query: Window) -> Reading:
        if problem := self.problem(check):
            return Reading(error=problem)
        wanted = [name for name in _SUMS if name in check.queries]
        gathering = Gathering(query, wanted, dated=_NEWEST in check.queries)
        end = self._clock() + self._timeout
        try:
            for name in check.queries:
                self._gather(name, put_in(check.queries[name], query), query.until, end, gathering)
            return gathering.reading()
        except (Unreadable, Unavailable) as error:
            return Reading(error=f"{check.name}: {self._without_secrets(str(error))}")
        except Exception as error:  # a provider never raises: a look must come to a verdict
            return Reading(error=f"{check.name}: {type(error).__name__}")

    def _gather(self, name: str, promql: str, at: float, end: float, gathering: Gathering) -> None:
        try:
            for labels, value in self._ask(promql, at, end):
                row: dict[str, object] = {key: labels[key] for key in ("arm", "version") if key in labels}
                if not row:
                    raise Unreadable(f"a series has no label arm or version; it has {', '.join(labels) or 'none'}")
                gathering.add({**row, name: value})
        except Unreadable as error:
            raise Unreadable(f"{name}: {error}") from None

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def close(self) -> None:
        """Nothing is open between reads."""

    def _ask(self, promql: str, at: float, end: float) -> list[tuple[dict[str, str], float]]:
        """An instant vector: labels and value of each series. Raises Unavailable and Unreadable."""
        body = urlencode({"query": promql, "time": f"{at:.3f}", "timeout": f"{self._timeout:g}s"})
        status, content = self._post(body, end)
        try:
            answer = json.loads(content)
            if answer["status"] != "success":
                raise Unreadable(f"{answer.get('errorType')}: {str(answer.get('error'))[:300]}")
            warnings = [text for text in answer.get("warnings") or () if not text.startswith("PromQL info:")]
            if warnings:  # some stores of it are down: what is left is not all
                raise Unavailable(f"{self._label} warns: {'; '.join(warnings)[:300]}")
            if answer["data"]["resultType"] != "vector":
                raise Unreadable(f"wants an instant vector, got a {answer['data']['resultType']}")
            return [_series(series) for series in answer["data"]["result"]]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Unavailable(f"{self._label} answered {status}, which is no answer of Prometheus") from None

    def _post(self, body: str, end: float) -> tuple[int, bytes]:
        """Status and content, within what is left of the time."""
        left = max(0.001, end - self._clock())
        connection = (
            http.client.HTTPConnection(self._host, self._port, timeout=left)
            if self._tls is None
            else http.client.HTTPSConnection(self._host, self._port, timeout=left, context=self._tls)
        )
        try:
            connection.request("POST", self._path, body, self._headers)
            answer = connection.getresponse()
            content = bytearray()
            while piece := answer.read1(65536):
                content += piece
                if len(content) > MOST_BYTES:
                    raise Unreadable(f"more than {MOST_BYTES} bytes: aggregate in the query")
                if self._clock() > end:
                    raise TimeoutError
        except TimeoutError:
            raise Unavailable(f"{self._label}: no answer within {self._timeout:g} s") from None
        except (OSError, http.client.HTTPException, socket.gaierror) as error:
            raise Unavailable(
                f"{self._label}: {type(error).__name__}: {getattr(error, 'strerror', None) or ''}"
            ) from None
        finally:
            connection.close()
        return answer.status, bytes(content)


def _series(series: Any) -> tuple[dict[str, str], float]:
    return dict(series["metric"]), float(series["value"][1])


def put_in(promql: str, window: Window) -> str:
    """The query with its placeholders filled. Raises Unreadable for one that is unknown or in the wrong place."""
    parts, end = [], 0
    for literal in _LITERAL.finditer(promql):
        parts.append(_PLACE.sub(partial(_bare, window), promql[end : literal.start()]))
        parts.append("" if literal["comment"] else _PLACE.sub(partial(_quoted, window, literal), literal[0]))
        end = literal.end()
    return "".join([*parts, _PLACE.sub(partial(_bare, window), promql[end:])])


def _bare(window: Window, place: re.Match[str]) -> str:
    match place[1]:
        case "candidate":
            return str(int(window.candidate))
        case "stable":
            return str(int(window.stable))
        case "window":
            return f"{max(1, math.ceil(window.until - window.since))}s"
        case "endpoint":
            raise Unreadable("{{endpoint}} stands within quotes")
    raise Unreadable(f"{{{{{place[1]}}}}} is none of {', '.join(_PLACES)}")


def _quoted(window: Window, literal: re.Match[str], place: re.Match[str]) -> str:
    if place[1] != "endpoint":
        return _bare(window, place)
    name, quote = window.endpoint, literal["text"][0]
    if literal["regex"]:
        name = re.sub(r"([.+*?()|\[\]{}^$\\])", r"\\\1", name)
    if quote == "`":
        if "`" in name:
            raise Unreadable("an endpoint whose name has a backtick stands within other quotes")
        return name
    return name.replace("\\", "\\\\").replace(quote, "\\" + quote).replace("\n", "\\n")
