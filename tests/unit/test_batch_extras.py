"""Every outside system has one library and one extra: without it, the error names what to install."""

from __future__ import annotations

import sys

import pytest

from octoserve.connectors import delta, iceberg, objects
from octoserve.connectors.postgres import address
from octoserve.connectors.sources import find
from octoserve.core.errors import SettingsError
from octoserve.patterns.batch.places import sink_of


@pytest.mark.parametrize(
    ("module", "ask", "extra"),
    [
        ("obstore", objects.obstore, "octoserve[s3]"),
        ("deltalake", delta.deltalake, "octoserve[delta]"),
        ("pyiceberg.catalog", lambda: iceberg.pyiceberg("catalog"), "octoserve[iceberg]"),
    ],
)
def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, module: str, ask, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingsError) as caught:
        ask()
    assert f"pip install '{extra}'" in str(caught.value)


@pytest.mark.parametrize(
    "where",
    ["gs://bucket/t", "https://me:s3cret@example.com/t.parquet", "hdfs://t", "mysql://me:s3cret@host/db?table=t"],
)
def test_what_is_neither(where: str) -> None:
    for look in (lambda: find([where]), lambda: sink_of(where)):
        with pytest.raises(SettingsError, match="wanted") as caught:
            look()
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "where", ["s3://", "s3://bucket", "s3://bucket/", "postgresql://host/db", "postgresql://h/d?table=a.b.c"]
)
def test_sinks_without_a_name(where: str) -> None:
    with pytest.raises(SettingsError, match="wanted"):
        sink_of(where)


def test_an_address_is_shown_without_its_secrets() -> None:
    said = address("postgresql://me:p%40ss@host:5/db?query=select a, b&split_by=n&sslmode=require&sslpassword=x")
    assert said.base == "postgresql://me:p%40ss@host:5/db?sslmode=require&sslpassword=x"
    assert said.shown == "postgresql://me@host:5/db?sslmode=require"
    assert said.parameters == {"query": "select a, b", "split_by": "n"}
    assert address(said.url(said.parameters)).parameters == said.parameters, "what is pinned says the same"
