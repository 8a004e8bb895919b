"""What each protocol's door costs: CPU of the server per request of one row, against the V2 JSON door's."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import answers
import servers
from contest import FAILURES, Contenders, Contest
from load import Target
from report import Row

BAR = 1.3
"""Times the CPU of the V2 JSON door at an equal payload; over gRPC, of V2's door there."""
CONNECTIONS = 64
_TOLERANCE = 1e-5

Outputs = Callable[[Any], dict[str, Any]]
HTTP: dict[str, tuple[str, Callable[[list[float]], Any], Outputs]] = {
    "V1 rows": ("/v1/models/fraud:predict", lambda row: {"instances": [row]}, lambda said: said["predictions"][0]),
    "TensorFlow Serving columns": (
        "/v1/models/fraud:predict",
        lambda row: {"inputs": {"features": [row]}},
        lambda said: {name: value[0] for name, value in said["outputs"].items()},
    ),
    "MLflow instances": (
        "/models/fraud/invoke", lambda row: {"instances": [row]}, lambda said: said["predictions"][0],
    ),
    "predict": ("/models/fraud/predict", lambda row: [{"features": row}], lambda said: said[0]),
}  # fmt: skip


def doors(contest: Contest) -> None:
    """Every door of one server in turn, on a core of its own."""
    if contest.lacks("doors", "wrk") or contest.lacks("doors", "octoserve"):
        return
    assert contest.octoserve is not None
    with contest.started() as start:
        server = servers.octoserve(contest.octoserve, contest.repository, contest.server_cores)
        v2 = start.http("V2 JSON", server)["fraud"]
        if not v2:
            return
        running, _ = v2["V2 JSON"]
        base, expected = f"http://127.0.0.1:{running.http_port}", json.loads(contest.expected.read_text())["fraud"]
        contenders: Contenders = dict(v2)
        for name, (path, body, outputs) in HTTP.items():
            try:
                for row, label, probabilities in zip(*expected.values(), strict=True):
                    _check(f"{base}{path}", body(row), outputs, label, probabilities)
            except FAILURES as error:
                contest.fail(name, error)
                continue
            file = contest.material / f"door-{name.replace(' ', '-')}.json"
            file.write_text(json.dumps(body(expected["rows"][0])))
            contenders[name] = running, Target(f"{base}{path}", file)
        contest.measure("HTTP doors", contenders, CONNECTIONS)
        _rows(contest, "HTTP doors", "V2 JSON")
        if contest.lacks("gRPC doors", "h2load"):
            return
        over_grpc = start.grpc("V2 gRPC", running, rows=8)
        if over_grpc:
            over_grpc |= _tensorflow(contest, over_grpc)
            contest.measure("gRPC doors", over_grpc, CONNECTIONS)
            _rows(contest, "gRPC doors", "V2 gRPC")


def _rows(contest: Contest, case: str, peer: str) -> None:
    theirs = contest.report.values(case, peer, "server_cpu")
    for name in contest.report.samples[case]:
        if name != peer:
            ours = contest.report.values(case, name, "server_cpu")
            contest.report.rows.append(Row(f"{case}: {name} against {peer}", "us CPU", ours, theirs, "within", BAR))


def _check(url: str, body: Any, outputs: Outputs, label: int, probabilities: list[float]) -> None:
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("POST", f"/{path}", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse().read()
    connection.close()
    try:
        said = outputs(json.loads(answer))
        pairs = list(zip(said["probabilities"], probabilities, strict=True))
        right = said["label"] == label and all(abs(got - want) < _TOLERANCE for got, want in pairs)
    except (ValueError, KeyError, TypeError, IndexError):
        right = False
    if not right:
        raise answers.WrongAnswer(f"{url} answered {answer[:300]!r}, not {label} with {probabilities}")


def _tensorflow(contest: Contest, over_grpc: Contenders) -> Contenders:
    """PredictionService of the same server."""
    server, target = over_grpc["V2 gRPC"]
    address, body = f"127.0.0.1:{server.grpc_port}", contest.material / "fraud.tensorflow"
    script = Path(__file__).with_name("verify_tensorflow.py")
    command = [str(contest.tools), str(script), address, str(contest.expected), str(body)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        contest.fail("TensorFlow Serving gRPC", answers.WrongAnswer(done.stderr.strip()))
        return {}
    url = f"http://{address}/tensorflow.serving.PredictionService/Predict"
    return {"TensorFlow Serving gRPC": (server, replace(target, url=url, body=body, answer_size=int(done.stdout)))}
