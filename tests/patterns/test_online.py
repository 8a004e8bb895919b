"""The online pattern's stories, end to end: what a team does with its models while its clients keep asking."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from support.graphs import spinning_model, versioned_model
from support.hammer import hammering
from support.scale import FULL, scale
from support.service import Served, serving
from support.supervised import publish, until
from support.wire import Sent, rest_binary

NEW_VERSION_WITHIN = 15.0
"""Seconds, as promised, from whole to answering."""


MODELS = ("copied", "broken", "another", "held", "in_and_out", "labelled", "changed", "taken_away", "calm")
"""One a story, so that stories share a service and not their models."""
POLICIES = {"latest:1": {3}, "latest:2": {2, 3}, "all": {1, 2, 3}, "specific:1,2": {1, 2}}


@pytest.fixture(scope="module")
def repository(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stories") / "models"
    for model in MODELS:
        publish(root, model, 1, versioned_model(1))
    for version in (2, 3):
        publish(root, "labelled", version, versioned_model(version))
    shutil.copytree(models / "passage_match", root / "passage_match")
    for model in map(_named, POLICIES):
        for version in (1, 2, 3):
            publish(root, model, version, versioned_model(version))
    return root


def _named(policy: str) -> str:
    return "policy_" + policy.replace(":", "_").replace(",", "_")


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[Served]:
    """Two workers; what they are told of single models stands in a spec."""
    folder = repository.parent
    sections = {_named(policy): {"version_policy": policy} for policy in POLICIES}
    spec = {"models": {**sections, "labelled": {"version_policy": "all", "labels": {"candidate": 2}}}}
    (folder / "octoserve.yaml").write_text(json.dumps(spec))
    with serving(
        repository, folder / "service", workers=2, spec=folder / "octoserve.yaml", settle="1s", max_queue=64, grace="5s"
    ) as service:
        yield service


def versions_of(service: Served, model: str) -> dict[int, dict]:
    return {v["version"]: v for v in service.admin("GET", "/api/models")[1][model]["versions"]}


def infer(service: Served, model: str, version: str = "") -> tuple[int, object]:
    """Status, and the version that answered or the error's text."""
    path = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"
    answer = service.ask("POST", path, {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]})
    content = answer.json()
    return answer.status, int(content["model_version"]) if answer.status == 200 else content["error"]


# --- a new version ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_", range(scale(1, 10)))
def test_new_versions_under_load(tmp_path: Path, round_: int) -> None:
    """No error, no mixed answer, no way back, and in time; twice in a row, with the default settings."""
    repository = tmp_path / "models"
    publish(repository, "versioned", 1, versioned_model(1))
    with (
        serving(repository, tmp_path / "service", workers=2) as service,
        hammering(service, "versioned", http=6, grpc=2) as hammer,
    ):
        until(hammer.all_answered())
        for version in (2, 3):
            publish(repository, "versioned", version, versioned_model(version))
            until(lambda version=version: hammer.all_at(version), NEW_VERSION_WITHIN, f"version {version} answers")
            until(hammer.all_answered())
        until(lambda: versions_of(service, "versioned")[1]["workers"] == {}, 15, "version 1 is unloaded everywhere")
        until(hammer.all_answered())
    assert hammer.errors == []
    assert hammer.went_back() == []
    assert hammer.answers.keys() == {1, 2, 3}


