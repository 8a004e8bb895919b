"""`rollout:` of octoserve.yaml: what it says, what it refuses, and the courses that strategies make of it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve import spec
from octoserve.app import strategies
from octoserve.control.rollout.machine import start
from octoserve.control.rollout.values import Course, LatencyCheck, MetricCheck, PredictionCheck, RateCheck, Step
from octoserve.core.errors import SettingsError
from octoserve.patterns import blue_green, canary
from octoserve.patterns.online.supervisor.supervisor import fingerprint_of
from octoserve.patterns.shadow import course as shadow
from octoserve.routing.key import parse_key
from octoserve.spec import RolloutSection
from octoserve.spec.values import parse_ratio, parse_share

FULL = """
rollout:
  on_new_version: rollout
  strategy: canary
  key: header:x-customer
  segments: [header:x-country]
  overrides: {ann: candidate, bob: 3}
  steps:
    - 1%
    - {weight: 10%, samples: 500, pause: 5m, approval: true}
    - 0.5
    - {weight: 100%}
  mirror: 20%
  noise: 5%
  golden: false
  replay: 100
  retain: 1h
  deadline: 0
  on_deadline: pause
  alpha: 0.01
  min_samples: 100
  tolerance: {score: {absolute: 0.001}}
  providers: {db: "sqlite:///labels.db"}
  analysis:
    error_rate: {margin: 0.5%}
    latency: {p50: {ratio: 10%}, p99.9: {ratio: 200%, seconds: 5ms}}
    metrics:
      - {name: refunds, provider: db, queries: {rows: select 1}, better: lower, margin: 1%, delayed: true}
  breaker: {window: 50, failures: 25}
