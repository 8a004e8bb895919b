"""The story of a promise: it is written down, kept, broken; counters, rates, deadline and Prometheus say the same."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octoserve.cli.main import run
from octoserve.core.errors import SettingsError
from octoserve.deploy.monitoring import DASHBOARD, RULES, SCRAPE, recorded
from support import prometheus
from support.service import Served, serving
from support.supervised import publish, until

SPEC = """
slo: {latency_p99: 10s, availability: 99.9%}
models:
  strict: {slo: {latency_p99: 1us, availability: 99%}, deadline: 20s}
  hurried: {slo: {latency_p99: 0.5us}}
  free: {slo: false}
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("slo")
    repository = folder / "models"
    for model in ("plain", "strict", "hurried", "free"):
        publish(repository, model, 1)
    (folder / "octoserve.yaml").write_text(SPEC)
    with serving(repository, folder / "run", "--spec", str(folder / "octoserve.yaml"), workers=2) as served:
        served.folder = folder
        yield served


def asked(service: Served, model: str, times: int) -> list[int]:
    return [service.infer(model)[0] for _ in range(times)]


def counted(service: Served) -> dict[tuple[str, str], tuple[float, float]]:
    """(model, objective) -> good and bad, on the page."""
    found: dict[tuple[str, str], list[float]] = {}
    for name, labels, value in service.metrics():
        if name in ("octoserve_slo_good_total", "octoserve_slo_bad_total"):
            pair = found.setdefault((labels["model"], labels["objective"]), [0.0, 0.0])
            pair[name == "octoserve_slo_bad_total"] = value
    return {key: (good, bad) for key, (good, bad) in found.items()}


def test_a_promise_from_the_spec_to_the_page(service: Served) -> None:
    assert asked(service, "plain", 20) == [200] * 20
    assert asked(service, "strict", 10) == [200] * 10, "late answers are answers: its deadline is written down"
    assert asked(service, "free", 5) == [200] * 5
    assert service.ask("POST", "/v2/models/plain/infer", {"inputs": []}).status == 400
    assert service.ask("POST", "/v2/models/nobody/infer", {"inputs": []}).status == 404
    wanted = {
        ("plain", "latency"): (20, 0),
        ("plain", "availability"): (20, 0),
        ("strict", "latency"): (0, 10),
        ("strict", "availability"): (10, 0),
        ("hurried", "latency"): (0, 0),
    }
    until(lambda: counted(service) == wanted, 60, f"these counts: {wanted}")


def test_the_deadline_follows_and_sheds(service: Served) -> None:
    statuses = asked(service, "hurried", 5)
    assert set(statuses) <= {504, 429}, "a microsecond is over before anything runs"
    assert counted(service)["hurried", "latency"] == (0, 0), "what got no answer was not late"
    view = service.admin("GET", "/api/slo")[1]["models"]
    assert view["hurried"]["deadline"] == pytest.approx(1e-6)
    assert view["strict"]["deadline"] == 20
    assert view["plain"]["deadline"] == 20
    assert "free" not in view


def test_rates_and_the_view_agree_with_the_counters(service: Served) -> None:
    asked(service, "strict", 3)
    until(lambda: _viewed(service) == counted(service), 60, "the view and the page agree")
    until(lambda: _rate(service, "strict", "latency") > 14.4, 60, "the rate of what was all bad")
    until(lambda: "fast" in _view(service, "strict", "latency")["burning"], 60, "what would alert")
    assert _rate(service, "plain", "latency") == 0
    assert service.total("octoserve_slo_target", model="strict", objective="availability") == 0.99


def _viewed(service: Served) -> dict[tuple[str, str], tuple[float, float]]:
    status, view = service.admin("GET", "/api/slo")
    assert status == 200
    return {
        (model, objective): (told["good"], told["bad"])
        for model, entry in view["models"].items()
        for objective, told in entry["objectives"].items()
    }


def _view(service: Served, model: str, objective: str) -> Any:
    return service.admin("GET", "/api/slo")[1]["models"][model]["objectives"][objective]


def _rate(service: Served, model: str, objective: str) -> float:
    asked(service, model, 1)
    return service.total("octoserve_slo_burn_rate", model=model, objective=objective, window="5m")


