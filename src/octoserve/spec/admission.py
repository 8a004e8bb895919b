"""`admission:` and `cache:` of octoserve.yaml: priorities, limits by tenant, answers that are kept."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from octoserve.core.admission import LEVELS, CacheLimits, Priorities, TenantLimits, TenantRules
from octoserve.spec.values import Duration, Section, Share, Size, not_a_credential, switch

_KEY = re.compile(r"(header|input|column|parameter):.+|caller:name")
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*([smhd])")
_PER = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Level = Literal["high", "normal", "low"]


def parse_rate(value: Any) -> Any:
    """Requests a second from `200/s`, `1000/m`, `50/h`; ValueError for anything else."""
    found = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or float(found[1]) <= 0:
        raise ValueError("a rate of more than 0, such as 200/s, 1000/m or 50/h")
    return float(found[1]) / _PER[found[2]]


def _key(value: str) -> str:
    if not _KEY.fullmatch(value):
        raise ValueError("caller:name, header:NAME, input:NAME, column:NAME or parameter:NAME")
    return not_a_credential(value)


def _room(value: float) -> float:
    if value <= 0:
        raise ValueError("a share of more than 0%, such as 50%")
    return value


def _more_than_nothing(value: float) -> float:
    if value <= 0:
        raise ValueError("more than 0")
    return value


Rate = Annotated[float, BeforeValidator(parse_rate), WithJsonSchema({"type": "string", "pattern": _RATE.pattern})]
Room = Annotated[Share, AfterValidator(_room)]
Count = Annotated[int, Field(ge=1)]


class SharesSection(Section):
    """How full a queue may be when a request of a level is let in; high may fill it."""

    normal: Room = 0.9
    """Of `max_queue` and `max_buffered`; what is above is kept free for high."""
    low: Room = 0.5
    """The same for low; what is above is kept free for normal and high."""

    @model_validator(mode="after")
    def _in_order(self) -> SharesSection:
        if self.low > self.normal:
            raise ValueError("a share for low that is no larger than normal's")
        return self


class PrioritiesSection(Section):
    """Levels of requests: 1 high, 2 normal, 3 low."""

    default: Level = "normal"
    """Of requests that name none."""
    shares: SharesSection = SharesSection()
    """Who is shed first."""
    turn: Annotated[int, Field(ge=2)] = 8
    """Each so many-th run that would overtake somebody begins with the request that has waited longest."""


class TenantSection(Section):
    """Limits of one tenant, of the whole service; what is unset is unlimited."""

    concurrency: Count | None = None
    """Requests in flight."""
    rate: Rate | None = None
    """Requests a second (`200/s`), a minute (`1000/m`), an hour or a day."""
    burst: Count | None = None
    """Requests at once after a pause; unset: one second's worth of the rate."""
    priority: Level = "high"
    """The highest level that its requests get; where priorities are on."""

    def limits(self) -> TenantLimits:
        """The same in the words of the core."""
        return TenantLimits(
            concurrency=self.concurrency, rate=self.rate, burst=self.burst, priority=LEVELS.index(self.priority)
        )


class TenantsSection(Section):
    """Limits by tenant."""

    key: Annotated[str, AfterValidator(_key)]
    """What says whose a request is: caller:name, header:NAME, input:NAME, column:NAME, parameter:NAME."""
    default: TenantSection = TenantSection()
    """Of each tenant that `per` does not name, and of requests without a key, which are one tenant."""
    per: dict[str, TenantSection] = Field(default_factory=dict)
    """Of single tenants by name; each taken whole, instead of `default`."""


class AdmissionSection(Section):
    """Who is let in first, and how much each tenant may ask."""

    priorities: Annotated[PrioritiesSection | None, BeforeValidator(switch)] = None
    """`true`, or `{default, shares, turn}`; unset: requests' priorities are not looked at."""
    tenants: TenantsSection | None = None
    """`{key, default, per}`; unset: no limits by tenant."""

    def levels(self) -> Priorities | None:
        """The same in the words of the core; None where priorities are off."""
        section = self.priorities
        if section is None:
            return None
        shares = (1.0, section.shares.normal, section.shares.low)
        return Priorities(default=LEVELS.index(section.default), shares=shares, turn=section.turn)

    def rules(self, workers: int) -> TenantRules | None:
        """What each of so many workers enforces; None where there are no limits by tenant."""
        section = self.tenants
        if section is None:
            return None
        per = {name: limits.limits() for name, limits in section.per.items()}
        return TenantRules(section.key, section.default.limits(), per).share(workers)


class CacheSection(Section):
    """A model's answers, kept in each worker."""

    bytes: Annotated[Size, AfterValidator(_more_than_nothing)] = 64 << 20
    """How much one worker keeps, of all versions; what was used least recently goes first."""
    ttl: Annotated[Duration, AfterValidator(_more_than_nothing)] = 60.0
    """How long an answer is kept."""

    def limits(self) -> CacheLimits:
        """The same in the words of the core."""
        return CacheLimits(self.bytes, self.ttl)
