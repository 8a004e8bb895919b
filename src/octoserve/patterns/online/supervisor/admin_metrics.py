"""The page of metrics: all workers' snapshots added up, and what the supervisor itself knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from octoserve.patterns.online.supervisor.plan_times import BOUNDS
from octoserve.telemetry.families import Family, Sample
from octoserve.telemetry.prometheus import CONTENT_TYPE, merge, render

if TYPE_CHECKING:
    from octoserve.patterns.online.supervisor.supervisor import Supervisor

_STATES = ("READY", "LOADING", "UNAVAILABLE")


async def page(supervisor: Supervisor) -> tuple[bytes, str]:
    """The text and its content type."""
    fleet = supervisor.fleet
    snapshots = await fleet.collect()
    own = [
        *families(supervisor),
        *supervisor.slo.families(snapshots),
        *supervisor.predictions.families(),
        *supervisor.drift.families(snapshots),
        *supervisor.consumers.families(),
        *supervisor.elsewhere.families(),
    ]
    return render(snapshots, own), CONTENT_TYPE


def fold(past: Sequence[bytes]) -> bytes:
    """Many workers that are gone as one: their counts stay, their gauges do not."""
    told = [family for snapshot in past for family in msgspec.msgpack.decode(snapshot, type=list[Family])]
    return msgspec.msgpack.encode(merge(family for family in told if family.kind != "gauge"))


def families(supervisor: Supervisor) -> list[Family]:
    """Generation, workers, restarts, and each version's state (1 for the state it is in)."""
    room, fleet = supervisor.room, supervisor.fleet
    states = tuple(
        Sample((entry.model, str(entry.version), state), float(entry.state == state))
        for entry in room.current.catalog
        for state in _STATES
    )
    times = fleet.plan_times
    serving = sum(1 for member in fleet.serving() if member.generation)
    return [
        _one("octoserve_generation", "gauge", "Generation that is desired.", room.current.generation),
        _one("octoserve_workers", "gauge", "Workers that serve.", serving),
        Family(
            "octoserve_plan_seconds", "histogram", "From a plan that is pushed to its acknowledgement by all workers.",
            (), BOUNDS, (Sample((), times.total, sum(times.counts), tuple(times.counts)),),
        ),
        _one("octoserve_worker_restarts_total", "counter", "Workers that died and were replaced.", fleet.restarts),
        Family(
            "octoserve_version_state", "gauge", "1 for the state that a version is in.",
            ("model", "version", "state"), (), states,
        ),
    ]  # fmt: skip


def _one(name: str, kind: str, help: str, value: float) -> Family:
    return Family(name, kind, help, (), (), (Sample((), float(value)),))
