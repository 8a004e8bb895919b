"""What a Prometheus and a Grafana need to watch SLOs, drift and the prediction log. Nothing is sent.

The alerts are those of "The Site Reliability Workbook", chapter 5 (several windows, several burn rates), over recorded
shares of bad requests. They go by the counters alone: a supervisor that restarts forgets its burn rates, a Prometheus
does not forget the counters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from octoserve.core.errors import SettingsError
from octoserve.core.observation import Observations
from octoserve.core.slo import DAY, FRESHNESS, LATENCY, WINDOWS, BurnAlert, Slo, Slos, alerts
from octoserve.deploy.dashboard import dashboard

RULES, SCRAPE, DASHBOARD, README = "octoserve-rules.yml", "prometheus.yml", "octoserve-dashboard.json", "README.md"
_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$])")
_DOCS = "docs/slo.md"


class Monitoring(msgspec.Struct, frozen=True, kw_only=True):
    """job: the label that Prometheus gives to what it scrapes; targets: host:port of each replica's admin port, and of
    the metrics of the queue's runs; queue: whose model scores a queue, and what that promises."""

    slos: Slos = Slos()
    observations: Observations = Observations()
    queue: tuple[str, Slo] | None = None
    job: str = "octoserve"
    targets: tuple[str, ...] = ("127.0.0.1:8082",)
    tls: bool = False
    """Whether the admin ports speak TLS."""
    queue_port: int | None = None
    """Of the queue's runs' metrics, which are plain HTTP whatever the admin ports speak."""


