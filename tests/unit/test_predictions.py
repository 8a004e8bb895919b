"""What becomes of answered requests off the loop: exact accounts, bounds, privacy, and nothing for who asked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octoserve.core.observation import DriftSettings, LogSettings, Observations, Observed
from octoserve.core.results import Ran, Result
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array, Tensor, array_from_raw
from octoserve.dataplane.call import Call
from octoserve.dataplane.predictions import AllPredictions
from octoserve.dataplane.slo import INTERNAL
from octoserve.lifecycle.lease import Handle
from octoserve.routing.key import parse_key
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.predictions import Block, Cells
from octoserve.telemetry.spool import frames, segments
from support.models import FakeModel, handle_of
from support.scale import scale

SIGNATURE = Signature(
    [TensorSpec("x", "FP32", (-1, 2)), TensorSpec("city", "BYTES", (-1,))],
    [TensorSpec("score", "FP32", (-1,))],
    True,
    features={"x": ("age", "ssn")},
)


class ByHand:
    """A thread that works when the test says so."""

    def __init__(self, name: str = "") -> None:
        self.given: list[Callable[[], None]] = []

    def give(self, work: Callable[[], None]) -> None:
        self.given.append(work)

    def give_way(self, niceness: int) -> None:
        pass

    def stop(self) -> None:
        for work in self.given:
            work()


class Rig:
    """One model's requests, run by run."""

    def __init__(self, folder: Path, signature: Signature = SIGNATURE, **settings: Any) -> None:
        self.folder = folder
        self.registry = Registry()
        self.log = LogSettings(to="there", **settings)
        observations = Observations(default=Observed(log=self.log))
        self.all = AllPredictions(observations, self.registry, folder, "w0", thread=ByHand, sleep=lambda seconds: None)
        self.handle: Handle = handle_of(FakeModel(signature))
        one = self.all.of(self.handle)
        assert one is not None
        self.one = one

    def calls(self, *rows: int, city: str = "Bonn") -> tuple[list[Call], Ran]:
        """A run of requests of so many rows."""
        total = sum(rows)
        ran = Ran("m", 1, self.handle.signature, [np.arange(total, dtype=np.float32)])
        calls, at = [], 0
        for count in rows:
            x = np.stack([np.full(count, 40.0), np.arange(at, at + count)], axis=1).astype(np.float32)
            cities = np.array([city.encode()] * count, dtype=object)
            call = Call("m", "", [Tensor("x", "FP32", (count, 2), x.tobytes()), Tensor.of("city", cities)])
            call.door, call.rows, call.nbytes, call.group = "http", count, 8 * count, ((2,), ())
            call.result = Result(ran, at, count)
            calls.append(call)
            at += count
        return calls, ran

    def answer(self, *rows: int, city: str = "Bonn") -> None:
        calls, ran = self.calls(*rows, city=city)
        self.one.answered(self.handle, calls, [0.01] * len(calls), ran)

    def counts(self) -> dict[str, int]:
        family = next(f for f in self.registry.families() if f.name == "octoserve_prediction_log_total")
        return {sample.labels[1]: int(sample.total) for sample in family.samples if sample.total}

    def exact(self) -> bool:
        counts = self.counts()
        dropped = sum(count for what, count in counts.items() if what.startswith("dropped"))
        queued = sum(len(taken.calls) for taken in self.one._queue)
        return counts.get("offered", 0) == counts.get("written", 0) + dropped + queued and self.waiting() == queued

    def waiting(self) -> int:
        family = next(f for f in self.registry.families() if f.name == "octoserve_prediction_log_waiting")
        return int(family.samples[0].total)

    def blocks(self) -> list[Block]:
        self.all.close()
        found = []
        for path in sorted(self.folder.rglob("*.spool")):
            found += [msgspec.msgpack.decode(payload, type=Block) for payload, _ in frames(path.read_bytes())]
        return found


def table(cells: Cells, rows: int) -> Array:
    assert cells.raw is not None
    return array_from_raw(cells.raw, cells.datatype, (rows, cells.width))


