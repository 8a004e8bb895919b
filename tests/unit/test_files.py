"""Steps of the local file system that have to do with others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from octoserve.connectors.files import LocalFiles


def test_a_folder_that_somebody_still_writes_to_is_removed_when_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work" / "spark-1"
    folder.mkdir(parents=True)
    late, rmtree = iter(["00001-a", "00002-b"]), shutil.rmtree

    def remove(path: Path) -> None:
        """As if a file came between the last look and the end."""
        rmtree(folder)
        if (name := next(late, None)) is not None:
            folder.mkdir()
            (folder / name).touch()
            folder.parent.rmdir()
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", remove)
    LocalFiles().remove_tree(tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_who_never_ends_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work" / "kept").mkdir(parents=True)
    monkeypatch.setattr(shutil, "rmtree", lambda path: path.rmdir())
    with pytest.raises(OSError, match="not empty"):
        LocalFiles().remove_tree(tmp_path / "work")


def test_nothing_is_removed_as_it_is(tmp_path: Path) -> None:
    LocalFiles().remove_tree(tmp_path / "nothing")
