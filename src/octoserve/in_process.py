"""An endpoint in this process: `octoserve.load("models/fraud")`, for notebooks, scripts and tests.

The same version, the same runtime and the same matching of columns as a batch has, so the same numbers as every door
gives. There is no admission and no dynamic batching: who asks waits, and what comes is the batch. Stands beside `app`,
which hands it the runtimes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from octoserve.connectors.arrow import RecordBatch, Schema, pyarrow
from octoserve.core.errors import InvalidInput, SettingsError
from octoserve.core.given import array_for
from octoserve.core.signature import Signature
from octoserve.core.tensors import Array, Tensor
from octoserve.lifecycle.probe import settle_batching
from octoserve.patterns.batch.conversion import tensors, unfit
from octoserve.patterns.batch.job import Differs, JobSettings
from octoserve.patterns.batch.matching import Feed, match
from octoserve.patterns.batch.model import Version

BLOCK = 4096
"""Rows of one run."""
_NAMED = 3
"""Rows that an error names; the others are counted."""


class Endpoint:
    """One version, loaded. Safe to ask from several threads; they take turns.

    columns: the columns of the model's only input, in order, where its model.yaml names none
    missing: "refuse" or "nan" for a missing number; "" as the model's own model.yaml says
    """

    def __init__(self, version: Version, columns: Sequence[str] = (), missing: str = "") -> None:
        self._loaded = version.load()
        settle_batching(self._loaded)
        self._name = str(version)
        self.model = version.identity.name
        self.version = version.identity.version
        self._nan = (missing or self.signature.missing) == "nan"
        self._settings = JobSettings(columns=tuple(columns), convert="round")
        self._feeds: tuple[Schema, tuple[Feed, ...]] | None = None
        self._turn = threading.Lock()

    @property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        return self._loaded.signature

    def __repr__(self) -> str:
        takes = ", ".join(map(str, self.signature.inputs))
        gives = ", ".join(map(str, self.signature.outputs))
        return f"<octoserve {self._name}: {takes} -> {gives}>"

    def predict(self, rows: Any) -> dict[str, Array]:
        """Output name -> array. All rows or none: raises InvalidInput that says what is wrong, and where.

        rows: an array, for a model of one input; a mapping of every input's name to its array; or columns by feature
              name, as a mapping, an Arrow table, or a pandas or polars frame. A mapping of single values is one row.
              Numbers become the nearest of the model's datatype, as in JSON; fractions never become whole numbers.
        """
        inputs = self.signature.inputs
        if isinstance(rows, Mapping):
            if rows.keys() == {spec.name for spec in inputs} and not self._names_columns(rows):
                return self._run([array_for(spec, rows[spec.name]) for spec in inputs])
            return self._table(_columns(rows))
        if _is_table(rows):
            return self._table(pyarrow().table(rows))
        if len(inputs) != 1:
            wanted = ", ".join(map(str, inputs))
            raise InvalidInput(
                f"{self._name} has several inputs: a mapping of their names to arrays is wanted: {wanted}"
            )
        return self._run([array_for(inputs[0], rows)])

    def close(self) -> None:
        """Free what the model holds."""
        self._loaded.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _names_columns(self, rows: Mapping[str, Any]) -> bool:
        """Whether what has the inputs' names are columns: one value a row, where the input has a dimension more."""
        return any(len(spec.shape) == 2 and np.ndim(rows[spec.name]) < 2 for spec in self.signature.inputs)

    def _run(self, arrays: Sequence[Array]) -> dict[str, Array]:
        signature = self.signature
        made = [Tensor.of(s.name, a, s.datatype) for s, a in zip(signature.inputs, arrays, strict=True)]
        signature.check(made)
        with self._turn:
            outputs = self._loaded.run(arrays)
        return {spec.name: output for spec, output in zip(signature.outputs, outputs, strict=True)}

    def _table(self, table: Any) -> dict[str, Array]:
        if not self.signature.batchable:
            takes = ", ".join(map(str, self.signature.inputs))
            raise InvalidInput(f"{self._name} takes no tables, its answers are not row by row; it takes {takes}")
        if not table.num_rows:
            raise InvalidInput("a table without rows came")
        feeds = self._matched(table.schema)
        parts = []
        first = 0
        for batch in table.combine_chunks().to_batches(max_chunksize=BLOCK):
            self._refuse_unfit(batch, feeds, first)
            parts.append(self._run(tensors(batch, feeds)))
            first += batch.num_rows
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _matched(self, schema: Schema) -> tuple[Feed, ...]:
        if self._feeds is None or not self._feeds[0].equals(schema):
            signature = self.signature
            try:
                matched = match(signature, schema, self._settings, signature.features, self._name)
            except Differs as error:
                lines = [f"{d.what}: {d.wanted} wanted, {d.came} came; {d.remedy}" for d in error.differences]
                raise InvalidInput("\n".join([f"{error}:", *lines])) from None
            except SettingsError as error:
                raise InvalidInput(str(error)) from None
            self._feeds = schema, matched.feeds
        return self._feeds[1]

    def _refuse_unfit(self, batch: RecordBatch, feeds: Sequence[Feed], first: int) -> None:
        reasons = unfit(batch, feeds, self._nan)
        if reasons:
            named = "; ".join(f"row {first + row}: {reasons[row]}" for row in sorted(reasons)[:_NAMED])
            more = f"; {len(reasons) - _NAMED} rows more" if len(reasons) > _NAMED else ""
            raise InvalidInput(f"{named}{more}")


def _is_table(rows: Any) -> bool:
    """Arrow's tables and batches, frames of pandas and polars, and whatever else speaks Arrow's protocol."""
    return hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__") or hasattr(rows, "__dataframe__")


def _columns(rows: Mapping[str, Any]) -> Any:
    """A table of them; a mapping of single values is one row."""
    pa = pyarrow()
    single = all(isinstance(value, str | bytes) or np.ndim(value) == 0 for value in rows.values())
    if not all(isinstance(name, str) for name in rows):
        raise InvalidInput("columns are found by name: a mapping of text to values is wanted")
    try:
        return pa.table({name: pa.array([value] if single else value) for name, value in rows.items()})
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InvalidInput(f"these columns make no table: {error}") from None
