"""What clients see when workers are killed, stopped and drained. The supervisor's own logic: test_supervisor_faults."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import hpack
import numpy as np
import psutil
import pytest

from support.graphs import spinning_model, versioned_model
from support.hammer import Hammer, hammering
from support.scale import scale
from support.service import Answer, Served, serving
from support.supervised import publish, until
from support.wire import Sent, binary_request, infer_request, inference, read_grpc

BROKEN = ("RemoteDisconnected", "ConnectionReset", "BrokenPipe", "IncompleteRead", "StatusCode.UNAVAILABLE")
"""How a client hears that its worker is gone."""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path / "models", "versioned", 1, versioned_model(1))
    publish(tmp_path / "models", "spinning", 1, spinning_model())
    return tmp_path / "models"


@pytest.fixture
def service(repository: Path, tmp_path: Path) -> Iterator[Served]:
    with serving(repository, tmp_path / "service", workers=2, hang="2s") as service:
        yield service


def otherwise_broken(hammer: Hammer) -> list[str]:
    """Errors that are not a broken connection, met while connecting or while waiting for an answer."""
    return [error for error in hammer.errors if not any(how in error for how in BROKEN)]


def remote_ports(pid: int) -> set[int]:
    """Ports of the clients that this worker is connected to."""
    return {c.raddr.port for c in psutil.Process(pid).connections("tcp") if c.status == "ESTABLISHED" and c.raddr}


def both_workers(service: Served, hammer: Hammer) -> bool:
    """Whether every worker has some of the clients' HTTP connections."""
    mine = {client.ports[-1] for client in hammer.clients if client.ports}
    return all(remote_ports(pid) & mine for pid in service.worker_pids())


class MetricsWatch(threading.Thread):
    """Reads /metrics again and again; remembers every counter that went back."""

    def __init__(self, service: Served) -> None:
        super().__init__(daemon=True)
        self.service = service
        self.fell: list[str] = []
        self.pages = 0
        self._left = threading.Event()

    def run(self) -> None:
        """Until left."""
        last: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        while not self._left.is_set():
            for name, labels, value in self.service.metrics():
                if name.endswith(("_total", "_count", "_sum", "_bucket")):
                    key = (name, frozenset(labels.items()))
                    if value < last.get(key, 0):
                        self.fell.append(f"{name} {labels}: {last[key]} -> {value}")
                    last[key] = value
            self.pages += 1

    def __enter__(self) -> MetricsWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self.join(20)


def spin(service: Served, loops: int, connection: http.client.HTTPConnection | None = None) -> Answer:
    body = {"inputs": [{"name": "loops", "datatype": "INT64", "shape": [1], "data": [loops]}]}
    return service.ask("POST", "/v2/models/spinning/infer", body, connection=connection)


def spins_taken(service: Served) -> float:
    """Requests of `spinning` that wait, run, or are answered."""
    answered = service.total("octoserve_rows_total", model="spinning")
    return answered + service.total("octoserve_pending_requests", model="spinning")


