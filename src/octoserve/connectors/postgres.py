"""A query or a table of PostgreSQL as a source: one state of the database for all who read it, split by a key.

`postgresql://user@host/db?table=t`, or `?query=SELECT ...&split_by=id`. The first connection exports its snapshot, and
those that read import it, so that every split sees the same rows however long the job takes. A snapshot ends with its
connection: what a later run sees is compared by a fingerprint of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from octoserve.connectors.arrow import DataType, RecordBatch, Schema, pyarrow
from octoserve.connectors.source import Range, Rows, SourceFile
from octoserve.core.errors import InvalidInput, SettingsError, Unavailable

SCHEMES = ("postgresql://", "postgres://")
OURS = ("table", "query", "split_by")
"""Parameters of the address that are not libpq's."""
RANGE = 4 << 20
"""Bytes of a range, about: what a split is made of."""
SESSION = {
    "datestyle": "ISO, YMD",
    "timezone": "UTC",
    "extra_float_digits": "1",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "idle_in_transaction_session_timeout": "0",
    "statement_timeout": "0",
}
"""What a row's text, and so its fingerprint, depends on; and a snapshot is held for as long as the job runs."""
_INTEGERS = (20, 21, 23)
_NUMERIC, _TIMESTAMPTZ = 1700, 1184
_MOST = 2**63 - 1


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


Databases = Callable[[str], Database]
"""From an address without what is ours. Raises SettingsError."""


class Address(msgspec.Struct, frozen=True):
    """base: for the client; shown: the same without secrets; parameters: ours."""

    base: str
    shown: str
    parameters: dict[str, str]

    def url(self, ours: Mapping[str, str]) -> str:
        """The address as people write it, without secrets."""
        rest = urlencode(ours, quote_via=quote)
        return f"{self.shown}{'&' if '?' in self.shown else '?'}{rest}"


def address(url: str) -> Address:
    """`postgresql://user:password@host:port/db?ours&libpq's`."""
    whole, _, asked = url.partition("?")
    pairs = parse_qsl(asked, keep_blank_values=True)
    theirs = [(name, value) for name, value in pairs if name not in OURS]
    open_ = [(name, value) for name, value in theirs if "password" not in name]
    scheme, mark, rest = whole.partition("://")
    who, at, where = rest.rpartition("@")
    named = f"{scheme}{mark}{who.partition(':')[0]}{at}{where}"

    def with_(base: str, parameters: list[tuple[str, str]]) -> str:
        return f"{base}?{urlencode(parameters, quote_via=quote)}" if parameters else base

    return Address(with_(whole, theirs), with_(named, open_), {name: value for name, value in pairs if name in OURS})