def test_runs_become_one_block_column_by_column(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.answer(1, 3)
    rig.answer(2)
    rig.all.drain()
    (block,) = rig.blocks()
    assert (block.model, block.version, list(block.rows)) == ("m", 1, [1, 3, 2])
    x, city, score = block.cells
    assert x.names == ("age", "ssn")
    assert table(x, 6)[:, 1].tolist() == [0, 1, 2, 3, 0, 1]
    assert table(city, 6).ravel().tolist() == [b"Bonn"] * 6
    assert table(score, 6).ravel().tolist() == [0, 1, 2, 3, 0, 1]
    assert rig.counts() == {"offered": 3, "written": 3}


def test_what_is_excluded_is_not_in_the_spool(tmp_path: Path) -> None:
    rig = Rig(tmp_path, exclude=("ssn", "score", "_key"))
    calls, ran = rig.calls(1)
    calls[0].key = b"somebody"
    rig.one.answered(rig.handle, calls, [0.1], ran)
    rig.all.drain()
    (block,) = rig.blocks()
    assert [cells.names for cells in block.cells] == [("age",), ("city",)]
    assert list(block.keys) == [None]
    assert not any(b"somebody" in path.read_bytes() for path in segments(tmp_path / next(tmp_path.iterdir()).name))


def test_nor_is_it_as_the_key_that_a_rollout_goes_by(tmp_path: Path) -> None:
    rig = Rig(tmp_path, exclude=("city",))
    calls, ran = rig.calls(1, 1)
    for call, key in zip(calls, ("input:city", "input:x"), strict=True):
        call.key = b"Bonn"
        call.arm = SimpleNamespace(role="stable", split=SimpleNamespace(key_source=parse_key(key)))  # type: ignore[assignment]
    rig.one.answered(rig.handle, calls, [0.1, 0.1], ran)
    rig.all.drain()
    (block,) = rig.blocks()
    assert list(block.keys) == [None, b"Bonn"]


def test_only_names_what_is_recorded_and_a_wrong_name_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(tmp_path, only=("age", "adress"))
    rig.answer(1)
    rig.all.drain()
    (block,) = rig.blocks()
    assert [cells.names for cells in block.cells] == [("age",)]
    assert "there is no 'adress' in this version; it has age, city, score, ssn" in caplog.text


@settings(max_examples=scale(6, 300))
@given(st.lists(st.one_of(st.integers(1, 40), st.none()), max_size=40))
def test_accounts_are_exact_whatever_comes_and_whenever_it_is_drained(steps: list[int | None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder), queue_rows=60, queue_size=600, spool_size=4096, rotate_size=4096)
        for step in steps:
            if step is None:
                rig.all.drain()
            else:
                rig.answer(*([1] * (step % 5) or [step]), city="x" * step)
            assert rig.exact()
            assert rig.one._added_rows - rig.one._gone_rows <= 60
        rig.all.close()
        assert rig.waiting() == 0
        assert rig.exact()


def test_a_full_queue_drops_the_newest(tmp_path: Path) -> None:
    rig = Rig(tmp_path, queue_rows=3)
    for _ in range(5):
        rig.answer(1)
    assert rig.counts() == {"offered": 5, "dropped_queue_rows": 2}
    rig.all.drain()
    rig.answer(1)
    assert rig.waiting() == 1, "there is room again"
    by_size = Rig(tmp_path / "b", queue_size=30)
    by_size.answer(1)
    by_size.answer(3)
    assert by_size.counts() == {"offered": 2, "dropped_queue_bytes": 1}


def test_a_sample_is_drawn_request_by_request(tmp_path: Path) -> None:
    rig = Rig(tmp_path, sample=0.1)
    for _ in range(500):
        rig.answer(1, 1, 1, 1)
    rig.all.drain()
    assert 120 < rig.counts()["written"] < 290
    assert rig.exact()
    for block in rig.blocks():
        assert (
            table(block.cells[0], len(block.rows))[:, 1].tolist()
            == table(block.cells[2], len(block.rows)).ravel().tolist()
        )


def test_what_the_process_asks_itself_is_not_recorded(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    calls, ran = rig.calls(1, 1)
    calls[0].door = INTERNAL
    rig.one.answered(rig.handle, calls, [0.1, 0.1], ran)
    rig.all.drain()
    (block,) = rig.blocks()
    assert list(block.rows) == [1]
    assert table(block.cells[0], 1)[0, 1] == 1


def test_a_request_without_an_answer_has_its_inputs_and_why(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (call,), _ = rig.calls(2)
    rig.one.failed(rig.handle, call, 0.5, "deadline")
    rig.answer(1)
    rig.all.drain()
    failed, answered = rig.blocks()
    assert list(failed.statuses) == ["deadline"]
    assert [(cells.names, cells.raw is None) for cells in failed.cells] == [
        (("age", "ssn"), False),
        (("city",), False),
        (("score",), True),
    ]
    assert list(answered.statuses) == ["ok"]


def test_texts_are_cut_at_whole_characters_and_counted(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_record=256)
    rig.answer(1, city="ö" * 400)
    rig.answer(1)
    rig.all.drain()
    (block,) = rig.blocks()
    long, short = (value.decode() for value in table(block.cells[1], 2).ravel().tolist())
    assert set(long) == {"ö"}
    assert 200 <= len(long.encode()) <= 256
    assert short == "Bonn"
    assert list(block.cut) == ["city", ""]
    cut = next(f for f in rig.registry.families() if f.name == "octoserve_prediction_log_cut_total")
    assert cut.samples[0].total == 1


def test_a_tensor_that_no_record_can_hold_is_left_out(tmp_path: Path) -> None:
    wide = Signature([TensorSpec("image", "FP32", (-1, 100))], [TensorSpec("score", "FP32", (-1,))], True)
    rig = Rig(tmp_path, wide, max_record=256)
    ran = Ran("m", 1, wide, [np.zeros(1, np.float32)])
    call = Call("m", "", [Tensor("image", "FP32", (1, 100), bytes(400))])
    call.door, call.rows, call.nbytes, call.group, call.result = "http", 1, 400, ((100,),), Result(ran)
    rig.one.answered(rig.handle, [call], [0.1], ran)
    rig.all.drain()
    (block,) = rig.blocks()
    assert list(block.cut) == ["image"]
    assert [cells.raw is None for cells in block.cells] == [True, False]


def test_a_run_too_large_for_a_segment_goes_in_parts_and_one_request_is_dropped(tmp_path: Path) -> None:
    rig = Rig(tmp_path, rotate_size=65_536, spool_size=1 << 20)
    rig.answer(2000, 2000, 2000, 2000)
    rig.answer(10_000)
    rig.all.drain()
    assert rig.counts() == {"offered": 5, "written": 4, "dropped_too_large": 1}
    assert sorted(row for block in rig.blocks() for row in block.rows) == [2000] * 4


def test_a_disk_that_fails_costs_records_and_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from octoserve.telemetry import spool

    rig = Rig(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(spool.os, "writev", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        rig.answer(1)
        rig.all.drain()
    assert rig.counts() == {"offered": 1, "dropped_spool_error": 1}
    broken = Rig(tmp_path / "b")
    calls, ran = broken.calls(1)
    calls[0].result = None
    broken.one.answered(broken.handle, calls, [0.1], ran)  # never raises
    assert broken.counts() == {"offered": 1, "dropped_failed": 1}
    assert broken.exact()


def test_no_log_for_a_model_that_has_none(tmp_path: Path) -> None:
    observations = Observations(default=Observed(log=LogSettings(to="there")), models={"m": Observed()})
    every = AllPredictions(observations, Registry(), tmp_path, "w0", thread=ByHand)
    assert every.of(handle_of(FakeModel())) is None
    only_drift = Observations(default=Observed(drift=DriftSettings()))
    registry = Registry()
    watched = AllPredictions(only_drift, registry, tmp_path / "none", "w0", thread=ByHand).of(handle_of(FakeModel()))
    assert watched is not None
    assert not (tmp_path / "none").exists()
    assert not [family for family in registry.families() if family.name.startswith("octoserve_prediction_log")]