class Asking(threading.Thread):
    """One call in another thread, its result or its exception."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.result: Any = None
        self.start()

    def run(self) -> None:
        """Ask."""
        try:
            self.result = self._ask()
        except Exception as error:
            self.result = error


# --- killed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_", range(scale(1, 5)))
def test_killed_worker_under_load(service: Served, round_: int) -> None:
    """Only its own connections break; the others do not notice; it is replaced; no counter goes back."""
    with MetricsWatch(service) as watch, hammering(service, http=10, grpc=2) as hammer:
        until(lambda: both_workers(service, hammer), 10, "both workers have clients (the kernel deals them out)")
        until(hammer.all_answered())
        victim, survivor = service.worker_pids()
        its_ports = remote_ports(victim)
        owner = {client: client.ports[-1] in its_ports for client in hammer.clients if client.kind == "http"}
        os.kill(victim, signal.SIGKILL)
        until(lambda: service.all_serve(2) and victim not in service.worker_pids(), 15, "it is replaced")
        until(hammer.all_answered(50))
        assert survivor in service.worker_pids()
        for client, owned in owner.items():
            # More than one where it came back so soon that the dying worker's socket took it once more.
            assert bool(client.errors) == owned, (owned, client.errors)
        assert otherwise_broken(hammer) == []
        pages = watch.pages
        until(lambda: watch.pages > pages + 3)
    assert watch.fell == []
    assert service.total("octoserve_worker_restarts_total") == 1


def test_gauges_forget_a_killed_worker(service: Served) -> None:
    """Connections and pending requests of a worker that is gone are gone too."""
    connections = [service.connect() for _ in range(12)]
    try:
        for connection in connections:
            assert service.ask("GET", "/v2/health/live", connection=connection).status == 200
        until(lambda: service.total("octoserve_connections", door="http") == 12)
        for pid in service.worker_pids():
            os.kill(pid, signal.SIGKILL)
        until(lambda: service.all_serve(2), 20)
    finally:
        for connection in connections:
            connection.close()
    until(lambda: service.total("octoserve_connections") == 0, 5, "nobody is connected")
    assert service.total("octoserve_pending_requests") == 0


def test_killed_again_and_again(service: Served) -> None:
    """Each time one of the two; clients that ask once more always get their answer."""
    for _ in range(scale(3, 12)):
        os.kill(service.worker_pids()[0], signal.SIGKILL)
        for _ in range(20):
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                assert service.ask("GET", "/v2/models/versioned/ready").status == 200
        until(lambda: service.all_serve(2), 30)
    with hammering(service, http=6, grpc=2) as hammer:
        until(hammer.all_answered())
    assert hammer.errors == []


def test_killed_while_a_new_version_comes(service: Served, repository: Path) -> None:
    """The switch is done all the same, and the replacement never answers with the old version after it."""
    with hammering(service, http=6, grpc=1) as hammer:
        publish(repository, "versioned", 2, versioned_model(2))
        victim = service.worker_pids()[1]
        os.kill(victim, signal.SIGKILL)
        until(lambda: hammer.all_at(2), 20)
        until(lambda: service.all_serve(2) and victim not in service.worker_pids(), 20)
        errors = len(hammer.errors)
        until(hammer.all_answered(50))
        assert len(hammer.errors) == errors
    assert hammer.went_back() == []
    with hammering(service, http=12, grpc=2) as fresh:
        until(fresh.all_answered())
    assert fresh.errors == []
    assert fresh.answers.keys() == {2}


# --- stopped ---------------------------------------------------------------------------------------------


def test_worker_that_hangs_is_replaced_and_its_clients_go_on(service: Served) -> None:
    with hammering(service, http=8, grpc=1) as hammer:
        until(lambda: both_workers(service, hammer), 10)
        victim = service.worker_pids()[0]
        its_ports = remote_ports(victim)
        others = [c for c in hammer.clients if c.kind == "http" and c.ports[-1] not in its_ports]
        os.kill(victim, signal.SIGSTOP)
        stopped = time.monotonic()
        until(lambda: victim not in service.worker_pids() and service.all_serve(2), 25)
        took = time.monotonic() - stopped
        until(hammer.all_answered(50))
        assert [c.errors for c in others] == [[]] * len(others)
        assert otherwise_broken(hammer) == []
    assert took < 20
    assert not psutil.pid_exists(victim)


def test_worker_that_pauses_for_a_moment_is_left_alone(service: Served) -> None:
    before = service.worker_pids()
    with hammering(service, http=4) as hammer:
        os.kill(before[0], signal.SIGSTOP)
        time.sleep(0.5)  # less than `hang`: this is the pause itself, nothing is waited for
        os.kill(before[0], signal.SIGCONT)
        until(hammer.all_answered(50))
    assert hammer.errors == []
    assert service.worker_pids() == before


# --- drained ---------------------------------------------------------------------------------------------


def test_sigterm_answers_what_is_in_flight(repository: Path, tmp_path: Path) -> None:
    """Slow requests over both doors are under way: they are answered whole, then all exits 0; nobody new gets in."""
    with serving(repository, tmp_path / "service", workers=2, grace="60s") as service:
        channel = grpc.insecure_channel(service.grpc)
        spins = [Sent("loops", "INT64", np.array([8_000]))]
        asking = [Asking(lambda: spin(service, 8_000)) for _ in range(3)]
        calls = [inference(channel, "ModelInfer").future(infer_request("spinning", spins)) for _ in range(2)]
        until(lambda: spins_taken(service) == 5)
        idle = service.connect()
        assert service.ask("GET", "/v2/health/live", connection=idle).status == 200
        workers = service.worker_pids()
        service.process.send_signal(signal.SIGTERM)
        until(lambda: refused(service), 5, "new connections are refused")
        assert any(thread.is_alive() for thread in asking), "the slow requests ended too soon to tell"
        for thread in asking:
            thread.join(60)
            assert isinstance(thread.result, Answer), thread.result
            assert thread.result.status == 200
            assert thread.result.json()["outputs"][0]["shape"] == [1]
        for call in calls:
            assert read_grpc(call.result(timeout=60))["done"].shape == (1,)
        assert service.process.wait(20) == 0
        assert not any(psutil.pid_exists(pid) for pid in workers)
        channel.close()
        idle.close()


def refused(service: Served) -> bool:
    try:
        service.connect(timeout=1).connect()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_while_a_body_is_coming_takes_the_rest(repository: Path, tmp_path: Path) -> None:
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]}).encode()
    with serving(repository, tmp_path / "service", workers=1) as service:
        connection = service.connect()
        connection.putrequest("POST", "/v2/models/versioned/infer")
        connection.putheader("content-length", str(len(body)))
        connection.endheaders(body[:10])
        until(lambda: service.total("octoserve_connections", door="http") == 1)
        service.ask("GET", "/v2/health/live")  # its bytes have been read once a later request is answered
        service.process.send_signal(signal.SIGTERM)
        until(lambda: refused(service), 5)
        connection.send(body[10:])
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.getheader("connection") == "close"
        assert json.loads(answer.read())["model_version"] == "1"
        assert service.process.wait(20) == 0


TOKENS = 3000
SIMILARITIES = TOKENS * TOKENS * 4
"""Bytes of the answer to `long_match`."""


def long_match() -> list[Sent]:
    """Some 400 kB whose answer has 36 MB."""
    tokens = np.ones((1, TOKENS, 16), "<f4")
    return [
        Sent("query", "FP32", tokens),
        Sent("passage", "FP32", tokens),
        Sent("passage_mask", "BOOL", np.ones((1, TOKENS), bool)),
    ]


@pytest.fixture
def long_answers(repository: Path, tmp_path: Path, models: Path) -> Iterator[Served]:
    shutil.copytree(models / "passage_match", repository / "passage_match")
    with serving(repository, tmp_path / "service", workers=1, grace="60s") as service:
        yield service


def drained_for_a_while(service: Served) -> None:
    """SIGTERM, and time enough for a worker that thinks it is done to leave; it may not."""
    (worker,) = service.worker_pids()
    service.process.send_signal(signal.SIGTERM)
    until(lambda: refused(service), 10)
    time.sleep(2)
    assert psutil.pid_exists(worker)


def test_sigterm_while_a_long_answer_is_read_over_http(long_answers: Served) -> None:
    """A client that is held up in the middle of an answer gets the rest of it all the same."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(30)
        sock.connect(("127.0.0.1", long_answers.ports["http"]))
        body, headers = binary_request(long_match(), outputs=[{"name": "similarity"}])
        lines = [f"{name}: {value}" for name, value in {**headers, "host": "x", "content-length": len(body)}.items()]
        head = "\r\n".join(["POST /v2/models/passage_match/infer HTTP/1.1", *lines, "", ""])
        sock.sendall(head.encode() + body)
        came = len(sock.recv(100))
        drained_for_a_while(long_answers)
        while part := sock.recv(1 << 20):
            came += len(part)
    assert came > SIMILARITIES
    assert long_answers.process.wait(30) == 0