def quoted(name: str) -> str:
    """An identifier, or `schema.name`, as SQL has it."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


class Column(msgspec.Struct, frozen=True):
    """sql: what is selected; type: of what arrives; final: what it becomes; whole: whether it is a whole number."""

    name: str
    sql: str
    type: Any
    final: Any
    whole: bool = False


class PostgresSource:
    """See `source.Source`."""

    format = "postgresql"
    text = False

    def __init__(self, url: str, databases: Databases) -> None:
        """Opens the snapshot and reads the query once. Raises SettingsError, Unavailable."""
        said = address(url)
        table, query = said.parameters.get("table", ""), said.parameters.get("query", "")
        if bool(table) == bool(query):
            raise SettingsError(
                "source: ?table=t, or ?query=SELECT ...&split_by=id, wanted behind the database's address"
            )
        self._database = databases(said.base)
        self._from = f"select * from {quoted(table)}" if table else query.strip().rstrip(";")
        self._holder = self._database.connect(**SESSION)
        try:
            with self._mended("source"):
                self._holder.execute("begin isolation level repeatable read read only")
                self._snapshot = self._one("select pg_export_snapshot()")[0]
                self._columns, integers = self._describe()
                self._key = said.parameters.get("split_by") or self._own_key(table)
                self._check_key(integers)
                identity = self._fingerprint()
        except BaseException:
            self._holder.close()
            raise
        ours = {"table": table} if table else {"query": query}
        self.pinned = (said.url(ours | {"split_by": self._key}),)
        self.files = (SourceFile(self.pinned[0], self._bytes, 0, {}, identity),)

    def inspect(self, file: SourceFile) -> tuple[Schema, list[Range]]:
        """See `Source.inspect`; a range is one of the key, of so many rows."""
        pa = pyarrow()
        schema = pa.schema([(column.name, column.final) for column in self._columns])
        mean = max(1, self._bytes // max(1, self._rows))
        each = max(1, RANGE // mean)
        key = quoted(self._key)
        with self._mended("source"):
            found = self._holder.execute(
                f"select k from (select {key} as k, row_number() over (order by {key}) as n from ({self._from}) q) s "
                f"where (n - 1) % {each} = 0 order by k"
            ).fetchall()
        starts = [int(row[0]) for row in found]
        stops = [*starts[1:], self._last + 1]
        counts = [each] * (len(starts) - 1) + [self._rows - each * (len(starts) - 1)]
        ranges = [Range(a, b, n, n * mean) for a, b, n in zip(starts, stops, counts, strict=True)] if starts else []
        return schema, ranges

    def read(
        self, file: SourceFile, start: int, stop: int, columns: Sequence[str], schema: Schema, rows: int
    ) -> Iterator[Rows]:
        """See `Source.read`. Raises Unavailable."""
        chosen = [column for name in columns for column in self._columns if column.name == name]
        wanted = ", ".join(f"{column.sql} as {quoted(column.name)}" for column in chosen)
        key = quoted(self._key)
        copy = (
            f"copy (select {wanted} from ({self._from}) q where {key} >= {int(start)} and {key} < {int(stop)} "
            f"order by {key}) to stdout (format csv)"
        )
        connection = self._database.connect(**SESSION)
        try:
            with self._mended("source"):
                connection.execute("begin isolation level repeatable read read only")
                connection.execute(f"set transaction snapshot '{self._snapshot}'")
                with connection.cursor().copy(copy) as stream:
                    yield from blocks(stream, chosen, rows)
        finally:
            connection.close()

    def identify(self, file: SourceFile) -> SourceFile:
        """The snapshot stays what it is."""
        return file

    def close(self) -> None:
        """Ends the snapshot."""
        self._holder.close()

    def _describe(self) -> tuple[list[Column], set[str]]:
        """The columns, and which are whole numbers."""
        columns = described(self._holder, self._from)
        return columns, {column.name for column in columns if column.whole}

    def _own_key(self, table: str) -> str:
        """The table's primary key, if it is one whole number."""
        if not table:
            return ""
        keys = self._holder.execute(
            "select a.attname from pg_index i join pg_attribute a on a.attrelid = i.indrelid "
            "and a.attnum = any(i.indkey) where i.indisprimary and i.indrelid = to_regclass(%s)",
            (quoted(table),),
        ).fetchall()
        return str(keys[0][0]) if len(keys) == 1 else ""

    def _check_key(self, integers: set[str]) -> None:
        if self._key not in integers:
            wrong = f"{self._key!r} is none" if self._key else "none was named, and there is no primary key that is one"
            raise SettingsError(
                f"source: a whole number to split the rows by, and to order them, wanted: {wrong}; "
                "add &split_by=COLUMN, or give the query one: row_number() over (order by ...) as n"
            )

    def _fingerprint(self) -> str:
        """Of every row's text; it is the same for the same rows in any order."""
        key = quoted(self._key)
        rows, keyed, distinct, last, size, total = self._one(
            f"select count(*), count({key}), count(distinct {key}), max({key}), coalesce(sum(pg_column_size(q)), 0), "
            f"coalesce(sum(hashtextextended(q::text, 0)::numeric), 0) from ({self._from}) q"
        )
        self._rows, self._bytes, self._last = int(rows), int(size), int(last if last is not None else 0)
        if keyed != rows or distinct != rows:
            what = f"{rows - keyed} rows have none" if keyed != rows else f"{rows - distinct} rows share one"
            raise SettingsError(f"source: split_by={self._key}: a key of its own for every row wanted, {what}")
        if self._last == _MOST:
            raise SettingsError(f"source: split_by={self._key}: a key below {_MOST} wanted, it came")
        return f"{rows}-{int(total) & (2**128 - 1):x}"

    def _one(self, sql: str) -> tuple[Any, ...]:
        row = self._holder.execute(sql).fetchone()
        assert row is not None
        return tuple(row)

    @contextmanager
    def _mended(self, setting: str) -> Iterator[None]:
        try:
            yield
        except self._database.error as error:
            said = self._database.text_of(error)
            state = str(getattr(error, "sqlstate", "") or "")
            if state[:2] in ("42", "22", "3F", "3D", "25"):  # what was asked for cannot be, now or later
                raise SettingsError(f"{setting}: {self._database.label}: {said}") from None
            raise Unavailable(f"{setting}: {self._database.label}: {said}") from None


