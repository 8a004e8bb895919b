"""`tracing:` of octoserve.yaml: which requests are recorded as spans, and where those go. See docs/tracing.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator

from octoserve.core.errors import SettingsError
from octoserve.core.trace_context import Tracing
from octoserve.spec.values import Section, parse_share, switch

_SAMPLERS = {
    "always_on": (1.0, False),
    "always_off": (0.0, False),
    "traceidratio": (None, False),
    "parentbased_always_on": (1.0, True),
    "parentbased_always_off": (0.0, True),
    "parentbased_traceidratio": (None, True),
}


def _address(value: str) -> str:
    try:
        parts = urlsplit(value)
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        wrong = True
    if wrong or parts.username or parts.query:
        raise ValueError("the address of an OTLP collector, such as http://collector:4318,")
    return value


def _share(value: Any) -> Any:
    return 1.0 if value in (1, "1", "1.0") and not isinstance(value, bool) else parse_share(value)


class TracingSection(Section):
    """Spans to an OpenTelemetry collector, by OTLP over HTTP. The OTEL_* variables hold for what is unset."""

    endpoint: Annotated[str, AfterValidator(_address)] | None = None
    """http://host:4318 of the collector; unset: what OTEL_EXPORTER_OTLP_ENDPOINT says, else localhost."""
    sample: Annotated[float, BeforeValidator(_share)] | None = None
    """Share of the requests that is recorded where the client has not decided it: 1%, 0.01, 1 for all; unset: what
    OTEL_TRACES_SAMPLER says, else 1%."""
    service: str | None = None
    """`service.name`; unset: what OTEL_SERVICE_NAME says, else octoserve."""


OptionalTracing = Annotated[TracingSection | None, BeforeValidator(switch)]
"""`true`: all as the variables say."""


def tracing_of(section: TracingSection | None, environ: Mapping[str, str]) -> Tracing | None:
    """What a process is to record; None for nothing. Raises SettingsError.

    Without a section it is on where OTEL_TRACES_EXPORTER is `otlp`: other programs' variables switch nothing on here.
    """
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return None
    if section is None:
        if exporter != "otlp":
            return None
        section = TracingSection()
    share, parent_based = _sampler(environ)
    return Tracing(
        endpoint=section.endpoint or "",
        share=share if section.sample is None else section.sample,
        parent_based=parent_based if section.sample is None else True,
        service=section.service or "",
    )


def _sampler(environ: Mapping[str, str]) -> tuple[float, bool]:
    """Share, and whether the client's decision holds."""
    name = environ.get("OTEL_TRACES_SAMPLER", "").strip()
    if not name:
        return Tracing().share, True
    if name not in _SAMPLERS:
        raise SettingsError(f"OTEL_TRACES_SAMPLER: one of {', '.join(_SAMPLERS)} wanted, {name!r} came")
    share, parent_based = _SAMPLERS[name]
    if share is None:
        said = environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1"
        try:
            share = float(said)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise SettingsError(f"OTEL_TRACES_SAMPLER_ARG: a number from 0 to 1 wanted, {said!r} came")
    return share, parent_based
