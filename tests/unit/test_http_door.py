"""The REST door: routes, status codes, compression, time-outs, and the shapes of its answers."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve import __version__
from octoserve.core import errors
from octoserve.core.admission import Admission
from octoserve.core.errors import InvalidInput, OctoserveError, TooLarge, Unavailable
from octoserve.core.signature import Signature, TensorSpec
from octoserve.dataplane.endpoint import DataPlane
from octoserve.patterns.online.errors import status_of
from octoserve.patterns.online.http import coding
from octoserve.patterns.online.http.coding import compress, decompress
from octoserve.patterns.online.http.connection import Http1Server
from octoserve.patterns.online.http.door import HttpDoor
from octoserve.patterns.online.link.messages import CatalogEntry
from octoserve.patterns.online.service import Service
from octoserve.patterns.online.settings import Limits
from octoserve.telemetry.metrics import Registry
from support.loops import FakeClock, InlineExecutor, ManualExecutor, drive, loop, ticks
from support.models import FakeModel, handle_of, publish, refused
from support.transport import FakeTransport, Response, responses


class Supervisor:
    """Does what it is told, or raises `error`."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.error: Exception | None = None

    async def operate(self, action: str, model: str, who: str = "") -> None:
        if self.error is not None:
            raise self.error
        self.done.append((action, model))


class House:
    """A door with models behind it and no socket before it."""

    def __init__(self, executor: Any = None, repository_api: bool = True, max_queue: int = 1024, **limits: Any) -> None:
        self.clock = FakeClock()
        self.registry = Registry()
        self.executor = executor or InlineExecutor()
        self.plane = DataPlane(self.registry, loop(), self.executor, Admission(max_queue=max_queue), clock=self.clock)
        self.model = FakeModel()
        text = Signature([TensorSpec("t", "BYTES", (-1, 1))], [TensorSpec("u", "BYTES", (-1, 1))], True)
        fixed = Signature([TensorSpec("f", "FP32", (3,))], [TensorSpec("g", "FP32", (3,))])
        pair = Signature([TensorSpec(n, "FP32", (-1, 1)) for n in "ab"], [TensorSpec("c", "FP32", (-1, 1))], True)
        bits = Signature([TensorSpec("h", "BF16", (-1, 2))], [TensorSpec("i", "BF16", (-1, 2))], True)
        publish(
            self.plane,
            handle_of(FakeModel(), version=1),
            handle_of(self.model, version=2),
            handle_of(FakeModel(text, lambda t: [t]), "text"),
            handle_of(FakeModel(fixed, lambda f: [f * np.float32(2)]), "fixed"),
            handle_of(FakeModel(pair, lambda a, b: [a + b]), "pair"),
            handle_of(FakeModel(bits, lambda h: [h]), "bits"),
            handle_of(FakeModel(), "a model/é%"),
            labels={"m": {"stable": 1}},
        )
        self.supervisor = Supervisor()
        self.service = Service(self.plane, self.supervisor, repository_api)
        self.service.routed = lambda: True
        self.service.catalog = (
            CatalogEntry("m", 1, "READY"),
            CatalogEntry("m", 2, "READY"),
            CatalogEntry("n", 1, "UNAVAILABLE", "model.onnx: broken"),
        )
        cuts = self.registry.counter("cuts", "", ("door", "reason"))
        limits_ = Limits(**limits)
        self.door = HttpDoor(self.service, limits_, cuts)
        self.server = Http1Server(self.door, limits_, self.clock)

    def connect(self) -> FakeTransport:
        return FakeTransport(self.server())

    def send(self, transport: FakeTransport, data: bytes) -> None:
        async def work() -> None:
            transport.protocol.data_received(data)
            await ticks(8)

        drive(work())

    def ask(self, method: str, path: str, body: bytes = b"", *lines: str) -> Response:
        transport = self.connect()
        self.send(transport, raw(method, path, body, *lines))
        [got] = responses(transport.written, [method])
        if got.status >= 400 and method != "HEAD" and "/ready" not in path:
            error = json.loads(got.body)
            assert list(error) == ["error"]
            assert isinstance(error["error"], str)
            assert error["error"]
            assert got.headers["content-type"] == "application/json"
        return got

    def get(self, path: str) -> Any:
        got = self.ask("GET", path)
        assert got.status == 200, got
        assert got.headers["content-type"] == "application/json"
        return json.loads(got.body)

    def infer(self, body: Any, *lines: str, path: str = "/v2/models/m/infer") -> Response:
        return self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), *lines)


