"""The routing of octoserve's own workers: a plan is pushed to all of them and is in effect when all have
acknowledged it.

Whoever owns the workers injects how: this file knows no process and no socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from octoserve.core.clock import Clock, monotonic
from octoserve.core.errors import Unavailable
from octoserve.routing.backends.draining import Sleep, wait_until_idle
from octoserve.routing.backends.generations import Generations
from octoserve.routing.backends.protocol import ArmCount, Capabilities, InForce, Observed, refuse_unless_able
from octoserve.routing.key import HEADER, INPUT, MESSAGE, PARAMETER
from octoserve.routing.plan import RoutePlan

NAME = "in-process"
CAPABILITIES = Capabilities(
    backend=NAME,
    keys=(HEADER, INPUT, PARAMETER, MESSAGE),
    baseline=True,
    overrides=100_000,
    segments=True,
    mirrors=16,
    beside_split=True,
    pairs=True,
    drains=True,
)


class InProcessBackend:
    """See `protocol.RoutingBackend`.

    publish:      hands a plan to every worker, without waiting
    acknowledged: returns when every worker routes by the plan of that generation, or a later one
    in_flight:    (endpoint, version) -> requests that hold the version, in all workers
    counts:       what was counted of each arm
    timeout:      seconds that workers get to acknowledge
    """

    def __init__(
        self,
        publish: Callable[[RoutePlan], None],
        acknowledged: Callable[[int], Awaitable[None]],
        in_flight: Callable[[str, int], int],
        counts: Callable[[], Iterable[ArmCount]] = tuple,
        timeout: float = 10.0,
        clock: Clock = monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._publish = publish
        self._acknowledged = acknowledged
        self._in_flight = in_flight
        self._counts = counts
        self._timeout = timeout
        self._clock = clock
        self._sleep = sleep
        self._plans = Generations()
        self._in_force: dict[str, InForce] = {}

    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    async def apply(self, plan: RoutePlan) -> None:
        refuse_unless_able(plan, CAPABILITIES)
        self._plans.accept(plan)
        self._publish(plan)
        try:
            async with asyncio.timeout(self._timeout):
                await self._acknowledged(plan.generation)
        except TimeoutError:
            raise Unavailable(
                f"not every worker has acknowledged generation {plan.generation} within {self._timeout:g} s"
            ) from None
        now = self._in_force.get(plan.endpoint)
        if now is None or now.generation <= plan.generation:
            arms = tuple(arm for arm in plan.arms if arm.hi > arm.lo)
            self._in_force[plan.endpoint] = InForce(plan.generation, arms)

    async def observe(self) -> Observed:
        return Observed(plans=dict(self._in_force), counts=tuple(self._counts()))

    async def drain(self, endpoint: str, version: int, deadline: float) -> int:
        async def look() -> int:
            return self._in_flight(endpoint, version)

        return await wait_until_idle(look, deadline, self._clock, self._sleep)
