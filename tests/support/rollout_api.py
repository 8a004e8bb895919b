"""A scriptable server that speaks docs/rollout-api.md and nothing else: a client that strays from it is told so.

What it answers is set in its fields; what it was asked is in `asked`. `stop` and `start` again on the same port are a
restart of the service: the port stays theirs until `close`. Run as a program, it lives through a canary for somebody
who looks at it.
"""

from __future__ import annotations

import copy
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

COMMANDS = ("approve", "pause", "resume", "promote", "abort", "rollback")
START = 1_764_000_000.0
STEPS = (0.01, 0.1, 0.5, 1.0)
NEW = {"id": "fraud-20261124T130000-0001"}
"""What tells the rollout that a start makes from the one before."""


class Asked(NamedTuple):
    """One request, as it came."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    token: str


class Refusal(Exception):
    """An answer that is no 2xx."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def verdict(outcome: str = "HOLD", **fields: Any) -> dict[str, Any]:
    """A verdict on the error rate, as the API shows it."""
    base = {"check": "error_rate", "segment": "", "outcome": outcome, "estimate": 0.004, "low": -0.003, "high": 0.02}
    return {**base, "margin": 0.01, "unit": "share", "n": 212, "n_base": 1920, "note": "", **fields}


def rollout(**fields: Any) -> dict[str, Any]:
    """A canary in its second step of four; `fields` say what differs."""
    at = fields.get("step", 1)
    states = ["done" if i < at else "now" if i == at else "next" for i in range(len(STEPS))]
    steps = [
        {"weight": weight, "mirror": 0.0, "samples": 500, "pause": 60, "approval": weight == 0.5, "state": state}
        for weight, state in zip(STEPS, states, strict=True)
    ]
    base = {
        "id": "fraud-20261124T120000-7f3a", "strategy": "canary", "stable": 1, "candidate": 2,
        "phase": "running", "result": "", "reason": "", "paused": "", "step": at, "steps": steps,
        "started": START, "entered": START + 60, "settled": START + 60.2, "deadline": START + 3660, "now": START + 100,
        "waiting_for": "212 of 500 answered requests of the candidate", "samples": {"have": 212, "want": 500},
        "verdicts": [verdict()],
        "arms": {
            "candidate": {"assigned": 215, "attempts": 212, "failures": 1, "p50": 0.0008, "p99": 0.004},
            "baseline": {"assigned": 214, "attempts": 214, "failures": 0, "p50": 0.0008, "p99": 0.134},
            "stable": {},
        },
        "pairs": {
            "offered": 0, "sent": 0, "ok": 0, "error": 0, "timeout": 0, "dropped": {}, "compared": 0, "disagreed": 0,
            "outputs": {}, "noise_compared": 0, "noise_disagreed": 0,
        },
        "actions": ["abort", "pause", "promote"],
    }  # fmt: skip
    return {**base, **fields}


def routes(weight: float, stable: int = 1, candidate: int = 2) -> list[dict[str, Any]]:
    """The arms at this weight of the candidate, with a baseline of its size where it fits."""
    base = weight if weight <= 0.5 else 0.0
    parts = [(candidate, "candidate", weight), (stable, "baseline", base), (stable, "stable", 1 - weight - base)]
    return [{"version": version, "role": role, "share": share} for version, role, share in parts]


def status(endpoint: str = "fraud", weight: float = 0.1, **fields: Any) -> dict[str, Any]:
    """The Status of an endpoint with `rollout(**fields)`."""
    live = rollout(**fields)
    return {
        "endpoint": endpoint, "stable": live["stable"], "routes": routes(weight, live["stable"], live["candidate"]),
        "generation": 12, "acknowledged": True, "refused": [], "on_new_version": "rollout", "rollout": live,
    }  # fmt: skip


def ended(result: str, reason: str = "", endpoint: str = "fraud", **fields: Any) -> dict[str, Any]:
    """The Status after a rollout that ended so."""
    live = {"phase": "ended", "result": result, "reason": reason, "entered": START + 260, "now": START + 300}
    shown = status(
        endpoint, 1.0 if result == "promoted" else 0.0, **{**live, "actions": [], "waiting_for": "", **fields}
    )
    return shown | {"refused": [2] if result in ("aborted", "rolled back") else []}


def summary(state: dict[str, Any]) -> dict[str, Any]:
    """The Summary of a Status' rollout."""
    live = state["rollout"]
    names = ("id", "strategy", "stable", "candidate", "phase", "result", "reason", "started")
    return {name: live[name] for name in names} | {"ended": live["entered"] if live["phase"] == "ended" else None}