def raw(method: str, path: str, body: bytes = b"", *lines: str) -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: h", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode("latin-1") + body


def rows(values: Any = ((1.0, 2.0),), **more: Any) -> dict[str, Any]:
    flat = [v for row in values for v in row]
    shape = [len(values), len(values[0])]
    return {"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": flat}], **more}


@pytest.fixture
def house() -> House:
    return House()


# --- routes -------------------------------------------------------------------------------------------------


def test_server(house: House) -> None:
    metadata = house.get("/v2")
    assert (metadata["name"], metadata["version"]) == ("octoserve", __version__)
    assert "binary_tensor_data" in metadata["extensions"]
    assert house.get("/v2/") == metadata
    assert house.get("/v2/health/live") == {"live": True}
    assert house.get("/v2/health/ready") == {"ready": True}


def test_readiness_is_a_status_and_a_body(house: House) -> None:
    house.service.routed = lambda: False
    got = house.ask("GET", "/v2/health/ready")
    assert (got.status, json.loads(got.body)) == (503, {"ready": False})
    house.service.routed = lambda: True
    house.service.draining = True
    assert house.ask("GET", "/v2/health/ready").status == 503
    assert house.ask("GET", "/v2/health/live").status == 200


def test_model_readiness(house: House) -> None:
    for path in ("/v2/models/m/ready", "/v2/models/m/versions/1/ready", "/v2/models/m/versions/stable/ready"):
        assert house.get(path) == {"name": "m", "ready": True}
    house.plane.retire(house.plane.bind("m", "2").handle)
    got = house.ask("GET", "/v2/models/m/ready")
    assert (got.status, json.loads(got.body)) == (503, {"name": "m", "ready": False})
    for path in ("/v2/models/x/ready", "/v2/models/m/versions/9/ready", "/v2/models/m/versions/x/ready"):
        got = house.ask("GET", path)
        assert got.status == 404
        assert list(json.loads(got.body)) == ["error"]


def test_model_metadata(house: House) -> None:
    whole = house.get("/v2/models/m")
    assert whole == {
        "name": "m",
        "versions": ["1", "2"],
        "platform": "fake_model",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "row_sum", "datatype": "FP64", "shape": [-1]},
        ],
    }
    assert house.get("/v2/models/m/versions/stable") == {**whole, "versions": ["1"]}
    assert house.ask("GET", "/v2/models/x").status == 404


def test_model_config(house: House) -> None:
    config = house.get("/v2/models/m/config")
    assert (config["name"], config["platform"], config["max_batch_size"]) == ("m", "fake_model", 64)
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}]
    assert "dynamic_batching" in config
    fixed = house.get("/v2/models/fixed/versions/1/config")
    assert (fixed["max_batch_size"], fixed["input"][0]["dims"]) == (0, [3])
    assert "dynamic_batching" not in fixed
    assert house.get("/v2/models/text/config")["input"][0]["data_type"] == "TYPE_STRING"
    assert house.get("/v2/models/bits/config")["input"][0]["data_type"] == "TYPE_BF16"


def test_statistics(house: House) -> None:
    for _ in range(3):
        assert house.infer(rows(((1.0, 2.0), (3.0, 4.0)))).status == 200
    house.model.poison = {7.0}
    assert house.infer(rows(((7.0, 0.0),))).status == 500
    [stats] = house.get("/v2/models/m/versions/2/stats")["model_stats"]
    assert (stats["name"], stats["version"]) == ("m", "2")
    assert (stats["inference_count"], stats["execution_count"]) == (6, 4)
    assert stats["inference_stats"]["success"]["count"] == 3
    assert stats["inference_stats"]["fail"]["count"] == 1
    assert {b["batch_size"]: b["compute_infer"]["count"] for b in stats["batch_stats"]} == {2: 3, 1: 1}
    assert stats["last_inference"] > 1e12  # milliseconds since 1970
    parts = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    assert set(stats["inference_stats"]) == set(parts)
    assert len(house.get("/v2/models/m/stats")["model_stats"]) == 2
    assert len(house.get("/v2/models/stats")["model_stats"]) == 7
    assert house.ask("GET", "/v2/models/x/stats").status == 404
    assert house.ask("GET", "/v2/models/m/versions/7/stats").status == 404


