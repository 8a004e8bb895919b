"""Queues to test with: a source and a sink in memory, and messages and results that can be told apart."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from octoserve.connectors.queues.protocol import (
    Claim,
    DeadLetter,
    Fenced,
    Lag,
    Message,
    Move,
    Position,
    Results,
    SinkTraits,
    SourceTraits,
    Stored,
)
from octoserve.core.signature import TensorSpec

OUTPUTS = (TensorSpec("label", "INT64", (-1,)), TensorSpec("scores", "FP32", (-1, 2)))


def results(ids: Sequence[str], label: int = 1, outputs: Sequence[TensorSpec] = OUTPUTS, **columns: Any) -> Results:
    """Rows of these ids; columns by name, or made up: `label`, and scores of 0.5 and `label`."""
    rows = len(ids)
    made: dict[str, Any] = {
        "label": np.full(rows, label, np.int64),
        "scores": np.tile(np.array([0.5, label], np.float32), (rows, 1)),
    }
    made.update(columns)
    return Results(
        model="m",
        outputs=tuple(outputs),
        messages=[message(i, id=id) for i, id in enumerate(ids)],
        ids=list(ids),
        columns=[made[spec.name] for spec in outputs],
        versions=np.full(rows, 3, np.int64),
        scored_at=1_700_000_000.25,
    )


def message(offset: int, value: bytes | None = None, id: str = "", partition: str = "", **fields: Any) -> Message:
    """At that offset; its payload is `{"id": id, "x": offset}` unless given."""
    payload = {"x": float(offset), **({"id": id} if id else {})}
    return Message(
        position=Position(partition, offset),
        value=json.dumps(payload).encode() if value is None else value,
        name=f"q/{partition}/{offset}" if partition else f"q/{offset}",
        token=str(offset),
        **fields,
    )


class Grants:
    """A desk that takes everything as it comes."""

    def __init__(self, offsets: Mapping[str, int | None] | None = None) -> None:
        self.offsets = dict(offsets or {})
        self.granted_now: set[str] = set()
        self.revoked_ever: list[str] = []

    def granted(self, lanes: Sequence[str]) -> Mapping[str, int | None]:
        self.granted_now |= set(lanes)
        return {lane: self.offsets.get(lane) for lane in lanes}

    def revoked(self, lanes: Sequence[str]) -> None:
        self.granted_now -= set(lanes)
        self.revoked_ever += lanes


class MemorySource:
    """A source whose messages are in memory. `shape` is that of its traits; a log has any partitions.

    arrived: what polls give, from the left; retried, buried, settled: what was done
    """

    def __init__(self, messages: Sequence[Message] = (), shape: str = "acks", ours_for: float | None = 9.0) -> None:
        self.traits = SourceTraits(
            system="memory",
            shape=shape,
            ours_for=ours_for if shape == "acks" else None,  # type: ignore[arg-type]
        )
        self.name = "memory:q"
        self.arrived = deque(messages)
        self.settled: list[Position] = []
        self.retried: list[tuple[Position, str, int, float]] = []
        self.buried: list[DeadLetter] = []
        self.held = 0.0
        self.on_hold: Callable[[float], None] = lambda seconds: None
        self.fail_bury: list[Exception] = []
        self.closed = False
        self.desk: Any = None

    def open(self, desk: Any) -> None:
        self.desk = desk
        partitions = sorted({m.position.partition for m in self.arrived}) if self.traits.shape == "log" else []
        desk.granted(partitions)

    def poll(self, rows: int, nbytes: int, timeout: float) -> list[Message]:
        return [self.arrived.popleft() for _ in range(min(rows, len(self.arrived)))]

    def hold(self, timeout: float) -> None:
        self.held += timeout
        self.on_hold(timeout)

    def settle(self, messages: Sequence[Message]) -> None:
        self.settled += [m.position for m in messages]

    def retry(self, message: Message, id: str, attempt: int, delay: float) -> None:
        self.retried.append((message.position, id, attempt, delay))

    def bury(self, letters: Sequence[DeadLetter]) -> None:
        if self.fail_bury:
            raise self.fail_bury.pop(0)
        self.buried += letters

    def lag(self) -> list[Lag]:
        return [Lag(partition="", behind=len(self.arrived))]

    def close(self) -> None:
        self.closed = True


class MemorySink:
    """A sink in memory that keeps to its traits. `fail`: exceptions that the next calls of `store` raise."""

    def __init__(self, traits: SinkTraits | None = None) -> None:
        self.traits = traits or SinkTraits(transactional=True, idempotent=True)
        self.label = "memory"
        self.rows: dict[str, tuple[int, tuple[Any, ...]]] = {}
        self.lanes: dict[str, Claim] = {}
        self.calls: list[tuple[str, Any]] = []
        self.fail: list[Exception] = []
        self.refuse: Callable[[str], bool] = lambda id: False
        self.closed = False

    def open(self, source: str, outputs: Sequence[TensorSpec]) -> None:
        self.calls.append(("open", source))

    def claim(self, lanes: Sequence[str], seconds: float | None) -> dict[str, Claim]:
        for lane in lanes:
            before = self.lanes.get(lane, Claim(0))
            self.lanes[lane] = Claim(before.epoch + 1, before.offset)
        return {lane: self.lanes[lane] for lane in lanes}

    def store(self, results: Results, moves: Sequence[Move]) -> Stored:
        from octoserve.connectors.queues.protocol import Unwritable

        if self.fail:
            raise self.fail.pop(0)
        if any(self.refuse(id) for id in results.ids):
            raise Unwritable("the sink refuses it")
        for move in moves:
            if self.lanes[move.lane].epoch != move.epoch:
                raise Fenced(f"{move.lane} is no longer ours")
        for move in moves:
            if move.offset is not None:
                self.lanes[move.lane] = Claim(move.epoch, move.offset)
        self.calls.append(("store", tuple(results.ids)))
        written = 0
        for row, id in enumerate(results.ids):
            if id not in self.rows:
                written += 1
                values = tuple(column[row].tolist() for column in results.columns)
                self.rows[id] = (int(results.versions[row]), values)
        return Stored(written, len(results.ids) - written)

    def close(self) -> None:
        self.closed = True


class Ticking:
    """A clock that a test moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def polled(source: Any, count: int, timeout: float = 20.0, rows: int = 1000) -> list[Message]:
    """That many messages, however many polls it takes."""
    found: list[Message] = []
    end = time.monotonic() + timeout
    while len(found) < count and time.monotonic() < end:
        found += source.poll(min(rows, count - len(found)), 1 << 30, 0.2)
    assert len(found) == count, f"{len(found)} of {count} messages came"
    return found


@contextlib.contextmanager
def opened(source: Any, desk: Any = None) -> Iterator[Any]:
    """Taking part, and leaving in good order."""
    source.open(desk or Grants())
    try:
        yield source
    finally:
        source.close()


def jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A file of JSON lines."""
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def in_thread(work: Callable[[], None]) -> threading.Thread:
    """Started."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