def test_sigterm_while_a_long_answer_is_read_over_grpc(long_answers: Served) -> None:
    """The same where HTTP/2's flow control holds the answer back."""
    request = infer_request("passage_match", long_match(), outputs=[{"name": "similarity"}]).SerializeToString()
    with socket.create_connection(("127.0.0.1", long_answers.ports["grpc"]), timeout=30) as sock:
        fields = [
            (":method", "POST"), (":scheme", "http"), (":path", "/inference.GRPCInferenceService/ModelInfer"),
            (":authority", "x"), ("content-type", "application/grpc"), ("te", "trailers"),
        ]  # fmt: skip
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2_frame(4, 0, 0))
        sock.sendall(http2_frame(1, 4, 1, hpack.Encoder().encode(fields)))
        message = b"\0" + struct.pack(">I", len(request)) + request
        for at in range(0, len(message), 16384):
            last = at + 16384 >= len(message)
            sock.sendall(http2_frame(0, 1 if last else 0, 1, message[at : at + 16384]))
        reader = sock.makefile("rb")
        came = 0
        while came < 65535:  # the window that every connection begins with
            came += len(next_data(reader))
        drained_for_a_while(long_answers)
        for stream in (0, 1):
            sock.sendall(http2_frame(8, 0, stream, struct.pack(">I", 1 << 30)))
        while data := next_data(reader):
            came += len(data)
    assert came > SIMILARITIES
    assert long_answers.process.wait(30) == 0


