"""An estimator that takes columns of several kinds, mostly a pipeline that picks them by name: its input is a frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import BrokenVersion, Internal, InvalidInput, OctoserveError
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array, datatype_of
from octoserve.runtimes.library import first_line, needed
from octoserve.runtimes.protocol import RuntimeSettings


class ColumnsModel:
    """A tensor [-1] for each column, as `inputs:` of model.yaml declares them.

    The outputs are learned from a row of zeros and empty texts, or of first categories.
    """

    platform = "sklearn"
    lanes = 0

    def __init__(
        self, file: str, names: Sequence[str], settings: RuntimeSettings, predict: Callable[[Any], Mapping[str, Array]]
    ) -> None:
        self._predict = predict
        self._refuse_missing = settings.missing == "refuse"
        inputs = settings.inputs or ()
        for spec in inputs:
            if spec.shape not in ((-1,), (-1, 1)) or spec.datatype == "BF16":
                raise BrokenVersion(f"model.yaml: inputs: {spec}: a column is [-1] or [-1, 1], and no BF16")
        self._names = [spec.name for spec in inputs]
        if names and set(names) != set(self._names):
            raise BrokenVersion(
                f"model.yaml: inputs: {', '.join(self._names)} are declared, {file} was trained with {', '.join(names)}"
            )
        self._order = list(names) or self._names
        self._frame = needed("pandas", "sklearn", file).DataFrame
        self.signature = Signature(inputs, (), settings.batching is not False, categories=dict(settings.categories))
        self._outputs: list[TensorSpec] = []
        self._outputs = self._probe(file, settings)
        self.signature = Signature(
            inputs, self._outputs, settings.batching is not False, categories=dict(settings.categories)
        )

    def _probe(self, file: str, settings: RuntimeSettings) -> list[TensorSpec]:
        row: list[Array] = []
        for spec in self.signature.inputs:
            text = settings.categories.get(spec.name, ("",))[0]
            row.append(
                np.array([text.encode()], object)
                if spec.datatype == "BYTES"
                else np.zeros(1, DATATYPES[spec.datatype].dtype)
            )
        try:
            given = self._predict(self._table(row))
        except Exception as error:
            raise BrokenVersion(
                f"{file}: it fails on a row of zeros and empty texts, or first categories: {first_line(error)}. Name "
                "the texts that a column may hold under `categories:` in model.yaml"
            ) from error
        return [TensorSpec(name, datatype_of(array), (-1, *array.shape[1:])) for name, array in given.items()]

    def _table(self, inputs: Sequence[Array]) -> Any:
        columns: dict[str, Any] = {}
        for spec, array in zip(self.signature.inputs, inputs, strict=True):
            values = array.reshape(len(array))
            if spec.datatype == "BYTES":
                values = np.array([self._text(spec.name, value) for value in values.tolist()], dtype=object)
            elif self._refuse_missing and values.dtype.kind == "f" and np.isnan(values).any():
                row = int(np.argmax(np.isnan(values)))
                raise InvalidInput(
                    f"{spec.name} of row {row} is missing (NaN), and this model takes no missing numbers"
                )
            columns[spec.name] = values
        return self._frame({name: columns[name] for name in self._order})

    def _text(self, name: str, value: Any) -> str:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        known = self.signature.categories.get(name)
        if known is not None and text not in known:
            raise InvalidInput(
                f"input {name!r}: {text!r} is no category of it; the model knows {', '.join(map(repr, known[:20]))}"
            )
        return text

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `runtimes.protocol.LoadedModel.run`."""
        table = self._table(inputs)
        if not len(table):
            return [np.empty((0, *spec.shape[1:]), DATATYPES[spec.datatype].dtype) for spec in self._outputs]
        try:
            given = self._predict(table)
        except OctoserveError:
            raise
        except Exception as error:
            raise Internal(first_line(error)) from error
        return [given[spec.name] for spec in self._outputs]

    def close(self) -> None:
        """See `runtimes.protocol.LoadedModel.close`."""
        del self._predict
