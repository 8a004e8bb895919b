"""Inputs by reference, from a bucket: what is allowed is read, anything else is said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from octoserve.connectors import objects
from octoserve.core.errors import InvalidInput, NotFound, TooLarge
from octoserve.patterns.message_queue.request_work import fetch
from support import s3


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3.a_store() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in s3.variables(store.url).items():
            patch.setenv(name, value)
        objects.forget()
        objects.bucket(s3.BUCKET).put("in/a.json", b"{}")
        objects.bucket(s3.BUCKET).put("secret.json", b"{}")
        yield f"s3://{s3.BUCKET}"
    objects.forget()


def test_an_object_below_an_allowed_place_is_read(bucket: str):
    assert fetch(f"{bucket}/in/a.json", [f"{bucket}/in/"], 2) == b"{}"


@pytest.mark.parametrize("name", ["secret.json", "in/../secret.json", "in/%2e%2e/secret.json", "inner/a.json"])
def test_an_object_elsewhere_is_not(bucket: str, name: str):
    with pytest.raises(InvalidInput, match="not one that is allowed"):
        fetch(f"{bucket}/{name}", [f"{bucket}/in/"], 100)


def test_what_is_no_object_store_is_not():
    with pytest.raises(InvalidInput, match="not one that is allowed"):
        fetch("http://127.0.0.1/latest/meta-data", ["http://127.0.0.1/"], 100)


def test_what_is_too_large_or_not_there_is_said(bucket: str):
    with pytest.raises(TooLarge, match="has 2 bytes, at most 1 are taken"):
        fetch(f"{bucket}/in/a.json", [f"{bucket}/in/"], 1)
    with pytest.raises(NotFound, match="no such object"):
        fetch(f"{bucket}/in/b.json", [f"{bucket}/in/"], 100)
