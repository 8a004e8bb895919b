"""A service whose repository lies in S3: versions come and go as from a folder, and clients notice no outage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import octoserve
from octoserve.cli import model as model_cli
from octoserve.connectors import objects
from octoserve.core.errors import NotFound
from octoserve.origins import opening
from octoserve.origins.protocol import Away
from support import s3
from support.service import Served, serving, until
from support.supervised import constant_model

FLAGS = ("--repository-poll", "0.3s", "--settle", "0.3s")
ASK = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}


@pytest.fixture(scope="module")
def store() -> Iterator[s3.S3]:
    with s3.a_store() as found:
        yield found


@pytest.fixture
def proxy(store: s3.S3) -> Iterator[s3.Proxy]:
    """What the services ask; the tests write past it."""
    before = s3.Proxy(store)
    yield before
    before.close()


@pytest.fixture
def root(store: s3.S3, proxy: s3.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    opening._opened.cache_clear()
    with s3.used(proxy.url):
        yield f"s3://{s3.BUCKET}/{tmp_path.name}"
    opening._opened.cache_clear()


def put(store: s3.S3, root: str, model: str, version: int, value: float | None = None) -> None:
    key = f"{objects.split_url(root)[1]}/{model}/{version}/model.onnx"
    s3.client(store.url).put(key, constant_model(version if value is None else value))


def delete(store: s3.S3, root: str, model: str, version: int) -> None:
    s3.client(store.url).delete([f"{objects.split_url(root)[1]}/{model}/{version}/model.onnx"])


def answer(service: Served, model: str = "m", version: str = "") -> object:
    """What the model says, or the status of its refusal."""
    path = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"
    came = service.ask("POST", path, ASK)
    return came.json()["outputs"][0]["data"][0] if came.status == 200 else came.status


def standing(service: Served) -> dict[str, object]:
    status, view = service.admin("GET", "/api/repository")
    assert status == 200
    return dict(view)


def test_versions_come_and_go_through_an_outage_and_a_restart(
    store: s3.S3, proxy: s3.Proxy, root: str, tmp_path: Path
) -> None:
    put(store, root, "m", 1)
    put(store, root, "other", 1)
    with serving(root, tmp_path / "a", *FLAGS) as service:
        assert answer(service) == 1.0, "it is ready when what was there has loaded"
        put(store, root, "m", 2)
        until(lambda: answer(service) == 2.0)
        assert service.total("octoserve_repository_fetched_versions_total") == 3
        assert service.total("octoserve_repository_age_seconds") < 20

        proxy.rule = lambda number, method, path: s3.SLOW_DOWN
        until(lambda: standing(service)["error"], 60)
        put(store, root, "m", 3)
        failed = service.total("octoserve_repository_polls_total", outcome="failed")
        until(lambda: service.total("octoserve_repository_polls_total", outcome="failed") > failed, 60)
        assert answer(service) == 2.0
        proxy.rule = lambda number, method, path: None
        until(lambda: answer(service) == 3.0, 60)
        assert not standing(service)["error"]

        delete(store, root, "m", 3)
        until(lambda: answer(service) == 2.0)
        delete(store, root, "other", 1)
        until(lambda: answer(service, "other") == 404)

        put(store, root, "m", 2, value=7.0)
        until(lambda: "its files changed" in service.index()["m", 2]["reason"], 60)
        assert answer(service) == 2.0, "what is loaded serves on"
        put(store, root, "m", 2, value=2.0)
        until(lambda: not service.index()["m", 2]["reason"], 60)
        proxy.rule = lambda number, method, path: s3.SLOW_DOWN
        proxy.close()

    with serving(root, tmp_path / "a", *FLAGS) as service:
        until(lambda: answer(service) == 2.0, 60)
        until(lambda: standing(service)["error"], 60)
        assert answer(service) == 2.0
        assert "tried again every" in service.output()


def test_a_start_without_the_store_and_without_a_cache_waits_for_it(
    store: s3.S3, proxy: s3.Proxy, root: str, tmp_path: Path
) -> None:
    put(store, root, "m", 1)
    proxy.rule = lambda number, method, path: s3.DENIED
    with serving(root, tmp_path / "a", *FLAGS) as service:
        assert answer(service) == 404
        assert "AccessDenied" in str(standing(service)["error"])
        proxy.rule = lambda number, method, path: None
        until(lambda: answer(service) == 1.0, 60)
        put(store, root, "n", 1)
        status, _ = service.admin("POST", "/api/models/n/load")
        assert status == 200, "load fetches what is there now"
        assert answer(service, "n") == 1.0


def test_whoever_scores_once_takes_the_same_cache(
    store: s3.S3, proxy: s3.Proxy, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "SETTLE", 0.0)
    monkeypatch.setattr("octoserve.origins.cache.SKEW", -1e9)
    for version in (1, 2):
        put(store, root, "m", version)

    def cli(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(model_cli.app, [*arguments, "--repository", root])
        return done.exit_code, done.stdout

    with octoserve.load(f"{root}/m") as endpoint:
        assert endpoint.predict([[1.0, 2.0]])["y"].tolist() == [[2.0, 2.0]]
    listed = cli("list", "--json")[1]
    assert listed.index('"not in the cache"') < listed.index('"whole"'), (
        "version 1 was not fetched, nor is it for a list"
    )
    assert '"platform"' in cli("inspect", "m/1", "--json")[1]
    assert cli("verify", "m/2", "--accept") == (0, "m/2: same\n")
    with pytest.raises(NotFound, match="no version 9 of 'm' in s3://"):
        octoserve.load(f"{root}/m/9")

    (tmp_path / "rows.csv").write_text("id,a,b\n1,1,2\n2,3,4\n")
    octoserve.batch(root, "m", "rows.csv", "scored", keys=["id"], columns=["a", "b"], version=1, progress=False)
    assert (tmp_path / "scored" / "_SUCCESS").exists()

    proxy.rule = lambda number, method, path: s3.SLOW_DOWN
    copy = opening.root_here(root) / "m" / "2" / "model.onnx"
    with octoserve.load(f"{root}/m") as endpoint:
        assert endpoint.predict([[1.0, 2.0]])["y"].tolist() == [[2.0, 2.0]], "the store is away, and the cache has it"
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    with pytest.raises(Away, match="is not in the cache"):
        octoserve.load(f"{root}/m")
    proxy.rule = lambda number, method, path: None
    with octoserve.load(f"{root}/m") as endpoint:
        assert endpoint.predict([[1.0, 2.0]])["y"].tolist() == [[2.0, 2.0]], "fetched anew"
