"""Profiles of tables, and tables against them: every format, bad rows left out and said, columns by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from octoserve.app import runtimes
from octoserve.connectors.sources import find
from octoserve.core.errors import InvalidInput
from octoserve.core.profile import Profile
from octoserve.patterns.batch.model import Version
from octoserve.patterns.batch.profile import Profiled, count_table, profile_of
from octoserve.patterns.batch.table import Table
from support import observed


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    observed.put(folder)
    return folder


def profiled(models: Path, data: Path) -> Profiled:
    return profile_of(Version(models, "loans", 1, runtimes(), {}), Table(find([str(data)])), "t", now=1.0)


def shares(profile: Profile) -> dict[str, tuple[int, ...]]:
    return {column.name: column.counts for column in profile.columns}


def test_the_same_from_parquet_and_csv_whatever_its_files(models: Path, tmp_path: Path) -> None:
    table = pa.table(observed.rows(3000))
    pa.parquet.write_table(table, tmp_path / "all.parquet", row_group_size=700)
    (tmp_path / "csv").mkdir()
    for part in range(3):
        pa.csv.write_csv(table.slice(part * 1000, 1000), tmp_path / "csv" / f"{part}.csv")
    one, other = profiled(models, tmp_path / "all.parquet"), profiled(models, tmp_path / "csv")
    assert shares(one.profile) == shares(other.profile)
    assert (one.profile.rows, one.profile.left_out, one.no_profile) == (3000, 0, ())
    assert sum(shares(one.profile)["score"]) == 3000
    for data in (tmp_path / "all.parquet", tmp_path / "csv"):
        counted = count_table(one.profile, Table(find([str(data)])))
        assert counted.counts.keys() == {"amount", "age", "ssn", "city", "vip"}
        assert all(counted.counts[name] == shares(one.profile)[name] for name in counted.counts)
        assert counted.notes == ("Not in the table: score, seen, was_vip.",)


def test_rows_that_cannot_be_scored_are_left_out_and_said(models: Path, tmp_path: Path) -> None:
    columns = observed.rows(500)
    columns["age"] = pa.array([None if i % 10 == 0 else float(v) for i, v in enumerate(columns["age"])], pa.float32())
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    made = profiled(models, tmp_path / "t.parquet")
    assert (made.profile.rows, made.profile.left_out) == (450, 50)
    assert made.reason == "missing value in column 'age'"
    counted = count_table(made.profile, Table(find([str(tmp_path / "t.parquet")])))
    assert counted.counts["age"][-1] == 50, "missing is a bin: it is what may have moved"
    columns["age"] = pa.nulls(500, pa.float32())
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InvalidInput, match="no row of t can be scored: missing value in column 'age'"):
        profiled(models, tmp_path / "t.parquet")


def test_lists_are_told_apart_by_element_and_other_types_are_said(models: Path, tmp_path: Path) -> None:
    made = profiled(models, _written(tmp_path, observed.rows(300)))
    renamed = [
        msgspec.structs.replace(column, name=f"x[{place}]") if place < 3 else column
        for place, column in enumerate(made.profile.columns)
    ]
    profile = msgspec.structs.replace(made.profile, columns=tuple(renamed))
    columns = observed.rows(300)
    lists = np.stack([columns.pop(name) for name in ("amount", "age", "ssn")], axis=1)
    columns["x"] = pa.array(lists.tolist(), pa.list_(pa.float32()))
    columns["city"] = np.arange(300)
    counted = count_table(profile, Table(find([str(_written(tmp_path, columns))])))
    assert counted.counts["x[1]"] == shares(profile)["x[1]"]
    assert "city (int64)" in counted.notes[1]
    with pytest.raises(InvalidInput, match="no column of the profile"):
        count_table(profile, Table(find([str(_written(tmp_path, {"other": [1]}))])))


def test_a_table_of_another_shape_is_said_or_missing_and_no_surprise(models: Path, tmp_path: Path) -> None:
    made = profiled(models, _written(tmp_path, observed.rows(300)))
    names = {"amount": "x[1]", "age": "age[years]", "ssn": "vector[0]"}
    renamed = [
        msgspec.structs.replace(column, name=names.get(column.name, column.name)) for column in made.profile.columns
    ]
    columns = observed.rows(300)
    for name in ("amount", "age", "ssn"):
        columns.pop(name)
    columns["x"] = pa.array([[1.0, 2.0], [1.0], None] * 100, pa.list_(pa.float32()))
    columns["vector"] = np.arange(300.0)
    profile = msgspec.structs.replace(made.profile, columns=tuple(renamed))
    counted = count_table(profile, Table(find([str(_written(tmp_path, columns))])))
    assert counted.counts["x[1]"][-1] == 200, "null, or too short"
    assert "age[years]" in counted.notes[0]
    assert "vector (double)" in counted.notes[1]


def _written(tmp_path: Path, columns: dict[str, Any]) -> Path:
    path = tmp_path / f"{'-'.join(sorted(columns))}.parquet"
    pa.parquet.write_table(pa.table(columns), path)
    return path
