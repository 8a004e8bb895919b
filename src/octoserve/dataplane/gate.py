"""What is asked of a call before a version is bound to it: its tenant's limits, its level. Made where one is set."""

from __future__ import annotations

from octoserve.core.admission import Priorities, TenantRules
from octoserve.dataplane.call import Call
from octoserve.dataplane.priorities import level_of
from octoserve.dataplane.slo import INTERNAL
from octoserve.dataplane.tenants import Tenants
from octoserve.telemetry.metrics import Registry


class Gate:
    """See the module. One of the two is given at least."""

    def __init__(self, priorities: Priorities | None, tenants: TenantRules | None, registry: Registry) -> None:
        self._priorities = priorities
        self._tenants = None if tenants is None else Tenants(tenants, registry)

    def enter(self, call: Call) -> None:
        """Set its level, and count it with its tenant. Raises InvalidInput, Overloaded.

        What the process asks itself has the default level, and no tenant.
        """
        priorities, tenants = self._priorities, self._tenants
        if call.door == INTERNAL:
            call.level = 0 if priorities is None else priorities.default
            return
        tenant = None if tenants is None else tenants.of(call)
        if priorities is not None:
            level = level_of(call, priorities.default)
            call.level = level if tenant is None else max(level, tenant.limits.priority)
        if tenant is not None:
            tenant.enter(call.arrived)
            call.tenant = tenant
