"""What `octoserve deploy monitoring` renders, read by Prometheus' own promtool: rules that alert when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from octoserve import spec
from octoserve.cli.main import run
from octoserve.core.errors import SettingsError
from octoserve.core.slo import Slo, Slos
from octoserve.deploy.dashboard import dashboard
from octoserve.deploy.monitoring import DASHBOARD, README, RULES, SCRAPE, Monitoring, render

if shutil.which("promtool") is None:
    pytest.skip("no promtool: apt-get install prometheus", allow_module_level=True)

SPEC = """
repository: models
slo: {latency_p99: 100ms, availability: 99.9%}
models:
  fraud: {slo: {latency_p99: 20ms, availability: 99%, window: 28d}}
  echo: {slo: false}
  'odd "name" (v1.2) {{x}}': {slo: {availability: 90%, window: 7d}}
"""
FIRING = 'count by (alertname, severity, promise, model) (ALERTS{alertstate="firing"})'


def promtool(*words: str | Path, folder: Path) -> str:
    ran = subprocess.run(["promtool", *map(str, words)], cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("monitoring")
    (folder / "octoserve.yaml").write_text(SPEC)
    out = folder / "out"
    with pytest.raises(SystemExit) as ended:
        run(["deploy", "monitoring", "--spec", str(folder / "octoserve.yaml"), "--out", str(out)])
    assert ended.value.code == 0
    return out


def test_promtool_takes_rules_and_configuration(rendered: Path) -> None:
    assert {path.name for path in rendered.iterdir()} == {RULES, SCRAPE, DASHBOARD, README}
    assert "rules found" in promtool("check", "rules", RULES, folder=rendered)
    promtool("check", "config", SCRAPE, folder=rendered)


def firing(folder: Path, series: dict[str, str], at: dict[str, set[tuple[str, ...]]], interval: str = "1m") -> None:
    """Play series (`{labels}` of a counter -> values) and say what fires when: (alert, severity, promise, model)."""
    groups = yaml.safe_load((folder / RULES).read_text())["groups"]
    tests = {
        "rule_files": [str(folder / RULES)],
        # Else by chance, and what alerts would not see what was recorded for it in that very moment.
        "group_eval_order": [group["name"] for group in groups],
        "evaluation_interval": interval,
        "tests": [
            {
                "interval": interval,
                "input_series": [
                    {"series": 'up{job="octoserve",instance="a"}', "values": "1x300"},
                    *({"series": name, "values": values} for name, values in series.items()),
                ],
                "promql_expr_test": [
                    {
                        "expr": FIRING,
                        "eval_time": when,
                        "exp_samples": [
                            {"labels": _labels(alert, severity, promise, model), "value": 1}
                            for alert, severity, promise, model in fired
                        ],
                    }
                    for when, fired in at.items()
                ],
            }
        ],
    }
    (folder / "played.yml").write_text(yaml.safe_dump(tests))
    promtool("test", "rules", "played.yml", folder=folder)


def _labels(*values: str) -> str:
    named = zip(("alertname", "severity", "promise", "model"), values, strict=True)
    return "{" + ",".join(f"{name}={json.dumps(value)}" for name, value in named if value) + "}"


def counter(kind: str, model: str, objective: str, instance: str = "a", job: str = "octoserve") -> str:
    labels = {"job": job, "instance": instance, "model": model, "objective": objective}
    inner = ",".join(f"{name}={json.dumps(value)}" for name, value in labels.items())
    return f"octoserve_slo_{kind}_total{{{inner}}}"


def burns(speed: str, severity: str, promise: str, model: str = "") -> tuple[str, ...]:
    return f"OctoserveBudgetBurns{speed}", severity, promise, model or promise.partition("/")[0]


def test_what_is_promised_alerts_nobody(rendered: Path) -> None:
    series = {
        counter("good", "fraud", "latency"): "0+991x90",
        counter("bad", "fraud", "latency"): "0+9x90",
        counter("good", "wine", "availability"): "0+9991x90",
        counter("bad", "wine", "availability"): "0+9x90",
        counter("good", "quiet", "latency"): "0x90",
        counter("bad", "quiet", "latency"): "0x90",
    }
    firing(rendered, series, {when: set() for when in ("10m", "85m")})


def test_an_outage_pages_within_minutes_and_stops_soon_after(rendered: Path) -> None:
    series = {
        counter("good", "fraud", "availability"): "0+1000x120 120000x15 120000+1000x60",
        counter("bad", "fraud", "availability"): "0x120 0+1000x15 15000x60",
    }
    fast, slow = (burns(speed, "page", "fraud/availability") for speed in ("Fast", "Slow"))
    ticket = burns("Creeping", "ticket", "fraud/availability")
    firing(rendered, series, {"120m": set(), "132m": {fast, slow, ticket}, "143m": {slow, ticket}})


def test_twice_too_fast_for_days_is_a_ticket_and_no_page(rendered: Path) -> None:
    series = {counter("good", "wine", "latency"): "0+980x180", counter("bad", "wine", "latency"): "0+20x180"}
    firing(rendered, series, {"80h": {burns("Creeping", "ticket", "*/latency", "wine")}}, interval="30m")


def test_a_promise_goes_for_those_who_made_it(rendered: Path) -> None:
    odd = 'odd "name" (v1.2) {{x}}'
    series = {}
    for model, objective in (("echo", "latency"), ("echo", "availability"), ("wine", "latency"), (odd, "availability")):
        series[counter("good", model, objective)] = "0x90"
        series[counter("bad", model, objective)] = "0+100x90"
    fired = {
        burns(speed, severity, promise, model)
        for speed, severity in (("Fast", "page"), ("Slow", "page"), ("Creeping", "ticket"))
        for promise, model in (("*/latency", "wine"), (f"{odd}/availability", odd))
    }
    firing(rendered, series, {"80m": fired})


def test_other_jobs_are_none_of_ours(rendered: Path) -> None:
    series = {
        counter("good", "fraud", "latency", job="other"): "0x90",
        counter("bad", "fraud", "latency", job="other"): "0+100x90",
    }
    firing(rendered, series, {"80m": set()})


def test_a_restarted_replica_alerts_nobody_and_replicas_add_up(rendered: Path) -> None:
    series = {
        counter("good", "fraud", "latency"): "0+995x60 0+995x60",
        counter("bad", "fraud", "latency"): "0+5x60 0+5x60",
        counter("good", "fraud", "latency", "b"): "0+1000x120",
        counter("bad", "fraud", "latency", "b"): "0x120",
    }
    firing(rendered, series, {"65m": set(), "115m": set()})


def test_a_service_that_is_gone_or_without_workers_pages(rendered: Path) -> None:
    tests = {
        "rule_files": [str(rendered / RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": 'up{job="octoserve",instance="a"}', "values": "1x10 0x20"},
                    {"series": 'octoserve_workers{job="octoserve",instance="a"}', "values": "2x5 0x5 _x20"},
                    {"series": 'octoserve_worker_restarts_total{job="octoserve",instance="a"}', "values": "0x3 0+1x20"},
                    {"series": 'octoserve_security_stale{job="octoserve",instance="a",what="keys"}', "values": "1x30"},
                    {"series": 'octoserve_repository_age_seconds{job="octoserve",instance="a"}', "values": "10+60x30"},
                    {"series": 'octoserve_repository_missing_versions{job="octoserve",instance="a"}', "values": "0x30"},
                ],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": when,
                        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in names],
                    }
                    for when, names in {
                        "3m": [],
                        "9m": ["OctoserveNoWorkers", "OctoserveSecurityStale", "OctoserveWorkersDie"],
                        "18m": ["OctoserveDown", "OctoserveSecurityStale", "OctoserveWorkersDie"],
                        "26m": [
                            "OctoserveDown",
                            "OctoserveRepositoryAway",
                            "OctoserveSecurityStale",
                            "OctoserveWorkersDie",
                        ],
                    }.items()
                ],
            },
            {
                "interval": "1m",
                "input_series": [],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "10m",
                        "exp_samples": [{"labels": '{alertname="OctoserveDown"}', "value": 1}],
                    }
                ],
            },
        ],
    }
    (rendered / "played.yml").write_text(yaml.safe_dump(tests))
    promtool("test", "rules", "played.yml", folder=rendered)


def test_what_moves_and_stays_moved_is_a_ticket_and_gaps_in_the_log_are(tmp_path: Path) -> None:
    path = tmp_path / "octoserve.yaml"
    path.write_text(
        "repository: models\ndrift: true\nprediction_log: {to: log}\n"
        "models:\n  fraud: {drift: {alert: 0.5}}\n  echo: {drift: false}\n"
    )
    with pytest.raises(SystemExit):
        run(["deploy", "monitoring", "--spec", str(path), "--out", str(tmp_path / "out")])
    out = tmp_path / "out"
    promtool("check", "rules", RULES, folder=out)

    def gauge(name: str, model: str) -> str:
        return f'octoserve_drift_{name}{{job="octoserve",instance="a",model="{model}",version="1",feature="age"}}'

    series = {}
    for model, value, chance in (("fraud", 0.4, 0.02), ("wine", 0.4, 0.02), ("echo", 0.9, 0.02), ("few", 0.4, 0.45)):
        series[gauge("psi", model)] = f"0x10 {value}x40"
        series[gauge("psi_chance", model)] = f"{chance}x50"
    log = 'octoserve_prediction_log_total{job="octoserve",instance="a",model="wine",what="%s"}'
    series[log % "dropped_spool_full"] = "0x30 0+5x20"
    series[log % "written"] = "0+100x50"
    drift, gaps = ("OctoserveDrift", "ticket", "", "wine"), ("OctoservePredictionLogDrops", "ticket", "", "wine")
    firing(out, series, {"20m": set(), "28m": {drift}, "45m": {drift, gaps}})


# The dashboard


def queries(made: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in made["panels"] for target in panel.get("targets", [])]


def as_asked(query: str) -> str:
    """A panel's query as Grafana sends it for all models."""
    return query.replace("$__rate_interval", "1m").replace("$window", "28d").replace("$model", ".+")


