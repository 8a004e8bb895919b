"""kill -9 at every step of a batch job over S3: what is there in the end is what an undisturbed run gives."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from octoserve.patterns.batch.places import sink_of
from octoserve.patterns.batch.run import Wish, resume
from octoserve.patterns.batch.verify import verify
from support import s3
from support.batch import AFTER, BEFORE, BORNE, HALF, put_model, put_table, score, tools, wish
from support.s3 import BUCKET, S3, SLOW_DOWN, Proxy
from support.scale import FULL, scale

BAD = (7, 120, 499)


class Ground:
    """A job, and what comes of it if nobody disturbs it."""

    def __init__(self, folder: Path, store: S3, **settings: Any) -> None:
        self.store = store
        self.settings = settings
        self.prefix = f"kills/{settings.get('sink_format', 'parquet')}"
        self.repository = folder / "models"
        put_model(self.repository)
        put_table(folder / "data", files=1, bad=BAD)
        s3.put_folder(folder / "data", "kills/data")
        bucket = s3.client(store.url, kind=s3.CountedBucket)
        score(self.wish("undisturbed"), buckets=lambda name: bucket)
        self.steps = bucket.steps
        self.expected = self.there("undisturbed")

    def wish(self, sink: str) -> Wish:
        source, sink = f"s3://{BUCKET}/kills/data/*.parquet", f"s3://{BUCKET}/{self.prefix}/{sink}"
        return wish(self.repository, source, sink, **self.settings)  # type: ignore[arg-type]

    def there(self, sink: str) -> dict[str, bytes]:
        return s3.tree(f"{self.prefix}/{sink}")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with s3.a_store() as store, s3.used(store.url):
        yield Ground(tmp_path_factory.mktemp("s3"), store)


def test_the_ground_is_what_the_tests_take_it_for(ground: Ground) -> None:
    assert len([name for name in ground.expected if name.startswith("part-")]) >= 4
    assert ground.steps > 30


def some_points(steps: int) -> list[tuple[int, str]]:
    points = [(step, when) for step in range(1, steps + 1) for when in (BEFORE, HALF, AFTER)]
    return points if FULL else random.Random(steps).sample(points, 6)


def test_killed_at_a_step_and_resumed(ground: Ground) -> None:
    assert killed_at(some_points(ground.steps), ground) >= 4


@pytest.mark.parametrize("name", ["jsonl", *(["csv", "arrow"] if FULL else [])])
def test_killed_at_a_step_of_another_format(name: str, ground: Ground, tmp_path: Path) -> None:
    other = Ground(tmp_path, ground.store, sink_format=name)
    assert killed_at(some_points(other.steps)[: None if FULL else 2], other) >= 1


def killed_at(points: list[tuple[int, str]], ground: Ground) -> int:
    """How often it died; each time what is resumed is what nobody disturbed."""
    died = 0
    for step, when in points:
        name = f"{step}-{when}"
        asked = ground.wish(name)
        died += s3.dies(asked, ground.store.url, step, when)
        committed = sink_of(asked.sink).committed()
        if committed is not None:
            assert {part.name for part in committed.parts} <= set(ground.there(name)), "whole, by its manifest"
        if sink_of(asked.sink).has_job() or committed is not None:
            resume(asked.sink, BORNE, tools())
        else:
            score(asked)  # it died before there was a job to go on with
        assert ground.there(name) == ground.expected, f"killed {when} step {step}; nothing else is left there"
    return died


def test_killed_again_and_again(ground: Ground) -> None:
    """Each run dies a little later than the last; every one goes on from where the journal says."""
    asked = ground.wish("again")
    step = 8
    finished = 0
    while s3.dies(asked, ground.store.url, step, random.Random(step).choice([BEFORE, HALF, AFTER])):
        sink = sink_of(asked.sink)
        if sink.has_job():
            now = len(sink.state().finished)
            assert now >= finished, "what was journaled stays"
            finished = now
        step += scale(7, 1)
        assert step < 10 * ground.steps
    assert ground.there("again") == ground.expected


def test_memory_is_bounded_however_large_the_objects_are(ground: Ground, tmp_path: Path) -> None:
    """A source of many times the bytes in flight, and a store that throttles; measured in a process of its own."""
    count = scale(3_000_000, 30_000_000)
    schema = pa.schema([("id", pa.int64()), ("a", pa.float32()), ("b", pa.float32())])
    with pq.ParquetWriter(tmp_path / "large.parquet", schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, count, 250_000):
            ids = np.arange(start, start + 250_000)
            columns = [ids, (ids % 1000).astype(np.float32), (ids % 7).astype(np.float32)]
            writer.write_table(pa.table(columns, schema=schema))
    size = (tmp_path / "large.parquet").stat().st_size
    subprocess.run(
        [sys.executable, "-c", _PUT, str(tmp_path / "large.parquet")], check=True, env=_environment(ground.store.url)
    )
    proxy = Proxy(ground.store, lambda number, method, path: SLOW_DOWN if number % 7 == 0 else None)
    flags = ["--repository", str(ground.repository), "--model", "flawed", "--columns", "a,b", "--workers", "2"]
    flags += ["--bytes-in-flight", "8MB", "--split-size", "16MB", "--state-dir", str(tmp_path / "state")]
    flags += ["--source", f"s3://{BUCKET}/kills/large.parquet", "--sink", f"s3://{BUCKET}/kills/large-out"]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, *flags], capture_output=True, text=True, env=_environment(proxy.url)
        )
    finally:
        proxy.close()
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.splitlines()[-1]) << 10
    assert f"committed {count:,} rows" in done.stdout
    assert proxy.counts[SLOW_DOWN] > 3
    # The interpreter and its libraries (about 150 MB), 4 times the bytes in flight, two uploads of 24 MB and what two
    # lanes read at a time; the source is not in it.
    assert peak < 320 << 20, f"{peak >> 20} MB for a source of {size >> 20} MB"
    assert verify(f"s3://{BUCKET}/kills/large-out").differences == ()


_PUT = """
import sys
from octoserve.connectors import objects
import obstore
obstore.put(objects.bucket("scores")._store, "kills/large.parquet", open(sys.argv[1], "rb"))
"""
_MEASURED = """
import sys
from octoserve.cli.main import run
try:
    run(["batch", "run", *sys.argv[1:]])
except SystemExit as end:
    if end.code:
        raise
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def _environment(endpoint: str) -> dict[str, str]:
    import os

    return {**os.environ, **s3.variables(endpoint)}
