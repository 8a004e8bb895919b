"""The gRPC door's streams and operations over a call that only remembers: how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from octoserve.codecs.protos import message
from octoserve.core.errors import InvalidInput, Overloaded, Unavailable
from octoserve.dataplane.call import Call
from octoserve.patterns.online.grpc.door import GrpcDoor, InferStream, stream_error
from octoserve.patterns.online.grpc.standard import Health


class RememberedCall:
    """What `GrpcCall` offers to a handler."""

    deadline: float | None = None
    on_message: Callable[[bytes], None]
    on_half_close: Callable[[], None]
    on_closed: Callable[[], None] | None = None
    on_cancel: Callable[[], None] | None = None
    on_drain: Callable[[], None]
    on_linger_over: Callable[[], None]

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.ended: tuple[int, str] | None = None

    @property
    def closed(self) -> bool:
        return self.ended is not None

    def send(self, message: bytes) -> None:
        if not self.closed:
            self.sent.append(message)

    def reply(self, message: bytes) -> None:
        self.send(message)
        self.finish()

    def finish(self, code: int = 0, text: str = "", trailers: Any = ()) -> None:
        if self.ended is None:
            self.ended = (code, text)
            if self.on_closed is not None:
                self.on_closed()


class Plane:
    tracer = None

    """A data plane that answers when it is told to."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled: list[Call] = []
        self.known = frozenset({("m", 1)})
        self.arm: Any = None
        self.routed = {2}

    def bind(self, model: str, version: str) -> Any:
        raise Unavailable("not bound")

    def submit(self, call: Call) -> None:
        call.cancel = lambda: self.cancelled.append(call)  # type: ignore[method-assign]
        call.arm = self.arm
        self.calls.append(call)

    def routes_to(self, model: str, version: int) -> bool:
        return version in self.routed

    def refused(self, *_: object) -> None:
        pass

    def fail(self, at: int) -> None:
        self.calls[at].error = InvalidInput("no")
        self.calls[at].answered()


def a_stream() -> tuple[InferStream, Any, Plane]:
    plane, call = Plane(), RememberedCall()
    door = GrpcDoor(SimpleNamespace(dataplane=plane))  # type: ignore[arg-type]
    stream = InferStream(door, call)  # type: ignore[arg-type]
    stream.start()
    return stream, call, plane


REQUEST = pb.ModelInferRequest(model_name="m").SerializeToString()


def test_a_stream_that_ends_early_lets_its_requests_go() -> None:
    _, call, plane = a_stream()
    call.on_message(REQUEST)
    call.on_message(REQUEST)
    call.finish(13, "the transport found a bad message")
    assert plane.cancelled == plane.calls


def test_an_idle_stream_is_ended_when_the_server_leaves() -> None:
    _, call, _ = a_stream()
    call.on_linger_over()
    assert call.ended is not None
    assert call.ended[0] == 14


def test_a_busy_stream_is_ended_behind_its_answers() -> None:
    _, call, plane = a_stream()
    call.on_message(REQUEST)
    call.on_linger_over()
    call.on_linger_over()
    call.on_message(REQUEST)  # too late to be taken up
    assert (len(plane.calls), call.ended) == (1, None)
    plane.fail(0)
    assert (len(call.sent), call.ended[0]) == (1, 14)


def test_a_stream_whose_version_is_taken_back_is_ended_behind_its_answers() -> None:
    _, call, plane = a_stream()
    joined: list[Call] = []
    plane.arm = SimpleNamespace(version=2, join=joined.append)
    call.on_message(REQUEST)
    call.on_message(REQUEST)
    assert [c.version for c in plane.calls] == ["", "2"]
    assert joined == [plane.calls[1]]
    plane.routed = set()
    call.on_message(REQUEST)
    assert len(plane.calls) == 2, "it is not asked of a version that was taken back"
    assert call.ended is None
    plane.fail(0)
    plane.fail(1)
    assert call.ended is not None
    code, text = call.ended
    assert code == 14
    assert "version 2 of 'm' was taken back" in text


def test_errors_in_a_stream_are_short() -> None:
    assert len(stream_error(InvalidInput("x" * 5_000_000), "7")) < 2000


# --- health ------------------------------------------------------------------------------------------------


class Answers:
    """A service that is ready or draining."""

    def __init__(self) -> None:
        self.draining = False
        self.dataplane = Plane()

    def ready(self) -> bool:
        return not self.draining

    def model_ready(self, name: str) -> bool:
        return True


def statuses(call: RememberedCall) -> list[int]:
    return [message("grpc.health.v1.HealthCheckResponse").FromString(each).status for each in call.sent]


def watching(service: Answers, act: Callable[[Any], None], name: str = "") -> tuple[RememberedCall, int]:
    """A Watch while `act` happens to it; the timers that it leaves behind."""

    async def run() -> tuple[RememberedCall, int]:
        call: Any = RememberedCall()
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []
        later = loop.call_later
        loop.call_later = lambda *a, **k: timers.append(later(*a, **k)) or timers[-1]  # type: ignore[method-assign,func-returns-value,assignment]
        Health(service).stream()["/grpc.health.v1.Health/Watch"](call)  # type: ignore[arg-type]
        call.on_message(message("grpc.health.v1.HealthCheckRequest")(service=name).SerializeToString())
        assert len(timers) == 1
        act(call)
        return call, sum(not timer.cancelled() for timer in timers)

    return asyncio.run(run())


@pytest.mark.parametrize("name", ["", "m"])
def test_a_watch_ends_when_the_server_drains(name: str) -> None:
    service = Answers()

    def drain(call: Any) -> None:
        service.draining = True
        call.on_drain()

    call, timers = watching(service, drain, name)
    assert (statuses(call), call.ended, timers) == ([1, 2], (0, ""), 0)


def test_a_watch_that_the_transport_ends_leaves_no_timer() -> None:
    call, timers = watching(Answers(), lambda call: call.finish(13, "bad second message"))
    assert (statuses(call), timers) == ([1], 0)


# --- operations --------------------------------------------------------------------------------------------


def operated(work: Coroutine[Any, Any, None]) -> RememberedCall:
    async def run() -> RememberedCall:
        service = SimpleNamespace(dataplane=Plane(), operate=lambda *_: work)
        call: Any = RememberedCall()
        handle = GrpcDoor(service).unary()["/inference.GRPCInferenceService/RepositoryModelLoad"]  # type: ignore[arg-type]
        handle(call, pb.RepositoryModelLoadRequest(model_name="m").SerializeToString())
        for _ in range(5):
            await asyncio.sleep(0)
        return call

    return asyncio.run(run())


async def failing(error: Exception) -> None:
    raise error


def test_an_operation_that_fails_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    call = operated(failing(OSError("/secret/path")))
    assert call.ended is not None
    assert call.ended[0] == 13
    assert "secret" not in call.ended[1]
    assert "/secret/path" in caplog.text
    assert operated(failing(Overloaded("later"))).ended == (8, "later")
