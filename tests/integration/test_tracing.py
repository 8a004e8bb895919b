"""One trace from a client's span to the runtime, over every door, as a collector has it: the OpenTelemetry Collector
where it is installed, else a stand-in that decodes what the standard says (`support.otlp`)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from opentelemetry import propagate
from opentelemetry.sdk.trace import TracerProvider

import octoserve
from octoserve.codecs.protos import message
from support.graphs import versioned_model
from support.otlp import OTELCOL, Receiver, Seen, Spans, collecting, receiving
from support.remote import Doubling
from support.service import Served, serving
from support.supervised import publish, until
from support.wire import Sent, infer_request, inference

INFER = "/v2/models/{model}/infer"
X = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
BEHIND = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
TRACER = TracerProvider().get_tracer("test")
"""A client's own; its spans go nowhere, their ids are what is looked for."""


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spans]:
    with collecting(tmp_path_factory.mktemp("collector")) if OTELCOL is not None else receiving() as made:
        yield made


@pytest.fixture(scope="module")
def behind() -> Iterator[Doubling]:
    with Doubling() as made:
        yield made


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, spans: Any, behind: Doubling) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("traces")
    publish(folder / "models", "m", 1, versioned_model(1))
    remote(folder / "models" / "far" / "1", behind)
    spec = folder / "octoserve.yaml"
    tracing = {"endpoint": spans.url, "sample": 0, "service": "traced"}
    spec.write_text(json.dumps({"tracing": tracing, "async": {"models": ["m"]}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=risk")
        with serving(folder / "models", folder / "service", spec=spec, settle="100ms", patience=120.0) as made:
            yield made


def remote(folder: Path, behind: Doubling) -> None:
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text(
        yaml.safe_dump({"runtime": "remote", "options": {"url": behind.url, "model": "m", "lanes": 1}})
    )


def ids(span: Any) -> tuple[str, str]:
    context = span.get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def told(sampled: bool = True) -> tuple[str, dict[str, str]]:
    """A trace's id, and the headers of a client in it."""
    with TRACER.start_as_current_span("client") as span:
        headers: dict[str, str] = {}
        propagate.inject(headers)
    if not sampled:
        headers["traceparent"] = headers["traceparent"][:-2] + "00"
    return ids(span)[0], headers


def in_trace(spans: Spans, trace_id: str, count: int) -> dict[str, Seen]:
    """The spans of a trace by their names, once so many are there."""
    until(lambda: len(spans.trace(trace_id)) >= count, 30, f"{count} spans; {[s.name for s in spans.trace(trace_id)]}")
    found = {span.name: span for span in spans.trace(trace_id)}
    assert len(found) == count, list(found)
    return found


def assert_chain(spans: dict[str, Seen], client: str, *names: str) -> None:
    above = client
    for name in names:
        assert spans[name].parent == above, name
        above = spans[name].id


def test_http_from_the_clients_span_to_the_runtime(service: Served, spans: Spans) -> None:
    with octoserve.Client(service.http) as client, TRACER.start_as_current_span("mine") as mine:
        client.predict("m", np.ones((2, 2), np.float32))
    trace_id, id = ids(mine)
    found = in_trace(spans, trace_id, 4)
    assert_chain(found, id, f"POST {INFER}", "run", "onnx_onnxruntime")
    server, queue, run = found[f"POST {INFER}"], found["queue"], found["run"]
    assert queue.parent == server.id
    assert server.kind == "SPAN_KIND_SERVER"
    assert server.attributes == {
        "http.request.method": "POST", "http.route": INFER, "url.path": "/v2/models/m/infer",
        "http.response.status_code": 200, "octoserve.model": "m", "octoserve.version": 1, "octoserve.door": "http",
    }  # fmt: skip
    assert run.attributes["octoserve.batch.rows"] == 2
    assert run.links == [(server.trace, server.id)]
    assert server.start <= queue.start <= queue.end <= run.start <= run.end <= server.end
    assert server.resource["service.name"] == "traced"
    assert server.resource["team"] == "risk"
    assert "worker 0" in server.resource["service.instance.id"]


def test_grpc_from_the_clients_span_to_the_runtime(service: Served, spans: Spans) -> None:
    request = infer_request("m", [Sent("x", "FP32", np.ones((1, 2), "<f4"))])
    with grpc.insecure_channel(service.grpc) as channel, TRACER.start_as_current_span("mine") as mine:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        inference(channel, "ModelInfer")(request, metadata=list(carrier.items()), timeout=30)
    trace_id, id = ids(mine)
    found = in_trace(spans, trace_id, 4)
    method = "inference.GRPCInferenceService/ModelInfer"
    assert_chain(found, id, method, "run", "onnx_onnxruntime")
    server = found[method]
    assert server.kind == "SPAN_KIND_SERVER"
    assert server.attributes["rpc.grpc.status_code"] == 0
    assert (server.attributes["octoserve.door"], server.attributes["octoserve.version"]) == ("grpc", 1)


def test_each_message_of_a_grpc_stream(service: Served, spans: Spans) -> None:
    requests = [infer_request("m", [Sent("x", "FP32", np.ones((1, 2), "<f4"))]) for _ in range(2)]
    trace_id, headers = told()
    name = "inference.GRPCInferenceService/ModelStreamInfer"
    with grpc.insecure_channel(service.grpc) as channel:
        stream = channel.stream_stream(
            f"/{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=message("inference.ModelStreamInferResponse").FromString,
        )
        assert len(list(stream(iter(requests), metadata=list(headers.items()), timeout=30))) == 2
    until(lambda: [span.name for span in spans.trace(trace_id)].count(name) == 2, 30, "two requests")


def test_a_server_behind_is_in_the_same_trace(service: Served, spans: Spans, behind: Doubling) -> None:
    trace_id, headers = told()
    assert service.ask("POST", "/v2/models/far/infer", BEHIND, headers).status == 200
    found = in_trace(spans, trace_id, 5)
    sent = f"POST {behind.url}"
    assert_chain(found, found[f"POST {INFER}"].parent, f"POST {INFER}", "run", "remote", sent)
    assert found[sent].kind == "SPAN_KIND_CLIENT"
    assert behind.requests[-1][2]["traceparent"] == f"00-{trace_id}-{found[sent].id}-03"


def test_a_request_that_is_not_sampled_leaves_nothing_and_the_server_behind_is_told(
    service: Served, spans: Spans, behind: Doubling
) -> None:
    trace_id, headers = told(sampled=False)
    assert service.ask("POST", "/v2/models/far/infer", BEHIND, headers).status == 200
    assert behind.requests[-1][2]["traceparent"].endswith("-02")
    other, sampled = told()
    service.ask("POST", "/v2/models/m/infer", X, sampled)
    in_trace(spans, other, 4)
    assert not spans.trace(trace_id)


def test_a_run_of_many_requests_is_one_span_with_a_link_to_each(
    service: Served, spans: Spans, behind: Doubling
) -> None:
    behind.hang = hang = threading.Event()
    traces = [told() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(service.ask, "POST", "/v2/models/far/infer", BEHIND, traces[0][1])
        assert behind.waiting.acquire(timeout=30)
        others = [threads.submit(service.ask, "POST", "/v2/models/far/infer", BEHIND, h) for _, h in traces[1:]]
        until(lambda: service.total("octoserve_pending_requests", model="far") == 4, 30, "they wait")
        behind.hang = None
        hang.set()
        assert [done.result().status for done in (first, *others)] == [200] * 4
    servers = {}
    for trace_id, _ in traces[1:]:
        until(lambda of=trace_id: {"run", f"POST {INFER}"} <= {s.name for s in spans.trace(of)}, 30, "runs")
        servers[trace_id] = next(s for s in spans.trace(trace_id) if s.name == f"POST {INFER}")
    runs = [span for of in servers for span in spans.trace(of) if span.name == "run"]
    (shared,) = [run for run in runs if run.attributes]
    assert shared.attributes["octoserve.batch.requests"] == 3
    assert set(shared.links) == {(server.trace, server.id) for server in servers.values()}
    assert [run.links for run in runs if run is not shared] == [[(shared.trace, shared.id)]] * 2
    assert all(run.parent == servers[run.trace].id for run in runs)


def test_other_doors_name_their_routes(service: Served, spans: Spans) -> None:
    for path, body, route, door in (
        ("/v1/models/m:predict", {"instances": [[1, 2]]}, "/v1/models/{model}:predict", "v1"),
        ("/v1/models/m/versions/1:predict", {"instances": [[1, 2]]}, "/v1/models/{model}/versions/{version}:predict",
         "v1"),
        ("/models/m/invoke", {"instances": [[1, 2]]}, "/models/{model}/invoke", "mlflow"),
    ):  # fmt: skip
        trace_id, headers = told()
        service.ask("POST", path, body, headers)
        until(lambda of=trace_id: any(not s.name.startswith(("q", "r", "o")) for s in spans.trace(of)), 30, path)
        (server,) = [span for span in spans.trace(trace_id) if span.kind == "SPAN_KIND_SERVER"]
        assert (server.name, server.attributes["octoserve.door"]) == (f"POST {route}", door)


@pytest.mark.parametrize(
    ("path", "body", "status", "reason", "fault"),
    [
        ("/v2/models/m/infer", b"{", 400, "invalid", False),
        ("/v2/models/m/infer", {"inputs": []}, 400, "invalid", False),
        ("/v2/models/nobody/infer", X, 404, "not_found", False),
        ("/v2/models/far/infer", BEHIND, 503, "unavailable", True),
    ],
)
def test_a_request_that_fails(
    service: Served, spans: Spans, behind: Doubling, path: str, body: Any, status: int, reason: str, fault: bool
) -> None:
    trace_id, headers = told()
    behind.status = 500 if status == 503 else 200
    assert service.ask("POST", path, body, headers).status == status
    behind.status = 200
    until(lambda: any(s.kind == "SPAN_KIND_SERVER" for s in spans.trace(trace_id)), 30, "its span")
    (server,) = [span for span in spans.trace(trace_id) if span.kind == "SPAN_KIND_SERVER"]
    assert server.attributes["http.response.status_code"] == status
    assert (server.attributes["error.type"], server.error) == (reason, fault)


def test_an_asynchronous_request_is_one_trace(service: Served, spans: Spans) -> None:
    trace_id, headers = told()
    accepted = service.ask("POST", "/v2/models/m/infer-async", X, headers)
    assert accepted.status == 202, accepted.body
    names = ("POST /v2/models/{model}/infer-async", "score", "queue", "run", "onnx_onnxruntime")
    until(lambda: set(names) <= {s.name for s in spans.trace(trace_id)}, 60, "the message's spans")
    until(lambda: any(s.kind == "SPAN_KIND_CONSUMER" for s in spans.trace(trace_id)), 30, "the message's span")
    found = {span.name: span for span in spans.trace(trace_id)}
    (process,) = [span for span in found.values() if span.kind == "SPAN_KIND_CONSUMER"]
    assert found[names[0]].attributes["http.response.status_code"] == 202
    assert_chain(found, found[names[0]].parent, names[0], process.name, "score", "run", "onnx_onnxruntime")
    assert process.attributes["messaging.system"] == "nats"
    assert process.attributes["octoserve.version"] == 1


def test_what_became_of_the_spans_is_counted(service: Served, spans: Spans) -> None:
    trace_id, headers = told()
    service.ask("POST", "/v2/models/m/infer", X, headers)
    in_trace(spans, trace_id, 4)
    until(lambda: service.total("octoserve_spans_total", outcome="exported") >= 4, 30, "counted")
    assert service.total("octoserve_spans_total", outcome="dropped") == 0


def test_a_collector_that_hangs_costs_nobody_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    publish(tmp_path / "models", "m", 1, versioned_model(1))
    receiver = Receiver()
    receiver.free.clear()
    spec = tmp_path / "octoserve.yaml"
    spec.write_text(json.dumps({"tracing": {"endpoint": receiver.url, "sample": 1}}))
    try:
        with serving(tmp_path / "models", tmp_path / "service", spec=spec, settle="100ms", patience=120.0) as service:
            for _ in range(20):
                assert service.ask("POST", "/v2/models/m/infer", X).status == 200
            until(lambda: service.total("octoserve_spans_total", outcome="dropped") > 0, 30, "dropped")
            assert service.process.poll() is None
    finally:
        receiver.close()
