"""How far a job is, and how long it will take: also right after a resume."""

from __future__ import annotations

import pytest

from octoserve.patterns.batch.job import Job, JobSettings, ModelIdentity, RunSettings, Split
from octoserve.patterns.batch.journal import Finished, Part
from octoserve.patterns.batch.manifest import encode, make
from octoserve.patterns.batch.progress import Progress
from octoserve.patterns.batch.showing import line
from octoserve.spec.batch import budget_of, parse_budget


def a_job(count: int = 4, **more) -> Job:
    fields = {
        "repository": "/r",
        "source": ("/s",),
        "model": ModelIdentity("m", 1, "sha256:a"),
        "files": (),
        "schema": ("column a float",),
        "settings": JobSettings(),
        "software": {"pyarrow": "1"},
        "block_rows": 10,
        "splits": tuple(Split(i, 0, i, i + 1, 100 * i, 100, 1000) for i in range(count)),
    }
    return Job(**(fields | more))


def finished(split: int, seconds: float = 2.0, bad: int = 0) -> Finished:
    part = Part(name=f"part-{split:05}.parquet", rows=100 - bad, bytes=10, sha256="x")
    sidecar = Part(name=f"_bad/part-{split:05}.parquet", rows=bad, bytes=10, sha256="y") if bad else None
    return Finished(split=split, token=1, part=part, bad=sidecar, seconds=seconds, at=1.0)


def test_a_first_run_has_an_estimate_once_it_has_a_row() -> None:
    now = [0.0]
    progress = Progress(lambda: now[0])
    assert progress.glance() is None
    progress.begin(a_job(), [], [], 1)
    at = progress.glance()
    assert at is not None
    assert (at.rows, at.rate, at.seconds_left) == (0, 0.0, None)
    now[0] = 2.0
    progress.add(50, 500, 1)
    at = progress.glance()
    assert at is not None
    assert (at.rate, at.seconds_left, at.byte_rate, at.bad) == (25.0, 14.0, 250.0, 1)
    assert line(at) == "50 of 400 rows (12.5%), 25 rows/s, 0.0 MB/s, 14.0 s left, 1 bad"


def test_a_resumed_run_goes_by_the_journal_until_it_has_rows_of_its_own() -> None:
    now = [100.0]
    progress = Progress(lambda: now[0])
    done = [finished(0, bad=3), finished(1)]
    progress.begin(a_job(), done, done, workers=2)
    at = progress.glance()
    assert at is not None
    assert (at.rows, at.bad, at.splits, at.resumed_rows) == (200, 3, 2, 200)
    assert at.rate == pytest.approx(2 * 197 / 4.0), "two workers, two seconds a split"
    now[0] = 104.0
    progress.add(40, 400, 0)
    progress.finished_split()
    at = progress.glance()
    assert at is not None
    assert (at.rate, at.seconds_left, at.splits) == (10.0, 16.0, 3), "of this run alone"


def test_the_identity_is_what_shapes_the_result_and_nothing_else() -> None:
    job = a_job()
    assert a_job(repository="/elsewhere", source=("/other",)).id() == job.id()
    for change in (
        {"model": ModelIdentity("m", 1, "sha256:b")},
        {"settings": JobSettings(keys=("id",))},
        {"software": {"pyarrow": "2"}},
        {"block_rows": 11},
        {"schema": ("column a double",)},
        {"splits": job.splits[:3]},
    ):
        assert a_job(**change).id() != job.id()


def test_the_manifest_adds_up_and_has_no_date() -> None:
    done = make(a_job(2), [finished(0, 1.0, bad=4), finished(1, 5.0)])
    assert (done.rows_in, done.rows, done.bad_rows) == (200, 196, 4)
    again = make(a_job(2), [finished(0, 9.0, bad=4), finished(1, 7.0)])
    assert encode(done) == encode(again), "however long it took"


@pytest.mark.parametrize(
    ("text", "rows", "borne"),
    [
        ("0", 1000, 0),
        ("100", 10, 100),
        (5, 10, 5),
        ("0.1%", 1000, 1),
        ("1 %", 50, 0),
        (0.5, 9, 4),
        ("100%", 7, 7),
        ("29%", 100, 29),
    ],
)
def test_error_budgets(text, rows: int, borne: int) -> None:
    count, share = budget_of(parse_budget(text))
    assert RunSettings(budget_rows=count, budget_share=share).bad_rows_borne(rows) == borne


@pytest.mark.parametrize("text", ["", "-1", "x", "101%", "1.5", True, None, "1e3"])
def test_what_is_no_error_budget(text) -> None:
    with pytest.raises(ValueError, match="a number of rows"):
        parse_budget(text)
