"""The story of too much: high is answered while low is shed, a noisy tenant hurts nobody, the known is not computed.

Runs end when the test says so, so that all of it is told by counts and never by the clock.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from octoserve.codecs.protos import message
from support.service import Answer, Served, serving
from support.supervised import until
from support.wire import Sent, predict_request

MODEL = """
import time
from pathlib import Path


class Model:
    def __init__(self, folder, options):
        self.place = Path(options["place"])

    def predict(self, inputs):
        rows = inputs["x"]
        with open(self.place / "begun", "a") as begun:
            begun.write(f"{rows[0, 0]:g}\\n")
        while (self.place / "closed").exists():
            time.sleep(0.01)
        return {"y": rows * 3 + 1, "sum": rows.sum(axis=1)}
"""
YAML = """
inputs: [{{name: x, datatype: FP32, shape: [-1, 2]}}]
outputs: [{{name: y, datatype: FP32, shape: [-1, 2]}}, {{name: sum, datatype: FP32, shape: [-1]}}]
features: [a, b]
options: {{place: {place}}}
{more}
"""
SPEC = """
trust: [code]
max_queue: 10
admission:
  priorities: true
  tenants:
    key: header:x-tenant
    per:
      noisy: {concurrency: 3, priority: normal}
      metered: {rate: 2/d}
models:
  gated: {batching: {max_rows: 1}}
  known: {cache: {bytes: 1MB, ttl: 1h}}
  acting: {cache: {}}
