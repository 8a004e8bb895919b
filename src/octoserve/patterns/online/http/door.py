"""The REST door: routes of the Open Inference Protocol V2 and Triton's extensions, and status codes.

It translates and decides nothing: predictions go to the data plane, everything else to `Service`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec

from octoserve.codecs.open_inference_json import Request, decode_request, encode_response, raw_request
from octoserve.core.doors import DOORS
from octoserve.core.errors import Forbidden, Internal, InvalidInput, NotFound, OctoserveError
from octoserve.dataplane.call import NEVER, Call
from octoserve.dataplane.slo import INTERNAL
from octoserve.patterns.online.http.coding import COMPRESS_FROM, COMPRESS_TO, Inflater, compress
from octoserve.patterns.online.http.connection import Connection
from octoserve.patterns.online.http.families import Families
from octoserve.patterns.online.http.head import Handler, Head
from octoserve.patterns.online.http.infer_head import InferHead
from octoserve.patterns.online.http.routes import (
    CACHE_HEADER,
    Answer,
    Later,
    Route,
    allow,
    get,
    method,
    open_to_all,
    respond_to,
    seen_by,
)
from octoserve.patterns.online.service import ServerMetadata, Service
from octoserve.patterns.online.settings import Limits, MultiModel
from octoserve.patterns.online.traced import handled
from octoserve.security.access import Access
from octoserve.security.caller import INFER, MANAGE, SEE
from octoserve.telemetry.metrics import Metric

log = logging.getLogger(__name__)

_MAX_MICROSECONDS = 10**15
_encode = msgspec.json.encode


class HttpCall(Call):
    """An inference request over HTTP; its answer is a response on its connection."""

    door = "http"

    def __init__(self, connection: Connection, infer: InferHead, request: Request) -> None:
        self.model = infer.model  # not by super(): once a request
        self.version = infer.version
        self.inputs = request.tensors
        if request.outputs is not None:
            self.outputs = [name for name, _ in request.outputs]
        self.connection = connection
        self.request = request
        self.infer = infer

    def header(self, name: str) -> str | None:
        """See `Call.header`."""
        return self.infer.headers.get(name)

    def caller(self) -> str:
        """See `Call.caller`."""
        return self.infer.caller

    def parameter(self, name: str) -> object:
        """See `Call.parameter`."""
        return (self.request.parameters or {}).get(name)

    def request_id(self) -> str:
        """See `Call.request_id`."""
        return self.request.id or super().request_id()

    def answered(self) -> None:
        """Write the response."""
        connection = self.connection
        if self.error is not None:
            respond_to(connection, self.error)
            return
        assert self.result is not None
        try:
            body, header_length = encode_response(self.result, self.request)
        except OctoserveError as error:
            self.error = error
            respond_to(connection, error)
            return
        except Exception:
            log.exception("an answer could not be encoded")
            self.error = Internal("the answer could not be encoded; the server's log has the reason")
            respond_to(connection, self.error)
            return
        accept = self.infer.accept
        if header_length is None and not (accept and len(body) >= COMPRESS_FROM) and not self.cache:
            connection.respond_json(body)
            return
        headers = "content-type: application/json"
        if header_length is not None:
            headers = f"content-type: application/octet-stream\r\ninference-header-content-length: {header_length}"
        if accept and COMPRESS_FROM <= len(body) <= COMPRESS_TO:
            body = compress(body, accept)
            headers += f"\r\ncontent-encoding: {accept}"
        if self.cache:
            headers += f"\r\n{CACHE_HEADER}: {self.cache}"
        connection.respond(200, body, headers)


class InsideCall(HttpCall):
    """The service asks itself: nobody's request."""

    door = INTERNAL


class Routes(Protocol):
    """What else the port offers below a model."""

    def find(self, head: Head, model: str, rest: list[str]) -> Route:
        """The route of a path below a model. Raises OctoserveError."""
        ...


