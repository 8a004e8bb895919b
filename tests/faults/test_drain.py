"""A drain waits for answers, and for nothing that a client only keeps open."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import hpack
import psutil
import pytest

from octoserve.codecs.protos import message
from octoserve.patterns.online.grpc import http2_frames as h2
from support.graphs import spinning_model, versioned_model
from support.service import Served, serving
from support.supervised import publish, until
from support.wire import SERVICE

GRACE = 30.0
SOON = 10.0
"""Seconds: far from the grace period, and enough for a busy machine."""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Served]:
    publish(tmp_path / "models", "versioned", 1, versioned_model(1))
    publish(tmp_path / "models", "spinning", 1, spinning_model())
    with serving(tmp_path / "models", tmp_path / "service", "--grace", f"{GRACE:g}s", workers=1) as service:
        yield service


def leaves_soon(service: Served) -> None:
    """SIGTERM to the service: it ends well, and long before the grace period."""
    began = time.monotonic()
    pids = service.worker_pids()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(GRACE + 5) == 0
    assert time.monotonic() - began < SOON
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert "were cut" not in service.output()


def end_of(call: Any, into: list[Any]) -> None:
    """Read a stream to its end: the messages, then the status code."""
    try:
        into.extend(call)
        into.append(grpc.StatusCode.OK)
    except grpc.RpcError as error:
        into.append(error.code())


def test_a_watch_hears_that_nobody_serves_and_ends(service: Served) -> None:
    request, response = message("grpc.health.v1.HealthCheckRequest"), message("grpc.health.v1.HealthCheckResponse")
    with grpc.insecure_channel(service.grpc) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch", request.SerializeToString, response.FromString)
        heard: list[Any] = []
        reading = threading.Thread(target=end_of, args=(watch(request()), heard), daemon=True)
        reading.start()
        until(lambda: heard or not reading.is_alive(), 10, "the first status")
        leaves_soon(service)
        reading.join(5)
        assert [each.status for each in heard[:-1]] == [response.SERVING, response.NOT_SERVING]
        assert heard[-1] is grpc.StatusCode.OK


def test_idle_streams_are_ended(service: Served) -> None:
    """One stream that has sent nothing and one of another service; each hears why."""
    with grpc.insecure_channel(service.grpc) as channel:
        ended: list[list[Any]] = []
        left = threading.Event()

        def nothing() -> Iterator[bytes]:
            left.wait(60)
            yield from ()

        for path in (SERVICE + "ModelStreamInfer", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"):
            heard: list[Any] = []
            ended.append(heard)
            call = channel.stream_stream(path)(nothing())
            threading.Thread(target=end_of, args=(call, heard), daemon=True).start()
        time.sleep(0.3)
        leaves_soon(service)
        until(lambda: all(ended), 5, "both streams have ended")
        left.set()
        assert ended == [[grpc.StatusCode.UNAVAILABLE]] * 2


def ask_if_live(client: socket.socket, window: int) -> None:
    """ServerLive over a connection of our own, whose streams may be sent `window` bytes."""
    fields = [
        (":method", "POST"), (":scheme", "http"), (":path", SERVICE + "ServerLive"), (":authority", "h"),
        ("te", "trailers"), ("content-type", "application/grpc"),
    ]  # fmt: skip
    client.sendall(h2.PREFACE + h2.settings_frame([(h2.INITIAL_WINDOW_SIZE, window)]))
    client.sendall(h2.header_frames(1, hpack.Encoder().encode(fields), False, 16384))
    client.sendall(h2.frame_head(5, h2.DATA, h2.END_STREAM, 1) + bytes(5))


def test_a_connection_that_stays_open_holds_nobody_up(service: Served) -> None:
    """It answers no ping and never closes; its answer has come."""
    with socket.create_connection(("127.0.0.1", service.ports["grpc"])) as client:
        ask_if_live(client, 65535)
        client.settimeout(10)
        came = b""
        while b"grpc-status" not in came:
            came += client.recv(1 << 16)
        leaves_soon(service)


def test_an_answer_that_nobody_takes_is_cut_at_the_end_of_the_grace_period(tmp_path: Path) -> None:
    """It could not be delivered: the service ends well all the same, and says so."""
    publish(tmp_path / "models", "versioned", 1, versioned_model(1))
    with serving(tmp_path / "models", tmp_path / "service", "--grace", "4s", workers=1, finish=False) as service:
        with socket.create_connection(("127.0.0.1", service.ports["grpc"])) as client:
            ask_if_live(client, 0)
            time.sleep(0.3)
            service.workers()
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(4 + 3) == 0
        assert "1 requests were cut" in service.output()


def test_the_last_counts_of_a_worker_that_leaves_are_kept(tmp_path: Path) -> None:
    """Requests that are answered between the last look of the supervisor and the end."""
    publish(tmp_path / "models", "versioned", 1, versioned_model(1))
    with serving(tmp_path / "models", tmp_path / "service", workers=1) as service:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
        (pid,) = service.worker_pids()
        service.metrics()
        for _ in range(50):
            assert service.ask("POST", "/v2/models/versioned/infer", body).status == 200
        psutil.Process(pid).send_signal(signal.SIGTERM)
        until(lambda: not psutil.pid_exists(pid), 10, "the worker has left")
        until(lambda: service.all_serve(1) and service.worker_pids() != [pid], 20, "the next one serves")
        assert service.total("octoserve_request_seconds_count", model="versioned", outcome="ok") == 50
