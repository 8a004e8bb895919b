"""The service that the clients' tests share; the Envoy that its backend's tests share."""

from support.examples import examples
from support.routing_rigs import envoy, thread

__all__ = ["envoy", "examples", "thread"]
