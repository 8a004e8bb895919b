"""Rollouts while what they stand on fails: a worker dies, the store cannot be written or is gone, metrics are away.

Nothing goes on without a PASS, clients are served as before, the log says why, and afterwards it goes on.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from octoserve.control.rollout.store import FILE
from support.graphs import versioned_model
from support.hammer import hammering
from support.lives import CANARY, QUICK, approving, chronicle, events, lives, on_disk, put
from support.rolling import Rolling, rolling
from support.service import Served, serving
from support.supervised import publish, until


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    put(tmp_path / "models", 1)
    return tmp_path / "models"


# Workers.


def test_a_dead_worker_takes_no_evidence_with_it_and_moves_no_key(repository: Path, tmp_path: Path) -> None:
    section = {**CANARY, "key": "header:x-user", "steps": [{"weight": "20%", "samples": 20, "approval": True}]}
    with rolling(repository, tmp_path / "s", section, workers=2) as it:
        put(repository, 2)
        until(lambda: it.rollout().get("settled") is not None and it.rollout()["phase"] == "running")
        before = [version_for(it, user) for user in range(300)]
        until(lambda: assigned(it) == 300, 10, "every request is counted")
        told = it.rollout()["arms"]
        victim = it.service.worker_pids()[0]
        os.kill(victim, signal.SIGKILL)
        until(lambda: it.service.all_serve(2) and victim not in it.service.worker_pids(), 30)
        assert it.rollout()["arms"] == told, "what it had told still counts"
        assert [version_for(it, user) for user in range(300)] == before
        until(lambda: assigned(it) == 600, 10, "and the new one's is added to it")
        until(lambda: "approval" in it.rollout()["waiting_for"], 10)
        assert it.command("approve")[0] == 202
        assert it.until_result()["result"] == "promoted"
    chronicle(tmp_path / "s" / "state")


def test_a_canary_goes_on_over_a_worker_that_dies_under_load(repository: Path, tmp_path: Path) -> None:
    with rolling(repository, tmp_path / "s", CANARY, workers=2) as it, hammering(it.service, http=4, grpc=0) as hammer:
        put(repository, 2)
        until(lambda: "approval" in it.rollout().get("waiting_for", ""), 60)
        os.kill(it.service.worker_pids()[0], signal.SIGKILL)
        until(lambda: it.service.all_serve(2), 30)
        assert it.command("approve")[0] == 202
        assert it.until_result()["result"] == "promoted"
        until(lambda: hammer.all_at(2), 10)
        cut = [e for e in hammer.errors if "Connection" in e or "Remote" in e]
        assert hammer.errors == cut, "nothing but what the dead worker held is lost"
        assert len(cut) <= 8
    chronicle(tmp_path / "s" / "state")


def version_for(it: Rolling, user: int) -> int:
    """The version that answers a user."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
    answer = it.service.ask("POST", f"/v2/models/{it.endpoint}/infer", body, {"x-user": f"u{user}"})
    return int(answer.json()["model_version"])


def assigned(it: Rolling) -> int:
    """Requests that the split has given to arms, by what workers have told."""
    return sum(arm["assigned"] for arm in it.rollout()["arms"].values())


# What it stands on: the database, the disk, the metrics.


@contextlib.contextmanager
def locked(service: Served) -> Iterator[None]:
    """Somebody else writes, and does not finish."""
    with contextlib.closing(sqlite3.connect(service.state_dir / FILE, timeout=10, isolation_level=None)) as db:
        db.execute("begin immediate")
        yield
        db.execute("rollback")


@contextlib.contextmanager
def full(service: Served) -> Iterator[None]:
    """No file of the supervisor may grow beyond what the store's log has now: writes fail as on a full disk."""
    supervisor = psutil.Process(service.process.pid)
    limit = (service.state_dir / f"{FILE}-wal").stat().st_size
    assert limit > 4 * (service.state_dir.parent / "serve.log").stat().st_size, "it must still be able to say so"
    before = supervisor.rlimit(psutil.RLIMIT_FSIZE)
    supervisor.rlimit(psutil.RLIMIT_FSIZE, (limit, before[1]))
    yield
    supervisor.rlimit(psutil.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("fault", "why"), [(locked, "locked"), (full, "full|I/O")])
def test_a_store_that_cannot_be_written_stops_the_rollout_and_nothing_else(
    fault: Any, why: str, repository: Path, tmp_path: Path
) -> None:
    with rolling(repository, tmp_path / "s", CANARY, workers=2) as it, hammering(it.service, http=2) as hammer:
        put(repository, 2)
        it.until_phase("running")
        with fault(it.service):
            said = re.compile(f"rollouts stand still: .*({why})")
            until(lambda: said.search(it.service.output()), 60, "the log says why")
            stands_at = on_disk(it.service.state_dir)
            until(hammer.all_answered(100), 60)
            assert on_disk(it.service.state_dir) == stands_at
            assert stands_at is not None
            now = it.rollout()
            assert (now["phase"], now["step"]) == (stands_at.phase, stands_at.step)
            assert sum(s for (v, _), s in it.shares().items() if v == 2) <= stands_at.weight / 10_000
        until(lambda: approving(it) or it.rollout()["phase"] == "ended", 60)
        assert it.rollout()["result"] == "promoted"
        until(lambda: hammer.all_at(2), 10)
        assert hammer.errors == []
        assert it.service.output().count("rollouts stand still") <= 3, "once, not at every beat"
    chronicle(tmp_path / "s" / "state")


