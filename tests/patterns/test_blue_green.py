"""Blue-green: the preview is tried before a client meets it, the switch is one step, and so is the way back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from support.graphs import versioned_model
from support.hammer import hammering
from support.rolling import golden, rolling
from support.scale import scale
from support.supervised import publish, until

BLUE_GREEN: dict[str, Any] = {
    "on_new_version": "rollout",
    "strategy": "blue-green",
    "retain": "0s",
    "deadline": "30s",
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path / "models", "versioned", 1, versioned_model(1))
    return tmp_path / "models"


def with_golden(repository: Path, version: int, sample_of: int) -> None:
    """A version with golden samples, whole at once."""
    ahead = repository / "versioned" / ".ahead.tmp"
    ahead.mkdir()
    (ahead / "model.onnx").write_bytes(versioned_model(version))
    (ahead / "golden.json").write_text(golden([[1, 2], [3, 4]], sample_of))
    ahead.rename(repository / "versioned" / str(version))


def test_golden_samples_are_asked_before_the_switch(repository: Path, tmp_path: Path) -> None:
    with rolling(repository, tmp_path / "s", BLUE_GREEN, workers=2) as it, hammering(it.service) as hammer:
        with_golden(repository, 2, sample_of=7)
        ended = it.until_result()
        assert ended["result"] == "aborted"
        assert "golden.json, sample 1: output 'plus'" in ended["reason"]
        assert 2 not in hammer.answers
        with_golden(repository, 3, sample_of=3)
        until(lambda: it.rollout().get("candidate") == 3, 20)
        assert it.until_result()["result"] == "promoted"
        until(lambda: hammer.all_at(3), 5)
        assert hammer.errors == []
        assert hammer.went_back() == []


def test_rollback_is_one_swap_while_the_old_version_is_kept(repository: Path, tmp_path: Path) -> None:
    with rolling(repository, tmp_path / "s", {**BLUE_GREEN, "retain": "60s"}, workers=2) as it:
        with hammering(it.service, http=6, grpc=2) as hammer:
            publish(repository, "versioned", 2, versioned_model(2))
            it.until_phase("retaining")
            until(lambda: hammer.all_at(2), 5)
            began = time.monotonic()
            assert it.command("rollback", reason="numbers look odd")[0] == 202
            until(lambda: hammer.all_at(1), 5)
            took = time.monotonic() - began
            assert it.until_result()["result"] == "rolled back"
            until(hammer.all_answered(20))
            assert hammer.all_at(1)
            assert hammer.errors == []
        assert took < 5
        assert it.status()["stable"] == 1


def test_flips_under_load(repository: Path, tmp_path: Path) -> None:
    """1,000 in the full suite: no error, no answer of two versions, every worker flipped each time."""
    publish(repository, "versioned", 2, versioned_model(2))
    section = {**BLUE_GREEN, "on_new_version": "hold", "golden": False}
    served = rolling(repository, tmp_path / "s", section, workers=2, version_policy="all")
    with served as it, hammering(it.service, http=4, grpc=2) as hammer:
        for _ in range(scale(20, 1000)):
            before = it.status()["stable"]
            code, body = it.start(3 - before)
            assert code == 201, body
            assert it.until_result()["result"] == "promoted"
            assert it.status()["stable"] == 3 - before
            until(lambda: it.status()["acknowledged"], 5)
        until(hammer.all_answered(10))
        assert hammer.errors == []


def test_a_refused_start_says_why(repository: Path, tmp_path: Path) -> None:
    with rolling(repository, tmp_path / "s", BLUE_GREEN, workers=1) as it:
        for body, code, why in (
            ({"candidate": 1}, 400, "stable version already"),
            ({"candidate": 2, "strategy": "big-bang"}, 400, "blue-green"),
            ({"candidat": 2}, 400, "candidate"),
            ({"candidate": "two"}, 400, "candidate"),
        ):
            came, answer = it.service.admin("POST", "/api/rollouts/versioned", body)
            assert came == code, answer
            assert why in answer["error"]
        assert it.service.admin("POST", "/api/rollouts/nobody", {"candidate": 2})[0] == 404
        assert it.command("abort")[0] == 409
        assert it.command("explode")[0] == 404