def described(connection: Any, query: str) -> list[Column]:
    """A query's columns."""
    found = connection.execute(f"select * from ({query}) q limit 0").description or []
    return [_column(d.name, d.type_code, d.precision, d.scale) for d in found]


def _column(name: str, oid: int, precision: int | None, scale: int | None) -> Column:
    pa = pyarrow()
    plain = {
        16: pa.bool_(), 21: pa.int16(), 23: pa.int32(), 20: pa.int64(), 700: pa.float32(), 701: pa.float64(),
        1082: pa.date32(), 1114: pa.timestamp("us"),
    }  # fmt: skip
    lists = {1021: pa.float32(), 1022: pa.float64(), 1005: pa.int16(), 1007: pa.int32(), 1016: pa.int64()}
    own = f"q.{quoted(name)}"
    if oid in plain:
        return Column(name, own, plain[oid], plain[oid], oid in _INTEGERS)
    if oid in lists:
        return Column(name, f"array_to_string({own}, ',')", pa.string(), pa.list_(lists[oid]))
    if oid == _TIMESTAMPTZ:
        return Column(name, f"{own} at time zone 'UTC'", pa.timestamp("us"), pa.timestamp("us", "UTC"))
    if oid == _NUMERIC and precision and precision <= 38 and scale is not None and 0 <= scale <= precision:
        return Column(name, own, pa.decimal128(precision, scale), pa.decimal128(precision, scale))
    return Column(name, f"{own}::text", pa.string(), pa.string())


def blocks(stream: Any, columns: Sequence[Column], rows: int) -> Iterator[Rows]:
    """Every message of a COPY in text is a row."""
    lines: list[bytes] = []
    for message in stream:
        lines.append(bytes(message))
        if len(lines) == rows:
            yield Rows(parsed(lines, columns), {})
            lines = []
    if lines:
        yield Rows(parsed(lines, columns), {})


def parsed(lines: Sequence[bytes], columns: Sequence[Column]) -> RecordBatch:
    """The rows of a COPY's messages."""
    pa, reader = pyarrow(), pyarrow("csv")
    data = b"".join(lines)
    names = [f"c{place}" for place in range(len(columns))]
    if len(columns) == 1:  # a row of one null is a blank line, which the parser would pass over
        data, names = b"".join(b"," + line for line in lines), ["none", *names]
    table = reader.read_csv(
        pa.py_buffer(data),
        reader.ReadOptions(use_threads=False, column_names=names, block_size=len(data) + 1),
        reader.ParseOptions(newlines_in_values=True),
        reader.ConvertOptions(
            column_types={f"c{place}": column.type for place, column in enumerate(columns)},
            include_columns=[f"c{place}" for place in range(len(columns))],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
            true_values=["t"],
            false_values=["f"],
        ),
    ).combine_chunks()
    arrays = [_final(table.column(place).combine_chunks(), column) for place, column in enumerate(columns)]
    return pa.RecordBatch.from_arrays(arrays, names=[column.name for column in columns])


def _final(array: Any, column: Column) -> Any:
    pa = pyarrow()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    if column.final == column.type:
        return array
    final: DataType = column.final
    if pa.types.is_list(final):
        compute = pyarrow("compute")
        try:
            return compute.cast(compute.split_pattern(array, ","), final)
        except pa.ArrowInvalid as error:
            raise InvalidInput(f"column {column.name!r}: arrays of numbers without nulls wanted: {error}") from None
    return array.cast(final)
