"""Who is sampled, what a span knows, and what the exporter does when its collector does not."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import subprocess
import sys
import threading
from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from octoserve.core.errors import InvalidInput, SettingsError
from octoserve.core.trace_context import Tracing
from octoserve.spec.tracing import TracingSection, tracing_of
from octoserve.telemetry import otlp
from octoserve.telemetry.logs import DroppingHandler, JsonFormatter
from octoserve.telemetry.tracing import ACTIVE, Tracer, active, outgoing, part, within
from support.spans import tracer

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def said(flags: str, trace: str = TRACE) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{SPAN}-{flags}", "tracestate": "a=b"}


# --- sampling ----------------------------------------------------------------------------------------------


def test_a_client_that_has_decided_is_followed() -> None:
    nobody, _ = tracer(share=0.0)
    span = nobody.begin(said("01"), "x")
    assert span is not None
    assert (f"{span.trace:032x}", f"{span.parent:016x}", span.state) == (TRACE, SPAN, "a=b")
    assert tracer(share=1.0)[0].begin(said("00"), "x") is None


def test_of_the_others_a_share_is_drawn() -> None:
    draws = iter([1 << 62, (1 << 62) - 1, 7, 9])
    quarter, _ = tracer(share=0.25, draw=lambda bits: next(draws))
    assert quarter.begin({}, "x") is None
    span = quarter.begin({}, "x")
    assert span is not None
    assert (span.trace, span.id, span.parent) == (7 << 64 | (1 << 62) - 1, 9, 0)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_the_draw_is_the_sdks(share: float) -> None:
    """So whoever samples as large a share by the trace's id samples the same traces."""
    ours, _ = tracer(share=share, parent_based=False)
    theirs = TraceIdRatioBased(share)
    for trace in (int(TRACE, 16), 1, 1 << 63, (1 << 64) - 1, 5 << 120 | 3 << 60, round(share * 2**64) or 1):
        context = said("00", f"{trace:032x}")
        decision = theirs.should_sample(None, trace, "x").decision
        assert (ours.begin(context, "x") is not None) == (decision is Decision.RECORD_AND_SAMPLE), hex(trace)


@pytest.mark.parametrize(
    ("environ", "share", "parent_based"),
    [
        ({}, 0.01, True),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, 1.0, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, 0.0, True),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.2"}, 0.2, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}, 1.0, True),
    ],
)
def test_the_variables_say_what_the_spec_does_not(environ: dict[str, str], share: float, parent_based: bool) -> None:
    assert tracing_of(TracingSection(), environ) == Tracing(share=share, parent_based=parent_based)
    own = tracing_of(TracingSection(endpoint="http://c:4318", sample="5%", service="fraud"), environ)
    assert own == Tracing(endpoint="http://c:4318", share=0.05, service="fraud")


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, "OTEL_TRACES_SAMPLER: one of always_on"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
            "OTEL_TRACES_SAMPLER_ARG: a number from 0 to 1 wanted, '2' came",
        ),
    ],
)
def test_a_variable_that_says_nonsense(environ: dict[str, str], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        tracing_of(TracingSection(), environ)


def test_when_it_is_on() -> None:
    assert tracing_of(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}) is None
    assert tracing_of(None, {"OTEL_TRACES_EXPORTER": "otlp"}) == Tracing()
    assert tracing_of(TracingSection(), {"OTEL_TRACES_EXPORTER": "none"}) is None
    assert tracing_of(TracingSection(), {"OTEL_SDK_DISABLED": "true"}) is None


# --- spans -------------------------------------------------------------------------------------------------


def test_pieces_of_work_are_below_what_the_thread_works_on() -> None:
    of, kept = tracer()
    assert within("nothing", lambda: outgoing()) == {}
    root = of.begin({}, "root")
    assert root is not None
    with active(root):
        told = within("piece", outgoing)
        with pytest.raises(InvalidInput), part("wrong"):
            raise InvalidInput("no")
    assert ACTIVE.get() is None
    piece, wrong = kept.spans
    assert (piece.name, piece.parent, piece.trace) == ("piece", root.id, root.trace)
    assert told["traceparent"] == f"00-{root.trace:032x}-{piece.id:016x}-03"
    assert (wrong.error, wrong.fault) == ("InvalidInput: no", True)