"""


class House:
    """A service, and a gate before its models."""

    def __init__(self, service: Served, place: Path, pool: ThreadPoolExecutor) -> None:
        self.service = service
        self._gate = place / "closed"
        self._begun = place / "begun"
        self.pool = pool

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """No run ends in this block."""
        self._begun.write_text("")
        self._gate.touch()
        try:
            yield
        finally:
            self._gate.unlink()

    def begun(self) -> list[int]:
        """The first numbers of the runs since the gate was closed, in their order."""
        return [int(line) for line in self._begun.read_text().split()]

    def later(self, number: int, priority: int = 0, tenant: str = "", model: str = "gated") -> Future[Answer]:
        """A request, and its answer once it is there."""
        headers = {"x-tenant": tenant} if tenant else {}
        return self.pool.submit(self.service.ask, "POST", f"/v2/models/{model}/infer", v2(number, priority), headers)

    def pending(self, count: int, model: str = "gated") -> None:
        """Wait until so many requests wait or run."""
        now = lambda: self.service.total("octoserve_pending_requests", model=model)  # noqa: E731
        until(lambda: now() == count, 60, f"{count} requests that wait")

    def counted(self, outcome: str, priority: str) -> float:
        return self.service.total(
            "octoserve_priority_requests_total", model="gated", priority=priority, outcome=outcome
        )


def v2(number: float, priority: int = 0) -> dict[str, Any]:
    body: dict[str, Any] = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [number, 0.5]}]}
    return {**body, "parameters": {"priority": priority}} if priority else body


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("admission")
    for name, more in {"gated": "", "known": "", "acting": "effects: external"}.items():
        place = folder / "models" / name / "1"
        place.mkdir(parents=True)
        (place / "model.py").write_text(MODEL)
        (place / "model.yaml").write_text(YAML.format(place=folder, more=more))
    (folder / "octoserve.yaml").write_text(SPEC)
    flags = "--spec", str(folder / "octoserve.yaml")
    with serving(folder / "models", folder / "run", *flags) as service, ThreadPoolExecutor(32) as pool:
        yield House(service, folder, pool)


def answers(asked: Sequence[Future[Answer]]) -> Counter[int]:
    return Counter(each.result(60).status for each in asked)


# --- priorities -------------------------------------------------------------------------------------------


def test_under_overload_high_is_answered_and_low_is_shed(house: House) -> None:
    with house.closed():
        low = [house.later(300, 3)]
        house.pending(1)  # it runs, and does not end
        low += [house.later(301 + i, 3) for i in range(4)]
        house.pending(5)
        shed = [house.later(390 + i, 3) for i in range(20)]
        for each in shed:
            answer = each.result(60)
            assert answer.status == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"] == "the queue is full for priority low (5 requests)"
        triton = house.pool.submit(triton_asks, house, 100)
        high = [house.later(101 + i, 1) for i in range(2)]
        house.pending(8)
        normal = [house.later(200)]
        house.pending(9)
        assert house.later(201).result(60).status == 429, "the last tenth is high's"
    assert triton.result(60).tolist() == [[301.0, 2.5]]
    assert answers(high) == {200: 2}
    assert answers(normal) == {200: 1}
    assert answers(low) == {200: 5}
    begun = house.begun()
    assert begun[0] == 300, "what ran was not interrupted"
    assert set(begun[1:4]) == {100, 101, 102}, "high waited for nobody else"
    assert begun[4] == 200
    assert set(begun[5:]) == {301, 302, 303, 304}
    assert [(house.counted("in", level), house.counted("shed", level)) for level in ("high", "normal", "low")] == [
        (3, 0),
        (1, 1),
        (5, 20),
    ]


def inputs_of(number: float) -> list[Any]:
    array = np.array([[number, 0.5]], dtype=np.float32)
    return [triton_grpc.InferInput("x", [1, 2], "FP32").set_data_from_numpy(array)]


def triton_asks(house: House, number: float) -> Any:
    with triton_grpc.InferenceServerClient(house.service.grpc) as client:
        return client.infer("gated", inputs_of(number), priority=1).as_numpy("y")


def test_every_door_takes_a_priority_and_refuses_a_wrong_one(house: House) -> None:
    header = {"x-octoserve-priority": "urgent"}
    message = "header x-octoserve-priority: 1 (high), 2 (normal), 3 (low), or 0 for the default wanted, 'urgent' came"
    for path, body in {
        "/v2/models/gated/infer": v2(1),
        "/v1/models/gated:predict": {"instances": [[1, 0.5]]},
        "/models/gated/predict": {"a": 1, "b": 0.5},
        "/models/gated/invoke": {"instances": [[1, 0.5]]},
    }.items():
        refused = house.service.ask("POST", path, body, header)
        assert (refused.status, message in refused.body.decode()) == (400, True), path
        assert house.service.ask("POST", path, body, {"x-octoserve-priority": "high"}).status == 200
    with triton_grpc.InferenceServerClient(house.service.grpc) as client:
        before = house.counted("in", "high")
        client.infer("gated", inputs_of(1), priority=1)
        client.infer("gated", inputs_of(1), headers={"x-octoserve-priority": "high"})
        assert house.counted("in", "high") == before + 2
        with pytest.raises(InferenceServerException, match="parameter priority"):
            client.infer("gated", inputs_of(1), priority=7)


# --- tenants ----------------------------------------------------------------------------------------------


def test_a_noisy_tenant_does_not_hurt_the_other(house: House) -> None:
    with house.closed():
        noisy = [house.later(i, tenant="noisy") for i in range(3)]
        house.pending(3)
        refused = [house.later(10 + i, tenant="noisy") for i in range(12)]
        for each in refused:
            answer = each.result(60)
            assert answer.status == 429
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"] == "tenant 'noisy' has 3 requests in flight, at most 3 may be"
        quiet = [house.later(50 + i, tenant="quiet") for i in range(5)]
        house.pending(8)
    assert answers(noisy) == {200: 3}
    assert answers(quiet) == {200: 5}
    count = house.service.total
    assert count("octoserve_tenant_requests_total", tenant="noisy", outcome="tenant_concurrency") == 12
    assert count("octoserve_tenant_in_flight") == 0
    assert count("octoserve_request_seconds_count", model="gated", outcome="tenant_concurrency") == 12
    assert not [labels for name, labels, _ in house.service.metrics() if labels.get("tenant") == "quiet"]


def test_a_rate_is_refused_alike_by_http_and_grpc(house: House) -> None:
    assert answers([house.later(1, tenant="metered")]) == {200: 1}
    refused = house.later(1, tenant="metered").result(60)
    assert (refused.status, refused.headers["retry-after"]) == (429, "60")
    assert "may ask one request in 43200 s here, and has asked more" in refused.json()["error"]
    with (
        triton_grpc.InferenceServerClient(house.service.grpc) as client,
        pytest.raises(InferenceServerException, match="has asked more") as caught,
    ):
        client.infer("gated", inputs_of(1), headers={"x-tenant": "metered"})
    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


# --- the cache --------------------------------------------------------------------------------------------

Door = Callable[[House, float], tuple[bytes, str]]
"""Asks about a number; the answer's bytes, and whether they were known."""


