"""Customers of `fraud`: real rows, 200 customers from four countries, until Ctrl-C.

    python ask.py [--url http://127.0.0.1:8080] [--rate 300]

Every five seconds it says who answered. Exit code 1 if a request was not answered with 200.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections import Counter
from urllib.parse import urlsplit

CONNECTIONS = 8
CUSTOMERS = 200
COUNTRIES = ("DE", "FR", "JP", "US")
EVERY = 5.0


def main() -> int:
    """Ask until Ctrl-C; the exit code."""
    parser = argparse.ArgumentParser(description="Ask fraud as its customers do, until Ctrl-C.")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second, over all connections")
    options = parser.parse_args()
    try:
        bodies = _bodies()
    except KeyboardInterrupt:
        return 130
    answers: Counter[str] = Counter()
    lock, stop = threading.Lock(), threading.Event()
    place = urlsplit(options.url).netloc
    threads = [
        threading.Thread(target=_customer, args=(place, number, bodies, options.rate, answers, lock, stop), daemon=True)
        for number in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    total: Counter[str] = Counter()
    try:
        while True:
            time.sleep(EVERY)
            with lock:
                now = answers.copy()
            print(f"{time.monotonic() - began:5.0f} s  {_line(now - total)}", flush=True)
            total = now
    except KeyboardInterrupt:
        stop.set()
    for thread in threads:
        thread.join(5)
    print(f"\nall: {_line(answers)}")
    return 1 if any(not name.startswith("version ") for name in answers) else 0


def _line(counts: Counter[str]) -> str:
    return "  ".join(f"{name}: {counts[name]:,}" for name in sorted(counts)) or "no answer"


def _bodies() -> list[bytes]:
    from sklearn.datasets import load_breast_cancer

    return [
        json.dumps(
            {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 30], "data": row.tolist()}]}
        ).encode()
        for row in load_breast_cancer().data
    ]


def _customer(
    place: str,
    number: int,
    bodies: list[bytes],
    rate: float,
    answers: Counter[str],
    lock: threading.Lock,
    stop: threading.Event,
) -> None:
    """Every CONNECTIONS-th question, on time, over one kept connection."""
    connection = http.client.HTTPConnection(place, timeout=10)
    began, turn = time.monotonic(), number
    while not stop.wait(max(0.0, began + turn / rate - time.monotonic())):
        customer = turn % CUSTOMERS
        headers = {
            "Content-Type": "application/json",
            "x-customer": f"customer-{customer}",
            "x-country": COUNTRIES[customer % len(COUNTRIES)],
        }
        try:
            connection.request("POST", "/v2/models/fraud/infer", bodies[turn % len(bodies)], headers)
            response = connection.getresponse()
            body = response.read()
            name = f"version {json.loads(body)['model_version']}" if response.status == 200 else str(response.status)
        except (OSError, http.client.HTTPException) as error:
            name = type(error).__name__
            connection.close()
        with lock:
            answers[name] += 1
        turn += CONNECTIONS
    connection.close()


if __name__ == "__main__":
    sys.exit(main())
