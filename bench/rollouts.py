"""What a rollout costs those who ask, and how fast a change is everywhere."""

from __future__ import annotations

import http.client
import json
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import servers
from contest import Contenders, Contest
from report import Row
from servers import Server, ServerFailed

NEVER_ENDS = "{weight: 10%, samples: 1000000000}"
PLAIN = "canary at 10 %"
VERSION_1 = "/v2/models/fraud/versions/1/infer"
COSTS = {
    PLAIN: f"{{on_new_version: hold, deadline: 0s, golden: false, baseline: false, steps: [{NEVER_ENDS}]}}",
    "canary at 10 % and a baseline": f"{{on_new_version: hold, deadline: 0s, golden: false, steps: [{NEVER_ENDS}]}}",
    "shadow of every request": (
        "{on_new_version: hold, deadline: 0s, golden: false, strategy: shadow, mirror: 100%, pairs: 1000000000}"
    ),
}
"""Contender -> rollout section of its spec."""
BY_HAND = "10 % by hand"
"""Both versions without a rollout, and a client that names version 1 in a tenth of its requests: what two versions cost
whoever shares the requests out between them."""
FLIPS = 200
FLIP = "{on_new_version: hold, golden: false, retain: 0s, strategy: blue-green}"


def rollouts(contest: Contest) -> None:
    """A canary, with and without a baseline, and a shadow, against the same service without one; then flips."""
    if contest.lacks("rollouts", "wrk") or contest.lacks("rollouts", "octoserve"):
        return
    assert contest.octoserve is not None
    command, repository, cores = contest.octoserve, contest.material / "rolling", contest.server_cores
    cases = {"fraud, 64 connections, rollouts": 64, "fraud, 16 connections, rollouts": 16}
    with contest.started() as start:
        contenders: Contenders = start.http("no rollout", servers.octoserve(command, repository, cores))["fraud"]
        found = start.http(BY_HAND, servers.octoserve(command, repository, cores, versions="all"))["fraud"]
        for name, (server, target) in found.items():
            contenders = {**contenders, name: (server, replace(target, elsewhere=(VERSION_1, 0.1)))}
        for name, section in COSTS.items():
            found = start.http(name, servers.octoserve(command, repository, cores, rollout=section))["fraud"]
            for server, _ in found.values():
                begin(server)
            contenders = {**contenders, **found}
        for case, connections in cases.items():
            contest.measure(case, contenders, connections)
    for case in cases:
        for name in COSTS:
            for other in ("no rollout", BY_HAND):
                ours, theirs = (contest.report.values(case, of) for of in (name, other))
                rule = "times" if name == PLAIN else "context"
                row = Row(f"{case}: {name} against {other}", "requests/s", ours, theirs, rule, 0.97)
                contest.report.rows.append(row)
    _flips(contest)


def _flips(contest: Contest) -> None:
    assert contest.octoserve is not None
    p50, p99, whole = [], [], []
    for _ in range(contest.rounds):
        server = servers.octoserve(contest.octoserve, contest.material / "rolling", None, 2, rollout=FLIP)
        with server as running:
            for number in range(FLIPS):
                began = time.perf_counter()
                begin(running, 1 + number % 2)
                until_ended(running)
                whole.append((time.perf_counter() - began) * 1000)
            took = api(running, "GET", "/api/generation")["took"]
            p50.append(took["p50"] * 1000)
            p99.append(took["p99"] * 1000)
    contest.report.rows += [
        Row(f"{FLIPS} flips, 2 workers: pushed to followed by all, p99", "ms", p99, (), "at most", 10),
        Row("the same, p50", "ms", p50),
        Row("a whole blue-green rollout, started to ended, all phases committed", "ms", whole),
    ]


def begin(server: Server, candidate: int = 1) -> None:
    """Start a rollout, and wait until the candidate has its share."""
    api(server, "POST", "/api/rollouts/fraud", {"candidate": candidate})
    give_up = time.monotonic() + 20
    while api(server, "GET", "/api/rollouts/fraud")["rollout"]["settled"] is None:
        if time.monotonic() > give_up:
            raise ServerFailed("the rollout did not settle")
        time.sleep(0.005)


def until_ended(server: Server) -> None:
    """Wait until it is promoted."""
    give_up = time.monotonic() + 20
    while (rollout := api(server, "GET", "/api/rollouts/fraud")["rollout"])["phase"] != "ended":
        if time.monotonic() > give_up:
            raise ServerFailed(f"the rollout did not end: {rollout}")
        time.sleep(0.002)
    if rollout["result"] != "promoted":
        raise ServerFailed(f"the rollout was {rollout['result']}: {rollout['reason']}")


def api(server: Server, method: str, path: str, body: Any = None) -> Any:
    """Ask the admin API."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.admin_port, timeout=30)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        content = answer.read()
    if answer.status >= 300:
        raise ServerFailed(f"{method} {path}: {answer.status} {content[:300]!r}")
    return json.loads(content)
