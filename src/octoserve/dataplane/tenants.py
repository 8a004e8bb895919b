"""Limits by tenant: requests in flight, and requests a second (GCRA), in this process.

A tenant is remembered while forgetting it would change something. See docs/decisions/0026-priorities-and-tenants.md.
"""

from __future__ import annotations

from octoserve.core.admission import TenantLimits, TenantRules
from octoserve.core.errors import InvalidInput, Overloaded
from octoserve.dataplane.admission import retry_after
from octoserve.dataplane.call import Call
from octoserve.dataplane.key_reader import key_reader
from octoserve.routing.key import CALLER, parse_key
from octoserve.telemetry.metrics import Metric, Registry

MAX_TENANTS = 10_000
MAX_KEY = 128
"""Bytes: keys are held in memory, and are the client's text."""
NONE, MORE, OTHER = "(none)", "(more)", "(other)"
"""Without a key; who finds no place among MAX_TENANTS; in metrics, whom the spec does not name."""
RATE, CONCURRENCY = "tenant_rate", "tenant_concurrency"
LET_IN = "in"
_ROUNDING = 1e-9
_FORGET_SECONDS = 1.0
"""Looking through all tenants for some to forget is done at most this often: a client can make as many as it likes."""


class Counts:
    """What is counted of tenants under one name of the metrics."""

    __slots__ = ("in_flight", "series")

    def __init__(self, requests: Metric, name: str) -> None:
        self.in_flight = 0
        self.series = {outcome: requests.counter(name, outcome) for outcome in (LET_IN, RATE, CONCURRENCY)}

    def add(self, outcome: str) -> None:
        """One more."""
        self.series[outcome].value += 1


class Tenant:
    """One tenant's account."""

    __slots__ = ("_full_at", "_interval", "_slack", "counts", "in_flight", "limits", "name")

    def __init__(self, name: str, limits: TenantLimits, counts: Counts) -> None:
        self.name = name
        self.limits = limits
        self.counts = counts
        self.in_flight = 0
        self._full_at = 0.0
        """When its bucket will be full again (GCRA's theoretical arrival time)."""
        rate = limits.rate
        self._interval = 0.0 if rate is None else 1 / rate
        burst = limits.burst if limits.burst is not None else max(1, int(rate or 1))
        self._slack = self._interval * (burst - 1)

    def enter(self, now: float) -> None:
        """One more in flight. Raises Overloaded; then nothing has changed but a count."""
        limits = self.limits
        if limits.concurrency is not None and self.in_flight >= limits.concurrency:
            self.counts.add(CONCURRENCY)
            raise Overloaded(
                f"tenant {self.name!r} has {self.in_flight} requests in flight, at most {limits.concurrency} may be",
                1,
                CONCURRENCY,
            )
        if self._interval:
            full_at = max(self._full_at, now)
            wait = full_at - now - self._slack
            if wait > _ROUNDING:
                self.counts.add(RATE)
                raise Overloaded(
                    f"tenant {self.name!r} may ask {_said(self._interval)} here, and has asked more; "
                    f"the next one in {wait:.3f} s",
                    retry_after(wait),
                    RATE,
                )
            self._full_at = full_at + self._interval
        self.in_flight += 1
        self.counts.in_flight += 1
        self.counts.add(LET_IN)

    def leave(self) -> None:
        """A request that entered was answered, or given up."""
        self.in_flight -= 1
        self.counts.in_flight -= 1

    def is_fresh(self, now: float) -> bool:
        """Whether it is as if it had never come."""
        return not self.in_flight and self._full_at <= now


def _said(interval: float) -> str:
    return f"{1 / interval:g} requests a second" if interval <= 1 else f"one request in {interval:g} s"


class Tenants:
    """All tenants of one process. Single-threaded."""

    def __init__(self, rules: TenantRules, registry: Registry) -> None:
        self._rules = rules
        source = parse_key(rules.key)
        self._key = key_reader(source)
        self._per = {name.encode("utf-8", "surrogateescape"): (name, limits) for name, limits in rules.per.items()}
        self._by_caller = source.kind == CALLER
        """Whose names security bounds."""
        self._tenants: dict[bytes, Tenant] = {}
        self._forget_at = 0.0
        requests = registry.counter(
            "octoserve_tenant_requests_total",
            "Requests by tenant, and whether its limits let them in.",
            ("tenant", "outcome"),
        )
        self._counts = {name: Counts(requests, name) for name in (*rules.per, NONE, OTHER)}
        self._none = Tenant(NONE, rules.default, self._counts[NONE])
        self._more = Tenant(MORE, rules.default, self._counts[OTHER])
        registry.gauge(
            "octoserve_tenant_in_flight",
            "Requests in flight by tenant.",
            ("tenant",),
            lambda: {(name,): float(counts.in_flight) for name, counts in self._counts.items()},
        )

    def of(self, call: Call) -> Tenant:
        """Whose call it is. Raises InvalidInput for a key that cannot be one."""
        key = self._key(call)
        if not key:
            return self._none
        tenant = self._tenants.get(key)
        if tenant is None:
            if len(key) > MAX_KEY and not self._by_caller:
                raise InvalidInput(
                    f"the tenant's key ({self._rules.key}) has {len(key)} bytes, at most {MAX_KEY} may be"
                )
            tenant = self._new(key, call.arrived)
        return tenant

    def _new(self, key: bytes, now: float) -> Tenant:
        named = self._per.get(key)
        if named is None and len(self._tenants) >= MAX_TENANTS:
            self._forget(now)
            if len(self._tenants) >= MAX_TENANTS:
                return self._more
        name, limits = named or (key.decode("utf-8", "replace"), self._rules.default)
        tenant = self._tenants[key] = Tenant(name, limits, self._counts[name if named else OTHER])
        return tenant

    def _forget(self, now: float) -> None:
        """Those that are as if they had never come."""
        if now < self._forget_at:
            return
        self._forget_at = now + _FORGET_SECONDS
        self._tenants = {key: tenant for key, tenant in self._tenants.items() if not tenant.is_fresh(now)}
