"""A signature's inputs and outputs as columns of a table: where a feature or an output has its name and its place.

An input whose features have names is a column each; any other tensor is one column, of a number or a text a row, or
of a list. An output with the name of a feature is called `predicted_NAME`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from octoserve.core.datatypes import DATATYPES
from octoserve.core.signature import Signature, TensorSpec
from octoserve.core.tensors import Array, from_bf16

INPUT, OUTPUT = "input", "output"
WIDEST = 64
"""Elements of a row up to which a tensor without features has a column each, `x[0]`, where elements are told apart."""


class Field(msgspec.Struct, frozen=True):
    """One tensor. index: of it among the inputs, or outputs.

    names: a column each; or one, of all elements of a row
    width: elements of a row; 0 where that varies
    """

    side: str
    index: int
    datatype: str
    names: tuple[str, ...]
    width: int

    @property
    def is_list(self) -> bool:
        """Whether its column holds lists."""
        return len(self.names) != self.width

    def elements(self) -> tuple[str, ...]:
        """A name for each element of a row; none where they vary or are too many."""
        if not self.is_list:
            return self.names
        return tuple(f"{self.names[0]}[{i}]" for i in range(self.width)) if 0 < self.width <= WIDEST else ()


def fields_of(signature: Signature) -> tuple[Field, ...]:
    """Inputs, then outputs, in the signature's order."""
    taken: set[str] = set()
    made = []
    for side, specs in ((INPUT, signature.inputs), (OUTPUT, signature.outputs)):
        for index, spec in enumerate(specs):
            width = _width(spec, signature.batchable)
            named = signature.features.get(spec.name, ()) if side == INPUT else ()
            names = named if named and len(named) == width else (spec.name,)
            free = tuple(_free(name, taken, "predicted_" if side == OUTPUT else "input_") for name in names)
            made.append(Field(side, index, spec.datatype, free, width))
    return tuple(made)


def _width(spec: TensorSpec, batchable: bool) -> int:
    shape = spec.shape[1:] if batchable else spec.shape
    return 0 if any(size < 0 for size in shape) else math.prod(shape)


def _free(name: str, taken: set[str], before: str) -> str:
    while name in taken:
        name = before + name
    taken.add(name)
    return name


def matrix(arrays: Sequence[Array], batchable: bool, datatype: str) -> Array:
    """One tensor of many requests as rows and elements; a model without rows has one a request. BF16 as floats."""
    flat = [array.reshape(array.shape[0], -1) if batchable else array.reshape(1, -1) for array in arrays]
    joined = flat[0] if len(flat) == 1 else np.concatenate(flat)
    return from_bf16(joined) if datatype == "BF16" else joined


def is_text(datatype: str) -> bool:
    """Whether elements are texts."""
    return DATATYPES[datatype].kind == "bytes"
