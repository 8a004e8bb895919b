"""The doors beside V2: routes, status codes, each protocol's shapes of answers and errors, and the switch."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import numpy as np
import pytest
from openapi_spec_validator import validate

from octoserve.core.doors import DOORS
from octoserve.core.errors import Internal
from octoserve.core.evidence import CANDIDATE
from octoserve.core.signature import Signature, TensorSpec
from octoserve.dataplane.endpoint import DataPlane
from octoserve.patterns.online.http.connection import Http1Server
from octoserve.patterns.online.http.door import HttpDoor
from octoserve.patterns.online.link.messages import CatalogEntry
from octoserve.patterns.online.service import Service
from octoserve.patterns.online.settings import Limits
from octoserve.routing.plan import BUCKETS, Arm, RoutePlan
from octoserve.telemetry.metrics import Registry
from support.loops import FakeClock, InlineExecutor, drive, loop, ticks
from support.models import FakeModel, handle_of, publish
from support.transport import FakeTransport, Response, responses

SCORES = Signature(
    [TensorSpec("age", "FP32", (-1, 1)), TensorSpec("country", "BYTES", (-1, 1))],
    [TensorSpec("label", "INT64", (-1,)), TensorSpec("scores", "FP32", (-1, 2))],
    True,
)


def score(age: Any, country: Any) -> list[Any]:
    return [np.arange(len(age)), np.concatenate([age, age * 2], axis=1)]


class House:
    """The doors over two versions of `m` (x FP32[-1,-1] -> y, row_sum), `scores` and `bytes`."""

    def __init__(self, doors: tuple[str, ...] = DOORS, default_model: str = "", **limits: Any) -> None:
        self.registry = Registry()
        self.plane = DataPlane(self.registry, loop(), InlineExecutor(), clock=FakeClock())
        self.model = FakeModel()
        raw = Signature([TensorSpec("t", "BYTES", (-1,))], [TensorSpec("u", "BYTES", (-1,))], True)
        single = Signature([TensorSpec("x", "FP32", (-1, 2))], [TensorSpec("y", "FP32", (-1, 1))], True)
        publish(
            self.plane,
            handle_of(FakeModel(), version=1),
            handle_of(self.model, version=2),
            handle_of(FakeModel(SCORES, score), "scores"),
            handle_of(FakeModel(raw, lambda t: [t]), "bytes"),
            handle_of(FakeModel(single, lambda x: [x.sum(axis=1, keepdims=True)]), "sum"),
            labels={"m": {"stable": 1}},
        )
        service = Service(self.plane, None, True, default_model)  # type: ignore[arg-type]
        self.service = service
        service.routed = lambda: True
        service.catalog = (
            CatalogEntry("m", 1, "READY"),
            CatalogEntry("m", 2, "READY"),
            CatalogEntry("m", 3, "UNAVAILABLE", "model.onnx: broken"),
        )
        limits_ = Limits(**limits)
        self.door = HttpDoor(service, limits_, self.registry.counter("cuts", "", ("door", "reason")), doors=doors)
        self.server = Http1Server(self.door, limits_, FakeClock())

    def ask(self, method: str, path: str, body: Any = b"", **headers: str) -> Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = "\r\n".join([f"{method} {path} HTTP/1.1", "host: x", f"content-length: {len(data)}", *lines])
        transport = FakeTransport(self.server())

        async def work() -> None:
            transport.protocol.data_received(head.encode() + b"\r\n\r\n" + data)
            await ticks(8)

        drive(work())
        [got] = responses(transport.written, [method])
        return got

    def post(self, path: str, body: Any, **headers: str) -> Any:
        got = self.ask("POST", path, body, **headers)
        assert got.status == 200, got
        return json.loads(got.body)

    def error(self, status: int, method: str, path: str, body: Any = b"", **headers: str) -> Any:
        got = self.ask(method, path, body, **headers)
        assert got.status == status, got
        return json.loads(got.body)


@pytest.fixture
def house() -> House:
    return House()


M = [[1.0, 2.0], [3.0, 4.0]]
BY_ROW = [{"y": [3.0, 5.0], "row_sum": 3.0}, {"y": [7.0, 9.0], "row_sum": 7.0}]
WHOLE = {"y": [[3.0, 5.0], [7.0, 9.0]], "row_sum": [3.0, 7.0]}


# --- V1 ---------------------------------------------------------------------------------------------------------


def test_v1_rows_and_columns(house: House) -> None:
    assert house.post("/v1/models/m:predict", {"instances": M}) == {"predictions": BY_ROW}
    assert house.post("/v1/models/m:predict", {"inputs": M}) == {"outputs": WHOLE}
    assert house.post("/v1/models/m:predict", {"inputs": {"x": M}, "signature_name": "serving_default"}) == {
        "outputs": WHOLE
    }


def test_v1_drops_the_name_of_a_single_output(house: House) -> None:
    assert house.post("/v1/models/sum:predict", {"instances": M}) == {"predictions": [[3.0], [7.0]]}
    assert house.post("/v1/models/sum:predict", {"inputs": {"x": M}}) == {"outputs": [[3.0], [7.0]]}


def test_v1_versions_and_labels(house: House) -> None:
    for path in ("versions/1", "versions/2", "labels/stable"):
        assert house.post(f"/v1/models/m/{path}:predict", {"instances": M}) == {"predictions": BY_ROW}
    assert house.error(404, "POST", "/v1/models/m/versions/9:predict", {"instances": M})["error"]
    assert house.error(404, "POST", "/v1/models/m/labels/nothing:predict", {"instances": M})["error"]
    assert house.error(404, "POST", "/v1/models/m/labels/1:predict", {"instances": M})["error"]
    assert "labels/stable" in house.error(400, "POST", "/v1/models/m/versions/stable:predict", {})["error"]


def test_v1_takes_and_gives_bare_nan(house: House) -> None:
    body = b'{"instances": [[NaN, -Infinity], [1, "Infinity"]], "note": "a NaN in \\"text\\""}'
    got = house.ask("POST", "/v1/models/m:predict", body)
    assert b'"y":[NaN,-Infinity]' in got.body
    assert b'"row_sum":Infinity' in got.body


def test_v1_bytes_in_base64(house: House) -> None:
    body = {"instances": [{"b64": "AP8="}, "text"]}
    assert house.post("/v1/models/bytes:predict", body) == {"predictions": [{"b64": "AP8="}, {"b64": "dGV4dA=="}]}
    assert house.post("/v1/models/bytes:predict", {"instances": ["a", "é"]}) == {"predictions": ["a", "é"]}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "neither"),
        ({"instances": M, "inputs": M}, "both came"),
        ({"instances": M, "signature_name": "other"}, "'serving_default'"),
        (b"[1]", "an object with"),
        (b"{", "an object with"),
        ({"instances": [{"z": 1}, {"z": 2, "y": 3}]}, "the same names"),
    ],
)
def test_v1_refusals(house: House, body: Any, why: str) -> None:
    error = house.error(400, "POST", "/v1/models/m:predict", body)
    assert list(error) == ["error"]
    assert why in error["error"]


def test_v1_status_has_the_keys_of_both_protocols(house: House) -> None:
    got = house.ask("GET", "/v1/models/m")
    said = json.loads(got.body)
    assert (got.status, said["name"], said["ready"]) == (200, "m", True)
    assert [(v["version"], v["state"]) for v in said["model_version_status"]] == [
        ("3", "END"), ("2", "AVAILABLE"), ("1", "AVAILABLE"),
    ]  # fmt: skip
    assert said["model_version_status"][0]["status"]["error_message"] == "model.onnx: broken"
    one = json.loads(house.ask("GET", "/v1/models/m/labels/stable").body)
    assert [v["version"] for v in one["model_version_status"]] == ["1"]
    assert house.ask("GET", "/v1/models/nothing").status == 404
    assert json.loads(house.ask("GET", "/").body) == {"status": "alive"}
    assert json.loads(house.ask("GET", "/v1/models").body) == {"models": ["bytes", "m", "scores", "sum"]}


def test_v1_metadata(house: House) -> None:
    said = json.loads(house.ask("GET", "/v1/models/scores/metadata").body)
    signature = said["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["country"]["dtype"] == "DT_STRING"
    assert signature["outputs"]["scores"]["tensor_shape"]["dim"] == [
        {"size": "-1", "name": ""},
        {"size": "2", "name": ""},
    ]


def test_v1_classify_and_regress(house: House) -> None:
    examples = {"examples": [{"age": 1}, {"age": 2}], "context": {"country": "CH"}}
    assert house.post("/v1/models/scores:classify", examples) == {
        "result": [[["0", 1.0], ["1", 2.0]], [["0", 2.0], ["1", 4.0]]]
    }
    assert house.post("/v1/models/sum:regress", {"examples": [{"x": [1, 2]}]}) == {"result": [3.0]}
    assert (
        "ask it to predict"
        in house.error(400, "POST", "/v1/models/sum:classify", {"examples": [{"x": [1, 2]}]})["error"]
    )
    house.error(501, "POST", "/v1/models/m:explain", {"instances": M})
    assert house.ask("GET", "/v1/models/m:predict").headers["allow"] == "POST"


ASKED = {"ce_specversion": "1.0", "ce_id": "7", "ce_source": "/me", "ce_type": "ask"}


def test_a_structured_event_is_answered_by_one(house: House) -> None:
    event = {"specversion": "1.0", "id": "7", "source": "/me", "type": "ask", "data": {"instances": M}}
    got = house.ask("POST", "/v1/models/m:predict", event, content_type="application/cloudevents+json; charset=utf-8")
    said = json.loads(got.body)
    assert got.headers["content-type"] == "application/cloudevents+json"
    assert said["data"] == {"predictions": BY_ROW}
    assert (said["specversion"], said["type"]) == ("1.0", "io.kserve.inference.response")
    assert said["source"] == "io.kserve.inference.m"
    assert said["id"] not in ("", "7")
    coded = {**event, "data_base64": base64.b64encode(json.dumps(event.pop("data")).encode()).decode()}
    del coded["data"]
    again = house.ask("POST", "/v1/models/m:predict", coded, content_type="application/cloudevents+json")
    assert json.loads(again.body)["data"] == {"predictions": BY_ROW}


def test_a_binary_event_is_answered_by_one(house: House) -> None:
    got = house.ask("POST", "/v1/models/m:predict", {"instances": M}, content_type="application/json", **ASKED)
    assert json.loads(got.body) == {"predictions": BY_ROW}
    assert got.headers["content-type"] == "application/json"
    assert (got.headers["ce-type"], got.headers["ce-specversion"]) == ("io.kserve.inference.response", "1.0")
    assert not house.server.heads  # a head that names one event is not kept


@pytest.mark.parametrize("missing", ["ce_id", "ce_source", "ce_type"])
def test_an_event_that_is_not_whole_is_refused(house: House, missing: str) -> None:
    headers = {name: value for name, value in ASKED.items() if name != missing}
    error = house.error(400, "POST", "/v1/models/m:predict", {"instances": M}, **headers)
    assert missing.replace("_", "-") in error["error"]
    structured = {"content_type": "application/cloudevents+json"}
    assert "CloudEvent" in house.error(400, "POST", "/v1/models/m:predict", {"instances": M}, **structured)["error"]
    old = {**ASKED, "ce_specversion": "0.3"}
    assert "1.0 is taken" in house.error(400, "POST", "/v1/models/m:predict", {"instances": M}, **old)["error"]


# --- MLflow, SageMaker --------------------------------------------------------------------------------------------

RECORDS = [{"age": 1, "country": "CH"}, {"age": 2, "country": "FR"}]
SCORED = {"predictions": [{"label": 0, "scores": [1.0, 2.0]}, {"label": 1, "scores": [2.0, 4.0]}]}


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": RECORDS},
        {"dataframe_split": {"columns": ["country", "age"], "data": [["CH", 1], ["FR", 2]], "index": [0, 1]}},
        {"dataframe_split": {"data": [[1, "CH"], [2, "FR"]]}},
        {"instances": RECORDS, "params": {"a": 1}},
        RECORDS,
    ],
)
def test_mlflow_rows(house: House, body: Any) -> None:
    assert house.post("/models/scores/invoke", body, content_type="application/json; charset=utf-8") == SCORED


def test_mlflow_inputs_are_answered_whole(house: House) -> None:
    said = house.post("/models/scores/invoke", {"inputs": {"age": [[1]], "country": [["CH"]]}})
    assert said == {"predictions": {"label": [0], "scores": [[1.0, 2.0]]}}


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("age,country\n1,CH\n2,FR\n", "text/csv"),
        ("id,country,age\r\n7,CH,1\r\n8,FR,2\r\n", "text/csv"),
        ("1,CH\n2,FR", "text/csv"),
        ("1,CH\n2,FR", "text/csv; header=absent"),
        ("country,age\nCH,1\nFR,2", "text/csv;header=present"),
    ],
)
def test_csv_with_and_without_a_header(house: House, text: str, content: str) -> None:
    assert house.post("/models/scores/invoke", text.encode(), content_type=content) == SCORED


def test_csv_and_json_lines_come_back_where_they_are_asked_for(house: House) -> None:
    got = house.ask("POST", "/models/scores/invoke", {"instances": RECORDS}, accept="text/csv")
    assert (got.headers["content-type"], got.body) == ("text/csv", b"0,1.0,2.0\n1,2.0,4.0\n")
    lines = b'{"age": 1, "country": "CH"}\n{"age": 2, "country": "FR"}\n'
    got = house.ask("POST", "/models/scores/invoke", lines, content_type="application/jsonlines")
    assert [json.loads(line) for line in got.body.splitlines()] == SCORED["predictions"]


@pytest.mark.parametrize(
    ("body", "content", "status", "code"),
    [
        ({}, "application/json", 400, "BAD_REQUEST"),
        ({"instances": M, "inputs": M}, "application/json", 400, "BAD_REQUEST"),
        (b"x", "application/json", 400, "BAD_REQUEST"),
        (b"", "text/csv", 400, "BAD_REQUEST"),
        (b'1,"x', "text/csv", 400, "BAD_REQUEST"),
        (b"x", "application/x-npy", 415, "BAD_REQUEST"),
    ],
)
def test_mlflow_errors_have_its_shape(house: House, body: Any, content: str, status: int, code: str) -> None:
    error = house.error(status, "POST", "/models/m/invoke", body, content_type=content)
    assert error.keys() == {"error_code", "message"}
    assert error["error_code"] == code


def test_mlflow_error_codes(house: House) -> None:
    assert house.error(404, "POST", "/models/nothing/invoke", {"inputs": M})["error_code"] == "RESOURCE_DOES_NOT_EXIST"
    house.model.poison = {1.0}
    house.model.error = lambda: Internal("secret")
    assert house.error(500, "POST", "/models/m/invoke", {"inputs": M})["error_code"] == "INTERNAL_ERROR"


def test_paths_that_name_no_model(house: House) -> None:
    assert "default_model" in house.error(404, "POST", "/invocations", {"inputs": M})["message"]
    assert "default_model" in house.error(404, "POST", "/predict", {"x": [1, 2]})["error"]
    chosen = House(default_model="scores")
    assert chosen.post("/invocations", RECORDS) == SCORED


def test_ping_says_whether_it_should_get_traffic(house: House) -> None:
    assert house.ask("GET", "/ping").status == house.ask("GET", "/health").status == 200
    house.service.draining = True
    assert house.ask("GET", "/ping").status == 503
    limits = json.loads(house.ask("GET", "/execution-parameters").body)
    assert limits["MaxConcurrentTransforms"] * limits["MaxPayloadInMB"] <= max(100, limits["MaxConcurrentTransforms"])


# --- /predict -------------------------------------------------------------------------------------------------------


def test_predict_one_row_and_many(house: House) -> None:
    one = house.post("/models/scores/predict", RECORDS[0])
    assert one == {"label": 0, "scores": [1.0, 2.0]}
    assert house.post("/models/scores/predict", RECORDS) == SCORED["predictions"]
    assert house.post("/models/sum/predict", [[1, 2]]) == [{"y": 3.0}]
    assert house.post("/models/m/versions/stable/predict", {"x": ["NaN", 2]}) == {"y": ["NaN", 5.0], "row_sum": "NaN"}
    assert "field 'country' is missing" in house.error(400, "POST", "/models/scores/predict", {"age": 1})["error"]
    two = b'{"x": [1, 2]}, {"x": [3, 4]}'
    assert "without brackets" in house.error(400, "POST", "/models/m/predict", two)["error"]
    bare = house.ask("POST", "/models/m/predict", b'{"x": [NaN, 2]}')
    assert json.loads(bare.body) == {"y": ["NaN", 5.0], "row_sum": "NaN"}


def test_one_row_and_several_are_written_alike(house: House) -> None:
    for path, member in (("/v1/models/m:predict", "predictions"), ("/models/m/invoke", "predictions")):
        for rows in (M, [[float("nan"), 1.0], [float("inf"), 2.0]]):
            body = json.dumps({"instances": rows}).encode()
            together = json.loads(house.ask("POST", path, body).body)[member]
            alone = [
                json.loads(house.ask("POST", path, json.dumps({"instances": [row]}).encode()).body)[member][0]
                for row in rows
            ]
            assert str(alone) == str(together)
            whole = [house.ask("POST", path, json.dumps({"inputs": part}).encode()).body for part in (rows[:1], rows)]
            first, both = (next(iter(json.loads(body).values())) for body in whole)
            assert str({name: values[:1] for name, values in both.items()}) == str(first)


def test_the_document_says_what_is_open(house: House) -> None:
    said = json.loads(house.ask("GET", "/openapi.json").body)
    assert {"/v2/models/{model}/infer", "/v1/models/{model}:predict", "/invocations", "/predict"} <= said[
        "paths"
    ].keys()
    few = json.loads(House(doors=("openapi",)).ask("GET", "/openapi.json").body)
    assert few["paths"].keys() == {path for path in said["paths"] if path.startswith("/v2")}
    validate(said)
    page = house.ask("GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert b"http" not in page.body.split(b"<script>")[1]  # it loads nothing from elsewhere


def test_every_body_to_begin_with_is_answered() -> None:
    house = House(default_model="sum")
    said = json.loads(house.ask("GET", "/openapi.json").body)
    refused = []
    for path, methods in said["paths"].items():
        examples = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        for model, example in examples.get("examples", {}).items():
            if "{model}" in path or model == "sum":
                got = house.ask("POST", path.replace("{model}", model), example["value"])
                if got.status != 200:
                    refused.append((path, model, got.status))
        for answer in [house.ask("GET", path.replace("{model}", "sum"))] if "get" in methods else []:
            assert answer.status == 200, path
    verbs = {path.rpartition(":")[2] for path, _, _ in refused}
    assert verbs <= {"classify", "regress"}, refused  # which not every model can


def test_a_body_to_begin_with_is_no_image(house: House) -> None:
    image = Signature([TensorSpec("image", "FP32", (-1, 3, 1024, 1024))], SCORES.outputs, True)
    publish(house.plane, handle_of(FakeModel(image), "image"), handle_of(FakeModel(), "m"))
    said = house.ask("GET", "/openapi.json")
    assert len(said.body) < 100_000
    content = json.loads(said.body)["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"][
        "application/json"
    ]
    assert list(content["examples"]) == ["m"]


def test_a_model_may_be_called_as_a_verb_of_another_door_is() -> None:
    house = House()
    publish(house.plane, handle_of(FakeModel(), "invoke"))
    assert house.ask("GET", "/v1/models/invoke").status == 200
    got = house.ask("POST", "/models/invoke/invoke", [[1, 2]])
    assert got.status == 200
    assert "predictions" in json.loads(got.body)
    assert house.ask("POST", "/predict/invoke", [[1, 2]]).status == 404


def test_a_feature_that_comes_twice_is_refused(house: House) -> None:
    split = {"dataframe_split": {"columns": ["age", "country", "age"], "data": [[1, "CH", 2]]}}
    path = "/models/scores/invoke"
    for body, content in ((split, "application/json"), (b"age,country,age\n1,CH,2\n", "text/csv")):
        got = house.ask("POST", path, body, content_type=content)
        assert got.status == 400
        assert json.loads(got.body)["message"] == "column 'age' came twice"
    split["dataframe_split"] = {"columns": ["age", "country", "note", "note"], "data": [[1, "CH", 2, 3]]}
    assert house.ask("POST", path, split).status == 200


def test_a_candidate_gets_its_columns_in_its_own_order() -> None:
    def version(number: int, *features: str) -> Any:
        spec = TensorSpec("x", "FP32", (-1, 2))
        signature = Signature([spec], [TensorSpec("y", "FP32", (-1,))], True, features={"x": features})
        return handle_of(FakeModel(signature, lambda x: [x[:, 0] * 10 + x[:, 1]]), "ab", number)

    house = House()
    publish(house.plane, version(1, "a", "b"), version(2, "b", "a"))
    row = {"a": 1, "b": 2}
    asked = (
        ("/models/ab/predict", row),
        ("/v1/models/ab:predict", {"instances": [row]}),
        ("/v1/models/ab:predict", {"inputs": {"a": [1], "b": [2]}}),
        ("/models/ab/invoke", {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}),
    )
    for candidate, wanted in ((BUCKETS, 21.0), (0, 12.0)):
        arms = Arm(2, 0, candidate, CANDIDATE), Arm(1, candidate, BUCKETS)
        house.plane.route([RoutePlan("ab", candidate + 1, arms)], {}, [("ab", 1), ("ab", 2)])
        for path, body in asked:
            got = house.ask("POST", path, body)
            assert got.status == 200, got.body
            assert str(wanted).encode() in got.body, (path, got.body)
        assert b"12.0" in house.ask("POST", "/models/ab/versions/1/predict", row).body


def test_deadlines_and_codings_are_everywhere(house: House) -> None:
    body = gzip.compress(json.dumps({"instances": M}).encode())
    assert house.post("/v1/models/m:predict", body, content_encoding="gzip") == {"predictions": BY_ROW}
    got = house.ask("POST", "/v1/models/m:predict", {"instances": M * 100}, accept_encoding="gzip")
    assert got.headers["content-encoding"] == "gzip"
    assert len(json.loads(gzip.decompress(got.body))["predictions"]) == 200
    house.error(504, "POST", "/v1/models/m:predict", {"instances": M}, x_request_timeout="0")
    assert house.error(504, "POST", "/models/m/invoke", {"instances": M}, x_request_timeout="0")["error_code"]
    house.error(400, "POST", "/models/m/invoke", {"instances": M}, x_request_timeout="soon")


def test_a_door_that_is_off_says_so() -> None:
    off = House(doors=("predict",))
    for path in ("/v1/models/m:predict", "/invocations", "/ping", "/models/m/invoke"):
        assert "switched off" in off.error(404, "POST", path, {"instances": M})["error"]
    assert off.post("/models/m/predict", {"x": [1, 2]}) == {"y": [3.0, 5.0], "row_sum": 3.0}
    assert off.ask("GET", "/v2/health/live").status == 200


def test_each_door_has_its_label_in_the_metrics(house: House) -> None:
    house.post("/v1/models/m:predict", {"instances": M})
    house.post("/models/m/invoke", {"instances": M})
    house.post("/models/m/predict", {"x": [1, 2]})
    snapshot = house.registry.snapshot()
    for door in (b"v1", b"mlflow", b"predict"):
        assert door in snapshot
