"""The gRPC door: the methods of `inference.GRPCInferenceService`, and gRPC status codes.

Like the REST door it translates and decides nothing; everything but predictions is `Service`'s answer,
copied into the protocol's messages by field name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from google.protobuf.message import DecodeError

from octoserve.codecs.open_inference_grpc import Request, decode_request, encode_response
from octoserve.codecs.protos import message
from octoserve.codecs.protos.wire import field
from octoserve.core.errors import Internal, InvalidInput, NotFound, OctoserveError, Overloaded, Unavailable
from octoserve.core.tensors import Tensor
from octoserve.dataplane.call import NEVER, Call
from octoserve.dataplane.split import ArmRoute
from octoserve.patterns.online.errors import code_of
from octoserve.patterns.online.grpc.transport import MAX_STATUS_TEXT, GrpcCall, StreamHandler, UnaryHandler
from octoserve.patterns.online.service import ServerMetadata, Service
from octoserve.patterns.online.traced import begun, handled_unary, over_grpc
from octoserve.security.caller import INFER, MANAGE, SEE
from octoserve.telemetry.tracing import Tracer

if TYPE_CHECKING:
    from octoserve.patterns.online.grpc.call_guard import CallGuard

log = logging.getLogger(__name__)

Sees = Callable[[str], bool]
"""Whether a model is shown to who asks."""

SERVICE = "inference.GRPCInferenceService"

CACHE_TRAILER = "x-octoserve-cache"
MAX_STREAM_IN_FLIGHT = 64
"""Requests of one stream in the data plane at once; more wait in the stream's flow-control window."""


def fail(call: GrpcCall, error: OctoserveError) -> None:
    """End a call with an error; shed load says when to come back."""
    trailers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, Overloaded):
        trailers = (("retry-after", str(error.retry_after)),)
    call.finish(code_of(error), str(error), trailers)


def not_encoded() -> Internal:
    """Log the exception in hand; what the client is told of it."""
    log.exception("an answer could not be encoded")
    return Internal("the answer could not be encoded; the server's log has the reason")


class UnaryCall(Call):
    """A prediction whose answer is the reply to a unary call."""

    def __init__(self, grpc: GrpcCall, model: str, version: str, inputs: Sequence[Tensor]) -> None:
        self.model = model  # not by super(): once a request
        self.version = version
        self.inputs = inputs
        self.grpc = grpc

    def encode(self) -> bytes:
        """The reply, once `result` is there. Raises OctoserveError."""
        raise NotImplementedError(f"{type(self).__name__} must say what its reply is")

    def header(self, name: str) -> str | None:
        """See `Call.header`."""
        return self.grpc.metadata.get(name)

    def caller(self) -> str:
        """See `Call.caller`."""
        return "" if self.grpc.caller is None else self.grpc.caller.name

    def answered(self) -> None:
        """Reply, or fail."""
        if self.error is None:
            try:
                reply = self.encode()
                if self.cache:
                    self.grpc.send(reply)
                    self.grpc.finish(trailers=((CACHE_TRAILER, self.cache),))
                else:
                    self.grpc.reply(reply)
                return
            except OctoserveError as error:
                self.error = error
            except Exception:
                self.error = not_encoded()
        fail(self.grpc, self.error)


class UnaryInfer(UnaryCall):
    """One ModelInfer."""

    door = "grpc"

    def __init__(self, grpc: GrpcCall, request: Request) -> None:
        super().__init__(grpc, request.model, request.version, request.tensors)
        if request.outputs is not None:
            self.outputs = request.outputs
        self.request = request

    def parameter(self, name: str) -> object:
        """See `Call.parameter`."""
        return self.request.parameter(name)

    def request_id(self) -> str:
        """See `Call.request_id`."""
        return self.request.id or super().request_id()

    def encode(self) -> bytes:
        """A ModelInferResponse."""
        assert self.result is not None
        return encode_response(self.result, self.request)


