"""Messages that are whole requests: their answers are those of the online door, and what fails fails alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from octoserve.codecs.open_inference_json import decode_request, encode_response
from octoserve.connectors.queues.protocol import ID_HEADER, Message, Position
from octoserve.core.errors import Internal, InvalidInput, NotFound, OctoserveError
from octoserve.core.results import Ran, Result
from octoserve.core.tensors import Tensor
from octoserve.dataplane.deferred import LENGTH_HEADER
from octoserve.patterns.message_queue.requests import Requests
from support.models import answer, rows_of_floats

T = TypeVar("T")


class Model:
    """Version 7 of `m`. poison: numbers whose request raises Internal; waves: how many were asked at once."""

    def __init__(self) -> None:
        self.signature = rows_of_floats()
        self.poison: set[float] = set()
        self.waves: list[int] = []

    def waited(self, work: Callable[[], T]) -> T:
        return work()

    def infer(self, requests: Sequence[Sequence[Tensor]], ended: Callable[[], None]) -> list[Result | OctoserveError]:
        self.waves.append(len(requests))
        found: list[Result | OctoserveError] = []
        for tensors in requests:
            array = tensors[0].array()
            if self.poison & set(array.ravel().tolist()):
                found.append(Internal("failed on this input"))
            else:
                found.append(Result(Ran("m", 7, self.signature, answer(array))))
            ended()
        return found


def body(*rows: tuple[float, ...], **more: Any) -> bytes:
    values = np.array(rows, np.float32)
    tensor = {"name": "x", "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}
    return json.dumps({"inputs": [tensor], **more}).encode()


def message(number: int, value: bytes, **headers: str) -> Message:
    return Message(position=Position("", number), name=f"q/{number}", value=value, headers=headers)


def scorer(model: Model, fetch: Callable[[str], bytes] | None = None) -> tuple[Requests, list[str]]:
    seen: list[str] = []

    @contextlib.contextmanager
    def guard() -> Any:
        seen.append("begin")
        yield
        seen.append("end")

    return Requests(model, guard, lambda: seen.append("again"), fetch), seen


def test_each_answer_is_what_infer_would_have_sent():
    model = Model()
    bodies = [body((1, 2), (3, 4), id="a"), body((5,), outputs=[{"name": "row_sum"}]), body((np.nan, 1.0))]
    bodies[2] = bodies[2].replace(b"NaN", b'"NaN"')
    requests, seen = scorer(model)
    scored = requests.score([message(n, value) for n, value in enumerate(bodies)])
    assert scored.failed == {}
    assert scored.good == [0, 1, 2]
    assert scored.ids == ["a", "q/1", "q/2"]
    assert scored.versions.tolist() == [7, 7, 7]
    for value, got in zip(bodies, scored.columns[0], strict=True):
        request = decode_request(value)
        ran = Ran("m", 7, model.signature, answer(request.tensors[0].array()))
        assert got == encode_response(Result(ran), request)[0]
    assert seen == ["begin", "again", "again", "again", "end"]


def test_the_id_is_the_headers_where_the_door_gave_one():
    requests, _ = scorer(Model())
    scored = requests.score([message(0, body((1,), id="a"), **{ID_HEADER: "m/a"})])
    assert scored.ids == ["m/a"]


def test_what_fails_fails_alone_and_keeps_its_id():
    model = Model()
    model.poison = {9.0}
    values = [b"{", body((9,), id="p"), body((1,), id="g"), b'{"id": "u", "inputs": []}']
    values.append(body((1,), id="b", parameters={"binary_data_output": True}))
    requests, _ = scorer(model)
    scored = requests.score([message(n, value) for n, value in enumerate(values)])
    assert scored.good == [2]
    assert scored.ids == ["q/0", "p", "g", "u", "b"]
    kinds = {place: type(error) for place, error in scored.failed.items()}
    assert kinds == {0: InvalidInput, 1: Internal, 3: InvalidInput, 4: InvalidInput}


def test_binary_tensors_are_read_by_the_length_in_the_header():
    head = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}]}
    text = json.dumps(head).encode()
    value = text + np.array([2.0], np.float32).tobytes()
    requests, _ = scorer(Model())
    scored = requests.score([message(0, value, **{LENGTH_HEADER: str(len(text))})])
    assert json.loads(scored.columns[0][0])["outputs"][0]["data"] == [5.0]


def test_few_are_in_the_data_plane_at_once():
    model = Model()
    requests, seen = scorer(model)
    scored = requests.score([message(n, body((float(n),))) for n in range(150)])
    assert model.waves == [64, 64, 22]
    assert seen.count("begin") == 3
    assert [json.loads(each)["outputs"][1]["data"] for each in scored.columns[0]] == [[float(n)] for n in range(150)]


def test_a_request_by_reference_is_fetched():
    objects = {"s3://b/k": body((1,), id="inner")}

    def fetch(address: str) -> bytes:
        if address not in objects:
            raise NotFound(f"{address}: no such object")
        return objects[address]

    requests, _ = scorer(Model(), fetch)
    scored = requests.score(
        [
            message(0, b'{"input_location": "s3://b/k"}', **{ID_HEADER: "m/1"}),
            message(1, b'{"input_location": "s3://b/k", "id": "outer"}'),
            message(2, b'{"input_location": "s3://b/none"}'),
        ]
    )
    assert scored.good == [0, 1]
    assert [json.loads(each)["id"] for each in scored.columns[0]] == ["inner", "outer"]
    assert scored.ids == ["m/1", "outer", "q/2"]
    assert "no such object" in str(scored.failed[2])


def test_without_a_way_to_fetch_a_reference_has_failed():
    requests, _ = scorer(Model())
    scored = requests.score([message(0, b'{"input_location": "s3://b/k"}')])
    assert isinstance(scored.failed[0], InvalidInput)


def test_ids_alone():
    requests, _ = scorer(Model())
    assert requests.decode([body((1,), id="a")]).ids == ["a"]
