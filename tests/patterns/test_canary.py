"""Canary: a new version meets production step by step, goes on by evidence, and leaves at once when it is worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.graphs import flawed_model, versioned_model
from support.hammer import hammering
from support.rolling import rolling
from support.supervised import publish, until

STEPS = [{"weight": "10%", "samples": 50}, {"weight": "50%", "samples": 50}]
CANARY: dict[str, Any] = {
    "on_new_version": "rollout",
    "strategy": "canary",
    "steps": STEPS,
    "min_samples": 20,
    "retain": "1s",
    "deadline": "60s",
    "analysis": {"error_rate": {"margin": "10%"}, "latency": {}},
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path / "models", "versioned", 1, versioned_model(1))
    return tmp_path / "models"


def test_a_good_version_is_promoted_by_its_evidence(repository: Path, tmp_path: Path) -> None:
    with rolling(repository, tmp_path / "s", CANARY, workers=2) as it, hammering(it.service, http=6, grpc=2) as hammer:
        publish(repository, "versioned", 2, versioned_model(2))
        it.until_phase("running")
        ended = it.until_result()
        assert ended["result"] == "promoted", ended
        until(lambda: hammer.all_at(2), 5)
        assert hammer.errors == []
        assert it.shares() == {(2, "stable"): 1.0}
        assert it.status()["stable"] == 2
        events = [entry["event"] for entry in it.audit()]
        for event in ("started", "preparing", "running", "advanced", "promoting", "retaining", "ended"):
            assert event in events
        advanced = [e for e in it.audit() if e["event"] in ("advanced", "promoting")]
        assert all(v["outcome"] == "PASS" for e in advanced for v in e["verdicts"]), advanced
        assert all(e["verdicts"] for e in advanced)


def test_a_version_that_only_fails_is_cut_and_aborted(repository: Path, tmp_path: Path) -> None:
    with rolling(repository, tmp_path / "s", CANARY, workers=2) as it, hammering(it.service, http=6) as hammer:
        publish(repository, "versioned", 2, flawed_model(2, above=-2000))
        ended = it.until_result()
        assert ended["result"] == "aborted", ended
        assert "breaker" in ended["reason"] or "error_rate" in ended["reason"], "whichever sees it first"
        assert it.shares() == {(1, "stable"): 1.0}
        assert it.status()["refused"] == [2]
        errors = len(hammer.errors)
        assert errors <= 100
        until(hammer.all_answered(30))
        assert len(hammer.errors) == errors, "nobody meets it any more"


def test_a_version_that_fails_more_often_is_aborted_by_evidence(repository: Path, tmp_path: Path) -> None:
    section = {
        **CANARY,
        "steps": [{"weight": "30%", "samples": 100_000}],
        "analysis": {"error_rate": {"margin": "1%"}, "latency": {}},
    }
    with rolling(repository, tmp_path / "s", section, workers=1) as it, hammering(it.service, http=8) as hammer:
        publish(repository, "versioned", 2, flawed_model(2, above=850))
        ended = it.until_result(90)
        assert ended["result"] == "aborted", ended
        assert "error_rate" in ended["reason"], ended
        [last] = [e for e in it.audit() if e["event"] == "aborting"]
        [verdict] = [v for v in last["verdicts"] if v["check"] == "error_rate" and not v["segment"]]
        assert verdict["outcome"] == "FAIL"
        assert verdict["low"] > 0.01
        until(hammer.all_answered(20))


def test_a_gate_waits_for_a_person(repository: Path, tmp_path: Path) -> None:
    section = {**CANARY, "steps": [{"weight": "20%", "samples": 20, "approval": True}]}
    with rolling(repository, tmp_path / "s", section, workers=1) as it, hammering(it.service, http=4) as hammer:
        publish(repository, "versioned", 2, versioned_model(2))
        until(lambda: "approval" in it.rollout().get("waiting_for", ""), 30)
        assert it.shares()[2, "candidate"] == 0.2
        assert it.command("approve", reason="looks well")[0] == 202
        assert it.until_result()["result"] == "promoted"
        assert hammer.errors == []
        assert [e["who"] for e in it.audit() if e["event"] == "approved"] == ["admin API"]
        code, body = it.command("approve")
        assert code == 409, body
        code, body = it.service.admin("GET", "/api/rollouts/versioned/audit?limit=1001")
        assert (code, "limit: a number from 1 to 1000 wanted" in body["error"]) == (400, True)


def test_who_has_seen_the_candidate_keeps_seeing_it(repository: Path, tmp_path: Path) -> None:
    """A key's version never goes back while the weight grows, over every worker and both shares."""
    steps = [{"weight": w, "approval": True, "analysis": False} for w in ("5%", "25%", "50%")]
    # Of 400 keys 20 go to the candidate at first, or a few less or more: the gates are the person's alone.
    section = {**CANARY, "steps": steps, "key": "header:x-user", "min_samples": 1}
    with rolling(repository, tmp_path / "s", section, workers=2) as it:
        publish(repository, "versioned", 2, versioned_model(2))
        seen: set[int] = set()
        for weight in (0.05, 0.25, 0.5):
            until(
                lambda w=weight: "approval" in it.rollout().get("waiting_for", "") and it.shares()[2, "candidate"] == w
            )
            now = {user for user in range(400) if version_for(it, user) == 2}
            assert seen <= now
            assert abs(len(now) / 400 - weight) < 0.08
            seen = now
            assert it.command("approve")[0] == 202
        assert it.until_result()["result"] == "promoted"


def version_for(it: Any, user: int) -> int:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
    answer = it.service.ask("POST", "/v2/models/versioned/infer", body, {"x-user": f"u{user}"})
    return int(answer.json()["model_version"])


def test_abort_and_pause_and_a_newer_candidate(repository: Path, tmp_path: Path) -> None:
    section = {**CANARY, "steps": [{"weight": "20%", "samples": 10**6}]}
    with rolling(repository, tmp_path / "s", section, workers=1) as it, hammering(it.service, http=4) as hammer:
        publish(repository, "versioned", 2, versioned_model(2))
        it.until_phase("running")
        assert it.command("pause", reason="lunch")[0] == 202
        assert it.rollout()["paused"] == "lunch"
        publish(repository, "versioned", 3, versioned_model(3))
        until(lambda: it.rollout().get("candidate") == 3 and it.rollout()["phase"] == "running", 30)
        code, past = it.service.admin("GET", "/api/rollouts/versioned/history")
        assert [(p["candidate"], p["result"]) for p in past] == [(3, ""), (2, "superseded")], (code, past)
        assert it.command("abort", reason="enough")[0] == 202
        assert it.until_result()["result"] == "aborted"
        until(lambda: hammer.all_at(1), 5)
        assert hammer.errors == []
        assert it.status()["refused"] == [2, 3]