def test_what_is_not_sampled_is_told_to_servers_behind() -> None:
    of, kept = tracer()
    with active(of.unsampled), part("x"):
        assert outgoing()["traceparent"].endswith("-02")
    assert not kept.spans


def test_json_logs_name_the_trace() -> None:
    of, _ = tracer()
    span = of.begin(said("01"), "x")
    assert span is not None
    lines = []
    for work in (active(span), contextlib.nullcontext()):
        with work:
            record = DroppingHandler(queue.Queue()).prepare(logging.makeLogRecord({"msg": "said"}))
            lines.append(json.loads(JsonFormatter().format(record)))
    within_, outside = lines
    assert (within_["trace_id"], within_["span_id"]) == (TRACE, f"{span.id:016x}")
    assert "trace_id" not in outside


# --- the exporter ------------------------------------------------------------------------------------------


class Sender:
    """An SDK's exporter that hangs until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.asked = threading.Event()
        self.sent: list[Any] = []
        self.over = False

    def export(self, spans: list[Any]) -> Any:
        from opentelemetry.sdk.trace.export import SpanExportResult

        self.asked.set()
        self.let_go.wait()
        self.sent += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.over = True
        self.let_go.set()


def test_a_collector_that_hangs_costs_a_queue_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setattr(otlp, "CLOSE_SECONDS", 0.1)
    sender = Sender()
    exporter = otlp.Exporter(Tracing(), "test", sender)
    of = Tracer(exporter, Tracing(share=1.0))
    for _ in range(4):
        of.begin({}, "x").end()  # type: ignore[union-attr]
    assert sender.asked.wait(20)
    for _ in range(13):
        of.begin({}, "x").end()  # type: ignore[union-attr]
    assert exporter.counts() == {"exported": 0, "dropped": 3, "failed": 0}
    exporter.close()
    assert sender.over
    assert exporter.counts()["dropped"] == 13


def test_what_waits_is_sent_at_the_end() -> None:
    sender = Sender()
    sender.let_go.set()
    exporter = otlp.Exporter(Tracing(service="fraud"), "worker 3", sender)
    of = Tracer(exporter, Tracing(share=0.0))
    span = of.begin(said("01"), "POST /x")
    assert span is not None
    span.failed("internal")
    span.end()
    span.end()
    exporter.close()
    (sent,) = sender.sent
    assert exporter.counts() == {"exported": 1, "dropped": 0, "failed": 0}
    assert (sent.name, sent.kind.name, sent.status.status_code.name) == ("POST /x", "SERVER", "ERROR")
    assert (sent.parent.span_id, sent.parent.is_remote) == (int(SPAN, 16), True)
    assert sent.context.trace_state.to_header() == "a=b"
    assert sent.resource.attributes["service.name"] == "fraud"
    assert "worker 3" in sent.resource.attributes["service.instance.id"]


def test_the_variables_name_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for environ in ({}, {"OTEL_SERVICE_NAME": "a"}, {"OTEL_RESOURCE_ATTRIBUTES": "team=x,service.name=b"}):
        with monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            sender = Sender()
            sender.let_go.set()
            exporter = otlp.Exporter(Tracing(), "test", sender)
            Tracer(exporter, Tracing(share=1.0)).begin({}, "x").end()  # type: ignore[union-attr]
            exporter.close()
            names.append(sender.sent[0].resource.attributes["service.name"])
    assert names == ["octoserve", "a", "b"]


def test_an_endpoint_is_a_place_or_the_whole_address() -> None:
    for endpoint in ("http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"):
        made = otlp._OpenTelemetry(Tracing(), "x").sender(Tracing(endpoint=endpoint))
        assert made._endpoint == "http://c:4318/v1/traces"


def test_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"octoserve\[otel\]"):
        otlp.check()


def test_off_imports_nothing() -> None:
    program = (
        "import sys, octoserve, octoserve.app, octoserve.client, octoserve.patterns.online.worker\n"
        "assert octoserve.app.tracer_of(None, 'x') is None\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
