"""Rollouts and audit entries for tests of what keeps them."""

from __future__ import annotations

from typing import Any

import msgspec

from octoserve.control.analysis.reading import ArmSums, Reading
from octoserve.control.analysis.verdict import Outcome, Verdict
from octoserve.control.rollout.audit import AuditEntry
from octoserve.control.rollout.values import Course, MetricCheck, Phase, RateCheck, Rollout, Step
from octoserve.core.evidence import ArmEvidence, Stratum

COURSE = Course(
    strategy="canary",
    steps=(Step(weight=100, samples=500), Step(weight=2500, approval=True)),
    checks=(RateCheck(), MetricCheck(name="sales", provider="shop", queries={"rows": "select 1"})),
    overrides={"tester": 2},
)


def a_rollout(id: str = "r1", endpoint: str = "m", **changes: Any) -> Rollout:
    """A canary of version 2 against version 1."""
    return msgspec.structs.replace(
        Rollout(id=id, endpoint=endpoint, stable=1, candidate=2, course=COURSE, started=1000.5), **changes
    )


def after(rollout: Rollout, **changes: Any) -> Rollout:
    """The next version of the record."""
    return msgspec.structs.replace(rollout, version=rollout.version + 1, **changes)


def ended(rollout: Rollout) -> Rollout:
    """The next version of the record, at its end."""
    return after(rollout, phase=Phase.ENDED)


def an_entry(record: Rollout, event: str = "advanced", /, **fields: Any) -> AuditEntry:
    """An entry with something in every field."""
    evidence = Stratum(
        endpoint=record.endpoint,
        name=record.stratum,
        arms={"candidate": {"": ArmEvidence(assigned=9, attempts=8, failures=1, latency={500: 3, 60: 4})}},
        keys={"candidate": 7, "baseline": 6},
    )
    given: dict[str, Any] = {
        "rollout": record.id,
        "endpoint": record.endpoint,
        "time": 1234.5,
        "who": "controller",
        "event": event,
        "to_phase": record.phase,
        "to_step": record.step,
        "reason": "weil es geht: ünïcode",
        "record": record,
        "evidence": evidence,
        "readings": {"sales": Reading(candidate=ArmSums(n=5, total=2.5), age=3.0)},
        "verdicts": (Verdict(check="error_rate", outcome=Outcome.HOLD, estimate=0.25, low=0.0, high=1.0),),
        "view": {"ready": True, "pending": ["approve"], "now": 1234.5},
    }
    return AuditEntry(**{**given, **fields})
