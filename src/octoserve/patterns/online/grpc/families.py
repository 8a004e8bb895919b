"""The doors beside V2's on the gRPC port. Each is imported when a call first asks for it."""

from __future__ import annotations

from collections.abc import Collection

from octoserve.codecs.protos import files
from octoserve.patterns.online.grpc.transport import GrpcCall, UnaryHandler
from octoserve.patterns.online.service import Service
from octoserve.patterns.online.traced import handled_unary


def unary(service: Service, doors: Collection[str]) -> dict[str, UnaryHandler]:
    """Path -> handler of every unary method of the doors that are on; see `ServeSettings.doors`."""
    if "tensorflow" not in doors:
        return {}
    opened: dict[str, UnaryHandler] = {}

    def handler(path: str) -> UnaryHandler:
        def handle(call: GrpcCall, data: bytes) -> None:
            if not opened:
                from octoserve.patterns.online.grpc.tensorflow_door import TensorflowDoor

                opened.update(TensorflowDoor(service).unary())
            opened[path](call, data)

        return handle

    file = files()["tensorflow_serving.proto"]
    paths = [f"/{file.package}.{offered.name}/{method.name}" for offered in file.service for method in offered.method]
    tracer = service.dataplane.tracer
    if tracer is None:
        return {path: handler(path) for path in paths}
    return {path: handled_unary(tracer, path, handler(path)) for path in paths}
