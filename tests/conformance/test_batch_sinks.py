"""What every kind of sink holds to: nothing or everything, one run at a time, the same result however it came about."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from octoserve.core.errors import NotFound, SettingsError
from octoserve.patterns.batch import status
from octoserve.patterns.batch.job import BudgetSpent, Busy, Differs, RunSettings
from octoserve.patterns.batch.places import sink_of
from octoserve.patterns.batch.run import Wish, resume
from octoserve.patterns.batch.verify import verify
from support import postgres, s3
from support.batch import BORNE, put_model, put_table, score, tools, wish
from support.batch_sinks import Delta, Folder, Iceberg, InPlace, Objects, Postgres, SinkCase, a_catalog

BAD = (7, 900, 901)
_numbers = itertools.count()
STRICT = RunSettings(workers=1, budget_rows=1)
"""Ends at row 900: more than half of the splits are finished then, and not all."""


@pytest.fixture(scope="module")
def services() -> Iterator[None]:
    with s3.a_store() as store, s3.used(store.url):
        yield


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("ground")
    put_model(folder / "models")
    return folder / "models", put_table(folder / "data", bad=BAD)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    if postgres.missing():
        pytest.skip(postgres.missing())
    with postgres.a_server() as url, pytest.MonkeyPatch.context() as patched:
        patched.setenv("PGPASSWORD", postgres.PASSWORD)  # what is shown and written down is without it
        yield url


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with a_catalog(tmp_path_factory.mktemp("iceberg")) as name:
        yield name


FORMATS = ("csv", "arrow in place", "jsonl in s3")
CASES = ("folder", "in place", "s3", "postgresql", "delta", "iceberg", *FORMATS)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, services: None, tmp_path: Path) -> SinkCase:
    if request.param == "delta":
        return Delta(tmp_path)
    if request.param == "iceberg":
        return Iceberg(tmp_path, request.getfixturevalue("catalog"))
    if request.param == "postgresql":
        return Postgres(request.getfixturevalue("database"), f"s{next(_numbers)}")
    if request.param == "csv":
        return Folder(tmp_path).written_as("csv")
    if request.param == "arrow in place":
        return InPlace(tmp_path).written_as("arrow")
    if request.param == "jsonl in s3":
        return Objects(tmp_path.name).written_as("jsonl")
    if request.param == "folder":
        return Folder(tmp_path)
    if request.param == "in place":
        return InPlace(tmp_path)
    return Objects(tmp_path.name)


@pytest.fixture
def asked(case: SinkCase, ground: tuple[Path, str]) -> Wish:
    return wish(ground[0], ground[1], case.new("out"), sink_format=case.sink_format)  # type: ignore[arg-type]


def half_done(asked: Wish) -> None:
    with pytest.raises(BudgetSpent):
        score(asked, STRICT)


def test_what_is_committed(case: SinkCase, asked: Wish) -> None:
    outcome = score(asked)
    rows = case.seen(asked.sink)
    assert rows is not None
    ids = [i for i in range(1500) if i not in BAD]
    assert [row["id"] for row in rows] == ids
    x = np.stack([np.array(ids) * 0.5, np.array(ids) % 7], axis=1).astype(np.float32)
    assert np.array_equal(np.array([row["plus"] for row in rows], np.float32), x + 1)
    bad = case.bad(asked.sink)
    assert [(row["id"], row["row"]) for row in bad] == [(7, 7), (900, 400), (901, 401)]
    assert all("model refuses" in row["reason"] for row in bad)
    assert (outcome.manifest.rows, outcome.manifest.bad_rows) == (1497, 3)
    assert verify(asked.sink).differences == ()
    assert sorted(outcome.table().column("id").to_pylist()) == ids
    assert outcome.bad_rows().num_rows == 3


def test_nothing_is_seen_before_all_of_it(case: SinkCase, asked: Wish) -> None:
    half_done(asked)
    assert case.seen(asked.sink) is None
    with pytest.raises(NotFound):
        verify(asked.sink)
    found = status.look(asked.sink)
    assert (found.state, found.runs) == (status.STOPPED, 1)
    assert 500 <= found.rows < 1500
    assert found.total_rows == 1500
    assert found.holder is not None


def test_a_resumed_job_equals_an_undisturbed_one(case: SinkCase, asked: Wish, ground: tuple[Path, str]) -> None:
    half_done(asked)
    left = 1500 - status.look(asked.sink).rows
    outcome = resume(asked.sink, BORNE, tools())
    assert outcome.scored == left
    undisturbed = wish(*ground, case.new("undisturbed"), sink_format=case.sink_format)  # type: ignore[arg-type]
    score(undisturbed)
    assert case.contents(asked.sink) == case.contents(undisturbed.sink)
    assert status.look(asked.sink).state == status.COMMITTED
    assert not sink_of(asked.sink).has_left_overs()


def test_the_same_job_again_is_done_already(case: SinkCase, asked: Wish) -> None:
    first = score(asked)
    before = case.contents(asked.sink)
    again = score(asked)
    assert (again.scored, again.manifest) == (0, first.manifest)
    assert resume(asked.sink, BORNE, tools()).manifest == first.manifest
    assert case.contents(asked.sink) == before


def test_another_job_is_refused_while_one_is_begun(case: SinkCase, asked: Wish, ground: tuple[Path, str]) -> None:
    half_done(asked)
    with pytest.raises(Differs, match="setting keys"):
        score(wish(*ground, asked.sink, keys=("id", "name")))  # type: ignore[arg-type]
    assert score(asked).manifest.rows == 1497


def test_two_runs_one_wins(case: SinkCase, asked: Wish) -> None:
    half_done(asked)
    work = sink_of(asked.sink).enter(1.0)
    with pytest.raises(Busy, match="process"):
        resume(asked.sink, BORNE, tools())
    assert status.look(asked.sink).state == status.RUNNING
    token = work.token
    work.release()
    assert status.look(asked.sink).state == status.STOPPED
    with contextlib.closing(_Released(asked)) as second:
        assert second.token > token
    assert resume(asked.sink, BORNE, tools()).manifest.rows == 1497


class _Released:
    def __init__(self, asked: Wish) -> None:
        self._work = sink_of(asked.sink).enter(2.0)
        self.token = self._work.token

    def close(self) -> None:
        self._work.release()


def test_where_nothing_was_begun(case: SinkCase) -> None:
    for look in (status.look, verify, lambda sink: resume(sink, BORNE, tools())):
        with pytest.raises(NotFound):
            look(case.new(f"none-{id(look)}"))  # type: ignore[operator]


@pytest.mark.parametrize("case", [name for name in CASES if name != "postgresql"], indirect=True)
def test_a_lost_part_is_made_again(case: SinkCase, asked: Wish, ground: tuple[Path, str]) -> None:
    """PostgreSQL's parts are rows of one table: none can be lost alone."""
    half_done(asked)
    case.lose(asked.sink)  # type: ignore[union-attr]
    score(asked)
    assert case.seen(asked.sink) is not None
    assert verify(asked.sink).differences == ()


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("delta", "iceberg")], indirect=True)
def test_a_sink_with_strangers_is_refused(case: SinkCase, asked: Wish) -> None:
    """A table of Delta or Iceberg takes what comes beside what is there."""
    with pytest.raises(SettingsError, match=case.stranger(asked.sink)):  # type: ignore[union-attr]
        score(asked)
    assert sink_of(asked.sink).committed() is None
