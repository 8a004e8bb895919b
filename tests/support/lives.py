"""One service through the lives of several supervisors, and what must hold of the history of their rollouts."""

from __future__ import annotations

import contextlib
import http.client
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from octoserve.control.rollout.audit import AuditEntry
from octoserve.control.rollout.replay import replay
from octoserve.control.rollout.store import FILE, SqliteStore
from octoserve.control.rollout.values import Phase, Rollout
from support.graphs import versioned_model
from support.rolling import Rolling, golden
from support.service import Served
from support.supervised import SERVE

QUICK: dict[str, Any] = {
    "on_new_version": "rollout",
    "min_samples": 20,
    "retain": "0.3s",
    "deadline": "30m",
    "analysis": {"error_rate": {"margin": "30%"}, "latency": {}},
}
CANARY = {
    **QUICK,
    "strategy": "canary",
    "steps": [{"weight": "20%", "samples": 20}, {"weight": "50%", "samples": 20, "approval": True}],
}

Drive = Callable[[Rolling], None]


def approving(it: Rolling) -> None:
    """A person who says yes where one is asked."""
    if "approval" in it.rollout().get("waiting_for", ""):
        it.command("approve", reason="looks well")


def put(repository: Path, version: int, content: bytes | None = None) -> None:
    """A version with golden samples, whole at once."""
    ahead = repository / "versioned" / f".{version}.tmp"
    ahead.mkdir(parents=True)
    (ahead / "model.onnx").write_bytes(versioned_model(version) if content is None else content)
    (ahead / "golden.json").write_text(golden([[1, 2], [3, 4]], version))
    ahead.rename(repository / "versioned" / str(version))


class Lives:
    """One service through the lives of several supervisors, on the same state directory and ports."""

    def __init__(self, repository: Path, folder: Path, section: dict[str, Any], workers: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.repository, self.state_dir, self.workers = repository, folder / "state", workers
        self._spec = folder / "octoserve.yaml"
        self._spec.write_text(yaml.safe_dump({"rollout": section}))
        self.past: list[Served] = []

    def start(self, what: str = SERVE, wait: bool = True) -> Rolling:
        """The next supervisor; ready, unless it is not to be waited for."""
        began = time.monotonic()
        flags = ("--spec", str(self._spec))
        service = Served(self.repository, self.state_dir, *flags, workers=self.workers, wait=False, program=what)
        self.past.append(service)
        self.began = began
        if wait:
            service.wait_ready()
        return Rolling(service)

    @property
    def now(self) -> Served:
        """The last supervisor."""
        return self.past[-1]

    def dead(self) -> bool:
        """Whether the last supervisor is gone."""
        return self.now.process.poll() is not None

    def record(self) -> Rollout | None:
        """The newest rollout, as it is on disk."""
        return on_disk(self.state_dir)

    def ended(self) -> bool:
        """Whether the newest rollout has ended, by what is on disk."""
        record = self.record()
        return record is not None and record.phase is Phase.ENDED

    def drives(self, drive: Drive) -> None:
        """Let a person do what they would, if there is somebody to ask now."""
        service = self.now
        with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
            ports = json.loads(service.ports_file.read_text())
            if ports["pid"] == service.process.pid:
                service.ports = ports
                drive(Rolling(service))


@contextlib.contextmanager
def lives(repository: Path, folder: Path, section: dict[str, Any], workers: int = 2) -> Iterator[Lives]:
    """Leaves no process; the last supervisor must end well."""
    many = Lives(repository, folder, section, workers)
    try:
        yield many
        many.now.finish()
    except BaseException:
        many.now.show()
        raise
    finally:
        for service in reversed(many.past):
            service.clean()


@contextlib.contextmanager
def opened(state_dir: Path) -> Iterator[SqliteStore]:
    """The store, beside the one who leads."""
    store = SqliteStore(state_dir)
    try:
        yield store
    finally:
        store.close()


def chronicle(state_dir: Path, endpoint: str = "versioned") -> list[AuditEntry]:
    """Every entry of the endpoint's log, having checked what must hold of any log whatever was killed."""
    with opened(state_dir) as store:
        assert store.verify(endpoint) is None
        past = list(reversed(store.history(endpoint)))
        entries = [entry for rollout in past for entry in store.audit(rollout.id)]
    assert replay(entries) == [], "the same evidence must lead to the same decisions"
    entries.sort(key=lambda entry: entry.seq)
    went_on_by_evidence(entries)
    one_at_a_time(entries)
    return entries


def went_on_by_evidence(entries: list[AuditEntry]) -> None:
    """Every advance has verdicts, and all of them PASS, unless its step asks for none; records follow one another."""
    before: dict[str, Rollout] = {}
    for entry in entries:
        record = entry.record
        assert record is not None
        last = before.get(record.id)
        before[record.id] = record
        if last is None:
            assert record.version == 0
            continue
        assert record.version - last.version in (0, 1), f"{entry.event}: a decision is missing"
        if entry.event in ("advanced", "promoting"):
            assert [v for v in entry.verdicts if v.outcome != "PASS"] == []
            assert entry.verdicts or not last.now.analysis, entry
            assert last.settled is not None
        elif entry.event != "running":
            assert record.weight <= last.weight, f"{entry.event} gave the candidate more"


def one_at_a_time(entries: list[AuditEntry]) -> None:
    """No rollout has begun before the one before had ended."""
    living: set[str] = set()
    for entry in entries:
        assert entry.record is not None
        living.add(entry.rollout)
        assert len(living) == 1, f"{living} at once"
        if entry.record.phase is Phase.ENDED:
            living.clear()


def events(entries: list[AuditEntry]) -> list[str]:
    """What was decided, in order, without the looks in between."""
    return [entry.event for entry in entries if entry.event != "look"]


def on_disk(state_dir: Path) -> Rollout | None:
    """The newest rollout as it is stored, without writing anything."""
    path = state_dir / FILE
    if not path.exists():
        return None
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
        rows = db.execute("select record from rollout order by started desc limit 1").fetchall()
    return msgspec.json.decode(rows[0][0], type=Rollout, strict=False) if rows else None
