"""The door of asynchronous requests: what is accepted and in which order, what a poll says, and what is refused."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from octoserve.connectors.queues.answers import Answer, Asked
from octoserve.connectors.queues.protocol import DeadLetter
from octoserve.core.errors import TooLarge, Unavailable
from octoserve.core.signature import Signature, TensorSpec
from octoserve.dataplane.deferred import LENGTH_HEADER, request_of
from octoserve.dataplane.endpoint import DataPlane
from octoserve.patterns.online.http.async_door import AsyncDoor, Way
from octoserve.patterns.online.http.connection import Http1Server
from octoserve.patterns.online.http.door import HttpDoor
from octoserve.patterns.online.service import Service
from octoserve.patterns.online.settings import AsyncRequests, Limits
from octoserve.telemetry.metrics import Registry
from support.loops import FakeClock, InlineExecutor, ManualExecutor, drive, loop, ticks
from support.models import FakeModel, handle_of, publish
from support.transport import FakeTransport, Response, responses

PATH = "/v2/models/m/infer-async"


class Store:
    """Answers in memory. log: what was asked of it; away: whether it is."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.rows: dict[str, Answer] = {}
        self.taken: dict[str, str] = {}
        self.away = False

    def prepare(self) -> None:
        pass

    def _do(self, what: str) -> None:
        if self.away:
            raise Unavailable("postgresql://h/db: connection refused")
        self.log.append(what)

    def _row(self, asked: Asked) -> Answer:
        return self.rows.get(asked.id) or Answer(id=asked.id, state="pending", digest=self.taken[asked.id])

    def take(self, asked: Asked, now: float) -> Answer:
        self._do(f"take {asked.id}")
        self.taken.setdefault(asked.id, asked.digest)
        return self._row(asked)

    def accept(self, asked: Asked, now: float) -> Answer:
        self._do(f"accept {asked.id}")
        self.taken.setdefault(asked.id, asked.digest)
        self.rows[asked.id] = Answer(
            id=asked.id, state="pending", digest=self.taken[asked.id], accepted=now, callback=asked.callback
        )
        return self.rows[asked.id]

    def look(self, id: str) -> Answer | None:
        self._do(f"look {id}")
        return self.rows.get(id)

    def fail(self, letters: Sequence[DeadLetter]) -> None:
        raise AssertionError("the door fails nothing")

    def owed(self, now: float, patience: float, limit: int) -> list[Answer]:
        raise AssertionError("the door tells nobody")

    def told(self, id: str, again: float | None) -> None:
        raise AssertionError("the door tells nobody")

    def forget(self, before: float) -> int:
        raise AssertionError("the door forgets nothing")

    def close(self) -> None:
        self.log.append("close")