def test_repository_index(house: House) -> None:
    broken = {"name": "n", "version": "1", "state": "UNAVAILABLE", "reason": "model.onnx: broken"}
    got = json.loads(house.ask("POST", "/v2/repository/index").body)
    assert [entry["name"] for entry in got] == ["m", "m", "n"]
    assert got[2] == broken
    assert len(json.loads(house.ask("POST", "/v2/repository/index", b'{"ready":true}').body)) == 2
    assert len(json.loads(house.ask("POST", "/v2/repository/index", b'{"ready":false}').body)) == 3
    for body in (b"[]", b"{", b"1", b"\xff", b"[" * 100_000):
        assert house.ask("POST", "/v2/repository/index", body).status == 400


def test_load_and_unload(house: House) -> None:
    for action in ("load", "unload"):
        got = house.ask("POST", f"/v2/repository/models/m/{action}")
        assert (got.status, got.body) == (200, b"")
    assert (
        house.ask("POST", "/v2/repository/models/n/unload", b'{"parameters":{"unload_dependents":false}}').status == 200
    )
    assert house.supervisor.done == [("load", "m"), ("unload", "m"), ("unload", "n")]
    assert house.ask("POST", "/v2/repository/models/x/load").status == 404
    assert house.ask("POST", "/v2/repository/models/m/load", b'{"parameters":{"config":"{}"}}').status == 501
    assert house.ask("POST", "/v2/repository/models/m/load", b'{"parameters":{"file:1/model.onnx":""}}').status == 501
    assert house.ask("POST", "/v2/repository/models/m/load", b'{"parameters":[]}').status == 400
    house.supervisor.error = Unavailable("no supervisor")
    assert house.ask("POST", "/v2/repository/models/m/load").status == 503
    house.supervisor.error = ZeroDivisionError("a bug")
    got = house.ask("POST", "/v2/repository/models/m/load")
    assert got.status == 500
    assert b"bug" not in got.body


def test_load_and_unload_may_be_switched_off() -> None:
    house = House(repository_api=False)
    assert house.ask("POST", "/v2/repository/models/m/load").status == 501
    assert house.supervisor.done == []


GETS = [
    "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/m", "/v2/models/m/ready", "/v2/models/m/config",
    "/v2/models/m/stats", "/v2/models/stats", "/v2/models/m/versions/1", "/v2/models/m/versions/1/ready",
]  # fmt: skip
POSTS = ["/v2/models/m/infer", "/v2/models/m/versions/1/infer", "/v2/repository/models/m/load"]


@pytest.mark.parametrize("path", [*GETS, *POSTS])
def test_other_methods_are_405_and_say_which_is_allowed(house: House, path: str) -> None:
    allowed = "GET" if path in GETS else "POST"
    also = {"HEAD"} if allowed == "GET" else set()
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"} - {allowed} - also:
        got = house.ask(method, path)
        assert got.status == 405, method
        assert got.headers["allow"] == allowed


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_the_body(house: House, path: str) -> None:
    """Load balancers probe with HEAD."""
    got, whole = house.ask("HEAD", path), house.ask("GET", path)
    assert got.status == whole.status == 200
    assert got.body == b""
    if not path.endswith("stats"):
        assert got.headers["content-length"] == str(len(whole.body))


@pytest.mark.parametrize(
    "path",
    [
        "/nothing", "/v1", "/v2x", "/V2", "/v2/nothing", "/v2/models", "/v2/models/", "/v2/models/m/nothing",
        "/v2/health", "/v2/models/m/versions", "/v2/models/m/versions/1/nothing", "/v2/models/m/infer/more",
        "/v2/repository", "/v2/repository/models/m/reload", "/v2/models/m/versions/1/versions/2", "*",
        "/v2/health/live/x", "/v2/../etc/passwd", "/%76%32x",
    ],
)  # fmt: skip
def test_unknown_paths(house: House, path: str) -> None:
    for method in ("GET", "POST"):
        assert house.ask(method, path).status == 404


def test_percent_encoded_names(house: House) -> None:
    path = "/v2/models/a%20model%2F%C3%A9%25"
    assert house.get(path)["name"] == "a model/é%"
    got = house.infer(rows(), path=f"{path}/infer")
    assert json.loads(got.body)["model_name"] == "a model/é%"
    got = house.ask("GET", "/v2/models/%FF%00%0D%0Ax")
    assert got.status == 404