def test_folder_copied_slowly_is_waited_for(service: Served, repository: Path) -> None:
    content = versioned_model(2)
    folder = repository / "copied" / "2"
    folder.mkdir()
    pieces = 10
    size = -(-len(content) // pieces)
    with hammering(service, "copied", http=2) as hammer, open(folder / "model.onnx", "wb", buffering=0) as file:
        for at in range(0, len(content), size):
            file.write(content[at : at + size])
            end = time.monotonic() + scale(3, 8) / pieces
            until(lambda end=end: time.monotonic() > end)
            assert versions_of(service, "copied").get(2, {"state": "LOADING"})["state"] == "LOADING"
            assert versions_of(service, "copied")[1]["state"] == "READY"
        until(lambda: hammer.all_at(2), NEW_VERSION_WITHIN)
    assert hammer.errors == []
    assert hammer.went_back() == []
    assert "partial" not in service.output()
    assert not any("UNAVAILABLE" in line for line in service.output().splitlines())


def test_broken_version_takes_nothing_down_and_says_why(service: Served, repository: Path) -> None:
    with hammering(service, "broken", http=4) as hammer:
        publish(repository, "broken", 2, versioned_model(2))
        until(lambda: hammer.all_at(2), NEW_VERSION_WITHIN)
        publish(repository, "broken", 3, versioned_model(3)[:-100])
        until(lambda: service.index().get(("broken", 3), {}).get("state") == "UNAVAILABLE", NEW_VERSION_WITHIN)
        until(hammer.all_answered(50))
        assert hammer.all_at(2)
        empty = repository / "broken" / "4"
        empty.mkdir()
        (empty / "readme.txt").write_text("no model here")
        until(lambda: service.index().get(("broken", 4), {}).get("state") == "UNAVAILABLE", NEW_VERSION_WITHIN)
        until(hammer.all_answered(50))
    assert hammer.errors == []
    assert hammer.went_back() == []
    assert hammer.answers.keys() == {1, 2}
    for version, word in ((3, "model.onnx"), (4, "model.onnx")):
        assert word in service.index()[("broken", version)]["reason"]
        assert word in versions_of(service, "broken")[version]["reason"]
    assert infer(service, "broken", version="3")[0] == 503
    assert infer(service, "broken") == (200, 2)
    assert service.ask("GET", "/v2/health/ready").status == 200


def test_another_interface_in_a_new_version_is_a_clean_error_for_old_clients(service: Served, repository: Path) -> None:
    """Clients of the old interface are told what the new one wants: 400, never 500, and nothing falls over."""
    publish(repository, "another", 2, spinning_model())
    until(lambda: infer(service, "another")[0] == 400, NEW_VERSION_WITHIN)
    assert "'loops'" in str(infer(service, "another")[1])


# --- load and unload -------------------------------------------------------------------------------------


def test_unloaded_model_stays_unloaded_until_it_is_loaded(service: Served, repository: Path) -> None:
    assert service.ask("POST", "/v2/repository/models/held/unload").status == 200
    for _ in range(10):  # every worker, by fresh connections
        status, text = infer(service, "held")
        assert (status, "not ready" in str(text) or "no version" in str(text)) == (503, True)
    publish(repository, "held", 2, versioned_model(2))
    until(lambda: ("held", 2) in service.index(), NEW_VERSION_WITHIN)
    entry = service.index()[("held", 2)]
    assert entry["state"] == "UNAVAILABLE"
    assert "unloaded by request" in entry["reason"]
    assert infer(service, "held")[0] == 503
    assert service.ask("POST", "/v2/repository/models/held/load").status == 200
    for _ in range(10):
        assert infer(service, "held") == (200, 2)
    assert service.ask("POST", "/v2/repository/models/nothing/load").status == 404


def test_unload_under_load_answers_or_refuses_and_nothing_else(service: Served) -> None:
    """Errors say 503; a request in flight is answered; after `load` returns all is well again."""
    with hammering(service, "in_and_out", http=4, grpc=1) as hammer:
        until(hammer.all_answered())
        assert service.ask("POST", "/v2/repository/models/in_and_out/unload").status == 200
        assert infer(service, "in_and_out")[0] == 503
        assert service.ask("POST", "/v2/repository/models/in_and_out/load").status == 200
        assert infer(service, "in_and_out") == (200, 1)
        before = len(hammer.errors)
        until(hammer.all_answered())
        late = [error for error in hammer.errors[before:] if "503" not in error and "UNAVAILABLE" not in error]
        assert late == []
    assert hammer.errors, "somebody must have noticed"
    assert [e for e in hammer.errors if "status 503" not in e and "StatusCode.UNAVAILABLE" not in e] == []


# --- labels, policies ------------------------------------------------------------------------------------


def test_labels_move_in_one_step(service: Served) -> None:
    def label(name: str, version: int) -> None:
        status, text = service.admin("PUT", f"/api/models/labelled/labels/{name}", {"version": version})
        assert status == 200, text

    assert infer(service, "labelled", "candidate") == (200, 2), "as the spec says"
    label("stable", 1)
    with hammering(service, "labelled", http=4, grpc=1, version="stable") as hammer:
        for version in (2, 1, 3):
            label("stable", version)
            # Once the call has returned every worker follows: no answer that begins now is from before.
            assert [infer(service, "labelled", "stable") for _ in range(8)] == [(200, version)] * 8
            assert infer(service, "labelled", "candidate") == (200, 2)
            until(lambda version=version: hammer.all_at(version), 5)
    assert hammer.errors == []
    moves = [[v for i, v in enumerate(c.versions) if i == 0 or v != c.versions[i - 1]] for c in hammer.clients]
    assert {tuple(m) for m in moves} == {(1, 2, 1, 3)}, "every client sees each step once, and none between"
    assert service.admin("PUT", "/api/models/labelled/labels/stable", {"version": 9})[0] == 404
    assert infer(service, "labelled", "stable") == (200, 3)
    assert infer(service, "labelled", "nobody")[0] == 404


@pytest.mark.parametrize("policy", POLICIES)
def test_version_policy(service: Served, repository: Path, policy: str) -> None:
    model, answers = _named(policy), POLICIES[policy]
    came = {version: infer(service, model, str(version)) for version in (1, 2, 3)}
    assert {version for version, (status, _) in came.items() if status == 200} == answers
    assert all(answer == version for version, (status, answer) in came.items() if status == 200)
    assert infer(service, model) == (200, max(answers))
    for version in {1, 2, 3} - answers:
        assert came[version][0] == 503
        assert f"not selected by version policy {policy}" in service.index()[(model, version)]["reason"]
    publish(repository, model, 4, versioned_model(4))
    if policy.startswith("specific"):
        until(lambda: (model, 4) in service.index(), NEW_VERSION_WITHIN)
        until(lambda: "not selected" in service.index()[(model, 4)]["reason"], NEW_VERSION_WITHIN)
        assert infer(service, model) == (200, 2)
        return
    until(lambda: infer(service, model) == (200, 4), NEW_VERSION_WITHIN)
    for version in {1, 2, 3}:
        kept = policy == "all" or (policy == "latest:2" and version == 3)
        until(lambda v=version, kept=kept: infer(service, model, str(v))[0] == (200 if kept else 503))


# --- what must not be touched ----------------------------------------------------------------------------


def test_changed_version_is_refused_and_the_loaded_one_serves_on(service: Served, repository: Path) -> None:
    until(lambda: _recorded(service, "changed"))
    with hammering(service, "changed", http=2) as hammer:
        (repository / "changed" / "1" / "model.onnx").write_bytes(versioned_model(9))
        until(lambda: "digest was" in versions_of(service, "changed")[1]["reason"], NEW_VERSION_WITHIN)
        assert "serves on" in service.index()[("changed", 1)]["reason"]
        until(hammer.all_answered(50))
    assert hammer.errors == []
    assert hammer.answers.keys() == {1}


def _recorded(service: Served, model: str) -> bool:
    import sqlite3

    with sqlite3.connect(service.state_dir / "octoserve.db") as db:
        return bool(db.execute("select * from digest where model = ?", (model,)).fetchall())


def test_version_taken_away_under_load(service: Served, repository: Path) -> None:
    """The folder of the version that answers is removed: the one below it takes over, without an error."""
    publish(repository, "taken_away", 2, versioned_model(2))
    with hammering(service, "taken_away", http=4) as hammer:
        until(lambda: hammer.all_at(2), NEW_VERSION_WITHIN)
        (repository / "taken_away" / "2").rename(repository / ".gone")
        until(lambda: hammer.all_at(1), NEW_VERSION_WITHIN)
    assert hammer.errors == []


def test_loading_a_big_model_leaves_another_ones_latency_alone(
    service: Served, repository: Path, record_property: Callable[[str, object], None]
) -> None:
    """The figures are reported; what is asserted is only that nobody waits for the whole load."""
    with hammering(service, "calm", http=2, grpc=1) as hammer:
        until(hammer.all_answered(200), 60)
        calm = hammer.p99()
        before = max(len(client.seconds) for client in hammer.clients)
        megabytes = scale(60, 400)
        publish(repository, "big", 1, versioned_model(1, ballast=megabytes))
        published = time.monotonic()
        until(lambda: service.index().get(("big", 1), {}).get("state") == "READY", 120)
        took = time.monotonic() - published
        until(hammer.all_answered(20))
        busy = hammer.p99(before)
    print(f"p99 {calm * 1e3:.1f} ms, while {megabytes} MB load in {took:.1f} s {busy * 1e3:.1f} ms")
    record_property("p99_calm_ms", calm * 1e3)
    record_property("p99_loading_ms", busy * 1e3)
    assert hammer.errors == []
    assert busy < max(1.0, 20 * calm)


def test_health_answers_while_two_models_are_flooded(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    publish(repository, "calm", 1, versioned_model(1))
    publish(repository, "spinning", 1, spinning_model())
    publish(repository, "also_spinning", 1, spinning_model())
    stop = threading.Event()
    statuses: set[int] = set()
    with serving(repository, tmp_path / "service", workers=1, max_queue=8, grace="5s") as service:

        def flood(model: str) -> None:
            with contextlib.closing(service.connect()) as connection:
                body = {"inputs": [{"name": "loops", "datatype": "INT64", "shape": [1], "data": [400]}]}
                while not stop.is_set():
                    statuses.add(service.ask("POST", f"/v2/models/{model}/infer", body, connection=connection).status)

        threads = [threading.Thread(target=flood, args=(m,)) for m in ("spinning", "also_spinning") for _ in range(12)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: statuses == {200, 429}, 20, "both models are full")
            took = []
            for _ in range(scale(40, 400)):
                for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/calm/ready"):
                    began = time.monotonic()
                    assert service.ask("GET", path).status == 200
                    took.append(time.monotonic() - began)
                assert infer(service, "calm") == (200, 1)
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
    print(f"health under a flood: p50 {np.median(took) * 1e3:.1f} ms, p99 {np.percentile(took, 99) * 1e3:.1f} ms")
    assert np.median(took) < 0.2
    assert max(took) < (5 if FULL else 3)


def test_a_long_input_after_many_short_ones_holds_up_nobody(service: Served) -> None:
    """The same rows, a thousand times the bytes: it must not be run where the short ones are."""

    def ask(tokens: int) -> float:
        inputs = [
            Sent("query", "FP32", np.ones((1, tokens, 16), "<f4")),
            Sent("passage", "FP32", np.ones((1, tokens, 16), "<f4")),
            Sent("passage_mask", "BOOL", np.ones((1, tokens), bool)),
        ]
        began = time.monotonic()
        assert rest_binary(service, "passage_match", inputs, outputs=[{"name": "score"}])["score"].shape == (1,)
        return time.monotonic() - began

    stop = threading.Event()
    waits: list[float] = []

    def ping() -> None:
        while not stop.is_set():
            began = time.monotonic()
            assert service.ask("GET", "/v2/health/live").status == 200
            waits.append(time.monotonic() - began)

    for _ in range(100):
        ask(2)
    ask(8000)  # what it costs is not known before
    pinging = threading.Thread(target=ping)
    pinging.start()
    try:
        took = []
        for _ in range(3):
            took.append(ask(8000))
            for _ in range(60):
                ask(2)
    finally:
        stop.set()
        pinging.join(20)
    print(f"runs of {min(took):.2f} to {max(took):.2f} s, health within {max(waits):.3f} s")
    assert max(waits) < max(0.2, min(took) / 2)
