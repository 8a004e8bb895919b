"""A model that takes a table of numbers, whichever library it is of: its signature, and its inputs as one matrix.

Its input is one tensor, `features` [-1, N], or, where a feature is text (it has categories) or the version declares it
so, a tensor [-1] for each feature. What the artifact says and what `model.yaml` says must be one thing: columns in
another order than they were trained in would give answers that look right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import BrokenVersion, Internal, InvalidInput, OctoserveError
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array, datatype_of
from octoserve.runtimes.library import first_line
from octoserve.runtimes.protocol import RuntimeSettings

FEATURES = "features"
Predict = Callable[[Array], Mapping[str, Array]]
"""A matrix of rows -> outputs by name, each with the rows first."""


class Facts(msgspec.Struct, frozen=True):
    """What an artifact says of itself.

    file:       its name, for errors
    width:      of the matrix
    datatype:   of the matrix, where the version declares none
    names:      of the columns, in order; empty where it has none
    categories: feature -> its texts in the order of their codes
    numbers:    the same of features whose categories are numbers, where a number is not its own code
    """

    file: str
    width: int
    datatype: str
    names: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = {}
    numbers: Mapping[str, tuple[float, ...]] = {}


class TabularModel:
    """See the module. The library is called with one row more to see what it gives, when it is loaded."""

    lanes = 0

    def __init__(self, platform: str, facts: Facts, settings: RuntimeSettings, predict: Predict) -> None:
        self.platform = platform
        self._predict = predict
        self._file = facts.file
        self._refuse_missing = settings.missing == "refuse"
        names = _names(facts, settings)
        self._names = names or tuple(f"column {i}" for i in range(facts.width))
        texts = _texts(facts, settings, names)
        inputs = _inputs(facts, settings, names, texts)
        self._dtype = DATATYPES[facts.datatype if texts or len(inputs) > 1 else inputs[0].datatype].dtype
        self._codes = {at: {text: code for code, text in enumerate(texts[name])} for at, name in _at(inputs, texts)}
        self._numbers = {at: facts.numbers[name] for at, name in enumerate(names) if name in facts.numbers}
        self._columns = len(inputs) > 1 or bool(self._codes)
        features = {} if self._columns or not names else {inputs[0].name: names}
        outputs = self._probe(facts.width)
        self.signature = Signature(inputs, outputs, batchable=settings.batching is not False, features=features)
        self.signature.categories = {self._names[at]: texts[self._names[at]] for at in self._codes}

    def _probe(self, width: int) -> list[TensorSpec]:
        try:
            given = self._predict(np.zeros((1, width), self._dtype))
        except Exception as error:
            raise BrokenVersion(f"{self._file}: it fails on a row of zeros: {first_line(error)}") from error
        self._outputs = tuple(given)
        specs = []
        for name, array in given.items():
            if array.ndim == 0 or array.shape[0] != 1:
                raise BrokenVersion(f"{self._file}: output {name!r} is of shape {list(array.shape)} for one row")
            specs.append(TensorSpec(name, datatype_of(array), (-1, *array.shape[1:])))
        return specs

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `runtimes.protocol.LoadedModel.run`."""
        matrix = self._matrix(inputs) if self._columns else inputs[0]
        if self._numbers:
            matrix = self._numbered(matrix)
        if self._refuse_missing and np.isnan(matrix).any():
            row, column = np.argwhere(np.isnan(matrix))[0]
            raise InvalidInput(
                f"{self._names[column]} of row {row} is missing (NaN), and this model takes no missing numbers"
            )
        if not len(matrix):
            return [np.empty((0, *spec.shape[1:]), DATATYPES[spec.datatype].dtype) for spec in self.signature.outputs]
        try:
            given = self._predict(matrix)
        except OctoserveError:
            raise
        except Exception as error:
            raise Internal(first_line(error)) from error
        return [given[name] for name in self._outputs]

    def _matrix(self, inputs: Sequence[Array]) -> Array:
        matrix = np.empty((len(inputs[0]), len(inputs)), self._dtype)
        for at, column in enumerate(inputs):
            codes = self._codes.get(at)
            values = column.reshape(len(column))
            matrix[:, at] = values if codes is None else self._coded(codes, values, self._names[at])
        return matrix

    def _numbered(self, matrix: Array) -> Array:
        """Numbers that stand for categories become their codes; a missing one stays missing."""
        matrix = matrix.copy()
        for at, known in self._numbers.items():
            values = matrix[:, at]
            codes = np.full(len(values), np.nan)
            for code, number in enumerate(known):
                codes[values == number] = code
            unknown = np.isnan(codes) & ~np.isnan(values)
            if unknown.any():
                raise InvalidInput(
                    f"{self._names[at]}: {values[unknown][0]:g} is no category of it; the model knows "
                    f"{', '.join(f'{number:g}' for number in known[:20])}"
                )
            matrix[:, at] = codes
        return matrix

    def _coded(self, codes: Mapping[str, int], values: Array, name: str) -> list[float]:
        """A text that the model was not trained with is refused, as a code for it would be another category's."""
        coded = []
        for value in values.tolist():
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            code = codes.get(text)
            if code is None:
                known = ", ".join(map(repr, list(codes)[:20]))
                raise InvalidInput(f"input {name!r}: {text!r} is no category of it; the model knows {known}")
            coded.append(float(code))
        return coded

    def close(self) -> None:
        """See `runtimes.protocol.LoadedModel.close`."""
        del self._predict


