"""Counts a version's live rows into the bins of its reference profile. Works in the predictions' thread.

Counts only grow; the window that drift is measured over is cut out of them by the supervisor
(`patterns.online.supervisor.drift_watch`), which adds up all workers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from octoserve.core.bins import ColumnCounts, ProfileCounts
from octoserve.core.clock import Clock
from octoserve.core.errors import SettingsError
from octoserve.core.fields import OUTPUT, Field, is_text, matrix
from octoserve.core.profile import TEXTS
from octoserve.core.tensors import Array
from octoserve.lifecycle.states import VersionRef
from octoserve.repository import profiles
from octoserve.telemetry.families import TALLY, Family, Sample

log = logging.getLogger(__name__)

FAMILY = "octoserve_drift_bins"
LABELS = ("model", "version", "profile", "column")
LOOK = 10.0
"""Seconds between two looks for a profile that is made, or made anew, while the version serves."""


class DriftCounts:
    """One version's rows. It has counts as long as it has a profile."""

    def __init__(self, ref: VersionRef, fields: Sequence[Field], clock: Clock) -> None:
        self.digest = ref.digest
        self._ref = ref
        self._fields = fields
        self._clock = clock
        self._looked = -math.inf
        self._stamp: tuple[int, int] | None = None
        self._made: ProfileCounts | None = None
        self._plan: list[tuple[Field, list[tuple[int, ColumnCounts]]]] = []

    def ready(self) -> bool:
        """Whether there is a profile to count by; looks for one now and then."""
        now = self._clock()
        if now - self._looked >= LOOK:
            self._looked = now
            self._look()
        return self._made is not None

    def _look(self) -> None:
        folder = Path(self._ref.path)
        try:
            found = profiles.path_of(folder).stat()
            stamp = (found.st_mtime_ns, found.st_size)
        except OSError:
            stamp = None
        if stamp == self._stamp:
            return
        self._stamp, self._made, self._plan = stamp, None, []
        try:
            profile = profiles.read(folder, self._ref.digest)
        except SettingsError as error:
            log.warning("drift of %s is not watched: %s", self._ref, error)
            return
        if profile is None:
            return
        self._made = ProfileCounts(profile)
        for field in self._fields:
            columns = self._made.columns
            mine = [(place, columns[name]) for place, name in enumerate(field.elements()) if name in columns]
            mine = [(at, c) for at, c in mine if is_text(field.datatype) == (c.profile.kind == TEXTS)]
            if mine:
                self._plan.append((field, mine))

    def add(self, inputs: Sequence[Sequence[Array]], outputs: Sequence[Sequence[Array]], batchable: bool) -> None:
        """Count rows. inputs, outputs: each tensor's arrays."""
        for field, columns in self._plan:
            arrays = (outputs if field.side == OUTPUT else inputs)[field.index]
            table = matrix(arrays, batchable, field.datatype)
            if not is_text(field.datatype):
                table = np.asfortranarray(table, dtype=np.float64)
            for place, counts in columns:
                counts.add(table[:, place])

    def samples(self) -> list[Sample]:
        """A sample a column."""
        made = self._made
        if made is None:
            return []
        whose = (self._ref.model, str(self._ref.version), made.id)
        return [
            Sample((*whose, name), 0.0, 0, tuple(column.counts.tolist())) for name, column in list(made.columns.items())
        ]

    @staticmethod
    def family(counts: Sequence[DriftCounts]) -> Family:
        """What the supervisor reads."""
        samples = tuple(sample for each in counts for sample in each.samples())
        return Family(FAMILY, TALLY, "Live rows by bin of the reference profile.", LABELS, (), samples)
