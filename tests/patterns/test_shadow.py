"""Shadow: copies of answered requests go to a candidate that nobody waits for; every copy is accounted for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.dataset
import pytest

from support.graphs import flawed_model, noisy_model, slow_model, versioned_model
from support.hammer import Hammer, hammering
from support.rolling import Rolling, rolling
from support.supervised import SERVE, publish, until

SHADOW: dict[str, Any] = {
    "on_new_version": "rollout",
    "strategy": "shadow",
    "mirror": "100%",
    "noise": "20%",
    "pairs": 200,
    "min_samples": 50,
    "deadline": "10m",
    "analysis": {"error_rate": {"margin": "10%"}, "latency": {}, "disagreement": {"margin": "10%"}},
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path / "models", "versioned", 1, versioned_model(1))
    return tmp_path / "models"


def ask(it: Rolling, count: int, country: Callable[[int], str] = lambda i: "") -> None:
    """So many requests, one after the other, on a few connections; each is answered."""
    kept = [it.service.connect() for _ in range(4)]
    for i in range(count):
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [i % 100, 2]}]}
        headers = {"x-country": country(i), "x-user": f"u{i % 50}"}
        answer = it.service.ask("POST", f"/v2/models/{it.endpoint}/infer", body, headers, kept[i % 4])
        assert answer.status == 200, answer.body
        assert answer.json()["model_version"] == "1"
    for connection in kept:
        connection.close()


def mirroring(it: Rolling, candidate: int = 2) -> None:
    """Wait until every worker copies."""
    until(lambda: it.rollout().get("candidate") == candidate and it.rollout()["settled"] is not None, 40)
    assert it.rollout()["phase"] == "running", it.rollout()


def pairs(it: Rolling) -> dict[str, Any]:
    """The accounts, by what the workers have told."""
    return it.rollout()["pairs"]


def at_rest(it: Rolling) -> dict[str, Any]:
    """The accounts once nothing is under way: they add up to the last copy."""

    def settled() -> bool:
        told = pairs(it)
        moving = told["offered"] != told["sent"] + sum(told["dropped"].values()) or told["offered"] == 0
        # The metrics are read from the workers at once, the accounts come with their next report.
        return not moving and all(mirrored(it, outcome) == told[outcome] for outcome in outcomes)

    outcomes = ("offered", "sent", "ok", "error", "timeout")
    until(settled, 60, f"offered = sent + dropped, as the metrics have it: {pairs(it)}")
    told = pairs(it)
    assert told["sent"] == told["ok"] + told["error"] + told["timeout"]
    for reason, count in told["dropped"].items():
        assert mirrored(it, f"dropped_{reason}") == count
    return told


def mirrored(it: Rolling, outcome: str) -> float:
    """The same by the metrics, which know nothing of strata."""
    return it.service.total("octoserve_mirror_total", endpoint=it.endpoint, outcome=outcome)


def stored(it: Rolling, rollout: str) -> Any:
    """What is in the store of this rollout, as any reader of Parquet sees it."""
    folder = it.service.state_dir / "shadow" / "pairs" / f"endpoint={it.endpoint}" / f"rollout={rollout}"
    if not folder.exists():
        return None
    return pyarrow.dataset.dataset(folder, partitioning="hive").to_table().to_pydict()


def report(it: Rolling, form: str = "json", rollout: str = "") -> Any:
    """The report, over the admin API."""
    code, body = it.service.admin("GET", f"/api/rollouts/{it.endpoint}/report?format={form}&id={rollout}")
    assert code == 200, body
    return body


def test_every_copy_is_accounted_for_and_every_pair_is_in_the_store(repository: Path, tmp_path: Path) -> None:
    """Over two workers: as many copies as answers, as many rows as compared pairs; then a report in every form."""
    count = 400
    section = {**SHADOW, "approval": True, "key": "header:x-user", "segments": ["header:x-country"]}
    with rolling(repository, tmp_path / "s", section, workers=2) as it:
        publish(repository, "versioned", 2, versioned_model(1))
        mirroring(it)
        ask(it, count, lambda i: "DE" if i % 4 else "FR")
        until(lambda: pairs(it)["offered"] == count, 20, "every answer was offered")
        told = at_rest(it)
        assert told["ok"] == told["compared"] == count - sum(told["dropped"].values())
        assert told["disagreed"] == told["noise_disagreed"] == 0
        assert 0 < told["noise_compared"] < count
        until(lambda: "approval" in it.rollout()["waiting_for"], 20)
        rollout = it.rollout()["id"]
        assert it.command("approve")[0] == 202
        assert it.until_result()["result"] == "observed"
        assert it.shares() == {(1, "stable"): 1.0}
        rows = told["compared"] + told["noise_compared"]
        until(lambda: len((stored(it, rollout) or {"kind": ()})["kind"]) >= rows, 90, "pairs reach the store")
        table = stored(it, rollout)
        assert table["kind"].count("shadow") == told["compared"]
        assert table["kind"].count("noise") == told["noise_compared"]
        assert set(table["segment_x_country"]) == {"DE", "FR"}
        assert set(table["key"]) == {f"u{i}" for i in range(50)}
        assert all(table["agreed"])
        assert set(table["error"]) == {""}
        tells(it, rollout, told, count)


def tells(it: Rolling, rollout: str, told: dict[str, Any], count: int) -> None:
    """The report says what was seen, in every form, over the API and by the command."""
    made = report(it)
    assert made["rollout"] == rollout
    assert made["pairs"] == made["rate"]["compared"] == told["compared"]
    assert made["rate"]["disagreed"] == 0
    [accounts] = made["accounts"]
    assert accounts["offered"] == count == accounts["sent"] + sum(accounts["dropped"].values())
    by_country = {segment["value"]: segment["rate"]["compared"] for segment in made["segments"]}
    assert by_country.keys() == {"DE", "FR"}
    assert sum(by_country.values()) == told["compared"]
    assert {v["check"]: v["outcome"] for v in made["verdicts"] if not v["segment"]}["disagreement"] == "PASS"
    assert "<html" in report(it, "html")
    assert "versioned" in report(it, "text")
    url = f"http://127.0.0.1:{it.service.ports['admin']}"
    for flags, has in (((), "versioned"), (("--json",), '"accounts"'), (("--html", "-"), "<html")):
        command = [sys.executable, "-c", SERVE, "rollout", "report", "versioned", "--admin-url", url, *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert has in done.stdout


def test_a_changed_model_fails_beyond_its_tolerance_and_passes_within(repository: Path, tmp_path: Path) -> None:
    section = {**SHADOW, "tolerance": {"": {"absolute": 5.0}}}
    with rolling(repository, tmp_path / "s", section, workers=1) as it, hammering(it.service, http=2) as hammer:
        publish(repository, "versioned", 2, versioned_model(12))  # 11 more than version 1 would say
        until(lambda: it.rollout().get("candidate") == 2, 20)
        ended = it.until_result(90)
        assert ended["result"] == "aborted", ended
        assert ended["reason"].startswith("disagreement")
        [verdict] = [v for v in ended["verdicts"] if v["check"] == "disagreement"]
        assert verdict["outcome"] == "FAIL"
        assert verdict["low"] > 0.1
        until(lambda: (stored(it, ended["id"]) or {"kind": ()})["kind"], 90, "pairs reach the store")
        changed = report(it, rollout=ended["id"])
        assert {output["name"] for output in changed["outputs"] if output["rate"]["disagreed"]} == {"plus", "minus"}
        assert changed["examples"]
        publish(repository, "versioned", 3, versioned_model(3))  # 2 more, which is accepted
        until(lambda: it.rollout().get("candidate") == 3, 20)
        assert it.until_result(90)["result"] == "observed"
        assert hammer.errors == []
        assert set(hammer.answers) == {1}
        assert it.status()["stable"] == 1


def test_a_model_that_differs_from_itself_is_held_against_itself(tmp_path: Path) -> None:
    """Identical versions whose answers are random: every pair disagrees, and so does every pair of stable's own."""
    repository = tmp_path / "models"
    publish(repository, "versioned", 1, noisy_model(1, noise=0.5))
    with rolling(repository, tmp_path / "s", {**SHADOW, "noise": "100%", "approval": True}, workers=1) as it:
        publish(repository, "versioned", 2, noisy_model(1, noise=0.5))
        mirroring(it)
        ask(it, 600)
        told = at_rest(it)
        assert told["disagreed"] > 0.9 * told["compared"], "chance lets a pair agree now and then"
        assert told["noise_disagreed"] > 0.9 * told["noise_compared"] > 100
        until(lambda: "approval" in it.rollout()["waiting_for"], 20)
        assert it.command("approve")[0] == 202
        ended = it.until_result()
        assert ended["result"] == "observed", ended
        outcomes = {v["outcome"] for e in it.audit() for v in e["verdicts"] if v["check"] == "disagreement"}
        assert "FAIL" not in outcomes
        assert "PASS" in outcomes


