"""What the parts of the comparison share: start servers, check them, measure them in interleaved rounds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import answers
import servers
from load import LoadFailed, Sample, Target, measure
from report import Report
from servers import Cores, Server, ServerFailed

Contenders = dict[str, tuple[Server, Target]]
FAILURES = (ServerFailed, LoadFailed, answers.WrongAnswer, subprocess.TimeoutExpired, OSError)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Contest:
    """One run: its settings, its material and what it has found so far."""

    seconds: float
    rounds: int
    octoserve: Sequence[str] | None  # the command; None measures the peers alone
    material: Path  # what prepare.py wrote
    tools: Path  # the Python that verify_grpc.py runs in
    server_cores: Cores
    load_cores: Cores
    missing: set[str]  # programs that are not installed
    rows: int = 0  # of a batch job, or messages of a queue
    report: Report = field(default_factory=Report)

    @property
    def repository(self) -> Path:
        return self.material / "models"

    @property
    def expected(self) -> Path:
        return self.material / "expected.json"

    def model(self, name: str) -> str:
        return str(self.repository / name / "1" / "model.onnx")

    def lacks(self, part: str, program: str) -> bool:
        """Whether `part` must be skipped for want of `program`; says so."""
        if program in self.missing or (program == "octoserve" and not self.octoserve):
            self.report.skipped.append(f"{part}: needs {program}")
            return True
        return False

    @contextmanager
    def started(self) -> Iterator[Starter]:
        """Starts servers that all end with this context."""
        with ExitStack() as stack:
            yield Starter(self, stack)

    def fail(self, what: str, error: Exception) -> None:
        say(f"FAILED {what}: {error}")
        self.report.failures.append(f"{what}: {error}")

    def measure(
        self,
        case: str,
        contenders: Mapping[str, tuple[Server, Target]],
        connections: int,
        *,
        pinned: bool = True,
        threads: int = 1,
    ) -> None:
        """Measures the contenders in turn, round after round: A, B, C, A, B, C, ..."""
        found: dict[str, list[Sample]] = {name: [] for name in contenders}
        self.report.samples[case] = found
        cores = self.load_cores if pinned else None
        for number in range(self.rounds + 1):  # round 0 warms up
            seconds = self.seconds if number else min(1.0, self.seconds)
            for name in list(found):
                server, target = contenders[name]
                try:
                    sample = measure(target, connections, seconds, server.pid, cores, threads)
                except FAILURES as error:
                    del found[name]
                    self.fail(f"{case}, {name}", error)
                    continue
                if number:
                    found[name].append(sample)
                    say(f"{case}, round {number} of {self.rounds}, {name}: {sample.throughput:,.0f}/s")


@dataclass
class Starter:
    """Adds one contender after another; one that does not start or answers wrongly is left out, and said."""

    contest: Contest
    _stack: ExitStack

    def http(
        self,
        name: str,
        server: AbstractContextManager[Server] | Server,
        models: Sequence[str] = ("fraud",),
    ) -> dict[str, Contenders]:
        """Gives model -> {name: contender}, for V2 JSON requests."""
        contest = self.contest
        try:
            running = self._enter(server)
            found: dict[str, Contenders] = {}
            for model in models:
                url = f"http://127.0.0.1:{running.http_port}/v2/models/{model}/infer"
                target = Target(url, contest.material / f"{model}.json")
                answers.check_rows(target, contest.expected, model)
                found[model] = {name: (running, target)}
        except FAILURES as error:
            contest.fail(name, error)
            return {model: {} for model in models}
        return found

    def grpc(self, name: str, server: AbstractContextManager[Server], rows: int) -> Contenders:
        """For ModelInfer; `rows` different requests are checked first, 1 for a server of a constant."""
        contest = self.contest
        try:
            running = self._enter(server)
            address = f"127.0.0.1:{running.grpc_port}"
            size = answers.check_grpc(contest.tools, address, contest.expected, rows)
        except FAILURES as error:
            contest.fail(name, error)
            return {}
        url = f"http://{address}/inference.GRPCInferenceService/ModelInfer"
        return {name: (running, Target(url, contest.material / "fraud.grpc", grpc=True, answer_size=size))}

    def nginx(self, cores: Cores) -> Contenders:
        contest = self.contest
        if contest.lacks("nginx rows", "nginx"):
            return {}
        answer = contest.material / "answer.json"
        try:
            running = self._enter(servers.nginx(answer, cores))
            address = f"http://127.0.0.1:{running.http_port}"
            fixed = Target(f"{address}/v2/models/fraud/infer", contest.material / "fraud.json")
            static = Target(f"{address}/answer.json")
            for target in (fixed, static):
                answers.check_constant(target, answer.read_bytes())
        except FAILURES as error:
            contest.fail("nginx", error)
            return {}
        return {"nginx, fixed body": (running, fixed), "nginx, static file": (running, static)}

    def _enter(self, server: AbstractContextManager[Server] | Server) -> Server:
        return server if isinstance(server, Server) else self._stack.enter_context(server)


Part = Callable[[Contest], None]
