"""Clients that misbehave, on purpose or not, over real sockets: they are cut, nobody else notices."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import select
import shutil
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests

from support.graphs import spinning_model, versioned_model
from support.hammer import hammering
from support.scale import scale
from support.service import Served, serving
from support.supervised import publish, until
from support.wire import UNLIMITED, Sent, binary_request, infer_request, inference, rest_binary

RECEIVE = 2.0
"""Seconds; the default is 30, which the test marked `full` waits for."""
MAX_BODY = 64 << 20
QUEUE = 6
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]}).encode()
INFER = b"POST /v2/models/versioned/infer HTTP/1.1\r\nhost: x\r\n"
WHOLE = INFER + b"content-length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(scope="module")
def service(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One worker with short patience, so that every abuse meets the same event loop."""
    folder = tmp_path_factory.mktemp("doors")
    publish(folder / "models", "versioned", 1, versioned_model(1))
    publish(folder / "models", "spinning", 1, spinning_model())
    for name in ("echo_fp32", "echo_bytes"):
        shutil.copytree(models / name, folder / "models" / name)
    with serving(
        folder / "models",
        folder / "service",
        receive_timeout=f"{RECEIVE}s",
        idle_timeout="3s",
        max_queue=QUEUE,
        grace="5s",
    ) as service:
        yield service


@pytest.fixture(autouse=True)
def unharmed(service: Served) -> Iterator[None]:
    """After each test: the same worker, idle, answering, and no exception in its log."""
    before = service.worker_pids()
    yield
    assert service.worker_pids() == before, "the worker was replaced"
    assert service.ask("POST", "/v2/models/versioned/infer", BODY).status == 200
    until(lambda: service.total("octoserve_pending_requests") == 0, 30, "every slot is free again")
    assert "Traceback" not in service.output()


def connect(service: Served, door: str = "http") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", service.ports[door]), timeout=20)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def rest_of(sock: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def status(data: bytes) -> int:
    assert data.startswith(b"HTTP/1.1 "), data[:100]
    return int(data[9:12])


