"""Rollouts through a real Envoy: no request lost, no key that goes back, evidence that counts what Envoy has drawn."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from octoserve.core.errors import SettingsError
from octoserve.core.evidence import BASELINE, CANDIDATE, STABLE
from octoserve.routing.backends.envoy_process import envoy_binary
from octoserve.routing.plan import split_arms
from octoserve.routing.split import bucket_of
from support.graphs import flawed_model, versioned_model
from support.rolling import Rolling, rolling
from support.scale import scale
from support.supervised import ROOT, publish, until
from support.wire import Sent, infer_request, inference

PATH = "/v2/models/versioned/infer"
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]})
ENVOY: dict[str, Any] = {"kind": "envoy", "start": True, "listen": 0, "grpc_endpoint": "versioned"}
CANARY: dict[str, Any] = {
    "on_new_version": "rollout",
    "strategy": "canary",
    "key": "header:x-user",
    "steps": [{"weight": "10%", "samples": 100, "approval": True}, {"weight": "50%", "samples": 100, "approval": True}],
    "min_samples": 20,
    "retain": "0s",
    "deadline": "120s",
    "analysis": {"error_rate": {"margin": "10%"}, "latency": {}},
    "backend": ENVOY,
}


def no_envoy() -> str:
    try:
        envoy_binary()
    except SettingsError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(no_envoy()), reason=no_envoy())


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path / "models", "versioned", 1, versioned_model(1))
    return tmp_path / "models"


def served(repository: Path, folder: Path, section: dict[str, Any], **more: Any) -> Any:
    """A service with this `rollout:` section that does not wait long for files to rest."""
    return rolling(repository, folder, section, settle="300ms", scan="200ms", **more)


class Users:
    """Clients that come in by Envoy, each user with a key, and what each of them saw, in order."""

    def __init__(self, port: int, *, http: int = 3, grpc: int = 1, users: int = 60) -> None:
        self.port = port
        self.seen: dict[str, list[int]] = defaultdict(list)
        self.errors: list[str] = []
        self.stop = threading.Event()
        self.names = [[f"u{n}-{user}" for user in range(users)] for n in range(http + grpc)]
        """Of each thread."""
        self._threads = [
            threading.Thread(target=self._run, args=(self._http if n < http else self._grpc, names), daemon=True)
            for n, names in enumerate(self.names)
        ]

    def __enter__(self) -> Users:
        for thread in self._threads:
            thread.start()
        until(self.all_asked(), 60, "answers")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join(20)

    def _run(self, connect: Callable[[], Any], names: list[str]) -> None:
        while not self.stop.is_set():
            try:
                with connect() as ask:
                    while not self.stop.is_set():
                        for name in names:
                            self.seen[name].append(ask(name))
                            time.sleep(0.002)
            except Exception as error:
                self.errors.append(f"{time.monotonic():.3f} {type(error).__name__}: {error}")
                time.sleep(0.02)

    @contextlib.contextmanager
    def _http(self) -> Iterator[Callable[[str], int]]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            yield lambda name: ask(connection, name)

    @contextlib.contextmanager
    def _grpc(self) -> Iterator[Callable[[str], int]]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", options=options) as channel:
            infer = inference(channel, "ModelInfer")
            request = infer_request("versioned", [Sent("x", "FP32", np.array([[1, 2]], "<f4"))])
            yield lambda name: int(infer(request, timeout=20, metadata=[("x-user", name)]).model_version)

    def all_asked(self, more: int = 1) -> Callable[[], bool]:
        """A condition: every user has had so many more answers than now."""
        before = {name: len(seen) for name, seen in list(self.seen.items())}
        everybody = [name for names in self.names for name in names]
        return lambda: all(len(self.seen.get(name, ())) >= before.get(name, 0) + more for name in everybody)

    def now(self) -> dict[str, int]:
        """What each user saw last, after asking anew."""
        until(self.all_asked(2), 60, "every user")
        return {name: seen[-1] for name, seen in list(self.seen.items())}

    def went_back(self) -> list[str]:
        return [name for name, seen in self.seen.items() if any(b < a for a, b in pairwise(seen))]


def ask(connection: http.client.HTTPConnection, user: str = "", **headers: str) -> int:
    """The version that answers."""
    named = {"x-user": user} if user else {}
    connection.request("POST", PATH, BODY, {**named, **{k.replace("_", "-"): v for k, v in headers.items()}})
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, (answer.status, content[:200])
    return int(json.loads(content)["model_version"])


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


def connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=20)


def front(it: Rolling) -> dict[str, Any]:
    code, body = it.service.admin("GET", "/api/generation")
    assert code == 200, body
    [view] = body["fronts"]
    return view


def waits(it: Rolling, what: str) -> None:
    until(lambda: what in it.rollout().get("waiting_for", ""), 60, f"{what}: {it.rollout()}")


def envoys_over(folder: Path) -> list[psutil.Process]:
    """Envoys whose files lie below this folder, and no other ones."""
    below = f"{folder.resolve()}/"
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(part.startswith(below) and part.endswith("envoy.json") for part in process.info["cmdline"] or ())
    ]


def envoy_of(it: Rolling) -> psutil.Process:
    """The Envoy of this service."""
    [found] = envoys_over(it.service.state_dir)
    return found


@pytest.fixture(autouse=True)
def no_envoy_is_left(tmp_path: Path) -> Iterator[None]:
    """It outlives a supervisor that is killed, and so a test that fails."""
    yield
    for process in envoys_over(tmp_path):
        process.kill()


def test_a_canary_through_envoy(repository: Path, tmp_path: Path) -> None:
    with served(repository, tmp_path / "s", CANARY, workers=2) as it, Users(it.service.ports["front"]) as users:
        publish(repository, "versioned", 2, versioned_model(2))
        for weight, more in ((1_000, "50%"), (5_000, "")):
            until(lambda w=weight: it.shares().get((2, CANDIDATE)) == w / 10_000, 30)
            waits(it, "approval")
            arms = split_arms(1, 2, weight, baseline=True)
            seed = it.rollout()["id"]
            wanted = {
                name: next(arm.version for arm in arms if arm.lo <= bucket_of(seed, name.encode()) < arm.hi)
                for name in users.seen
            }
            assert users.now() == wanted, f"Envoy draws as the workers do; {more} is next"
            assert it.command("approve")[0] == 202
        assert it.until_result()["result"] == "promoted"
        assert set(users.now().values()) == {2}
        assert users.errors == []
        assert users.went_back() == []
        check_audit(it)
        print(f"plans to Envoy's confirmation: {front(it)['took']}")


def check_audit(it: Rolling) -> None:
    """Every step is there; each advance has PASSes, and evidence of each arm with its share."""
    audit = it.audit()
    events = Counter(entry["event"] for entry in audit)
    assert events["settled"] == 2, events
    assert {"started", "preparing", "running", "advanced", "promoting", "retaining", "ended"} <= events.keys()
    assert audit[0]["record"]["course"]["backend"] == "envoy"
    for entry, share in zip((e for e in audit if e["event"] in ("advanced", "promoting")), (0.1, 0.5), strict=True):
        assert entry["verdicts"]
        assert {v["outcome"] for v in entry["verdicts"]} == {"PASS"}
        assigned = {role: arm[""]["assigned"] for role, arm in entry["evidence"]["arms"].items() if "" in arm}
        total = sum(assigned.get(role, 0) for role in (CANDIDATE, BASELINE, STABLE))
        assert assigned[CANDIDATE] > 100
        assert assigned[BASELINE] > 20
        # Of 240 keys: their share, not the requests', is what the weight says.
        assert abs(assigned[CANDIDATE] / total - share) < 0.12, assigned


def test_a_broken_version_is_aborted_through_envoy(repository: Path, tmp_path: Path) -> None:
    section = {**CANARY, "steps": [{"weight": "30%", "samples": 10**6}]}
    with served(repository, tmp_path / "s", section, workers=1) as it, Users(it.service.ports["front"]) as users:
        publish(repository, "versioned", 2, flawed_model(2, above=-2000))
        ended = it.until_result()
        assert ended["result"] == "aborted", ended
        assert "breaker" in ended["reason"] or "error_rate" in ended["reason"]
        before = len(users.errors)
        assert 0 < before <= 100
        assert set(users.now().values()) == {1}
        assert len(users.errors) == before, "nobody meets it any more"
        assert it.status()["refused"] == [2]


def test_flips_are_seen_through_envoy_soon(repository: Path, tmp_path: Path) -> None:
    """From the command to abort to the last answer of the candidate, by connections that ask all the time."""
    section = {**CANARY, "on_new_version": "hold", "steps": [{"weight": "100%", "analysis": False, "approval": True}]}
    with served(repository, tmp_path / "s", section, workers=2, version_policy="all") as it:
        publish(repository, "versioned", 2, versioned_model(2))
        port = it.service.ports["front"]
        seconds = []
        for _ in range(scale(8, 60)):
            assert it.start(2)[0] == 201
            waits(it, "approval")
            with Users(port, http=4, grpc=0, users=1) as users:
                assert set(users.now().values()) == {2}
                began = time.monotonic()
                assert it.command("abort")[0] == 202
                until(lambda u=users: all(seen[-1] == 1 for seen in u.seen.values()), 5)
                seconds.append(time.monotonic() - began)
                assert it.until_result()["result"] == "aborted"
                assert users.errors == []
        seconds.sort()
        took, workers = front(it)["took"], it.service.admin("GET", "/api/generation")[1]["took"]
        print(f"{len(seconds)} aborts, command to 0 %: p50 {ms(seconds[len(seconds) // 2])}, slowest {ms(seconds[-1])}")
        print(f"{workers['changes']} plans to all workers: p50 {ms(workers['p50'])}, p99 {ms(workers['p99'])}")
        print(f"{took['changes']} plans to Envoy's confirmation: p50 {ms(took['p50'])}, p99 {ms(took['p99'])}")
        assert seconds[-1] < 1.0
        assert took["p50"] < 0.25


def test_a_version_that_is_fast_and_wrong_is_found_out_by_its_predictions(repository: Path, tmp_path: Path) -> None:
    """Workers copy what they have answered, whoever drew it: Envoy is told of no mirror."""
    section = {
        **CANARY,
        "steps": [{"weight": "10%", "samples": 10**6}],
        "mirror": "100%",
        "noise": "20%",
        "analysis": {"disagreement": {"margin": "2%"}},
    }
    with served(repository, tmp_path / "s", section, workers=1) as it, Users(it.service.ports["front"]) as users:
        publish(repository, "versioned", 2, versioned_model(2))
        ended = it.until_result(60)
        assert ended["result"] == "aborted", ended
        assert "disagreement" in ended["reason"], ended
        assert users.errors == []


def test_what_envoy_cannot_do_is_refused_at_once(repository: Path, tmp_path: Path) -> None:
    publish(repository, "versioned", 2, versioned_model(2))
    section = {**CANARY, "on_new_version": "hold", "key": "input:x"}
    with served(repository, tmp_path / "s", section, workers=1, version_policy="all") as it:
        code, body = it.start(2)
        assert code == 400, body
        assert "key 'input:x': it sees header:NAME only" in body["error"]
        assert it.rollout() == {}
        environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        admin = f"http://127.0.0.1:{it.service.ports['admin']}"
        command = ["rollout", "start", "versioned", "--candidate", "2", "--admin-url", admin]
        program = [sys.executable, "-c", "from octoserve.cli.main import main; main()", *command]
        done = subprocess.run(program, env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2, done
        assert "it sees header:NAME only" in done.stderr


def test_segments_are_counted_by_the_workers_and_a_new_version_that_cannot_be_rolled_out_waits(
    repository: Path, tmp_path: Path
) -> None:
    own = {**CANARY, "segments": ["header:x-country"], "steps": [{"weight": "50%", "samples": 10**6}]}
    with served(repository, tmp_path / "s", own, workers=1) as it:
        publish(repository, "versioned", 2, versioned_model(2))
        until(lambda: it.rollout().get("settled"), 30)
        with contextlib.closing(connect(it.service.ports["front"])) as connection:
            for number in range(300):
                ask(connection, f"k{number}", x_country="DE")
        until(lambda: it.rollout()["samples"]["have"] > 50, 10)
        seen = [e["evidence"]["arms"] for e in it.audit() if e["evidence"] and CANDIDATE in e["evidence"]["arms"]]
        assert any("x-country=DE" in arms[CANDIDATE] for arms in seen), seen
    unseen = {**CANARY, "key": "input:x"}
    with served(repository, tmp_path / "t", unseen, workers=1) as it:
        assert it.status()["stable"] in (1, 2)
        publish(repository, "versioned", 3, versioned_model(3))
        until(lambda: "does not start" in it.service.output(), 20)
        time.sleep(1.0)
        assert it.service.output().count("does not start") == 1, "said once"
        assert it.rollout() == {}


def test_a_supervisor_that_is_killed_takes_up_the_rollout_and_its_envoy(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with (
        served(repository, folder, CANARY, workers=2, finish=False) as it,
        Users(it.service.ports["front"]) as users,
    ):
        publish(repository, "versioned", 2, versioned_model(2))
        waits(it, "approval")
        pid, before = envoy_of(it).pid, it.rollout()["id"]
        it.service.kill()
        until(users.all_asked(3), 20)
        with served(repository, folder, CANARY, workers=2) as again:
            assert again.service.ports["front"] == it.service.ports["front"]
            assert envoy_of(again).pid == pid, "the one that ran is taken over"
            assert again.rollout()["id"] == before
            waits(again, "approval")
            assert again.command("approve")[0] == 202
            until(lambda: again.shares().get((2, CANDIDATE)) == 0.5, 20)
            waits(again, "approval")
            assert again.command("approve")[0] == 202
            assert again.until_result()["result"] == "promoted"
            assert set(users.now().values()) == {2}
            users.__exit__()
            assert users.errors == []
            assert users.went_back() == []


def test_an_envoy_that_is_killed_comes_back_and_the_rollout_goes_on(repository: Path, tmp_path: Path) -> None:
    with served(repository, tmp_path / "s", CANARY, workers=1) as it:
        publish(repository, "versioned", 2, versioned_model(2))
        until(lambda: it.rollout().get("settled"), 30)
        os.kill(envoy_of(it).pid, signal.SIGKILL)
        until(lambda: "Envoy runs again" in it.service.output(), 20)
        with Users(it.service.ports["front"], http=2) as users:
            waits(it, "approval")
            assert it.command("approve")[0] == 202
            until(lambda: it.shares().get((2, CANDIDATE)) == 0.5, 20)
            waits(it, "approval")
            assert users.errors == []
            assert users.went_back() == []
    assert envoys_over(tmp_path) == [], "a service that ends well takes its Envoy along"


def test_without_its_envoy_a_rollout_waits_and_an_abort_holds_all_the_same(repository: Path, tmp_path: Path) -> None:
    """An Envoy that others run, and that is gone."""
    admin, listen = free_port(), free_port()
    backend = {"kind": "envoy", "admin": f"http://127.0.0.1:{admin}", "listen": listen, "folder": "envoy"}
    section = {**CANARY, "backend": backend, "steps": [{"weight": "50%", "samples": 10}, {"weight": "100%"}]}
    (tmp_path / "s" / "envoy").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        starting = threading.Timer(0.1, lambda: run_envoy(tmp_path / "s" / "envoy", stack))
        starting.start()
        it = stack.enter_context(served(repository, tmp_path / "s", section, workers=2))
        starting.join()
        publish(repository, "versioned", 2, versioned_model(2))
        until(lambda: it.rollout().get("settled"), 30)
        [process] = PROCESSES
        process.kill()
        process.wait()
        waits(it, f"Envoy (Envoy's admin at 127.0.0.1:{admin} does not answer")
        drawn = {"x_octoserve_arm": "candidate", "x_octoserve_version": "2", "x_octoserve_endpoint": "versioned"}
        with contextlib.closing(connect(it.service.ports["http"])) as connection:
            assert ask(connection, **drawn) == 2, "what an Envoy has drawn"
            assert it.rollout()["step"] == 0
            assert it.command("abort", reason="enough")[0] == 202
            until(lambda: it.shares() == {(1, STABLE): 1.0}, 5)
            assert {ask(connection, **drawn) for _ in range(20)} == {1}, "the workers' plan has the last word"
        assert it.rollout()["phase"] == "aborting"
        assert "Envoy" in it.rollout()["waiting_for"]
        PROCESSES.clear()
        run_envoy(tmp_path / "s" / "envoy", stack)
        assert it.until_result()["result"] == "aborted"
        with contextlib.closing(connect(listen)) as connection:
            assert {ask(connection, f"u{number}") for number in range(40)} == {1}


PROCESSES: list[subprocess.Popen[bytes]] = []


def run_envoy(folder: Path, stack: contextlib.ExitStack) -> None:
    """As somebody else would run it, once its folder is written."""
    until((folder / "envoy.json").exists, 20, "envoy.json")
    command = [str(envoy_binary()), "-c", str(folder / "envoy.json"), "--disable-hot-restart", "--concurrency", "1"]
    process = subprocess.Popen([*command, "--log-level", "off"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    PROCESSES.append(process)
    stack.callback(process.wait)
    stack.callback(process.kill)


def free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
