"""scikit-learn estimators in skops' form, `model.skops`: a file that says which types it is made of.

A pickle would run whatever it holds. Here each type must be known to be harmless, or be trusted by name by whoever
runs octoserve. See `runtimes.sklearn_trees` for the types of trees, which are let in and then checked.

A classifier gives `label` and, where it has them, `probabilities`; what else predicts gives `prediction`, a transformer
`transformed`. Each is what the estimator's own method gives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octoserve.core.errors import BrokenVersion, InvalidInput, OctoserveError
from octoserve.core.tensors import Array
from octoserve.runtimes.library import artifact, first_line, needed
from octoserve.runtimes.protocol import LoadedModel, RuntimeSettings
from octoserve.runtimes.sklearn_columns import ColumnsModel
from octoserve.runtimes.sklearn_trees import TREES, check_trees
from octoserve.runtimes.tabular import Facts, TabularModel

_EXTRA = "sklearn"


class SklearnRuntime:
    """Loads `model.skops` from a version folder.

    trusted: names of types that a file may hold beyond those that are known to be harmless
    """

    name = "sklearn"
    artifacts: tuple[str, ...] = ("model.skops",)
    distributions: tuple[str, ...] = ("scikit-learn",)

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        self._trusted = frozenset(trusted)

    def load(self, folder: Path, settings: RuntimeSettings) -> LoadedModel:
        """Raises BrokenVersion with the types that are not trusted, or with the library's reason."""
        path = artifact(folder, self.artifacts)
        skops = needed("skops.io", _EXTRA, path.name)
        needed("sklearn", _EXTRA, path.name)
        try:
            wanted = skops.get_untrusted_types(file=path)
            self._refuse(path.name, wanted)
            estimator = skops.load(path, trusted=wanted)
        except BrokenVersion:
            raise
        except Exception as error:  # a zip that is none, a file of another version: many classes
            raise BrokenVersion(f"{path.name}: {first_line(error)}") from error
        check_trees(estimator, path.name, self._trusted)
        return _model(estimator, path.name, settings)

    def _refuse(self, file: str, wanted: Sequence[str]) -> None:
        unknown = sorted(set(wanted) - TREES - self._trusted)
        if unknown:
            raise BrokenVersion(
                f"{file} holds types that are not known to be harmless: {', '.join(unknown)}. If you trust whoever can "
                f"write to this repository, set OCTOSERVE_TRUST={','.join(unknown)}, or list them under trust: in "
                "octoserve.yaml"
            )


def _model(estimator: Any, file: str, settings: RuntimeSettings) -> LoadedModel:
    _limit(estimator, settings.threads)
    # It would say so for every request. That the columns are those that it was trained with is checked by name, once.
    warnings.filterwarnings("ignore", message="X does not have valid feature names", category=UserWarning)
    methods = _methods(estimator, file)
    pools = needed("threadpoolctl", _EXTRA, file).ThreadpoolController()

    def predict(table: Any) -> Mapping[str, Array]:
        try:
            with pools.limit(limits=settings.threads):
                return {name: _plain(method(table)) for name, method in methods}
        except OctoserveError:
            raise
        except ValueError as error:  # scikit-learn's word for values that it does not take
            raise InvalidInput(f"the model refuses these inputs: {first_line(error)}") from error

    names = tuple(str(name) for name in getattr(estimator, "feature_names_in_", ()))
    if settings.inputs is not None and len(settings.inputs) > 1:
        return ColumnsModel(file, names, settings, predict)
    width = getattr(estimator, "n_features_in_", 0)
    if not width:
        raise BrokenVersion(
            f"{file}: the {type(estimator).__name__} does not say what it takes; declare it in model.yaml: "
            "`inputs: [{name: ..., datatype: ..., shape: [-1]}, ...]`"
        )
    facts = Facts(file, int(width), "FP64", names)
    try:
        return TabularModel("sklearn", facts, settings, predict)
    except BrokenVersion as error:
        if settings.inputs is not None or "row of zeros" not in str(error):
            raise
        raise BrokenVersion(
            f"{error}. If it takes columns of text, or by name, declare each in model.yaml: "
            "`inputs: [{name: ..., datatype: BYTES}, ...]`"
        ) from error


def _limit(estimator: Any, threads: int) -> None:
    """`n_jobs` of all that has one: they were set where it was trained."""
    parameters = estimator.get_params(deep=True) if hasattr(estimator, "get_params") else {}
    jobs = {name: threads for name in parameters if name == "n_jobs" or name.endswith("__n_jobs")}
    if jobs:
        estimator.set_params(**jobs)


def _methods(estimator: Any, file: str) -> list[tuple[str, Callable[[Any], Any]]]:
    if hasattr(estimator, "predict"):
        # is_classifier needs tags that foreign estimators may not have; classes_ is what a classifier must have.
        if not hasattr(estimator, "classes_"):
            return [("prediction", estimator.predict)]
        several = isinstance(estimator.classes_, list)  # one array an output: probabilities would be a list as well
        scores = (
            [] if several or not hasattr(estimator, "predict_proba") else [("probabilities", estimator.predict_proba)]
        )
        return [("label", estimator.predict), *scores]
    if hasattr(estimator, "transform"):
        return [("transformed", estimator.transform)]
    raise BrokenVersion(f"{file}: a {type(estimator).__name__} can neither predict nor transform")


def _plain(given: Any) -> Array:
    """As an array that a door can send: of numbers, or of text."""
    array = np.asarray(given.toarray() if hasattr(given, "toarray") else given)
    if array.dtype.kind in "US":
        array = array.astype(object)
    if array.dtype == object:
        array = np.array([str(value) for value in array.ravel()], dtype=object).reshape(array.shape)
    return array
