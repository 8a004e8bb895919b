"""What the admin API shows, as plain values."""

from __future__ import annotations

from typing import Any

import msgspec

from octoserve.core.errors import NotFound
from octoserve.patterns.online.supervisor.control_room import ControlRoom
from octoserve.patterns.online.supervisor.fleet import Fleet
from octoserve.routing.plan import BUCKETS, Arm


def models_view(room: ControlRoom) -> dict[str, Any]:
    """Every model: what answers, its labels, whether it is held, and all its versions."""
    current = room.current
    listed = {(entry.model, entry.version): entry for entry in current.catalog}
    plans = {plan.endpoint: plan for plan in current.plans}
    workers = room.fleet.serving()
    view: dict[str, Any] = {}
    for model, versions in (room.scan.models if room.scan is not None else {}).items():
        plan = plans.get(model)
        labels = current.labels.get(model, {})
        rows = []
        for disk in versions:
            entry = listed.get((model, disk.version))
            reports = {m.index: (m.reports or {}).get((model, disk.version)) for m in workers}
            rows.append(
                {
                    "version": disk.version,
                    "state": entry.state if entry is not None else "LOADING",
                    "reason": entry.reason if entry is not None else disk.reason,
                    "workers": {
                        str(index): {"state": str(report.state), "reason": report.reason}
                        for index, report in reports.items()
                        if report is not None
                    },
                    "digest": disk.digest,
                    "path": disk.path,
                    "labels": sorted(label for label, version in labels.items() if version == disk.version),
                }
            )
        routes = [_route(arm) for arm in plan.arms if arm.hi > arm.lo or len(plan.arms) > 1] if plan else []
        generation = plan.generation if plan is not None else 0
        view[model] = {
            "routes": routes,
            "generation": generation,
            "labels": labels,
            "held": model in room.holds,
            "versions": rows,
        }
    return view


def plan_of(room: ControlRoom, endpoint: str) -> bytes:
    """The endpoint's route plan as JSON. Raises NotFound."""
    plans = room.current.plans
    found = next((plan for plan in plans if plan.endpoint == endpoint), None)
    if found is None:
        there = ", ".join(plan.endpoint for plan in plans) or "nothing"
        raise NotFound(f"nothing answers for {endpoint!r}; there is {there}")
    return msgspec.json.encode(found)


def _route(arm: Arm) -> dict[str, Any]:
    return {"version": arm.version, "share": (arm.hi - arm.lo) / BUCKETS, "role": arm.role}


def workers_view(fleet: Fleet) -> list[dict[str, Any]]:
    """Every worker process."""
    restarts = {slot.index: slot.restarts for slot in fleet.slots}
    return [
        {
            "index": member.index,
            "pid": member.process.pid,
            "state": _state(member.connected, member.draining, member.generation),
            "generation": member.generation,
            "restarts": restarts.get(member.index, 0),
            "adopted": member.adopted,
        }
        for member in fleet.members()
    ]


def _state(connected: bool, draining: bool, generation: int) -> str:
    if draining:
        return "draining"
    if not connected:
        return "starting"
    return "serving" if generation else "joining"


def generation_view(room: ControlRoom) -> dict[str, Any]:
    """The generation that is desired, and who follows."""
    members = room.fleet.serving()
    return {
        "generation": room.current.generation,
        "workers": {str(m.index): m.generation for m in members},
        "took": room.fleet.plan_times.quantiles(),
        "fronts": room.fronts.view(),
        "done": bool(members) and all(m.generation >= room.current.generation for m in members),
    }
