"""What becomes of rows, placeholders and parameters; the systems themselves are in tests/integration."""

from __future__ import annotations

import math
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.control.analysis.reading import ArmSums, Reading
from octoserve.control.providers.opening import open_provider
from octoserve.control.providers.prometheus import PrometheusProvider, put_in
from octoserve.control.providers.protocol import Window
from octoserve.control.providers.rows import Gathering, Unreadable
from octoserve.control.providers.sql import MOST_ROWS, SqlProvider, with_psycopg_parameters
from octoserve.control.rollout.values import MetricCheck
from octoserve.core.errors import SettingsError

WINDOW = Window(endpoint="fraud", candidate=7, stable=6, since=1000.0, until=2000.0)


def gathered(*rows: dict[str, object], sums: tuple[str, ...] = ("n", "total"), dated: bool = False) -> Reading:
    gathering = Gathering(WINDOW, sums, dated)
    for row in rows:
        gathering.add(row)
    return gathering.reading()


def test_rows_of_one_arm_add_up():
    reading = gathered(
        {"arm": "candidate", "n": 3, "total": 1},
        {"arm": "candidate", "n": 4, "total": Decimal("1.5")},
        {"arm": "stable", "n": 10, "total": 9.0},
    )
    assert reading == Reading(candidate=ArmSums(n=7, total=2.5), baseline=ArmSums(n=10, total=9))


def test_the_baseline_is_compared_with_where_there_is_one():
    rows = [{"arm": arm, "n": n, "total": 1} for arm, n in (("stable", 100), ("baseline", 10), ("candidate", 11))]
    assert gathered(*rows).baseline == ArmSums(n=10, total=1)


@pytest.mark.parametrize("version", [7, "7", " 7 ", Decimal(7)])
def test_a_version_is_the_arm_that_serves_it(version):
    reading = gathered({"version": version, "n": 1, "total": 1}, {"version": 5, "n": 1, "total": 1})
    assert reading == Reading(candidate=ArmSums(n=1, total=1))


def test_nothing_is_nothing_and_not_zero():
    assert gathered() == Reading()


def test_rows_of_strangers_alone_are_an_error():
    with pytest.raises(Unreadable, match="versions 7 and 6; one is of 'canary'"):
        gathered({"arm": "canary", "n": 1, "total": 1})


def test_a_sum_over_no_rows_is_zero_and_over_some_it_is_not():
    assert gathered({"version": 7, "n": 0, "total": None}).candidate == ArmSums(n=0, total=0)
    assert gathered({"version": 7, "n": None, "total": None}).candidate == ArmSums(n=0, total=0)
    sums = gathered({"version": 7, "n": 5, "total": None}).candidate
    assert sums is not None
    assert math.isnan(sums.total)


@pytest.mark.parametrize("value", [math.nan, "NaN", Decimal("NaN"), Decimal("sNaN"), math.inf])
def test_what_is_no_finite_number_stays_so(value):
    if isinstance(value, str):
        with pytest.raises(Unreadable, match="total is no number but str"):
            gathered({"version": 7, "n": 1, "total": value})
        return
    sums = gathered({"version": 7, "n": 1, "total": value}, {"version": 7, "n": 1, "total": 3}).candidate
    assert sums is not None
    assert not math.isfinite(sums.total)


def test_an_absent_sum_is_no_zero():
    with pytest.raises(Unreadable, match="candidate has n and no total: an absent sum is not zero"):
        gathered({"version": 7, "n": 5}, {"version": 6, "n": 5}, {"version": 6, "total": 1})


@pytest.mark.parametrize(
    "newest",
    [
        1990, 1990.0, "1970-01-01T00:33:10", "1970-01-01 00:33:10+00:00", "1970-01-01T02:33:10+02:00",
        datetime(1970, 1, 1, 0, 33, 10), datetime(1970, 1, 1, 0, 33, 10, tzinfo=UTC),
        datetime(1970, 1, 1, 2, 33, 10, tzinfo=timezone(timedelta(hours=2))),
    ],
)  # fmt: skip
def test_times_in_every_form(newest):
    assert gathered({"version": 7, "n": 1, "total": 1, "newest": newest}, dated=True).age == 10