class HttpDoor:
    """Routes of one worker's HTTP port: the `Application` of its `Http1Server`."""

    def __init__(
        self,
        service: Service,
        limits: Limits,
        cuts: Metric,
        asynchronous: Routes | None = None,
        doors: Collection[str] = DOORS,
        access: Access | None = None,
        multi_model: MultiModel | None = None,
        inside: bool = False,
    ) -> None:
        """doors: beside V2; see `ServeSettings.doors`. access: who may ask; None for all. multi_model: where SageMaker
        puts models, if it does. inside: only the service itself asks here"""
        self._call = InsideCall if inside else HttpCall
        self._access = access
        self._service = service
        self._dataplane = service.dataplane
        self._cuts = cuts
        self._asynchronous = asynchronous
        self._later = Later()
        self._inflater = Inflater(limits.max_body)
        tracer = service.dataplane.tracer
        self._infer: Handler = self._take if tracer is None else handled(tracer, self._take)
        self._families = Families(service, self._inflater, doors, multi_model)

    # --- the Application that a connection asks for ------------------------------------------------------------

    def route(self, head: Head) -> None:
        """See `connection.Application.route`."""
        try:
            head.access = self._access
            head.handler, head.binding = self._find(head)
            if self._access is not None and not head.allowed:
                raise Forbidden(f"{head.path} has not said who may ask for it, so nobody may")
        except OctoserveError as error:
            head.handler, head.binding = self._refuse, error

    def error_body(self, status: int, message: str) -> bytes:
        """The protocol's only error shape."""
        return _encode({"error": message})

    def cut(self, reason: str) -> None:
        """See `connection.Application.cut`."""
        self._cuts.counter("http", reason).add()

    # --- routes -----------------------------------------------------------------------------------------

    def _find(self, head: Head) -> Route:
        parts = [unquote(part) for part in head.path.strip("/").split("/")]
        if parts[0] != "v2":
            return self._families.find(head, parts)
        match parts[1:]:
            case []:
                allow(head)
                return get(head, lambda _: _encode(ServerMetadata()))
            case ["health", "live"]:
                open_to_all(head)
                return get(head, lambda _: b'{"live":true}')
            case ["health", "ready"]:
                open_to_all(head)
                return method(head, "GET"), self._ready
            case ["repository", "index"]:
                allow(head)
                sees = seen_by(head)
                return method(head, "POST", "GET"), lambda c, body: self._index(c, body, sees)
            case ["repository", "models", model, ("load" | "unload") as action]:
                allow(head, MANAGE, model)
                return method(head, "POST"), self._operation(action, model, head.caller.name if head.caller else "")
            case ["models", "stats"]:
                allow(head)
                sees = seen_by(head)
                return get(head, lambda _: self._statistics("", "", sees))
            case ["models", model, *rest]:
                return self._model(head, model, rest)
        raise NotFound(f"no such path: {head.path}")

    def _model(self, head: Head, model: str, rest: list[str]) -> Route:
        version = ""
        if len(rest) >= 2 and rest[0] == "versions":
            version, rest = rest[1], rest[2:]
        allow(head, INFER if rest[:1] in (["infer"], ["infer-async"]) else SEE, model)
        match rest:
            case ["infer"]:
                if head.method != "POST":
                    return method(head, "POST"), None
                infer = InferHead(model, version, head)
                infer.plain = self._infer
                return self._infer_compressed if infer.encoding else self._infer, infer
            case []:
                return get(head, lambda _: _encode(self._service.model_metadata(model, version)))
            case ["ready"]:
                return method(head, "GET"), lambda c, _: self._model_ready(c, model, version)
            case ["stats"]:
                return get(head, lambda _: self._statistics(model, version))
            case ["config"]:
                return get(head, lambda _: _encode(self._service.config(model, version)))
            case ["infer-async", *more] if not version:
                if self._asynchronous is None:
                    raise NotFound("asynchronous requests are off; `async: {models: [NAME]}` in the spec lets them in")
                return self._asynchronous.find(head, model, more)
        raise NotFound(f"no such path: {head.path}")

    def _refuse(self, connection: Connection, head: Head, _: bytes) -> None:
        """The head alone is wrong."""
        self._dataplane.refused("", "http", head.binding)
        respond_to(connection, head.binding)

    # --- inference --------------------------------------------------------------------------------------

    def _take(self, connection: Connection, head: Head, body: bytes) -> None:
        infer: InferHead = head.binding
        try:
            if infer.header_length == 0:
                _, spec = self._service.raw_input(infer.model, infer.version)
                request = raw_request(body, spec.name, spec.datatype, spec.shape)
            else:
                request = decode_request(body, infer.header_length)
            call = self._call(connection, infer, request)
            if infer.timeout is not None or request.parameters is not None:
                call.deadline = self._deadline(infer, request)
        except OctoserveError as error:
            self._refuse_call(connection, infer, error)
            return
        connection.call = call
        self._dataplane.submit(call)

    def _infer_compressed(self, connection: Connection, head: Head, body: bytes) -> None:
        self._inflater.inflate(connection, head, body, self._refuse_call)

    def _refuse_call(self, connection: Connection, infer: InferHead, error: OctoserveError) -> None:
        self._dataplane.refused(infer.model, "http", error)
        respond_to(connection, error)

    def _deadline(self, infer: InferHead, request: Request) -> float:
        """The earlier of the header's seconds and the `timeout` parameter's microseconds."""
        seconds = NEVER if infer.timeout is None else infer.timeout
        wanted = (request.parameters or {}).get("timeout")
        if wanted is not None:
            if type(wanted) is not int or not 0 <= wanted <= _MAX_MICROSECONDS:
                raise InvalidInput(f"parameter timeout: whole microseconds are wanted, from 0 to {_MAX_MICROSECONDS}")
            if wanted:  # 0 is the protocol's word for none
                seconds = min(seconds, wanted / 1e6)
        return self._dataplane.clock() + seconds

    # --- the rest ---------------------------------------------------------------------------------------

    def _ready(self, connection: Connection, _: bytes) -> None:
        ready = self._service.ready()
        connection.respond(200 if ready else 503, b'{"ready":%b}' % (b"true" if ready else b"false"))

    def _model_ready(self, connection: Connection, model: str, version: str) -> None:
        ready = self._service.model_ready(model, version)
        connection.respond(200 if ready else 503, _encode({"name": model, "ready": ready}))

    def _statistics(self, model: str, version: str, sees: Callable[[str], bool] = lambda model: True) -> bytes:
        return _encode({"model_stats": [s for s in self._service.statistics(model, version) if sees(s.name)]})

    def _index(self, connection: Connection, body: bytes, sees: Callable[[str], bool]) -> None:
        asked = _json_object(body)
        entries = self._service.index(asked.get("ready") is True)
        connection.respond_json(
            _encode(
                [
                    {"name": e.model, "version": str(e.version), "state": e.state, "reason": e.reason}
                    for e in entries
                    if sees(e.model)
                ]
            )
        )

    def _operation(self, action: str, model: str, who: str) -> Answer:
        def handle(connection: Connection, body: bytes) -> None:
            parameters = _json_object(body).get("parameters")
            if parameters is not None and not isinstance(parameters, dict):
                raise InvalidInput("parameters must be an object")
            self._later.answer(connection, operate(parameters))

        async def operate(parameters: dict[str, Any] | None) -> bytes:
            await self._service.operate(action, model, parameters, who)
            return b""

        return handle


def _json_object(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput(f"a JSON object is wanted: {error}") from None
