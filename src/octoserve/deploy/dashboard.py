"""The Grafana dashboard over octoserve's metrics: promises first, then what is asked, then the service. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
_HEIGHT = 8


def dashboard(
    job: str, windows: Sequence[str], *, drift: bool = False, log: bool = False, queue: bool = False
) -> dict[str, Any]:
    """The dashboard's model, as Grafana imports it. `windows`: of the promises, `30d`; the first is shown.

    drift, log, queue: whether there is drift, a prediction log, a queue to look at
    """
    job = job.replace("\\", "\\\\").replace('"', '\\"')
    mine = f'job="{job}"'
    of_model = f'{mine},model=~"$model"'
    rows = [
        ("Promises", _promises(mine, of_model)),
        ("Requests", _requests(of_model)),
        *([("Queue", _queue(mine, of_model))] if queue else []),
        *([("Drift", _drift(of_model))] if drift else []),
        *([("Prediction log", _log(of_model))] if log else []),
        ("Service", _service(mine, of_model)),
    ]
    return {
        "title": "octoserve", "uid": "octoserve", "tags": ["octoserve"], "schemaVersion": 39, "version": 1,
        "editable": True, "refresh": "30s", "time": {"from": "now-6h", "to": "now"}, "timezone": "",
        "templating": {"list": _variables(mine, windows)},
        "annotations": {"list": []},
        "panels": _placed(rows),
    }  # fmt: skip


def _variables(mine: str, windows: Sequence[str]) -> list[dict[str, Any]]:
    models = f"label_values(octoserve_request_seconds_count{{{mine}}}, model)"
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "model", "label": "Model", "type": "query", "datasource": _SOURCE, "definition": models,
            "query": {"query": models, "refId": "models"}, "refresh": 2, "multi": True, "includeAll": True,
            "allValue": ".+", "current": {"text": "All", "value": "$__all"}, "sort": 1,
        },
        {
            "name": "window", "label": "Window", "type": "custom", "query": ",".join(windows),
            "current": {"text": windows[0], "value": windows[0]},
            "options": [{"text": w, "value": w, "selected": w == windows[0]} for w in windows],
        },
    ]  # fmt: skip


def _promises(mine: str, of_model: str) -> list[dict[str, Any]]:
    by = "by (model, objective)"
    bad, good = (f"sum {by} (increase(octoserve_slo_{k}_total{{{of_model}}}[$window]))" for k in ("bad", "good"))
    allowed = f"(1 - max {by} (octoserve_slo_target{{{of_model}}}))"
    budget = f"1 - {bad} / ({bad} + {good}) / {allowed}"
    burns = [
        (f'octoserve:slo_bad:ratio_rate{w}{{model=~"$model"}} / {allowed}', f"{{{{model}}}} {{{{objective}}}} {w}")
        for w in ("5m", "1h", "6h", "3d")
    ]
    left = _panel("stat", "Budget left of the window", [(budget, "{{model}} {{objective}}")], "percentunit", 8)
    left["fieldConfig"]["defaults"]["thresholds"] = _steps(("red", None), ("orange", 0.0), ("green", 0.25))
    rate = _panel("timeseries", "Burn rate (1 lasts the window)", burns, "none", 16)
    rate["fieldConfig"]["defaults"]["thresholds"] = _steps(("green", None), ("orange", 1.0), ("red", 14.4))
    rate["fieldConfig"]["defaults"]["custom"] = {"thresholdsStyle": {"mode": "line"}}
    return [left, rate]


def _requests(of_model: str) -> list[dict[str, Any]]:
    latency = f'octoserve_request_seconds_bucket{{{of_model},outcome="ok"}}'
    quantiles = [(_quantile(q, latency), f"{{{{model}}}} p{q * 100:g}") for q in (0.5, 0.99)]
    promised = f"max by (model) (octoserve_slo_latency_seconds{{{of_model}}})", "{{model}} promised p99"
    counts = f"octoserve_request_seconds_count{{{of_model}}}"
    of_version = f'octoserve_request_seconds_count{{{of_model},version!=""}}'
    rows = " / ".join(_rate("model", f"octoserve_batch_rows_{of}{{{of_model}}}") for of in ("sum", "count"))
    waits = [
        (_quantile(0.99, f"octoserve_{what}_seconds_bucket{{{of_model}}}"), f"{{{{model}}}} {what}")
        for what in ("queue", "run")
    ]
    pending = f"sum by (model) (octoserve_pending_requests{{{of_model}}})"
    by_outcome = [(_rate("model, outcome", counts), "{{model}} {{outcome}}")]
    by_version = [(_rate("model, version", of_version), "{{model}} v{{version}}")]
    return [
        _panel("timeseries", "Requests a second by outcome", by_outcome, "reqps", 8),
        _panel("timeseries", "Latency of answers", [*quantiles, promised], "s", 8),
        _panel("timeseries", "Requests a second by version", by_version, "reqps", 8),
        _panel("timeseries", "Waiting for a run, and running (p99)", waits, "s", 8),
        _panel("timeseries", "Rows a run", [(rows, "{{model}}")], "none", 8),
        _panel("timeseries", "Waiting or running", [(pending, "{{model}}")], "none", 8),
    ]


def _queue(mine: str, of_model: str) -> list[dict[str, Any]]:
    outcomes = [(_rate("model, outcome", f"octoserve_queue_messages_total{{{of_model}}}"), "{{model}} {{outcome}}")]
    lag = [(f"sum by (job) (octoserve_queue_lag{{{mine}}})", "waiting")]
    oldest = [(f"max by (job) (octoserve_queue_oldest_seconds{{{mine}}})", "oldest message")]
    latency = f"octoserve_queue_latency_seconds_bucket{{{of_model}}}"
    latencies = [(_quantile(q, latency), f"{{{{model}}}} p{q * 100:g}") for q in (0.5, 0.99)]
    return [
        _panel("timeseries", "Messages a second by outcome", outcomes, "none", 6),
        _panel("timeseries", "Messages that wait", lag, "none", 6),
        _panel("timeseries", "Age of the oldest message", oldest, "s", 6),
        _panel("timeseries", "From publication to the sink", latencies, "s", 6),
    ]


def _drift(of_model: str) -> list[dict[str, Any]]:
    by = "by (model, version, feature)"
    psi, chance = (f"max {by} (octoserve_drift_psi{which}{{{of_model}}})" for which in ("", "_chance"))
    legend = "{{model}} v{{version}} {{feature}}"
    rows = f"max by (model, version) (octoserve_drift_rows{{{of_model}}})"
    # Replicas measure what each of them got, as in the alert: the one that sees most of it counts.
    return [
        _panel("timeseries", "PSI, the ten that moved most", [(f"topk(10, {psi})", legend)], "none", 12),
        _panel(
            "timeseries",
            "PSI that chance alone gives, at most",
            [(f"max by (model, version) ({chance})", "{{model}} v{{version}}")],
            "none",
            6,
        ),
        _panel("timeseries", "Rows that this is measured over", [(rows, "{{model}} v{{version}}")], "none", 6),
    ]


def _log(of_model: str) -> list[dict[str, Any]]:
    what = [(_rate("model, what", f"octoserve_prediction_log_total{{{of_model}}}"), "{{model}} {{what}}")]
    spool = [(f"sum by (model) (octoserve_prediction_log_spool_bytes{{{of_model}}})", "{{model}}")]
    return [
        _panel("timeseries", "Requests a second that are drawn, and what came of them", what, "reqps", 12),
        _panel("timeseries", "Waiting for the store", spool, "bytes", 12),
    ]


def _rate(by: str, series: str) -> str:
    return f"sum by ({by}) (rate({series}[$__rate_interval]))"


def _quantile(q: float, buckets: str) -> str:
    return f"histogram_quantile({q}, {_rate('model, le', buckets)})"


def _service(mine: str, of_model: str) -> list[dict[str, Any]]:
    workers = [(f"octoserve_workers{{{mine}}}", "{{instance}}")]
    replaced = [(f"increase(octoserve_worker_restarts_total{{{mine}}}[15m])", "{{instance}}")]
    versions = [(f"max by (model, version, state) (octoserve_version_state{{{of_model}}} == 1)", "")]
    connections = [
        (f"sum by (door) (octoserve_connections{{{mine}}})", "{{door}} open"),
        (_rate("door, reason", f"octoserve_cut_total{{{mine}}}"), "{{door}} cut: {{reason}}"),
    ]
    return [
        _panel("stat", "Workers that serve", workers, "none", 6),
        _panel("timeseries", "Workers replaced in 15 minutes", replaced, "none", 6),
        _panel("table", "Versions", versions, "none", 6),
        _panel("timeseries", "Connections, and what was cut", connections, "none", 6),
    ]


def _panel(kind: str, title: str, queries: Sequence[tuple[str, str]], unit: str, width: int) -> dict[str, Any]:
    table = kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": query, "legendFormat": legend or "__auto",
            "editorMode": "code", "range": not table, "instant": table, "format": "table" if table else "time_series",
        }
        for place, (query, legend) in enumerate(queries)
    ]  # fmt: skip
    return {
        "type": kind, "title": title, "datasource": _SOURCE, "targets": targets,
        "gridPos": {"h": _HEIGHT, "w": width, "x": 0, "y": 0},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []}, "options": {},
    }  # fmt: skip


def _steps(*steps: tuple[str, float | None]) -> dict[str, Any]:
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in steps]}


def _placed(rows: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Panels from left to right, each row under a heading."""
    placed: list[dict[str, Any]] = []
    y = 0
    for title, panels in rows:
        head = {"type": "row", "title": title, "collapsed": False, "panels": []}
        placed.append({**head, "gridPos": {"h": 1, "w": _COLUMNS, "x": 0, "y": y}})
        y += 1
        x = 0
        for panel in panels:
            place = panel["gridPos"]
            if x + place["w"] > _COLUMNS:
                x, y = 0, y + _HEIGHT
            place["x"], place["y"] = x, y
            x += place["w"]
            placed.append(panel)
        y += _HEIGHT
    return [{"id": number, **panel} for number, panel in enumerate(placed, 1)]
