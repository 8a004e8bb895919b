"""The store of pairs: each pair once, whatever dies between two steps; read by parts; bounded by days and bytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter

import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest

from octoserve.control.report.readable import TEXT_BYTES, elements_of, flat, readable, row_of, text_of
from octoserve.core.errors import SettingsError
from octoserve.patterns.shadow import parquet, store
from octoserve.patterns.shadow.store import PairStore, Query
from octoserve.telemetry.pairs import NOISE
from octoserve.telemetry.spool import segments
from support.pairs import DAY, GROUPS, NOON, Killed, keys, pair, spooled, tensor


def test_pairs_go_from_the_spool_to_their_days(tmp_path):
    pairs = spooled(tmp_path, [pair(0), pair(1), pair(2, time=NOON + DAY), pair(3, rollout="r2")], [pair(4)])
    done = pairs.convert()
    assert (done.segments, done.items, done.damaged, done.failed) == (2, 5, 0, 0)
    assert segments(pairs.spool) == []
    places = Counter(str(path.parent.relative_to(pairs.folder)) for path in pairs.files())
    assert places == {
        "endpoint=m/rollout=r1/day=2026-11-24": 2,
        "endpoint=m/rollout=r1/day=2026-11-25": 1,
        "endpoint=m/rollout=r2/day=2026-11-24": 1,
    }
    assert pairs.count() == 5
    assert pairs.rollouts() == {("m", "r1"): 4, ("m", "r2"): 1}
    assert pairs.convert().segments == 0


def test_a_pair_comes_back_as_it_was(tmp_path):
    given = pair(3, kind=NOISE, stratum="r1/0", stable_seconds=0.25, candidate_seconds=0.5, rows=4, rows_differing=2)
    pairs = spooled(tmp_path, [given])
    pairs.convert()
    (got,) = pairs.pairs()
    for name in ("time", "kind", "stratum", "segments", "stable_version", "candidate_version", "stable_seconds"):
        assert getattr(got, name) == getattr(given, name), name
    assert (got.key, got.candidate_seconds, got.rows, got.rows_differing) == ("k3", 0.5, 4, 2)
    assert got.differing == given.differing
    assert (got.agreed, got.worst) == (False, 5.0)
    assert json.loads(got.inputs) == {"x": [[0.1, 3.0]]}, "as few digits as tell it apart"
    assert json.loads(got.datatypes) == {"inputs": {"x": "FP32"}, "outputs": {"y": "FP32"}}
    inputs, stable, candidate = parquet.tensors_of(got.raw)
    assert [inputs, stable, candidate] == [given.inputs, given.stable, given.candidate]


def test_a_failed_candidate_neither_agrees_nor_disagrees(tmp_path):
    pairs = spooled(tmp_path, [pair(1, candidate=[], error="timeout"), pair(2)])
    pairs.convert()
    failed, fine = pairs.summaries()
    assert (failed.error, failed.agreed, failed.worst) == ("timeout", None, None)
    assert (fine.error, fine.agreed, fine.worst) == ("", True, 0.0)
    assert keys(pairs, Query(agreed=False)) == {}
    assert keys(pairs, Query(agreed=True)) == {"k2": 1}


def digests(pairs):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in pairs.files()}


def test_the_same_segment_gives_the_same_file(tmp_path):
    pairs = spooled(tmp_path, GROUPS[0])
    (segment,) = segments(pairs.spool)
    data = segment.read_bytes()
    pairs.convert()
    before = digests(pairs)
    segment.write_bytes(data)
    pairs.convert()
    assert digests(pairs) == before
    assert pairs.count() == 3


def test_no_reader_sees_what_is_not_published(tmp_path, monkeypatch):
    pairs = spooled(tmp_path, GROUPS[0])
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            pairs.convert()
    assert list(pairs.folder.rglob("*.part"))
    assert pairs.files() == []
    assert pyarrow.dataset.dataset(pairs.folder).files == []
    assert list(pairs.folder.rglob("*.parquet")) == []


def test_rows_are_counted_before_anything_is_published(tmp_path, monkeypatch):
    pairs = spooled(tmp_path, GROUPS[1])
    with monkeypatch.context() as patch:
        patch.setattr(parquet, "count", lambda path: 1)
        done = pairs.convert()
    assert (done.failed, done.items) == (1, 0)
    assert "1 of 2 rows" in done.error
    assert pairs.files() == []
    assert pairs.convert().items == 2


def test_one_bad_segment_holds_up_no_other(tmp_path, monkeypatch):
    pairs = spooled(tmp_path, [pair(0)], [pair(1)], [pair(2)])
    real = parquet.write

    def write(path, some):
        if some[0].key == b"k1":
            raise OSError(28, "No space left on device")
        return real(path, some)

    with monkeypatch.context() as patch:
        patch.setattr(parquet, "write", write)
        done = pairs.convert()
    assert (done.segments, done.failed) == (2, 1)
    assert "No space left" in done.error
    assert pairs.convert().items == 1
    assert keys(pairs) == {"k0": 1, "k1": 1, "k2": 1}


def test_a_damaged_segment_gives_what_is_whole_and_is_put_aside(tmp_path):
    pairs = spooled(tmp_path, [pair(0), pair(1), pair(2)])
    (segment,) = segments(pairs.spool)
    data = bytearray(segment.read_bytes())
    data[-3] ^= 1
    segment.write_bytes(data)
    done = pairs.convert()
    assert (done.items, done.damaged) == (2, 1)
    assert segments(pairs.spool) == []
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == [segment.name]
    pairs.retain(days=1, max_bytes=1 << 30, now=segment_time(tmp_path) + 3 * DAY)
    assert list((tmp_path / "damaged").iterdir()) == []


def segment_time(folder):
    return next((folder / "damaged").iterdir()).stat().st_mtime


def test_the_segment_of_a_dead_worker_is_converted_too(tmp_path):
    pairs = spooled(tmp_path, [pair(0), pair(1)])
    (segment,) = segments(pairs.spool)
    data = segment.read_bytes()
    segment.with_suffix(".open").write_bytes(data[:-1])
    segment.unlink()
    assert pairs.convert().items == 1


def test_filters(tmp_path):
    pairs = spooled(tmp_path, [pair(i) for i in range(6)], [pair(9, endpoint="other"), pair(8, kind=NOISE)])
    pairs.convert()
    assert set(keys(pairs, Query(endpoint="m"))) == {"k0", "k1", "k2", "k3", "k4", "k5", "k8"}
    assert set(keys(pairs, Query(kind=NOISE))) == {"k8"}
    assert set(keys(pairs, Query(endpoint="m", kind="shadow", agreed=False))) == {"k0", "k3"}
    assert set(keys(pairs, Query(segments={"country": "DE"}))) == {"k1", "k3", "k5", "k9"}
    assert set(keys(pairs, Query(since=NOON + 2, until=NOON + 4))) == {"k2", "k3"}
    assert keys(pairs, Query(since=NOON + DAY)) == {}
    assert keys(pairs, Query(endpoint="nobody")) == {}


def test_names_are_themselves_in_paths(tmp_path):
    names = ["a*", "a[b]", "ab", "50%/x", "é=1", "", "n" * 200, "ж" * 200]
    pairs = spooled(tmp_path, [pair(i, endpoint="e" + name, rollout=name) for i, name in enumerate(names)])
    pairs.convert()
    for i, name in enumerate(names):
        assert keys(pairs, Query(endpoint="e" + name)) == {f"k{i}": 1}
        assert keys(pairs, Query(rollout=name)) == {f"k{i}": 1}
    assert set(pairs.rollouts()) == {("e" + name, name) for name in names}


def test_keys_and_elements_that_are_no_text(tmp_path):
    blob = np.array([b"\xff\x00", "né".encode()], dtype=object)
    pairs = spooled(tmp_path, [pair(0, key=b"\xff", inputs=[tensor("b", blob)]), pair(1, key=None)])
    pairs.convert()
    one, none = pairs.pairs()
    assert one.key == "base64:/w=="
    assert none.key is None
    assert json.loads(one.inputs) == {"b": [{"base64": "/wA="}, "né"]}


def test_segment_columns_bear_the_segments_names(tmp_path):
    odd = {"user-agent": "a", "user_agent": "b"}
    pairs = spooled(tmp_path, [pair(0, segments=odd), pair(1, segments={})])
    pairs.convert()
    (path,) = pairs.files()
    assert {"segment_user_agent", "segment_user_agent_2"} <= set(pyarrow.parquet.read_schema(path).names)
    assert [summary.segments for summary in pairs.summaries()] == [odd, {}]
    assert set(keys(pairs, Query(segments={"user-agent": "a"}))) == {"k0"}


def test_other_tools_read_it_as_one_partitioned_table(tmp_path):
    pairs = spooled(tmp_path, [pair(i) for i in range(6)], [pair(7, time=NOON + DAY)])
    pairs.convert()
    table = pyarrow.dataset.dataset(pairs.folder / "endpoint=m", partitioning="hive").to_table(
        filter=pyarrow.dataset.field("day") == "2026-11-24", columns=["day", "segment_country", "agreed", "time"]
    )
    counts = table.group_by(["segment_country", "agreed"]).aggregate([([], "count_all")]).to_pylist()
    assert {(row["segment_country"], row["agreed"]): row["count_all"] for row in counts} == {
        ("FR", False): 1,
        ("FR", True): 2,
        ("DE", False): 1,
        ("DE", True): 2,
    }


def test_retention_by_days(tmp_path):
    pairs = spooled(tmp_path, *[[pair(day, time=NOON - day * DAY), pair(day)] for day in range(5)])
    pairs.convert()
    dropped = pairs.retain(days=2, max_bytes=1 << 30, now=NOON)
    assert (dropped.files, dropped.pairs) == (2, 2)
    assert dropped.bytes > 0
    assert {path.parent.name for path in pairs.files()} == {f"day=2026-11-{day}" for day in (22, 23, 24)}
    assert not list(pairs.folder.glob("*/*/day=2026-11-21")), "empty folders go with them"
    assert pairs.retain(days=2, max_bytes=1 << 30, now=NOON) == store.Dropped()


def test_retention_by_bytes_drops_whole_days_then_the_oldest_files_of_the_newest(tmp_path):
    days = [[pair(i, time=NOON + day * DAY)] for i, day in enumerate((0, 0, 1, 2, 2, 2))]
    pairs = spooled(tmp_path, *days)
    pairs.convert()
    for age, path in enumerate(pairs.files()):
        os.utime(path, (age, age))
    sizes = [path.stat().st_size for path in pairs.files()]
    newest = [path.name for path in pairs.files()][3:]
    assert pairs.retain(days=99, max_bytes=sum(sizes), now=NOON).files == 0
    assert pairs.retain(days=99, max_bytes=sum(sizes) - 1, now=NOON).pairs == 2, "a whole day goes"
    dropped = pairs.retain(days=99, max_bytes=sum(sizes[4:]), now=NOON)
    assert (dropped.files, dropped.pairs) == (2, 2)
    assert [path.name for path in pairs.files()] == newest[1:]
    assert pairs.retain(days=99, max_bytes=0, now=NOON).files == 2
    assert pairs.count() == 0


def test_a_file_that_retention_drops_under_a_reader_is_passed_over(tmp_path):
    pairs = spooled(tmp_path, [pair(0)], [pair(1)])
    pairs.convert()
    reader = pairs.summaries()
    next(reader)
    pairs.files()[1].unlink()
    assert list(reader) == []


def test_reading_takes_a_part_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_ROWS_AT_ONCE", 10)
    pairs = spooled(tmp_path, [pair(i) for i in range(95)])
    pairs.convert()
    assert [summary.time - NOON for summary in pairs.summaries()] == list(range(95))


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(parquet.importlib, "import_module", missing)
    with pytest.raises(SettingsError, match=r"octoserve\[rollout\]"):
        PairStore(tmp_path).convert()


def test_an_empty_state_is_no_error(tmp_path):
    pairs = PairStore(tmp_path / "nowhere")
    assert pairs.convert().segments == 0
    assert list(pairs.summaries()) == []
    assert pairs.retain(1, 0, NOON).files == 0


def test_readable_numbers():
    assert readable(tensor("x", np.array([0.1, np.nan, np.inf, -np.inf], np.float32))) == [
        0.1,
        "NaN",
        "Infinity",
        "-Infinity",
    ]
    assert readable(tensor("x", np.array(1.5))) == 1.5
    assert readable(tensor("x", np.array([[True]]))) == [[True]]
    assert readable(tensor("x", np.array([0x3F81], np.uint16), "BF16")) == [1.0078125]
    assert readable(tensor("x", np.array([0.1], np.float16))) == [0.1]
    assert readable(tensor("x", np.zeros((0, 3)))) == []


def test_what_is_written_reads_back_to_the_same_float():
    values = np.random.default_rng(1).standard_normal(500).astype(np.float32)
    (back,) = elements_of(text_of([tensor("x", values)])).values()
    assert np.array_equal(np.array(back, np.float32), values)


def test_a_large_tensor_is_described():
    big = np.zeros((2, TEXT_BYTES), np.float32)
    described = readable(tensor("x", big))
    assert (described["datatype"], described["shape"], described["bytes"]) == ("FP32", [2, TEXT_BYTES], big.nbytes)
    assert described["sha256"] == hashlib.sha256(big.tobytes()).hexdigest()
    assert described["first"] == [0.0] * 64
    assert flat(described) == []
    texts = np.array([b"a" * TEXT_BYTES, b"\xff" * 999], dtype=object)
    first = readable(tensor("x", texts))["first"]
    assert first[0] == "a" * 256 + "..."
    assert len(first[1]["base64"]) == 259


def test_rows_and_flat():
    assert flat([[1, 2], [3, 4]]) == [1, 2, 3, 4]
    assert flat("a") == ["a"]
    assert row_of([[1], [2]], 1, 2) == [[2]]
    assert row_of([[1], [2]], 1, 3) == [[1], [2]]
    assert row_of(5, 0, 1) == 5
