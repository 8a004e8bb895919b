"""From a URL to its provider."""

from __future__ import annotations

from octoserve.control.providers.prometheus import PrometheusProvider
from octoserve.control.providers.protocol import MetricProvider
from octoserve.control.providers.sql import SqlProvider
from octoserve.core.errors import SettingsError


def open_provider(url: str, timeout: float = 10.0) -> MetricProvider:
    """The provider of this address; nothing is connected to yet. Raises SettingsError, which does not repeat it."""
    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        return PrometheusProvider(url, timeout)
    if scheme in ("sqlite", "postgresql", "postgres"):
        return SqlProvider(url, timeout)
    raise SettingsError("providers: an address is sqlite:///path, postgresql://..., or http[s]://... of a Prometheus")
