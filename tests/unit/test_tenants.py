"""Limits by tenant: what is let in is what a token bucket and a count allow, and nothing is remembered for ever."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octoserve.core.admission import Admission, TenantLimits, TenantRules
from octoserve.core.errors import InvalidInput, NotFound, Overloaded
from octoserve.core.slo import Slo, Slos
from octoserve.core.tensors import Tensor
from octoserve.dataplane import batcher as batcher_module
from octoserve.dataplane import tenants as tenants_module
from octoserve.dataplane.endpoint import DataPlane
from octoserve.dataplane.tenants import CONCURRENCY, RATE, Counts, Tenant
from octoserve.telemetry.metrics import Metric, Registry
from support.loops import FakeClock, ManualExecutor, drive, loop, ticks
from support.models import Asked, FakeModel, floats, handle_of, publish
from support.scale import scale

COUNTS = Counts(Metric("x", "counter", "", ("tenant", "outcome")), "t")


class Of(Asked):
    """A call of somebody's."""

    def __init__(self, tenant: str | None, inputs: Any = None, **more: Any) -> None:
        super().__init__(inputs or [floats([[1.0]])], **more)
        self.tenant_name = tenant

    def header(self, name: str) -> str | None:
        return self.tenant_name if name == "x-tenant" else None


class House:
    """A data plane with limits by tenant; runs happen when the test says so."""

    def __init__(self, rules: TenantRules, **limits: Any) -> None:
        self.clock = FakeClock()
        self.executor = ManualExecutor()
        self.model = FakeModel()
        self.registry = Registry()
        self.plane = DataPlane(
            self.registry, loop(), self.executor, Admission(tenants=rules, **limits), clock=self.clock
        )
        self.handle = handle_of(self.model)
        publish(self.plane, self.handle)

    def ask(self, tenant: str | None, **more: Any) -> Of:
        call = Of(tenant, **more)
        self.plane.submit(call)
        return call

    def finish(self) -> None:
        drive(ticks())
        while self.executor.waiting:
            self.executor.run_one()
            drive(ticks())

    def metric(self, name: str) -> dict[tuple[str, ...], float]:
        [family] = [family for family in self.registry.families() if family.name == name]
        return {sample.labels: sample.total for sample in family.samples if sample.total}

    @property
    def in_flight(self) -> dict[tuple[str, ...], float]:
        return self.metric("octoserve_tenant_in_flight")


@pytest.fixture(autouse=True)
def _never_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher_module, "INLINE_SECONDS", -1.0)


def rules(key: str = "header:x-tenant", per: Any = None, **default: Any) -> TenantRules:
    return TenantRules(key, TenantLimits(**default), per or {})


def test_a_tenant_may_be_whom_security_knows() -> None:
    class By(Of):
        def caller(self) -> str:
            return self.tenant_name or ""

    house = House(rules("caller:name", {"team-a": TenantLimits(concurrency=1)}))
    calls = [By("team-a"), By("team-a"), By(None), By(None)]
    for call in calls:
        house.plane.submit(call)
    house.finish()
    assert [type(call.error) for call in calls] == [type(None), Overloaded, type(None), type(None)]


# --- one tenant -------------------------------------------------------------------------------------------


@given(
    st.integers(1, 5),
    st.sampled_from([1.0, 2.0, 4.0, 0.5]),
    st.lists(st.integers(0, 40), min_size=1, max_size=scale(60, 300)),
)
def test_a_rate_lets_in_what_a_token_bucket_does(burst: int, rate: float, pauses: list[int]) -> None:
    tenant = Tenant("t", TenantLimits(rate=rate, burst=burst), COUNTS)
    tokens, now = Fraction(burst), Fraction(1000)
    for pause in pauses:
        passed = Fraction(pause, 16)
        now += passed
        tokens = min(Fraction(burst), tokens + passed * Fraction(rate))
        try:
            tenant.enter(float(now))
        except Overloaded as error:
            refused = error
            assert tokens < 1
            assert refused.reason == RATE
            assert refused.retry_after >= (1 - tokens) / Fraction(rate)
        else:
            assert tokens >= 1
            tokens -= 1
            tenant.leave()


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4))
def test_concurrency_is_a_count(steps: list[bool], most: int) -> None:
    tenant = Tenant("t", TenantLimits(concurrency=most), COUNTS)
    inside = 0
    for come in steps:
        if come:
            try:
                tenant.enter(0.0)
                inside += 1
            except Overloaded as error:
                refused = error
                assert (refused.reason, inside) == (CONCURRENCY, most)
        elif inside:
            tenant.leave()
            inside -= 1
        assert tenant.in_flight == inside <= most