def test_what_acts_on_the_world_gets_no_copies(repository: Path, tmp_path: Path) -> None:
    with rolling(repository, tmp_path / "s", SHADOW, workers=1) as it:
        ahead = repository / "versioned" / ".2.tmp"
        ahead.mkdir()
        (ahead / "model.onnx").write_bytes(versioned_model(2))
        (ahead / "model.yaml").write_text("effects: external\n")
        ahead.rename(repository / "versioned" / "2")
        until(lambda: it.rollout().get("candidate") == 2, 20)
        ended = it.until_result()
        assert ended["result"] == "aborted"
        assert "effects: external" in ended["reason"]
        ask(it, 20)
        assert mirrored(it, "offered") == 0


def test_recorded_requests_are_replayed_to_the_next_candidate(repository: Path, tmp_path: Path) -> None:
    """What a shadow has recorded is what a blue-green's preview asks, before a client meets the version."""
    with rolling(repository, tmp_path / "s", SHADOW, workers=1) as it, hammering(it.service, http=2):
        publish(repository, "versioned", 2, versioned_model(1))
        until(lambda: it.rollout().get("candidate") == 2, 20)
        ended = it.until_result(90)
        assert ended["result"] == "observed", ended
    later = {"on_new_version": "hold", "strategy": "blue-green", "replay": 60, "retain": "0s", "deadline": "60s"}
    publish(repository, "versioned", 3, versioned_model(3))
    publish(repository, "versioned", 4, flawed_model(4, above=-2000))
    with rolling(repository, tmp_path / "s", later, workers=1, version_policy="all") as it:
        assert it.start(4)[0] == 201
        ended = it.until_result()
        assert ended["result"] == "aborted"
        assert "replay" in ended["reason"], ended
        before = it.service.total("octoserve_request_seconds_count", version="3")
        assert it.start(3)[0] == 201
        assert it.until_result()["result"] == "promoted"
        assert it.service.total("octoserve_request_seconds_count", version="3") - before == 60