def http2_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def next_data(reader: Any) -> bytes:
    """The next DATA frame's bytes; empty at the end of the stream or connection."""
    while head := reader.read(9):
        payload = reader.read(int.from_bytes(head[:3], "big"))
        if head[3] == 0 and payload:
            return payload
        if head[3] in (0, 1) and head[4] & 1:
            break
    return b""


def test_sigterm_under_load_breaks_no_request_half_way(repository: Path, tmp_path: Path) -> None:
    with (
        serving(repository, tmp_path / "service", workers=2) as service,
        hammering(service, http=6, grpc=2) as hammer,
    ):
        until(hammer.all_answered())
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(20) == 0
    # grpcio now and then lets a call that it queued while the GOAWAY came wait for its deadline, though by then
    # nobody listens any more and it would only have to connect to hear so.
    allowed = (*BROKEN, "refused", "StatusCode.DEADLINE_EXCEEDED")
    assert [error for error in hammer.errors if not any(how in error for how in allowed)] == []


def test_grace_ends_what_takes_too_long(repository: Path, tmp_path: Path) -> None:
    """Work longer than the grace period does not hold up the end, and the exit code says that it was cut."""
    with serving(repository, tmp_path / "service", workers=1, grace="2s", finish=False) as service:
        asking = Asking(lambda: spin(service, 300_000))
        until(lambda: service.total("octoserve_pending_requests", model="spinning") == 1)
        service.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        service.process.wait(20)
        assert time.monotonic() - began < 6
        asking.join(20)
        assert isinstance(asking.result, ConnectionError | http.client.HTTPException)
        assert "cut" in service.output() or "killed" in service.output()


def test_sigterm_to_one_worker_is_a_rolling_restart_of_it(service: Served) -> None:
    """What it has under way is answered; its place is taken again."""
    asking = [Asking(lambda: spin(service, 8_000)) for _ in range(6)]
    until(lambda: spins_taken(service) == 6)
    first = service.worker_pids()[0]
    os.kill(first, signal.SIGTERM)
    for thread in asking:
        thread.join(60)
        assert isinstance(thread.result, Answer), thread.result
        assert thread.result.status == 200
    until(lambda: first not in service.worker_pids() and service.all_serve(2), 20)


# --- without a supervisor --------------------------------------------------------------------------------


def test_clients_do_not_notice_a_supervisor_that_dies_and_comes_back(repository: Path, tmp_path: Path) -> None:
    """Both doors go on, the second supervisor adopts, counters go on from where they were, and so do versions."""
    with serving(repository, tmp_path / "service", workers=2, finish=False) as first:
        before = set(first.worker_pids())
        with hammering(first, http=6, grpc=2) as hammer:
            until(hammer.all_answered())
            counted = first.total("octoserve_request_seconds_count", model="versioned")
            first.kill()
            until(hammer.all_answered(50))
            operation = first.ask("POST", "/v2/repository/models/versioned/unload")
            assert operation.status == 503
            assert "supervisor" in operation.json()["error"]
            with serving(repository, tmp_path / "service", workers=2) as second:
                assert second.ports["http"] == first.ports["http"]
                assert second.ports["grpc"] == first.ports["grpc"]
                assert set(second.worker_pids()) == before
                assert second.total("octoserve_request_seconds_count", model="versioned") > counted
                publish(repository, "versioned", 2, versioned_model(2))
                until(lambda: hammer.all_at(2), 15)
                until(hammer.all_answered())
                assert hammer.errors == []
                assert hammer.went_back() == []
                for client in hammer.clients:
                    client.stop.set()
                for client in hammer.clients:
                    client.join(20)