"""


def load(tmp_path, text):
    path = tmp_path / "octoserve.yaml"
    path.write_text("repository: r\n" + text)
    return spec.load({}, {}, path)


def section(**fields):
    return RolloutSection.model_validate(fields)


def test_everything_written(tmp_path):
    course = canary.course(load(tmp_path, FULL).rollout)
    assert course.steps == (
        Step(weight=100, mirror=2000, noise=500, samples=100),
        Step(weight=1000, mirror=2000, noise=500, samples=500, pause=300, approval=True),
        Step(weight=5000, mirror=2000, noise=500, samples=100),
        Step(weight=10_000, samples=100, analysis=False),
    )
    metric = MetricCheck(
        name="refunds", provider="db", queries={"rows": "select 1"}, better="lower", margin=0.01, delayed=True
    )
    assert course.checks == (
        RateCheck(margin=0.005),
        LatencyCheck(name="latency_p50", quantile=0.5, ratio=0.1),
        LatencyCheck(name="latency_p99.9", quantile=pytest.approx(0.999), ratio=2.0, seconds=0.005),
        PredictionCheck(),
        metric,
    )
    plain = (course.key, course.segments, course.overrides, course.golden, course.replay, course.retain)
    assert plain == ("header:x-customer", ("header:x-country",), {"ann": "candidate", "bob": 3}, False, 100, 3600)
    assert (course.deadline, course.on_deadline, course.alpha, course.min_samples) == (0, "pause", 0.01, 100)
    assert course.tolerance == {"score": {"absolute": 0.001}}
    assert msgspec.json.decode(msgspec.json.encode(course), type=Course) == course
    parse_key(course.key)
    start("fraud", 2, 3, course, "r1", 0.0)


def test_defaults(tmp_path):
    rollout = load(tmp_path, "").rollout
    assert (rollout.on_new_version, rollout.strategy) == ("switch", "canary")
    course = canary.course(rollout)
    assert [step.weight for step in course.steps] == [100, 500, 2500, 5000]
    assert all(step.analysis and step.samples == 50 and not step.mirror for step in course.steps)
    assert {check.name for check in course.checks} == {"error_rate", "latency_p99"}

    quiet = blue_green.course(rollout)
    assert (quiet.steps, quiet.checks, quiet.golden, quiet.promotes) == ((Step(analysis=False),), (), True, True)

    watched = shadow.course(rollout)
    assert watched.steps == (Step(mirror=1000, noise=1000, samples=1000),)
    assert {check.name for check in watched.checks} == {"error_rate", "disagreement"}
    assert watched.promotes is False


def test_each_strategy_is_named_as_the_spec_names_it():
    for name, make in strategies().items():
        made = section(strategy=name)
        assert make(made).strategy == made.strategy


def test_shadow_and_blue_green_with_approval():
    asked = section(approval=True, promote=True, mirror="50%", noise=0, pairs=20)
    assert blue_green.course(asked).steps == (Step(approval=True, analysis=False),)
    assert shadow.course(asked).steps == (Step(mirror=5000, samples=20, approval=True),)
    assert shadow.course(asked).promotes is True


def test_a_models_own_section_is_taken_whole(tmp_path):
    models = "models: {fraud: {rollout: {on_new_version: hold}}, echo: {threads: 2}}"
    settings = load(tmp_path, f"rollout: {{strategy: shadow, retain: 1h}}\n{models}")
    own = settings.models["fraud"].rollout
    assert own is not None
    assert (own.on_new_version, own.strategy, own.retain) == ("hold", "canary", 600)
    assert settings.models["echo"].rollout is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rollout: {stratagy: canary}", "rollout.stratagy: unknown field; did you mean 'strategy'?"),
        ("rollout: {steps: [{wieght: 5%}]}", "rollout.steps.0.wieght: unknown field; did you mean 'weight'?"),
        ("rollout: {analysis: {latency: {p99: {rato: 1%}}}}", "unknown field; did you mean 'ratio'?"),
        ("models: {m: {rollout: {retian: 1m}}}", "models.m.rollout.retian: unknown field; did you mean 'retain'?"),
        ("rollout: {strategy: green}", "'blue-green', 'canary' or 'shadow' wanted, 'green' came"),
        ("rollout: {steps: [5]}", "rollout.steps.0.weight: a share such as 5%, 0.05 wanted, 5 came"),
        ("rollout: {steps: [0%]}", "a share from 0.01% to 100% wanted, '0%' came"),
        ("rollout: {steps: [150%]}", "a share such as 5%, 0.05 wanted, '150%' came"),
        (
            "rollout: {steps: [10%, 5%]}",
            "one step at least, and shares that grow from step to step wanted, ['10%', '5%'] came",
        ),
        ("rollout: {steps: [10%, 10%]}", "shares that grow"),
        ("rollout: {steps: []}", "one step at least"),
        ("rollout: {steps: [{weight: 100%, analysis: true}]}", "at 100% no stable version is left to compare with"),
        ("rollout: {key: header:x-api-key}", "a header that holds no secret, which x-api-key does, wanted"),
        ("rollout: {key: x-customer}", "header:NAME, input:NAME, column:NAME, parameter:NAME or message:key wanted"),
        ("rollout: {segments: [country]}", "header:NAME"),
        ("rollout: {overrides: {ann: green}}", "rollout.overrides.ann"),
        ("rollout: {analysis: {latency: {q99: {}}}}", "p50, p99 or p99.9"),
        ("rollout: {analysis: {latency: {p0: {}}}}", "p50, p99 or p99.9"),
        ("rollout: {providers: {db: labels.db}}", "sqlite:///path, postgresql://user@host/database or http://"),
        ("rollout: {tolerance: {score: {abs: 1}}}", "rollout.tolerance: what can be meant"),
        ("rollout: {alpha: 0}", "rollout.alpha"),
        ("rollout: {on_deadline: advance}", "'abort' or 'pause' wanted"),
        (
            "rollout: {analysis: {metrics: [{name: x, provider: db, queries: {}}]}}",
            "a provider that `providers` names ('db' is none)",
        ),
        (
            "rollout: {providers: {db: 'sqlite:///x'},"
            " analysis: {metrics: [{name: error_rate, provider: db, queries: {}}]}}",
            "a name that no other check has",
        ),
    ],
)
def test_errors_name_the_field_and_what_is_wanted(tmp_path, text, says):
    with pytest.raises(SettingsError) as error:
        load(tmp_path, text)
    assert says in str(error.value)


def test_a_step_must_have_something_to_wait_for():
    off = {"error_rate": False, "latency": {}}
    with pytest.raises(SettingsError, match="step 1 of the canary waits for checks to pass, and none is left"):
        canary.course(section(analysis=off))
    late = {"name": "x", "provider": "db", "queries": {"rows": "q"}, "delayed": True}
    with pytest.raises(SettingsError, match="write `analysis: false`"):
        canary.course(section(providers={"db": "sqlite:///x"}, analysis={**off, "metrics": [late]}))
    with pytest.raises(SettingsError, match="a shadow needs a share"):
        shadow.course(section(mirror=0))
    with pytest.raises(SettingsError, match="step 1 of the shadow"):
        shadow.course(section(analysis={"error_rate": False, "disagreement": False}))
    quiet = canary.course(section(analysis=off, steps=[{"weight": "5%", "analysis": False}]))
    assert quiet.checks == ()
    assert canary.course(section(analysis=off, mirror="10%")).checks == (PredictionCheck(),)


def test_checks_that_nothing_can_answer_take_no_part_of_alpha():
    metric = {"name": "x", "provider": "db", "queries": {"rows": "q"}, "delayed": True}
    both = section(providers={"db": "sqlite:///x"}, analysis={"metrics": [metric]})
    assert [check.name for check in canary.course(both).checks] == ["error_rate", "latency_p99", "x"]
    assert [check.name for check in shadow.course(both).checks] == ["error_rate", "disagreement"]
    assert blue_green.course(both).checks == ()


@given(st.integers(0, 10_000))
def test_shares_are_read_as_they_are_written(tenths):
    assert parse_share(f"{tenths / 100}%") == pytest.approx(tenths / 10_000)
    assert parse_share(tenths / 10_000) == pytest.approx(tenths / 10_000)
    assert parse_ratio(f"{tenths} %") == pytest.approx(tenths / 100)


@pytest.mark.parametrize("wrong", [5, 1, True, "5", "-1%", "x%", "", None, [], "1.5", 1.5, float("nan"), "100.1%"])
def test_what_is_no_share(wrong):
    with pytest.raises(ValueError, match="a share such as 5%"):
        parse_share(wrong)


def test_workers_need_not_restart_for_another_rollout(tmp_path):
    plain, other = load(tmp_path, ""), load(tmp_path, "rollout: {strategy: shadow}\n")
    assert fingerprint_of(plain, 1, 2) == fingerprint_of(other, 1, 2)


def test_schema_has_every_field_documented():
    made = spec.schema()
    known = {"models", "rollout"}
    assert known <= set(made["properties"])
    for name in ("RolloutSection", "StepSection", "AnalysisSection", "MetricSection", "BreakerSection"):
        definition = made["$defs"][name]
        assert definition["additionalProperties"] is False
        assert all("description" in field for field in definition["properties"].values()), name


def test_what_the_docs_show_is_valid(tmp_path):
    from pathlib import Path

    import yaml

    root = Path(__file__).resolve().parents[2]
    shown = 0
    for page in ("rollouts.md", "spec.md"):
        for block in (root / "docs" / page).read_text().split("```yaml\n")[1:]:
            text = block.split("```")[0]
            values = {"repository": "r", **yaml.safe_load(text)}
            settings = spec.check(values, {})
            for made in (settings.rollout, *(m.rollout for m in settings.models.values() if m.rollout)):
                assert strategies()[made.strategy](made).steps
            shown += 1
    assert shown >= 5
