"""`rollout:` of octoserve.yaml: how a new version meets production."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from octoserve.spec.backend import BackendSection
from octoserve.spec.values import Duration, Ratio, Section, Share, not_a_credential, off

SMALLEST = 0.0001
"""Shares are whole numbers of 10,000 buckets."""

_KEY = re.compile(r"(header|input|column|parameter):.+|message:key")
_QUANTILE = re.compile(r"p\d{1,2}(\.\d+)?")
_ADDRESS = re.compile(r"(sqlite|postgres|postgresql|http|https)://.+")
_TAKEN = re.compile(r"error_rate|disagreement|sample_ratio|latency_.*")


def _check_key(value: str) -> str:
    if value and not _KEY.fullmatch(value):
        raise ValueError("header:NAME, input:NAME, column:NAME, parameter:NAME or message:key")
    return not_a_credential(value)


def _check_address(value: str) -> str:
    if not _ADDRESS.fullmatch(value):
        raise ValueError("sqlite:///path, postgresql://user@host/database or http://host:port of a Prometheus")
    return value


def _check_quantile(value: str) -> str:
    if not _QUANTILE.fullmatch(value) or float(value[1:]) <= 0:
        raise ValueError("a quantile such as p50, p99 or p99.9")
    return value


def _check_metric_name(value: str) -> str:
    if not value or _TAKEN.fullmatch(value):
        raise ValueError("a name that no other check has")
    return value


def _check_weight(value: float) -> float:
    if value < SMALLEST:
        raise ValueError("a share from 0.01% to 100%")
    return value


def _step(value: Any) -> Any:
    return value if isinstance(value, dict | StepSection) else {"weight": value}


KeyExpression = Annotated[str, AfterValidator(_check_key)]
Address = Annotated[str, AfterValidator(_check_address)]
Quantile = Annotated[str, AfterValidator(_check_quantile)]
Weight = Annotated[Share, AfterValidator(_check_weight)]
Count = Annotated[int, Field(ge=0)]


class StepSection(Section):
    """One step of a canary. `5%` alone is `{weight: 5%}`."""

    weight: Weight
    """The candidate's share of the traffic, up to 100%."""
    samples: Count | None = None
    """Answered requests of the candidate that the checks want to see; unset: `min_samples`."""
    pause: Duration = 0.0
    """How long the step lasts at least, from when every worker follows it."""
    approval: bool = False
    """Whether a person must say yes (`octoserve rollout approve`) before the next step."""
    analysis: bool | None = None
    """Whether the checks must pass before the next step; unset: yes, but at 100%, where nobody is left to compare
    with. A check that fails aborts in every step."""

    @field_validator("analysis")
    @classmethod
    def _nobody_at_all(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("weight") == 1.0:
            raise ValueError("false (at 100% no stable version is left to compare with)")
        return value


class RateSection(Section):
    """Failed requests."""

    margin: Share = 0.01
    """By how much the candidate's share may exceed the stable version's: 1% is one percentage point."""


class LatencySection(Section):
    """One quantile of the latency."""

    ratio: Ratio = 0.25
    """How much longer the candidate may take, as a part of the baseline's."""
    seconds: Duration = 0.0
    """What it may take on top; keeps a model of half a millisecond from failing on noise."""


class DisagreementSection(Section):
    """Predictions that differ on the same inputs; judged where traffic is mirrored."""

    margin: Share = 0.02
    """By how much the share of differing pairs may exceed the stable version's difference to itself."""


class MetricSection(Section):
    """A number of the business, or a label that comes late."""

    name: Annotated[str, AfterValidator(_check_metric_name)]
    """How verdicts call it."""
    provider: str
    """One of `providers`."""
    queries: dict[str, str]
    """`{rows: SQL}`, or of Prometheus `{n, total, squares, newest}`. See docs/metric-providers.md."""
    kind: Literal["rate", "mean"] = "rate"
    """rate: so many successes of n. mean: a sum and a sum of squares over n."""
    better: Literal["higher", "lower"] = "higher"
    """Which direction is good."""
    margin: Ratio = 0.0
    """How much worse the candidate may be, in the metric's unit; 1% of a rate is one percentage point."""
    delayed: bool = False
    """Its labels come when the step is over: it keeps the old version ready after promotion; a late FAIL rolls back."""
    max_age: Duration = 300.0
    """Older data counts as none; 0 for no limit."""


_LATENCIES = {"p99": LatencySection(ratio=0.25, seconds=0.005)}


class AnalysisSection(Section):
    """What a candidate is judged by. `false` switches a check off."""

    error_rate: Annotated[RateSection | None, BeforeValidator(off)] = RateSection()
    """Failed requests."""
    latency: dict[Quantile, LatencySection] = _LATENCIES
    """Quantiles of the latency, by name: p50, p99, p99.9; `{}` for none."""
    disagreement: Annotated[DisagreementSection | None, BeforeValidator(off)] = DisagreementSection()
    """Predictions that differ; needs mirrored traffic."""
    metrics: list[MetricSection] = Field(default_factory=list)
    """Numbers of the business."""

    @field_validator("metrics")
    @classmethod
    def _once_each(cls, value: list[MetricSection]) -> list[MetricSection]:
        if len({metric.name for metric in value}) < len(value):
            raise ValueError("metrics with a name of their own each")
        return value


class BreakerSection(Section):
    """When a worker cuts a candidate off by itself, at once."""

    window: Annotated[int, Field(ge=1, le=10_000)] = 20
    """So many of the candidate's last attempts are looked at."""
    failures: Annotated[int, Field(ge=1, le=10_000)] = 10
    """With so many failed among them it is cut off, unless the stable version fails likewise."""


_CANARY = [StepSection(weight=0.01), StepSection(weight=0.05), StepSection(weight=0.25), StepSection(weight=0.5)]


class RolloutSection(Section):
    """How new versions meet production. A strategy takes the fields that it knows and leaves the others alone."""

    on_new_version: Literal["switch", "rollout", "hold"] = "switch"
    """What a version does that appears in the repository: switch at once, start this rollout, or wait for somebody."""
    strategy: Literal["blue-green", "canary", "shadow"] = "canary"
    """What a rollout is, unless `octoserve rollout start --strategy` says otherwise."""

    backend: BackendSection = BackendSection()
    """Who carries out the shares: the workers (in-process), an Envoy in front of them, a mesh."""

    key: KeyExpression = ""
    """What a request's version goes by, so that a customer stays with one: header:NAME, input:NAME, column:NAME,
    parameter:NAME, message:key; empty: each request draws anew."""
    segments: list[KeyExpression] = Field(default_factory=list)
    """By what evidence is counted apart (`header:x-country`), so that a broken segment shows."""
    overrides: dict[str, Literal["stable", "candidate"] | Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Key -> stable, candidate or a version: what testers see, whatever the shares."""

    steps: list[Annotated[StepSection, BeforeValidator(_step)]] = _CANARY
    """canary: shares of traffic, growing. After the last one everything is switched."""
    baseline: bool = True
    """canary: whether the candidate is compared with an arm of its own size, on equal footing."""

    mirror: Share | None = None
    """Share of answered requests that are copied to the candidate; unset: 10% in a shadow, none in a canary."""
    noise: Share = 0.1
    """Share of the copies that the stable version answers once more: how much it differs from itself."""
    pairs: Annotated[int, Field(ge=1)] = 1000
    """shadow: pairs of answers to compare before it may end."""
    promote: bool = False
    """shadow: whether to switch at the end. If not, nothing changes but what is known."""

    approval: bool = False
    """blue-green, shadow: whether a person must say yes before the switch. A canary's steps have their own."""
    golden: bool = True
    """Whether the version's golden samples must pass before it gets traffic, where it has any."""
    replay: Count = 0
    """How many recorded requests it must answer before it gets traffic."""
    retain: Duration = 600.0
    """How long the old version stays ready after the switch; rollback is immediate meanwhile."""
    deadline: Duration = 3600.0
    """How long a step may take, pauses and approvals included; 0 for no limit."""
    on_deadline: Literal["abort", "pause"] = "abort"
    """What becomes of a step that takes longer. It never goes on."""

    alpha: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """Risk that a candidate which is as good is called worse, however often one looks."""
    min_samples: Annotated[int, Field(ge=1)] = 50
    """Fewer are no data."""
    tolerance: dict[str, dict[str, float]] = Field(default_factory=dict)
    """When answers count as equal, by output, "" for all others: {absolute, relative}, {overlap} or {ignore: 1}."""
    providers: dict[str, Address] = Field(default_factory=dict)
    """Where metrics come from: name -> sqlite:///path, postgresql://..., http://... of a Prometheus."""
    analysis: AnalysisSection = AnalysisSection()
    """What the candidate is judged by."""
    breaker: BreakerSection = BreakerSection()
    """When a worker cuts the candidate off by itself."""

    @field_validator("steps")
    @classmethod
    def _growing(cls, value: list[StepSection]) -> list[StepSection]:
        weights = [step.weight for step in value]
        if not value or any(b - a < SMALLEST / 2 for a, b in pairwise(weights)):
            raise ValueError("one step at least, and shares that grow from step to step")
        return value

    @field_validator("tolerance")
    @classmethod
    def _meant(cls, value: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        if value:
            from octoserve.core.comparison import Comparison
            from octoserve.core.errors import SettingsError

            try:
                Comparison(value)
            except SettingsError as error:
                raise ValueError(f"what can be meant ({error})") from None
        return value

    @field_validator("analysis")
    @classmethod
    def _provided(cls, value: AnalysisSection, info: ValidationInfo) -> AnalysisSection:
        known = info.data.get("providers", {})
        unknown = [metric for metric in value.metrics if metric.provider not in known]
        if unknown and "providers" in info.data:
            name = unknown[0].provider
            raise ValueError(f"for every metric a provider that `providers` names ({name!r} is none)")
        return value
