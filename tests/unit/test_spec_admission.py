"""`admission:` and `cache:` of the spec, and what follows from them in a worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from octoserve import spec
from octoserve.core.admission import HIGH, LOW, Admission, CacheLimits, Priorities, TenantLimits
from octoserve.core.errors import Overloaded, SettingsError
from octoserve.dataplane import batcher as batcher_module
from octoserve.dataplane.endpoint import DataPlane
from octoserve.patterns.online.supervisor.deadlines import deadlines_of, default_deadline_of
from octoserve.patterns.online.supervisor.supervisor import fingerprint_of
from octoserve.telemetry.metrics import Registry
from support.loops import FakeClock, ManualExecutor, loop
from support.models import Asked, FakeModel, floats, handle_of, publish


def load(text: str, folder: Path) -> spec.ServeSettings:
    path = folder / "octoserve.yaml"
    path.write_text(text)
    return spec.load({"repository": "models"}, {}, path)


def test_all_of_it(tmp_path: Path) -> None:
    text = """
workers: 4
admission:
  priorities: {default: low, shares: {normal: 80%, low: 30%}, turn: 5}
  tenants:
    key: header:x-tenant
    default: {concurrency: 50, rate: 200/s, burst: 400}
    per:
      acme: {rate: 600/m, priority: low}
models:
  fraud: {cache: {bytes: 8MB, ttl: 5m}}
  echo: {cache: {}}
"""
    settings = load(text, tmp_path)
    assert settings.admission.levels() == Priorities(LOW, (1.0, 0.8, 0.3), 5)
    rules = settings.admission.rules(settings.workers)
    assert rules is not None
    assert rules.key == "header:x-tenant"
    assert rules.default == TenantLimits(concurrency=13, rate=50.0, burst=100, priority=HIGH)
    assert rules.per == {"acme": TenantLimits(rate=2.5, burst=3, priority=LOW)}
    caches = {name: model.cache.limits() for name, model in settings.models.items() if model.cache is not None}
    assert caches == {"fraud": CacheLimits(8 << 20, 300.0), "echo": CacheLimits()}


def test_off_unless_asked_for(tmp_path: Path) -> None:
    for text in ("", "admission: {}", "admission: {priorities: false}"):
        section = load(text, tmp_path).admission
        assert (section.levels(), section.rules(2)) == (None, None)
    assert load("admission: {priorities: true}", tmp_path).admission.levels() == Priorities()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("priority: true", "admission.priority: unknown field; did you mean 'priorities'?"),
        ("priorities: {default: urgent}", "admission.priorities.default: 'high', 'normal' or 'low' wanted"),
        ("priorities: {turn: 1}", "admission.priorities.turn: a number, at least 2 wanted"),
        ("priorities: {shares: {low: 95%}}", "a share for low that is no larger than normal's wanted"),
        ("priorities: {shares: {low: 0}}", "a share of more than 0%, such as 50% wanted"),
        ("tenants: {}", "admission.tenants.key: "),
        (
            "tenants: {key: x-tenant}",
            "tenants.key: caller:name, header:NAME, input:NAME, column:NAME or parameter:NAME wanted",
        ),
        (
            "tenants: {key: caller:name}",
            "caller:name is whom security knows, and it asks nobody",
        ),
        ("tenants: {key: message:key}", "tenants.key: caller:name, header:NAME, input:NAME"),
        ("tenants: {key: header:x, default: {rate: 200}}", "a rate of more than 0, such as 200/s, 1000/m or 50/h"),
        ("tenants: {key: header:x, default: {rate: 0/s}}", "a rate of more than 0"),
        ("tenants: {key: header:x, per: {a: {concurrency: 0}}}", "per.a.concurrency: a number, at least 1 wanted"),
        ("tenants: {key: header:x, per: {a: {rates: 1/s}}}", "did you mean 'rate'?"),
    ],
)
def test_mistakes_are_explained(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(f"admission: {{{text}}}", tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bytes: 0", "models.m.cache.bytes: more than 0 wanted"),
        ("ttl: 0s", "models.m.cache.ttl: more than 0 wanted"),
        ("size: 1MB", "cache.size: unknown field; known fields: bytes, ttl"),
    ],
)
def test_mistakes_in_a_cache_are_explained(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(f"models: {{m: {{cache: {{{text}}}}}}}", tmp_path)
    assert words in str(caught.value)


def test_a_worker_that_was_told_otherwise_is_replaced(tmp_path: Path) -> None:
    tenants = "admission: {tenants: {key: header:x, default: {rate: 9/s}}}"
    texts = (
        "workers: 2",
        "admission: {priorities: true}",
        f"workers: 2\n{tenants}",
        f"workers: 3\n{tenants}",
        "models: {m: {cache: {}}}",
        "models: {m: {cache: {ttl: 1s}}}",
    )
    assert len({fingerprint_of(load(text, tmp_path), 1, 2) for text in texts}) == len(texts)
    assert fingerprint_of(load("workers: 2", tmp_path), 1, 2) == fingerprint_of(load("workers: 3", tmp_path), 1, 2)


def test_an_slo_decides_what_is_shed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the promise to the 429: twice the target is the deadline, and the queue's estimate is held against it."""
    monkeypatch.setattr(batcher_module, "INLINE_SECONDS", -1.0)
    settings = load("slo: {latency_p99: 500ms}\nmodels: {free: {slo: false}}", tmp_path)
    plane = DataPlane(
        Registry(),
        loop(),
        ManualExecutor(),
        Admission(default_deadline=default_deadline_of(settings), deadlines=deadlines_of(settings)),
        clock=FakeClock(),
    )
    publish(plane, handle_of(FakeModel()), handle_of(FakeModel(), "free"))
    for model in ("m", "free"):
        plane.bind(model)._row_seconds = 0.3  # as measured lately: four rows take longer than a second
        calls = [Asked([floats([[1.0]])], model=model) for _ in range(6)]
        for call in calls:
            plane.submit(call)
        shed = [call.error for call in calls if call.error is not None]
        for call in calls:
            call.cancel()
        if model == "free":
            assert not shed
            continue
        assert len(shed) == 2
        for error in shed:
            assert isinstance(error, Overloaded)
            assert (error.reason, error.retry_after) == ("deadline_unmeetable", 2)
            assert str(error) == "the deadline is 1.000 s away, the queue 1.200 s long"
