"""Requests that are answered later, between who accepts them and who runs them: places, references, ids."""

from __future__ import annotations

import pytest

from octoserve.core.errors import InvalidInput
from octoserve.dataplane.deferred import LENGTH_HEADER, reference_in, within


@pytest.mark.parametrize(
    ("address", "place", "is_within"),
    [
        ("https://h.example/hooks/1", "https://h.example/hooks/", True),
        ("https://h.example/hooks/1", "https://h.example/hooks", True),
        ("https://h.example/hooks", "https://h.example/hooks/", True),
        ("https://h.example:443/x?y=1", "https://h.example", True),
        ("https://H.Example/x", "https://h.example/", True),
        ("s3://bucket/in/a/b", "s3://bucket/in/", True),
        ("https://h.example/hooksy", "https://h.example/hooks", False),
        ("https://h.example.evil.example/hooks/1", "https://h.example", False),
        ("https://evil.example/https://h.example/hooks/", "https://h.example/hooks/", False),
        ("https://h.example@evil.example/hooks/", "https://h.example", False),
        ("https://user@h.example/hooks/", "https://h.example", False),
        ("http://h.example/hooks/", "https://h.example/hooks/", False),
        ("https://h.example:8443/hooks/", "https://h.example/hooks/", False),
        ("https://h.example/hooks/../admin", "https://h.example/hooks/", False),
        ("https://h.example/hooks/%2e%2e/admin", "https://h.example/hooks/", False),
        ("https://h.example/hooks/%252e%252e/admin", "https://h.example/hooks/", False),
        ("https://h.example/hooks%2f..%2fadmin", "https://h.example/", False),
        ("https://h.example\\@evil.example/hooks/", "https://h.example", False),
        ("https://h.example/a b", "https://h.example", False),
        ("https://h.example/\r\nHost: x", "https://h.example", False),
        ("https://h.example:99999/", "https://h.example", False),
        ("file:///etc/passwd", "file:///etc", False),
        ("gopher://h.example/", "gopher://h.example/", False),
        ("//h.example/", "https://h.example", False),
        ("s3://bucket-2/in/a", "s3://bucket/in/", False),
        ("", "https://h.example", False),
    ],
)
def test_places(address: str, place: str, is_within: bool):
    assert within(address, [place]) is is_within
    assert within(address, []) is False


def test_a_reference_is_a_body_that_is_nothing_else():
    found = reference_in(b'{"input_location": "s3://b/k", "id": "a"}', {})
    assert found is not None
    assert (found.input_location, found.id) == ("s3://b/k", "a")
    assert reference_in(b'{"inputs": []}', {}) is None
    assert reference_in(b'{"input_location": "s3://b/k"}xxxx', {LENGTH_HEADER: "30"}) is None
    with pytest.raises(InvalidInput, match="stands alone"):
        reference_in(b'{"input_location": "s3://b/k", "inputs": []}', {})
