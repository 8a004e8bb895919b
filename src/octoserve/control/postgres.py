"""The way to PostgreSQL, for the rollout store and the SQL provider: the only file that knows psycopg.

No password leaves it: not in an error, not in a log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from octoserve.core.errors import SettingsError, Unavailable

if TYPE_CHECKING:
    from psycopg import Connection as Connection

SCHEMES = ("postgresql://", "postgres://")

_SECRETS = ("password", "sslpassword")

_ALIVE: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 12_000,
}
"""A host that is gone is noticed within about 12 s, not within the kernel's two hours. A URL may say otherwise."""


class Server:
    """Where a database is, checked at once, connected to later.

    label:    what errors and logs may show of the address
    error:    what the client raises, whatever it is about
    conflict: of these, those of a constraint that forbids what was written
    """

    def __init__(self, url: str, setting: str, extra: str = "postgres") -> None:
        """`setting` names the field that the URL came from. Raises SettingsError."""
        try:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict
        except ImportError:
            raise SettingsError(
                f"{setting}: PostgreSQL needs a client library: pip install 'octoserve[{extra}]'"
            ) from None
        self._connect: Callable[..., Connection[Any]] = psycopg.connect
        self.error: type[Exception] = psycopg.Error
        self.conflict: type[Exception] = psycopg.IntegrityError
        if not url.startswith(SCHEMES):
            raise SettingsError(f"{setting}: a PostgreSQL address is postgresql://user@host:port/database")
        try:
            self._parameters = {**_ALIVE, **conninfo_to_dict(url)}
        except psycopg.Error:  # its text may quote a part of the password
            raise SettingsError(
                f"{setting}: the PostgreSQL address cannot be read; reserved characters in a password are "
                "percent-encoded, and parameters are those of libpq"
            ) from None
        self._secrets = [str(self._parameters[name]) for name in _SECRETS if self._parameters.get(name)]
        where = {name: self._parameters.get(name) for name in ("host", "port", "dbname")}
        self.label = f"postgresql://{where['host'] or ''}:{where['port'] or 5432}/{where['dbname'] or ''}"

    def connect(self, **settings: str) -> Connection[Any]:
        """A connection in autocommit mode, with these settings of the session. Raises Unavailable."""
        connection = None
        try:
            connection = self._connect(
                **{"application_name": "octoserve", **self._parameters}, autocommit=True, prepare_threshold=None
            )
            for name, value in settings.items():
                connection.execute("select set_config(%s, %s, false)", (name, value))
        except self.error as error:
            if connection is not None:
                connection.close()
            raise Unavailable(f"cannot connect to {self.label}: {self.text_of(error)}") from None
        return connection

    def text_of(self, error: BaseException) -> str:
        """What an error says, on one line and without a password."""
        text = " ".join(str(error).split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text
