"""Batch from and to PostgreSQL, the real server: one state of the query, one moment at which the table is there."""

from __future__ import annotations

import datetime
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pyarrow as pa
import pytest

from octoserve.connectors import postgres as connector
from octoserve.core.errors import SettingsError, Unavailable
from octoserve.patterns.batch import status
from octoserve.patterns.batch.job import BudgetSpent, Differs, Fenced, RunSettings
from octoserve.patterns.batch.places import sink_of
from octoserve.patterns.batch.run import resume
from octoserve.patterns.batch.verify import verify
from support import postgres
from support.batch import BORNE, LIMIT, put_model, put_table, score, tools, tree, wish

pytestmark = pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing() or "there")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with postgres.a_server() as found, pytest.MonkeyPatch.context() as patched:
        patched.setenv("PGPASSWORD", postgres.PASSWORD)
        yield found


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    put_model(folder)
    return folder


@pytest.fixture
def connection(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """With a table `t` of 1500 rows; ranges are small, so that there are splits."""
    monkeypatch.setattr(connector, "RANGE", 3_000)
    with psycopg.connect(url, autocommit=True) as found:
        found.execute("drop table if exists t, out, out_bad")
        found.execute("create table t (id bigint primary key, a real, b real, name text)")
        found.execute("insert into t select i, i * 0.5, i % 7, 'n' || i from generate_series(0, 1499) i")
        yield found


def test_a_query_is_read_in_the_order_of_its_key(repository: Path, url: str, connection: Any, tmp_path: Path) -> None:
    query = "select id * 2 as n, a, b from t where id < 1000 order by b"
    done = score(wish(repository, f"{url}?query={query}&split_by=n", tmp_path / "out", keys=("n",)))
    assert done.table().column("n").to_pylist() == list(range(0, 2000, 2))
    assert len(done.manifest.parts) > 5
    again = score(wish(repository, f"{url}?query={query}&split_by=n", tmp_path / "again", keys=("n",)))
    assert tree(tmp_path / "out") == tree(tmp_path / "again"), "the same rows are the same job"
    assert again.scored == 1000


def test_types_arrive_as_they_are(repository: Path, url: str, connection: Any, tmp_path: Path) -> None:
    connection.execute("drop table if exists kinds")
    connection.execute(
        "create table kinds (id int primary key, a real, b real, word text, day date, at timestamp, tz timestamptz, "
        "cost numeric(10, 2), loose numeric, ok boolean, small smallint, v double precision[], u uuid)"
    )
    connection.execute(
        "insert into kinds values (1, 0.1, 'NaN', E'a,\"b\"\\nc', '2026-02-03', '2026-02-03 04:05:06.789', "
        "'2026-02-03 04:05:06+02', 12.30, 0.123456789012345678901, true, -3, '{1.5,-2}', "
        "'00000000-0000-0000-0000-000000000001'), (2, 1, 1, '', null, null, null, null, null, false, null, null, null)"
    )
    table = score(wish(repository, f"{url}?table=kinds", tmp_path / "out", all_columns=True)).table()
    first, second = table.to_pylist()
    assert table.schema.field("tz").type == pa.timestamp("us", "UTC")
    assert table.schema.field("cost").type == pa.decimal128(10, 2)
    assert first["word"] == 'a,"b"\nc'
    assert (first["day"], first["at"]) == (datetime.date(2026, 2, 3), datetime.datetime(2026, 2, 3, 4, 5, 6, 789000))
    assert first["tz"].astimezone(datetime.UTC).hour == 2
    assert (first["cost"], first["loose"]) == (Decimal("12.30"), "0.123456789012345678901")
    assert (first["ok"], first["small"], first["v"]) == (True, -3, [1.5, -2.0])
    assert first["plus"][0] == pytest.approx(1.1)
    assert second["word"] == ""
    assert [second[name] for name in ("day", "at", "tz", "cost", "loose", "small", "v", "u")] == [None] * 8


def test_all_splits_see_one_state(repository: Path, url: str, connection: Any, tmp_path: Path) -> None:
    """The table is changed while the job runs: what it has begun with is what it scores."""

    def change(*_: Any) -> None:
        connection.execute("update t set a = a + 1000 where id >= 700")
        connection.execute("delete from t where id < 300")
        connection.execute("insert into t values (5000, 1, 1, 'late')")

    done = score(wish(repository, f"{url}?table=t", tmp_path / "out"), on_begin=change)
    table = done.table()
    assert table.column("id").to_pylist() == list(range(1500))
    assert [plus[0] for plus in table.column("plus").to_pylist()] == [i * 0.5 + 1 for i in range(1500)]


@pytest.mark.parametrize("changed", [True, False])
def test_a_resumed_job_wants_the_rows_it_began_with(
    repository: Path, url: str, connection: Any, tmp_path: Path, changed: bool
) -> None:
    """Its snapshot is gone; the fingerprint tells whether another will do."""
    connection.execute("update t set a = %s where id = 900", (2 * LIMIT,))
    asked = wish(repository, f"{url}?table=t", tmp_path / "out")
    with pytest.raises(BudgetSpent):
        score(asked, RunSettings(workers=1, budget_rows=0))
    if changed:
        connection.execute("update t set name = 'other' where id = 3")
        with pytest.raises(Differs, match=r"table=t.*ETag 1500-"):
            resume(asked.sink, BORNE, tools())
        return
    left = 1500 - status.look(asked.sink).rows
    outcome = resume(asked.sink, BORNE, tools())
    assert 0 < outcome.scored == left < 1500
    score(wish(repository, f"{url}?table=t", tmp_path / "undisturbed"))
    assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")


def test_no_password_is_written_down(repository: Path, url: str, connection: Any, tmp_path: Path) -> None:
    asked = wish(repository, f"{url}?table=t", tmp_path / "out")
    connection.execute("update t set a = %s where id = 900", (2 * LIMIT,))
    with pytest.raises(BudgetSpent):
        score(asked, RunSettings(budget_rows=0))
    score(asked)
    for data in tree(tmp_path).values():
        assert postgres.PASSWORD.encode() not in data
        assert postgres.PASSWORD.replace("/", "%2F").encode() not in data


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "table=t, or"),
        ("?table=t&query=select 1", "table=t, or"),
        ("?table=nowhere", "does not exist"),
        ("?query=selec 1&split_by=id", "syntax error"),
        ("?query=select a, b from t", "none was named"),
        ("?table=t&split_by=b", "'b' is none"),
        ("?query=select id / 2 as id, a, b from t&split_by=id", "750 rows share one"),
        ("?query=select nullif(id, 4) as id, a, b from t&split_by=id", "1 rows have none"),
        ("?query=delete from t returning *&split_by=id", "syntax error"),
    ],
)
def test_what_cannot_be_read_is_said(
    repository: Path, url: str, connection: Any, tmp_path: Path, source: str, said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        score(wish(repository, url + source, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_server_that_is_not_there(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot connect"):
        score(wish(repository, "postgresql://127.0.0.1:9/none?table=t", tmp_path / "out"))


def test_from_a_table_to_a_table(repository: Path, url: str, connection: Any) -> None:
    asked = wish(repository, f"{url}?table=t", f"{url}?table=out", all_columns=True)  # type: ignore[arg-type]
    score(asked)
    rows = connection.execute("select id, name, plus from out order by id").fetchall()
    assert len(rows) == 1500
    assert rows[3] == (3, "n3", [2.5, 4.0])
    assert connection.execute("select to_regclass('out_bad')").fetchone() == (None,)
    connection.execute("update out set name = 'tampered' where id = 7")
    (found,) = verify(asked.sink).differences
    assert "out" in found.what
    connection.execute("drop table out")
    assert score(asked).scored == 1500, "a table that was dropped is made again"


def test_a_reader_who_looks_all_along_sees_nothing_or_everything(
    repository: Path, url: str, connection: Any, tmp_path: Path
) -> None:
    source = put_table(tmp_path / "data", files=2, each=5_000)
    seen: set[int | None] = set()
    over = threading.Event()

    def look() -> None:
        with psycopg.connect(url, autocommit=True) as reader:
            while not over.is_set():
                try:
                    seen.add(reader.execute("select count(*) from out").fetchone()[0])  # type: ignore[index]
                except psycopg.errors.UndefinedTable:
                    seen.add(None)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        score(wish(repository, source, f"{url}?table=out"))  # type: ignore[arg-type]
    finally:
        over.set()
        thread.join()
    assert None in seen
    assert seen <= {None, 10_000}


def test_a_run_that_was_taken_over_commits_nothing_more(
    repository: Path, url: str, connection: Any, tmp_path: Path
) -> None:
    source = put_table(tmp_path / "data")
    asked = wish(repository, source, f"{url}?table=out")  # type: ignore[arg-type]

    def take_over(*_: Any) -> None:
        connection.execute("update octoserve_batch.sinks set token = token + 1 where sink = 'public.out'")

    with pytest.raises(Fenced, match="taken over"):
        score(asked, on_begin=take_over)
    assert sink_of(asked.sink).state().finished == {}
    assert score(asked).scored == 1500


def test_a_server_that_dies_under_the_job(repository: Path, tmp_path: Path) -> None:
    """Its crash costs what was not journaled, and a snapshot: the job ends, and goes on when it is back."""
    server = postgres.Postgres()
    try:
        source = put_table(tmp_path / "data")
        asked = wish(repository, source, f"{server.url}?table=out")  # type: ignore[arg-type]
        killed = threading.Event()

        def watch(*_: Any) -> None:
            sink = sink_of(asked.sink)

            def kill() -> None:
                while len(sink.state().finished) < 3:
                    time.sleep(0.02)
                server.kill()
                killed.set()

            threading.Thread(target=kill).start()

        with pytest.raises((Unavailable, SettingsError)):
            score(asked, RunSettings(workers=1, budget_share=0.5), on_begin=watch)
        assert killed.wait(30)
        server.start()
        left = 1500 - status.look(asked.sink).rows
        assert resume(asked.sink, BORNE, tools()).scored == left < 1500
        assert verify(asked.sink).differences == ()
    finally:
        server.close()


def test_the_command_line_over_postgresql(repository: Path, url: str, connection: Any, tmp_path: Path) -> None:
    """Commas in a query are its own; nothing shows the password."""
    connection.execute("update t set a = %s where id = 900", (2 * LIMIT,))

    def command(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "octoserve", "batch", *words], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == code, done.stderr
        assert postgres.PASSWORD not in done.stdout + done.stderr
        assert quote(postgres.PASSWORD, safe="") not in done.stdout + done.stderr
        return done.stderr if code else done.stdout

    flags = ["--repository", str(repository), "--model", "flawed", "--columns", "a,b", "--keys", "id"]
    source = f"{url}?query=select id, a, b from t where id in (1, 2, 900)&split_by=id"
    job = ["run", *flags, "--source", source, "--sink", f"{url}?table=out"]
    said = command(*job, "--error-budget", "0", code=3)
    (go_on,) = [line for line in said.splitlines() if line.startswith("go on with: ")]
    resume_it = shlex.split(go_on)  # as a shell takes it, for which ? and & are its own
    assert resume_it[3:-1] == ["octoserve", "batch", "resume"]
    assert resume_it[-1].endswith("?table=out")
    assert "is not the job" in command(*job, "--prefix", "p_", code=2)
    said = command(*job, "--error-budget", "1")
    assert "committed 2 rows to postgresql://octoserve@" in said
    assert "1 bad rows in table public.out_bad" in said
    assert "committed" in command("list")
    assert "is whole" in command("verify", f"{url}?table=out")