def test_a_query_is_ignored(house: House) -> None:
    assert house.get("/v2/health/live?x=1") == {"live": True}


# --- inference ------------------------------------------------------------------------------------------------


def test_an_answer(house: House) -> None:
    got = house.infer(rows(((1.0, 2.0), (3.0, 4.0)), id="i"))
    assert got.headers["content-type"] == "application/json"
    assert json.loads(got.body) == {
        "model_name": "m",
        "model_version": "2",
        "id": "i",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [3, 5, 7, 9]},
            {"name": "row_sum", "datatype": "FP64", "shape": [2], "data": [3, 7]},
        ],
    }


@pytest.mark.parametrize(("version", "number"), [("1", "1"), ("2", "2"), ("stable", "1")])
def test_versioned_paths(house: House, version: str, number: str) -> None:
    got = house.infer(rows(), path=f"/v2/models/m/versions/{version}/infer")
    assert json.loads(got.body)["model_version"] == number


def test_only_wanted_outputs_return_in_the_order_wanted(house: House) -> None:
    got = json.loads(house.infer(rows(outputs=[{"name": "row_sum"}])).body)
    assert [o["name"] for o in got["outputs"]] == ["row_sum"]
    got = json.loads(house.infer(rows(outputs=[{"name": "row_sum"}, {"name": "y"}])).body)
    assert [o["name"] for o in got["outputs"]] == ["row_sum", "y"]
    assert house.infer(rows(outputs=[{"name": "z"}])).status == 400


def test_the_binary_extension(house: House) -> None:
    data = struct.pack("<2f", 1, 2)
    head = json.dumps(
        {
            "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
            "outputs": [{"name": "row_sum", "parameters": {"binary_data": False}}, {"name": "y"}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    line = f"Inference-Header-Content-Length: {len(head)}"
    got = house.infer(head + data, line)
    length = int(got.headers["inference-header-content-length"])
    assert got.headers["content-type"] == "application/octet-stream"
    answer = json.loads(got.body[:length])
    assert answer["outputs"][0]["data"] == [3]
    assert got.body[length:] == struct.pack("<2f", 3, 5)
    assert house.infer(head + data).status == 400
    for bad in ("-1", "x", "1_0", "9" * 30, "", "+5", "1.0"):
        assert house.infer(head + data, f"Inference-Header-Content-Length: {bad}").status == 400


def test_a_raw_body(house: House) -> None:
    line = "Inference-Header-Content-Length: 0"
    got = house.infer(struct.pack("<3f", 1, 2, 3), line, path="/v2/models/fixed/infer")
    assert got.body[int(got.headers["inference-header-content-length"]) :] == struct.pack("<3f", 2, 4, 6)
    got = house.infer(b"hello", line, path="/v2/models/text/infer")
    assert got.body.endswith(struct.pack("<I", 5) + b"hello")
    assert house.infer(b"12345678", line, path="/v2/models/pair/infer").status == 400  # two inputs
    assert house.infer(b"12345678", line).status == 400  # two variable dimensions
    assert house.infer(b"1234", line, path="/v2/models/fixed/infer").status == 400
    assert house.infer(b"1234", line, path="/v2/models/x/infer").status == 404


def test_text_that_json_cannot_carry_is_asked_for_in_binary(house: House) -> None:
    line = "Inference-Header-Content-Length: 0"
    head = json.dumps(
        {
            "inputs": [{"name": "t", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}],
        }
    ).encode()
    body = head + b"\x01\0\0\0\xff"
    got = house.infer(body, f"Inference-Header-Content-Length: {len(head)}", path="/v2/models/text/infer")
    assert got.status == 501
    assert b"binary" in got.body
    assert house.infer(b"\xff", line, path="/v2/models/text/infer").status == 200


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b"\xff", b'{"inputs":[]}', b"[" * 1_000_000])
def test_bodies_that_are_no_request(house: House, body: bytes) -> None:
    assert house.infer(body).status in (400, 413)


def test_an_error_before_the_call_is_not_the_next_requests(house: House) -> None:
    transport = house.connect()
    good = raw("POST", "/v2/models/m/infer", json.dumps(rows()).encode())
    house.send(transport, raw("POST", "/v2/models/m/infer", b"{") + good + raw("GET", "/v2/models/x") + good)
    house.send(transport, b"")
    drive(ticks(30))
    assert [r.status for r in responses(transport.written)] == [400, 200, 404, 200]
    assert not transport.closing


# --- status codes -----------------------------------------------------------------------------------------------


def test_every_error_class_has_its_status() -> None:
    want = {
        "InvalidInput": 400, "TooLarge": 413, "NotFound": 404, "Unsupported": 501, "Unavailable": 503,
        "Overloaded": 429, "DeadlineExceeded": 504, "Cancelled": 499, "Internal": 500, "BrokenVersion": 400,
        "Conflict": 409, "SettingsError": 500, "OctoserveError": 500, "Unauthenticated": 401, "Forbidden": 403,
    }  # fmt: skip
    classes = {n: c for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, OctoserveError)}
    assert {name: status_of(kind("x")) for name, kind in classes.items()} == want