def test_age_is_that_of_the_arm_that_is_behind():
    rows = [
        {"version": 7, "n": 1, "total": 1, "newest": 1500},
        {"version": 7, "n": 1, "total": 1, "newest": 1400},
        {"version": 6, "n": 1, "total": 1, "newest": 1999},
    ]
    assert gathered(*rows, dated=True).age == 500
    assert gathered(*rows[2:], dated=True).age == 1
    assert gathered(*rows[2:], {"version": 7, "n": 1, "total": 1, "newest": None}, dated=True).age == math.inf
    assert gathered(*rows[2:], {"version": 7, "n": 0, "total": 0, "newest": None}, dated=True).age == 1


def test_a_little_ahead_is_a_clock_and_far_ahead_a_wrong_unit():
    assert gathered({"version": 7, "n": 1, "total": 1, "newest": 2100}, dated=True).age == 0
    with pytest.raises(Unreadable, match="future"):
        gathered({"version": 7, "n": 1, "total": 1, "newest": 1990_000}, dated=True)


def test_an_unreadable_time_is_an_error():
    with pytest.raises(Unreadable, match="ISO 8601"):
        gathered({"version": 7, "n": 1, "total": 1, "newest": "yesterday"}, dated=True)


# SQL


@pytest.mark.parametrize(
    ("sql", "becomes"),
    [
        ("select :since", "select %(since)s"),
        ("t >= to_timestamp(:since) and t<:until", "t >= to_timestamp(%(since)s) and t<%(until)s"),
        (":candidate::text", "%(candidate)s::text"),
        ("version::int8 = :stable", "version::int8 = %(stable)s"),
        ("a like '%x' and b % 2 = 0", "a like '%%x' and b %% 2 = 0"),
        ("':since' \":since\" -- :since\n:since", "':since' \":since\" -- :since\n%(since)s"),
        ("'it''s :since' || :since", "'it''s :since' || %(since)s"),
        (r"E'it\'s :since' || :since", r"E'it\'s :since' || %(since)s"),
        ("$$ :since $$ $a$ $b$ :since $a$ :until", "$$ :since $$ $a$ $b$ :since $a$ %(until)s"),
        ("/* :since\n */ :since", "/* :since\n */ %(since)s"),
        ("x[1:2] :sincere :other", "x[1:2] :sincere :other"),
    ],
)
def test_parameters_are_found_where_sql_has_them(sql, becomes):
    assert with_psycopg_parameters(sql).decode() == becomes


@given(st.text())
def test_text_without_parameters_stays_as_it_is(sql):
    query = with_psycopg_parameters(sql.replace(":", ";"))
    assert query.decode().replace("%%", "%") == sql.replace(":", ";")


def check(rows: str, kind: str = "rate") -> MetricCheck:
    return MetricCheck(name="sales", provider="shop", queries={"rows": rows}, kind=kind)


@pytest.mark.parametrize(
    ("queries", "kind", "problem"),
    [
        ({}, "rate", "one query, `rows`"),
        ({"n": "1", "total": "1"}, "rate", "one query, `rows`"),
        ({"rows": "select 1"}, "median", "a rate or a mean"),
    ],
)
def test_a_check_that_sql_can_never_read_is_refused(queries, kind, problem):
    provider = SqlProvider("sqlite:///x.db")
    wrong = MetricCheck(name="sales", provider="shop", queries=queries, kind=kind)
    assert problem in provider.problem(wrong)
    assert provider.read(wrong, WINDOW).error == provider.problem(wrong)
    assert provider.problem(check("select 1")) == ""


@pytest.fixture
def shop(tmp_path):
    """A shop's database: visits that a version answered, and whether they bought."""
    db = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    db.execute("create table visit (endpoint, version integer, at real, bought integer, spent real)")
    rows = [("fraud", 6 + i % 2, 1000.0 + i, i % 3 == 0, i / 4) for i in range(600)]
    db.execute("begin")
    db.executemany("insert into visit values (?, ?, ?, ?, ?)", [*rows, ("other", 7, 1500.0, 1, 1.0)])
    db.execute("commit")
    yield db
    db.close()


