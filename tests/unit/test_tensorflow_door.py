"""TensorFlow Serving's services over a call that only remembers: status codes, labels, splits, and the switch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octoserve.codecs.protos import message
from octoserve.core.doors import DOORS
from octoserve.core.evidence import CANDIDATE
from octoserve.core.signature import Signature, TensorSpec
from octoserve.dataplane.endpoint import DataPlane
from octoserve.patterns.online.grpc import families
from octoserve.patterns.online.link.messages import CatalogEntry
from octoserve.patterns.online.service import Service
from octoserve.routing.plan import BUCKETS, Arm, RoutePlan
from octoserve.security.caller import Caller
from octoserve.telemetry.metrics import Registry
from support.loops import FakeClock, InlineExecutor, drive, loop, ticks
from support.models import FakeModel, handle_of, publish

INVALID, NOT_FOUND, FAILED_PRECONDITION, UNIMPLEMENTED = 3, 5, 9, 12
PEOPLE = Signature(
    [TensorSpec("people", "FP32", (-1, 2))], [TensorSpec("scores", "FP32", (-1, 2))], True,
    features={"people": ("age", "income")},
)  # fmt: skip
TURNED = Signature(PEOPLE.inputs, PEOPLE.outputs, True, features={"people": ("income", "age")})


class Remembered:
    """What a door asks of a call."""

    deadline: float | None = None
    on_cancel: Any = None
    caller: Caller | None = None

    def __init__(self) -> None:
        self.metadata: dict[str, str] = {}
        self.replied: bytes | None = None
        self.ended: tuple[int, str] | None = None

    def reply(self, data: bytes) -> None:
        self.replied = data

    def finish(self, code: int, text: str = "", trailers: Any = ()) -> None:
        self.ended = (code, text)


class House:
    """The door over `m` (x FP32[-1,-1] -> y, row_sum) at 1 and 2, and `people`."""

    def __init__(self, doors: tuple[str, ...] = DOORS) -> None:
        self.registry = Registry()
        self.plane = DataPlane(self.registry, loop(), InlineExecutor(), clock=FakeClock())
        publish(
            self.plane,
            handle_of(FakeModel(), version=1),
            handle_of(FakeModel(), version=2),
            handle_of(FakeModel(PEOPLE, lambda people: [people]), "people"),
            labels={"m": {"stable": 1}},
        )
        self.service = Service(self.plane, None)  # type: ignore[arg-type]
        self.service.catalog = (
            CatalogEntry("m", 1, "READY"),
            CatalogEntry("m", 2, "READY"),
            CatalogEntry("m", 3, "UNAVAILABLE", "model.onnx: broken"),
        )
        self.handlers = families.unary(self.service, doors)

    def call(self, path: str, data: bytes) -> Remembered:
        call = Remembered()

        async def work() -> None:
            self.handlers[f"/tensorflow.serving.{path}"](call, data)  # type: ignore[arg-type]
            await ticks(8)

        drive(work())
        return call

    def ask(self, path: str, kind: str, reply: str, **fields: Any) -> Any:
        call = self.call(path, message(f"tensorflow.serving.{kind}")(**fields).SerializeToString())
        assert call.ended is None, call.ended
        assert call.replied is not None
        return message(f"tensorflow.serving.{reply}").FromString(call.replied)

    def refused(self, path: str, kind: str, **fields: Any) -> tuple[int, str]:
        call = self.call(path, message(f"tensorflow.serving.{kind}")(**fields).SerializeToString())
        assert call.ended is not None
        assert call.replied is None
        return call.ended


@pytest.fixture
def house() -> House:
    return House()


def tensor(array: Any) -> dict[str, Any]:
    values = np.array(array, "<f4")
    return {"dtype": 1, "tensor_shape": {"dim": [{"size": n} for n in values.shape]}, "float_val": values.ravel()}


def predict(**spec: Any) -> dict[str, Any]:
    return {"model_spec": {"name": "m", **spec}, "inputs": {"x": tensor([[1, 2], [3, 4]])}}


PREDICT = "PredictionService/Predict", "PredictRequest"


def test_predict(house: House) -> None:
    answer = house.ask(*PREDICT, "PredictResponse", **predict(), output_filter=["row_sum"])
    assert list(answer.outputs) == ["row_sum"]
    assert list(answer.outputs["row_sum"].double_val) == [3.0, 7.0]
    assert answer.model_spec.version.value == 2
    answer = house.ask(*PREDICT, "PredictResponse", **predict(version_label="stable"))
    assert (answer.model_spec.version.value, answer.outputs.keys()) == (1, {"y", "row_sum"})
    assert house.ask(*PREDICT, "PredictResponse", **predict(version={"value": 1})).model_spec.version.value == 1


def test_codes_are_tensorflow_servings(house: House) -> None:
    assert house.refused(*PREDICT, **predict(version_label="nothing"))[0] == INVALID
    assert house.refused(*PREDICT, **predict(version={"value": 9}))[0] == NOT_FOUND
    assert house.refused(*PREDICT, **predict(version={"value": -9}))[0] == NOT_FOUND
    assert house.refused(*PREDICT, model_spec={"name": "nothing"})[0] == NOT_FOUND
    assert house.refused(*PREDICT, model_spec={"name": "nothing", "version_label": "a"})[0] == NOT_FOUND
    assert house.refused(*PREDICT, **predict(signature_name="other"))[0] == FAILED_PRECONDITION
    assert house.refused(*PREDICT, **predict(), output_filter=["nothing"])[0] == INVALID
    assert house.refused(*PREDICT, model_spec={"name": "m"}) == (
        INVALID, "input 'x' is missing; wanted: x FP32[-1, -1]; came: []",
    )  # fmt: skip
    assert house.refused(*PREDICT)[0] == INVALID
    for path in house.handlers:
        ended = house.call(path.removeprefix("/tensorflow.serving."), b"\xff").ended
        assert ended is not None
        assert ended[0] in (INVALID, UNIMPLEMENTED)


def examples(*rows: tuple[float, float]) -> dict[str, Any]:
    listed = [
        {"features": {"feature": {"age": {"float_list": {"value": [a]}}, "income": {"float_list": {"value": [i]}}}}}
        for a, i in rows
    ]
    return {"model_spec": {"name": "people"}, "input": {"example_list": {"examples": listed}}}


def test_classify_and_regress(house: House) -> None:
    asked = "PredictionService/Classify", "ClassificationRequest"
    answer = house.ask(*asked, "ClassificationResponse", **examples((1, 2), (3, 4)))
    assert [[c.score for c in row.classes] for row in answer.result.classifications] == [[1, 2], [3, 4]]
    code, text = house.refused("PredictionService/Regress", "RegressionRequest", **examples((1, 2)))
    assert (code, "ask it to predict" in text) == (INVALID, True)
    assert house.refused(*asked, model_spec={"name": "people"})[0] == INVALID


def test_a_candidate_with_another_order_of_features_reads_examples_by_its_own(house: House) -> None:
    """As the JSON doors do: which arm answers is known only after the examples are read."""
    publish(
        house.plane,
        *(handle_of(FakeModel(s, lambda people: [people]), "people", n) for n, s in ((1, PEOPLE), (2, TURNED))),
    )
    arms = Arm(2, 0, BUCKETS, CANDIDATE), Arm(1, BUCKETS, BUCKETS)
    house.plane.route([RoutePlan("people", 9, arms)], {}, [("people", 1), ("people", 2)])
    answer = house.ask("PredictionService/Classify", "ClassificationRequest", "ClassificationResponse",
                       **examples((1, 2)))  # fmt: skip
    assert answer.model_spec.version.value == 2
    assert [c.score for c in answer.result.classifications[0].classes] == [2, 1]


def test_metadata_and_status(house: House) -> None:
    asked = "PredictionService/GetModelMetadata", "GetModelMetadataRequest"
    answer = house.ask(*asked, "GetModelMetadataResponse", model_spec={"name": "m"}, metadata_field=["signature_def"])
    defined = message("tensorflow.serving.SignatureDefMap").FromString(answer.metadata["signature_def"].value)
    x = defined.signature_def["serving_default"].inputs["x"]
    assert (x.dtype, [d.size for d in x.tensor_shape.dim]) == (1, [-1, -1])
    assert house.refused(*asked, model_spec={"name": "m"})[0] == INVALID
    assert house.refused(*asked, model_spec={"name": "m"}, metadata_field=["other"])[0] == INVALID

    asked = "ModelService/GetModelStatus", "GetModelStatusRequest"

    def states(**spec: Any) -> list[tuple[int, int, int, str]]:
        said = house.ask(*asked, "GetModelStatusResponse", model_spec={"name": "m", **spec}).model_version_status
        return [(one.version, one.state, one.status.error_code, one.status.error_message) for one in said]

    assert states() == [(3, 50, 2, "model.onnx: broken"), (2, 30, 0, ""), (1, 30, 0, "")]
    assert states(version={"value": 2}) == states()[1:2]
    assert states(version_label="stable") == states()[2:]
    assert house.refused(*asked, model_spec={"name": "nothing"})[0] == NOT_FOUND
    assert house.refused(*asked, model_spec={"name": "m", "version": {"value": 7}})[0] == NOT_FOUND


def test_what_is_not_offered_says_what_to_do(house: House) -> None:
    code, text = house.refused("ModelService/HandleReloadConfigRequest", "ReloadConfigRequest")
    assert (code, "octoserve.yaml" in text) == (UNIMPLEMENTED, True)
    code, text = house.refused("PredictionService/MultiInference", "MultiInferenceRequest")
    assert (code, "Predict" in text) == (UNIMPLEMENTED, True)


def test_refusals_are_counted(house: House) -> None:
    house.refused(*PREDICT, **predict(signature_name="other"))
    house.refused(*PREDICT, model_spec={"name": "nothing"})
    text = str(house.registry.snapshot())
    assert "tensorflow" in text


def test_the_door_may_be_shut() -> None:
    assert House(("v1",)).handlers == {}
