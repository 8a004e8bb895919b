"""What the workers' reports say together about each version. Pure."""

from __future__ import annotations

from octoserve.control.snapshot import Key, Snapshot, WorkerView
from octoserve.lifecycle.states import State, VersionRef


def ready_everywhere(snapshot: Snapshot, key: Key) -> bool:
    """Every connected worker reports it ready, and there is one."""
    return bool(snapshot.workers) and all(_ready(worker, key) for worker in snapshot.workers)


def ready_in_service(snapshot: Snapshot, key: Key) -> bool:
    """Every worker that takes traffic reports it ready; true while none does."""
    return all(_ready(worker, key) for worker in snapshot.workers if worker.generation)


def held_somewhere(snapshot: Snapshot, key: Key) -> bool:
    """Some worker has it in memory or is putting it there."""
    busy = (State.LOADING, State.WARMING, State.READY)
    return any(key in w.reports and w.reports[key].state in busy for w in snapshot.workers)


def ready_somewhere(snapshot: Snapshot, key: Key) -> bool:
    """Some worker reports it ready."""
    return any(_ready(worker, key) for worker in snapshot.workers)


def failure(snapshot: Snapshot, ref: VersionRef) -> str:
    """Why this attempt failed in some worker; empty if it failed in none."""
    for worker in snapshot.workers:
        report = worker.reports.get((ref.model, ref.version))
        if report is not None and report.state is State.FAILED and report.attempt == ref.attempt:
            return report.reason or "it failed to load"
    return ""


def settled_everywhere(snapshot: Snapshot, ref: VersionRef) -> bool:
    """Every connected worker has it ready, or has failed this attempt."""
    for worker in snapshot.workers:
        report = worker.reports.get((ref.model, ref.version))
        if report is None:
            return False
        failed = report.state is State.FAILED and report.attempt == ref.attempt
        if not failed and report.state is not State.READY:
            return False
    return bool(snapshot.workers)


def all_applied(snapshot: Snapshot) -> bool:
    """Every worker that takes traffic follows the current plans."""
    now = snapshot.current.generation
    return all(worker.generation >= now for worker in snapshot.workers if worker.generation)


def _ready(worker: WorkerView, key: Key) -> bool:
    report = worker.reports.get(key)
    return report is not None and report.state is State.READY
