"""Clients that ask `versioned_model` without a pause, check every answer to its last element, and remember."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import grpc
import numpy as np

from support.service import Served
from support.wire import Sent, infer_request, inference, read_grpc

PAUSE = 0.002
"""Seconds between two requests of a client, so that the clients leave the service some of a small machine."""


class Client(threading.Thread):
    """One connection: HTTP keep-alive, or a gRPC channel."""

    def __init__(self, service: Served, kind: str, model: str, version: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.service, self.kind, self.model, self.version = service, kind, model, version
        self.random = np.random.default_rng(seed)
        self.versions: list[int] = []
        """Of every answer, in order."""
        self.seconds: list[float] = []
        self.errors: list[str] = []
        self.ports: list[int] = []
        """Local ports of its HTTP connections, in order."""
        self.stop = threading.Event()

    def run(self) -> None:
        """Ask until told to stop."""
        while not self.stop.is_set():
            with contextlib.ExitStack() as stack:
                ask = self._http(stack) if self.kind == "http" else self._grpc(stack)
                self._ask_on(ask)

    def _ask_on(self, ask: Callable[[np.ndarray], int]) -> None:
        while not self.stop.is_set():
            x = self.random.integers(-1000, 1000, (int(self.random.integers(1, 4)), 2)).astype("<f4")
            began = time.monotonic()
            try:
                self.versions.append(ask(x))
            except Exception as error:
                self.errors.append(f"{self.kind} at {time.monotonic():.3f}: {type(error).__name__}: {error}")
                return
            self.seconds.append(time.monotonic() - began)
            time.sleep(PAUSE)

    def _http(self, stack: contextlib.ExitStack) -> Callable[[np.ndarray], int]:
        connection = http.client.HTTPConnection("127.0.0.1", self.service.ports["http"], timeout=20)
        stack.callback(connection.close)
        try:
            connection.connect()
        except OSError as error:
            self.errors.append(f"connect at {time.monotonic():.3f}: {type(error).__name__}: {error}")
            time.sleep(0.05)
            return lambda x: 0
        self.ports.append(connection.sock.getsockname()[1])
        path = f"/v2/models/{self.model}{f'/versions/{self.version}' if self.version else ''}/infer"

        def ask(x: np.ndarray) -> int:
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}]}
            connection.request("POST", path, json.dumps(body))
            came = connection.getresponse()
            content = came.read()
            if came.status != 200:
                raise AssertionError(f"status {came.status}: {content[:200]!r}")
            answer = json.loads(content)
            outputs = {o["name"]: np.array(o["data"], "<f4").reshape(o["shape"]) for o in answer["outputs"]}
            return checked(x, int(answer["model_version"]), outputs)

        return ask

    def _grpc(self, stack: contextlib.ExitStack) -> Callable[[np.ndarray], int]:
        # A pool of subchannels of its own: channels to one address would share a connection.
        channel = stack.enter_context(
            grpc.insecure_channel(self.service.grpc, options=[("grpc.use_local_subchannel_pool", 1)])
        )
        infer = inference(channel, "ModelInfer")

        def ask(x: np.ndarray) -> int:
            request = infer_request(self.model, [Sent("x", "FP32", x)], model_version=self.version)
            response = infer(request, timeout=20)
            outputs = {name: got.array() for name, got in read_grpc(response).items()}
            return checked(x, int(response.model_version), outputs)

        return ask


def checked(x: np.ndarray, version: int, outputs: dict[str, Any]) -> int:
    """The version that answered; AssertionError if any element came from another, or of other rows."""
    for name, expected in (("plus", x + version), ("minus", x - version)):
        assert np.array_equal(outputs[name], expected), f"version {version} answers {outputs[name]} to {x} as {name}"
    return version


class Hammer:
    """Several clients at once."""

    def __init__(
        self, service: Served, model: str = "versioned", *, http: int = 4, grpc: int = 1, version: str = ""
    ) -> None:
        kinds = ["http"] * http + ["grpc"] * grpc
        self.clients = [Client(service, kind, model, version, seed) for seed, kind in enumerate(kinds)]

    @property
    def errors(self) -> list[str]:
        """Of all clients."""
        return [error for client in self.clients for error in client.errors]

    @property
    def answers(self) -> Counter[int]:
        """How many answers came from each version."""
        return Counter(version for client in self.clients for version in list(client.versions))

    def all_at(self, version: int) -> bool:
        """Whether every client's last answer came from this version."""
        return all(client.versions[-1:] == [version] for client in self.clients)

    def all_answered(self, more: int = 20) -> Callable[[], bool]:
        """A condition: every client has had so many more answers than now."""
        before = [len(client.versions) for client in self.clients]
        return lambda: all(len(c.versions) >= n + more for c, n in zip(self.clients, before, strict=True))

    def went_back(self) -> list[tuple[int, int]]:
        """Pairs of answers of one client, the later one from an older version."""
        return [(a, b) for client in self.clients for a, b in pairwise(client.versions) if b < a]

    def p99(self, since: int = 0) -> float:
        """Seconds, over all clients' answers but the first `since` of each."""
        seconds = [s for client in self.clients for s in client.seconds[since:]]
        return float(np.percentile(seconds, 99)) if seconds else float("nan")


@contextlib.contextmanager
def hammering(service: Served, model: str = "versioned", **how: Any) -> Iterator[Hammer]:
    """Clients ask during this block; each has had an answer before it begins."""
    hammer = Hammer(service, model, **how)
    for client in hammer.clients:
        client.start()
    try:
        end = time.monotonic() + 20
        while not all(client.versions for client in hammer.clients):
            assert time.monotonic() < end, f"no answers: {hammer.errors}"
            time.sleep(0.01)
        yield hammer
    finally:
        for client in hammer.clients:
            client.stop.set()
        for client in hammer.clients:
            client.join(30)
