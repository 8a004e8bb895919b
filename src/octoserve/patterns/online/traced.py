"""The spans of the doors: a request's own, which the client's is above of, in the words of OpenTelemetry's conventions.

A door that traces puts `handled` around what takes a request's body; one that does not knows nothing of it.
"""

from __future__ import annotations

from urllib.parse import unquote

from octoserve.core.errors import OctoserveError
from octoserve.patterns.online.errors import code_of, status_of
from octoserve.patterns.online.grpc.transport import GrpcCall, UnaryHandler
from octoserve.patterns.online.http.connection import Connection
from octoserve.patterns.online.http.head import Handler, Head
from octoserve.patterns.online.http.infer_head import InferHead
from octoserve.telemetry.tracing import Span, Tracer

_FAULT = 500


def over_http(span: Span, error: OctoserveError | None) -> None:
    """See `tracing.Over`."""
    span.attributes["http.response.status_code"] = 200 if error is None else status_of(error)
    if error is not None:
        span.failed(error.reason, status_of(error) >= _FAULT)


def over_grpc(span: Span, error: OctoserveError | None) -> None:
    """See `tracing.Over`."""
    span.attributes["rpc.grpc.status_code"] = 0 if error is None else code_of(error)
    if error is not None:
        span.failed(error.reason, status_of(error) >= _FAULT)


def handled(tracer: Tracer, handler: Handler) -> Handler:
    """The same; of a sampled request with a span."""

    def handle(connection: Connection, head: Head, body: bytes) -> None:
        span = tracer.begin(head.headers, "")
        if span is None:
            handler(connection, head, body)
            return
        named(span, head, head.binding)
        with tracer.handing_over(span, over_http):
            handler(connection, head, body)

    return handle


def named(span: Span, head: Head, infer: InferHead) -> None:
    """What an HTTP request's head says. Its route is its path, in which the names of model and version are left open:
    they are as many as clients like."""
    route = _route(head.path, infer.model, infer.version)
    span.name = f"{head.method} {route}"
    span.attributes.update({"http.request.method": head.method, "http.route": route, "url.path": head.path})


def _route(path: str, model: str, version: str) -> str:
    parts = []
    for part in path.split("/"):
        name, colon, verb = unquote(part).partition(":")
        if model and name == model:
            part = "{model}" + colon + verb
        elif version and name == version:
            part = "{version}" + colon + verb
        parts.append(part)
    return "/".join(parts)


def handled_unary(tracer: Tracer, path: str, handler: UnaryHandler) -> UnaryHandler:
    """The same; of a sampled call with a span."""

    def handle(call: GrpcCall, data: bytes) -> None:
        span = begun(tracer, call, path)
        if span is None:
            handler(call, data)
            return
        with tracer.handing_over(span, over_grpc):
            handler(call, data)

    return handle


def begun(tracer: Tracer, call: GrpcCall, path: str) -> Span | None:
    """The span of a gRPC call, or of one message of its stream. path: /service/method."""
    span = tracer.begin(call.metadata, path[1:])
    if span is not None:
        service, _, method = path[1:].partition("/")
        span.attributes.update({"rpc.system": "grpc", "rpc.service": service, "rpc.method": method})
    return span
