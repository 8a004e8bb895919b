"""Who calls: known before a handler does anything, and asked again for each message of a stream."""

from __future__ import annotations

from collections.abc import Callable

from octoserve.core.errors import OctoserveError
from octoserve.patterns.online.grpc.door import fail
from octoserve.patterns.online.grpc.transport import GrpcCall, StreamHandler, UnaryHandler
from octoserve.security.access import Access
from octoserve.security.caller import SEE, Caller


class CallGuard:
    """Knows who calls before a handler does. refused: counts an error."""

    def __init__(self, access: Access, refused: Callable[[OctoserveError], None]) -> None:
        self._access = access
        self._refused = refused

    def know(self, call: GrpcCall) -> Caller:
        """Who calls, as things stand now. Raises Unauthenticated, Unavailable."""
        call.caller = caller = self._access.caller(call.metadata)
        return caller

    def unary(self, handler: UnaryHandler) -> UnaryHandler:
        """The handler, for callers who are known."""

        def handle(call: GrpcCall, data: bytes) -> None:
            if self.lets_in(call):
                handler(call, data)

        return handle

    def stream(self, handler: StreamHandler) -> StreamHandler:
        """Likewise."""

        def handle(call: GrpcCall) -> None:
            if self.lets_in(call):
                handler(call)

        return handle

    def lets_in(self, call: GrpcCall, right: str = SEE, model: str = "") -> bool:
        """Whether the caller is known and may; if not, the call has ended with the error."""
        try:
            caller = self.know(call)
            if model or right:
                caller.check(right, model)
        except OctoserveError as error:
            self._refused(error)
            fail(call, error)
            return False
        return True
