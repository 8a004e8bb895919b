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
from support.mlflow_server import Registry, a_registry
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
        self._proxy.rule = lambda number, method, path: s3.SLOW_DOWN
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
        self._proxy.rule = lambda number, method, path: s3.SLOW_DOWN
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


def test_what_mlflow_has_saved_is_converted_and_a_pickle_only_where_it_is_trusted(
    registry: Registry, tmp_path: Path
) -> None:
    """An alias moves; a conversion done again has the same bytes, or a damaged copy could not be replaced."""
    name = "penguins of the south"
    registry.publish(name, registry.saved("skops"))
    registry.publish(name, registry.saved("cloudpickle"))
    registry.alias(name, "champion", 1)
    caches = {trust: Cache(tmp_path / str(trust), MlflowOrigin(registry.url, trust)) for trust in (False, True)}

    def only(model: str, versions: object, aliases: object) -> tuple[int, ...]:
        return (1, 2) if model == name else ()

    for cache in caches.values():
        with cache.writing():
            cache.round(only)
        assert cache.said.aliases[name] == {"champion": 1}
    assert "is a pickle, which runs whatever it holds" in caches[False].refused[name, 2]
    assert "add `pickle` to `trust`" in caches[False].refused[name, 2]
    assert caches[True].refused == {}
    answers = []
    for version in (1, 2):
        loaded = load(runtimes(), "sklearn", caches[True].place((name, version)))
        assert loaded.signature.features == {"features": ("a", "b", "c")}
        answers.append(str(loaded.signature.outputs))
        loaded.close()
    assert answers[0] == answers[1]
    first = {version: caches[True].record((name, version)) for version in (1, 2)}
    for version in (1, 2):
        caches[True].distrust((name, version))
    with caches[True].writing():
        caches[True].round(only)
    assert {version: caches[True].record((name, version)) for version in (1, 2)} == first
    registry.alias(name, "champion", 2)
    with caches[True].writing():
        caches[True].round(only)
    assert caches[True].said.aliases[name] == {"champion": 2}