SALES = """
select version, count(*) as n, sum(bought) as total, max(at) as newest from visit
where endpoint = :endpoint and version in (:candidate, :stable) and at >= :since and at < :until group by version
"""


def test_sqlite_is_read(shop, tmp_path):
    provider = SqlProvider(f"sqlite:///{tmp_path}/shop.db")
    assert provider.read(check(SALES), WINDOW) == Reading(
        candidate=ArmSums(n=300, total=100), baseline=ArmSums(n=300, total=100), age=402.0
    )
    mean = SALES.replace("sum(bought) as total", "sum(spent) as total, sum(spent * spent) as squares")
    window = Window(endpoint="fraud", candidate=7, stable=6, since=1000.0, until=1004.0)
    reading = provider.read(check(mean, "mean"), window)
    assert reading.candidate == ArmSums(n=2, total=1.0, squares=0.625)
    nobody = Window(endpoint="nobody'; drop table visit; --", candidate=7, stable=6, since=0.0, until=1004.0)
    assert provider.read(check(SALES), nobody) == Reading()


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("select 1", "wants columns arm or version, n, total; got 1"),
        ("select 7 as version, 1 as n, 1 as total, 1 as squared", "got squared too"),
        ("select 7 as version, 1 as n, 1 as n, 1 as total", "wants columns"),
        ("select 7 as version, 'many' as n, 1 as total", "n is no number but str"),
        ("select 7 as version, 1 as n, x'00' as total", "total is no number but bytes"),
        ("selct", "syntax error"),
        ("select * from missing", "no such table"),
        ("select :who as arm, 1 as n, 1 as total", "who"),
        ("delete from visit", "not authorized"),
        ("insert into visit (version) values (1) returning version, 1 as n, 1 as total", "not authorized"),
        ("attach 'other.db' as other", "not authorized"),
        ("pragma query_only = 0", "not authorized"),
        ("select 7 as version, 1 as n, 1 as total; delete from visit", "one statement at a time"),
        ("select 7 as version, 1 as n, load_extension('x') as total", "not authorized"),
        (f"with recursive k(i) as (select 1 union all select i + 1 from k where i <= {MOST_ROWS}) "
         "select 7 as version, 1 as n, 1 as total from k", "more than 1000 rows"),
    ],
)  # fmt: skip
def test_what_sqlite_cannot_give_is_an_error_and_changes_nothing(shop, tmp_path, sql, error):
    reading = SqlProvider(f"sqlite:///{tmp_path}/shop.db").read(check(sql), WINDOW)
    assert error in reading.error
    assert reading.error.startswith("sales: ")
    assert reading == Reading(error=reading.error)
    assert shop.execute("select count(*) from visit").fetchone() == (601,)
    assert not (tmp_path / "other.db").exists()


def test_sqlite_that_takes_too_long_is_stopped(shop, tmp_path):
    now = iter(range(10**9))
    provider = SqlProvider(f"sqlite:///{tmp_path}/shop.db", timeout=50.0, clock=lambda: float(next(now)))
    endless = (
        "with recursive k(i) as (select 1 union all select i + 1 from k) "
        "select 7 as version, sum(i) as n, 1 as total from k"
    )
    assert provider.read(check(endless), WINDOW).error == "sales: not within 50 s"


def test_sqlite_that_is_not_there_is_not_made(tmp_path):
    assert "cannot open" in SqlProvider(f"sqlite:///{tmp_path}/none.db").read(check(SALES), WINDOW).error
    assert not (tmp_path / "none.db").exists()


# PromQL


