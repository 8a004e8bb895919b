"""Counts values into the bins of a profile (`core.profile`)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octoserve.core.profile import LEVELS, NUMBERS, ColumnProfile, Profile
from octoserve.core.tensors import Array


class ColumnCounts:
    """One column's bins."""

    def __init__(self, profile: ColumnProfile) -> None:
        self.profile = profile
        self.counts: NDArray[np.int64] = np.zeros(len(profile.counts), dtype=np.int64)
        self._edges = np.asarray(profile.edges)
        order = np.argsort(profile.levels, kind="stable")
        self._levels, self._places = np.asarray(profile.levels)[order], order
        self._texts = {text: place for place, text in enumerate(profile.texts)}

    def add(self, values: Array, missing: int = 0) -> None:
        """Count a vector of numbers, NaN for what is missing, or of texts; and so many more that are missing."""
        kind = self.profile.kind
        self.counts[-1] += missing
        if not len(values):
            return
        if kind == NUMBERS:
            self._number(np.searchsorted(self._edges, values.astype(np.float64, copy=False)), values)
        elif kind == LEVELS:
            numbers = values.astype(np.float64, copy=False)
            near = np.minimum(np.searchsorted(self._levels, numbers), max(len(self._levels) - 1, 0))
            there = self._levels[near] == numbers if len(self._levels) else np.zeros(len(numbers), np.bool_)
            other = len(self._levels)
            self._number(np.where(there, self._places[near] if other else 0, other), numbers)
        else:
            other = len(self._texts)
            for value, count in Counter(values.tolist()).items():
                self.counts[self._texts.get(text_of(value), other)] += count

    def _number(self, places: NDArray[np.int64], values: Array) -> None:
        if values.dtype.kind == "f":
            odd = np.isnan(values)
            if odd.any():
                self.counts[-1] += int(odd.sum())
                places = places[~odd]
        self.counts += np.bincount(places, minlength=len(self.counts))


class ProfileCounts:
    """All columns of a profile."""

    def __init__(self, profile: Profile) -> None:
        self.id = profile.id()
        self.columns = {column.name: ColumnCounts(column) for column in profile.columns}


def text_of(value: Any) -> str:
    """An element of a BYTES tensor as profiles have it."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
