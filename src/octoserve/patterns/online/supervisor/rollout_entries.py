"""What the controller writes into the audit log: one entry of a transition, a look, a start, or an answer."""

from __future__ import annotations

import msgspec

from octoserve.control.rollout.audit import AuditEntry
from octoserve.control.rollout.values import Rollout
from octoserve.patterns.online.supervisor.rollout_facts import Look
from octoserve.security.caller import CONTROLLER


def entry_of(
    before: Rollout,
    after: Rollout,
    event: str,
    reason: str,
    now: float,
    look: Look | None = None,
    who: str = CONTROLLER,
) -> AuditEntry:
    """From one record to the next, the same one where nothing changed. now: wall clock; look: what was seen."""
    return AuditEntry(
        rollout=after.id,
        endpoint=after.endpoint,
        time=now,
        who=who,
        event=event,
        from_phase=str(before.phase),
        from_step=before.step,
        to_phase=str(after.phase),
        to_step=after.step,
        reason=reason,
        record=after,
        evidence=look.stratum if look is not None else None,
        readings=look.readings if look is not None else {},
        verdicts=look.verdicts if look is not None else (),
        view=msgspec.to_builtins(look.view) if look is not None else {},
    )