def vanish(sock: socket.socket) -> None:
    """Close with a reset, as a killed client's system does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def spin_request(loops: int) -> bytes:
    body = json.dumps({"inputs": [{"name": "loops", "datatype": "INT64", "shape": [1], "data": [loops]}]}).encode()
    return b"POST /v2/models/spinning/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def pending(service: Served) -> float:
    return service.total("octoserve_pending_requests", model="spinning")


# --- slow and half-open ----------------------------------------------------------------------------------

SLOW = {
    "head": (b"", b"POST /v2/models/versioned/infer HTTP/1.1\r\nhost: x\r\nx-filler: " + b"a" * 1000),
    "body": (INFER + b"content-length: 1000\r\n\r\n", b" " * 1000),
    "chunks": (INFER + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 300),
    "silent after half a head": (INFER, b""),
    "silent after half a body": (INFER + b"content-length: 1000\r\n\r\n" + BODY, b""),
}


@pytest.mark.parametrize("shape", SLOW)
def test_slow_clients_are_cut(service: Served, shape: str) -> None:
    """A byte now and then, or none: 408 when the time for a whole request is over, however alive it looks."""
    start, drip = SLOW[shape]
    before = service.total("octoserve_cut_total", door="http", reason="slow")
    with connect(service) as sock:
        began = time.monotonic()
        sock.sendall(start)
        sock.settimeout(0.1)
        answer = b""
        for byte in drip:
            with contextlib.suppress(TimeoutError):
                answer = sock.recv(1 << 16)
                break
            sock.sendall(bytes([byte]))
        sock.settimeout(20)
        answer += rest_of(sock)
        took = time.monotonic() - began
    assert status(answer) == 408
    assert b"connection: close" in answer
    assert RECEIVE - 1.5 < took < RECEIVE + 5
    assert service.total("octoserve_cut_total", door="http", reason="slow") == before + 1


def test_connections_that_say_nothing_are_closed(service: Served) -> None:
    with connect(service) as silent, connect(service) as kept:
        kept.sendall(WHOLE)
        assert status(kept.recv(1 << 16)) == 200
        began = time.monotonic()
        assert rest_of(kept) == b""
        assert rest_of(silent) == b""
        assert time.monotonic() - began < 10


def test_a_crowd_of_slow_clients_holds_up_nobody(service: Served) -> None:
    crowd = [connect(service) for _ in range(scale(200, 800))]
    try:
        for sock in crowd:
            sock.sendall(INFER + b"content-length: 100\r\n\r\nx")
        with hammering(service, http=2, grpc=1) as hammer:
            until(hammer.all_answered(50))
        assert hammer.errors == []
        until(lambda: service.total("octoserve_connections", door="http") < 20, RECEIVE + 15, "the crowd is gone")
        assert all(status(rest_of(sock)) == 408 for sock in crowd)
    finally:
        for sock in crowd:
            sock.close()


@pytest.mark.full
def test_slow_loris_meets_the_default_limit(tmp_path: Path) -> None:
    publish(tmp_path / "models", "versioned", 1, versioned_model(1))
    with serving(tmp_path / "models", tmp_path / "service") as service, connect(service) as sock:
        began = time.monotonic()
        sock.sendall(INFER + b"content-length: 1000\r\n\r\n")
        sock.settimeout(1)
        answer = b""
        while not answer:
            assert time.monotonic() - began < 40
            sock.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = sock.recv(1 << 16)
        assert status(answer) == 408
        assert 29 < time.monotonic() - began < 35


# --- gone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "close"])
def test_clients_that_vanish_free_their_slot(service: Served, how: str) -> None:
    """All but the one whose run has begun: that run is finished and its answer dropped."""
    cancelled = service.total("octoserve_request_seconds_count", outcome="cancelled")
    socks = [connect(service) for _ in range(QUEUE)]
    for sock in socks:
        sock.sendall(spin_request(10_000))
    until(lambda: pending(service) == QUEUE)
    for sock in socks:
        vanish(sock) if how == "reset" else sock.close()
    until(lambda: pending(service) <= 1, 5, "their slots are free")
    until(lambda: pending(service) == 0, 30)
    assert service.total("octoserve_request_seconds_count", outcome="cancelled") == cancelled + QUEUE


def test_clients_that_vanish_while_they_send(service: Served) -> None:
    before = service.rss()
    for _ in range(scale(30, 200)):
        sock = connect(service)
        sock.sendall(INFER + b"content-length: 4000000\r\n\r\n" + b" " * 2_000_000)
        vanish(sock)
    until(lambda: service.total("octoserve_connections", door="http") == 0, 10)
    assert service.rss() < before + 60e6


def test_grpc_client_that_vanishes_frees_its_slot(service: Served) -> None:
    channel = grpc.insecure_channel(service.grpc, options=[("grpc.use_local_subchannel_pool", 1)])
    spin = [Sent("loops", "INT64", np.array([10_000]))]
    calls = [inference(channel, "ModelInfer").future(infer_request("spinning", spin)) for _ in range(QUEUE)]
    until(lambda: pending(service) == QUEUE)
    channel.close()
    assert len(calls) == QUEUE
    until(lambda: pending(service) <= 1, 5)


# --- clients that never read -----------------------------------------------------------------------------


def big_request() -> bytes:
    """One whose answer has 4 MB."""
    body, headers = binary_request([Sent("input", "FP32", np.zeros((1, 1_000_000), "<f4"))])
    lines = [f"{name}: {value}" for name, value in {**headers, "host": "x", "content-length": len(body)}.items()]
    return "\r\n".join(["POST /v2/models/echo_fp32/infer HTTP/1.1", *lines, "", ""]).encode() + body


def test_clients_that_never_read_are_cut_and_hold_little(service: Served) -> None:
    before, cut = service.rss(), service.total("octoserve_cut_total", reason="not_reading")
    request = big_request()
    socks = []
    for _ in range(8):
        sock = connect(service)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(0.2)
        socks.append(sock)
    try:
        peak = 0
        for _ in range(5):  # pipelined: answers that nobody reads must not pile up
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.sendall(request)
            peak = max(peak, service.rss())
        assert service.ask("POST", "/v2/models/versioned/infer", BODY).status == 200
        until(lambda: service.total("octoserve_cut_total", reason="not_reading") >= cut + 8, RECEIVE + 15)
        assert peak < before + 8 * 25e6
    finally:
        for sock in socks:
            sock.close()


def test_small_requests_in_a_row_without_reading(service: Served) -> None:
    """A pipeline of a million bytes of requests: read no further than answers are taken."""
    before = service.rss()
    with connect(service) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(1)
        sent = 0
        with contextlib.suppress(OSError):
            for _ in range(400):
                sent += sock.send(WHOLE * 400)
        assert sent < 400 * 400 * len(WHOLE), "everything was taken, though nothing was read"
        assert service.ask("POST", "/v2/models/versioned/infer", BODY).status == 200
        assert service.rss() < before + 60e6


# --- bytes that are no request ---------------------------------------------------------------------------

GARBAGE = {
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(range(189)),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
    "zeros": b"\0" * 1000 + b"\r\n\r\n",
    "lines": b"\r\n" * 100 + b"hello\r\n\r\n",
    "HTTP/0.9": b"GET /v2\r\n\r\n",
    "HTTP/3.0": b"GET /v2 HTTP/3.0\r\nhost: x\r\n\r\n",
    "no host": b"GET /v2 HTTP/1.1\r\n\r\n",
    "endless head": b"GET /v2 HTTP/1.1\r\nhost: x\r\nx: " + b"a" * (1 << 20),
    "many headers": b"GET /v2 HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    "obs-fold": b"GET /v2 HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n",
    "bare LF in value": b"GET /v2 HTTP/1.1\r\nhost: x\r\na: b\nc: d\r\n\r\n",
    "NUL in value": b"GET /v2 HTTP/1.1\r\nhost: x\r\na: b\0c\r\n\r\n",
    "CONNECT": b"CONNECT example.com:80 HTTP/1.1\r\nhost: example.com:80\r\n\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_gets_one_error_and_a_closed_connection(service: Served, name: str) -> None:
    with connect(service) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(GARBAGE[name])
        answer = rest_of(sock)
    assert status(answer) in (400, 408 if name == "TLS" else 431)  # nothing in it ends a head
    assert answer.count(b"HTTP/1.1 4") == 1
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_random_bytes_at_every_door(service: Served) -> None:
    chance = random.Random(1)
    for _ in range(scale(60, 600)):
        for door in ("http", "grpc"):
            data = chance.randbytes(chance.randrange(1, 3000))
            if door == "grpc" and chance.random() < 0.5:
                data = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0" + data
            elif door == "http" and chance.random() < 0.5:
                cut = chance.randrange(len(WHOLE))
                data = WHOLE[:cut] + data + WHOLE[cut:]
            with connect(service, door) as sock, contextlib.suppress(ConnectionError):
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                sock.settimeout(0.02)
                with contextlib.suppress(TimeoutError):
                    sock.recv(1 << 16)
    until(lambda: service.total("octoserve_connections") == 0, RECEIVE + 15)


def test_http_connection_at_the_grpc_door_is_closed(service: Served) -> None:
    with connect(service, "grpc") as sock:
        sock.sendall(WHOLE)
        rest_of(sock)  # ends: the connection is closed


HIDDEN = b"GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n"
SMUGGLING = {
    "two lengths": INFER + b"content-length: 0\r\ncontent-length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "a list of lengths": INFER + b"content-length: 0, %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "length and chunks": INFER + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunks and length": INFER + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two codings": INFER + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "coding twice": INFER + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "coding in disguise": INFER + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "identity": INFER + b"transfer-encoding: identity\r\ncontent-length: 0\r\n\r\n" + HIDDEN,
    "space before colon": INFER + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "tab before colon": INFER + b"content-length\t: 0\r\n\r\n" + HIDDEN,
    "negative length": INFER + b"content-length: -1\r\n\r\n" + HIDDEN,
    "length with sign": INFER + b"content-length: +0\r\n\r\n" + HIDDEN,
    "length in hex": INFER + b"content-length: 0x0\r\n\r\n" + HIDDEN,
    "huge length": INFER + b"content-length: 99999999999999999999\r\n\r\n" + HIDDEN,
    "huge chunk": INFER + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n" + HIDDEN,
    "negative chunk": INFER + b"transfer-encoding: chunked\r\n\r\n-1\r\n\r\n" + HIDDEN,
    "chunk without end": INFER + b"transfer-encoding: chunked\r\n\r\n1\r\n  0\r\n\r\n" + HIDDEN,
    "chunks in HTTP/1.0": INFER.replace(b"1.1", b"1.0") + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two hosts": b"GET /v2 HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n" + HIDDEN,
    "bare CR": INFER + b"x: y\rcontent-length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
}


@pytest.mark.parametrize("name", SMUGGLING)
def test_smuggling_shapes_are_refused_and_nothing_behind_them_is_read(service: Served, name: str) -> None:
    with connect(service) as sock:
        sock.sendall(SMUGGLING[name])
        answer = rest_of(sock)
    assert status(answer) in (400, 413)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"hidden" not in answer


def test_pipelined_requests_are_answered_in_order(service: Served) -> None:
    """The honest relative of smuggling must go on working."""
    with connect(service) as sock:
        paths = [b"/v2", b"/v2/health/live", b"/nothing", b"/v2/models/versioned"] * 10
        sock.sendall(b"".join(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path for path in paths[:-1]))
        sock.sendall(b"GET /v2/models/versioned HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = rest_of(sock)
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 200, 404, 200] * 10


# --- too much --------------------------------------------------------------------------------------------


def test_declared_body_of_100_mb_is_refused_before_it_comes(service: Served) -> None:
    with connect(service) as sock:
        sock.sendall(INFER + b"content-length: 104857600\r\n\r\n")
        answer = rest_of(sock)
    assert status(answer) == 413
    assert b"104857600" in answer
    assert b"connection: close" in answer
    with connect(service) as sock:
        sock.sendall(INFER + b"content-length: 104857600\r\nexpect: 100-continue\r\n\r\n")
        answer = rest_of(sock)
    assert status(answer) == 413, "no 100 Continue before it"


def test_client_that_sends_100_mb_without_looking_learns_why(service: Served) -> None:
    before = service.rss()
    answer = requests.post(f"http://{service.http}/v2/models/versioned/infer", data=b" " * (100 << 20), timeout=60)
    assert answer.status_code == 413
    assert "at most 67108864" in answer.json()["error"]
    assert service.rss() < before + 20e6


def test_undeclared_body_is_refused_once_it_is_over_the_limit(service: Served) -> None:
    piece = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
    before, sent = service.rss(), 0
    with connect(service) as sock:
        sock.sendall(INFER + b"transfer-encoding: chunked\r\n\r\n")
        while not answered(sock):
            sock.sendall(piece)
            sent += len(piece)
            assert sent < 4 * MAX_BODY
            assert service.rss() < before + 3 * MAX_BODY
        answer = rest_of(sock)
    assert status(answer) == 413
    assert sent > MAX_BODY


def answered(sock: socket.socket) -> bool:
    """Whether there is something to read."""
    return bool(select.select([sock], [], [], 0)[0])


def test_body_of_just_the_limit_is_taken(service: Served) -> None:
    rows = MAX_BODY // 8 - 100
    got = rest_binary(service, "versioned", [Sent("x", "FP32", np.ones((rows, 2), "<f4"))])
    assert got["plus"].shape == (rows, 2)
    assert got["plus"].array().min() == 2


def test_bodies_held_together_are_bounded(tmp_path: Path) -> None:
    """128 MB for all: of eight clients that send 40 MB each and never finish, most are refused."""
    publish(tmp_path / "models", "versioned", 1, versioned_model(1))
    with serving(tmp_path / "models", tmp_path / "patient", receive_timeout="120s", max_buffered="128MB") as patient:
        before = patient.rss()
        socks = [connect(patient) for _ in range(8)]
        try:
            for sock in socks:
                sock.sendall(INFER + b"content-length: 40000000\r\n\r\n")
            peak = before
            for sock in socks:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(b" " * 39_000_000)
                peak = max(peak, patient.rss())
            until(lambda: sum(map(answered, socks)) == 5, 60, "three of 40 MB are all that go into 128 MB")
            assert {status(sock.recv(1 << 16)) for sock in socks if answered(sock)} == {503}
            assert peak < before + 200e6
            assert patient.ask("POST", "/v2/models/versioned/infer", BODY).status == 200
        finally:
            for sock in socks:
                sock.close()
        until(lambda: patient.total("octoserve_connections", door="http") == 0, 30)
        whole = INFER + b"content-length: %d\r\n\r\n" % 40_000_000 + b" " * 40_000_000
        with connect(patient) as sock:
            sock.sendall(whole)
            assert status(sock.recv(1 << 16)) == 400, "room again, and no JSON"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw deflate"])
def test_bombs_do_not_go_off(service: Served, coding: str) -> None:
    """Four times the limit in a megabyte, refused at the limit and with no more memory than that."""
    block = b" " * (1 << 20)
    if coding == "gzip":
        pack = zlib.compressobj(1, zlib.DEFLATED, 31)
    else:
        pack = zlib.compressobj(1, zlib.DEFLATED, 15 if coding == "deflate" else -15)
    body = b"".join(pack.compress(block) for _ in range(256)) + pack.flush()
    before = service.rss()
    encoding = coding.split()[-1]
    began = time.monotonic()
    answer = service.ask("POST", "/v2/models/versioned/infer", body, {"Content-Encoding": encoding})
    took = time.monotonic() - began
    assert answer.status == 413, answer.body
    assert "decompressed" in answer.json()["error"]
    assert service.rss() < before + 2.5 * MAX_BODY
    assert took < 5


def test_broken_compression_is_a_bad_request(service: Served) -> None:
    whole = gzip.compress(BODY)
    for body, encoding in (
        (whole[:-5], "gzip"),
        (whole + b"more", "gzip"),
        (BODY, "gzip"),
        (BODY, "deflate"),
        (os.urandom(1000), "gzip"),
    ):
        answer = service.ask("POST", "/v2/models/versioned/infer", body, {"Content-Encoding": encoding})
        assert answer.status == 400, answer.body
    assert service.ask("POST", "/v2/models/versioned/infer", BODY, {"Content-Encoding": "br"}).status == 501


def one_input(data: str, datatype: str = "FP32", shape: str = "[1, 2]") -> bytes:
    return b'{"inputs":[{"name":"x","datatype":"%b","shape":%b,"data":%b}]}' % (
        datatype.encode(),
        shape.encode(),
        data.encode(),
    )


NASTY = {
    "deep data": one_input("[" * 1_000_000),
    "deep and closed data": one_input("[" * 1_000_000 + "]" * 1_000_000),
    "deep unknown field": b'{"other":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b',"inputs":[]}',
    "deep parameters": b'{"inputs":[],"parameters":{"a":' + b'{"a":' * 200_000 + b"1" + b"}" * 200_001 + b"}",
    "many inputs": b'{"inputs":[' + b",".join([b'{"name":"x","datatype":"FP32","shape":[0],"data":[]}'] * 5000) + b"]}",
    "many dimensions": one_input("[1]", shape=json.dumps([1] * 100_000)),
    "huge shape": one_input("[1]", shape="[4611686018427387904, 4611686018427387904]"),
    "huge shape of nothing": one_input("[]", shape="[4611686018427387904, 0]"),
    "huge number": one_input("[1e999, 1]"),
    "long number": one_input("[" + "9" * 1_000_000 + ", 1]"),
    "long fraction": one_input("[0." + "1" * 1_000_000 + "e400, 1]"),
    "long integer": one_input("[" + "9" * 1_000_000 + ", 1]", datatype="INT64"),
    "not UTF-8": one_input("[1, 2]").replace(b"x", b"\xff"),
    "lone surrogate": one_input("[1, 2]").replace(b'"x"', b'"\\ud800"'),
    "duplicate keys": b'{"inputs":[],"inputs":[]}',
    "not an object": b"[]",
    "empty": b"",
    "NaN literal": one_input("[NaN, 1]"),
}


@pytest.mark.parametrize("name", NASTY)
def test_nasty_json_is_a_bad_request_and_quick(service: Served, name: str) -> None:
    began = time.monotonic()
    answer = service.ask("POST", "/v2/models/versioned/infer", NASTY[name])
    took = time.monotonic() - began
    assert answer.status in (400, 413), answer.body[:300]
    assert len(answer.json()["error"]) < 2000
    assert took < 3


def test_grpc_messages_that_are_too_large_or_too_many(service: Served) -> None:
    before = service.rss()
    with grpc.insecure_channel(service.grpc, options=UNLIMITED) as channel:
        infer = inference(channel, "ModelInfer")
        large = infer_request("versioned", [Sent("x", "FP32", np.zeros((10_000_000, 2), "<f4"))])
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            with pytest.raises(grpc.RpcError) as error:
                infer(large, timeout=30, compression=compression)
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert service.rss() < before + 2.5 * MAX_BODY


# --- overload --------------------------------------------------------------------------------------------


def test_overload_is_shed_at_both_doors_and_passes(service: Served) -> None:
    """More than the queue holds: the rest hears so at once, and all is well when the load is gone."""
    answers: list[tuple[int, dict[str, str], float]] = []
    codes: list[grpc.StatusCode] = []
    lock = threading.Lock()
    spin = [Sent("loops", "INT64", np.array([4000]))]

    def by_http() -> None:
        began = time.monotonic()
        body = {"inputs": [{"name": "loops", "datatype": "INT64", "shape": [1], "data": [4000]}]}
        answer = service.ask("POST", "/v2/models/spinning/infer", body)
        with lock:
            answers.append((answer.status, answer.headers, time.monotonic() - began))

    def by_grpc() -> None:
        with grpc.insecure_channel(service.grpc) as channel:
            try:
                inference(channel, "ModelInfer")(infer_request("spinning", spin), timeout=60)
                code = grpc.StatusCode.OK
            except grpc.RpcError as error:
                code = error.code()
        with lock:
            codes.append(code)

    shed = service.total("octoserve_request_seconds_count", outcome="queue_full")
    threads = [threading.Thread(target=target) for target in [by_http] * 16 + [by_grpc] * 8]
    for thread in threads:
        thread.start()
    until(lambda: pending(service) == QUEUE)
    assert service.ask("POST", "/v2/models/versioned/infer", BODY).status == 200, "other models go on"
    assert service.ask("GET", "/v2/health/ready").status == 200
    for thread in threads:
        thread.join(60)
    statuses = [status for status, _, _ in answers]
    assert set(statuses) | set(codes) <= {200, 429, grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    served = statuses.count(200) + codes.count(grpc.StatusCode.OK)
    assert QUEUE <= served < 24
    for status_, headers, took in answers:
        if status_ == 429:
            assert 1 <= int(headers["retry-after"]) <= 60
            assert took < 3, "a refusal does not queue"
    assert service.total("octoserve_request_seconds_count", outcome="queue_full") == shed + 24 - served
    answer = service.ask("POST", "/v2/models/spinning/infer", spin_request(1).partition(b"\r\n\r\n")[2])
    assert answer.status == 200


def test_deadline_in_a_header(service: Served) -> None:
    body = spin_request(6000).partition(b"\r\n\r\n")[2]
    began = time.monotonic()
    answer = service.ask("POST", "/v2/models/spinning/infer", body, {"X-Request-Timeout": "0.2"})
    assert answer.status == 504
    assert time.monotonic() - began < 1.5
    assert service.ask("POST", "/v2/models/versioned/infer", BODY, {"X-Request-Timeout": "0"}).status == 504
    for text in ("-1", "soon", "nan", "inf", ""):
        answer = service.ask("POST", "/v2/models/versioned/infer", BODY, {"X-Request-Timeout": text})
        assert answer.status == 400, text


def test_memory_stays_where_it_was(service: Served) -> None:
    """After everything above the worker holds no more than a fresh one and some of the allocator's spare."""
    until(lambda: service.total("octoserve_connections") == 0, 20)
    assert service.rss() < 600e6