def render(wanted: Monitoring, out: Path) -> list[Path]:
    """Write the files; their paths. Raises SettingsError where nothing is promised, or nothing can be written."""
    import yaml

    if not wanted.slos.any() and not wanted.observations.any() and wanted.queue is None:
        raise SettingsError(
            "slo: a promise is wanted, none is made; write for example "
            "`slo: {latency_p99: 100ms, availability: 99.9%}`, or `drift: true`, into the spec and name it with --spec"
        )
    texts = {
        RULES: yaml.safe_dump(rules(wanted), sort_keys=False, allow_unicode=True, width=1000),
        SCRAPE: yaml.safe_dump(_scrape(wanted), sort_keys=False, width=1000),
        DASHBOARD: json.dumps(_dashboard(wanted), indent=1) + "\n",
        README: _readme(wanted),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (out / name).write_text(text)
    except OSError as error:
        raise SettingsError(f"out: cannot write into {out}: {error.strerror}; name another folder with --out") from None
    return [out / name for name in texts]


def _dashboard(wanted: Monitoring) -> dict[str, Any]:
    seen = wanted.observations
    shown = {"drift": seen.any_drift(), "log": seen.any_log(), "queue": wanted.queue is not None}
    return dashboard(wanted.job, _windows(wanted), **shown)


def rules(wanted: Monitoring) -> dict[str, Any]:
    """The rules file."""
    scopes = list(_scopes(wanted.slos))
    service = _service(wanted.job)
    if wanted.queue is not None:
        model, slo = wanted.queue
        scopes.append((model, f'model="{_quoted(model)}"', slo))
        service.append(_stale(model, slo, wanted.job))
    burning = [_alert(whose, where, slo, *alert) for whose, where, slo in scopes for alert in _alerts_of(slo)]
    return {
        "groups": [
            {"name": "octoserve-slo-shares", "interval": "30s", "rules": [_share(w, wanted.job) for w in WINDOWS]},
            {"name": "octoserve-slo", "interval": "30s", "rules": burning},
            {"name": "octoserve-service", "interval": "30s", "rules": service},
            {"name": "octoserve-drift", "interval": "30s", "rules": list(_observed(wanted))},
        ]
    }


def recorded(window: str) -> str:
    """Name of the recorded share of bad requests, by model and objective."""
    return f"octoserve:slo_bad:ratio_rate{window}"


def _share(window: str, job: str) -> dict[str, str]:
    bad, good = (
        f'sum by (model, objective) (rate(octoserve_slo_{kind}_total{{job="{_quoted(job)}"}}[{window}]))'
        for kind in ("bad", "good")
    )
    return {"record": recorded(window), "expr": f"{bad} / ({bad} + {good})"}


def _scopes(slos: Slos) -> Iterator[tuple[str, str, Slo]]:
    """Whose promise it is, the matcher of these models, and the promise."""
    for model, slo in slos.models.items():
        if slo is not None:
            yield model, f'model="{_quoted(model)}"', slo
    if slos.default is not None:
        yield "*", _others(slos.models), slos.default


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _plain(text: str) -> str:
    """As it is, for a text that Prometheus takes for a template."""
    return text.replace("{{", '{{ "{{" }}')


def _alerts_of(slo: Slo) -> Iterator[tuple[str, float, BurnAlert]]:
    for objective, target in slo.objectives().items():
        for alert in alerts(slo.window, target):
            yield objective, target, alert


def _alert(whose: str, where: str, slo: Slo, objective: str, target: float, alert: BurnAlert) -> dict[str, Any]:
    matched = f'{{{where},objective="{objective}"}}'
    limit = f"{alert.factor:g} * {1 - target:.6g}"
    long, short = (f"{recorded(window)}{matched} > {limit}" for window in (alert.long, alert.short))
    days = f"{slo.window / DAY:g} days"
    gone = f"{slo.window / DAY / alert.factor:.2g} days"
    what = "messages" if objective == FRESHNESS else "requests"
    promised = f"{target * 100:.6g} % answered"
    if objective == LATENCY:
        promised = f"99 % of the answers within {slo.latency:g} s"
    elif objective == FRESHNESS:
        promised = f"99 % of the messages scored within {slo.freshness:g} s of their publication"
    return {
        "alert": f"OctoserveBudgetBurns{alert.name.title()}",
        "expr": f"{long} and {short}",
        "labels": {"severity": alert.severity, "promise": f"{_plain(whose)}/{objective}"},
        "annotations": {
            "summary": f"{{{{ $labels.model }}}}: at this rate the {objective} budget of {days} is gone in {gone}",
            "description": (
                f"Promised over {days}: {promised}. In the last {alert.long} {{{{ $value | humanizePercentage }}}} of "
                f"the {what} were bad, and in the last {alert.short} more than {alert.factor:g} times what may be."
            ),
            "runbook": _DOCS,
        },
    }


def _service(job: str) -> list[dict[str, Any]]:
    mine = f'{{job="{_quoted(job)}"}}'
    return [
        {
            "alert": "OctoserveDown",
            "expr": f"up{mine} == 0 or absent(up{mine})",
            "for": "2m",
            "labels": {"severity": "page"},
            "annotations": {"summary": "octoserve cannot be scraped: requests that nobody sees break no promise here"},
        },
        {
            "alert": "OctoserveNoWorkers",
            "expr": f"octoserve_workers{mine} == 0",
            "for": "1m",
            "labels": {"severity": "page"},
            "annotations": {"summary": "{{ $labels.instance }} has no worker that serves"},
        },
        {
            "alert": "OctoserveWorkersDie",
            "expr": f"increase(octoserve_worker_restarts_total{mine}[15m]) > 2",
            "labels": {"severity": "ticket"},
            "annotations": {"summary": "{{ $labels.instance }} has replaced several workers within 15 minutes"},
        },
        {
            "alert": "OctoserveSecurityStale",
            "expr": f"max by (instance, what) (octoserve_security_stale{mine}) > 0",
            "for": "5m",
            "labels": {"severity": "ticket"},
            "annotations": {
                "summary": "{{ $labels.instance }}: {{ $labels.what }} cannot be read; what was in force still is",
                "runbook": "docs/security.md",
            },
        },
        {
            "alert": "OctoserveRepositoryAway",
            "expr": f"octoserve_repository_age_seconds{mine} > 900 or octoserve_repository_missing_versions{mine} > 0",
            "for": "10m",
            "labels": {"severity": "ticket"},
            "annotations": {
                "summary": "{{ $labels.instance }} serves its copies: the repository is silent, or lacks a version",
                "runbook": "docs/model-repository.md#in-an-object-store",
            },
        },
    ]


def _stale(model: str, slo: Slo, job: str) -> dict[str, Any]:
    """A queue that nobody works on counts nothing: its oldest message tells."""
    return {
        "alert": "OctoserveQueueStale",
        "expr": f'max by (job) (octoserve_queue_oldest_seconds{{job="{_quoted(job)}"}}) > {slo.freshness:g}',
        "for": "5m",
        "labels": {"severity": "page", "promise": f"{_plain(model)}/{FRESHNESS}", "model": _plain(model)},
        "annotations": {
            "summary": f"{_plain(model)}: a message waits longer than the {slo.freshness:g} s that are promised",
            "runbook": f"{_DOCS}#freshness-of-a-queue",
        },
    }


def _observed(wanted: Monitoring) -> Iterator[dict[str, Any]]:
    observations, job = wanted.observations, f'job="{_quoted(wanted.job)}"'
    own = {model: observed.drift for model, observed in observations.models.items()}
    scopes = [(f'model="{_quoted(model)}"', drift) for model, drift in own.items()]
    scopes.append((_others(own), observations.default.drift))
    for where, drift in scopes:
        if drift is None:
            continue
        yield {
            "alert": "OctoserveDrift",
            # Replicas measure what each of them got: the one that sees most of it counts.
            "expr": f"max by (model, version, feature) (octoserve_drift_psi{{{job},{where}}} > {drift.alert:g} "
            f"and octoserve_drift_psi{{{job},{where}}} > octoserve_drift_psi_chance{{{job},{where}}})",
            "for": "15m",
            "labels": {"severity": "ticket"},
            "annotations": {
                "summary": "{{ $labels.model }} version {{ $labels.version }}: {{ $labels.feature }} has moved",
                "description": "PSI against the version's profile is {{ $value | humanize }}, more than "
                f"{drift.alert:g}. octoserve drift report {{{{ $labels.model }}}} says from where to where.",
                "runbook": "docs/drift.md",
            },
        }
    if observations.any_log():
        yield {
            "alert": "OctoservePredictionLogDrops",
            "expr": "sum by (model, what) (increase("
            f'octoserve_prediction_log_total{{{job},what=~"dropped_.+",what!="dropped_closed"}}[15m])) > 0',
            "for": "5m",
            "labels": {"severity": "ticket"},
            "annotations": {
                "summary": "{{ $labels.model }}: the prediction log has gaps, {{ $labels.what }}",
                "runbook": "docs/prediction-log.md",
            },
        }


def _others(models: Iterable[str]) -> str:
    """The matcher of all models but these."""
    own = "|".join(_SPECIAL.sub(r"\\\1", model) for model in models)
    return f'model!~"{_quoted(own)}"' if own else 'model!=""'


def _windows(wanted: Monitoring) -> list[str]:
    """Windows of all promises in days, as PromQL writes them."""
    made = [wanted.slos.default, *wanted.slos.models.values(), *(wanted.queue or ())[1:]]
    days = {f"{round(slo.window / DAY)}d" for slo in made if slo is not None} or {f"{round(Slo().window / DAY)}d"}
    return sorted(days, key=lambda each: -int(each[:-1]))


def _scrape(wanted: Monitoring) -> dict[str, Any]:
    plain = [each for each in wanted.targets if wanted.tls and each.endswith(f":{wanted.queue_port}")]
    groups: list[dict[str, Any]] = [{"targets": [each for each in wanted.targets if each not in plain]}]
    if plain:
        groups = [
            *(group for group in groups if group["targets"]),
            {"targets": plain, "labels": {"__scheme__": "http"}},
        ]
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "30s"},
        "rule_files": [RULES],
        "scrape_configs": [
            {
                "job_name": wanted.job,
                **({"scheme": "https", "tls_config": {"ca_file": "ca.crt"}} if wanted.tls else {}),
                "static_configs": groups,
            }
        ],
    }


def _readme(wanted: Monitoring) -> str:
    return f"""# Watching octoserve

Rendered from the `slo`, `drift` and `prediction_log` sections of the spec; render again when they change.

- `{RULES}`: recording rules and alerts. `promtool check rules {RULES}`; put it under `rule_files` of Prometheus.
- `{SCRAPE}`: a Prometheus configuration with nothing else in it. `promtool check config {SCRAPE}`. In one of your own
  the scraped job has to be called `{wanted.job}` (`octoserve deploy monitoring --job NAME` for another). With
  `protect_metrics` it needs `authorization: {{credentials_file: ...}}` with the admin token.
- `{DASHBOARD}`: a Grafana dashboard; Dashboards, New, Import. It asks for a Prometheus as data source.

Severities are `page` (somebody gets up) and `ticket` (somebody looks this week); route them in Alertmanager.
"""