def test_the_models_own_errors(house: House) -> None:
    house.model.poison = {1.0}
    got = house.infer(rows())
    assert got.status == 500
    assert b"poisoned" not in got.body
    house.model.error = lambda: refused("not this one")
    got = house.infer(rows())
    assert got.status == 400
    assert b"not this one" in got.body


def test_shed_load_says_when_to_come_back() -> None:
    house = House(ManualExecutor(), max_queue=1)
    first, second = house.connect(), house.connect()
    request = raw("POST", "/v2/models/m/infer", json.dumps(rows()).encode())
    house.send(first, request)
    house.send(second, request)
    [shed] = responses(second.written)
    assert shed.status == 429
    assert int(shed.headers["retry-after"]) >= 1
    assert not second.closing
    first.lose()
    house.executor.run_one()
    drive(ticks())
    assert house.plane.bind("m").pending == 0
    assert not first.written


def test_a_client_that_goes_away_frees_its_slot() -> None:
    house = House(ManualExecutor(), max_queue=2)
    request = raw("POST", "/v2/models/m/infer", json.dumps(rows()).encode())
    running, waiting = house.connect(), house.connect()
    house.send(running, request)
    house.send(waiting, request)
    assert house.plane.bind("m").pending == 2
    waiting.lose()
    assert house.plane.bind("m").pending == 1


def test_an_answer_that_cannot_be_encoded_is_an_error_not_silence(house: House) -> None:
    house.model.function = lambda x: [x]  # one output too few
    assert house.infer(rows()).status == 500


# --- time-outs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "parameter", "seconds"),
    [
        (None, None, None),
        ("0.5", None, 0.5),
        ("2", None, 2),
        (None, 250_000, 0.25),
        (None, 0, None),
        ("1", 500_000, 0.5),
        ("0.25", 500_000, 0.25),
        ("1", 0, 1),
    ],
)
def test_deadlines(header: str | None, parameter: int | None, seconds: float | None) -> None:
    house = House(ManualExecutor())
    body = rows() if parameter is None else rows(parameters={"timeout": parameter})
    lines = [] if header is None else [f"X-Request-Timeout: {header}"]
    transport = house.connect()
    house.send(transport, raw("POST", "/v2/models/m/infer", json.dumps(body).encode(), *lines))
    call = transport.protocol.call  # type: ignore[attr-defined]
    assert call.deadline == (float("inf") if seconds is None else house.clock.now + seconds)
    if seconds is not None:
        house.clock.advance(seconds + 0.01)
        house.plane.bind("m")._sweep()
        [got] = responses(transport.written)
        assert got.status == 504
        house.executor.run_one()
        drive(ticks())
        assert len(responses(transport.written)) == 1


def test_no_time_at_all_is_a_deadline_that_passed(house: House) -> None:
    assert house.infer(rows(), "X-Request-Timeout: 0").status == 504


@pytest.mark.parametrize("value", ["-1", "x", "nan", "inf", "", "1,5", "1e99", "0x1", "1 s", "\xb2"])
def test_headers_that_are_no_timeout(house: House, value: str) -> None:
    assert house.infer(rows(), f"X-Request-Timeout: {value}").status == 400


@pytest.mark.parametrize("value", [-1, 1.5, "1", True, [1], {"a": 1}, 10**15, 2**70, 10**400])
def test_parameters_that_are_no_timeout(house: House, value: Any) -> None:
    status = house.infer(rows(parameters={"timeout": value})).status
    assert status == (200 if value == 10**15 else 400)


# --- compression --------------------------------------------------------------------------------------------------