def _names(facts: Facts, settings: RuntimeSettings) -> tuple[str, ...]:
    declared = settings.features.get("") or next(iter(settings.features.values()), ())
    if len(settings.features) > 1:
        raise BrokenVersion(f"model.yaml: features: one list is wanted for {facts.file}, {len(settings.features)} came")
    if declared and len(declared) != facts.width:
        raise BrokenVersion(
            f"model.yaml: features: {len(declared)} names came, {facts.file} was trained with {facts.width} columns"
        )
    if declared and facts.names and declared != facts.names:
        at = next(i for i, (a, b) in enumerate(zip(declared, facts.names, strict=True)) if a != b)
        raise BrokenVersion(
            f"model.yaml: features: column {at} is {declared[at]!r}, {facts.file} was trained with {facts.names[at]!r} "
            "there; leave features out, the file says them"
        )
    return declared or facts.names


def _texts(facts: Facts, settings: RuntimeSettings, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    for name, declared in settings.categories.items():
        if name not in names:
            known = ", ".join(names) or "none are named; name them under features:"
            raise BrokenVersion(f"model.yaml: categories: no feature {name!r}; features: {known}")
        trained = facts.categories.get(name, declared)
        if trained != declared:
            raise BrokenVersion(
                f"model.yaml: categories: {name} is declared as {', '.join(declared)}, {facts.file} was trained with "
                f"{', '.join(trained)}, in this order; leave it out, the file says it"
            )
    return {**facts.categories, **settings.categories}


def _inputs(
    facts: Facts, settings: RuntimeSettings, names: tuple[str, ...], texts: Mapping[str, tuple[str, ...]]
) -> tuple[TensorSpec, ...]:
    declared = settings.inputs
    if declared is None:
        if not texts:
            return (TensorSpec(FEATURES, facts.datatype, (-1, facts.width)),)
        return tuple(TensorSpec(n, "BYTES" if n in texts else facts.datatype, (-1,)) for n in names)
    said = ", ".join(map(str, declared))
    if any(spec.shape[:1] != (-1,) or spec.datatype == "BF16" for spec in declared):
        raise BrokenVersion(f"model.yaml: inputs: rows first ([-1, ...]) and no BF16 are wanted, {said} came")
    if len(declared) == 1 and not texts:
        (spec,) = declared
        if spec.datatype == "BYTES" or len(spec.shape) != 2 or spec.shape[1] not in (-1, facts.width):
            raise BrokenVersion(f"model.yaml: inputs: numbers [-1, {facts.width}] are wanted, {said} came")
        return (TensorSpec(spec.name, spec.datatype, (-1, facts.width)),)
    came = tuple(spec.name for spec in declared)
    if (names and came != names) or len(declared) != facts.width:
        raise BrokenVersion(
            f"model.yaml: inputs: one tensor [-1, {facts.width}], or one for each feature in their order is wanted "
            f"({', '.join(names) or facts.width}); {said} came"
        )
    for spec in declared:
        if spec.shape[1:] not in ((), (1,)) or (spec.datatype == "BYTES") != (spec.name in texts):
            raise BrokenVersion(
                f"model.yaml: inputs: {spec}: [-1] or [-1, 1] is wanted, BYTES where it has categories and only there"
            )
    return declared


def _at(inputs: Sequence[TensorSpec], texts: Mapping[str, tuple[str, ...]]) -> list[tuple[int, str]]:
    return [(at, spec.name) for at, spec in enumerate(inputs) if spec.name in texts]


def parted(
    categories: Mapping[str, Sequence[object]],
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[float, ...]]]:
    """Texts, and numbers that are not their own codes. Raises ValueError for what is neither."""
    texts: dict[str, tuple[str, ...]] = {}
    numbers: dict[str, tuple[float, ...]] = {}
    for name, values in categories.items():
        if values and all(isinstance(value, str) for value in values):
            texts[name] = tuple(str(value) for value in values)
        elif not all(isinstance(value, int | float) for value in values):
            raise ValueError(f"the categories of {name} are neither texts nor numbers: {list(values)[:5]}")
        elif list(values) != list(range(len(values))):
            numbers[name] = tuple(float(value) for value in values)  # type: ignore[arg-type]
    return texts, numbers
