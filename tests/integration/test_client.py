"""`octoserve.Client` and `AsyncClient` against a real server, and against one that closes connections as it likes."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

import octoserve
from octoserve.core.errors import (
    DeadlineExceeded,
    Internal,
    InvalidInput,
    NotFound,
    Overloaded,
    SettingsError,
    Unavailable,
)
from support.examples import INPUTS
from support.service import Served


class Awaited:
    """An AsyncClient on a loop of its own, called as the other is."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.client = octoserve.AsyncClient(*args, **named)

    def predict(self, *args: Any, **named: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(self.client.predict(*args, **named), self._loop).result(90)

    def signature(self, *args: Any, **named: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(self.client.signature(*args, **named), self._loop).result(90)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.client.close(), self._loop).result(90)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


KINDS = {"threads": octoserve.Client, "loop": Awaited}


@pytest.fixture(params=list(KINDS))
def connect(request: pytest.FixtureRequest) -> Iterator[Any]:
    made: list[Any] = []

    def client(*args: Any, **named: Any) -> Any:
        made.append(KINDS[request.param](*args, **named))
        return made[-1]

    yield client
    for each in made:
        each.close()


@pytest.mark.parametrize("model", sorted(INPUTS))
def test_it_is_answered_as_in_this_process(examples: Served, models: Any, connect: Any, model: str):
    sent = INPUTS[model](3, np.random.default_rng(7))
    rows = {each.name: each.array for each in sent}
    came = connect(f"http://{examples.http}").predict(model, rows)
    with octoserve.load(models / model) as endpoint:
        wanted = endpoint.predict(rows)
    assert came.keys() == wanted.keys()
    for name, array in wanted.items():
        assert came[name].shape == array.shape
        if array.dtype.kind == "O":
            text = [v if isinstance(v, bytes) else v.encode() for v in array.ravel().tolist()]
            assert came[name].ravel().tolist() == text
        else:
            np.testing.assert_array_equal(came[name], array)


def test_one_connection_serves_many_requests_one_after_the_other(examples: Served, connect: Any):
    client = connect(f"http://{examples.http}/")
    rows = np.zeros((2, 30))
    before = examples.total("octoserve_connections", door="http")
    for _ in range(20):
        client.predict("fraud", rows, version=1, outputs=["label"])
    assert examples.total("octoserve_connections", door="http") <= before + 1


def test_requested_outputs_and_a_large_answer(examples: Served, connect: Any):
    client = connect(f"http://{examples.http}")
    values = np.random.default_rng(3).random((64, 5_000))
    assert client.predict("fraud", np.zeros((1, 30)), outputs=["label"]).keys() == {"label"}
    np.testing.assert_array_equal(client.predict("echo_fp64", values)["output"], values)


def test_requests_side_by_side(examples: Served):
    async def all_at_once() -> list[Any]:
        async with octoserve.AsyncClient(f"http://{examples.http}") as client:
            asked = [client.predict("echo_int64", [[number]]) for number in range(200)]
            return [answer["output"].item() for answer in await asyncio.gather(*asked)]

    assert asyncio.run(all_at_once()) == list(range(200))


@pytest.mark.parametrize(
    ("model", "rows", "named", "error", "said"),
    [
        ("nobody", [[1.0]], {}, NotFound, "'nobody' does not exist"),
        ("fraud", [[1.0]], {"version": 77}, NotFound, "no version 77"),
        ("fraud", np.zeros((1, 29)), {}, InvalidInput, r"shape \[-1, 30\] wanted"),
        ("fraud", np.zeros((1, 30)), {"outputs": ["x"]}, InvalidInput, "unknown output 'x'"),
        ("fraud", {"x": [[1.0]]}, {}, InvalidInput, "input 'features' is missing"),
        ("fraud", {"features": np.zeros((1, 30)), "x": 1}, {}, InvalidInput, "unknown input 'x'"),
        ("passage_match", [[1.0]], {}, InvalidInput, "several inputs"),
        ("fraud", np.zeros((1, 30)), {"headers": {"a": "b\r\nc: d"}}, (InvalidInput, ValueError), "."),
        ("fraud", np.zeros((1, 30)), {"timeout": -1.0}, DeadlineExceeded, "is over"),
    ],
)
def test_what_goes_wrong_is_said_by_kind(
    examples: Served, connect: Any, model: str, rows: Any, named: Any, error: Any, said: str
):
    with pytest.raises(error, match=said):
        connect(f"http://{examples.http}").predict(model, rows, **named)


def test_nobody_there(connect: Any):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"{address} does not answer"):
            connect(address).predict("m", [1.0])


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:y", "http://x?a=b"])
def test_an_address_that_is_none(connect: Any, url: str):
    with pytest.raises(SettingsError, match="no address of a server"):
        connect(url)


