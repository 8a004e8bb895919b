"""Which deadline a request gets that brings none: what somebody has written, else what the SLO makes of its target."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octoserve.spec import ServeSettings


def default_deadline_of(settings: ServeSettings) -> float | None:
    """Seconds, for models that `deadlines_of` does not name; None for no deadline."""
    if settings.default_deadline is not None or settings.slo is None:
        return settings.default_deadline
    return settings.slo.promise().deadline()


def deadlines_of(settings: ServeSettings) -> dict[str, float | None]:
    """Seconds by model, where it is not the default; None for no deadline.

    A deadline that is written down, the model's or the service's, wins over one that follows from an SLO.
    """
    made: dict[str, float | None] = {}
    slos, default = settings.slos(), default_deadline_of(settings)
    for name, section in settings.models.items():
        slo = slos.of(name)
        wanted = section.deadline
        if wanted is None:
            wanted = settings.default_deadline
        if wanted is None and slo is not None:
            wanted = slo.deadline()
        if wanted != default or section.deadline is not None:
            made[name] = wanted
    return made


def deadline_of(model: str, settings: ServeSettings) -> float | None:
    """Seconds that a request for this model gets if it brings no deadline."""
    own = deadlines_of(settings)
    return own[model] if model in own else default_deadline_of(settings)