def test_who_is_refused_for_concurrency_pays_no_rate() -> None:
    tenant = Tenant("t", TenantLimits(concurrency=1, rate=1.0, burst=2), COUNTS)
    tenant.enter(0.0)
    for _ in range(9):
        with pytest.raises(Overloaded):
            tenant.enter(0.0)
    tenant.leave()
    tenant.enter(0.0)


def test_shares_of_workers() -> None:
    whole = TenantRules("header:x", TenantLimits(concurrency=50, rate=200.0, burst=400), {"a": TenantLimits(rate=1.0)})
    share = whole.share(4)
    assert share.default == TenantLimits(concurrency=13, rate=50.0, burst=100)
    assert share.per["a"] == TenantLimits(rate=0.25, burst=1)
    assert whole.share(1).default == whole.default


# --- through the data plane -------------------------------------------------------------------------------


def test_a_noisy_tenant_is_refused_and_the_other_is_not() -> None:
    house = House(rules(concurrency=2))
    noisy = [house.ask("noisy") for _ in range(10)]
    quiet = house.ask("quiet")
    refused = [call.error for call in noisy if call.error]
    assert len(refused) == 8
    assert {error.reason for error in refused} == {"tenant_concurrency"}
    assert str(refused[0]) == "tenant 'noisy' has 2 requests in flight, at most 2 may be"
    house.finish()
    assert quiet.error is None
    assert house.ask("noisy").error is None
    assert house.in_flight == {("(other)",): 1}


def test_every_way_out_gives_the_place_back() -> None:
    house = House(rules(per={"a": TenantLimits(concurrency=2)}), max_queue=4)
    bad = house.ask("a", inputs=[floats([[1.0]], "nobody")])
    unknown = house.ask("a", model="nobody")
    assert isinstance(bad.error, InvalidInput)
    assert isinstance(unknown.error, NotFound)
    gone, late = house.ask("a"), house.ask("a", deadline=house.clock.now + 1)
    assert isinstance(house.ask("a").error, Overloaded)
    gone.cancel()
    gone.cancel()
    house.clock.advance(2)
    house.plane.bind("m")._sweep()
    assert late.error is not None
    assert house.in_flight == {}
    running = house.ask("a")
    drive(ticks())
    running.cancel()
    house.finish()
    house.model.poison = {7.0}
    failed = house.ask("a", inputs=[floats([[7.0]])])
    house.finish()
    assert failed.error is not None
    fill = [house.ask(f"b{i}") for i in range(4)]
    shed = house.ask("a")
    assert shed.error is not None
    assert shed.error.reason == "queue_full"
    house.finish()
    assert all(call.error is None for call in fill)
    assert house.in_flight == {}


def test_a_rate_says_when_to_come_back() -> None:
    house = House(rules(rate=0.1, burst=1))
    assert house.ask("a").error is None
    error = house.ask("a").error
    assert isinstance(error, Overloaded)
    assert (error.reason, error.retry_after) == ("tenant_rate", 10)
    assert str(error) == "tenant 'a' may ask one request in 10 s here, and has asked more; the next one in 10.000 s"
    house.clock.advance(10)
    assert house.ask("a").error is None
    house.finish()


def test_requests_without_a_key_are_one_tenant() -> None:
    house = House(rules(concurrency=1))
    assert house.ask(None).error is None
    assert "(none)" in str(house.ask("").error)
    assert house.metric("octoserve_tenant_requests_total") == {
        ("(none)", "in"): 1,
        ("(none)", "tenant_concurrency"): 1,
    }
    house.finish()