# Whatever the shadow does, its stable version's clients do not see it.


class Trouble(NamedTuple):
    """A shadow's model, what becomes of its copies in the end, and what is done to it meanwhile."""

    model: bytes
    shows: Callable[[dict[str, Any]], bool]
    meanwhile: Callable[[Path], None] = lambda repository: None


def deleted(repository: Path) -> None:
    """Somebody removes the candidate's files."""
    shutil.rmtree(repository / "versioned" / "2")


TROUBLES = {
    "hung": Trouble(slow_model(1, turns=10**9), lambda told: told["timeout"] >= 2 and told["dropped"]["stalled"] > 0),
    "failing": Trouble(flawed_model(1, above=-2000), lambda told: told["error"] > 200),
    "slow": Trouble(slow_model(1, turns=30), lambda told: told["dropped"].get("queue_full", 0) > 100),
    "deleted": Trouble(versioned_model(1), lambda told: told["ok"] > 200, deleted),
}
MOST_MEMORY = 256 << 20
"""Bytes that a shadow may cost a service of one worker: its queue, its model, its spool, and the library of Parquet."""


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_of_a_shadow_stays_its_own(name: str, repository: Path, tmp_path: Path) -> None:
    trouble = TROUBLES[name]
    unjudged = {"error_rate": False, "latency": {}, "disagreement": {"margin": "10%"}}
    section = {**SHADOW, "analysis": unjudged, "pairs": 10**6, "noise": "0%"}
    with rolling(repository, tmp_path / "s", section, workers=1) as it, hammering(it.service, http=3) as hammer:
        until(hammer.all_answered(300), 60)
        alone, rss = seconds_of(hammer), it.service.rss()
        publish(repository, "versioned", 2, trouble.model)
        mirroring(it)
        trouble.meanwhile(repository)
        until(lambda: trouble.shows(pairs(it)), 90, f"the trouble shows: {pairs(it)}")
        since = [len(client.seconds) for client in hammer.clients]
        until(hammer.all_answered(300), 60)
        with_shadow = seconds_of(hammer, since)
        grown = it.service.rss() - rss
        for client in hammer.clients:
            client.stop.set()
        for client in hammer.clients:
            client.join(30)
        assert hammer.errors == []
        assert set(hammer.answers) == {1}
        assert it.rollout()["phase"] == "running"
        ends_counted(it)
    print(f"{name}: median {alone[0] * 1e3:.2f} -> {with_shadow[0] * 1e3:.2f} ms, p99 {alone[1] * 1e3:.2f} -> "
          f"{with_shadow[1] * 1e3:.2f} ms, memory +{grown >> 20} MiB")  # fmt: skip
    assert grown < MOST_MEMORY
    assert with_shadow[0] < alone[0] + 0.25, "generous: where cores are few, what hangs takes one from everybody"


