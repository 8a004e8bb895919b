"""The story of a feature that moves: a profile, a service, the metrics, the report, and the log read back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from octoserve.cli.main import run
from octoserve.core.errors import NotFound, SettingsError
from octoserve.repository import profiles
from support import observed
from support.service import Served, serving
from support.supervised import until

SPEC = """
prediction_log: {to: predictions, rotate: 1s, exclude: [ssn, _key]}
drift: {window: 1h, minimum: 500}
models:
  quiet: {prediction_log: false, drift: false}
  kept: {cache: {bytes: 1MB, ttl: 1h}, drift: false}
"""
ROWS, AT_ONCE = 1200, 40
OLDER = 12.0


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        run(list(words))
    return int(ended.value.code or 0), capsys.readouterr().out


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("drift")
    observed.put(folder / "models")
    observed.put(folder / "models", "quiet")
    observed.put(folder / "models", "kept")
    train = observed.rows(4000, seed=7)
    pa.parquet.write_table(pa.table(train), folder / "train.parquet")
    (folder / "octoserve.yaml").write_text(SPEC)
    with serving(folder / "models", folder / "run", "--spec", str(folder / "octoserve.yaml"), workers=2) as served:
        served.folder = folder
        yield served


def asked(service: Served, columns: dict[str, Any], model: str = "loans") -> None:
    connection = service.connect()
    for first in range(0, ROWS, AT_ONCE):
        body = observed.request(columns, first, AT_ONCE, f"r{first}")
        answer = service.ask("POST", f"/v2/models/{model}/infer", body, connection=connection)
        assert answer.status == 200, answer.body
    connection.close()


def psis(service: Served) -> dict[str, float]:
    return {labels["feature"]: value for name, labels, value in service.metrics() if name == "octoserve_drift_psi"}


def test_a_profile_beside_the_version(service: Served, capsys: pytest.CaptureFixture[str]) -> None:
    repository = str(service.folder / "models")
    before = said(capsys, "model", "verify", "--repository", repository)
    data = str(service.folder / "train.parquet")
    code, text = said(
        capsys, "model", "profile", "--repository", repository, "--model", "loans", "--data", data, "--exclude", "ssn"
    )
    assert code == 0
    assert "city  texts: Köln" in text
    profile = profiles.read(service.folder / "models" / "loans" / "1")
    assert profile is not None
    assert [column.name for column in profile.columns] == ["amount", "age", "city", "vip", "score", "seen", "was_vip"]
    assert profile.rows == 4000
    assert said(capsys, "model", "verify", "--repository", repository) == before, "the version is what it was"


def test_what_was_made_with_such_rows_is_quiet(service: Served, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotFound, match="watches no drift of loans"):
        said(capsys, "drift", "status", "loans", "--admin-url", f"127.0.0.1:{service.ports['admin']}")
    until(lambda: _every_worker_watches(service), 90, "the workers find the profile that was made while they serve")
    asked(service, observed.rows(ROWS, seed=8))
    until(lambda: len(psis(service)) == 7, 60, "every feature and output has a number")
    assert max(psis(service).values()) < 0.1
    code, text = said(capsys, "drift", "status", "--admin-url", f"127.0.0.1:{service.ports['admin']}")
    assert code == 0
    assert "loans" in text


def _every_worker_watches(service: Served) -> bool:
    """Rows on connections of their own, which workers share: all of them are counted once each has the profile."""
    some, before = 16, service.total("octoserve_drift_rows", model="loans")
    for _ in range(some):
        service.ask("POST", "/v2/models/loans/infer", observed.request(observed.rows(1), 0, 1))
    with contextlib.suppress(AssertionError):
        until(lambda: service.total("octoserve_drift_rows", model="loans") == before + some, 3)
        return True
    return False


def test_a_feature_that_moves_is_named_and_the_others_stay_quiet(
    service: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    admin = f"127.0.0.1:{service.ports['admin']}"
    rows = service.total("octoserve_drift_rows", model="loans")
    for seed in (9, 10, 11):
        asked(service, observed.rows(ROWS, seed, older=OLDER, cities=(0.5, 0.3, 0.2)))
    until(lambda: service.total("octoserve_drift_rows", model="loans") == rows + 3 * ROWS, 60, "all rows are counted")
    code, text = said(capsys, "drift", "report", "loans", "--admin-url", admin, "--json")
    report = json.loads(text)
    levels = {column["name"]: column["level"] for column in report["columns"]}
    assert code == 0
    assert levels["age"] == levels["score"] == "much", "the score is made of the age"
    assert {levels[name] for name in ("amount", "city", "vip", "seen", "was_vip")} == {"quiet"}
    assert "age (PSI" in report["headline"]
    shown = {column["name"]: column["psi"] for column in report["columns"]}
    assert psis(service) == pytest.approx(shown), "metrics and report are of one mind"
    code, text = said(capsys, "drift", "report", "loans", "--admin-url", admin)
    assert "moved much" in text
    assert "█" in text
    page = service.folder / "drift.html"
    said(capsys, "drift", "report", "loans", "--admin-url", admin, "--html", str(page))
    assert "From where to where" in page.read_text("utf-8")
    assert said(capsys, "drift", "status", "--admin-url", admin)[0] == 1, "for a script that asks"


def test_the_log_holds_every_request_and_no_excluded_column(service: Served) -> None:
    page = [(labels, value) for name, labels, value in service.metrics() if name.endswith("log_total")]
    what = {labels["what"]: int(value) for labels, value in page if labels["model"] == "loans"}
    dropped = sum(value for name, value in what.items() if name.startswith("dropped"))
    assert what["offered"] == what["written"] + dropped
    assert dropped == 0
    stored = "octoserve_prediction_log_stored_rows_total"
    until(lambda: service.total("octoserve_prediction_log_spool_bytes") == 0, 60, "all is in the store")
    table = _log(service.folder)
    assert table.num_rows == service.total(stored, model="loans") > 4 * ROWS
    assert "ssn" not in table.column_names
    assert table.column("age").type == pa.float32()
    assert table.column("city").type == pa.string()
    assert len(set(table.column("_request_id").to_pylist())) == ROWS // AT_ONCE + 1
    assert service.total("octoserve_prediction_log_total", model="quiet") == 0
    asked(service, observed.rows(ROWS), "quiet")
    assert service.total("octoserve_prediction_log_total", model="quiet") == 0


def _log(folder: Path, model: str = "loans") -> Any:
    return pa.parquet.read_table(folder / "predictions" / f"model={model}")


def test_a_stored_log_says_the_same_as_live(service: Served, capsys: pytest.CaptureFixture[str]) -> None:
    repository, log = str(service.folder / "models"), str(service.folder / "predictions" / "model=loans")
    words = ["drift", "report", "--repository", repository, "--model", "loans", "--data", log]
    code, text = said(capsys, *words, "--json")
    report = json.loads(text)
    assert code == 0
    live = json.loads(
        said(capsys, "drift", "report", "loans", "--admin-url", f"127.0.0.1:{service.ports['admin']}", "--json")[1]
    )
    told = {column["name"]: column["psi"] for column in report["columns"]}
    for column in live["columns"]:
        # the log has what came before the profile was found, too
        assert told[column["name"]] == pytest.approx(column["psi"], rel=0.05, abs=0.01)
    with pytest.raises(SettingsError, match="matches none"):
        run(["drift", "report", "--repository", repository, "--model", "loans", "--data", f"{log}/nothing*.parquet"])
    with pytest.raises(NotFound, match="quiet version 1 has no profile"):
        run(["drift", "report", "--repository", repository, "--model", "quiet", "--data", log])


def test_a_request_by_another_door_is_recorded_with_its_header(service: Served) -> None:
    row = {"amount": 12.5, "age": 33.0, "ssn": 1.0, "city": "Bonn", "vip": True}
    headers = {"x-request-id": "by-header"}
    answer = service.ask("POST", "/v1/models/loans:predict", {"instances": [row]}, headers=headers)
    assert answer.status == 200, answer.body

    def recorded() -> list[dict[str, Any]]:
        table = _log(service.folder)
        return [found for found in table.to_pylist() if found["_request_id"] == "by-header"]

    until(lambda: len(recorded()) == 1, 60, "its row is in the store")
    (found,) = recorded()
    assert (found["amount"], found["city"], found["vip"]) == (12.5, "Bonn", True)
    assert (found["_status"], found["_version"], found["_row"]) == ("ok", 1, 0)
    assert found["score"] == pytest.approx(0.01 * 12.5 + 0.5 * 33.0 + 1.0)


def test_an_answer_from_the_cache_is_an_answer(service: Served) -> None:
    body = observed.request(observed.rows(1), 0, 1)
    for number in range(6):
        assert service.ask("POST", "/v2/models/kept/infer", body | {"id": f"k{number}"}).status == 200
    assert service.total("octoserve_cache_requests_total", model="kept", outcome="hit") >= 4
    until(lambda: service.total("octoserve_prediction_log_stored_rows_total", model="kept") == 6, 60, "all six")
    table = _log(service.folder, "kept")
    assert sorted(table.column("_request_id").to_pylist()) == [f"k{number}" for number in range(6)]
    assert len(set(table.column("score").to_pylist())) == 1
