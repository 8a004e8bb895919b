"""Metrics by SQL: `check.queries["rows"]`, over SQLite (`sqlite:///path`) or PostgreSQL (`postgresql://...`).

The query has named parameters, :endpoint :candidate :stable :since :until, which are bound and never formatted into
it. It returns the columns `arm` or `version`, `n`, `total`, and `squares` and `newest` where it has them. It runs in
a read-only transaction, for `timeout` at most, and a row too many is an error.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote
from uuid import uuid4

from octoserve.control.analysis.reading import Reading
from octoserve.control.postgres import SCHEMES, Server
from octoserve.control.providers.protocol import Window
from octoserve.control.providers.rows import Gathering, Unreadable
from octoserve.control.rollout.values import MetricCheck
from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import SettingsError, Unavailable

if TYPE_CHECKING:
    from octoserve.control.postgres import Connection

MOST_ROWS = 1000
"""A query that gives more has not been summed."""

_COLUMNS = ("arm", "version", "n", "total", "squares", "newest")

Rows = tuple[list[str], list[tuple[Any, ...]]]
"""Names of the columns, and MOST_ROWS + 1 rows at most."""


class _Database(Protocol):
    def rows(self, sql: str, values: Mapping[str, object]) -> Rows: ...

    def close(self) -> None: ...


class SqlProvider:
    """A `MetricProvider` over a database's address."""

    def __init__(self, url: str, timeout: float = 10.0, clock: Clock = monotonic) -> None:
        """Connects with the first read. Raises SettingsError for an address of another kind."""
        self._database: _Database
        if url.startswith(SCHEMES):
            self._database = _Postgres(url, timeout)
        elif url.startswith("sqlite:///"):
            self._database = _Sqlite(unquote(url.removeprefix("sqlite:///")), timeout, clock)
        else:
            raise SettingsError("providers: a database's address is sqlite:///path or postgresql://user@host/database")

    def problem(self, check: MetricCheck) -> str:
        if set(check.queries) != {"rows"}:
            return f"{check.name}: a SQL provider wants one query, `rows`"
        if check.kind not in ("rate", "mean"):
            return f"{check.name}: a metric is a rate or a mean, not {check.kind!r}"
        return ""

    def read(self, check: MetricCheck, query: Window) -> Reading:
        if problem := self.problem(check):
            return Reading(error=problem)
        values = {name: getattr(query, name) for name in query.__struct_fields__}
        try:
            names, rows = self._database.rows(check.queries["rows"], values)
            return _reading(check, query, names, rows)
        except (Unreadable, Unavailable) as error:
            return Reading(error=f"{check.name}: {error}")
        except Exception as error:  # a provider never raises: a look must come to a verdict
            return Reading(error=f"{check.name}: {type(error).__name__}")

    def close(self) -> None:
        self._database.close()


def _reading(check: MetricCheck, window: Window, names: list[str], rows: Iterable[tuple[Any, ...]]) -> Reading:
    names = [name.lower() for name in names]
    wanted = {"n", "total"} | ({"squares"} if check.kind == "mean" else set())
    if not wanted <= set(names) or not {"arm", "version"} & set(names) or len(set(names)) != len(names):
        raise Unreadable(f"wants columns arm or version, {', '.join(sorted(wanted))}; got {', '.join(names)}")
    if strange := set(names).difference(_COLUMNS):
        raise Unreadable(f"columns are {', '.join(_COLUMNS)}; got {', '.join(sorted(strange))} too")
    gathering = Gathering(window, wanted, dated="newest" in names)
    for count, row in enumerate(rows):
        if count == MOST_ROWS:
            raise Unreadable(f"more than {MOST_ROWS} rows: sum them in the query")
        gathering.add(dict(zip(names, row, strict=True)))
    return gathering.reading()


