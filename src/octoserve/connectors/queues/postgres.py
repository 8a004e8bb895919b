"""Results in a PostgreSQL table: `postgresql://user@host/db?table=t`. Results, positions and epochs in one transaction.

Claims go by the database's clock, whatever the clocks of those who hold them say. A transaction that is left open is
ended by the server, so that a process that stopped in the middle of one holds nobody up for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import urlencode

from octoserve.connectors.queues import columns
from octoserve.connectors.queues.address import Address
from octoserve.connectors.queues.protocol import Claim, Fenced, Move, Results, SinkTraits, Stored, Unwritable
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.core.signature import TensorSpec

OURS = ("table", "prefix")
"""Parameters of the address that are not libpq's."""
SESSION = {
    "idle_in_transaction_session_timeout": "10s",
    "statement_timeout": "60s",
    "lock_timeout": "15s",
}
_FORGOTTEN = "1 day"
_PERMANENT = ("22", "23")
"""Classes of SQLSTATE that are the data's own fault: data exceptions, constraints of the user's table."""
_SETUP = ("3F", "42", "28", "3D")
"""And those that a person has to mend: names, rights, kinds of columns."""
_LOCK = 0x6F63746F
"""Of those who make the tables: two that begin at once would make them twice."""


class Database(Protocol):
    """The way to it, which knows the client library and hides the password: `control.postgres.Server`."""

    label: str
    error: type[Exception]

    def connect(self, **settings: str) -> Any:
        """A psycopg connection in autocommit mode. Raises Unavailable."""
        ...

    def text_of(self, error: BaseException) -> str:
        """What an error says, without secrets."""
        ...


def database_url(address: Address) -> str:
    """The address without what is ours."""
    rest = {name: value for name, value in address.parameters.items() if name not in OURS}
    return f"{address.base}?{urlencode(rest)}" if rest else address.base


def postgres_sink(address: Address, database: Database) -> PostgresSink:
    """Raises SettingsError."""
    table = address.wanted("table", "'postgresql://user@host/db?table=results'")
    return PostgresSink(database, table, address.parameters.get("prefix", ""))


