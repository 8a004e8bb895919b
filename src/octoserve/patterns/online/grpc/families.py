"""The doors beside V2's on the gRPC port. Each is imported when a call first asks for it."""

from __future__ import annotations

from collections.abc import Collection

from octoserve.codecs.protos import files
from octoserve.patterns.online.grpc.call_guard import CallGuard
from octoserve.patterns.online.grpc.transport import GrpcCall, UnaryHandler
from octoserve.patterns.online.service import Service
from octoserve.patterns.online.traced import handled_unary


def unary(service: Service, doors: Collection[str], guard: CallGuard | None = None) -> dict[str, UnaryHandler]:
    """Path -> handler of every unary method of the doors that are on; see `ServeSettings.doors`.

    guard: asks who calls; None where nobody has to say so
    """
    if "tensorflow" not in doors:
        return {}
    opened: dict[str, UnaryHandler] = {}

    def opening(path: str) -> UnaryHandler:
        def handle(call: GrpcCall, data: bytes) -> None:
            if not opened:
                from octoserve.patterns.online.grpc.tensorflow_door import TensorflowDoor

                opened.update(TensorflowDoor(service).unary())
            opened[path](call, data)

        return handle

    file = files()["tensorflow_serving.proto"]
    paths = [f"/{file.package}.{offered.name}/{method.name}" for offered in file.service for method in offered.method]
    tracer = service.dataplane.tracer
    handlers = {path: opening(path) for path in paths}
    if tracer is not None:
        handlers = {path: handled_unary(tracer, path, handler) for path, handler in handlers.items()}
    return handlers if guard is None else {path: guard.unary(handler) for path, handler in handlers.items()}