class _Sqlite:
    """A file that is opened for each read, so that one that was replaced is the new one."""

    def __init__(self, path: str, timeout: float, clock: Clock) -> None:
        self._path, self._timeout, self._clock = path, timeout, clock

    def rows(self, sql: str, values: Mapping[str, object]) -> Rows:
        end = self._clock() + self._timeout
        try:
            db = sqlite3.connect(
                f"{Path(self._path).absolute().as_uri()}?mode=ro", uri=True, timeout=self._timeout, isolation_level=None
            )
        except sqlite3.Error as error:
            raise Unavailable(f"cannot open {self._path}: {error}") from None
        try:
            db.set_authorizer(_only_reading)
            db.set_progress_handler(lambda: self._clock() > end, 1000)
            cursor = db.execute(sql, values)
            return [column[0] for column in cursor.description or ()], cursor.fetchmany(MOST_ROWS + 1)
        except sqlite3.Error as error:
            late = self._clock() > end
            raise Unavailable(f"not within {self._timeout:g} s" if late else f"{self._path}: {error}") from None
        finally:
            db.close()

    def close(self) -> None:
        """Nothing is open between reads."""


_READING = frozenset(
    getattr(sqlite3, f"SQLITE_{name}") for name in ("SELECT", "READ", "FUNCTION", "RECURSIVE")
)  # fmt: skip


def _only_reading(action: int, first: str | None, second: str | None, *_: object) -> int:
    """Everything else is refused when the query is compiled: writing, attaching another file, settings."""
    if action == sqlite3.SQLITE_FUNCTION and second == "load_extension":
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


class _Postgres:
    """A connection that is kept, and made again where it broke."""

    def __init__(self, url: str, timeout: float) -> None:
        self._server = Server(url, "providers")
        milliseconds = str(max(1, round(timeout * 1000)))
        self._settings = {
            "default_transaction_read_only": "on",
            "statement_timeout": milliseconds,
            "lock_timeout": milliseconds,
            "idle_in_transaction_session_timeout": milliseconds,
            "client_encoding": "UTF8",
        }
        self._connection: Connection[Any] | None = None

    def rows(self, sql: str, values: Mapping[str, object]) -> Rows:
        kept = self._connection is not None
        connection = self._connection = self._connection or self._server.connect(**self._settings)
        try:
            with connection.transaction(), connection.cursor(f"o{uuid4().hex}") as cursor:
                # a cursor of the server: it takes one SELECT and no more, and sends the rows that are fetched
                cursor.execute(with_psycopg_parameters(sql), values)
                return [column.name for column in cursor.description or ()], cursor.fetchmany(MOST_ROWS + 1)
        except self._server.error as error:
            lost = connection.closed
            self.close()
            if lost and kept:
                return self.rows(sql, values)
            raise Unavailable(f"{self._server.label}: {self._server.text_of(error)}") from None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


_TOKENS = re.compile(
    r"""
    (?P<kept> [eE]'(?:[^'\\]|\\.|'')*'                     # text with escapes
            | '(?:[^']|'')*'                               # text
            | "(?:[^"]|"")*"                               # a name in quotes
            | \$(?P<tag>[A-Za-z_]\w*|)\$.*?\$(?P=tag)\$    # text between dollars
            | --[^\n]*                                     # comments
            | /\*.*?\*/
            | ::
            | \w+ )
    | :(?P<name> (?:endpoint|candidate|stable|since|until)\b )
    """,
    re.VERBOSE | re.DOTALL,
)


def with_psycopg_parameters(sql: str) -> bytes:
    """`:since` -> `%(since)s`, but not within text, quoted names, comments or casts; every other `%` is doubled."""
    parts, end = [], 0
    for match in _TOKENS.finditer(sql):
        parts.append(sql[end : match.start()].replace("%", "%%"))
        name = match["name"]
        parts.append(f"%({name})s" if name else match[0].replace("%", "%%"))
        end = match.end()
    return "".join([*parts, sql[end:].replace("%", "%%")]).encode()
