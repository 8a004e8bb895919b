"""The prediction log while what it stands on fails: requests are answered as before, every record is accounted for."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet
import pytest

from support import observed, s3
from support.service import Served, serving
from support.supervised import until

ROWS = observed.rows(400)


def asked(service: Served, times: int, first: int = 0) -> None:
    connection = service.connect()
    for number in range(first, first + times):
        body = observed.request(ROWS, number % 100, 2, f"r{number}")
        assert service.ask("POST", "/v2/models/loans/infer", body, connection=connection).status == 200
    connection.close()


def counts(service: Served) -> dict[str, int]:
    page = service.metrics()
    found = {labels["what"]: int(value) for name, labels, value in page if name.endswith("log_total")}
    waiting = int(sum(value for name, _, value in page if name.endswith("log_waiting")))
    dropped = sum(value for what, value in found.items() if what.startswith("dropped"))
    assert found["offered"] == found["written"] + dropped + waiting
    return {what: value for what, value in found.items() if value} | {"waiting": waiting}


def settled(service: Served, offered: int) -> dict[str, int]:
    until(lambda: counts(service)["waiting"] == 0 and counts(service).get("offered") == offered, 60, "all is accounted")
    return counts(service)


def ids(folder: Path) -> list[str]:
    return sorted(set(pa.parquet.read_table(folder).column("_request_id").to_pylist()))


@pytest.fixture
def made(tmp_path: Path) -> Any:
    observed.put(tmp_path / "models")

    def start(spec: str, **more: Any) -> Any:
        (tmp_path / "octoserve.yaml").write_text(spec)
        flags = ("--spec", str(tmp_path / "octoserve.yaml"))
        return serving(tmp_path / "models", tmp_path / "run", *flags, **more)

    return start


def test_a_full_disk_costs_records_and_no_request(made: Any, tmp_path: Path) -> None:
    with made("prediction_log: {to: predictions, rotate: 1s}\n") as service:
        asked(service, 5)
        settled(service, 5)
        worker = psutil.Process(service.worker_pids()[0])
        before = worker.rlimit(psutil.RLIMIT_FSIZE)
        worker.rlimit(psutil.RLIMIT_FSIZE, (0, before[1]))  # no file may grow: writes fail as on a full disk
        asked(service, 20, 5)
        found = settled(service, 25)
        assert found["dropped_spool_error"] == 20
        worker.rlimit(psutil.RLIMIT_FSIZE, before)
        until(lambda: _recorded_again(service), 60, "with room again it is recorded again")
    recorded = ids(tmp_path / "predictions")
    assert {f"r{i}" for i in range(5)} <= set(recorded)
    assert not {f"r{i}" for i in range(5, 25)} & set(recorded)
    assert not list((tmp_path / "predictions").rglob("*.part"))


def _recorded_again(service: Served) -> bool:
    before = counts(service)["written"]
    asked(service, 1, 90)
    return counts(service)["written"] > before


def test_a_killed_worker_loses_nothing_that_was_written(made: Any, tmp_path: Path) -> None:
    with made("prediction_log: {to: predictions, rotate: 1h}\n") as service:
        asked(service, 30)
        assert settled(service, 30)["written"] == 30
        os.kill(service.worker_pids()[0], signal.SIGKILL)
        until(lambda: service.total("octoserve_prediction_log_stored_rows_total") == 60, 60, "the dead one's segment")
        until(lambda: service.all_serve(1), 60)
        assert ids(tmp_path / "predictions") == sorted(f"r{i}" for i in range(30)), "whole files only"
        assert counts(service)["written"] == 30, "its counts stay"


def test_s3_away_keeps_all_in_the_spool_until_it_is_back(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3.a_store() as store:
        proxy = s3.Proxy(store)
        try:
            for name, value in s3.variables(proxy.url).items():
                monkeypatch.setenv(name, value)
            proxy.rule = lambda number, method, path: s3.DENIED
            spec = f"prediction_log: {{to: s3://{s3.BUCKET}/log, rotate: 1s, rotate_size: 64KB, spool_size: 1MB}}\n"
            with made(spec) as service:
                asked(service, 10)
                assert settled(service, 10)["written"] == 10
                until(lambda: "predictions stay in the spool" in service.output(), 60, "it is said")
                asked(service, 10, 10)
                assert service.total("octoserve_prediction_log_spool_bytes") > 0
                proxy.rule = lambda number, method, path: None
                until(lambda: service.total("octoserve_prediction_log_stored_rows_total") == 40, 90, "all of them")
                assert settled(service, 20)["written"] == 20
                with s3.used(store.url):
                    files = s3.tree("log")
                tables = [pa.parquet.read_table(pa.BufferReader(data)) for data in files.values()]
                found = [id_ for table in tables for id_ in table.column("_request_id").to_pylist()]
                assert sorted(found) == sorted([f"r{i}" for i in range(20)] * 2), "each row once"
        finally:
            proxy.close()