@contextlib.contextmanager
def asking(service: Served, *models: str) -> Iterator[None]:
    """Requests in the background, for as long as the block lasts."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.02):
            for model in models:
                service.infer(model)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_prometheus_reads_rules_and_answers_the_dashboards_questions(service: Served) -> None:
    if prometheus.BINARY is None:
        pytest.skip("no prometheus: apt-get install prometheus")
    out: Path = service.folder / "monitoring"
    admin = f"127.0.0.1:{service.ports['admin']}"
    spec = str(service.folder / "octoserve.yaml")
    with pytest.raises(SystemExit):
        run(["deploy", "monitoring", "--spec", spec, "--out", str(out), "--target", admin])
    config = out / SCRAPE
    config.write_text(re.sub(r"_interval: \d+s", "_interval: 1s", config.read_text()))
    (out / RULES).write_text((out / RULES).read_text().replace("interval: 30s", "interval: 1s"))
    with asking(service, "plain", "strict"), prometheus.running(config, out) as address:
        share = recorded("5m") + '{objective="latency",model="%s"}'
        until(lambda: _values(address, share % "strict") == [1.0], 90, "the share of what is all bad")
        until(lambda: _values(address, share % "plain") == [0.0], 60, "the share of what is all good")
        alerts = 'ALERTS{alertstate="firing",alertname="OctoserveBudgetBurnsFast",promise="strict/latency"}'
        until(lambda: _values(address, alerts) == [1.0], 60, "the alert")
        assert _values(address, 'ALERTS{promise="*/latency"}') == []
        for panel in json.loads((out / DASHBOARD).read_text())["panels"]:
            for target in panel.get("targets", []):
                query = target["expr"].replace("$__rate_interval", "1m").replace("$window", "30d")
                query = query.replace("$model", ".+")
                answer = _asked(address, query)
                assert answer["status"] == "success", (panel["title"], answer)
                if "cut_total" not in query:  # nobody was cut
                    assert answer["data"]["result"], f"{panel['title']} shows nothing: {query}"


def _asked(address: str, query: str) -> Any:
    with urllib.request.urlopen(f"{address}/api/v1/query?query={urllib.parse.quote(query)}", timeout=30) as answer:
        return json.load(answer)


def _values(address: str, query: str) -> list[float]:
    return [float(sample["value"][1]) for sample in _asked(address, query)["data"]["result"]]


def test_bench_asks_the_service_what_it_promises(service: Served, capsys: pytest.CaptureFixture[str]) -> None:
    admin = f"http://127.0.0.1:{service.ports['admin']}"
    words = ["bench", f"http://{service.http}", "--verify-slo", "--no-find", "--rate", "500", "-d", "0.5", "--json"]
    with pytest.raises(SystemExit) as ended:
        run([*words, "--model", "strict", "--admin-url", admin])
    told = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1
    assert told["slo"]["latency"] == pytest.approx(1e-6)
    assert told["at"]["verdict"] == "BROKEN", "no answer takes a microsecond"
    with pytest.raises(SettingsError, match="promises nothing for 'free'"):
        run([*words, "--model", "free", "--admin-url", admin])


def test_a_killed_supervisor_forgets_rates_and_no_counts(tmp_path: Path) -> None:
    publish(tmp_path / "models", "strict", 1)
    (tmp_path / "octoserve.yaml").write_text(SPEC)
    flags = ("--spec", str(tmp_path / "octoserve.yaml"))
    with serving(tmp_path / "models", tmp_path / "run", *flags, finish=False) as served:
        assert asked(served, "strict", 10) == [200] * 10
        until(lambda: counted(served).get(("strict", "latency")) == (0, 10), 60, "ten late answers")
        served.kill()
        after = Served(served.repository, served.state_dir, *flags, workers=1)
        try:
            until(lambda: counted(after).get(("strict", "latency")) == (0, 10), 60, "the living worker's counts")
            until(lambda: after.admin("GET", "/api/slo")[1]["known_seconds"] > 0, 60, "a first look")
            assert set(_view(after, "strict", "latency")["burn_rate"].values()) == {0.0}, "it was before its time"
            assert asked(after, "strict", 1) == [200]
            until(lambda: _view(after, "strict", "latency")["burn_rate"]["5m"] == 100.0, 60, "and this is news")
        finally:
            after.clean()
