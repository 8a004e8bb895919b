"""What the rollout API shows, as plain values: docs/rollout-api.md is its contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from octoserve.control.rollout.machine import allowed, deadline_of, person_wanted, waiting_for
from octoserve.control.rollout.values import Phase, Rollout
from octoserve.control.rollout.view import View
from octoserve.core.evidence import ALL, ArmEvidence, PairEvidence, seconds_of_bucket
from octoserve.routing.plan import BUCKETS

if TYPE_CHECKING:
    from octoserve.patterns.online.supervisor.rollout_facts import Look
    from octoserve.patterns.online.supervisor.rollouts import Rollouts


def statuses(rollouts: Rollouts, models: Mapping[str, Any], acknowledged: bool) -> dict[str, Any]:
    """Every endpoint's Status. models: `admin_views.models_view`."""
    return {name: status(rollouts, name, model, acknowledged) for name, model in models.items()}


def status(rollouts: Rollouts, endpoint: str, model: Mapping[str, Any], acknowledged: bool) -> dict[str, Any]:
    """One endpoint's Status."""
    known = rollouts.endpoints.get(endpoint)
    routes = model["routes"]
    rollout = rollouts.live.get(endpoint) or rollouts.last.get(endpoint)
    return {
        "endpoint": endpoint,
        "stable": rollouts.trusted(endpoint) if routes or known is not None else None,
        "routes": [route for route in routes if route["share"]],
        "generation": model["generation"],
        "acknowledged": acknowledged,
        "refused": list(known.refused) if known is not None else [],
        "on_new_version": rollouts.section(endpoint).on_new_version,
        "replicas": rollouts.replicas.view(rollout),
        "rollout": None if rollout is None else rollout_view(rollout, rollouts.looks.get(rollout.id), rollouts.now()),
    }


def rollout_view(rollout: Rollout, look: Look | None, now: float) -> dict[str, Any]:
    """A rollout as people want to see it."""
    view = look.view if look is not None else View(now=now)
    stratum = look.stratum if look is not None else None
    arms = stratum.arms if stratum is not None else {}
    pairs = stratum.pairs.get(ALL) if stratum is not None else None
    verdicts = look.verdicts if look is not None and look.verdicts else rollout.verdicts
    ended = rollout.phase is Phase.ENDED
    return {
        "id": rollout.id,
        "strategy": rollout.course.strategy,
        "backend": rollout.course.backend,
        "stable": rollout.stable,
        "candidate": rollout.candidate,
        "phase": str(rollout.phase),
        "result": str(rollout.result),
        "reason": rollout.reason,
        "paused": rollout.paused,
        "step": rollout.step,
        "steps": [
            {
                "weight": step.weight / BUCKETS,
                "mirror": step.mirror / BUCKETS,
                "samples": step.samples,
                "pause": step.pause,
                "approval": step.approval,
                "state": _state(rollout, index),
            }
            for index, step in enumerate(rollout.course.steps)
        ],
        "started": rollout.started,
        "entered": rollout.entered,
        "settled": rollout.settled,
        "deadline": deadline_of(rollout),
        "now": now,
        "waiting_for": waiting_for(rollout, view),
        "person": person_wanted(rollout, view),
        "promotes": rollout.course.promotes,
        "on_deadline": rollout.course.on_deadline,
        "samples": {"have": view.samples, "want": rollout.now.samples},
        "verdicts": [msgspec.to_builtins(verdict) for verdict in verdicts],
        "arms": {role: _arm(segments[ALL]) for role, segments in arms.items() if ALL in segments},
        "pairs": msgspec.to_builtins(pairs or PairEvidence()),
        "actions": [] if ended else [str(command) for command in allowed(rollout)],
    }


def _state(rollout: Rollout, index: int) -> str:
    """done, now or next."""
    if rollout.phase in (Phase.WAITING, Phase.PREPARING):
        return "next"
    if index != rollout.step:
        return "done" if index < rollout.step else "next"
    past = rollout.phase in (Phase.PROMOTING, Phase.RETAINING) or rollout.result in ("promoted", "observed")
    return "done" if past else "now"


def _arm(evidence: ArmEvidence) -> dict[str, Any]:
    return {
        "assigned": evidence.assigned,
        "attempts": evidence.attempts,
        "failures": evidence.failures,
        "p50": _quantile(evidence, 0.5),
        "p99": _quantile(evidence, 0.99),
    }


def _quantile(evidence: ArmEvidence, q: float) -> float | None:
    if not evidence.latency:
        return None
    buckets = sorted(evidence.latency)
    reached = np.cumsum([evidence.latency[b] for b in buckets])
    return seconds_of_bucket(buckets[int(np.searchsorted(reached, q * reached[-1]))])


def summary(rollout: Rollout) -> dict[str, Any]:
    """One line of an endpoint's history."""
    ended = rollout.entered if rollout.phase is Phase.ENDED else None
    return {
        "id": rollout.id,
        "strategy": rollout.course.strategy,
        "stable": rollout.stable,
        "candidate": rollout.candidate,
        "phase": str(rollout.phase),
        "result": str(rollout.result),
        "reason": rollout.reason,
        "started": rollout.started,
        "ended": ended,
    }
