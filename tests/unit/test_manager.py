"""The lifecycle manager with a fake runtime, a loader that works when told, and a loop that is turned by hand."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

from octoserve.core.errors import BrokenVersion, InvalidInput
from octoserve.core.signature import Signature, TensorSpec
from octoserve.lifecycle.manager import Manager
from octoserve.lifecycle.states import State, VersionRef
from octoserve.lifecycle.warmup import MAX_RUNS, synthetic, warm, warm_on_samples
from octoserve.repository.digest import stamp


class Loaded:
    platform = "fake"

    def __init__(self, batchable=True):
        self.signature = Signature([TensorSpec("x", "FP32", (-1, 2))], [TensorSpec("y", "FP32", (-1, 2))], batchable)
        self.closed = False
        self.rows = []

    def run(self, inputs):
        self.rows.append(inputs[0].shape[0])
        return [inputs[0]]

    def close(self):
        self.closed = True


class FakeRuntime:
    name, artifacts, distributions = "fake", ("model.fake",), ()

    def __init__(self):
        self.broken = set()
        self.loaded = []

    def load(self, folder, settings):
        if int(folder.name) in self.broken:
            raise BrokenVersion("it is broken")
        self.loaded.append(Loaded())
        return self.loaded[-1]


class Timer:
    def __init__(self, callback):
        self.callback = callback

    def cancel(self):
        self.callback = None


class FakeLoop:
    """Callbacks wait until `turn`."""

    def __init__(self):
        self.soon = []
        self.timers = []

    def call_soon(self, callback, *args):
        self.soon.append(lambda: callback(*args))

    call_soon_threadsafe = call_soon

    def call_later(self, _, callback, *args):
        self.timers.append(Timer(lambda: callback(*args)))
        return self.timers[-1]

    def turn(self):
        while self.soon:
            self.soon.pop(0)()


class House:
    def __init__(self, digest="sha256:d"):
        self.loop, self.runtime, self.work = FakeLoop(), FakeRuntime(), []
        self.ready, self.retired, self.said = [], [], []
        self.files = "as announced"
        self.manager = Manager(
            {"fake": self.runtime},
            self.loop,
            on_ready=self.ready.append,
            on_retire=self.retired.append,
            on_report=self.said.append,
            loader=self.work.append,
            digest=lambda folder: digest,
            files=lambda folder: self.files,
            warm_up=lambda loaded, rows, folder: "",
        )

    def apply(self, *versions, attempt=0):
        self.manager.apply([ref(v, attempt) for v in versions])
        return self

    def run(self, jobs=100):
        while self.work and jobs:
            self.work.pop(0)()
            self.loop.turn()
            jobs -= 1
        self.loop.turn()
        return self

    def handle(self, version):
        """What may be queued to now."""
        gone = {id(handle) for handle in self.retired}
        return next((h for h in self.ready[::-1] if h.ref.version == version and id(h) not in gone), None)

    @property
    def states(self):
        return {report.version: report.state for report in self.manager.reports()}


def ref(version, attempt=0, runtime="fake", digest="sha256:d"):
    return VersionRef("m", version, f"/r/m/{version}", digest, runtime=runtime, attempt=attempt)


def test_loads_in_order_one_at_a_time():
    house = House().apply(2, 1)
    assert house.states == {2: State.LOADING, 1: State.NEW}
    house.run(1)
    assert house.states == {2: State.READY, 1: State.LOADING}
    house.run()
    assert house.states == {2: State.READY, 1: State.READY}
    assert [h.ref.version for h in house.ready] == [2, 1]
    seen = [{r.version: r.state for r in said}[2] for said in house.said]
    assert list(dict.fromkeys(seen)) == [State.LOADING, State.WARMING, State.READY]


def test_broken_version_says_why_and_is_retried_by_attempt_only():
    house = House()
    house.runtime.broken.add(1)
    house.apply(1).run()
    (report,) = house.manager.reports()
    assert (report.state, report.reason, report.attempt) == (State.FAILED, "it is broken", 0)
    house.apply(1).run()
    assert house.states == {1: State.FAILED}
    assert not house.work
    house.runtime.broken.clear()
    house.apply(1, attempt=1).run()
    (report,) = house.manager.reports()
    assert (report.state, report.reason, report.attempt) == (State.READY, "", 1)


def test_files_changed_while_loading_are_tried_again():
    house = House()
    house.runtime.broken.add(1)
    house.apply(1)
    house.apply(1, attempt=1)
    house.run(1)
    assert house.manager.reports()[0].attempt in (0, 1)
    house.runtime.broken.clear()
    house.run()
    house.apply(1, attempt=1).run()
    assert house.states == {1: State.READY}


def test_files_that_are_swapped_between_the_digest_and_the_load_are_refused():
    house = House()
    load = house.runtime.load

    def swap(*told):
        house.files = "others"
        return load(*told)

    house.runtime.load = swap
    house.apply(1).run()
    (report,) = house.manager.reports()
    assert report.state is State.FAILED
    assert "files changed while loading" in report.reason
    assert house.runtime.loaded[0].closed


def test_stamp_sees_a_file_that_was_replaced_by_one_of_the_same_size_and_time(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"one")
    before = stamp(tmp_path)
    assert stamp(tmp_path) == before
    (tmp_path / "other").write_bytes(b"two")
    times = (tmp_path / "model.onnx").stat()
    os.utime(tmp_path / "other", ns=(times.st_atime_ns, times.st_mtime_ns))
    (tmp_path / "other").rename(tmp_path / "model.onnx")
    assert stamp(tmp_path) != before


@pytest.mark.parametrize(
    ("which", "words"), [({"digest": "sha256:x"}, "files changed"), ({"runtime": "no"}, "no runtime 'no'")]
)
def test_refusals(which, words):
    house = House()
    house.manager.apply([ref(1, **which)])
    house.run()
    assert words in house.manager.reports()[0].reason


def test_an_exception_of_any_class_fails_that_version_only():
    house = House()
    house.runtime.load = lambda folder, settings: 1 / 0
    house.apply(1).run()
    assert "ZeroDivisionError" in house.manager.reports()[0].reason


def test_omitted_version_drains_by_leases_then_unloads():
    house = House().apply(1).run()
    handle = house.handle(1)
    handle.leases += 1
    house.apply()
    house.run()
    assert house.states == {1: State.DRAINING}
    assert house.retired == [handle]
    assert house.handle(1) is None
    handle.release()
    house.run()
    assert house.states == {}
    assert handle.loaded.closed
    assert house.manager.cut_leases == 0


def test_drain_deadline_cuts_and_counts():
    house = House().apply(1).run()
    handle = house.handle(1)
    handle.leases += 2
    house.apply()
    house.loop.timers[0].callback()
    house.run()
    assert house.states == {}
    assert house.manager.cut_leases == 2
    assert not handle.loaded.closed, "a run may still be inside"
    handle.release(2)
    house.run()


def test_wanted_again_while_draining_is_loaded_anew():
    house = House().apply(1).run()
    handle = house.handle(1)
    handle.leases += 1
    house.apply()
    house.apply(1).run()
    assert house.states == {1: State.DRAINING}
    handle.release()
    house.run()
    assert house.states == {1: State.READY}
    assert house.handle(1) is not handle


def test_omitted_while_loading_is_dropped_when_loaded():
    house = House().apply(1)
    house.apply()
    house.run()
    assert house.states == {}
    assert house.runtime.loaded[0].closed
    assert house.ready == []


def test_new_settings_of_a_ready_version_change_nothing_in_memory():
    house = House().apply(1).run()
    handle = house.handle(1)
    house.apply(1, attempt=5).run()
    assert house.handle(1) is handle
    assert house.manager.reports()[0].attempt == 5


def test_warm_up_runs_one_row_then_the_largest_batch_until_stable():
    loaded = Loaded()
    ticks = iter(range(10_000))
    assert warm(loaded, 8, clock=lambda: next(ticks) * 1e-4) == ""
    assert {1, 8} <= set(loaded.rows)
    assert len(loaded.rows) <= 2 * MAX_RUNS + 10


def test_warm_up_is_bounded_in_time_and_does_not_batch_what_cannot():
    loaded = Loaded(batchable=False)
    ticks = iter(range(10_000))
    warm(loaded, 8, clock=lambda: next(ticks) * 3.0)
    assert loaded.rows == [1]


def test_a_model_that_refuses_synthetic_inputs_is_noted():
    loaded = Loaded()

    def refuse(inputs):
        raise InvalidInput("no such user")

    loaded.run = refuse
    assert "no such user" in warm(loaded, 8)


def test_a_versions_own_samples_are_run_too(tmp_path):
    loaded = Loaded()
    assert warm_on_samples(loaded, tmp_path) is None
    name, shape = loaded.signature.inputs[0].name, [3, *loaded.signature.inputs[0].shape[1:]]
    tensor = {"name": name, "datatype": "FP32", "shape": shape, "data": [0.5] * math.prod(shape)}
    (tmp_path / "golden.json").write_text(json.dumps([{"inputs": [tensor], "outputs": []}]))
    assert warm_on_samples(loaded, tmp_path) == ""
    assert loaded.rows == [3]
    (tmp_path / "warmup.json").write_text(json.dumps([{"inputs": [tensor]}, {"inputs": []}]))
    assert warm_on_samples(loaded, tmp_path).startswith("not warmed up: warmup.json, sample 2: ")
    assert loaded.rows == [3, 3]
    (tmp_path / "warmup.json").write_text("{}")
    assert "a list of" in warm_on_samples(loaded, tmp_path)


def test_a_model_that_refuses_synthetic_inputs_is_warmed_up_on_its_samples(tmp_path):
    class Picky(Loaded):
        def run(self, inputs):
            if not (inputs[0] == 7).all():
                raise InvalidInput("sevens are wanted")
            return super().run(inputs)

    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [7, 7]}
    (tmp_path / "warmup.json").write_text(json.dumps([{"inputs": [tensor]}]))
    assert "not warmed up" in warm(Picky(), 8)
    assert "not warmed up" not in warm(Picky(), 8, tmp_path)


def test_synthetic_inputs():
    assert synthetic(TensorSpec("x", "FP32", (-1, 3, -1)), 4).shape == (4, 3, 1)
    text = synthetic(TensorSpec("x", "BYTES", (-1,)))
    assert text.dtype == object
    assert text.tolist() == [b""]
    assert synthetic(TensorSpec("x", "INT64", ())).shape == ()
    assert synthetic(TensorSpec("x", "BF16", (2,))).dtype == np.uint16
