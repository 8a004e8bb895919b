"""Version 2 arrives while requests are running: who answered what, when, and whether anything was lost or mixed."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from demo_questions import build, directly
from demo_service import MODELS, NEXT, Service, publish
from numpy.typing import NDArray

CLIENTS = 4
BEFORE = 1.5
AFTER = 1.5
LIMIT = 20.0


@dataclass
class Switch:
    """What the clients saw. Times in seconds since the first request."""

    answers: list[tuple[float, int, float]] = field(default_factory=list)
    """(when it came, version, how long it took)"""
    errors: list[str] = field(default_factory=list)
    mixed: int = 0
    """Answers whose probabilities are not those of the version that they name."""
    published: float = 0.0

    def count(self, version: int) -> int:
        """Answers of one version."""
        return sum(1 for _, came, _ in self.answers if came == version)

    def first(self, version: int) -> float:
        """When it first answered."""
        return min((at for at, came, _ in self.answers if came == version), default=float("nan"))

    def last(self, version: int) -> float:
        """When it last answered."""
        return max((at for at, came, _ in self.answers if came == version), default=float("nan"))

    def slowest(self, start: float, end: float) -> float:
        """The longest that an answer took which came in this time."""
        return max((took for at, _, took in self.answers if start <= at <= end), default=float("nan"))

    def timeline(self, columns: int) -> list[tuple[int, int]]:
        """Answers of versions 1 and 2 in equal slices of the time."""
        end = max((at for at, _, _ in self.answers), default=0.0) or 1.0
        counts = np.zeros((columns, 2), dtype=np.int64)
        for at, version, _ in self.answers:
            if version in (1, 2):
                counts[min(columns - 1, int(at / end * columns)), version - 1] += 1
        return [(int(one), int(two)) for one, two in counts]


def run(service: Service) -> Switch:
    """Keep asking from a few connections, publish version 2, and go on until it has answered for a while."""
    rows, first, second = _rows()
    seen = Switch()
    stop = threading.Event()
    began = time.perf_counter()
    clients = [
        threading.Thread(target=_client, args=(i, service, rows, (first, second), seen, stop, began), daemon=True)
        for i in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    try:
        time.sleep(BEFORE)
        seen.published = time.perf_counter() - began
        publish("fraud", 2)
        end = time.monotonic() + LIMIT
        while not seen.count(2) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(AFTER)
    finally:
        stop.set()
        for client in clients:
            client.join(10)
    return seen


def _rows() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Rows for which the versions differ clearly, and the probabilities of each version."""
    rows, _ = build.fraud_rows()
    one = directly("fraud", {"features": rows})["probabilities"]
    two = directly("fraud", {"features": rows}, 2, NEXT)["probabilities"]
    apart = np.abs(one - two).max(axis=1) > 0.005
    assert apart.sum() > 10, "the versions answer alike; nothing could be told apart"
    assert MODELS.exists()
    return rows[apart], one[apart], two[apart]


def _client(
    number: int,
    service: Service,
    rows: NDArray[Any],
    expected: tuple[NDArray[Any], NDArray[Any]],
    seen: Switch,
    stop: threading.Event,
    began: float,
) -> None:
    """Ask one row after the other over one kept connection."""
    bodies = [
        json.dumps({"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 30], "data": row.tolist()}]})
        for row in rows
    ]
    connection = http.client.HTTPConnection("127.0.0.1", service.ports["http"], timeout=10)
    turn = number
    while not stop.is_set():
        turn = (turn + CLIENTS) % len(rows)
        asked = time.perf_counter()
        try:
            connection.request("POST", "/v2/models/fraud/infer", bodies[turn])
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise ValueError(f"status {response.status}: {body[:200].decode(errors='replace')}")
            answer = json.loads(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            seen.errors.append(f"{type(error).__name__}: {error}")
            connection.close()
            time.sleep(0.05)
            continue
        came = time.perf_counter()
        version = int(answer["model_version"])
        outputs = {output["name"]: output["data"] for output in answer["outputs"]}
        wanted = expected[version - 1][turn]
        if not np.allclose(outputs["probabilities"], wanted, rtol=1e-5, atol=1e-6):
            seen.mixed += 1
        seen.answers.append((came - began, version, came - asked))
    connection.close()