class Moody(BaseHTTPRequestHandler):
    """Answers what is queued: (status, headers, body), "hang", or "hang up" (after the next answer, unannounced)."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        server: Any = self.server
        server.asked.append((self.command, self.path, self.client_address[1]))
        mood = server.moods.pop(0)
        if mood == "hang":
            server.enough.wait(60)
            self.close_connection = True
            return
        status, headers, body = mood[:3]
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.close_connection or "hang up" in mood

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def moody() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    server.moods, server.asked, server.enough = [], [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.enough.set()
    server.shutdown()
    thread.join()
    server.server_close()


def takes(shape: list[int]) -> tuple[int, dict[str, str], bytes]:
    """Metadata of a model that takes this."""
    tensor = {"name": "x", "datatype": "FP32", "shape": shape}
    return 200, {}, json.dumps({"name": "m", "inputs": [tensor], "outputs": [tensor]}).encode()


OUTPUT = {"name": "y", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}
ANSWER = (200, {}, json.dumps({"outputs": [OUTPUT]}).encode())


def test_a_kept_connection_that_was_closed_is_replaced(moody: Any, connect: Any):
    client = connect(moody.url)
    moody.moods = [(*takes([-1]), "hang up"), (*ANSWER, "hang up"), (*ANSWER, "hang up")]
    for _ in range(2):
        assert client.predict("m", [1.0])["y"].tolist() == [1.5, 2.5]
    assert moody.moods == []
    assert len({port for _, _, port in moody.asked}) == 3


def test_an_announced_end_of_a_connection(moody: Any, connect: Any):
    client = connect(moody.url)
    status, headers, body = takes([-1])
    moody.moods = [(status, {**headers, "connection": "close"}, body, "hang up"), ANSWER]
    assert client.predict("m", [1.0])["y"].tolist() == [1.5, 2.5]


def test_a_version_that_takes_something_else_is_noticed(moody: Any, connect: Any):
    client = connect(moody.url)
    refused = (400, {}, b'{"error": "shape [-1, 2] wanted"}')
    moody.moods = [takes([-1]), ANSWER, refused, takes([-1]), refused, takes([-1, 2])]
    client.predict("m", [1.0])
    with pytest.raises(InvalidInput, match=r"wanted \(status 400\)"):
        client.predict("m", [1.0])
    with pytest.raises(InvalidInput, match=r"shape \[-1, 2\] wanted, \[1\] came"):
        client.predict("m", [1.0])
    moody.moods = [ANSWER]
    assert client.predict("m", [[1.0, 2.0]])["y"].tolist() == [1.5, 2.5]


def test_a_server_that_hangs(moody: Any, connect: Any):
    client = connect(moody.url)
    moody.moods = [takes([-1]), "hang"]
    with pytest.raises(DeadlineExceeded, match="in time"):
        client.predict("m", [1.0], timeout=1.0)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ((429, {"retry-after": "7"}, b'{"error": "busy"}'), Overloaded, "busy"),
        ((503, {}, b'{"error": "not ready"}'), Unavailable, "not ready"),
        ((504, {}, b'{"error": "late"}'), DeadlineExceeded, "late"),
        ((502, {}, b"<html>"), Internal, "<html>"),
        ((200, {}, b"<html>"), Internal, "no answer of the Open Inference Protocol"),
        ((200, {}, b'{"outputs": [{"name": "y", "datatype": "FP99", "shape": [1], "data": [1]}]}'), Internal, "FP99"),
    ],
)
def test_an_answer_that_is_an_error(moody: Any, connect: Any, answer: Any, error: Any, said: str):
    moody.moods = [takes([-1]), answer]
    with pytest.raises(error, match=said) as raised:
        connect(moody.url).predict("m", [1.0])
    if isinstance(raised.value, Overloaded):
        assert raised.value.retry_after == 7
