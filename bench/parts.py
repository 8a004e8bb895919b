"""The parts of the comparison, each with the bars that it is held to."""

from __future__ import annotations

from statistics import mean, median

import batch as batches
import message_queue as queues
import processes
import servers
from contest import FAILURES, Contenders, Contest, Part
from doors import doors
from load import measure
from report import Report, Row
from rollouts import rollouts


def online(contest: Contest) -> None:
    """JSON over HTTP/1.1, one row a request, server and load generator on a core each."""
    if contest.lacks("online", "wrk"):
        return
    cores = contest.server_cores
    with contest.started() as start:
        octoserve: dict[str, Contenders] = {"fraud": {}, "mlp": {}}
        if contest.octoserve:
            models = ("fraud", "mlp")
            server = servers.octoserve(contest.octoserve, contest.repository, cores, models=models)
            octoserve = start.http("octoserve", server, models)
        by_hand = start.http("hand-written", servers.fastapi(contest.model("fraud"), cores))
        kserve = start.http("KServe SDK", servers.kserve(contest.model("fraud"), cores))
        usual = {**octoserve["fraud"], **by_hand["fraud"]}

        contest.measure("fraud, 64 connections", {**usual, **start.nginx(cores)}, 64)
        contest.measure("fraud, 16 connections", {**usual, **kserve["fraud"]}, 16)
        contest.measure("fraud, 1 connection", usual, 1)

        by_hand = start.http("hand-written", servers.fastapi(contest.model("mlp"), cores, "mlp"), ["mlp"])
        contest.measure("mlp, 64 connections", {**octoserve["mlp"], **by_hand["mlp"]}, 64)
    _online_rows(contest.report)


def _online_rows(report: Report) -> None:
    at_64, at_16, alone = "fraud, 64 connections", "fraud, 16 connections", "fraud, 1 connection"
    report.compare(at_64, "hand-written", "times", 8)
    report.compare(at_64, "hand-written", "no higher", what="p99")
    report.compare(at_16, "hand-written", "times", 6)
    report.compare(at_16, "KServe SDK", "context")
    report.compare(alone, "hand-written", "times", 1.6)
    report.compare(alone, "hand-written", "lower", what="p50")
    report.compare(alone, "hand-written", "lower", what="p99")
    report.compare("mlp, 64 connections", "hand-written", "times", 4)
    report.compare(at_64, "nginx, fixed body", "times", 0.5)
    report.compare(at_64, "nginx, static file", "context")


def grpc(contest: Contest) -> None:
    """ModelInfer with a raw tensor over HTTP/2, one stream a connection."""
    if contest.lacks("grpc", "h2load"):
        return
    cores = contest.server_cores
    answer = contest.material / "answer.pb"
    with contest.started() as start:
        contenders: Contenders = {}
        if contest.octoserve:
            server = servers.octoserve(contest.octoserve, contest.repository, cores)
            contenders = start.grpc("octoserve", server, rows=8)
        constants = {
            **start.grpc("grpcio sync, constant", servers.grpcio("sync", answer, cores), rows=1),
            **start.grpc("grpcio aio, constant", servers.grpcio("aio", answer, cores), rows=1),
        }
        kserve = start.grpc("KServe SDK", servers.kserve(contest.model("fraud"), cores), rows=8)
        contenders = {**contenders, **constants, **kserve}
        for connections in (16, 1, 64):
            name = f"gRPC fraud, {connections} connection{'s' * (connections > 1)}"
            contest.measure(name, contenders, connections)
    report, case = contest.report, "gRPC fraud, 16 connections"
    faster = max(constants, key=lambda name: median(report.values(case, name) or [0]), default="grpcio")
    report.compare(case, faster, "times", 0.8)
    report.compare(case, "KServe SDK", "times", 1.8)


def workers(contest: Contest) -> None:
    """One worker against two, nothing pinned: server and load generator share all cores."""
    if contest.lacks("workers", "wrk") or contest.lacks("workers", "octoserve"):
        return
    assert contest.octoserve is not None
    case = "fraud, 64 connections, unpinned"
    with contest.started() as start:
        contenders: Contenders = {}
        for name, count in (("octoserve, 2 workers", 2), ("octoserve, 1 worker", 1)):
            server = servers.octoserve(contest.octoserve, contest.repository, None, count)
            contenders |= start.http(name, server)["fraud"]
        contest.measure(case, {**contenders, **start.nginx(None)}, 64, pinned=False, threads=2)
    report = contest.report
    two, one = (report.values(case, f"octoserve, {count}") for count in ("2 workers", "1 worker"))
    note = ""
    if samples := report.samples[case].get("octoserve, 2 workers"):
        busy = mean(sample.server_cpu * sample.throughput / 1e6 for sample in samples)
        load = mean(sample.load_cpu for sample in samples)
        note = f"with 2 workers the server used {busy:.2f} and wrk {load:.2f} of {processes.cores()} cores"
    report.rows.append(Row(f"{case}: 2 workers against 1", "requests/s", two, one, "times", 1.6, note))


def memory(contest: Contest) -> None:
    """What `serve` holds with one small model and one worker after some requests, and how fast it starts."""
    if contest.lacks("memory", "octoserve"):
        return
    assert contest.octoserve is not None
    ready: list[float] = []
    resident: list[dict[str, float]] = []
    for number in range(contest.rounds + 1):
        with contest.started() as start:
            found = start.http("octoserve", servers.octoserve(contest.octoserve, contest.material / "small", None))
            if not found["fraud"]:
                break
            server, target = found["fraud"]["octoserve"]
            if number == 0:  # the first start finds nothing in the file cache
                continue
            if "wrk" not in contest.missing:
                try:
                    measure(target, 16, 1.0, server.pid, None)
                except FAILURES as error:
                    contest.fail("memory", error)
            ready.append(server.ready_after)
            resident.append(processes.memory(server.pid))
    rss, pss = ([sizes[name] for sizes in resident] for name in ("rss", "pss"))
    contest.report.rows += [
        Row("supervisor + worker, one small model: resident memory (RSS)", "MB", rss, (), "at most", 200),
        Row("the same with shared pages shared out (PSS)", "MB", pss),
        Row("start to ready", "s", ready, (), "at most", 1.5),
    ]


PARTS: dict[str, Part] = {
    "online": online,
    "grpc": grpc,
    "workers": workers,
    "doors": doors,
    "memory": memory,
    "rollouts": rollouts,
    "batch": batches.batch,
    "queue": queues.queue,
}

ROWS = {"batch": batches.ROWS, "queue": queues.ROWS}
"""Of the parts whose number of rows can be said, how many if it is not."""
