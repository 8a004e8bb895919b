"""Closed-loop load: wrk over HTTP/1.1, h2load over gRPC, each as one pinned process.

A sample says what the clients saw (requests/s, latencies), and what it cost: CPU time of the server per
request, and how busy the load generator itself was. A generator near 1.0 of its core is the limit, not
the server.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import processes

_Run = Callable[[list[str]], "tuple[str, _Usage]"]
_WRK_SCRIPT = Path(__file__).with_name("wrk.lua")


class LoadFailed(RuntimeError):
    """A run whose requests were not all answered rightly; its figures mean nothing."""


@dataclass(frozen=True)
class Sample:
    throughput: float  # requests/s
    p50: float  # ms
    p99: float  # ms
    server_cpu: float  # us a request, all the server's processes
    load_cpu: float  # cores that the load generator kept busy
    other_cpu: float  # cores that everything else kept busy: noise


@dataclass(frozen=True)
class Target:
    """Where to send what. `body` is a file; without one the request is a GET.

    For gRPC `body` holds the framed message and `answer_size` is the size of the framed answer, by which a
    run is checked: gRPC's own errors come with HTTP status 200 and no data. `elsewhere` is another path of the
    same server, and the share of requests that goes there.
    """

    url: str
    body: Path | None = None
    grpc: bool = False
    answer_size: int = 0
    elsewhere: tuple[str, float] | None = None


@dataclass(frozen=True)
class _Usage:
    """Seconds, of the wall and of CPU time, while a load generator ran."""

    wall: float
    server: float
    load: float
    others: float


def measure(
    target: Target, connections: int, seconds: float, pid: int, cores: set[int] | None, threads: int = 1
) -> Sample:
    """Loads `target` for `seconds`; `pid` is the server's first process.

    Raises:
        LoadFailed: some requests failed, or their answers had the wrong size.
    """

    def run(command: list[str]) -> tuple[str, _Usage]:
        return _run(command, seconds, pid, cores)

    generate = _h2load if target.grpc else _wrk
    return generate(target, connections, seconds, min(threads, connections), run)


def _wrk(target: Target, connections: int, seconds: float, threads: int, run: _Run) -> Sample:
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds:g}s", "--timeout=10s"]
    command += ["-s", str(_WRK_SCRIPT), target.url, "--", *([str(target.body)] if target.body else [])]
    command += map(str, target.elsewhere or ())
    output, usage = run(command)
    found = re.search(r"^RESULT (.*)$", output, re.MULTILINE)
    if not found:
        raise LoadFailed(f"wrk printed no result:\n{output}")
    result = json.loads(found[1])
    errors = {name: count for name, count in result["errors"].items() if count}
    if errors or not result["requests"]:
        raise LoadFailed(f"{target.url}: {result['requests']} answers, errors {errors}")
    elapsed = result["duration"] / 1e6
    return _sample(result["requests"], elapsed, result["p50"], result["p99"], usage)


def _h2load(target: Target, connections: int, seconds: float, threads: int, run: _Run) -> Sample:
    with tempfile.NamedTemporaryFile(prefix="octoserve-h2load-") as log:
        command = ["h2load", f"-t{threads}", f"-c{connections}", "-m1", f"-D{seconds:g}"]
        command += [f"--log-file={log.name}", "-d", str(target.body)]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", target.url]
        output, usage = run(command)
        rows = [line.split("\t") for line in Path(log.name).read_text().splitlines()]
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output)
    data = re.search(r"traffic: .* \((\d+)\) data", output)
    if not counts or not data:
        raise LoadFailed(f"h2load printed no result:\n{output}")
    succeeded, *bad = map(int, counts.groups())
    latencies = sorted(int(row[2]) for row in rows if row[1] == "200")
    if any(bad) or not latencies:
        raise LoadFailed(f"{target.url}: {counts[0]}")
    # Of each connection the last answer may have come without being counted, or the other way round.
    if abs(succeeded * target.answer_size - int(data[1])) > connections * target.answer_size:
        raise LoadFailed(f"{target.url}: {data[1]} bytes for {succeeded} answers of {target.answer_size} bytes")
    elapsed = max(int(row[0]) + int(row[2]) for row in rows) - min(int(row[0]) for row in rows)
    p50, p99 = _quantile(latencies, 0.5), _quantile(latencies, 0.99)
    return _sample(len(latencies), elapsed / 1e6, p50, p99, usage)


def _sample(count: int, elapsed: float, p50: float, p99: float, usage: _Usage) -> Sample:
    """`elapsed` in seconds, `p50` and `p99` in microseconds."""
    return Sample(
        throughput=count / elapsed,
        p50=p50 / 1e3,
        p99=p99 / 1e3,
        server_cpu=usage.server / count * 1e6,
        load_cpu=usage.load / usage.wall,
        other_cpu=usage.others / usage.wall,
    )


def _run(command: list[str], seconds: float, pid: int, cores: set[int] | None) -> tuple[str, _Usage]:
    before = (time.monotonic(), processes.cpu_seconds(pid), _children_cpu(), processes.busy_seconds())
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        preexec_fn=processes.pinned(cores),
        check=False,
    )
    after = (time.monotonic(), processes.cpu_seconds(pid), _children_cpu(), processes.busy_seconds())
    if done.returncode:
        raise LoadFailed(f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    wall, server, load, busy = (end - start for start, end in zip(before, after, strict=True))
    return done.stdout, _Usage(wall, server, load, max(0.0, busy - server - load))


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _quantile(ordered: list[int], share: float) -> int:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