class GrpcDoor:
    """Method tables of one worker's gRPC port."""

    def __init__(self, service: Service, guard: CallGuard | None = None) -> None:
        """guard: asks who calls; None where nobody has to say so"""
        self._service = service
        self._guard = guard
        self.dataplane = service.dataplane
        self._tasks: set[asyncio.Task[None]] = set()

    def unary(self) -> dict[str, UnaryHandler]:
        """Path -> handler of every unary method."""
        service = self._service
        answers: dict[str, Callable[[Any, Sees], Any]] = {
            "ServerMetadata": lambda r, sees: ServerMetadata(),
            "ModelReady": lambda r, sees: {"ready": _model_ready(service, r.name, r.version)},
            "ModelMetadata": lambda r, sees: service.model_metadata(r.name, r.version),
            "ModelConfig": lambda r, sees: {"config": service.config(r.name, r.version)},
            "ModelStatistics": lambda r, sees: {
                "model_stats": [s for s in service.statistics(r.name, r.version) if sees(s.name)]
            },
            "RepositoryIndex": lambda r, sees: {"models": _index(service, r.ready, sees)},
        }
        table = {f"/{SERVICE}/{name}": _simple(name, answer) for name, answer in answers.items()}
        tracer, path = self.dataplane.tracer, f"/{SERVICE}/ModelInfer"
        table[path] = self._infer if tracer is None else handled_unary(tracer, path, self._infer)
        table[f"/{SERVICE}/RepositoryModelLoad"] = self._operation("load", "RepositoryModelLoad")
        table[f"/{SERVICE}/RepositoryModelUnload"] = self._operation("unload", "RepositoryModelUnload")
        if self._guard is not None:
            table = {path: self._guard.unary(handler) for path, handler in table.items()}
        table[f"/{SERVICE}/ServerLive"] = _simple("ServerLive", lambda r, sees: {"live": True})
        table[f"/{SERVICE}/ServerReady"] = _simple("ServerReady", lambda r, sees: {"ready": service.ready()})
        return table

    def stream(self) -> dict[str, StreamHandler]:
        """Path -> handler of every streaming method."""
        handler: StreamHandler = lambda call: InferStream(self, call).start()  # noqa: E731
        return {f"/{SERVICE}/ModelStreamInfer": handler if self._guard is None else self._guard.stream(handler)}

    def check(self, call: GrpcCall, request: Request) -> None:
        """Whether a stream's caller may still infer: it may be open longer than a key or a token is good.

        Raises Unauthenticated, Forbidden.
        """
        if self._guard is not None:
            self._guard.know(call).check(INFER, request.model)

    def deadline(self, call: GrpcCall, request: Request) -> float:
        """The earlier of gRPC's deadline and the `timeout` parameter."""
        deadline = NEVER if call.deadline is None else call.deadline
        if request.timeout is not None:
            deadline = min(deadline, self.dataplane.clock() + request.timeout)
        return deadline

    def _infer(self, call: GrpcCall, data: bytes) -> None:
        try:
            request = decode_request(data)
            if call.caller is not None:
                call.caller.check(INFER, request.model)
        except OctoserveError as error:
            self.dataplane.refused("", "grpc", error)
            fail(call, error)
            return
        infer = UnaryInfer(call, request)
        if call.deadline is not None or request.timeout is not None:
            infer.deadline = self.deadline(call, request)
        call.on_cancel = infer.cancel
        self.dataplane.submit(infer)

    def _operation(self, action: str, name: str) -> UnaryHandler:
        request_type, response = message(f"inference.{name}Request"), message(f"inference.{name}Response")

        def handle(call: GrpcCall, data: bytes) -> None:
            try:
                came = request_type.FromString(data)
            except DecodeError:
                fail(call, InvalidInput(f"not a {name}Request message"))
                return
            if self._guard is not None and not self._guard.lets_in(call, MANAGE, came.model_name):
                return
            who = "" if call.caller is None else call.caller.name
            work = self._service.operate(action, came.model_name, dict(came.parameters), who)
            self._later(call, work, response().SerializeToString())

        return handle

    def _later(self, call: GrpcCall, work: Coroutine[Any, Any, None], reply: bytes) -> None:
        async def run() -> None:
            try:
                await work
            except OctoserveError as error:
                fail(call, error)
            except Exception:
                log.exception("an operation failed")
                fail(call, Internal("the operation failed; the server's log has the reason"))
            else:
                call.reply(reply)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _simple(name: str, answer: Callable[[Any, Sees], Any]) -> UnaryHandler:
    """A method whose answer is at hand. One whose request names a model wants a right on it."""
    request_type, response_type = message(f"inference.{name}Request"), message(f"inference.{name}Response")

    def handle(call: GrpcCall, data: bytes) -> None:
        try:
            came = request_type.FromString(data)
        except DecodeError:
            fail(call, InvalidInput(f"not a {name}Request message"))
            return
        caller, model = call.caller, getattr(came, "name", "")
        try:
            if caller is not None and model:
                caller.check(SEE, model)
            reply = response_type(**msgspec.to_builtins(answer(came, _everything if caller is None else caller.sees)))
        except OctoserveError as error:
            fail(call, error)
        else:
            call.reply(reply.SerializeToString())

    return handle


def _model_ready(service: Service, model: str, version: str) -> bool:
    """What is not there is not ready: no error, as with Triton, whose clients ask until a model has come."""
    try:
        return service.model_ready(model, version)
    except NotFound:
        return False


def _everything(model: str) -> bool:
    return True


def _index(service: Service, only_ready: bool, sees: Sees) -> list[dict[str, str]]:
    return [
        {"name": e.model, "version": str(e.version), "state": e.state, "reason": e.reason}
        for e in service.index(only_ready)
        if sees(e.model)
    ]


# --- streams -----------------------------------------------------------------------------------------

_StreamResponse: Any = message("inference.ModelStreamInferResponse")


