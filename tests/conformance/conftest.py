"""What the suites' backends run on."""

from support.rollout_places import new_place, place, server
from support.routing_rigs import envoy, thread

__all__ = ["envoy", "new_place", "place", "server", "thread"]