class Queue:
    """A queue in memory. fail: what the next messages raise."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.messages: list[tuple[bytes, str, dict[str, str]]] = []
        self.fail: list[Exception] = []

    def check(self) -> None:
        pass

    def prepare(self) -> None:
        raise Unavailable("it comes later")

    def publish(self, value: bytes, id: str, headers: Mapping[str, str]) -> None:
        if self.fail:
            raise self.fail.pop(0)
        self.log.append(f"publish {id}")
        self.messages.append((value, id, dict(headers)))

    def close(self) -> None:
        self.log.append("close")


class House:
    """A door with a model behind it, and a queue and a store in memory."""

    def __init__(self, executor: Any = None, **settings: Any) -> None:
        clock, registry = FakeClock(), Registry()
        plane = DataPlane(registry, loop(), InlineExecutor(), clock=clock)
        bits = Signature([TensorSpec("x", "FP32", (-1, 2))], [TensorSpec("b", "BF16", (-1, 2))], True)
        fixed = Signature([TensorSpec("f", "FP32", (3,))], [TensorSpec("g", "FP32", (3,))])
        publish(
            plane,
            handle_of(FakeModel(), version=1),
            handle_of(FakeModel(bits, lambda h: [h]), "bits"),
            handle_of(FakeModel(fixed, lambda f: [f]), "fixed"),
            handle_of(FakeModel(), "sync"),
        )
        self.log: list[str] = []
        self.store, self.queue = Store(self.log), Queue(self.log)
        models = ("m", "bits", "fixed", "gone")
        self.registry = registry
        self.counts = registry.counter("requests", "", ("model", "outcome"))
        limits = Limits()
        told = AsyncRequests(models=models, source="", store="", state_dir="", **settings)
        self.door = AsyncDoor(
            Service(plane, None, False),  # type: ignore[arg-type]
            told,
            limits,
            Way(dict.fromkeys(models, self.queue), self.store),
            self.counts,
            wall=lambda: 1000.0,
            executor=executor or InlineExecutor(),
        )
        cuts = registry.counter("cuts", "", ("door", "reason"))
        door = HttpDoor(Service(plane, None, False), limits, cuts, self.door)  # type: ignore[arg-type]
        self.server = Http1Server(door, limits, clock)

    def send(self, method: str, path: str, body: bytes = b"", *lines: str) -> FakeTransport:
        transport = FakeTransport(self.server())
        head = [f"{method} {path} HTTP/1.1", "Host: h", *lines, f"Content-Length: {len(body)}", "", ""]

        async def work() -> None:
            transport.protocol.data_received("\r\n".join(head).encode("latin-1") + body)  # type: ignore[attr-defined]
            await ticks(8)

        drive(work())
        return transport

    def ask(self, method: str, path: str, body: bytes = b"", *lines: str) -> Response:
        [got] = responses(bytes(self.send(method, path, body, *lines).written), [method])
        return got

    def post(self, body: Any, *lines: str, path: str = PATH) -> Response:
        return self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), *lines)

    def count(self, outcome: str, model: str = "m") -> float:
        return self.counts.counter(model, outcome).value


def rows(values: Any = ((1.0, 2.0),), **more: Any) -> dict[str, Any]:
    flat = [v for row in values for v in row]
    return {"inputs": [{"name": "x", "shape": [len(values), len(values[0])], "datatype": "FP32", "data": flat}], **more}


def error(got: Response) -> str:
    return str(json.loads(got.body)["error"])


# --- accepting -------------------------------------------------------------------------------------------


def test_it_is_accepted_once_the_broker_and_the_store_have_it():
    house = House()
    got = house.post(rows())
    told = json.loads(got.body)
    assert got.status == 202
    assert got.headers["location"] == told["status_url"] == f"{PATH}/{told['id']}"
    assert told["state"] == "pending"
    [(value, id, headers)] = house.queue.messages
    assert (json.loads(value), id, headers) == (rows(), f"m/{told['id']}", {})
    assert house.log == [f"publish {id}", f"accept {id}"]
    assert house.count("accepted") == 1


def test_an_id_of_the_clients_is_taken_before_anything_is_sent():
    house = House()
    assert house.post(rows(id="a/ä b")).headers["location"] == f"{PATH}/a%2F%C3%A4%20b"
    assert house.log == ["take m/a/ä b", "publish m/a/ä b", "accept m/a/ä b"]


def test_the_header_names_it_where_the_body_does_not_or_names_another():
    house = House()
    assert json.loads(house.post(rows(id="a"), "Idempotency-Key: k-1").body)["id"] == "k-1"


def test_the_same_again_is_answered_alike_and_not_sent():
    house = House()
    first = house.post(rows(id="a"))
    house.log.clear()
    again = house.post(rows(id="a"))
    assert (again.status, again.body, again.headers["location"]) == (202, first.body, first.headers["location"])
    assert house.log == ["take m/a"]
    assert house.count("repeated") == 1


def test_the_same_again_says_how_far_it_is():
    house = House()
    house.post(rows(id="a"))
    done = house.store.rows["m/a"]
    house.store.rows["m/a"] = Answer(id="m/a", state="done", digest=done.digest, accepted=1.0, answer=b"{}")
    assert json.loads(house.post(rows(id="a")).body)["state"] == "done"


@pytest.mark.parametrize(
    ("body", "lines"),
    [(rows(((9.0, 2.0),), id="a"), ()), (rows(id="a"), ("X-Octoserve-Callback: https://h.example/x",))],
)
def test_another_request_under_a_taken_id_is_a_conflict(body: Any, lines: tuple[str, ...]):
    house = House(callbacks=("https://h.example",))
    house.post(rows(id="a"))
    got = house.post(body, *lines)
    assert got.status == 409
    assert "'a' is another request's" in error(got)
    assert len(house.queue.messages) == 1


def test_ids_are_each_models_own():
    house = House()
    fixed = {"id": "a", "inputs": [{"name": "f", "shape": [3], "datatype": "FP32", "data": [1, 2, 3]}]}
    assert house.post(rows(id="a")).status == 202
    assert house.post(fixed, path="/v2/models/fixed/infer-async").status == 202
    assert [id for _, id, _ in house.queue.messages] == ["m/a", "fixed/a"]


def test_binary_tensors_and_a_coding_arrive_as_they_can_be_read_again():
    house = House()
    head = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]}
    text = json.dumps(head).encode()
    packed = zlib.compress(text + struct.pack("<2f", 3.0, 4.0))
    got = house.post(packed, f"Inference-Header-Content-Length: {len(text)}", "Content-Encoding: deflate")
    assert got.status == 202
    [(value, _, headers)] = house.queue.messages
    assert headers == {LENGTH_HEADER: str(len(text))}
    assert request_of(value, headers).tensors[0].array().tolist() == [[3.0, 4.0]]


# --- refusing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "lines", "status", "why"),
    [
        (b"[", (), 400, "not an inference request"),
        ({"inputs": []}, (), 400, "input 'x' is missing"),
        (rows(outputs=[{"name": "z"}]), (), 400, "unknown output 'z'"),
        (rows(parameters={"binary_data_output": True}), (), 400, "binary outputs are not offered"),
        (rows(outputs=[{"name": "y", "parameters": {"binary_data": True}}]), (), 400, "binary outputs"),
        (rows(id="a" * 201), (), 400, "at most 200 printable characters"),
        (rows(id="a\nb"), (), 400, "at most 200 printable characters"),
        (rows(), ("Idempotency-Key: \xe9",), 400, "header Idempotency-Key"),
        (rows(), ("Inference-Header-Content-Length: 0",), 400, "a raw body is not taken"),
        (rows(), ("Content-Encoding: br",), 501, "gzip, deflate and identity"),
        (rows(), ("Content-Encoding: gzip",), 400, "the body is not gzip"),
        (rows(), ("X-Octoserve-Callback: https://evil.example/",), 400, "not an address that may be called"),
        ({"input_location": "s3://other/x"}, (), 400, "not one that is allowed"),
        ({"input_location": "s3://b/x", "inputs": []}, (), 400, "stands alone"),
    ],
)
def test_what_can_never_succeed_is_refused_at_once(body: Any, lines: tuple[str, ...], status: int, why: str):
    house = House(inputs=("s3://b/in/",))
    got = house.post(body, *lines)
    assert (got.status, why in error(got)) == (status, True), got
    assert house.log == []


def test_an_output_that_no_json_holds_is_refused():
    house = House()
    path = "/v2/models/bits/infer-async"
    got = house.post(rows(), path=path)
    assert got.status == 501
    assert "BF16" in error(got)


@pytest.mark.parametrize(("model", "status"), [("sync", 404), ("nobody", 404), ("gone", 404)])
def test_models_that_take_none(model: str, status: int):
    house = House()
    assert house.post(rows(), path=f"/v2/models/{model}/infer-async").status == status
    assert house.log == []


def test_other_methods_and_paths():
    house = House()
    assert (house.ask("GET", PATH).status, house.ask("GET", PATH).headers["allow"]) == (405, "POST")
    assert (house.ask("DELETE", PATH + "/a").status, house.ask("DELETE", PATH + "/a").headers["allow"]) == (405, "GET")
    assert house.ask("GET", PATH + "/a/b").status == 404
    assert house.ask("POST", "/v2/models/m/versions/1/infer-async").status == 404


def test_a_broker_that_is_away_is_503_with_a_time_to_come_back():
    house = House()
    house.queue.fail.append(Unavailable("nats://me:secret@h:4222/s is away"))
    got = house.post(rows(id="a"))
    assert (got.status, got.headers["retry-after"]) == (503, "5")
    assert "secret" not in error(got)
    assert "m/a" not in house.store.rows
    assert house.ask("GET", PATH + "/a").status == 404
    assert house.post(rows(id="a")).status == 202
    assert house.log[-2:] == ["publish m/a", "accept m/a"]


def test_a_store_that_is_away_is_503_too():
    house = House()
    house.store.away = True
    for got in (house.post(rows()), house.post(rows(id="a")), house.ask("GET", PATH + "/a")):
        assert (got.status, got.headers["retry-after"]) == (503, "5")
        assert "postgresql" not in error(got)


def test_what_the_broker_does_not_hold_is_413():
    house = House()
    house.queue.fail.append(TooLarge("the request has 9 bytes, embedded takes 8"))
    assert house.post(rows()).status == 413


@pytest.mark.parametrize("polls", [0, 5])
def test_more_than_may_wait_is_shed(polls: int):
    executor = ManualExecutor()
    house = House(executor, max_pending=2)
    executor.waiting.clear()
    for _ in range(polls):
        house.send("GET", PATH + "/a")
    waiting = [house.send("POST", PATH, json.dumps(rows()).encode()) for _ in range(2)]
    got = house.post(rows())
    assert (got.status, got.headers["retry-after"]) == (429, "1")
    assert [t.written for t in waiting] == [b"", b""]
    assert len(executor.waiting) == 2 + polls
    for task in list(house.door._tasks):  # nothing will ever end them
        task.cancel()
    drive(ticks())


# --- polls -----------------------------------------------------------------------------------------------


def test_a_poll_tells_each_state():
    house = House()
    answer = b'{"model_name":"m","model_version":"1","outputs":[]}'
    house.store.rows = {
        "m/p": Answer(id="m/p", state="pending", accepted=1.0),
        "m/a/b": Answer(id="m/a/b", state="done", accepted=1.0, answer=answer),
        "m/f": Answer(id="m/f", state="failed", accepted=1.0, error="no such thing", attempts=3),
    }
    pending, done, failed = (house.ask("GET", f"{PATH}/{id}") for id in ("p", "a%2Fb", "f"))
    assert [got.status for got in (pending, done, failed)] == [200, 200, 200]
    assert json.loads(pending.body) == {"id": "p", "model": "m", "state": "pending"}
    assert pending.headers["retry-after"] == "1"
    assert done.body == b'{"id":"a/b","model":"m","state":"done","answer":' + answer + b"}"
    assert "retry-after" not in done.headers
    assert done.headers["cache-control"] == "no-store"
    assert json.loads(failed.body)["error"] == "no such thing"
    assert json.loads(failed.body)["attempts"] == 3
    assert house.ask("HEAD", PATH + "/p").status == 200
    unknown = house.ask("GET", PATH + "/x")
    assert unknown.status == 404
    assert "'x'" in error(unknown)


def test_the_heads_of_polls_are_not_kept():
    house = House()
    for number in range(5):
        house.ask("GET", f"{PATH}/{number}")
        house.post(rows(), f"Idempotency-Key: {number}")
    assert house.server.heads == {}


def test_it_leaves_in_good_order():
    house = House(executor=InlineExecutor())
    house.door.close()
    assert house.log.count("close") == 5


def test_without_it_the_route_says_how_to_have_it():
    plane = DataPlane(Registry(), loop(), InlineExecutor())
    publish(plane, handle_of(FakeModel(), version=1))
    limits = Limits()
    service = Service(plane, None, False)  # type: ignore[arg-type]
    server = Http1Server(HttpDoor(service, limits, Registry().counter("c", "", ("d", "r"))), limits, FakeClock())
    transport = FakeTransport(server())
    transport.protocol.data_received(b"POST /v2/models/m/infer-async HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n")  # type: ignore[attr-defined]
    [got] = responses(bytes(transport.written))
    assert got.status == 404
    assert "async: {models: [NAME]}" in json.loads(got.body)["error"]


def test_numbers_that_json_has_no_word_for_are_taken():
    house = House()
    assert house.post(rows(((np.inf, 1.0),))).status == 400, "not JSON"
    body = json.dumps(rows()).replace("1.0", '"NaN"').encode()
    assert house.post(body).status == 202