def by_http(path: str, body: Callable[[float], Any], **headers: str) -> Door:
    def ask(house: House, number: float) -> tuple[bytes, str]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = house.service.ask("POST", path.format("known"), body(number), given)
        assert answer.status == 200, answer.body
        return answer.body, answer.headers["x-octoserve-cache"]

    return ask


def by_grpc(house: House, number: float) -> tuple[bytes, str]:
    request = message("inference.ModelInferRequest")(model_name="known")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([number, 0.5])
    return called(house, "/inference.GRPCInferenceService/ModelInfer", request)


def by_tensorflow(house: House, number: float) -> tuple[bytes, str]:
    sent = Sent("x", "FP32", np.array([[number, 0.5]], dtype="<f4"))
    return called(house, "/tensorflow.serving.PredictionService/Predict", predict_request("known", [sent]))


def called(house: House, path: str, request: Any) -> tuple[bytes, str]:
    with grpc.insecure_channel(house.service.grpc) as channel:
        answer, call = channel.unary_unary(path).with_call(request.SerializeToString(), timeout=60)
    return answer, dict(call.trailing_metadata())["x-octoserve-cache"]


def binary(number: float) -> bytes:
    head = json.dumps(
        {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}],
            "parameters": {"binary_data_output": True},
        }
    )
    return head.encode().ljust(200) + np.array([number, 0.5], dtype="<f4").tobytes()


DOORS: dict[str, Door] = {
    "V2": by_http("/v2/models/{}/infer", v2),
    "V2 binary": by_http("/v2/models/{}/infer", binary, inference_header_content_length="200"),
    "V2 compressed": by_http("/v2/models/{}/infer", v2, accept_encoding="gzip"),
    "V2 one output": by_http("/v2/models/{}/infer", lambda n: {**v2(n), "outputs": [{"name": "sum"}]}),
    "V1": by_http("/v1/models/{}:predict", lambda n: {"instances": [[n, 0.5]]}),
    "predict": by_http("/models/{}/predict", lambda n: {"b": 0.5, "a": n}),
    "MLflow": by_http("/models/{}/invoke", lambda n: {"dataframe_records": [{"a": n, "b": 0.5}]}),
    "gRPC": by_grpc,
    "TensorFlow Serving": by_tensorflow,
}


def test_every_door_gives_the_same_bytes_for_a_hit_and_finds_what_another_has_asked(house: House) -> None:
    missed: dict[str, bytes] = {}
    for place, (name, ask) in enumerate(DOORS.items()):
        body, outcome = ask(house, 1000.25 + place)
        assert outcome == "miss", name
        again, outcome = ask(house, 1000.25 + place)
        assert (outcome, again) == ("hit", body), name
        missed[name] = body
    for place, asked in enumerate(DOORS):
        for name, ask in DOORS.items():
            body, outcome = ask(house, 1000.25 + place)
            assert outcome == "hit", f"{name} finds what {asked} has asked"
            if name == asked:
                assert body == missed[name]
    total = house.service.total
    hits = len(DOORS) * (len(DOORS) + 1)
    assert total("octoserve_cache_requests_total", model="known", outcome="miss") == len(DOORS)
    assert total("octoserve_cache_requests_total", model="known", outcome="hit") == hits
    assert total("octoserve_request_seconds_count", model="known", outcome="ok") == hits + len(DOORS)
    [statistics] = house.service.ask("GET", "/v2/models/known/stats").json()["model_stats"]
    assert statistics["inference_stats"]["cache_hit"]["count"] == hits
    assert statistics["execution_count"] == len(DOORS)


def test_models_without_a_cache_say_nothing_of_one(house: House) -> None:
    assert "x-octoserve-cache" not in house.later(5).result(60).headers


def test_a_version_that_acts_on_the_world_is_refused_with_a_cache(house: House) -> None:
    entry = house.service.index()["acting", 1]
    assert entry["state"] == "UNAVAILABLE"
    assert entry["reason"].startswith("its model.yaml says `effects: external`, and an answer from the cache would not")
    assert house.service.ask("POST", "/v2/models/acting/infer", v2(1)).status == 503
