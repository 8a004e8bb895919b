"""`slo:` of octoserve.yaml: what an endpoint promises. See docs/slo.md."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, model_validator

from octoserve.core.slo import DAY, Slo
from octoserve.spec.values import Duration, Section, Share, off

_LEAST, _MOST = 0.9, 0.999999
_SHORTEST, _LONGEST = 7 * DAY, 90 * DAY


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("a duration of more than 0, such as 20ms")
    return value


def _possible(value: float) -> float:
    if not _LEAST <= value <= _MOST:
        raise ValueError("a share from 90% to 99.9999%, such as 99.9% (100% leaves no request that may fail)")
    return round(value, 9)  # 99.9 / 100 is not quite 0.999


def _window(value: float) -> float:
    if not _SHORTEST <= value <= _LONGEST:
        raise ValueError("a window from 7d to 90d, such as 30d")
    return value


class SloSection(Section):
    """What an endpoint promises; one objective at least."""

    latency_p99: Annotated[Duration, AfterValidator(_positive)] | None = None
    """99% of the answers take no longer, from a decoded request to its encoded answer. It sets the default deadline,
    twice as long, where no `deadline` or `default_deadline` is set."""
    availability: Annotated[Share, AfterValidator(_possible)] | None = None
    """Share of the requests that are answered: 99.9%. What is the client's doing does not count."""
    window: Annotated[Duration, AfterValidator(_window)] = 30 * DAY
    """Over how long the promise is kept, from 7d to 90d."""

    @model_validator(mode="after")
    def _promises(self) -> SloSection:
        if self.latency_p99 is None and self.availability is None:
            raise ValueError("latency_p99, availability or both")
        return self

    def promise(self) -> Slo:
        """The same in the words of the core."""
        return Slo(latency=self.latency_p99, availability=self.availability, window=self.window)


class QueueSloSection(Section):
    """What a queue promises."""

    freshness: Annotated[Duration, AfterValidator(_positive)]
    """99% of the messages have their result so soon after their publication: 60s."""
    window: Annotated[Duration, AfterValidator(_window)] = 30 * DAY
    """Over how long the promise is kept, from 7d to 90d."""

    def promise(self) -> Slo:
        """The same in the words of the core."""
        return Slo(freshness=self.freshness, window=self.window)


OptionalSlo = Annotated[SloSection | None, BeforeValidator(off)]
"""`false` promises nothing."""