class StreamedInfer(Call):
    """One request of a stream; answers leave in the order of the requests."""

    door = "grpc"

    def __init__(self, stream: InferStream, request: Request, version: str, deadline: float) -> None:
        super().__init__(request.model, version, request.tensors)
        self.outputs = request.outputs
        self.deadline = deadline
        self.stream = stream
        self.request = request
        self.reply: bytes | None = None

    def header(self, name: str) -> str | None:
        """See `Call.header`: the metadata that the stream was opened with."""
        return self.stream.call.metadata.get(name)

    def caller(self) -> str:
        """See `Call.caller`."""
        caller = self.stream.call.caller
        return "" if caller is None else caller.name

    def parameter(self, name: str) -> object:
        """See `Call.parameter`."""
        return self.request.parameter(name)

    def request_id(self) -> str:
        """See `Call.request_id`."""
        return self.request.id or super().request_id()

    def answered(self) -> None:
        """Keep the reply until its turn."""
        if self.error is None:
            assert self.result is not None
            try:
                self.reply = stream_reply(encode_response(self.result, self.request))
            except OctoserveError as error:
                self.error = error
            except Exception:
                self.error = not_encoded()
        if self.error is not None:
            self.reply = stream_error(self.error, self.request.id)
        self.stream.flush()


def stream_reply(response: bytes) -> bytes:
    """A ModelStreamInferResponse around a serialized ModelInferResponse."""
    return field(2, response)


def stream_error(error: OctoserveError, id: str) -> bytes:
    """A stream goes on after a request that failed: the error is a message, with the request's id."""
    reply = _StreamResponse(error_message=str(error)[:MAX_STATUS_TEXT])
    reply.infer_response.id = id
    return bytes(reply.SerializeToString())


class InferStream:
    """One ModelStreamInfer call. A model's version, or arm, is bound by the stream's first request for it."""

    def __init__(self, door: GrpcDoor, call: GrpcCall) -> None:
        self._door = door
        self.call = call
        self._pending: deque[StreamedInfer] = deque()
        self._bound: dict[tuple[str, str], tuple[str, ArmRoute | None]] = {}
        self._closing = False
        self._ending = False
        self._reason = "the server is going away; open the stream again"
        self._full = False

    def start(self) -> None:
        """Take messages from now on."""
        call = self.call
        tracer = self._door.dataplane.tracer
        call.on_message = self._receive if tracer is None else partial(self._receive_traced, tracer)
        call.on_half_close = self._half_close
        call.on_linger_over = self._end
        call.on_closed = self._cancel

    def _receive_traced(self, tracer: Tracer, data: bytes) -> None:
        """Each message of a stream is a request, and has a span if it is sampled."""
        span = begun(tracer, self.call, f"/{SERVICE}/ModelStreamInfer")
        if span is None:
            self._receive(data)
            return
        with tracer.handing_over(span, over_grpc):
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        if self._ending:
            return  # the status says that the server leaves; what has no answer may be asked of another
        door = self._door
        request = Request("", "", "", raw=True)
        try:
            request = decode_request(data)
            door.check(self.call, request)
        except OctoserveError as error:
            door.dataplane.refused("", "grpc", error)
            refused = StreamedInfer(self, request, "", NEVER)
            self._pending.append(refused)
            refused.error = error
            refused.answered()
            return
        infer = StreamedInfer(self, request, request.version, door.deadline(self.call, request))
        self._pending.append(infer)
        if len(self._pending) >= MAX_STREAM_IN_FLIGHT:
            self._full = True
            self.call.pause_reading()
        key = (request.model, request.version)
        bound = self._bound.get(key)
        if bound is not None:
            infer.version, infer.arm = bound
            if infer.arm is not None and not door.dataplane.routes_to(request.model, infer.arm.version):
                self._withdraw(infer)
                return
            if infer.arm is not None:
                infer.arm.join(infer)
        door.dataplane.submit(infer)
        if bound is None:
            self._bind(key, infer)

    def _withdraw(self, infer: StreamedInfer) -> None:
        """The stream's version was taken back: what is under way is answered, then the client opens it anew."""
        self._pending.remove(infer)
        self._reason = f"version {infer.version} of {infer.model!r} was taken back; open the stream again"
        self._ending = True
        self.flush()

    def _bind(self, key: tuple[str, str], first: StreamedInfer) -> None:
        """What comes later on this stream goes where its first request went."""
        if first.arm is not None:
            self._bound[key] = str(first.arm.version), first.arm
            return
        with contextlib.suppress(OctoserveError):  # the first one's answer says what is wrong
            self._bound[key] = str(self._door.dataplane.bind(*key).handle.ref.version), None

    def flush(self) -> None:
        """Send what is answered, in order."""
        pending = self._pending
        while pending and pending[0].reply is not None:
            self.call.send(pending.popleft().reply or b"")
        if self._full and len(pending) < MAX_STREAM_IN_FLIGHT:
            self._full = False
            asyncio.get_running_loop().call_soon(self.call.resume_reading)
        if pending:
            return
        if self._closing:
            self.call.finish()
        elif self._ending:
            fail(self.call, Unavailable(self._reason))

    def _half_close(self) -> None:
        self._closing = True
        self.flush()

    def _end(self) -> None:
        """The server leaves: answer what has come, and end."""
        self._ending = True
        self.flush()

    def _cancel(self) -> None:
        """The stream is over: nobody reads what is still under way."""
        for infer in self._pending:
            infer.cancel()
        self._pending.clear()
