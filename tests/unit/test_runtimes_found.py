"""Runtimes of other packages, and libraries that are not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from octoserve import app
from octoserve.core.errors import BrokenVersion
from octoserve.repository.layout import ARTIFACTS, OURS
from octoserve.runtimes.found import found, library_of
from octoserve.runtimes.protocol import RuntimeSettings, artifacts_of

MODULE = """
class Fish:
    name = "fish"
    artifacts = ("model.fish",)
    distributions = ("fishes",)
    def load(self, folder, settings): ...

class Other(Fish):
    name = "other"

class Broken:
    def __init__(self): raise OSError("no water")
"""
POINTS = """
[octoserve.runtimes]
fish = fishes_of_a_test:Fish
onnx = fishes_of_a_test:Fish
renamed = fishes_of_a_test:Other
dry = fishes_of_a_test:Broken
gone = no_such_module_at_all:Fish
"""


@pytest.fixture
def fishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is installed, as far as Python can tell."""
    (tmp_path / "fishes_of_a_test.py").write_text(MODULE)
    info = tmp_path / "fishes-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fishes\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("fishes")
def test_a_package_brings_a_runtime() -> None:
    runtime = found(("onnx",))["fish"]
    assert runtime.artifacts == ("model.fish",)
    assert library_of(runtime) == "fishes 1.5"
    assert app.formats().artifacts["model.fish"] == "fish"
    assert "fish" in app.runtimes()


@pytest.mark.usefixtures("fishes")
def test_it_cannot_take_one_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    assert "onnx" not in found(("onnx",))
    assert "'onnx' of fishes_of_a_test:Fish is left out" in caplog.text
    assert type(app.runtimes()["onnx"]).__name__ == "OnnxRuntime"


@pytest.mark.usefixtures("fishes")
@pytest.mark.parametrize(
    ("name", "reason"), [("dry", "no water"), ("gone", "no_such_module_at_all"), ("renamed", "its name is 'other'")]
)
def test_one_that_cannot_be_made_says_why_when_it_is_wanted(name: str, reason: str) -> None:
    runtime = found(())[name]
    with pytest.raises(BrokenVersion, match=reason):
        runtime.load(Path(), RuntimeSettings())


@pytest.mark.parametrize(
    ("name", "file", "module", "extra"),
    [
        ("xgboost", "model.ubj", "xgboost", "xgboost"),
        ("lightgbm", "model.txt", "lightgbm", "lightgbm"),
        ("sklearn", "model.skops", "skops", "sklearn"),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str, module: str, extra: str
) -> None:
    for known in [known for known in sys.modules if known.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / file).touch()
    with pytest.raises(BrokenVersion, match=rf"{file} needs {module}.*pip install 'octoserve\[{extra}\]'"):
        app.runtimes()[name].load(tmp_path, RuntimeSettings())


def test_every_file_belongs_to_one_runtime() -> None:
    known = app.runtimes()
    files = [file for runtime in known.values() for file in runtime.artifacts]
    assert len(set(files)) == len(files)
    assert ARTIFACTS.items() <= OURS.artifacts.items()
    assert artifacts_of(known.values()) == OURS.artifacts
    assert set(OURS.named) == {runtime.name for runtime in known.values() if not runtime.artifacts}


@pytest.mark.usefixtures("fishes")
def test_what_is_looked_for_is_what_can_be_loaded() -> None:
    assert app.formats().artifacts == artifacts_of(app.runtimes().values())
    assert set(app.formats().named) == set(app.runtimes())


def test_trust_comes_from_the_environment_where_nobody_says_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.py").touch()

    def reason(trust: list[str] | None) -> str:
        with pytest.raises(BrokenVersion) as caught:
            app.runtimes(trust)["python"].load(tmp_path, RuntimeSettings())
        return str(caught.value)

    monkeypatch.delenv("OCTOSERVE_TRUST", raising=False)
    assert "not trusted" in reason(None)
    monkeypatch.setenv("OCTOSERVE_TRUST", "a.Type, code")
    assert "inputs: wanted" in reason(None)
    assert "not trusted" in reason([])
    assert "inputs: wanted" in reason(["code"])