@pytest.mark.parametrize(
    ("name", "promql", "becomes"),
    [
        ("m", 'x{v="{{candidate}}",w="{{ stable }}"}[{{window}}]', 'x{v="7",w="6"}[1000s]'),
        ("m", "x > {{candidate}}", "x > 7"),
        ('a"b\\c', 'x{e="{{endpoint}}"}', 'x{e="a\\"b\\\\c"}'),
        ("it's", "x{e='{{endpoint}}'} + {{stable}}", "x{e='it\\'s'} + 6"),
        ('say "a"', "x{e=`{{endpoint}}`}", 'x{e=`say "a"`}'),
        ("a.b", 'x{e=~"{{endpoint}}|z"}', 'x{e=~"a\\\\.b|z"}'),
        ("a.b", 'x{e !~ "{{endpoint}}"}', 'x{e !~ "a\\\\.b"}'),
        ('"} or vector(1) or x{e="', 'x{e="{{endpoint}}"}', 'x{e="\\"} or vector(1) or x{e=\\""}'),
        ("m", "x # don't {{endpoint}}\n + {{stable}}", "x \n + 6"),
    ],
)
def test_placeholders(name, promql, becomes):
    window = Window(endpoint=name, candidate=7, stable=6, since=1000.0, until=2000.0)
    assert put_in(promql, window) == becomes


@pytest.mark.parametrize(
    ("name", "promql", "error"),
    [
        ("m", "x{{endpoint}}", "within quotes"),
        ("m", "x{e='a'} {{endpoint}}", "within quotes"),
        ("m", "x[{{windows}}]", "{{windows}} is none of candidate, stable, endpoint, window"),
        ("a`b", "x{e=`{{endpoint}}`}", "backtick"),
    ],
)
def test_placeholders_that_cannot_be_filled(name, promql, error):
    window = Window(endpoint=name, candidate=7, stable=6, since=1000.0, until=2000.0)
    with pytest.raises(Unreadable) as raised:
        put_in(promql, window)
    assert error in str(raised.value)


def test_a_window_is_a_second_at_least():
    window = Window(endpoint="m", candidate=7, stable=6, since=1000.0, until=1000.0)
    assert put_in("[{{window}}]", window) == "[1s]"


@pytest.mark.parametrize(
    ("queries", "kind", "problem"),
    [
        ({"rows": "select 1"}, "rate", "wants the queries n, total"),
        ({"n": "x"}, "rate", "wants the queries n, total"),
        ({"n": "x", "total": "x"}, "mean", "wants the queries n, squares, total"),
        ({"n": "x", "total": "{{no}}"}, "rate", "total: {{no}} is none of"),
        ({"n": "x", "total": "x"}, "median", "a rate or a mean"),
    ],
)
def test_a_check_that_prometheus_can_never_read_is_refused(queries, kind, problem):
    provider = PrometheusProvider("http://127.0.0.1:9")
    wrong = MetricCheck(name="sales", provider="shop", queries=queries, kind=kind)
    assert problem in provider.problem(wrong)
    assert provider.read(wrong, WINDOW).error == provider.problem(wrong)
    right = MetricCheck(name="sales", provider="shop", queries={"n": "x", "total": "x", "newest": "timestamp(x)"})
    assert provider.problem(right) == ""


# Addresses


def test_each_address_has_its_provider():
    assert isinstance(open_provider("https://prometheus.example/tenant"), PrometheusProvider)
    for url in ("sqlite:///a.db", "postgresql://u@h/d", "postgres://u@h/d"):
        assert isinstance(open_provider(url), SqlProvider)


@pytest.mark.parametrize(
    "url",
    ["", "a.db", "mysql://u:hush@h/d", "http://", "http://u:hush@:9090", "http://u:hush@h:port", "http://u:hush@h/?q=1",
     "sqlite://u:hush@x", "postgresql://u:hush%ZZ@h/d"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_and_not_repeated(url):
    with pytest.raises(SettingsError, match="providers: ") as raised:
        open_provider(url)
    assert "hush" not in str(raised.value)


def test_psycopg_understands_what_it_is_given():
    """The doubled `%` and the names are psycopg's syntax, as its own parser reads it."""
    from psycopg._queries import PostgresQuery
    from psycopg.adapt import Transformer

    query = PostgresQuery(Transformer())
    query.convert(with_psycopg_parameters("select '%' || :endpoint, 5 % 3, :since"), {"endpoint": "m", "since": 1.0})
    assert query.query == b"select '%' || $1, 5 % 3, $2"
    assert psycopg.__version__
