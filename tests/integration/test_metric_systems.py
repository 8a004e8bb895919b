"""Metrics providers against the systems themselves: PostgreSQL and Prometheus, as Debian packages them.

What a real Prometheus does only when it is ill (silence, half an answer, a proxy's page) is played by `Stub`, a
stand-in that answers what the test wrote.
"""

from __future__ import annotations

import http.server
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

import psycopg
import pytest

from octoserve.control.analysis.reading import ArmSums, Reading
from octoserve.control.providers.prometheus import MOST_BYTES, PrometheusProvider
from octoserve.control.providers.protocol import Window
from octoserve.control.providers.sql import SqlProvider
from octoserve.control.rollout.values import MetricCheck
from support import postgres, prometheus
from support.supervised import until

WINDOW = Window(endpoint="fraud's", candidate=7, stable=6, since=1_700_000_000.0, until=1_700_001_000.0)


def sql(rows: str, kind: str = "rate") -> MetricCheck:
    return MetricCheck(name="sales", provider="shop", queries={"rows": rows}, kind=kind)


# PostgreSQL

SALES = """
select v.version::text as version, count(*) as n, sum(v.bought::int) as total, max(v.at) as newest -- 100 % of them
from {schema}.visit v
where v.endpoint = :endpoint and v.version in (:candidate, :stable)
  and v.at >= to_timestamp(:since) and v.at < to_timestamp(:until) and v.note not like '%:since%'
group by 1
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if reason := postgres.missing():
        pytest.skip(reason)
    with postgres.a_server() as url:
        yield url


@pytest.fixture(scope="module")
def shop(server: str) -> Iterator[str]:
    """A schema with visits: 7 and 6 in turn, every third one buys."""
    schema = f"t{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as db:
        db.execute(f"create schema {schema}".encode())
        db.execute(
            f"create table {schema}.visit as select 'fraud''s' as endpoint, 6 + i %% 2 as version, "
            "i %% 3 = 0 as bought, to_timestamp(%s::float8 + i) as at, i / 4.0 as spent, 'none' as note "
            "from generate_series(0, 599) as g(i)".encode(),
            (WINDOW.since,),
        )
        yield schema
        db.execute(f"drop schema {schema} cascade".encode())


@pytest.fixture
def database(server: str) -> Iterator[SqlProvider]:
    with closing(SqlProvider(server, timeout=2.0)) as provider:
        yield provider


def test_postgres_is_read(database, shop):
    for _ in range(2):
        assert database.read(sql(SALES.format(schema=shop)), WINDOW) == Reading(
            candidate=ArmSums(n=300, total=100), baseline=ArmSums(n=300, total=100), age=402.0
        )
    mean = f"select version, count(*) as n, sum(spent) as total, sum(spent ^ 2) as squares from {shop}.visit " \
           "where at < to_timestamp(:until) group by version"  # fmt: skip
    early = Window(endpoint="fraud's", candidate=7, stable=6, since=0.0, until=WINDOW.since + 4)
    assert database.read(sql(mean, "mean"), early).candidate == ArmSums(n=2, total=1.0, squares=0.625)


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("select * from missing", 'relation "missing" does not exist'),
        ("delete from {schema}.visit", "syntax error"),
        (
            "with d as (delete from {schema}.visit returning 1) select 7 as version, 1 as n, 1 as total",
            "DECLARE CURSOR",
        ),
        ("select 7 as version, 1 as n, 1 as total; delete from {schema}.visit", "multiple commands"),
        ("commit; delete from {schema}.visit", "syntax error"),
        (
            "select 7 as version, 1 as n, length(set_config('transaction_read_only', 'off', true)) as total",
            "read-write",
        ),
        ("select 7 as version, 1 as n, pg_sleep(5)::text::int as total", "statement timeout"),
        (
            "with recursive k(i) as (select 1 union all select i + 1 from k) "
            "select 7 as version, 1 as n, 1 as total from k",
            "more than 1000 rows",
        ),
        ("select 7 as version, 1 as n, :who as total", "syntax error"),
        ("select 7 as version, 1 as n, '1' as total", "total is no number but str"),
    ],
)
def test_what_postgres_cannot_give_is_an_error_and_changes_nothing(database, server, shop, query, error):
    reading = database.read(sql(query.format(schema=shop)), WINDOW)
    assert error in reading.error
    assert reading == Reading(error=reading.error)
    assert database.read(sql(SALES.format(schema=shop)), WINDOW).error == "", "the next read is not spoiled"
    with psycopg.connect(server) as db:
        assert db.execute(f"select count(*) from {shop}.visit".encode()).fetchone() == (600,)


def test_postgres_that_is_nan_stays_nan(database):
    nan = "select 7 as version, 4 as n, 'NaN'::numeric as total"
    sums = database.read(sql(nan), WINDOW).candidate
    assert sums is not None
    assert math.isnan(sums.total)


def test_a_connection_that_was_cut_is_made_again(database, server, shop):
    assert database.read(sql(SALES.format(schema=shop)), WINDOW).error == ""
    with psycopg.connect(server, autocommit=True) as db:
        db.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'octoserve'")
    assert database.read(sql(SALES.format(schema=shop)), WINDOW).error == ""


def test_postgres_that_is_away_is_an_error_without_a_password():
    provider = SqlProvider("postgresql://u:hush@127.0.0.1:1/db", timeout=1.0)
    error = provider.read(sql("select 1"), WINDOW).error
    assert "cannot connect to postgresql://127.0.0.1:1/db" in error
    assert "hush" not in error


# Prometheus

NAMES = {
    "n": 'sum by (version) (answers_total{endpoint="{{endpoint}}"})',
    "total": 'sum by (version) (sales_total{endpoint="{{endpoint}}"})',
}
NEWEST = 'max by (version) (timestamp(answers_total{endpoint="{{endpoint}}"}))'


def promql(**queries: str) -> MetricCheck:
    return MetricCheck(name="sales", provider="shop", queries={**NAMES, **queries})


def now() -> Window:
    end = time.time()
    return Window(endpoint="fraud's", candidate=7, stable=6, since=end - 60, until=end)


def metrics(**total: str) -> str:
    lines = []
    for version, pod, n, sales in (("7", "a", "30", "10"), ("7", "b", "20", "5"), ("6", "a", "100", "40")):
        labels = f'endpoint="fraud\'s",version="{version}",pod="{pod}"'
        lines += [f"answers_total{{{labels}}} {n}", f"sales_total{{{labels}}} {total.get(f'v{version}', sales)}"]
    return "\n".join(lines) + "\n"


def test_prometheus_is_read(tmp_path):
    if prometheus.BINARY is None:
        pytest.skip("no Prometheus: Debian's package prometheus is not installed")
    exporter = prometheus.Exporter()
    exporter.text = metrics()
    try:
        with prometheus.scraping(exporter, tmp_path) as address:
            follow_a_shop(PrometheusProvider(address, timeout=5.0), exporter)
    finally:
        exporter.close()


def follow_a_shop(provider: PrometheusProvider, exporter: prometheus.Exporter) -> None:
    """The course of one Prometheus: data, its age, mistakes in queries, NaN, and the end of the data."""
    first = Reading(candidate=ArmSums(n=50, total=15), baseline=ArmSums(n=100, total=40))
    until(lambda: provider.read(promql(), now()) == first, 20, "scraped")

    dated = provider.read(promql(newest=NEWEST), now())
    assert (dated.candidate, dated.baseline) == (first.candidate, first.baseline)
    assert dated.age is not None
    assert 0 <= dated.age < 5

    by_pod = {name: query.replace("(version)", "(version, pod)") for name, query in NAMES.items()}
    assert provider.read(promql(**by_pod), now()) == first, "series of one arm add up"
    window = 'sum by (version) (count_over_time(answers_total{version=~"{{candidate}}|{{stable}}"}[{{window}}]))'
    counted = provider.read(promql(n=window, total=window), now()).candidate
    assert counted is not None
    assert counted.n == counted.total > 0
    nobody = Window(
        endpoint='x"} or vector(1) or answers_total{pod="a', candidate=7, stable=6, since=0, until=time.time()
    )
    assert provider.read(promql(), nobody) == Reading()

    for query, error in (
        ("sum by (version) (", "total: bad_data"),
        ("sum(answers_total)", "total: a series has no label arm or version; it has none"),
        ("answers_total[5m]", "total: wants an instant vector, got a matrix"),
        ("1", "total: wants an instant vector, got a scalar"),
        ('sum by (version) (sales_total{version="6"})', "candidate has n and no total"),
        ('label_replace(vector(1), "version", "5", "", "")', "candidate has n and no total"),
    ):
        reading = provider.read(promql(total=query), now())
        assert error in reading.error
        assert reading == Reading(error=reading.error)

    exporter.text = metrics(v7="NaN")

    def is_nan() -> bool:
        sums = provider.read(promql(), now()).candidate
        return sums is not None and math.isnan(sums.total)

    until(is_nan, 20, "NaN")

    exporter.close()
    old = {name: query.replace("})", "}[10m]))").replace("(answers", "(last_over_time(answers")
           .replace("(sales", "(last_over_time(sales") for name, query in NAMES.items()}  # fmt: skip
    until(lambda: provider.read(promql(**old, newest=NEWEST), now()).age == math.inf, 20, "stale")
    stale = provider.read(promql(**old, newest=NEWEST), now())
    assert stale.baseline == first.baseline, "there are numbers, but of a time that is over"
    assert provider.read(promql(), now()) == Reading()


class Stub:
    """Stands in for a Prometheus that is ill: answers what `answer` does with a request."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, list[str]], Any]] = []
        self.answer: Callable[[http.server.BaseHTTPRequestHandler], None]
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                stub.asked.append((self.path, parse_qs(body), self.headers))
                stub.answer(self)

            def log_message(self, *_: Any) -> None:
                """Nobody reads it."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def says(self, content: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for header in headers:
                handler.send_header(*header)
            handler.send_header("Content-Length", str(len(raw)))
            handler.end_headers()
            handler.wfile.write(raw)

        self.answer = answer

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def stub() -> Iterator[Stub]:
    with closing(Stub()) as stub:
        yield stub


def vector(*series: tuple[dict[str, str], str], **more: object) -> dict[str, object]:
    result = [{"metric": labels, "value": [1_700_001_000.0, value]} for labels, value in series]
    return {"status": "success", "data": {"resultType": "vector", "result": result}, **more}


def test_the_question_is_the_documented_one(stub):
    stub.says(vector(({"arm": "candidate"}, "+Inf"), ({"arm": "baseline"}, "2"), ({"arm": "stable"}, "9")))
    address = f"http://ada:hush%2Fhush@{stub.address}/tenant/"
    provider = PrometheusProvider(address, timeout=3.0, headers={"X-Scope-OrgID": "t1"})
    reading = provider.read(promql(), WINDOW)
    assert reading == Reading(candidate=ArmSums(n=math.inf, total=math.inf), baseline=ArmSums(n=2, total=2))
    path, fields, headers = stub.asked[0]
    assert path == "/tenant/api/v1/query"
    assert fields == {
        "query": ['sum by (version) (answers_total{endpoint="fraud\'s"})'],
        "time": ["1700001000.000"],
        "timeout": ["3s"],
    }
    assert headers["Authorization"] == "Basic YWRhOmh1c2gvaHVzaA=="
    assert headers["X-Scope-OrgID"] == "t1"


@pytest.mark.parametrize(
    ("status", "content", "error"),
    [
        (502, b"<html>Bad gateway</html>", "answered 502, which is no answer of Prometheus"),
        (200, b"", "answered 200, which is no answer"),
        (200, {"status": "success"}, "answered 200, which is no answer"),
        (200, {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}}]}}, "is no answer"),
        (200, vector(({"arm": "candidate"}, "many")), "is no answer"),
        (200, b"[" * 100_000, "is no answer"),
        (200, b" " * (MOST_BYTES + 1), "aggregate in the query"),
        (200, vector(({"arm": "candidate"}, "1"), warnings=["one store is down"]), "warns: one store is down"),
        (422, {"status": "error", "errorType": "execution", "error": "told hush/hush and tok3n"}, "told *** and ***"),
    ],
)
def test_an_ill_prometheus_is_an_error(stub, status, content, error):
    stub.says(content, status, (("Location", "http://127.0.0.1:1/"),))
    provider = PrometheusProvider(f"http://ada:hush%2Fhush@{stub.address}", 5.0, {"X-Token": "tok3n"})
    reading = provider.read(promql(), WINDOW)
    assert error in reading.error
    assert reading == Reading(error=reading.error)
    assert "hush" not in reading.error


def test_a_note_about_the_query_is_no_warning(stub):
    note = ["PromQL info: metric might not be a counter"]
    stub.says(vector(({"arm": "candidate"}, "1"), warnings=note))
    assert PrometheusProvider(f"http://{stub.address}").read(promql(), WINDOW).error == ""


def test_a_redirect_is_not_followed(stub):
    stub.says(b"", 302, (("Location", f"http://{stub.address}/elsewhere"),))
    assert "answered 302" in PrometheusProvider(f"http://{stub.address}").read(promql(), WINDOW).error
    assert len(stub.asked) == 1


def test_silence_and_an_answer_that_trickles_end_in_time(stub):
    stop = threading.Event()

    def trickle(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not stop.wait(0.02):
            handler.wfile.write(b" ")

    def silence(handler: http.server.BaseHTTPRequestHandler) -> None:
        stop.wait(20)

    provider = PrometheusProvider(f"http://{stub.address}", timeout=0.3)
    try:
        for answer in (trickle, silence):
            stub.answer = answer
            start = time.monotonic()
            assert provider.read(promql(), WINDOW).error.endswith("no answer within 0.3 s")
            assert time.monotonic() - start < 2
    finally:
        stop.set()


def test_a_prometheus_that_is_away_is_an_error():
    error = PrometheusProvider("http://ada:hush@127.0.0.1:1").read(promql(), WINDOW).error
    assert error == "sales: http://127.0.0.1:1: ConnectionRefusedError: Connection refused"
