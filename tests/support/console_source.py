"""A service that is only played, for the console: figures that change, and an API that notes what it is asked.

`serving` runs it with the real guards and the real server of the admin port. By hand, from the checkout:
`PYTHONPATH=tests:src python -m support.console_source 8090 [token]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from octoserve.patterns.online.supervisor.admin_guards import OriginGuard, RoleGuard
from octoserve.patterns.online.supervisor.admin_server import serve_application
from octoserve.patterns.online.supervisor.console.routes import OPEN_PATHS, routes
from octoserve.security.access import Access
from octoserve.security.caller import Caller
from octoserve.security.keys import digest_of

WINDOW = 300


def verdict(check: str, outcome: str, **fields: Any) -> dict[str, Any]:
    """A Verdict as the API shows it."""
    empty = {"segment": "", "estimate": None, "low": None, "high": None, "margin": 0.01, "unit": "share", "n": 0}
    return {"check": check, "outcome": outcome, "n_base": 0, "note": "", **empty, **fields}


def step(weight: float, state: str, **fields: Any) -> dict[str, Any]:
    """A step as the API shows it."""
    return {"weight": weight, "mirror": 0.0, "samples": 500, "pause": 60, "approval": False, "state": state, **fields}


def pairs(**fields: Any) -> dict[str, Any]:
    """The account of copied requests; nothing was copied by default."""
    zero = dict.fromkeys(("offered", "sent", "ok", "error", "timeout", "compared", "disagreed"), 0)
    return {**zero, "dropped": {}, "outputs": {}, "noise_compared": 0, "noise_disagreed": 0, **fields}


def canary(now: float) -> dict[str, Any]:
    """fraud: at 10 %, held by a latency that straddles its margin, and by a person."""
    return {
        "id": "fraud-20261124T120000-7f3a",
        "strategy": "canary",
        "stable": 1,
        "candidate": 2,
        "phase": "running",
        "result": "",
        "reason": "",
        "paused": "",
        "step": 1,
        "steps": [
            step(0.01, "done", samples=100, pause=0),
            step(0.1, "now", approval=True),
            step(0.25, "next"),
            step(0.5, "next", samples=2000),
            step(1.0, "next", samples=0, pause=300),
        ],
        "started": now - 610,
        "entered": now - 310,
        "settled": now - 309.8,
        "deadline": now + 3290,
        "now": now,
        "waiting_for": "latency_p99: HOLD (1.12, accepted 1.25) and 1 more, then approval",
        "samples": {"have": 412, "want": 500},
        "verdicts": [
            verdict("error_rate", "PASS", estimate=-0.0004, low=-0.0031, high=0.0048, n=412, n_base=3690),
            verdict(
                "error_rate", "HOLD", segment="country=DE", estimate=0.004, low=-0.006, high=0.021, n=58, n_base=531
            ),
            verdict(
                "latency_p99", "HOLD", estimate=1.12, low=0.94, high=1.38, margin=1.25, unit="ratio", n=412, n_base=409
            ),
            verdict("chargeback", "NO_DATA", margin=0.02, note="labels come two hours later"),
        ],
        "arms": {
            "candidate": {"assigned": 415, "attempts": 412, "failures": 1, "p50": 0.00083, "p99": 0.0042},
            "baseline": {"assigned": 411, "attempts": 409, "failures": 1, "p50": 0.0008, "p99": 0.0038},
            "stable": {"assigned": 3301, "attempts": 3281, "failures": 9, "p50": 0.0008, "p99": 0.0039},
        },
        "pairs": pairs(),
        "actions": ["approve", "pause", "promote", "abort", "rollback"],
    }


def shadow(now: float) -> dict[str, Any]:
    """churn: a shadow that disagrees beyond its noise floor in one segment."""
    return {
        **canary(now),
        "id": "churn-20261124T114000-09be",
        "strategy": "shadow",
        "stable": 6,
        "candidate": 7,
        "step": 0,
        "steps": [step(0.0, "now", mirror=0.2, samples=10_000, pause=0)],
        "started": now - 1810,
        "entered": now - 1800,
        "settled": now - 1799,
        "deadline": now + 240,
        "waiting_for": "8,114 of 10,000 compared pairs",
        "samples": {"have": 8114, "want": 10_000},
        "verdicts": [
            verdict("disagreement", "PASS", estimate=0.0021, low=-0.0015, high=0.0074, margin=0.02, n=8114, n_base=811),
            verdict("disagreement", "FAIL", segment="plan=yearly", estimate=0.071, low=0.048, high=0.095, margin=0.02)
            | {"n": 611, "n_base": 118, "note": "churn_probability differs"},
            verdict("error_rate", "SRM", margin=0.01, n=8114, n_base=9000, note="shares contradict 20 %"),
            verdict("revenue", "PROVIDER_ERROR", margin=0.5, unit="EUR", note="Prometheus answered 503"),
        ],
        "arms": {"candidate": {}, "baseline": {}, "stable": {}},
        "pairs": pairs(
            offered=8301,
            sent=8140,
            dropped={"queue_full": 120, "too_large": 41},
            ok=8114,
            error=22,
            timeout=4,
            compared=8114,
            disagreed=87,
            outputs={"churn_probability": 87, "label": 12},
            noise_compared=811,
            noise_disagreed=2,
        ),
        "actions": ["pause", "promote", "abort", "rollback"],
    }


def ended(now: float) -> dict[str, Any]:
    """price: version 4 aborted itself."""
    rollout = {**canary(now), "id": "price-20261124T081500-11aa", "stable": 3, "candidate": 4, "phase": "ended"}
    failed = verdict("error_rate", "FAIL", estimate=0.061, low=0.038, high=0.094, n=530, n_base=528)
    return rollout | {
        "result": "aborted",
        "reason": "error_rate: 6.1 points more than version 3, 1 is accepted",
        "verdicts": [failed],
        "entered": now - 14_000,
        "actions": [],
        "waiting_for": "",
        "steps": [step(0.01, "done"), step(0.1, "done"), step(0.5, "next")],
    }


class PlayedService:
    """A ConsoleSource whose values a test sets, and the part of the admin API that the console asks."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.refuse: tuple[int, str] | None = None
        self.delay = 0.0
        self.broken = False
        now = time.time()
        self.started = now
        self.statuses: dict[str, dict[str, Any]] = {
            "churn": self._status("churn", 6, [(6, "stable", 1.0)], shadow(now)),
            "fraud": self._status(
                "fraud", 1, [(2, "candidate", 0.1), (1, "baseline", 0.1), (1, "stable", 0.8)], canary(now)
            ),
            "iris": self._status("iris", 1, [(1, "stable", 1.0)], None),
            "price": self._status("price", 3, [(3, "stable", 1.0)], ended(now)) | {"refused": [4]},
        }
        self.repository = {
            "churn": [5, 6, 7],
            "fraud": [1, 2],
            "iris": [1, 2],
            "price": [3, 4],
        }
        self.failed = {("iris", 2): "golden sample 3: setosa wanted, virginica came"}
        self.processes = [
            {"index": i, "pid": 4711 + i, "state": "serving", "generation": 12, "restarts": 0, "adopted": False}
            for i in range(2)
        ]

    @staticmethod
    def _status(name: str, stable: int, arms: list[tuple[int, str, float]], rollout: Any) -> dict[str, Any]:
        shown = [{"version": version, "role": role, "share": share} for version, role, share in arms]
        facts = {"endpoint": name, "stable": stable, "routes": shown, "generation": 12, "acknowledged": True}
        return {**facts, "refused": [], "on_new_version": "rollout", "rollout": rollout}

    # ---- ConsoleSource

    async def rollouts(self) -> Mapping[str, Any]:
        """Time passes and samples come in."""
        await asyncio.sleep(self.delay)
        if self.broken:
            raise RuntimeError("the played service is broken")
        now = time.time()
        shown = copy.deepcopy(self.statuses)
        for status in shown.values():
            if status["rollout"]:
                status["rollout"]["now"] = now
        return shown

    async def models(self) -> Mapping[str, Any]:
        """As admin_views.models_view."""
        view = {}
        for name, versions in self.repository.items():
            view[name] = {
                "routes": [{"version": r["version"], "share": r["share"]} for r in self.statuses[name]["routes"]]
                if name in self.statuses
                else [],
                "labels": {},
                "held": False,
                "versions": [self._version(name, version) for version in versions],
            }
        return view

    def _version(self, name: str, version: int) -> dict[str, Any]:
        reason = self.failed.get((name, version), "")
        report = {"state": "failed" if reason else "ready", "reason": reason}
        return {
            "version": version,
            "state": "UNAVAILABLE" if reason else "READY",
            "reason": reason,
            "workers": {str(process["index"]): report for process in self.processes},
            "digest": "sha256:0",
            "path": f"/models/{name}/{version}",
            "labels": ["latest"] if version == 2 else [],
        }

    async def workers(self) -> Sequence[Mapping[str, Any]]:
        """As admin_views.workers_view."""
        return self.processes

    async def live(self) -> Mapping[str, Any]:
        """Five minutes of figures that move with the clock."""
        now = time.time()
        return {"now": now, "step": 1.0, "endpoints": {name: self._figures(name, now) for name in self.statuses}}

    def _figures(self, name: str, now: float) -> dict[str, Any]:
        arms: dict[str, float] = {}
        for route in self.statuses[name]["routes"]:
            arms[str(route["version"])] = arms.get(str(route["version"]), 0.0) + route["share"]
        versions, share = {}, {}
        stable = str(self.statuses[name]["stable"])
        for version, part in arms.items():
            came: dict[str, list[float | None]] = {key: [] for key in ("rate", "errors", "p50", "p99")}
            share[version] = []
            for ago in range(WINDOW - 1, -1, -1):
                second = int(now) - ago
                dice = random.Random(f"{name}{version}{second}")
                early = len(arms) > 1 and ago > 200
                mine = (0.01 if version != stable else 0.99) if early else part
                rate = (120 + 18 * math.sin(second / 23) + dice.gauss(0, 5)) * mine
                share[version].append(round(mine, 4))
                came["rate"].append(round(max(0.0, rate), 1))
                came["errors"].append(float(dice.random() < 0.02 + rate / 900))
                slow = 1.1 if version != stable else 1.0
                quiet = early and version != stable and dice.random() < 0.3
                came["p50"].append(None if quiet else 0.0008 * slow + dice.random() * 0.0001)
                came["p99"].append(None if quiet else 0.0031 * slow + dice.random() * dice.random() * 0.0022)
            versions[version] = came
        return {"versions": versions, "share": share}

    # ---- the API

    role = "admin"
    """Of the token."""

    async def command(self, request: Request) -> Response:
        """Note it, and let it show."""
        said = await request.json()
        endpoint, command = request.path_params["endpoint"], request.path_params["command"]
        self.asked.append({"endpoint": endpoint, "command": command, "headers": dict(request.headers), **said})
        if self.refuse is not None:
            return JSONResponse({"error": self.refuse[1]}, self.refuse[0])
        rollout = self.statuses[endpoint]["rollout"]
        if command == "abort":
            rollout |= {"phase": "aborting", "reason": said["reason"], "actions": [], "waiting_for": "every worker"}
        if command == "pause":
            rollout |= {
                "paused": said["reason"] or "by hand",
                "person": "resume",
                "actions": ["resume", "promote", "abort", "rollback"],
            }
        return JSONResponse(self.statuses[endpoint], 202)

    async def history(self, request: Request) -> Response:
        """Two rollouts, one of them with markup in its reason."""
        now = time.time()
        first = {"id": "b", "strategy": "canary", "stable": 1, "candidate": 2, "phase": "running", "result": ""}
        second = {**first, "id": "a", "phase": "ended", "result": "aborted", "started": now - 9000, "ended": now - 8000}
        return JSONResponse(
            [
                {**first, "reason": "", "started": now - 600, "ended": None},
                {**second, "reason": "<b>latency</b> went up"},
            ]
        )

    async def report(self, request: Request) -> Response:
        """A page of its own."""
        return HTMLResponse("<!doctype html><title>Report</title><h1>Report</h1>")

    def application(self, token: str | None, port: int) -> Any:
        """With the guards of the admin port."""
        app = Starlette(
            routes=[
                *routes(self, token_set=bool(token), role=lambda _: self.role),
                Route("/api/rollouts/{endpoint}/history", self.history),
                Route("/api/rollouts/{endpoint}/report", self.report),
                Route("/api/rollouts/{endpoint}/{command}", self.command, methods=["POST"]),
            ]
        )
        if not token:
            return OriginGuard(app, port)
        return RoleGuard(app, Access(lambda: {digest_of(token): Caller("ada", role=self.role)}), OPEN_PATHS)


class Serving:
    """A played service at a port, until it is stopped; it may be started again at the same port."""

    def __init__(self, service: PlayedService, token: str | None = None, port: int = 0) -> None:
        self.service = service
        self.token = token
        self.port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when connections are taken."""
        listener = socket.create_server(("127.0.0.1", self.port))
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        begun = threading.Event()

        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            app = self.service.application(self.token, self.port)
            self._task = asyncio.ensure_future(serve_application(app, listener))
            begun.set()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            listener.close()

        self._thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
        self._thread.start()
        begun.wait(10)

    def stop(self) -> None:
        """Nobody listens afterwards."""
        if self._loop is not None and self._task is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(10)
        self._loop = None


@contextlib.contextmanager
def serving(service: PlayedService | None = None, token: str | None = None, port: int = 0) -> Iterator[Serving]:
    """A played service behind the real guards and server."""
    served = Serving(service or PlayedService(), token, port)
    served.start()
    try:
        yield served
    finally:
        served.stop()


if __name__ == "__main__":
    with serving(token=sys.argv[2] if len(sys.argv) > 2 else None, port=int(sys.argv[1])) as by_hand:
        print(by_hand.url)
        threading.Event().wait()
