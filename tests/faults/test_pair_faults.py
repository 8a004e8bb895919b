"""What the pairs of a shadow survive: a process that is killed, and death at any step of their conversion."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter

import msgspec
import pytest

from octoserve.telemetry.pairs import Pair
from octoserve.telemetry.spool import frames, recover, segments
from octoserve.telemetry.taking_up import PART, read_segment
from support.pairs import GROUPS, Killed, keys, spooled

DECODE = msgspec.msgpack.Decoder(Pair).decode
STEPS = ("fsync", "replace", "unlink")


class Guillotine:
    """Dies at the n-th durable step, before or after it happens."""

    def __init__(self, monkeypatch, at, after):
        self.calls = 0
        for name in STEPS:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name), at, after))

    def _wrapped(self, real, at, after):
        def step(*args, **more):
            self.calls += 1
            if self.calls == at and not after:
                raise Killed
            result = real(*args, **more)
            if self.calls == at:
                raise Killed
            return result

        return step


EVERY = Counter({f"k{i}": 1 for i in range(5)})

KILLED = """
import os, sys
from pathlib import Path
from octoserve.telemetry.pairs import Pair
from octoserve.telemetry.spool import Spool
spool = Spool(Path(sys.argv[1]), "w0")
for i in range(7):
    assert spool.append(Pair(endpoint="m", rollout="r", time=float(i), stable_version=1, candidate_version=2))
print("appended", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_loses_no_appended_pair(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout.readline() == b"appended\n"
        assert recover(tmp_path) == 0, "it lives"
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert recover(tmp_path) == 7
    (path,) = segments(tmp_path)
    read = [msgspec.msgpack.decode(payload, type=Pair) for payload, _ in frames(path.read_bytes())]
    assert [p.time for p in read] == list(range(7))
    assert recover(tmp_path) == 0


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_step_each_pair_is_there_once(tmp_path, after):
    at = 0
    while True:
        at += 1
        folder = tmp_path / str(at)
        pairs = spooled(folder, *GROUPS)
        with pytest.MonkeyPatch.context() as monkeypatch:
            guillotine = Guillotine(monkeypatch, at, after)
            try:
                pairs.convert()
            except Killed:
                pass
            if guillotine.calls < at:
                break
        seen = keys(pairs)
        assert seen <= EVERY, "never twice, also before the repair"
        in_spool = sum(
            len(read_segment(path, msgspec.msgpack.Decoder(Pair).decode)[0]) for path in segments(pairs.spool)
        )
        assert seen.total() + in_spool >= 5, "never lost"
        pairs.convert()
        assert keys(pairs) == EVERY
        assert pairs.count() == 5
        assert segments(pairs.spool) == []
        assert not list(pairs.folder.rglob(f"*{PART}"))
    assert at > 20, "the steps were counted"
