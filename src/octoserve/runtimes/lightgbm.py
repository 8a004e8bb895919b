"""LightGBM's own file, `model.txt`.

What the file says is used: the width, the columns' names, and the texts of pandas' categorical columns. The output is
what `Booster.predict` gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octoserve.core.errors import BrokenVersion
from octoserve.core.tensors import Array
from octoserve.runtimes.library import artifact, first_line, needed
from octoserve.runtimes.protocol import LoadedModel, RuntimeSettings
from octoserve.runtimes.tabular import Facts, TabularModel, parted


class LightGBMRuntime:
    """Loads `model.txt` from a version folder."""

    name = "lightgbm"
    artifacts: tuple[str, ...] = ("model.txt",)
    distributions: tuple[str, ...] = ("lightgbm",)

    def load(self, folder: Path, settings: RuntimeSettings) -> LoadedModel:
        """Raises BrokenVersion with LightGBM's reason."""
        path = artifact(folder, self.artifacts)
        lightgbm = needed("lightgbm", "lightgbm", path.name)
        lightgbm.register_logger(_Quiet())
        try:
            booster = lightgbm.Booster(model_file=str(path))
            facts = _facts(booster, path.name)
        except BrokenVersion:
            raise
        except Exception as error:
            raise BrokenVersion(f"{path.name}: {first_line(error)}") from error
        threads = settings.threads

        def predict(matrix: Array) -> dict[str, Array]:
            return {"prediction": booster.predict(matrix, num_threads=threads)}

        return TabularModel("lightgbm", facts, settings, predict)


class _Quiet:
    """What fails is raised; LightGBM's own lines would go to standard output."""

    def info(self, text: str) -> None:
        """Nobody asked."""

    def warning(self, text: str) -> None:
        """The same."""


def _facts(booster: Any, file: str) -> Facts:
    width = booster.num_feature()
    names = tuple(booster.feature_name())
    if names == tuple(f"Column_{i}" for i in range(width)):
        names = ()  # what it writes where there were none
    texts, numbers = parted(_categories(booster, names, file))
    return Facts(file, width, "FP64", names, texts, numbers)


def _categories(booster: Any, names: tuple[str, ...], file: str) -> dict[str, list[Any]]:
    """pandas' categories come as a list for each categorical column, without the columns' names."""
    kept = booster.pandas_categorical or []
    if not kept:
        return {}
    # A column of codes has a list of them for its range; where only one was seen it may have `none`, as a number may.
    ranges = list(zip(names, _feature_infos(booster), strict=False))
    columns = [name for name, info in ranges if not info.startswith("[") and info != "none"]
    if len(columns) != len(kept):
        columns = [name for name, info in ranges if not info.startswith("[")]
    if len(columns) != len(kept):
        raise BrokenVersion(
            f"{file}: it has categories of {len(kept)} columns, and which they are cannot be told; train it with codes "
            "instead"
        )
    return dict(zip(columns, kept, strict=True))


def _feature_infos(booster: Any) -> list[str]:
    text = booster.model_to_string(num_iteration=1)
    line = next((line for line in text.splitlines() if line.startswith("feature_infos=")), "feature_infos=")
    return str(line).partition("=")[2].split()