def test_every_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    made = dashboard("octoserve", ["28d"], drift=True, log=True, queue=True)
    asked = [as_asked(query) for query in queries(made)]
    assert len(asked) > 15
    assert not any("$" in query for query in asked)
    wrapped = [{"record": f"query:{place}", "expr": query} for place, query in enumerate(asked)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": wrapped}]}))
    promtool("check", "rules", "queries.yml", folder=tmp_path)


def test_the_dashboard_is_whole(rendered: Path) -> None:
    made = json.loads((rendered / DASHBOARD).read_text())
    assert made["schemaVersion"] >= 36
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    variables = {variable["name"]: variable for variable in made["templating"]["list"]}
    assert variables["window"]["query"] == "30d,28d,7d"
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(queries(made)))) - {"__rate_interval"}
    assert used <= set(variables)


def test_the_dashboard_shows_what_there_is(tmp_path: Path) -> None:
    def headings(spec: str) -> list[str]:
        (tmp_path / "octoserve.yaml").write_text(f"repository: models\n{spec}")
        with pytest.raises(SystemExit) as ended:
            run(["deploy", "monitoring", "--spec", str(tmp_path / "octoserve.yaml"), "--out", str(tmp_path / "out")])
        assert ended.value.code == 0
        made = json.loads((tmp_path / "out" / DASHBOARD).read_text())
        return [panel["title"] for panel in made["panels"] if panel["type"] == "row"]

    assert headings("slo: {availability: 99%}\n") == ["Promises", "Requests", "Service"]
    assert headings("drift: true\n") == ["Promises", "Requests", "Drift", "Service"]
    both = "prediction_log: {to: log}\nqueue: {model: fraud, slo: {freshness: 60s}, metrics_port: 9100}\n"
    assert headings(both) == ["Promises", "Requests", "Queue", "Prediction log", "Service"]