def test_a_database_that_is_removed_advances_nobody(repository: Path, tmp_path: Path) -> None:
    """The service goes on as it is; a restart begins anew, from the stable version and from the first step."""
    with lives(repository, tmp_path / "s", CANARY) as many:
        it = many.start()
        with hammering(it.service, http=2) as hammer:
            put(repository, 2)
            until(lambda: "approval" in it.rollout().get("waiting_for", ""), 60)
            for file in many.state_dir.glob(f"{FILE}*"):
                file.rename(file.with_name(f"gone-{file.name}"))
            assert it.command("approve")[0] == 503
            until(lambda: "has been removed" in it.service.output(), 20, "the log says why")
            until(hammer.all_answered(100), 60)
            assert it.shares()[2, "candidate"] == 0.5
            it.service.kill()
            it = many.start()
            seen = len(hammer.answers)
            until(lambda: many.record() is not None, 30)
            assert it.status()["stable"] == 1
            assert sum(s for (v, _), s in it.shares().items() if v == 2) <= 0.5
            until(lambda: approving(it) or it.rollout().get("phase") == "ended", 60)
            assert it.rollout()["result"] == "promoted"
            until(lambda: hammer.all_at(2), 10)
            assert seen
        assert hammer.errors == []
    log = events(chronicle(many.state_dir))
    assert log[0] == "started"
    assert log.count("advanced") == 1


class Shop:
    """A Prometheus that is `well`, answers `nan` or `empty` vectors, or is `slow`: it hears and says nothing."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.asked = 0
        self._over = threading.Event()
        shop = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                shop.asked += 1
                if shop.how == "slow":
                    shop._over.wait(60)
                value = {"nan": "NaN", "well": "100000"}.get(shop.how, "0")
                series = [] if shop.how == "empty" else [{"metric": {"version": v}, "value": [0, value]} for v in "12"]
                answer = {"status": "success", "data": {"resultType": "vector", "result": series}}
                with contextlib.suppress(OSError):
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_: Any) -> None:
                """Nobody reads it."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """From now on nobody listens."""
        if self._thread.is_alive():
            self._over.set()
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


def test_metrics_that_are_away_never_pass(repository: Path, tmp_path: Path) -> None:
    """Four endpoints at once; at the deadline each takes the outcome that its spec names. Well again, they go on."""
    shops = {how: Shop(how) for how in ("down", "slow", "nan", "empty")}
    shops["down"].close()
    wanted = {"down": "PROVIDER_ERROR", "slow": "PROVIDER_ERROR", "nan": "PROVIDER_ERROR", "empty": "NO_DATA"}
    metric = {"name": "sales", "provider": "shop", "queries": {"n": "n", "total": "n"}, "max_age": "0s", "margin": "5%"}
    sections = {
        how: {
            **QUICK,
            "strategy": "canary",
            "steps": [{"weight": "50%", "samples": 20}],
            "deadline": "20s",
            "on_deadline": "pause" if how in ("slow", "nan") else "abort",
            "providers": {"shop": shop.url},
            "analysis": {**QUICK["analysis"], "metrics": [metric]},
        }
        for how, shop in shops.items()
    }
    many = tmp_path / "many"
    for how in shops:
        publish(many, how, 1, versioned_model(1))
    spec = tmp_path / "octoserve.yaml"
    spec.write_text(yaml.safe_dump({"models": {how: {"rollout": section} for how, section in sections.items()}}))
    with contextlib.ExitStack() as stack:
        for shop in shops.values():
            stack.callback(shop.close)
        service = stack.enter_context(serving(many, tmp_path / "s", "--spec", str(spec)))
        its = {how: Rolling(service, how) for how in shops}
        hammers = [stack.enter_context(hammering(service, how, http=1, grpc=0)) for how in shops]
        for how in shops:
            publish(many, how, 2, versioned_model(2))
        for how in ("down", "empty"):
            ended = its[how].until_result(90)
            assert ended["result"] == "aborted"
            assert "step 1 did not end within 20 s" in ended["reason"]
        for how in ("slow", "nan"):
            until(lambda how=how: its[how].rollout()["paused"], 90)
            assert its[how].rollout()["phase"] == "running"
        for how, it in its.items():
            judged = [v for e in it.audit() for v in e["verdicts"] if v["check"] == "sales"]
            assert wanted[how] in {v["outcome"] for v in judged}, (how, judged)
            assert "PASS" not in {v["outcome"] for v in judged}
            assert "FAIL" not in {v["outcome"] for v in judged}
        shops["nan"].how = "well"
        assert its["nan"].command("resume")[0] == 202
        assert its["nan"].until_result(90)["result"] == "promoted"
        assert [e for hammer in hammers for e in hammer.errors] == []
    for how in shops:
        chronicle(tmp_path / "s" / "state", how)
