"""Trees of scikit-learn, checked before the first row.

Their code follows node and feature numbers without looking whether they are in range: a forged file could read foreign
memory. skops therefore knows these types as harmful. They are in most estimators that people have, so they are let in
and looked at: every child comes after its parent, every feature is one that its estimator asks its callers for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from octoserve.core.errors import BrokenVersion
from octoserve.core.tensors import Array

_TREE = "sklearn.tree._tree.Tree"
_PREDICTOR = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
TREES = frozenset({_TREE, _PREDICTOR})
_MOST = 1_000_000
"""Objects that are looked at."""


def check_trees(estimator: Any, file: str, trusted: Collection[str] = ()) -> None:
    """Raises BrokenVersion for a tree whose numbers lead out of it. Those of trusted types are not looked at."""
    widths: dict[int, int] = {}
    trees: list[Any] = []
    for thing in _all(estimator, file):
        if _name(thing) in TREES:
            trees.append(thing)
        else:
            _take_widths(thing, widths)
    for tree in trees:
        name = _name(tree)
        try:
            width = widths[id(tree)]
            sound = _tree_is_sound(tree, width) if name == _TREE else _predictor_is_sound(tree, width)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            sound = False
        if not sound and name not in trusted:
            raise BrokenVersion(f"{file}: it holds a tree whose numbers lead out of it; it was not made by training")


def _name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _take_widths(owner: Any, widths: dict[int, int]) -> None:
    """Of each tree, how wide a table its owner lets through to it: the least, where several own it.

    Forests and boosters hand tables to the trees of their members unseen; all others ask a member as a caller would.
    """
    width = getattr(owner, "n_features_in_", None)
    if not isinstance(width, int | np.integer):
        return
    owned = [getattr(owner, "tree_", None)]
    if type(owner).__module__.startswith("sklearn.ensemble."):
        subsets = getattr(owner, "estimators_features_", None)
        members = list(np.ravel(np.array(getattr(owner, "estimators_", ()), dtype=object)))
        for at, member in enumerate(members):
            tree = getattr(member, "tree_", None)
            if tree is not None:
                _narrow(widths, tree, len(subsets[at]) if subsets is not None else int(width))
        owned += [one for stage in getattr(owner, "_predictors", ()) for one in stage]
    for tree in owned:
        if tree is not None:
            _narrow(widths, tree, int(width))


def _narrow(widths: dict[int, int], tree: Any, width: int) -> None:
    widths[id(tree)] = min(width, widths.get(id(tree), width))


def _tree_is_sound(tree: Any, width: int) -> bool:
    left, right, features = tree.children_left, tree.children_right, tree.feature
    count = tree.node_count
    if not count or not all(len(part) == count for part in (left, right, features, tree.value)):
        return False
    leaves = left == -1
    inner = ~leaves
    return bool(
        (right[leaves] == -1).all()
        and _after(left, inner, count)
        and _after(right, inner, count)
        and ((features[inner] >= 0) & (features[inner] < width)).all()
    )


def _after(children: Array, inner: Array, count: int) -> bool:
    """Behind their parents, so that no walk goes in a circle."""
    own = np.arange(count)
    return bool(((children[inner] > own[inner]) & (children[inner] < count)).all())


def _predictor_is_sound(predictor: Any, width: int) -> bool:
    nodes = predictor.nodes
    count = len(nodes)
    inner = nodes["is_leaf"] == 0
    left, right = nodes["left"].astype(np.int64), nodes["right"].astype(np.int64)
    categorical = inner & (nodes["is_categorical"] != 0)
    bitsets = min(len(predictor.raw_left_cat_bitsets), len(predictor.binned_left_cat_bitsets))
    return bool(
        count
        and _after(left, inner, count)
        and _after(right, inner, count)
        and ((nodes["feature_idx"][inner] >= 0) & (nodes["feature_idx"][inner] < width)).all()
        and (nodes["bitset_idx"][categorical].astype(np.int64) < bitsets).all()
    )


def _all(root: Any, file: str) -> Iterator[Any]:
    """Every object of an estimator, once."""
    waiting, seen = [root], {id(root)}
    while waiting:
        thing = waiting.pop()
        yield thing
        for inner in _inside(thing):
            if id(inner) not in seen:
                seen.add(id(inner))
                waiting.append(inner)
        if len(seen) > _MOST:
            raise BrokenVersion(f"{file}: more than {_MOST} objects; trees in it cannot be looked at")


def _inside(thing: Any) -> list[Any]:
    if isinstance(thing, str | bytes | int | float | bool | np.generic | type(None) | type):
        return []
    if isinstance(thing, np.ndarray):
        return list(thing.ravel()) if thing.dtype == object else []
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, list | tuple | set | frozenset):
        return list(thing)
    return list(vars(thing).values()) if hasattr(thing, "__dict__") else []
