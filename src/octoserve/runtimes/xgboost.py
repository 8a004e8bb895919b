"""XGBoost's own files, `model.ubj` and `model.json`.

What the file says is used: the width, the columns' names and, from XGBoost 3.1 on, the texts of categorical columns.
The output is what `Booster.predict` gives, so its meaning is the objective's: a probability, one a class, a number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from octoserve.core.errors import BrokenVersion
from octoserve.core.tensors import Array
from octoserve.runtimes.library import artifact, first_line, needed
from octoserve.runtimes.protocol import LoadedModel, RuntimeSettings
from octoserve.runtimes.tabular import Facts, TabularModel, parted

_PLACE = re.compile(r"^\[[\d:]+\] \S+?:\d+: ")
"""How XGBoost's errors begin: a time, and where in its sources."""


class XGBoostRuntime:
    """Loads `model.ubj` or `model.json` from a version folder."""

    name = "xgboost"
    artifacts: tuple[str, ...] = ("model.ubj", "model.json")
    distributions: tuple[str, ...] = ("xgboost", "xgboost-cpu")

    def load(self, folder: Path, settings: RuntimeSettings) -> LoadedModel:
        """Raises BrokenVersion with XGBoost's reason."""
        path = artifact(folder, self.artifacts)
        xgboost = needed("xgboost", "xgboost", path.name)
        try:
            booster = xgboost.Booster({"nthread": settings.threads}, model_file=str(path))
            facts = _facts(booster, path.name)
        except BrokenVersion:
            raise
        except Exception as error:
            raise BrokenVersion(f"{path.name}: {_PLACE.sub('', first_line(error))}") from error

        def predict(matrix: Array) -> dict[str, Array]:
            return {"prediction": booster.inplace_predict(matrix, validate_features=False)}

        return TabularModel("xgboost", facts, settings, predict)


def _facts(booster: Any, file: str) -> Facts:
    width = booster.num_features()
    if not width:
        raise BrokenVersion(f"{file}: a model without features")
    names = tuple(booster.feature_names or ())
    texts, numbers = parted(_categories(booster))
    return Facts(file, width, "FP32", names, texts, numbers)


def _categories(booster: Any) -> dict[str, list[Any]]:
    if "c" not in (booster.feature_types or ()) or not hasattr(booster, "get_categories"):
        return {}
    try:
        kept = booster.get_categories(export_to_arrow=True).to_arrow()
    except ImportError:  # it needs pyarrow for this; without, codes are wanted unless model.yaml has the texts
        return {}
    return {name: values.to_pylist() for name, values in kept if values is not None}