def deflated(data: bytes, window: int) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, window)
    return deflate.compress(data) + deflate.flush()


CODINGS = {"gzip": [gzip.compress], "deflate": [zlib.compress, lambda data: deflated(data, -15)]}


@pytest.mark.parametrize("coding", CODINGS)
def test_compressed_requests(house: House, coding: str) -> None:
    data = json.dumps(rows()).encode()
    for make in CODINGS[coding]:
        assert house.infer(make(data), f"Content-Encoding: {coding}").status == 200
        assert house.infer(make(data), f"Content-Encoding: {coding.upper()}").status == 200
        for broken in (data, make(data)[:-1], make(data) + b"x", b"", make(data)[:10]):
            assert house.infer(broken, f"Content-Encoding: {coding}").status == 400
    assert house.infer(data, "Content-Encoding: identity").status == 200
    for other in ("br", "zstd", "gzip, gzip", "x"):
        assert house.infer(data, f"Content-Encoding: {other}").status == 501


def test_the_header_length_counts_before_compression(house: House) -> None:
    head = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}'
    body = gzip.compress(head + struct.pack("<2f", 1, 2))
    got = house.infer(body, "Content-Encoding: gzip", f"Inference-Header-Content-Length: {len(head)}")
    assert json.loads(got.body)["outputs"][0]["data"] == [3, 5]


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"), ("deflate", "deflate"), ("gzip, deflate", "gzip"), ("deflate, gzip", "deflate"), ("br", None),
        ("identity", None), ("gzip;q=0", None), ("gzip; q=0, deflate", "deflate"), ("GZIP", "gzip"), ("", None),
        ("br, gzip;q=0.5", "gzip"), ("gzip;q=0.000", None), ("*", None), (",,;", None), ("gzip;q=x", "gzip"),
    ],
)  # fmt: skip
def test_compressed_answers(house: House, accept: str, coding: str | None) -> None:
    many = rows([[0.5] * 2] * 500)
    plain = house.infer(many)
    got = house.infer(many, f"Accept-Encoding: {accept}")
    assert got.headers.get("content-encoding") == coding
    body = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[coding](got.body)
    assert body == plain.body
    small = house.infer(rows(), f"Accept-Encoding: {accept}")
    assert "content-encoding" not in small.headers


def test_compressed_binary_answers(house: House) -> None:
    many = rows([[0.5] * 2] * 500, parameters={"binary_data_output": True})
    plain, got = house.infer(many), house.infer(many, "Accept-Encoding: gzip")
    assert got.headers["inference-header-content-length"] == plain.headers["inference-header-content-length"]
    assert gzip.decompress(got.body) == plain.body


@given(st.binary(max_size=2000), st.sampled_from(["gzip", "deflate"]))
def test_what_is_compressed_comes_back(data: bytes, coding: str) -> None:
    assert decompress(compress(data, coding), coding, max(len(data), 1)) == data


@pytest.mark.parametrize("coding", CODINGS)
def test_bombs_are_bounded(coding: str) -> None:
    for make in CODINGS[coding]:
        bomb = make(bytes(8 << 20))
        tracemalloc.start()
        with pytest.raises(TooLarge, match="1000"):
            decompress(bomb, coding, 1000)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 1 << 20
        assert decompress(make(bytes(1000)), coding, 1000) == bytes(1000)
        with pytest.raises(TooLarge):
            decompress(make(bytes(1001)), coding, 1000)
    house = House(max_body=100_000)
    assert house.infer(CODINGS[coding][0](bytes(8 << 20)), f"Content-Encoding: {coding}").status == 413


@given(st.binary(max_size=100), st.sampled_from(["gzip", "deflate"]), st.integers(0, 1000))
def test_any_bytes_decompress_or_are_refused(data: bytes, coding: str, limit: int) -> None:
    for body in (data, b"\x1f\x8b\x08" + data, b"\x78\x9c" + data):
        try:
            assert len(decompress(body, coding, limit)) <= limit
        except InvalidInput:
            pass


def test_a_large_answer_is_not_compressed_on_the_loop(house: House) -> None:
    many = rows([[0.5] * 200] * 2000, parameters={"binary_data_output": True})
    plain, got = house.infer(many), house.infer(many, "Accept-Encoding: gzip")
    assert len(plain.body) > 1 << 20
    assert "content-encoding" not in got.headers
    assert got.body == plain.body


