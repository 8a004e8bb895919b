"""SageMaker's models on disk: placed whole or not at all, refused where there is no room, numbered on afterwards."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from octoserve.core.errors import Conflict, InvalidInput, NotFound
from octoserve.patterns.online import sagemaker_models
from octoserve.patterns.online.sagemaker_models import NoRoom, SagemakerModels, available
from octoserve.patterns.online.settings import MultiModel


class Place:
    """A repository, and a folder with one model of ten bytes."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "repository"
        self.models = folder / "models"
        self.url = str(self.models / "abc" / "model")
        Path(self.url).mkdir(parents=True)
        (Path(self.url) / "model.onnx").write_bytes(b"0123456789")
        self.room = 1000.0
        settings = MultiModel(folder=str(self.models), repository=str(self.repository), workers=3)
        self.sagemaker = SagemakerModels(settings, lambda: self.room)

    def file(self, version: int = 1) -> Path:
        return self.repository / "m" / str(version) / "model.onnx"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_model_is_placed_and_removed(place: Place) -> None:
    assert place.sagemaker.all() == {}
    place.sagemaker.place("m", place.url)
    assert place.file().read_bytes() == b"0123456789"
    assert (place.sagemaker.all(), place.sagemaker.url_of("m")) == ({"m": place.url}, place.url)
    (place.repository / ".sagemaker" / ".n.7").write_bytes(b"")  # another worker is about to rename it
    assert place.sagemaker.all() == {"m": place.url}
    with pytest.raises(Conflict, match="loaded already"):
        place.sagemaker.place("m", place.url)
    place.sagemaker.remove("m")
    assert (place.sagemaker.all(), place.file().exists()) == ({}, False)
    with pytest.raises(NotFound):
        place.sagemaker.url_of("m")
    place.sagemaker.place("m", place.url)  # its files may be others: versions are immutable
    assert place.file(2).exists()


def test_a_folder_of_versions_gives_its_newest(place: Place) -> None:
    for number in (2, 10):
        folder = Path(place.url) / str(number)
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"%d" % number)
    place.sagemaker.place("m", place.url)
    assert place.file().read_bytes() == b"10"


def test_no_memory(place: Place) -> None:
    place.room = 29.0  # ten bytes in each of three workers
    with pytest.raises(NoRoom, match="memory"):
        place.sagemaker.place("m", place.url)
    assert place.sagemaker.all() == {}
    place.room = 30.0
    place.sagemaker.place("m", place.url)


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoRoom), (errno.EACCES, InvalidInput)])
def test_no_disk(place: Place, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sagemaker_models.shutil, "copyfile", full)
    monkeypatch.setattr(sagemaker_models.os, "link", full)
    with pytest.raises(kind):
        place.sagemaker.place("m", place.url)
    assert (place.sagemaker.all(), (place.repository / "m").exists()) == ({}, False)


@pytest.mark.parametrize("model", ["", ".", "..", ".sagemaker", "../m", "a/b", "_m", "m.tmp", "m\n", "m" * 300])
def test_names_that_are_no_model_s(place: Place, model: str) -> None:
    with pytest.raises(InvalidInput, match="model_name"):
        place.sagemaker.place(model, place.url)
    with pytest.raises(NotFound):
        place.sagemaker.url_of(model)


def test_only_what_lies_where_sagemaker_puts_it_is_loaded(place: Place, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (place.models / "link").symlink_to(tmp_path / "secret")
    away = [str(tmp_path / "secret"), f"{place.models}/../secret", str(place.models / "link"), str(place.models)]
    for url in [*away, "abc/model", "", "/", f"{place.url}/model.onnx", f"{place.url}/nothing"]:
        with pytest.raises(InvalidInput, match="url"):
            place.sagemaker.place("m", url)


def test_memory_that_is_left() -> None:
    assert 1 << 20 < available() < 1 << 50
