"""What a model takes and gives: named tensors with datatype and shape, -1 for a variable dimension.

Validation happens once, here, for every door. The first dimension of a batchable model counts rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from octoserve.core.datatypes import DATATYPES
from octoserve.core.errors import InvalidInput
from octoserve.core.tensors import Shape, Tensor

_MAX_LAYOUTS = 1024
_MAX_EMPTY = 1 << 20
"""A tensor without elements costs its sender nothing, and a model may make outputs of its other dimensions."""


class TensorSpec(msgspec.Struct, frozen=True):
    """One named input or output; `shape` has -1 where a dimension varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype}[{', '.join('-1' if d < 0 else str(d) for d in self.shape)}]"


class Layout(msgspec.Struct, frozen=True):
    """What a checked set of tensor headers means.

    order: position in the request of each signature input
    rows:  the batch dimension (1 for a model without one)
    group: requests with an equal group may share a batch
    sizes: bytes that each tensor of the request takes in raw form, in its order; -1 for BYTES
    inspect: whether elements must be looked at one by one (BYTES, BOOL)
    nbytes: sum of the sizes that are known
    """

    order: tuple[int, ...]
    rows: int
    group: tuple[Shape, ...]
    sizes: tuple[int, ...]
    inspect: bool
    nbytes: int


class Signature:
    """Inputs and outputs of one version. `batchable`: dimension 0 of every tensor counts rows."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        batchable: bool = False,
        dimensions: Mapping[str, Sequence[str]] | None = None,
        features: Mapping[str, Sequence[str]] | None = None,
        missing: str = "",
        categories: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.batchable = batchable
        self.dimensions = dimensions or {}
        """Input name -> the names of its dimensions, "" for one without: equal names mean equal sizes."""
        self.features = {name: tuple(columns) for name, columns in (features or {}).items()}
        """Input name -> the table columns that its second dimension holds, in order; of those that have names."""
        self.missing = missing
        """What a missing number of a row means to the model: "nan" or "refuse"; "" where its version does not say."""
        self.categories = {name: tuple(texts) for name, texts in (categories or {}).items()}
        """Input name -> the only texts that it may hold; those that have such a list."""
        self.output_index = {spec.name: i for i, spec in enumerate(self.outputs)}
        self.memo: dict[object, bytes] = {}
        """What an encoder derived from this signature; bounded by the encoder."""
        self._layouts: dict[tuple[object, ...], Layout] = {}

    def check(self, tensors: Sequence[Tensor]) -> Layout:
        """The layout of these tensors; raises InvalidInput that names the input, the wish and the fact.

        Headers repeat from request to request, so the answer for a header is kept. Data is not looked
        at here, except that its length must be the shape's: joined with others in a batch, a tensor that is
        short and one that is long would add up, and shift every row between them.
        """
        key: tuple[object, ...]
        if len(tensors) == 1:
            first = tensors[0]
            key = (first.name, first.datatype, first.shape)
        else:
            key = tuple([(t.name, t.datatype, t.shape) for t in tensors])
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._check(tensors)
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = layout
        for tensor, size in zip(tensors, layout.sizes):  # noqa: B905 - as many by construction, and hot
            if tensor.raw is not None and len(tensor.raw) != size and size >= 0:
                raise InvalidInput(
                    f"input {tensor.name!r}: {tensor.datatype} of shape {list(tensor.shape)} takes {size} bytes, "
                    f"{len(tensor.raw)} came"
                )
        return layout

    def _check(self, tensors: Sequence[Tensor]) -> Layout:
        came = {t.name: i for i, t in enumerate(tensors)}
        wanted = ", ".join(map(str, self.inputs))
        if len(came) != len(tensors):
            raise InvalidInput(f"an input is given twice; wanted once each: {wanted}")
        for spec in self.inputs:
            if spec.name not in came:
                raise InvalidInput(f"input {spec.name!r} is missing; wanted: {wanted}; came: {sorted(came)}")
        if len(came) > len(self.inputs):
            unknown = sorted(set(came) - {spec.name for spec in self.inputs})
            raise InvalidInput(f"unknown input {unknown[0]!r}; wanted: {wanted}")
        order = tuple(came[spec.name] for spec in self.inputs)
        for spec, at in zip(self.inputs, order, strict=True):
            check_header(spec, tensors[at])
        self._check_dimensions(tensors)
        sizes = tuple(
            math.prod(t.shape) * DATATYPES[t.datatype].itemsize if DATATYPES[t.datatype].itemsize else -1
            for t in tensors
        )
        inspect = any(DATATYPES[t.datatype].kind in ("bytes", "bool") for t in tensors)
        nbytes = sum(size for size in sizes if size > 0)
        if not self.batchable:
            return Layout(order, 1, tuple(tensors[at].shape for at in order), sizes, inspect, nbytes)
        rows = {tensors[at].shape[0] for at in order}
        if len(rows) != 1:
            shapes = ", ".join(f"{tensors[at].name} {list(tensors[at].shape)}" for at in order)
            raise InvalidInput(f"inputs differ in their number of rows (first dimension): {shapes}")
        return Layout(order, rows.pop(), tuple(tensors[at].shape[1:] for at in order), sizes, inspect, nbytes)

    def _check_dimensions(self, tensors: Sequence[Tensor]) -> None:
        """Dimensions of one name must have one size."""
        sizes: dict[str, tuple[int, Tensor]] = {}
        for tensor in tensors:
            for name, size in zip(self.dimensions.get(tensor.name, ()), tensor.shape, strict=False):
                first, other = sizes.setdefault(name, (size, tensor)) if name else (size, tensor)
                if first != size:
                    raise InvalidInput(
                        f"dimension {name!r} is {first} in input {other.name!r} {list(other.shape)} "
                        f"and {size} in {tensor.name!r} {list(tensor.shape)}"
                    )


def check_header(spec: TensorSpec, tensor: Tensor) -> None:
    """Raise InvalidInput unless the tensor's datatype and shape are those of `spec`."""
    if tensor.datatype != spec.datatype:
        raise InvalidInput(f"input {spec.name!r}: datatype {spec.datatype} wanted, {tensor.datatype} came")
    fits = len(tensor.shape) == len(spec.shape) and all(
        want in (-1, have) and have >= 0 for want, have in zip(spec.shape, tensor.shape, strict=True)
    )
    if not fits:
        raise InvalidInput(f"input {spec.name!r}: shape {list(spec.shape)} wanted, {list(tensor.shape)} came")
    if 0 in tensor.shape and math.prod(d for d in tensor.shape if d) > _MAX_EMPTY:
        raise InvalidInput(
            f"input {spec.name!r}: shape {list(tensor.shape)} has no elements; its other dimensions "
            f"may not multiply to more than {_MAX_EMPTY}"
        )
