"""The standard gRPC services beside ours: health (grpc.health.v1) and reflection (v1 and v1alpha)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from octoserve.codecs.protos import file_of_symbol, files, message
from octoserve.patterns.online.grpc.call_guard import CallGuard
from octoserve.patterns.online.grpc.door import SERVICE
from octoserve.patterns.online.grpc.transport import GrpcCall, StreamHandler, UnaryHandler
from octoserve.patterns.online.service import Service

_WATCH_SECONDS = 0.5
_INVALID, _NOT_FOUND, _UNIMPLEMENTED = 3, 5, 12

_HealthRequest: Any = message("grpc.health.v1.HealthCheckRequest")
_HealthResponse: Any = message("grpc.health.v1.HealthCheckResponse")


class Health:
    """Health of the whole server ("" and the inference service's name) and of each model by its name."""

    def __init__(self, service: Service, guard: CallGuard | None = None) -> None:
        """guard: asks who wants to know of a model; None where nobody has to say so"""
        self._service = service
        self._guard = guard

    def unary(self) -> dict[str, UnaryHandler]:
        """Path -> handler."""
        return {"/grpc.health.v1.Health/Check": self._check}

    def stream(self) -> dict[str, StreamHandler]:
        """Path -> handler."""
        return {"/grpc.health.v1.Health/Watch": lambda call: _Watch(self, call).start()}

    @property
    def draining(self) -> bool:
        """Whether this server leaves: nobody's health is going to change again."""
        return self._service.draining

    def status(self, name: str) -> int | None:
        """A ServingStatus; None for a name that nobody knows."""
        if name in ("", SERVICE):
            ready = self._service.ready()
        elif any(model == name for model, _ in self._service.dataplane.known):
            ready = not self.draining and self._service.model_ready(name)
        else:
            return None
        return int(_HealthResponse.SERVING if ready else _HealthResponse.NOT_SERVING)

    def lets_in(self, call: GrpcCall, name: str) -> bool:
        """Whether the caller may know: of the server everybody, of a model who has a right on it."""
        return self._guard is None or name in ("", SERVICE) or self._guard.lets_in(call, model=name)

    def _check(self, call: GrpcCall, data: bytes) -> None:
        try:
            name = _HealthRequest.FromString(data).service
        except DecodeError:
            call.finish(_INVALID, "not a HealthCheckRequest message")
            return
        if not self.lets_in(call, name):
            return
        status = self.status(name)
        if status is None:
            call.finish(_NOT_FOUND, "unknown service")
        else:
            call.reply(_HealthResponse(status=status).SerializeToString())


class _Watch:
    """Sends the status now, and again whenever it changes."""

    def __init__(self, health: Health, call: GrpcCall) -> None:
        self._health = health
        self._call = call
        self._name: str | None = None
        self._last: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._call.on_message = self._asked
        self._call.on_drain = self._end
        self._call.on_closed = self._stop

    def _asked(self, data: bytes) -> None:
        if self._name is not None:
            return
        try:
            self._name = _HealthRequest.FromString(data).service
        except DecodeError:
            self._call.finish(_INVALID, "not a HealthCheckRequest message")
            return
        if self._health.lets_in(self._call, self._name):
            self._look()

    def _look(self) -> None:
        status = self._health.status(self._name or "")
        if status is None:
            status = int(_HealthResponse.SERVICE_UNKNOWN)
        if status != self._last:
            self._last = status
            self._call.send(_HealthResponse(status=status).SerializeToString())
        if self._health.draining:
            self._call.finish()
        if not self._call.closed:
            self._timer = asyncio.get_running_loop().call_later(_WATCH_SECONDS, self._look)

    def _end(self) -> None:
        """The server drains: say so, and hold nobody up."""
        self._stop()
        if self._name is None:
            self._call.finish()
        else:
            self._look()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def reflection(paths: Iterable[str], guard: CallGuard | None = None) -> dict[str, StreamHandler]:
    """Path -> handler of both versions of server reflection; with a guard, for callers who are known.

    paths: of what else is served
    """
    own = {
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo": version for version in ("v1", "v1alpha")
    }
    served = sorted({path.split("/")[1] for path in (*paths, *own)})
    handlers: dict[str, StreamHandler] = {path: _reflect(version, served) for path, version in own.items()}
    return handlers if guard is None else {path: guard.stream(handler) for path, handler in handlers.items()}


def _reflect(version: str, served: Sequence[str]) -> Callable[[GrpcCall], None]:
    request_type = message(f"grpc.reflection.{version}.ServerReflectionRequest")
    response_type = message(f"grpc.reflection.{version}.ServerReflectionResponse")

    def handle(call: GrpcCall) -> None:
        def asked(data: bytes) -> None:
            try:
                request = request_type.FromString(data)
            except DecodeError:
                call.finish(_INVALID, "not a ServerReflectionRequest message")
                return
            response = response_type(valid_host=request.host, original_request=request)
            _describe(request, response, served)
            call.send(response.SerializeToString())

        call.on_message = asked
        call.on_half_close = call.finish

    return handle


def _describe(request: Any, response: Any, served: Sequence[str]) -> None:
    asked = request.WhichOneof("message_request")
    if asked == "list_services":
        for service in served:
            response.list_services_response.service.add(name=service)
        return
    name: str | None
    if asked == "file_by_filename":
        name = request.file_by_filename if request.file_by_filename in files() else None
    elif asked == "file_containing_symbol":
        name = file_of_symbol(request.file_containing_symbol)
    else:
        response.error_response.error_code = _UNIMPLEMENTED
        response.error_response.error_message = f"{asked} is not offered; no message has extensions"
        return
    if name is None:
        response.error_response.error_code = _NOT_FOUND
        response.error_response.error_message = "not found"
    else:
        response.file_descriptor_response.file_descriptor_proto.extend(
            files()[each].SerializeToString() for each in _with_imports(name)
        )


def _with_imports(name: str) -> list[str]:
    """A file behind all that it imports."""
    imported = [each for dependency in files()[name].dependency for each in _with_imports(dependency)]
    return list(dict.fromkeys([*imported, name]))