def large_compressed(level: int = 1) -> bytes:
    """A request that is decompressed in a thread: by what came (level 0) or by what comes out of it."""
    data = np.arange(200_000, dtype=np.float32)
    text = '{"inputs":[{"name":"x","shape":[100000,2],"datatype":"FP32","parameters":{"binary_data_size":800000}}]}'
    body = text.encode() + b" " * (1 << 20) + data.tobytes()
    whole = gzip.compress(body, level)
    lines = ["Content-Encoding: gzip", f"Inference-Header-Content-Length: {len(text) + (1 << 20)}"]
    return raw("POST", "/v2/models/m/infer", whole, *lines)


async def until(done: Callable[[], bool]) -> None:
    while not done():
        await asyncio.sleep(0.001)


def test_a_large_body_is_decompressed_off_the_loop_and_in_order(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()

    def noted(*arguments: Any) -> bytes:
        threads.add(threading.current_thread().name.partition("_")[0])
        return decompress(*arguments)

    monkeypatch.setattr(coding, "decompress", noted)
    transport = house.connect()
    house.send(transport, large_compressed() + raw("GET", "/v2/health/live"))
    drive(asyncio.wait_for(until(lambda: transport.written.endswith(b'{"live":true}')), 20))
    first, second = responses(transport.written)
    assert first.status == 200
    assert second.body == b'{"live":true}'
    assert threads == {"inflate"}


def test_a_small_body_that_becomes_large_is_decompressed_off_the_loop(house: House) -> None:
    transport = house.connect()
    house.send(transport, raw("POST", "/v2/models/m/infer", gzip.compress(bytes(4 << 20)), "Content-Encoding: gzip"))
    assert not transport.written
    drive(asyncio.wait_for(until(lambda: bool(transport.written)), 20))
    assert [r.status for r in responses(transport.written)] == [400]


def test_a_large_body_that_is_broken_is_refused(house: House) -> None:
    transport = house.connect()
    house.send(
        transport,
        raw("POST", "/v2/models/m/infer", gzip.compress(random_bytes(100_000))[:-9], "Content-Encoding: gzip"),
    )
    drive(asyncio.wait_for(until(lambda: bool(transport.written)), 20))
    assert [r.status for r in responses(transport.written)] == [400]


def random_bytes(size: int) -> bytes:
    return np.random.default_rng(1).bytes(size)


def test_what_is_decompressed_for_a_client_that_left_is_dropped(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate = threading.Event(), threading.Event()

    def held(*arguments: Any) -> bytes:
        begun.set()
        assert gate.wait(10)
        return decompress(*arguments)

    monkeypatch.setattr(coding, "decompress", held)
    transport = house.connect()
    house.send(transport, large_compressed())
    assert begun.wait(10)
    transport.lose()
    gate.set()
    house.door._inflater._threads.shutdown(wait=True)
    drive(ticks(20))
    assert not transport.written
    assert not house.model.batches


# --- fuzz ---------------------------------------------------------------------------------------------------------

_FUZZED = House(max_body=10_000)


@given(
    st.sampled_from(["GET", "POST", "PUT", "HEAD"]),
    st.one_of(st.sampled_from([*GETS, *POSTS]), st.text("/v2modelsinfer%20AZ.-", max_size=20).map(lambda t: "/" + t)),
    st.one_of(st.binary(max_size=50), st.just(json.dumps(rows()).encode())),
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "Content-Encoding",
                    "Accept-Encoding",
                    "Inference-Header-Content-Length",
                    "X-Request-Timeout",
                ]
            ),
            st.one_of(
                st.sampled_from(["gzip", "deflate", "0", "5", "100", "0.5"]), st.text("0123456789abc.,;=-", max_size=6)
            ),
        ),
        max_size=3,
    ),
)
def test_any_request_is_answered(method: str, path: str, body: bytes, lines: list[tuple[str, str]]) -> None:
    got = _FUZZED.ask(method, path, body, *(f"{name}: {value}" for name, value in lines))
    assert got.status in (200, 400, 404, 405, 413, 417, 500, 501, 503, 504)
    assert got.status != 500
    assert got.headers["content-type"] in ("application/json", "application/octet-stream")
    if (
        got.status == 200
        and got.headers["content-type"] == "application/json"
        and "content-encoding" not in got.headers
    ):
        assert not got.body or msgspec.json.decode(got.body) is not None