class RolloutApi:
    """The server.

    token:    wanted as a bearer token; "" wants none
    statuses: endpoint -> Status
    script:   Statuses that take turns as fraud's, one a GET of it; the last one stays
    history, audits, reports: what those paths answer; audits by id, "" for the last one; reports by format
    on_start: endpoint and body -> Status; by default a rollout in its first step
    fail:     (status, body) that every request gets
    """

    def __init__(self, token: str = "") -> None:
        self.token = token
        self.statuses: dict[str, Any] = {"fraud": status()}
        self.script: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.audits: dict[str, bytes] = {}
        self.reports: dict[str, bytes] = {}
        self.on_start: Callable[[str, dict[str, Any]], dict[str, Any]] = self._begin
        self.fail: tuple[int, bytes] | None = None
        self.asked: list[Asked] = []
        self._held = socket.socket()
        """Bound and never listening: nobody else gets the port while the service is away, and a client is refused."""
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self._port: int = self._held.getsockname()[1]
        self._server: ThreadingHTTPServer | None = None
        self.start()

    def start(self) -> None:
        """Listen, each time on the same port."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api._serve(self)

            def do_POST(self) -> None:
                api._serve(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Nothing listens any more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        """The last call."""
        self.stop()
        self._held.close()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._port}"

    # --- the contract -----------------------------------------------------------------------------------

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("content-length", 0))
        content = request.rfile.read(length)
        parts = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            body = json.loads(content) if content else None
        except ValueError:
            body = content
        self.asked.append(Asked(request.command, parts.path, query, body, token))
        try:
            if self.fail is not None:
                return self._send(request, *self.fail)
            if self.token and (kind, token) != ("Bearer", self.token):
                raise Refusal(401, "a bearer token is wanted: Authorization: Bearer <admin_token>")
            answer = self._answer(request.command, parts.path, query, body)
            self._send(request, *answer)
        except Refusal as refusal:
            self._send(request, refusal.status, json.dumps({"error": str(refusal)}).encode())

    def _send(self, request: BaseHTTPRequestHandler, code: int, content: bytes) -> None:
        request.send_response(code)
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, bytes]:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] != ["api", "rollouts"] or len(parts) > 4:
            raise Refusal(404, f"{method} {path}: Not Found")
        if len(parts) == 2:
            self._expect(method == "GET", 405, "Method Not Allowed")
            return 200, json.dumps(self.statuses).encode()
        endpoint, rest = parts[2], parts[3] if len(parts) == 4 else ""
        self._expect(endpoint in self.statuses, 404, f"no endpoint {endpoint!r}")
        if method == "POST":
            return self._change(endpoint, rest, body)
        if rest == "history":
            self._expect(set(query) <= {"limit"}, 400, "only limit is taken")
            return 200, json.dumps(self.history[: int(query.get("limit", 20))]).encode()
        if rest == "audit":
            self._expect(query.get("id", "") in self.audits, 404, f"no rollout {query.get('id', '')!r} of {endpoint!r}")
            return 200, self._page(self.audits[query.get("id", "")], int(query["after"]), int(query["limit"]))
        if rest == "report":
            kind = query.get("format", "json")
            self._expect(kind in ("json", "html", "text"), 400, "format: json, html or text")
            self._expect(kind in self.reports, 404, "nothing was mirrored in this rollout")
            return 200, self.reports[kind]
        self._expect(not rest, 404, f"{method} {path}: Not Found")
        if endpoint == "fraud" and self.script:
            self.statuses[endpoint] = self.script.pop(0)
        return 200, json.dumps(self.statuses[endpoint]).encode()

    @staticmethod
    def _page(content: bytes, after: int, limit: int) -> bytes:
        """As it is where all of it fits, and where it is none."""
        try:
            raws = msgspec.json.decode(content, type=list[msgspec.Raw])
            page = [raw for raw in raws if msgspec.json.decode(raw)["seq"] > after][:limit]
        except (ValueError, TypeError, KeyError):
            return content
        return content if len(page) == len(raws) else b"[%b]" % b",".join(map(bytes, page))

    def _change(self, endpoint: str, command: str, body: Any) -> tuple[int, bytes]:
        self._expect(isinstance(body, dict), 400, "a JSON object is wanted")
        if not command:
            self._expect(isinstance(body.get("candidate"), int), 400, "candidate: a version is wanted")
            self._expect(set(body) <= {"candidate", "strategy", "stable", "reason"}, 400, "unknown field")
            self._expect(body["candidate"] != self.statuses[endpoint]["stable"], 409, "version 1 is the stable version")
            self.statuses[endpoint] = self.on_start(endpoint, body)
            return 201, json.dumps(self.statuses[endpoint]).encode()
        self._expect(command in COMMANDS, 404, f"POST {command}: Not Found")
        self._expect(set(body) <= {"reason", "id"}, 400, "unknown field")
        state = self.statuses[endpoint]
        live = state["rollout"]
        self._expect(live is not None, 409, f"{endpoint} has no rollout")
        self._expect(body.get("id", live["id"]) == live["id"], 409, f"the live rollout is {live['id']}")
        legal = ", ".join(live["actions"]) or "nothing"
        self._expect(
            command in live["actions"], 409, f"{command} is not possible in {live['phase']}; possible: {legal}"
        )
        return 202, json.dumps(state).encode()

    def _begin(self, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
        strategy = body.get("strategy", "canary")
        new = {**NEW, "step": 0, "verdicts": [], "candidate": body["candidate"]}
        return status(endpoint, 0.01, strategy=strategy, stable=body.get("stable", 1), **new)

    @staticmethod
    def _expect(good: bool, code: int, text: str) -> None:
        if not good:
            raise Refusal(code, text)


def life(seconds_a_step: float = 12.0) -> list[dict[str, Any]]:
    """A canary from its first step to its end, one Status a second: for people who look at the screen."""
    out: list[dict[str, Any]] = []
    ticks = int(seconds_a_step)
    for at, weight in enumerate(STEPS):
        for tick in range(ticks):
            share = (tick + 1) / ticks
            n = int(500 * share)
            wide = 0.03 / (1 + 4 * share)
            state = "PASS" if share > 0.9 else "HOLD" if n > 50 else "NO_DATA"
            low, high = {"low": 1.05 - 20 * wide, "high": 1.05 + 20 * wide}, {"unit": "ratio", "n": n, "n_base": n}
            checks = [
                verdict(state, estimate=0.001, low=0.001 - wide, high=0.001 + wide, n=n, n_base=9 * n),
                verdict(state, check="latency_p99", estimate=1.05, margin=1.5, **low, **high),
                verdict(state, segment="country=Deutschland", low=0.004 - wide, high=0.004 + 2 * wide, n=n),
                verdict("PASS", check="revenue", estimate=0.2, low=-0.5, high=1.1, margin=2.0, unit="EUR")
                if tick >= 3
                else verdict("PROVIDER_ERROR", check="revenue", estimate=None, note="prometheus: connection refused"),
            ]
            pairs = {
                "offered": n + 7, "sent": n, "ok": n - 2, "error": 1, "timeout": 1, "dropped": {"queue_full": 7},
                "compared": n - 2, "disagreed": 3, "outputs": {"score": 3, "label": 1},
                "noise_compared": n // 4, "noise_disagreed": 1,
            }  # fmt: skip
            arms = {"candidate": {"assigned": n, "attempts": n, "failures": n // 200, "p50": 0.0008, "p99": 0.004}}
            arms["baseline"] = arms["candidate"] | {"failures": 0}
            last = share == 1 and weight == 0.1
            out.append(
                status(
                    weight=weight,
                    step=at,
                    verdicts=checks,
                    pairs=pairs,
                    arms=arms,
                    samples={"have": n, "want": 500},
                    waiting_for="approval by a person" if last else f"{n} of 500 answered requests of the candidate",
                    actions=["abort", "approve", "pause", "promote"] if last else ["abort", "pause", "promote"],
                    now=START + 60 + tick,
                )
            )
    retaining = {"phase": "retaining", "step": 3, "waiting_for": "the old version stays for 9 more minutes"}
    out += [status(weight=1.0, **retaining, deadline=None, samples=None, actions=["rollback"])] * 3
    return [*out, ended("promoted", "every step passed", step=3)]


if __name__ == "__main__":
    api = RolloutApi()
    api.script = copy.deepcopy(life())
    api.statuses["iris"] = {**status("iris"), "routes": routes(0.0), "rollout": None}
    api.history = [
        summary(ended("aborted", "error_rate: 5.1 % failed, 1 % more than the baseline is accepted")),
        summary(status()),
    ]
    print(api.url, flush=True)
    time.sleep(float(sys.argv[1]) if len(sys.argv) > 1 else 600)