def test_a_jobs_name_reaches_rules_and_dashboard() -> None:
    text = json.dumps(dashboard('a"b', ["30d"]))
    assert "octoserve_slo_target" in text
    assert json.dumps('job="a\\"b"')[1:-1] in text
    assert 'job="octoserve"' not in text.replace("\\", "")


def test_a_queue_that_breaks_its_promise_or_stands_still_pages(tmp_path: Path) -> None:
    (tmp_path / "octoserve.yaml").write_text(
        "repository: models\nqueue: {model: fraud, slo: {freshness: 60s}, metrics_port: 9100}\n"
    )
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        run(["deploy", "monitoring", "--spec", str(tmp_path / "octoserve.yaml"), "--out", str(out)])
    assert ended.value.code == 0
    promtool("check", "rules", RULES, folder=out)
    config = yaml.safe_load((out / SCRAPE).read_text())
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": ["127.0.0.1:9100"]}]
    oldest = 'octoserve_queue_oldest_seconds{job="octoserve",instance="a",partition="%s"}'
    series = {
        counter("good", "fraud", "freshness"): "0+1000x120 120000x60",
        counter("bad", "fraud", "freshness"): "0x120 0+1000x60",
        counter("bad", "fraud", "latency"): "0+1000x180",
        oldest % "0": "1x180",
        oldest % "1": "1x130 61+60x50",
    }
    fast, slow, ticket = (
        burns(speed, severity, "fraud/freshness")
        for speed, severity in (("Fast", "page"), ("Slow", "page"), ("Creeping", "ticket"))
    )
    stale = ("OctoserveQueueStale", "page", "fraud/freshness", "fraud")
    firing(out, series, {"119m": set(), "132m": {fast, slow, ticket}, "138m": {fast, slow, ticket, stale}})


