"""From the spool to files by day, on disk and in S3: typed columns, each request once, the oldest days dropped."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from octoserve.connectors.sources import find
from octoserve.control.predictions.store import InS3, PredictionStore
from octoserve.core.observation import JSONL, PARQUET, LogSettings
from octoserve.core.tensors import raw_from_array
from octoserve.patterns.batch.table import Table
from octoserve.telemetry.predictions import Block, Cells, model_of, spool_of
from octoserve.telemetry.spool import Spool, segments
from support import s3

NOON = 1795521600.0
"""2026-11-24T12:00:00Z"""
DAY = 86400.0


def cells(names: tuple[str, ...], datatype: str, values: Any, *, is_list: bool = False) -> Cells:
    table = np.asarray(values, dtype=None if datatype != "BYTES" else object)
    return Cells(names, datatype, is_list, table.shape[1], raw_from_array(table))


def block(first: int = 0, count: int = 2, **more: Any) -> Block:
    """Requests of two rows each."""
    rows = count * 2
    fields: dict[str, Any] = {
        "model": "loans",
        "version": 1,
        "times": [NOON + first + i for i in range(count)],
        "ids": [f"r{first + i}" for i in range(count)],
        "keys": [b"k%d" % i if i else b"\xff" for i in range(count)],
        "arms": ["candidate"] * count,
        "seconds": [0.25] * count,
        "statuses": ["ok"] * count,
        "rows": [2] * count,
        "cells": [
            cells(("amount", "age"), "FP32", np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)),
            cells(("city",), "BYTES", [[b"K\xc3\xb6ln"]] * rows),
            cells(("embedding",), "FP64", np.ones((rows, 3)), is_list=True),
            cells(("score",), "FP16", np.full((rows, 1), np.nan, np.float16)),
            cells(("label",), "INT64", np.arange(rows).reshape(rows, 1)),
        ],
    }
    return Block(**(fields | more))


def failed(first: int) -> Block:
    """Without outputs."""
    made = block(first, 1, statuses=["deadline"])
    absent = [Cells(c.names, c.datatype, c.is_list, c.width, None) for c in made.cells[3:]]
    return block(first, 1, statuses=["deadline"], cells=[*made.cells[:3], *absent], cut=["city"])


def spooled(folder: Path, settings: LogSettings, *blocks: Block) -> PredictionStore:
    """All in one segment."""
    where = spool_of(folder / "spool", "loans", settings)
    spool: Spool[Block] = Spool(where, "w0")
    for one in blocks:
        assert spool.append(one)
    spool.close()
    return PredictionStore("loans", settings, where)


def test_a_day_is_read_with_typed_columns(tmp_path: Path) -> None:
    settings = LogSettings(to=str(tmp_path / "log"))
    store = spooled(tmp_path, settings, block(), failed(5), block(version=2), block(10, times=[NOON + DAY, NOON + DAY]))
    done = store.take_up()
    assert (done.items, done.failed, store.rows) == (4, 0, 14)
    assert segments(store.spool) == []
    day = tmp_path / "log" / "model=loans" / "day=2026-11-24"
    assert sorted(path.name.rpartition("-")[2] for path in day.iterdir()) == ["v1.parquet", "v2.parquet"]
    table = pa.parquet.ParquetFile(next(day.glob("*v1.parquet"))).read()
    types = {field.name: str(field.type) for field in table.schema if not field.name.startswith("_")}
    assert types == {
        "amount": "float", "age": "float", "city": "string", "embedding": "list<element: double>", "score": "float",
        "label": "int64",
    }  # fmt: skip
    rows = table.to_pylist()
    assert [row["_request_id"] for row in rows] == ["r0", "r0", "r1", "r1", "r5", "r5"]
    assert [row["_row"] for row in rows] == [0, 1] * 3
    assert rows[0]["_key"] == "base64:/w=="
    assert rows[2]["_key"] == "k1"
    assert rows[0]["_arm"] == "candidate"
    assert rows[0]["_time"].timestamp() == NOON
    assert (rows[3]["amount"], rows[3]["age"], rows[3]["label"]) == (6.0, 7.0, 3)
    assert rows[0]["city"] == "Köln"
    assert rows[0]["embedding"] == [1.0, 1.0, 1.0]
    assert math.isnan(rows[0]["score"])
    assert (rows[4]["_status"], rows[4]["label"], rows[4]["_cut"], rows[0]["_cut"]) == ("deadline", None, "city", None)
    whole = pa.dataset.dataset(tmp_path / "log", partitioning="hive").to_table()
    assert whole.num_rows == 14
    assert set(whole.column("day").to_pylist()) == {"2026-11-24", "2026-11-25"}


def test_json_lines_hold_the_same_and_our_own_reader_reads_them(tmp_path: Path) -> None:
    settings = LogSettings(to=str(tmp_path / "log"), format=JSONL)
    spooled(tmp_path, settings, block()).take_up()
    (path,) = (tmp_path / "log").rglob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[1]["_time"] == "2026-11-24T12:00:00Z"
    assert (lines[1]["amount"], lines[1]["city"], lines[1]["score"]) == (2.0, "Köln", None)
    table = Table(find([str(tmp_path / "log")]))
    assert {"amount", "city", "label", "day"} <= set(table.schema.names)


def test_taken_up_twice_each_request_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = LogSettings(to=str(tmp_path / "log"))
    store = spooled(tmp_path, settings, block())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "died here")))
        assert store.take_up().failed == 1
    assert store.take_up().failed == 0
    assert pa.parquet.read_table(tmp_path / "log").num_rows == 4


def test_a_destination_that_cannot_be_written_keeps_the_segment(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file is in the way")
    settings = LogSettings(to=str(tmp_path / "log"))
    store = spooled(tmp_path, settings, block())
    done = store.take_up()
    assert done.failed == 1
    assert done.error
    assert len(segments(store.spool)) == 1
    os.unlink(tmp_path / "log")
    assert store.take_up().items == 1


def test_the_oldest_days_go(tmp_path: Path) -> None:
    settings = LogSettings(to=str(tmp_path / "log"), keep_days=2, keep_size=1 << 30)
    for day in range(5):
        spooled(tmp_path, settings, block(times=[NOON + day * DAY] * 2)).take_up()
    store = spooled(tmp_path, settings)
    assert store.retain(NOON + 4 * DAY) == 2
    assert sorted(path.name for path in (tmp_path / "log" / "model=loans").iterdir()) == [
        "day=2026-11-26", "day=2026-11-27", "day=2026-11-28",
    ]  # fmt: skip
    small = PredictionStore("loans", LogSettings(to=settings.to, keep_days=9, keep_size=1), store.spool)
    assert small.retain(NOON + 4 * DAY) == 3


def test_a_spool_is_for_one_store(tmp_path: Path) -> None:
    here, there = LogSettings(to="/here"), LogSettings(to="/there")
    assert spool_of(tmp_path, "a-b", here) != spool_of(tmp_path, "a-b", there)
    assert model_of(spool_of(tmp_path, "a-b", here)) == "a-b"
    assert spool_of(tmp_path, "m", LogSettings(to="/x", format=PARQUET)) != spool_of(
        tmp_path, "m", LogSettings(to="/x", format=JSONL)
    )


@pytest.fixture(scope="module")
def store_s3() -> Iterator[s3.S3]:
    with s3.a_store() as store, s3.used(store.url):
        yield store


def test_in_s3_the_same_and_dropped_there(tmp_path: Path, store_s3: s3.S3) -> None:
    settings = LogSettings(to=f"s3://{s3.BUCKET}/logs/here", keep_days=1)
    store = spooled(tmp_path, settings, block(), block(times=[NOON - 9 * DAY] * 2))
    assert store.take_up().items == 2
    names = s3.tree("logs/here")
    assert len(names) == 2
    assert all(name.startswith("model=loans/day=") for name in names)
    assert pa.parquet.read_table(pa.BufferReader(next(iter(names.values())))).num_rows == 4
    assert Table(find([settings.to])).schema.names[0] == "_time"
    assert store.retain(NOON) == 1
    assert [name.split("/")[1] for name in s3.tree("logs/here")] == ["day=2026-11-24"]


def test_a_store_that_is_away_is_asked_once_and_keeps_every_segment(tmp_path: Path, store_s3: s3.S3) -> None:
    settings = LogSettings(to=f"s3://{s3.BUCKET}/away")
    for first in range(3):
        spool = spooled(tmp_path, settings, block(first)).spool
    proxy = s3.Proxy(store_s3, lambda number, method, path: s3.SLOW_DOWN)
    try:
        place = InS3(f"{settings.to}/model=loans", s3.client(proxy.url, patience=0.3))
        done = PredictionStore("loans", settings, spool, place).take_up()
        assert (done.items, done.failed, len(segments(spool))) == (0, 1, 3)
        assert "503" in done.error
        proxy.rule = lambda number, method, path: None
        assert PredictionStore("loans", settings, spool, place).take_up().items == 3
    finally:
        proxy.close()
