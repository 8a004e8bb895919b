"""The page of metrics of a batch job or a queue: where it listens, and what is no place."""

from __future__ import annotations

import urllib.request
from contextlib import closing

import pytest

from octoserve.cli.metrics_page import MetricsServer
from octoserve.core.errors import SettingsError


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_it_says_where_it_is(host: str, shown: str) -> None:
    with closing(MetricsServer(host, 0, list)) as server:
        assert server.url.startswith(shown)
        assert urllib.request.urlopen(server.url, timeout=30).status == 200


@pytest.mark.parametrize(("host", "why"), [("", "an address is wanted"), ("192.0.2.1", "cannot listen on 192.0.2.1:0")])
def test_what_is_no_place_is_said(host: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        MetricsServer(host, 0, list)