def test_a_shadow_that_hangs_when_its_rollout_ends_is_counted(repository: Path, tmp_path: Path) -> None:
    """The run that is under way never ends; no plan knows its mirror any more."""
    with rolling(repository, tmp_path / "s", {**SHADOW, "noise": "0%"}, workers=1) as it:
        publish(repository, "versioned", 2, slow_model(1, turns=10**9))
        mirroring(it)
        ask(it, 40)
        until(lambda: pairs(it)["offered"] == 40, 20)
        ends_counted(it)
        assert mirrored(it, "timeout") == 1
        ask(it, 40)


def ends_counted(it: Rolling) -> None:
    """Abort; every copy that was offered has an outcome soon after."""
    assert it.command("abort")[0] == 202
    assert it.until_result()["result"] == "aborted"
    until(lambda: mirrored(it, "offered") == mirrored(it, "sent") + dropped(it), 90, "offered = sent + dropped")
    assert mirrored(it, "sent") == sum(mirrored(it, outcome) for outcome in ("ok", "error", "timeout"))


def seconds_of(hammer: Hammer, since: list[int] | None = None) -> tuple[float, float]:
    """Median and 99th percentile of what clients waited."""
    starts = since or [50] * len(hammer.clients)
    waited = sorted(s for client, at in zip(hammer.clients, starts, strict=True) for s in client.seconds[at:])
    return waited[len(waited) // 2], waited[int(len(waited) * 0.99)]


def dropped(it: Rolling) -> float:
    """Copies that were dropped, whatever for."""
    return sum(
        value
        for name, labels, value in it.service.metrics()
        if name == "octoserve_mirror_total" and labels["outcome"].startswith("dropped_")
    )
