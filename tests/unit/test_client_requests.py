"""What the clients write before anybody is asked."""

from __future__ import annotations

import pytest

from octoserve.client.asynchronous import AsyncClient
from octoserve.client.talk import Ask
from octoserve.client.wire import address_of
from octoserve.core.errors import InvalidInput


@pytest.mark.parametrize(
    ("url", "host"),
    [("http://[::1]:8080", "[::1]:8080"), ("gpu-1", "gpu-1:80"), ("https://10.0.0.1/x", "10.0.0.1:443")],
)
def test_the_host_header_is_one(url: str, host: str) -> None:
    head = AsyncClient(url)._request(Ask("GET", "/v2"), 1.0).decode()
    assert f"host: {host}\r\n" in head
    assert f"//{host}" in str(address_of(url))


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\x00", "\u20ac"])
def test_a_header_that_cannot_be_sent_is_named(value: str) -> None:
    client = AsyncClient("h", headers={"x-tenant": value})
    with pytest.raises(InvalidInput, match="header 'x-tenant': one line of printable text"):
        client._request(Ask("GET", "/v2"), 1.0)
