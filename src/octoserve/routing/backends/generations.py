"""The last plan of each endpoint that a backend was given: generations only grow."""

from __future__ import annotations

from collections.abc import Iterable

from octoserve.core.errors import SettingsError
from octoserve.routing.plan import RoutePlan


class Generations:
    """Endpoint -> its newest plan."""

    def __init__(self, plans: Iterable[RoutePlan] = ()) -> None:
        self.newest = {plan.endpoint: plan for plan in plans}

    def accept(self, plan: RoutePlan) -> None:
        """Take a newer plan, or the same one again. Raises SettingsError for an older one, or another one of the same
        generation: what is acknowledged by its generation must be told apart by it."""
        last = self.newest.get(plan.endpoint)
        if last is not None and plan != last and plan.generation <= last.generation:
            raise SettingsError(
                f"route plan of {plan.endpoint!r}: generation {plan.generation} came after {last.generation}; "
                "a changed plan has a higher one"
            )
        self.newest[plan.endpoint] = plan
