"""Trees of scikit-learn whose numbers lead out of them are found; those that training makes are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import ensemble, pipeline, preprocessing, tree

from octoserve.core.errors import BrokenVersion
from octoserve.runtimes.sklearn_trees import TREES, check_trees

ROWS = np.random.default_rng(3).normal(size=(60, 4))
CLASSES = (ROWS[:, 0] + ROWS[:, 1] > 0).astype(int)

ESTIMATORS = [
    tree.DecisionTreeClassifier(),
    ensemble.RandomForestClassifier(3),
    ensemble.ExtraTreesRegressor(3),
    ensemble.GradientBoostingClassifier(n_estimators=3),
    ensemble.HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=5),
    ensemble.IsolationForest(n_estimators=3, max_features=2),
    ensemble.BaggingClassifier(n_estimators=3, max_features=2),
    ensemble.AdaBoostClassifier(n_estimators=3),
    ensemble.VotingClassifier([("a", tree.DecisionTreeClassifier()), ("b", ensemble.RandomForestClassifier(2))]),
    pipeline.make_pipeline(preprocessing.PolynomialFeatures(2), ensemble.RandomForestClassifier(3)),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_trained_trees_pass(estimator: Any) -> None:
    check_trees(estimator.fit(ROWS, CLASSES), "model.skops")


def forged(**changes: Any) -> tree.DecisionTreeClassifier:
    """A tree with one field of its root changed."""
    fitted = tree.DecisionTreeClassifier(max_depth=2, random_state=0).fit(ROWS, CLASSES)
    state = fitted.tree_.__getstate__()
    for field, value in changes.items():
        state["nodes"][field][0] = value
    fitted.tree_.__setstate__(state)
    return fitted


@pytest.mark.parametrize(
    "changes",
    [{"left_child": 10_000}, {"right_child": -7}, {"left_child": 0}, {"feature": 4}, {"feature": -3}],
    ids=str,
)
def test_numbers_that_lead_out_are_refused(changes: dict[str, int]) -> None:
    check_trees(forged(), "model.skops")
    with pytest.raises(BrokenVersion, match="lead out"):
        check_trees(forged(**changes), "model.skops")
    check_trees(forged(**changes), "model.skops", trusted=TREES)


def test_a_tree_that_takes_more_than_its_owner_asks_for_is_refused() -> None:
    """The owner lets narrow tables through to it."""
    fitted = tree.DecisionTreeClassifier(max_depth=3, random_state=0).fit(ROWS, CLASSES)
    fitted.n_features_in_ = 1
    with pytest.raises(BrokenVersion, match="lead out"):
        check_trees(fitted, "model.skops")
    forest = ensemble.RandomForestClassifier(3, random_state=0).fit(ROWS, CLASSES)
    forest.n_features_in_ = 1
    with pytest.raises(BrokenVersion, match="lead out"):
        check_trees(pipeline.make_pipeline(preprocessing.StandardScaler(), forest), "model.skops")


def test_a_tree_that_nobody_owns_is_refused() -> None:
    with pytest.raises(BrokenVersion, match="lead out"):
        check_trees({"hidden": [forged().tree_]}, "model.skops")


def test_a_histogram_tree_is_looked_at_too() -> None:
    fitted = ensemble.HistGradientBoostingClassifier(max_iter=2, min_samples_leaf=5).fit(ROWS, CLASSES)
    fitted._predictors[0][0].nodes["feature_idx"][0] = 99
    with pytest.raises(BrokenVersion, match="lead out"):
        check_trees(fitted, "model.skops")
