"""What holds of every repository elsewhere: it lists what it has, a version comes whole, being away is said as such.

One of S3 (a stand-in, moto) and a real MLflow registry.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from octoserve.app import runtimes
from octoserve.lifecycle.loading import load
from octoserve.origins.cache import Cache
from octoserve.origins.mlflow import MlflowOrigin
from octoserve.origins.objects import ObjectOrigin
from octoserve.origins.protocol import Away, Moved, Origin
from support import s3
from support.mlflow import Registry, a_registry
from support.origins import newest
from support.supervised import constant_model


class Place(Protocol):
    """Where versions are put."""

    origin: Origin

    def put(self, model: str, version: int) -> None:
        """A model that answers its number."""

    def remove(self, model: str, version: int) -> None: ...

    def close(self) -> None:
        """Nobody answers after this."""


class InS3:
    def __init__(self, store: s3.S3, folder: str) -> None:
        self._proxy = s3.Proxy(store)
        self._folder = folder
        self._bucket = s3.client(store.url)
        self.origin = ObjectOrigin(f"s3://{s3.BUCKET}/{folder}", s3.client(self._proxy.url, patience=1.0))

    def put(self, model: str, version: int) -> None:
        self._bucket.put(f"{self._folder}/{model}/{version}/model.onnx", constant_model(version))

    def remove(self, model: str, version: int) -> None:
        self._bucket.delete([f"{self._folder}/{model}/{version}/model.onnx"])

    def close(self) -> None:
        self._proxy.close()


class InMlflow:
    def __init__(self, registry: Registry, prefix: str) -> None:
        self._proxy = s3.Proxy(registry)
        self._registry, self._prefix = registry, prefix
        self.origin = MlflowOrigin(f"mlflow+{self._proxy.url}")

    def put(self, model: str, version: int) -> None:
        assert self._registry.publish(model, self._registry.onnx(version)) == version

    def remove(self, model: str, version: int) -> None:
        self._registry.remove(model, version)

    def close(self) -> None:
        self._proxy.close()


@pytest.fixture(scope="module")
def store() -> Iterator[s3.S3]:
    with s3.a_store() as found:
        yield found


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with a_registry(tmp_path_factory.mktemp("mlflow")) as found:
        yield found


@pytest.fixture(params=["s3", "mlflow"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made: Place
    if request.param == "s3":
        made = InS3(request.getfixturevalue("store"), tmp_path.name)
    else:
        made = InMlflow(request.getfixturevalue("registry"), tmp_path.name)
    yield made
    made.close()


def test_a_version_comes_and_goes_and_an_outage_is_no_news(place: Place, tmp_path: Path) -> None:
    name = tmp_path.name[:40]
    place.put(name, 1)
    place.put(name, 2)
    cache = Cache(tmp_path, place.origin)
    with cache.writing():
        first = cache.round(newest(9), trust=lambda model: True)
    assert {(name, 1), (name, 2)} <= set(first.fetched)
    for number in (1, 2):
        loaded = load(runtimes(), "onnx", cache.place((name, number)))
        assert [spec.name for spec in loaded.signature.outputs] == ["y"]
        loaded.close()
    offered = place.origin.look().versions[name, 1]
    place.remove(name, 1)
    assert (name, 1) not in place.origin.look().versions
    (tmp_path / "late").mkdir()
    with pytest.raises((Moved, Away)):
        place.origin.fetch((name, 1), offered, tmp_path / "late", lambda _: None)
    with cache.writing():
        cache.round(newest(9))
        assert (name, 1) in cache.round(newest(9)).removed
    place.close()
    with pytest.raises(Away), cache.writing():
        cache.round(newest(9))
    assert (name, 2) in cache.cached()