# What cannot be rendered


def test_without_a_promise_there_is_nothing_to_render(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="a promise is wanted, none is made"):
        render(Monitoring(slos=Slos(models={"echo": None})), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SettingsError, match="settings file with `slo`"):
        run(["deploy", "monitoring", "--out", str(tmp_path / "out")])
    slo = "slo: {latency_p99: 100ms}\n"
    for more, text, why in (
        ("", "", "queue.model: wanted"),
        ("", "model: m, ", "queue.metrics_port: wanted"),
        (slo, "model: m, ", "queue.metrics_port: wanted"),
    ):
        (tmp_path / "queue.yaml").write_text(f"repository: models\n{more}queue: {{{text}slo: {{freshness: 1s}}}}\n")
        with pytest.raises(SettingsError, match=why):
            run(["deploy", "monitoring", "--spec", str(tmp_path / "queue.yaml"), "--out", str(tmp_path / "out")])
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot write into"):
        render(Monitoring(slos=Slos(default=Slo(latency=0.1))), tmp_path / "file")


def test_under_tls_the_admin_ports_are_scraped_by_it_and_a_queues_runs_are_not(tmp_path: Path) -> None:
    wanted = Monitoring(slos=Slos(default=Slo(latency=0.1)), targets=("a:8082", "a:9100"), tls=True, queue_port=9100)
    render(wanted, tmp_path)
    (tmp_path / "ca.crt").write_text("")
    promtool("check", "config", SCRAPE, folder=tmp_path)
    [job] = yaml.safe_load((tmp_path / SCRAPE).read_text())["scrape_configs"]
    assert job["scheme"] == "https"
    assert job["static_configs"] == [
        {"targets": ["a:8082"]}, {"targets": ["a:9100"], "labels": {"__scheme__": "http"}},
    ]  # fmt: skip


def test_the_spec_is_the_one_that_serve_reads(tmp_path: Path) -> None:
    path = tmp_path / "octoserve.yaml"
    path.write_text(SPEC + "admin_port: 9999\n")
    assert spec.load({}, {}, path).slos().any()
    with pytest.raises(SystemExit):
        run(["deploy", "monitoring", "--spec", str(path), "--out", str(tmp_path / "out")])
    config = yaml.safe_load((tmp_path / "out" / SCRAPE).read_text())
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": ["127.0.0.1:9999"]}]
