"""Versions 2 and 3 of wine come as canaries: who answered whom, and how each rollout ended.

The clients ask as customers do, with a header that says who they are, and know the right answers, which the service
does not. What a rollout did comes from `octoserve rollout` itself.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from demo_questions import build
from demo_service import DemoError, Service, environment

CLIENTS = 4
CUSTOMERS = 100
PAUSE = 0.002
"""Seconds between a client's answer and its next question."""
LIMIT = 120.0
"""Seconds that a rollout may take here; more than its deadline."""


@dataclass
class Asked:
    """What the clients saw; written by all of them, under the lock."""

    answers: Counter[int] = field(default_factory=Counter)
    """By version."""
    wrong: Counter[int] = field(default_factory=Counter)
    """Of them, those that named another cultivar than the bottle's."""
    customers: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Version -> who got an answer of it."""
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Ended:
    """How a rollout went. lines: what `octoserve rollout start --wait` printed; summary: its entry in the history."""

    lines: list[str]
    code: int
    summary: dict[str, Any]

    @property
    def took(self) -> float:
        """Seconds from its start to its end."""
        return float(self.summary["ended"] - self.summary["started"])


@contextmanager
def customers(service: Service) -> Iterator[Asked]:
    """Customers who go on asking until the block ends."""
    rows, truth = build.wine_rows()
    bodies = [
        json.dumps({"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 13], "data": row.tolist()}]})
        for row in rows
    ]
    seen, stop = Asked(), threading.Event()
    clients = [
        threading.Thread(target=_client, args=(i, service, bodies, truth.tolist(), seen, stop), daemon=True)
        for i in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    try:
        yield seen
    finally:
        stop.set()
        for client in clients:
            client.join(15)


def start_and_wait(service: Service, candidate: int) -> Ended:
    """`octoserve rollout start wine --candidate N --wait`, to its end, and what the history says of it afterwards."""
    command = ["rollout", "start", "wine", "--candidate", str(candidate), "--wait", "--interval", "0.2"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "octoserve", *command, "--admin-url", service.admin],
            capture_output=True,
            text=True,
            env={**environment(), "COLUMNS": "200"},
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace")[-2000:]
        raise DemoError(f"octoserve {' '.join(command)} took more than {LIMIT:.0f} s:\n{said}") from None
    with urllib.request.urlopen(f"{service.admin}/api/rollouts/wine/history?limit=1", timeout=20) as response:
        [summary] = json.load(response)
    if summary["candidate"] != candidate or not summary["ended"]:
        raise DemoError(f"the rollout of version {candidate} has not ended:\n{(done.stdout + done.stderr)[-2000:]}")
    return Ended(done.stdout.splitlines(), done.returncode, summary)


def course(lines: list[str]) -> list[str]:
    """What `--wait` printed, without the lines in which only a count or an open verdict has changed."""
    kept, before = [], ""
    for line in lines:
        where = line.partition("; waiting for ")[0][len("12:00:00") :]
        if "; waiting for " in line and where == before:
            continue
        if re.search(r"  (HOLD|NO DATA)  |  sample_ratio  PASS  ", line):
            continue
        before = where if "; waiting for " in line else before
        kept.append(line)
    return kept


def _client(
    number: int, service: Service, bodies: list[str], truth: list[int], seen: Asked, stop: threading.Event
) -> None:
    """Ask one bottle after the other over one kept connection, each for the next customer."""
    connection = http.client.HTTPConnection("127.0.0.1", service.ports["http"], timeout=10)
    turn = number
    while not stop.wait(PAUSE):
        turn += CLIENTS
        customer, bottle = turn % CUSTOMERS, turn % len(bodies)
        headers = {"Content-Type": "application/json", "x-customer": f"customer-{customer}"}
        try:
            connection.request("POST", "/v2/models/wine/infer", bodies[bottle], headers)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise ValueError(f"status {response.status}: {body[:200].decode(errors='replace')}")
            answer = json.loads(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            with seen.lock:
                seen.errors.append(f"{type(error).__name__}: {error}")
            connection.close()
            time.sleep(0.05)
            continue
        version = int(answer["model_version"])
        [label] = next(output["data"] for output in answer["outputs"] if output["name"] == "label")
        with seen.lock:
            seen.answers[version] += 1
            seen.wrong[version] += label != truth[bottle]
            seen.customers[version].add(customer)
    connection.close()