class PostgresSink:
    """A table of results, and one of lanes in the same schema."""

    traits = SinkTraits(transactional=True, idempotent=True, aside=True)

    def __init__(self, database: Database, table: str, prefix: str = "") -> None:
        """table: a name, or `schema.name`; the schema must be there."""
        if not all(table.split(".")) or table.count(".") > 1:
            raise SettingsError(f"sink: table= is a name, or schema.name; {table!r} came")
        self._database = database
        self._table = table
        self._prefix = prefix
        schema, _, _ = table.rpartition(".")
        self._lanes = columns.quoted(f"{schema}.{columns.LANES}" if schema else columns.LANES)
        self._source = ""
        self._hold: float | None = None
        self._store = ""
        self._connection: Any = None

    @property
    def label(self) -> str:
        """See `QueueSink.label`."""
        return f"{self._database.label}?table={self._table}"

    def open(self, source: str, outputs: Sequence[TensorSpec]) -> None:
        """See `QueueSink.open`."""
        self._source = source
        names = columns.names(outputs, self._prefix)
        table = columns.quoted(self._table)
        kinds = [_type(spec) for spec in outputs]
        made = "".join(f"{columns.quoted(name)} {kind}, " for name, kind in zip(names, kinds, strict=True))
        written = ", ".join(columns.quoted(name) for name in ("message_id", *names, "model", "version", "scored_at"))
        parts = ", ".join(f"%s::{'text' if kind == 'jsonb' else kind}[]" for kind in ("text", *kinds, "bigint"))
        cells = [f"c{i}::jsonb" if kind == "jsonb" else f"c{i}" for i, kind in enumerate(kinds)]
        self._store = (
            "with wanted as (select * from unnest(%s::text[], %s::bigint[], %s::bigint[]) as w(lane, epoch, next)), "
            # In one order, so that two never wait for each other.
            f"ours as (select l.lane, w.next from {self._lanes} l join wanted w on l.lane = w.lane and "
            "l.epoch = w.epoch where l.source = %s and (l.expires is null or l.expires > now()) "
            "order by l.lane for update of l), "
            "lanes as (select (select count(*) from ours) = (select count(*) from wanted) as are_ours), "
            f'moved as (update {self._lanes} l set "offset" = coalesce(o.next, l."offset"), '
            "expires = now() + %s * interval '1 s' from ours o, lanes "
            "where lanes.are_ours and l.source = %s and l.lane = o.lane), "
            f"stored as (insert into {table} ({written}) select {', '.join(['id', *cells])}, %s::text, v, "
            "to_timestamp(%s::float8) "
            f"from unnest({parts}) as r({', '.join(['id', *(f'c{i}' for i in range(len(kinds)))])}, v), lanes "
            "where lanes.are_ours on conflict (message_id) do nothing returning 1) "
            "select (select array_agg(lane) from ours), (select count(*) from stored)"
        )
        """One statement, since a process may be stopped at any moment: there is none at which the server has its lanes
        locked and waits for more."""
        try:
            connection = self._connected()
            with connection.transaction():
                connection.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
                connection.execute(
                    f"create table if not exists {table} (message_id text primary key, {made}"
                    "model text not null, version bigint not null, scored_at timestamptz not null)"
                )
                connection.execute(
                    f"create table if not exists {self._lanes} (source text, lane text, epoch bigint not null, "
                    '"offset" bigint, expires timestamptz, primary key (source, lane))'
                )
            connection.execute(
                f"explain {self._store}", [*["{}"] * 3, "", None, "", "", 0.0, *["{}"] * (len(kinds) + 2)]
            )
        except self._database.error as error:
            if getattr(error, "sqlstate", None) and error.sqlstate[:2] in _SETUP:  # type: ignore[attr-defined]
                self.close()
                raise SettingsError(
                    f"sink: cannot write to {self.label}: {self._database.text_of(error)}; a table that "
                    f"is there already needs a unique column message_id, and the columns "
                    f"{', '.join(names)}, model, version, scored_at"
                ) from None
            raise self._away(error) from None

    def _connected(self) -> Any:
        if self._connection is None:
            self._connection = self._database.connect(**SESSION)
        return self._connection

    def claim(self, lanes: Sequence[str], seconds: float | None) -> dict[str, Claim]:
        """See `QueueSink.claim`."""
        self._hold = seconds
        found = {}
        try:
            connection = self._connected()
            with connection.transaction():
                connection.execute(f"delete from {self._lanes} where expires < now() - %s::interval", (_FORGOTTEN,))
                for lane in sorted(lanes):
                    row = connection.execute(
                        f"insert into {self._lanes} as l values (%s, %s, 1, null, now() + %s * interval '1 s') "
                        "on conflict (source, lane) do update set epoch = l.epoch + 1, expires = excluded.expires "
                        'returning epoch, "offset"',
                        (self._source, lane, seconds),
                    ).fetchone()
                    found[lane] = Claim(*row)
        except self._database.error as error:
            raise self._away(error) from None
        return found

    def store(self, results: Results, moves: Sequence[Move]) -> Stored:
        """See `QueueSink.store`."""
        cells = [
            _array(columns.values(a, spec), _type(spec) in _TEXTS)
            for a, spec in zip(results.columns, results.outputs, strict=True)
        ]
        versions = _array(results.versions.tolist(), False)
        asked = (
            _array([move.lane for move in moves], True),
            _array([move.epoch for move in moves], False),
            _array(["null" if move.offset is None else move.offset for move in moves], False),
            self._source, self._hold, self._source,
            results.model, results.scored_at, _array(results.ids, True), *cells, versions,
        )  # fmt: skip
        try:
            ours, written = self._connected().execute(self._store, asked).fetchone()
        except self._database.error as error:
            state = getattr(error, "sqlstate", None)
            # Without a state it is the client's: a text with NUL, a number that no column of ours holds.
            if (state and state[:2] in _PERMANENT) or (state is None and type(error).__name__ == "DataError"):
                raise Unwritable(f"{self.label}: {self._database.text_of(error)}") from None
            raise self._away(error) from None
        for move in moves:
            if move.lane not in (ours or ()):
                raise Fenced(f"{self.label}: {move.lane} is no longer ours (epoch {move.epoch}); nothing was written")
        return Stored(written, len(results.ids) - written)

    def _away(self, error: Exception) -> Unavailable:
        text = self._database.text_of(error)
        self.close()
        return Unavailable(f"{self.label}: {text}")

    def close(self) -> None:
        """See `QueueSink.close`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _type(spec: TensorSpec) -> str:
    if not columns.is_scalar(spec):
        return "jsonb"
    return {
        "BOOL": "boolean", "INT8": "smallint", "INT16": "smallint", "INT32": "integer", "INT64": "bigint",
        "UINT8": "smallint", "UINT16": "integer", "UINT32": "bigint", "UINT64": "numeric(20)", "FP16": "real",
        "FP32": "real", "BF16": "real", "FP64": "double precision", "BYTES": "text",
    }[spec.datatype]  # fmt: skip


_TEXTS = ("text", "jsonb")


def _array(values: Sequence[Any], texts: bool) -> str:
    """An array as PostgreSQL reads it, each text in quotes. The client library would take a third of a worker's time
    for it, since it asks each element what it is.

    Source: PostgreSQL's documentation, "Array Input and Output Syntax".
    """
    if not values:
        return "{}"
    if not texts:
        return "{" + ",".join(map(str, values)) + "}"
    joined = '","'.join(values)
    if "\\" in joined or joined.count('"') > 2 * (len(values) - 1):
        joined = '","'.join(text.replace("\\", "\\\\").replace('"', '\\"') for text in values)
    return '{"' + joined + '"}'
