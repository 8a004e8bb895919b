"""The spool: what is appended comes out, whatever dies; and it never outgrows its bound. Its items here are pairs."""

from __future__ import annotations

import os
import threading

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.comparison import Deviation
from octoserve.core.tensors import Tensor
from octoserve.telemetry import spool as module
from octoserve.telemetry.pairs import NOISE, Pair, RawTensor
from octoserve.telemetry.spool import MAGIC, Spool, frames, recover, segments, spooled_bytes


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def pair(i=0, size=8, **more):
    raw = RawTensor("x", "UINT8", (1, size), bytes(size))
    return Pair(endpoint="m", rollout="r1", time=1e9 + i, stable_version=1, candidate_version=2, inputs=(raw,), **more)


def read(path):
    return [msgspec.msgpack.decode(payload, type=Pair) for payload, _ in frames(path.read_bytes())]


def spool(folder, **settings):
    return Spool(folder, "w0", clock=settings.pop("clock", Clock()), **settings)


def test_a_pair_comes_out_as_it_went_in(tmp_path):
    tensor = Tensor.of("x", np.array([[1.5, 2.5]], np.float32))
    given = Pair(
        endpoint="m",
        rollout="r1",
        time=1.5,
        stable_version=1,
        candidate_version=2,
        stratum="r1/0",
        kind=NOISE,
        key=b"\xff\x00",
        segments={"country": "DE"},
        inputs=[RawTensor.of(tensor)],
        stable=[RawTensor("y", "BYTES", (1,), b"\x01\x00\x00\x00a")],
        error="timeout",
        stable_seconds=0.25,
        candidate_seconds=0.5,
        differing={"y": Deviation("missing", 1e9, 1)},
        rows=1,
        rows_differing=1,
    )
    one = spool(tmp_path)
    assert one.append(given)
    one.close()
    (path,) = segments(tmp_path)
    (got,) = read(path)
    assert msgspec.json.encode(got) == msgspec.json.encode(given)
    assert got.inputs[0].tensor().array().tolist() == [[1.5, 2.5]]
    assert got.stable[0].tensor().array().tolist() == [b"a"]


def test_a_copy_shares_nothing_with_the_request(tmp_path):
    buffer = bytearray(b"\x01\x02")
    raw = RawTensor.of(Tensor("x", "UINT8", (2,), raw=memoryview(buffer)))
    buffer[0] = 9
    assert raw.raw == b"\x01\x02"


def test_nothing_is_whole_before_it_is_rotated_and_no_empty_segment_is_made(tmp_path):
    one = spool(tmp_path)
    one.rotate()
    one.close()
    assert spooled_bytes(tmp_path) == 0
    one.append(pair())
    assert segments(tmp_path) == []
    one.rotate()
    assert len(segments(tmp_path)) == 1
    one.close()
    assert len(segments(tmp_path)) == 1


def test_rotation_by_age_with_and_without_traffic(tmp_path):
    clock = Clock()
    one = spool(tmp_path, clock=clock, segment_seconds=10)
    one.append(pair())
    clock.now += 9.9
    one.rotate_if_due()
    one.append(pair())
    assert segments(tmp_path) == []
    clock.now += 0.2
    one.append(pair())
    assert [len(read(path)) for path in segments(tmp_path)] == [2]
    clock.now += 10
    one.rotate_if_due()
    assert [len(read(path)) for path in segments(tmp_path)] == [2, 1]
    one.rotate_if_due()
    assert len(segments(tmp_path)) == 2


def test_rotation_by_size_never_outgrows_a_segment(tmp_path):
    one = spool(tmp_path, segment_bytes=5_000)
    for i in range(20):
        assert one.append(pair(i, 1_000))
    one.close()
    found = segments(tmp_path)
    assert max(path.stat().st_size for path in found) <= 5_000
    assert [p.time for path in found for p in read(path)] == [1e9 + i for i in range(20)]
    assert len(found) == 5


def test_a_pair_that_fits_no_segment_is_refused_and_the_next_one_is_not(tmp_path):
    one = spool(tmp_path, segment_bytes=5_000)
    assert not one.append(pair(0, 5_000))
    assert one.reason == "too_large"
    assert one.append(pair(1, 100))