def test_what_the_process_asks_itself_has_no_tenant() -> None:
    house = House(rules(concurrency=1))
    house.ask(None)
    inside = loop().create_task(house.plane.infer("m", [floats([[1.0]])]))
    house.finish()
    assert drive(inside).array(0).tolist() == [[3.0]]


def test_what_the_gate_refuses_says_nothing_of_a_version() -> None:
    """A stream knows its arm before: a key that is none is the client's doing alone."""
    house = House(rules("input:x"))
    told: list[str] = []
    call = Of(None, [floats([[0.5]])])
    call.arm = SimpleNamespace(turned_away=lambda call, reason: told.append(reason))  # type: ignore[assignment]
    house.plane.submit(call)
    assert isinstance(call.error, InvalidInput)
    assert told == []


def test_metrics_name_the_tenants_of_the_spec_only() -> None:
    house = House(rules(per={"acme": TenantLimits(rate=1.0, burst=1)}))
    for name in ("acme", "acme", "x", "y", "z"):
        house.ask(name)
    house.finish()
    assert house.metric("octoserve_tenant_requests_total") == {
        ("acme", "in"): 1,
        ("acme", "tenant_rate"): 1,
        ("(other)", "in"): 3,
    }


def test_a_refusal_breaks_no_promise() -> None:
    house = House(rules(concurrency=1), slos=Slos(default=Slo(availability=0.99)))
    for _ in range(5):
        house.ask("a")
    house.finish()
    assert house.metric("octoserve_slo_bad_total") == {}
    assert house.metric("octoserve_slo_good_total") == {("m", "availability"): 1}


# --- keys -------------------------------------------------------------------------------------------------


def test_a_key_may_be_an_input() -> None:
    house = House(rules("input:x", per={"7": TenantLimits(concurrency=1)}))
    integers = Tensor.of("x", np.array([[7]], dtype=np.int64))
    house.ask(None, inputs=[integers])
    assert house.metric("octoserve_tenant_requests_total") == {("7", "in"): 1}
    assert isinstance(house.ask(None).error, InvalidInput)  # a float is no key


@pytest.mark.parametrize(
    "hostile",
    [
        Tensor("x", "NONE", (1, 1), b"\0\0\0\0"),
        Tensor("x", "FP32", (-1, -1), b"\0\0\0\0"),
        Tensor("x", "INT32", (-2, -2), b"\0" * 16),
        Tensor("x", "BYTES", (1,), b"\xff\xff\xff\xff"),
        Tensor("x", "INT64", (3,), b"\0"),
    ],
)
def test_a_tensor_that_nobody_has_checked_is_refused(hostile: Tensor) -> None:
    house = House(rules("input:x", concurrency=1))
    call = house.ask(None, inputs=[hostile])
    assert isinstance(call.error, InvalidInput)
    assert house.in_flight == {}


def test_a_key_without_end_is_refused() -> None:
    house = House(rules(concurrency=1))
    error = house.ask("k" * 129).error
    assert isinstance(error, InvalidInput)
    assert str(error) == "the tenant's key (header:x-tenant) has 129 bytes, at most 128 may be"


def test_tenants_are_forgotten_when_that_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants_module, "MAX_TENANTS", 3)
    house = House(rules(rate=1.0, burst=1, concurrency=9))
    assert house.plane._gate is not None
    known = house.plane._gate._tenants
    assert known is not None
    for name in "abc":
        assert house.ask(name).error is None
    assert house.ask("d").error is None, "all are busy: it shares a place"
    assert isinstance(house.ask("e").error, Overloaded), "with everybody who comes later"
    assert isinstance(house.ask("a").error, Overloaded), "and takes nobody's"
    house.finish()
    house.clock.advance(5)
    for name in "fgh":
        assert house.ask(name).error is None
    assert len(known._tenants) == 3
    house.finish()
