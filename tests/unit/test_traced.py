"""Sampled calls in the data plane: what is recorded of them, and that no other call is touched."""

from __future__ import annotations

import pytest

from octoserve.core.errors import OctoserveError
from octoserve.dataplane.call import Call
from octoserve.dataplane.endpoint import DataPlane
from octoserve.dataplane.mirror import Copy
from octoserve.dataplane.traced import copied
from octoserve.lifecycle.lease import Handle
from octoserve.patterns.online.http.head import parse_head
from octoserve.patterns.online.http.infer_head import InferHead
from octoserve.telemetry.metrics import Registry
from octoserve.telemetry.tracing import Span, Tracer, outgoing
from support.loops import InlineExecutor, drive, loop, ticks
from support.models import Asked, FakeModel, floats, handle_of, publish
from support.spans import Spans, tracer


class Setting:
    """A data plane that traces, with version 1 of `m`."""

    def __init__(self, model: FakeModel | None = None) -> None:
        self.tracer: Tracer
        self.spans: Spans
        self.tracer, self.spans = tracer()
        self.handle: Handle = handle_of(model or FakeModel(), version=1)
        self.plane = DataPlane(Registry(), loop(), InlineExecutor(), tracer=self.tracer)
        publish(self.plane, self.handle)

    def submit(self, call: Call, sampled: bool = True) -> Span | None:
        """As a door does."""
        span = self.tracer.begin({}, "request") if sampled else None
        if span is None:
            self.plane.submit(call)
            return None
        with self.tracer.handing_over(span, over):
            self.plane.submit(call)
        return span


def over(span: Span, error: OctoserveError | None) -> None:
    span.attributes["status"] = "ok" if error is None else error.reason
    if error is not None:
        span.failed(error.reason, False)


def asked(*numbers: float) -> Asked:
    return Asked([floats([list(numbers)])])


def test_a_calls_way_is_recorded_and_others_are_not_touched() -> None:
    setting = Setting()
    first, plain, second = asked(1, 2), asked(3, 4), asked(5, 6)
    one, nobody, two = (setting.submit(call, call is not plain) for call in (first, plain, second))
    assert one is not None
    assert two is not None
    assert nobody is None
    assert "answered" not in vars(plain)
    assert plain.trace is None
    drive(ticks(6))
    shared, own = setting.spans.named("run")
    assert shared.attributes["octoserve.batch.requests"] == 3
    assert (shared.parent, own.parent) == (one.id, two.id)
    assert [link.span for link in shared.links] == [one.id, two.id]
    assert [link.span for link in own.links] == [shared.id]
    assert [span.parent for span in setting.spans.named("queue")] == [one.id, two.id]
    assert [span.parent for span in setting.spans.named("fake_model")] == [shared.id]
    for call, span in ((first, one), (second, two)):
        assert call.result is not None
        assert span.attributes["status"] == "ok"
        assert span.attributes["octoserve.version"] == 1
        assert "answered" not in vars(call), "it would hold the call for ever"


def test_one_that_fails_among_others_is_recorded_as_failed() -> None:
    model = FakeModel()
    model.poison = {9.0}
    setting = Setting(model)
    good, bad = (setting.submit(asked(number, 1)) for number in (1, 9))
    drive(ticks(6))
    assert good is not None
    assert bad is not None
    assert (good.attributes["status"], bad.attributes["status"]) == ("ok", "internal")
    assert any(span.fault for span in setting.spans.named("fake_model"))


def test_what_is_refused_and_who_goes_away_end_their_spans() -> None:
    setting = Setting()
    wrong = asked()
    wrong.model = "nobody"
    refused = setting.submit(wrong)
    call = asked(1, 2)
    gone = setting.submit(call)
    call.cancel()
    assert refused is not None
    assert gone is not None
    assert (refused.attributes["status"], refused.end_time > 0) == ("not_found", True)
    assert (gone.error, gone.fault, gone.end_time > 0) == ("cancelled", False, True)
    drive(ticks(6))
    assert len(setting.spans.named("request")) == 2


def test_a_door_that_refuses_before_there_is_a_call() -> None:
    setting = Setting()
    span = setting.tracer.begin({}, "request")
    assert span is not None
    with setting.tracer.handing_over(span, over):
        setting.plane.refused("m", "http", OctoserveError("no"))
    assert span.attributes["octoserve.door"] == "http"
    assert span.end_time
    lost = setting.tracer.begin({}, "request")
    assert lost is not None
    with setting.tracer.handing_over(lost, over):
        pass
    assert lost.end_time, "nobody took it"


def test_a_copy_is_a_trace_of_its_own_with_a_link() -> None:
    setting = Setting()
    call = asked(1, 2)
    span = setting.submit(call)
    drive(ticks(6))
    assert span is not None
    copy = Copy(call, 0.001, False, 1)
    assert copy.trace is span
    seen: list[str] = []

    def run(inputs: object) -> list[object]:
        seen.append(outgoing()["traceparent"])
        return []

    copied(span, setting.handle, run, [])
    (shadow,) = setting.spans.named("shadow")
    assert shadow.trace != span.trace
    assert not shadow.parent
    assert [link.span for link in shadow.links] == [span.id]
    assert f"{shadow.trace:032x}" in seen[0]
    with pytest.raises(ZeroDivisionError):
        copied(span, setting.handle, lambda inputs: [1 // 0], [])
    assert setting.spans.named("shadow")[1].fault


def test_a_head_with_a_traceparent_is_not_kept() -> None:
    """It names one request, and would push out those that repeat."""
    for line, once in (("", False), ("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n", True)):
        head = parse_head(f"POST /x HTTP/1.1\r\nhost: x\r\n{line}content-length: 0\r\n\r\n".encode())
        InferHead("m", "", head)
        assert head.once is once