def test_the_bound_holds_over_all_processes_and_gives_way_when_segments_go(tmp_path):
    clock = Clock()
    settings = {"clock": clock, "max_bytes": 20_000, "segment_bytes": 5_000}
    spools = [spool(tmp_path, **settings) for _ in range(3)]
    taken = 0
    for i in range(60):
        taken += spools[i % 3].append(pair(i, 1_000))
        assert spooled_bytes(tmp_path) <= 20_000
    assert taken == 16, "four segments of four pairs"
    assert {one.reason for one in spools if one.reason} == {"spool_full"}
    for one in spools:
        one.close()
    segments(tmp_path)[0].unlink()
    assert not spools[0].append(pair()), "it is not looked at again at once"
    clock.now += 1
    assert spools[0].append(pair())
    assert not spools[1].append(pair()), "the open segment counts as it may yet become"
    assert sum(len(read(path)) for path in segments(tmp_path)) == 12


def test_a_refusal_costs_no_look_at_the_folder(tmp_path, monkeypatch):
    one = spool(tmp_path, max_bytes=5_000, segment_bytes=5_000)
    while one.append(pair(0, 1_000)):
        pass
    monkeypatch.setattr(module, "spooled_bytes", lambda *_: pytest.fail("looked"))
    assert not one.append(pair())
    assert one.reason == "spool_full"


def test_a_failing_disk_refuses_and_keeps_what_was_whole(tmp_path, monkeypatch):
    clock = Clock()
    one = spool(tmp_path, clock=clock)
    assert one.append(pair(0))
    real = os.writev

    def half(fd, parts):
        return real(fd, [b"".join(parts)[:20]])

    monkeypatch.setattr(module.os, "writev", half)
    assert not one.append(pair(1))
    assert one.reason == "spool_error"
    assert "of" in one.error
    monkeypatch.undo()
    assert not one.append(pair(2))
    assert one.reason == "spool_error"
    clock.now += 1
    assert one.append(pair(3))
    one.close()
    assert recover(tmp_path) == 1
    assert sorted(p.time - 1e9 for path in segments(tmp_path) for p in read(path)) == [0, 3]


def test_a_torn_tail_is_cut_at_every_byte(tmp_path):
    one = spool(tmp_path / "whole")
    for i in range(3):
        one.append(pair(i))
    one.close()
    (path,) = segments(tmp_path / "whole")
    data = path.read_bytes()
    ends = [end for _, end in frames(data)]
    assert ends[-1] == len(data)
    torn = tmp_path / "torn"
    torn.mkdir()
    for length in range(len(data) + 1):
        (torn / "s.open").write_bytes(data[:length])
        whole = sum(end <= length for end in ends)
        assert recover(torn) == whole
        assert [p.time - 1e9 for path in segments(torn) for p in read(path)] == list(range(whole))
        assert not list(torn.glob("*.open"))
        for left in segments(torn):
            assert left.stat().st_size == ends[whole - 1]
            left.unlink()


@given(st.data())
def test_a_changed_byte_never_gives_another_pair(data):
    encoder = msgspec.msgpack.Encoder()
    payloads = [encoder.encode(pair(i)) for i in range(3)]
    head = module._HEAD.pack
    whole = MAGIC + b"".join(head(len(p), module.zlib.crc32(p)) + p for p in payloads)
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255))
    got = [payload for payload, _ in frames(bytes(changed))]
    assert got == payloads[: len(got)]
    assert len(got) < 3


def test_zeros_behind_the_last_frame_are_no_frame(tmp_path):
    one = spool(tmp_path)
    one.append(pair())
    one.close()
    (path,) = segments(tmp_path)
    path.rename(path.with_suffix(".open"))
    with open(path.with_suffix(".open"), "ab") as file:
        file.write(bytes(4096))
    assert recover(tmp_path) == 1


def test_a_living_segment_is_left_alone(tmp_path):
    one = spool(tmp_path)
    one.append(pair(0))
    assert recover(tmp_path) == 0
    assert one.append(pair(1))
    one.close()
    assert [len(read(path)) for path in segments(tmp_path)] == [2]
    assert recover(tmp_path / "nowhere") == 0


def test_a_thread_that_comes_back_does_no_harm(tmp_path):
    one = spool(tmp_path, segment_bytes=4_000)

    def work(start):
        for i in range(start, start + 200):
            assert one.append(pair(i, 200))

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 1_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one.close()
    got = sorted(p.time - 1e9 for path in segments(tmp_path) for p in read(path))
    assert got == [*range(200), *range(1_000, 1_200)]


def test_two_spools_of_one_name_never_share_a_segment(tmp_path):
    for _ in range(3):
        one = spool(tmp_path)
        one.append(pair())
        one.close()
    assert len(segments(tmp_path)) == 3
    assert oct(tmp_path.joinpath(segments(tmp_path)[0]).stat().st_mode & 0o777) == "0o600"
