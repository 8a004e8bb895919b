"""What a remote server's answers and failures become."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octoserve.core.errors import BrokenVersion, InvalidInput, Overloaded, Unavailable
from octoserve.core.signature import TensorSpec
from octoserve.runtimes.protocol import LoadedModel, RuntimeSettings
from octoserve.runtimes.remote import RemoteRuntime
from support.remote import Doubling

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
X, Y = TensorSpec("x", "FP32", (-1, 3)), TensorSpec("y", "FP32", (-1, 3))


@pytest.fixture
def server() -> Iterator[Doubling]:
    with Doubling() as server:
        yield server


def load(url: str, inputs: Any = None, outputs: Any = None, **options: Any) -> LoadedModel:
    settings = RuntimeSettings(inputs=inputs, outputs=outputs, options={"url": url, "model": "m", **options})
    return RemoteRuntime().load(Path("nowhere"), settings)


@pytest.mark.parametrize("protocol", ["open-inference", "tensorflow-serving"])
@pytest.mark.parametrize("version", ["", 3])
def test_both_protocols_say_what_the_model_takes_and_answer(server: Doubling, protocol: str, version: Any) -> None:
    loaded = load(server.url, protocol=protocol, version=version)
    assert loaded.signature.inputs == (X,)
    assert loaded.signature.outputs == (Y,)
    assert loaded.signature.batchable
    assert loaded.run([ROWS])[0].tolist() == (ROWS * 2).tolist()
    path = server.requests[-1][0]
    assert path.startswith("/v1/models/m" if protocol == "tensorflow-serving" else "/v2/models/m")
    assert ("/versions/3" in path) == bool(version)


def test_tensors_travel_as_bytes_where_the_server_says_so() -> None:
    nan = np.array([[1, np.nan, np.inf]], np.float32)
    with Doubling(binary=True) as server:
        assert np.array_equal(load(server.url).run([nan])[0], nan * 2, equal_nan=True)
        assert b"binary_data_size" in server.requests[-1][1]
        with pytest.raises(InvalidInput, match="NaN and infinity"):
            load(server.url, binary=False).run([nan])


def test_a_path_before_the_protocols_own_and_a_token(server: Doubling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTOSERVE_REMOTE_MY", "s3cret")
    loaded = load(server.url + "/team-a/", (X,), (Y,), token_env="OCTOSERVE_REMOTE_MY")
    loaded.run([ROWS])
    path, _, headers = server.requests[-1]
    assert path == "/team-a/v2/models/m/infer"
    assert headers["Authorization"] == "Bearer s3cret"
    monkeypatch.delenv("OCTOSERVE_REMOTE_MY")
    with pytest.raises(BrokenVersion, match="OCTOSERVE_REMOTE_MY is not set"):
        load(server.url, token_env="OCTOSERVE_REMOTE_MY")


@pytest.mark.parametrize(
    ("status", "wanted"),
    [(400, InvalidInput), (429, Overloaded), (503, Unavailable), (500, Unavailable), (404, Unavailable)],
)
def test_a_refusal_keeps_its_kind(server: Doubling, status: int, wanted: type[Exception]) -> None:
    loaded = load(server.url)
    server.status = status
    with pytest.raises(wanted, match="no room") as caught:
        loaded.run([ROWS])
    assert len(server.requests) == 1
    if isinstance(caught.value, Overloaded):
        assert caught.value.retry_after == 3


def test_a_server_that_hangs_is_unavailable(server: Doubling) -> None:
    loaded = load(server.url, timeout=0.2)
    server.hang = threading.Event()
    with pytest.raises(Unavailable, match=r"did not answer within 0\.2 s"):
        loaded.run([ROWS])
    server.hang.set()
    server.hang = None
    assert loaded.run([ROWS])[0].tolist() == (ROWS * 2).tolist()


def test_a_connection_that_was_closed_between_requests_is_made_again(server: Doubling) -> None:
    loaded = load(server.url)
    server.closes = True
    for _ in range(3):
        assert loaded.run([ROWS])[0].tolist() == (ROWS * 2).tolist()
    assert len(server.requests) == 3


def test_a_server_that_is_away() -> None:
    with Doubling() as server:
        url = server.url
    with pytest.raises(BrokenVersion, match=r"cannot be reached.*declare inputs and outputs"):
        load(url)
    loaded = load(url, (X,), (Y,))
    with pytest.raises(Unavailable, match="cannot be reached"):
        loaded.run([ROWS])


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>",
        b"{}",
        b'{"outputs": []}',
        json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 9], "data": [0] * 18}]}).encode(),
        json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [1]}]}).encode(),
        json.dumps({"outputs": [{"name": "y", "datatype": "FP64", "shape": [2, 3], "data": [1] * 6}]}).encode(),
        json.dumps(
            {"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 9}}]}
        ).encode(),
    ],
)
def test_an_answer_that_is_none_is_unavailable(
    server: Doubling, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(server.url)
    monkeypatch.setattr(server, "doubled", lambda *_: (answer, {}))
    with pytest.raises(Unavailable):
        loaded.run([ROWS])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"url": "file:///etc/passwd"}, "url: http"),
        ({"url": "gpu-1:8000"}, "url: http"),
        ({"url": "http://h:99999"}, "url: http"),
        ({"url": "http://h", "protocol": "grpc"}, "open-inference or tensorflow-serving wanted, 'grpc' came"),
        ({"url": "http://h", "tiemout": 3}, "tiemout"),
        ({"url": "http://h", "lanes": 0}, "lanes"),
        ({"url": "http://h", "lanes": 1025}, "lanes: 1 to 1024"),
        ({"url": "http://h", "timeout": 1e12}, "timeout"),
        ({"url": "http://h", "token_env": "AWS_SECRET_ACCESS_KEY"}, "no other is sent"),
        ({"url": 3}, "url"),
    ],
)
def test_options_that_cannot_be_are_named(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BrokenVersion, match=reason):
        RemoteRuntime().load(Path("nowhere"), RuntimeSettings(options={"model": "m", **options}))


def test_a_signature_that_tensorflow_serving_does_not_have(server: Doubling) -> None:
    with pytest.raises(BrokenVersion, match="no signature 'other' there; there are serving_default"):
        load(server.url, protocol="tensorflow-serving", signature="other")


@pytest.mark.parametrize("protocol", ["open-inference", "tensorflow-serving"])
def test_numbers_that_json_does_not_have(server: Doubling, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(server.url, protocol=protocol)
    if protocol == "tensorflow-serving":
        nan = np.array([[1, np.nan, -np.inf]], np.float32)
        assert np.array_equal(loaded.run([nan])[0], nan * 2, equal_nan=True)
    bare = {"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1, float("nan"), float("-inf")]}
    outputs = [bare] if protocol == "open-inference" else [[1, float("nan"), float("-inf")]]
    monkeypatch.setattr(server, "doubled", lambda *_: (json.dumps({"outputs": outputs}).encode(), {}))
    assert str(loaded.run([ROWS[:1]])[0].tolist()) == "[[1.0, nan, -inf]]"


def test_a_fraction_is_no_whole_number(server: Doubling, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(server.url, (X,), (TensorSpec("y", "INT64", (-1,)),), protocol="tensorflow-serving")
    monkeypatch.setattr(server, "doubled", lambda *_: (b'{"outputs": [1, 2]}', {}))
    assert loaded.run([ROWS])[0].tolist() == [1, 2]
    monkeypatch.setattr(server, "doubled", lambda *_: (b'{"outputs": [0.7, 2]}', {}))
    with pytest.raises(Unavailable, match="fraction"):
        loaded.run([ROWS])


@pytest.mark.parametrize(("held", "sent"), [("s3cret\n", "Bearer s3cret"), ("s3\ncret", ""), ("s\u00e9cret", "")])
def test_a_token_that_no_header_can_hold_is_not_told(
    server: Doubling, monkeypatch: pytest.MonkeyPatch, held: str, sent: str
) -> None:
    monkeypatch.setenv("OCTOSERVE_REMOTE_MY", held)
    if sent:
        load(server.url, (X,), (Y,), token_env="OCTOSERVE_REMOTE_MY").run([ROWS])
        assert server.requests[-1][2]["Authorization"] == sent
        return
    with pytest.raises(BrokenVersion, match="holds what no header can") as caught:
        load(server.url, token_env="OCTOSERVE_REMOTE_MY")
    assert "cret" not in str(caught.value)


def test_a_password_in_a_wrong_address_is_not_told() -> None:
    with pytest.raises(BrokenVersion, match="url: http") as caught:
        load("http://user:s3cret@host:99999/")
    assert "s3cret" not in str(caught.value)
